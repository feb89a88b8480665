"""Which default box learns which object (Liu et al. 2016, section 2.2, "Matching strategy")."""

import numpy as np

from ssd300_vgg16.boxes import area, decode, encode, iou, pair_iou

MATCH_IOU = 0.5
UNMATCHED = -1
SAME_OBJECT = 0.97  # IoU of what two default boxes are to become; rounding leaves them nearer
OBJECTS_AT_ONCE = 500  # each takes 280 kB at the most
BLOCK = 32  # with less, there are more blocks to compare; with more, fewer of them are left out


class DefaultBoxIndex:
    """Default boxes [D, 4] in blocks of neighbours, each with the rectangle around it.

    Most default boxes are far from an object: whole blocks of them are left out with one comparison.
    """

    def __init__(self, default_boxes: np.ndarray):
        self.boxes = default_boxes
        # Filled up with boxes without area, which overlap nothing.
        padded = np.pad(default_boxes, ((0, -len(default_boxes) % BLOCK), (0, 0)))
        self._columns = np.ascontiguousarray(padded.T).reshape(4, -1, BLOCK)
        self._areas = area(padded).reshape(-1, BLOCK)
        # Default boxes come cell by cell and row by row, so those of a block are neighbours and the rectangle is small.
        self._around = *self._columns[:2].min(axis=-1), *self._columns[2:].max(axis=-1)

    def overlaps(self, objects: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Objects and blocks that may overlap, index by index int64 [P] in order, and their IoU [P, BLOCK]."""
        rows, blocks = np.nonzero(self._near(objects))
        columns = tuple(column[blocks] for column in self._columns)
        areas = area(objects)[rows, None], self._areas[blocks]
        return rows, blocks, pair_iou(tuple(objects.T[:, rows, None]), columns, *areas)

    def _near(self, objects: np.ndarray) -> np.ndarray:
        """bool [N, blocks]: whether an object meets the rectangle around a block."""
        x1, y1, x2, y2 = objects.T[..., None]
        left, top, right, bottom = self._around
        return (x1 < right) & (x2 > left) & (y1 < bottom) & (y2 > top)


def match(objects: np.ndarray, default_boxes: np.ndarray) -> np.ndarray:
    """The object each default box is matched to: int64 [D], an index into objects, or UNMATCHED.

    objects [N, 4] and default_boxes [D, 4] are xyxy in pixels of the network's input. A default box takes the object
    of highest IoU if that is at least 0.5, and each object's best default box is given to it whatever the IoU; when two
    objects share their best default box, the later object has it.
    """
    matched = np.full(len(default_boxes), UNMATCHED, dtype=np.int64)
    default_box, index = _matches(objects, DefaultBoxIndex(default_boxes))
    matched[default_box] = index
    return matched


def _matches(objects: np.ndarray, index: DefaultBoxIndex) -> tuple[np.ndarray, np.ndarray]:
    """Default boxes, and the object of each; of a default box that comes several times, the last one counts."""
    starts = range(0, max(len(objects), 1), OBJECTS_AT_ONCE)
    parts = [_overlaps_and_best(objects[start : start + OBJECTS_AT_ONCE], start, index) for start in starts]
    overlap, rows, default_boxes, best = (np.concatenate(columns) for columns in zip(*parts, strict=True))
    # Later entries overwrite earlier ones: from the lowest overlap to the highest, of equals the first object last.
    order = np.lexsort((-rows, overlap))
    # Last of all come the objects' best default boxes, which are theirs whatever the IoU.
    return np.concatenate((default_boxes[order], best)), np.concatenate((rows[order], np.arange(len(objects))))


def _overlaps_and_best(objects: np.ndarray, first: int, index: DefaultBoxIndex) -> tuple[np.ndarray, ...]:
    """Of objects whose numbers begin with `first`: the overlaps [P] that are enough, of which object and default box;
    and the default box of highest overlap of each object [N]."""
    rows, blocks, overlap = index.overlaps(objects)
    enough = np.flatnonzero(overlap >= MATCH_IOU)
    pair, place = np.divmod(enough, BLOCK)
    best = _best_default_boxes(len(objects), rows, blocks, overlap)
    return overlap.ravel()[enough], rows[pair] + first, blocks[pair] * BLOCK + place, best


def _best_default_boxes(objects: int, rows: np.ndarray, blocks: np.ndarray, overlap: np.ndarray) -> np.ndarray:
    """The default box of highest overlap of each object, of equals the first; 0 for one that overlaps none."""
    best = np.zeros(objects, dtype=np.int64)
    highest = overlap.max(axis=1, initial=0)
    highest_of = np.zeros(objects, dtype=overlap.dtype)
    np.maximum.at(highest_of, rows, highest)
    candidates = np.flatnonzero((highest == highest_of[rows]) & (highest > 0))[::-1]  # of several, the last is kept
    best[rows[candidates]] = blocks[candidates] * BLOCK + overlap[candidates].argmax(axis=1)
    return best


def training_targets(
    objects: np.ndarray, object_labels: np.ndarray, default_boxes: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """What the network should answer for each default box: offsets float32 [D, 4] and labels int64 [D].

    objects [N, 4] xyxy in pixels of the network's input, each of positive size; object_labels [N] from 1 up.
    Unmatched default boxes get label 0 (background) and offsets 0, which the loss does not look at.
    """
    offsets = np.zeros((len(default_boxes), 4), dtype=np.float32)
    labels = np.zeros(len(default_boxes), dtype=np.int64)
    write_targets(objects, object_labels, DefaultBoxIndex(default_boxes), offsets, labels)
    return offsets, labels


def write_targets(
    objects: np.ndarray, object_labels: np.ndarray, index: DefaultBoxIndex, offsets: np.ndarray, labels: np.ndarray
) -> None:
    """Write what `training_targets` gives into offsets [D, 4] and labels [D], which are 0 everywhere."""
    default_box, matched = _matches(objects, index)
    # A default box that comes several times gets the same last row in both.
    offsets[default_box] = encode(objects[matched], index.boxes[default_box])
    labels[default_box] = object_labels[matched]


def objects_of(offsets: np.ndarray, labels: np.ndarray, default_boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The objects that `training_targets` were made of, as far as a default box learns them: boxes and labels."""
    boxes, of_box = decode(offsets[labels > 0], default_boxes[labels > 0]), labels[labels > 0]
    alike = (iou(boxes, boxes) > SAME_OBJECT) & (of_box[:, None] == of_box)
    first = np.unique(alike.argmax(axis=1)) if len(boxes) else np.empty(0, dtype=np.int64)
    return boxes[first], of_box[first]
