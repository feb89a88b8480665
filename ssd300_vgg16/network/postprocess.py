"""From the network's answers to detections: softmax, thresholds, per-class NMS, pixels of the image (section 2.2)."""

from collections.abc import Iterable, Iterator

import numpy as np

from ssd300_vgg16 import boxes as box_math
from ssd300_vgg16.boxes import area
from ssd300_vgg16.network.variants import SSD300_COCO, DefaultBoxLayout, default_boxes

# Candidates looked at together: large enough to amortise numpy's calls, small enough to stop early.
BLOCK = 1024


def nms(boxes: np.ndarray, scores: np.ndarray, labels: np.ndarray, iou_threshold: float, most: int) -> np.ndarray:
    """Indices int64 of the boxes that greedy per-class NMS keeps, in order of falling score, `most` at the most.

    boxes [N, 4] xyxy, scores [N], labels [N]. A box is dropped if its IoU with a better kept box of the same label is
    above iou_threshold (strictly). Of equal scores the earlier box is the better one.
    """
    order = np.argsort(-scores, kind="stable")
    kept = np.empty(0, dtype=np.int64)
    for start in range(0, len(order), BLOCK):
        block = order[start : start + BLOCK]
        block = block[~_suppressed_by(kept, block, boxes, labels, iou_threshold)]
        kept = np.concatenate((kept, block[_keep_within(boxes[block], labels[block], iou_threshold)]))
        if len(kept) >= most:
            break
    return kept[:most]


def _suppressed_by(
    kept: np.ndarray, block: np.ndarray, boxes: np.ndarray, labels: np.ndarray, iou_threshold: float
) -> np.ndarray:
    """Which of a block's boxes overlap a kept box of their label: bool [len(block)]."""
    better, candidate = np.nonzero(labels[kept][:, None] == labels[block][None, :])
    overlapping = _overlap(boxes[kept[better]], boxes[block[candidate]], iou_threshold)
    suppressed = np.zeros(len(block), dtype=bool)
    suppressed[candidate[overlapping]] = True
    return suppressed


def _keep_within(boxes: np.ndarray, labels: np.ndarray, iou_threshold: float) -> np.ndarray:
    """What greedy NMS keeps of boxes sorted by falling score: bool [N].

    A box is kept if no kept better box suppresses it. That rule is applied to all boxes at once until nothing changes:
    after round r the r best boxes of each chain of overlaps are settled, so it ends, and ends with the greedy answer.
    """
    better, worse = _pairs_of_same_label(labels)
    overlapping = _overlap(boxes[better], boxes[worse], iou_threshold)
    better, worse = better[overlapping], worse[overlapping]
    keep = np.ones(len(boxes), dtype=bool)
    while True:
        updated = np.ones(len(boxes), dtype=bool)
        updated[worse[keep[better]]] = False
        if np.array_equal(updated, keep):
            return keep
        keep = updated


def _pairs_of_same_label(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """All pairs (i, j), i < j, of positions with equal labels, without looking at pairs of different labels."""
    by_label = np.argsort(labels, kind="stable")
    sizes = np.unique(labels, return_counts=True)[1]
    ends = np.repeat(np.cumsum(sizes), sizes)
    positions = np.arange(len(labels))
    partners = ends - 1 - positions
    first = np.repeat(positions, partners)
    run_starts = np.repeat(np.cumsum(partners) - partners, partners)
    second = np.arange(len(first)) - run_starts + first + 1
    return by_label[first], by_label[second]


def _overlap(a: np.ndarray, b: np.ndarray, iou_threshold: float) -> np.ndarray:
    """Whether IoU is above the threshold for each pair of rows of a [P, 4] and b [P, 4]: bool [P]."""
    width = np.minimum(a[:, 2], b[:, 2]) - np.maximum(a[:, 0], b[:, 0])
    height = np.minimum(a[:, 3], b[:, 3]) - np.maximum(a[:, 1], b[:, 1])
    shared = np.maximum(width, 0) * np.maximum(height, 0)
    return shared > iou_threshold * (area(a) + area(b) - shared)


# Liu et al. 2016, section 2.2 and the end of section 3.1; 400 candidates for each class as the published COCO model.
SCORE_THRESHOLD = 0.01
CANDIDATES_PER_CLASS = 400
NMS_IOU = 0.45
DETECTIONS_PER_IMAGE = 200
# Candidates tried first where there are many; and of how many default boxes one is asked how high their scores are. Not
# a multiple of a cell's boxes, so that those of every shape are among them.
ENOUGH = 2100
SAMPLED = 7

Candidates = tuple[np.ndarray, np.ndarray, np.ndarray]  # [N] each: scores, which default boxes, labels


def postprocess(
    offsets,
    logits,
    sizes_hw,
    score_threshold: float = SCORE_THRESHOLD,
    layout: DefaultBoxLayout = SSD300_COCO,
) -> list[dict[str, np.ndarray]]:
    """Detections of a batch, in numpy, an entry per image.

    offsets [B, D, 4] and logits [B, D, C] are tensors as the network gives them, or arrays, D the layout's default
    boxes; sizes_hw is [B, 2], the height and width in pixels that the boxes are to be in. Each entry holds "boxes"
    float32 [N, 4] xyxy in pixels, inside the image; "scores" float32 [N] in 0..1, falling; "labels" int64 [N] from 1
    up. N is at most 200. A class keeps its 400 best scores strictly above score_threshold, then NMS at IoU 0.45 thins
    them out.
    """
    if not isinstance(offsets, np.ndarray):
        offsets, logits = offsets.detach().numpy(), logits.detach()
    candidates = _candidates_on_gpu if getattr(logits, "is_cuda", False) else _candidates_on_cpu
    return [
        _detections(offsets[image], candidates(logits[image], score_threshold), sizes_hw[image], layout)
        for image in range(len(offsets))
    ]


def _detections(
    offsets: np.ndarray, tries: Iterable[Candidates], size_hw, layout: DefaultBoxLayout
) -> dict[str, np.ndarray]:
    """From the first candidates that are enough, or the last."""
    for scores, rows, labels in tries:
        boxes = _decoded(offsets, rows, layout)
        kept = nms(boxes, scores, labels, NMS_IOU, DETECTIONS_PER_IMAGE)
        if len(kept) == DETECTIONS_PER_IMAGE:
            break
    height, width = (np.float32(side) / np.float32(layout.image_size) for side in size_hw)
    in_pixels = boxes[kept] * np.array([width, height, width, height], dtype=np.float32)
    return {"boxes": in_pixels, "scores": scores[kept], "labels": labels[kept]}


def _decoded(offsets: np.ndarray, rows: np.ndarray, layout: DefaultBoxLayout) -> np.ndarray:
    """Boxes [N, 4] of these default boxes, in pixels of the network's input, inside it."""
    defaults = default_boxes(layout)
    if len(rows) < len(defaults):  # else it is less work to decode each once and then choose
        offsets, defaults, rows = offsets[rows], defaults[rows], slice(None)
    return box_math.clip(box_math.decode(offsets, defaults), layout.image_size, layout.image_size)[rows]


def _candidates_on_cpu(logits, threshold: float) -> Iterator[Candidates]:
    """Each class's best candidates above the threshold; before them, if they are many, only those of high scores.

    logits is a tensor or array [D, C], the background first. What NMS keeps of high scores, it keeps whatever is below
    them: if that is enough, the others need not be looked at.
    """
    scores = _softmax(logits if isinstance(logits, np.ndarray) else logits.numpy())
    scores[:, 0] = 0
    sample = scores[::SAMPLED]
    sample = sample[sample > threshold]
    if len(sample) * SAMPLED > 2 * ENOUGH:
        yield _best_above(scores, np.partition(sample, -ENOUGH // SAMPLED)[-ENOUGH // SAMPLED])
    yield _best_above(scores, threshold)


def _best_above(scores: np.ndarray, threshold: float) -> Candidates:
    """Of scores [D, C], each class's best above the threshold."""
    passing = scores > threshold
    crowded = np.flatnonzero(np.count_nonzero(passing, axis=0) > CANDIDATES_PER_CLASS)
    if len(crowded):
        passing[:, crowded] &= _best_of_class(np.ascontiguousarray(scores[:, crowded].T)).T
    rows, labels = np.divmod(np.flatnonzero(passing), passing.shape[1])  # as np.nonzero, in a fifth of the time
    return scores[rows, labels], rows, labels


def _softmax(logits: np.ndarray) -> np.ndarray:
    """Scores [D, C] in 0..1, each row's sum 1."""
    exponents = logits - logits.max(axis=1, keepdims=True)
    np.exp(exponents, out=exponents)
    return np.divide(exponents, exponents.sum(axis=1, keepdims=True), out=exponents)


def _best_of_class(scores: np.ndarray) -> np.ndarray:
    """Which are among the CANDIDATES_PER_CLASS highest of their row: bool like scores [classes, D]."""
    best = np.argpartition(-scores, CANDIDATES_PER_CLASS - 1, axis=1)[:, :CANDIDATES_PER_CLASS]
    chosen = np.zeros(scores.shape, dtype=bool)
    np.put_along_axis(chosen, best, True, axis=1)
    return chosen


def _candidates_on_gpu(logits, threshold: float) -> Iterator[Candidates]:
    """As the last of `_candidates_on_cpu`, moving only each class's best candidates to the host."""
    from ssd300_vgg16.runtime import flow

    by_class = flow.softmax(logits, dim=-1)[:, 1:].transpose(0, 1).contiguous()
    values, rows = flow.topk(by_class, min(CANDIDATES_PER_CLASS, by_class.shape[1]), dim=1)
    values, rows = values.numpy(), rows.numpy()
    columns, ranks = np.nonzero(values > threshold)
    yield values[columns, ranks], rows[columns, ranks], columns + 1
