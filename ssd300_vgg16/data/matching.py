"""Which default box learns which object (Liu et al. 2016, section 2.2, "Matching strategy")."""

import numpy as np

from ssd300_vgg16.boxes import encode, iou

MATCH_IOU = 0.5
BACKGROUND = -1


def match(objects: np.ndarray, default_boxes: np.ndarray) -> np.ndarray:
    """The object each default box is matched to: int64 [D], an index into objects, -1 for background.

    objects [N, 4] and default_boxes [D, 4] are xyxy in pixels of the network's input. A default box takes the object
    of highest IoU if that is at least 0.5, and each object's best default box is given to it whatever the IoU; when two
    objects share their best default box, the later object has it.
    """
    matched = np.full(len(default_boxes), BACKGROUND, dtype=np.int64)
    if len(objects) == 0:
        return matched
    overlap = iou(objects, default_boxes)
    pairs = np.flatnonzero(overlap >= MATCH_IOU)  # few, of many
    rows, columns = np.divmod(pairs, len(default_boxes))
    # Where an index is assigned several times, the last one stays: the highest overlap, of equals the first object.
    order = np.lexsort((-rows, overlap.ravel()[pairs]))
    matched[columns[order]] = rows[order]
    matched[overlap.argmax(axis=1)] = np.arange(len(objects))
    return matched


def training_targets(
    objects: np.ndarray, object_labels: np.ndarray, default_boxes: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """What the network should answer for each default box: offsets float32 [D, 4] and labels int64 [D].

    objects [N, 4] xyxy in pixels of the network's input, each of positive size; object_labels [N] from 1 up.
    Unmatched default boxes get label 0 (background) and offsets 0, which the loss does not look at.
    """
    offsets = np.zeros((len(default_boxes), 4), dtype=np.float32)
    labels = np.zeros(len(default_boxes), dtype=np.int64)
    write_targets(objects, object_labels, default_boxes, offsets, labels)
    return offsets, labels


def write_targets(
    objects: np.ndarray, object_labels: np.ndarray, default_boxes: np.ndarray, offsets: np.ndarray, labels: np.ndarray
) -> None:
    """Write what `training_targets` gives into offsets [D, 4] and labels [D], which are 0 everywhere."""
    matched = match(objects, default_boxes)
    positive = np.flatnonzero(matched != BACKGROUND)
    matched = matched[positive]
    offsets[positive] = encode(objects[matched], default_boxes[positive])
    labels[positive] = object_labels[matched]
