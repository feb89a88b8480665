"""Precision at COCO's 101 recalls, and recall, of every class, IoU threshold and range of areas."""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from ssd300_vgg16.metrics.coco_matching import (
    AREA_RANGES,
    IOU_THRESHOLDS,
    MISSED,
    TRUE,
    Objects,
    matches,
    outside_ranges,
    rank_in_cell,
)

RECALLS = np.linspace(0.0, 1.00, int(np.round((1.00 - 0.0) / 0.01)) + 1, endpoint=True)
DETECTION_LIMITS = (1, 10, 100)  # per image and class
UNKNOWN = -1.0  # of classes without objects to find


@dataclass(frozen=True)
class Found:
    """N detections, sorted by class, image and falling score: at most the highest limit's of a class in an image.

    cells: int64 [N], class x images + image; boxes_xywh: float64 [N, 4]; scores: float64 [N].
    """

    cells: np.ndarray
    boxes_xywh: np.ndarray
    scores: np.ndarray


@dataclass(frozen=True)
class Curves:
    """precision: float64 [T, R, K, A] of IoU thresholds, recalls, classes and areas; recall: [T, K, A, limits].

    UNKNOWN where there is no object to find.
    """

    precision: np.ndarray
    recall: np.ndarray


def sorted_found(cells: np.ndarray, boxes_xywh: np.ndarray, scores: np.ndarray) -> Found:
    """Detections in the order and number that count."""
    order = np.lexsort((-scores, cells))
    order = order[rank_in_cell(cells[order]) < DETECTION_LIMITS[-1]]
    return Found(cells[order], boxes_xywh[order], scores[order])


def curves(found: Found, objects: Objects, images: int, classes: int) -> Curves:
    """The curves of detections and objects, whose cells are those of so many images and classes."""
    rows, what = matches(found.cells, found.boxes_xywh, objects)
    ranks = rank_in_cell(found.cells)[rows]
    inside = ~outside_ranges(found.boxes_xywh[:, 2] * found.boxes_xywh[:, 3])
    precision = np.full((len(IOU_THRESHOLDS), len(RECALLS), classes, len(AREA_RANGES)), UNKNOWN)
    recall = np.full((len(IOU_THRESHOLDS), classes, len(AREA_RANGES), len(DETECTION_LIMITS)), UNKNOWN)
    edges = np.arange(classes + 1) * images
    ends, object_ends = np.searchsorted(found.cells, edges), np.searchsorted(objects.cells, edges)
    for number, (start, end) in enumerate(pairwise(ends.tolist())):
        to_find = (~objects.ignored[object_ends[number] : object_ends[number + 1]]).sum(axis=0)
        mine = slice(*np.searchsorted(rows, (start, end)))
        order = np.argsort(-found.scores[start:end], kind="stable")
        places = np.argsort(order)[rows[mine] - start]
        for area in np.flatnonzero(to_find):
            became, counts = what[mine, :, area], inside[start:end, area][order]
            recall[:, number, area] = _recall(became, ranks[mine], to_find[area])
            precision[:, :, number, area] = _precision(became, places, counts, to_find[area])
    return Curves(precision, recall)


def _recall(what: np.ndarray, ranks: np.ndarray, to_find: int) -> np.ndarray:
    """Recall [T, limits] of a class; what: [C, T], and ranks [C] by score in the image."""
    return np.stack([(what[ranks < limit] == TRUE).sum(axis=0) / to_find for limit in DETECTION_LIMITS], axis=1)


def _precision(what: np.ndarray, places: np.ndarray, inside: np.ndarray, to_find: int) -> np.ndarray:
    """The highest precision at each of RECALLS or further on, 0 at those not reached: [T, R], of one class.

    inside: bool [N], by falling score of all detections, whether a detection that finds nothing counts; what: [C, T]
    and places: [C] in that order, of those that overlap an object.
    """
    by_score = np.argsort(places)
    what, places = what[by_score], places[by_score]
    true = what == TRUE
    counts = true | ((what == MISSED) & inside[places, None])
    # Of the other detections the running number is enough, corrected by these.
    counted = inside.cumsum()[places, None] + (counts.astype(np.int64) - inside[places, None]).cumsum(axis=0)
    hits = true.cumsum(axis=0)
    precision = hits / (counted + np.spacing(1))  # pycocotools' guard against 0 / 0
    best = np.maximum.accumulate(precision[::-1], axis=0)[::-1]
    at_recalls = np.zeros((what.shape[1], len(RECALLS)))
    for threshold, column in enumerate((hits / to_find).T):
        reached = np.searchsorted(column, RECALLS)
        reached = reached[reached < len(column)]
        at_recalls[threshold, : len(reached)] = best[reached, threshold]
    return at_recalls
