"""Exact greedy non-maximum suppression in numpy, class by class, that stops when enough boxes are kept."""

import numpy as np

from ssd300_vgg16.boxes import area

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
