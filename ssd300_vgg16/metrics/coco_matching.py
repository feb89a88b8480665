"""Which detections find an object, by COCO's rules: for all classes, IoU thresholds and ranges of areas at once.

COCO's tool goes image by image, class by class, detection by detection. Here a cell is one class in one image, and
step k decides on the detection with the k-th best score of every cell that has as many. Only pairs of a detection and
an object whose IoU reaches the lowest threshold are looked at, and of those there are few.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

# Computed as pycocotools does: the last digit decides on IoUs that equal a threshold.
IOU_THRESHOLDS = np.linspace(0.5, 0.95, int(np.round((0.95 - 0.5) / 0.05)) + 1, endpoint=True)
AREA_RANGES = {"all": (0, 1e5**2), "small": (0, 32**2), "medium": (32**2, 96**2), "large": (96**2, 1e5**2)}
PAIRS_AT_A_TIME = 1_000_000
MISSED, TRUE, IGNORED = 0, 1, 2


@dataclass(frozen=True)
class GroundTruth:
    """The ground truth, sorted by cell: cells int64 [M], boxes_xywh float64 [M, 4], crowd bool [M].

    ignored: bool [M, A], whether an object is left out for a range of areas, with the detections that match it.
    """

    cells: np.ndarray
    boxes_xywh: np.ndarray
    crowd: np.ndarray
    ignored: np.ndarray


def outside_ranges(areas: np.ndarray) -> np.ndarray:
    """Whether areas float64 [N] in square pixels are outside of each range: bool [N, A]."""
    low, high = np.array(list(AREA_RANGES.values())).T
    return (areas[:, None] < low) | (areas[:, None] > high)


def matches(cells: np.ndarray, boxes_xywh: np.ndarray, objects: GroundTruth) -> tuple[np.ndarray, np.ndarray]:
    """The detections that overlap an object, int64 [C], and what they are: TRUE, IGNORED or MISSED, int8 [C, T, A].

    T are the IoU thresholds, A the ranges of areas. The detections' cells [N] and boxes_xywh float64 [N, 4] are sorted
    by cell, then falling score. A detection takes the object that it overlaps most, of equals the last, which no
    better one has taken; one that is ignored only if there is no other. Crowds can be taken many times.
    """
    detection, object_, iou = _pairs(cells, boxes_xywh, objects)
    order = np.lexsort((object_, iou, detection))
    detection, object_, iou = detection[order], object_[order], iou[order]
    first = np.flatnonzero(np.diff(detection, prepend=-1))
    rows = detection[first]
    what = np.zeros((len(rows), len(IOU_THRESHOLDS), len(AREA_RANGES)), dtype=np.int8)
    taken = np.zeros((len(objects.cells), *what.shape[1:]), dtype=bool)
    # pycocotools takes the threshold down a little, so that an IoU of 1 reaches a threshold of 1.
    reaches = iou[:, None] >= np.minimum(IOU_THRESHOLDS, 1 - 1e-10)
    counts = np.diff(first, append=len(detection))
    # Within a cell one after the other, because each takes its object away from the next; all cells at once.
    for step in _steps(cells[rows]):
        pairs, starts = _expanded(first[step], counts[step])
        what[step] = _take(object_[pairs], reaches[pairs], starts, objects, taken)
    return rows, what


def _take(
    object_: np.ndarray, reaches: np.ndarray, starts: np.ndarray, objects: GroundTruth, taken: np.ndarray
) -> np.ndarray:
    """What becomes of D detections of different cells: int8 [D, T, A]; objects are marked as taken.

    object_ [P] and reaches bool [P, T] are of their pairs, of a detection in order of IoU; starts [D] is where a
    detection's begin.
    """
    free = reaches[:, :, None] & (~taken[object_] | objects.crowd[object_, None, None])
    # The best pair has the highest number; those that are not ignored come after all that are.
    number = np.arange(len(object_))[:, None] + len(object_) * ~objects.ignored[object_]
    best = np.maximum.reduceat(np.where(free, number[:, None, :], -1), starts, axis=0)
    detection, threshold, area = np.nonzero(best >= 0)
    pair = best[detection, threshold, area] % len(object_)
    taken[object_[pair], threshold, area] = True
    return np.where(best < 0, MISSED, np.where(best >= len(object_), TRUE, IGNORED))


def _steps(cells: np.ndarray) -> Iterator[np.ndarray]:
    """Positions of the first of each cell, then those of the second of each that has two, and so on."""
    ranks = rank_in_cell(cells)
    order = np.argsort(ranks, kind="stable")
    yield from np.split(order, np.cumsum(np.bincount(ranks))[:-1]) if len(cells) else ()


def rank_in_cell(cells: np.ndarray) -> np.ndarray:
    """For cells [N] that are sorted: 0 for the first of each, 1 for the second, and so on: int64 [N]."""
    starts = np.flatnonzero(np.diff(cells, prepend=-1))
    return np.arange(len(cells)) - np.repeat(starts, np.diff(starts, append=len(cells)))


def _pairs(
    cells: np.ndarray, boxes_xywh: np.ndarray, objects: GroundTruth
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Detection, object and IoU of the pairs in one cell whose IoU reaches the lowest threshold: three arrays [P]."""
    first = np.searchsorted(objects.cells, cells, side="left")
    counts = np.searchsorted(objects.cells, cells, side="right") - first
    parts = [(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0))]
    # In parts, since all pairs of a large data set would take gigabytes.
    share = np.cumsum(counts) // PAIRS_AT_A_TIME
    for rows in np.split(np.arange(len(cells)), np.flatnonzero(np.diff(share)) + 1):
        detection, object_ = np.repeat(rows, counts[rows]), _expanded(first[rows], counts[rows])[0]
        iou = iou_xywh(boxes_xywh[detection], objects.boxes_xywh[object_], objects.crowd[object_])
        near = iou >= IOU_THRESHOLDS[0]
        parts.append((detection[near], object_[near], iou[near]))
    return tuple(np.concatenate(column) for column in zip(*parts, strict=True))


def _expanded(first: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """first[0], first[0] + 1, ... counts[0] of them, then those of first[1], ...; and where in these each begins."""
    starts = np.cumsum(counts) - counts
    return np.arange(counts.sum()) + np.repeat(first - starts, counts), starts


def iou_xywh(detection: np.ndarray, objects: np.ndarray, crowd: np.ndarray) -> np.ndarray:
    """IoU [P] of boxes xywh with boxes xywh, float64 [P, 4] each; with a crowd the part of the detection inside of it.

    Operation by operation as in pycocotools, so that equal IoUs come out equal there and here.
    """
    shared = np.ones(len(detection))
    apart = np.zeros(len(detection), dtype=bool)
    for axis in (0, 1):
        ends = (boxes[:, 2 + axis] + boxes[:, axis] for boxes in (detection, objects))
        side = np.minimum(*ends) - np.maximum(detection[:, axis], objects[:, axis])
        apart |= side <= 0
        shared = shared * side
    area, area_of_object = (boxes[:, 2] * boxes[:, 3] for boxes in (detection, objects))
    union = np.where(crowd, area, area + area_of_object - shared)
    return np.divide(shared, union, out=np.zeros_like(shared), where=~apart)
