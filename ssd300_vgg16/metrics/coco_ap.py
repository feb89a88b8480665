"""COCO's box average precision: ground truth and detections in, the twelve numbers and AP per class out."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from ssd300_vgg16.boxes import xyxy_to_xywh
from ssd300_vgg16.data.dataset import Category, Sample
from ssd300_vgg16.metrics.coco_matching import (
    AREA_RANGES,
    IOU_THRESHOLDS,
    MISSED,
    TRUE,
    GroundTruth,
    matches,
    outside_ranges,
    rank_in_cell,
)
from ssd300_vgg16.metrics.coco_results import CocoResults, class_numbers

RECALLS = np.linspace(0.0, 1.00, int(np.round((1.00 - 0.0) / 0.01)) + 1, endpoint=True)
DETECTION_LIMITS = (1, 10, 100)  # per image and class
UNKNOWN = -1.0  # of classes without objects to find, as in pycocotools


@dataclass(frozen=True)
class Detections:
    """N detections, sorted by class, image and falling score: at most 100 of a class in an image.

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


def sorted_detections(cells: np.ndarray, boxes_xywh: np.ndarray, scores: np.ndarray) -> Detections:
    """Detections in the order and number that count."""
    # A stable sort: pycocotools keeps equal scores in the order of the results, and so must we.
    order = np.lexsort((-scores, cells))
    order = order[rank_in_cell(cells[order]) < DETECTION_LIMITS[-1]]
    return Detections(cells[order], boxes_xywh[order], scores[order])


def curves(detections: Detections, objects: GroundTruth, images: int, classes: int) -> Curves:
    """The curves of detections and objects, whose cells are those of so many images and classes."""
    rows, what = matches(detections.cells, detections.boxes_xywh, objects)
    ranks = rank_in_cell(detections.cells)[rows]
    inside = ~outside_ranges(detections.boxes_xywh[:, 2] * detections.boxes_xywh[:, 3])
    precision = np.full((len(IOU_THRESHOLDS), len(RECALLS), classes, len(AREA_RANGES)), UNKNOWN)
    recall = np.full((len(IOU_THRESHOLDS), classes, len(AREA_RANGES), len(DETECTION_LIMITS)), UNKNOWN)
    edges = np.arange(classes + 1) * images
    ends, object_ends = np.searchsorted(detections.cells, edges), np.searchsorted(objects.cells, edges)
    for number, (start, end) in enumerate(pairwise(ends.tolist())):
        to_find = (~objects.ignored[object_ends[number] : object_ends[number + 1]]).sum(axis=0)
        mine = slice(*np.searchsorted(rows, (start, end)))
        # Mergesort, as in pycocotools: another order of equal scores would be another curve.
        order = np.argsort(-detections.scores[start:end], kind="stable")
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
        # The first place at which the recall is reached; side "left", as in pycocotools.
        reached = np.searchsorted(column, RECALLS)
        reached = reached[reached < len(column)]
        at_recalls[threshold, : len(reached)] = best[reached, threshold]
    return at_recalls


# pycocotools' COCOeval.stats in its order: name, IoU, area, detections per image.
STATISTICS = (
    ("AP", "0.50:0.95", "all", 100),
    ("AP50", "0.50", "all", 100),
    ("AP75", "0.75", "all", 100),
    ("AP_small", "0.50:0.95", "small", 100),
    ("AP_medium", "0.50:0.95", "medium", 100),
    ("AP_large", "0.50:0.95", "large", 100),
    ("AR_1", "0.50:0.95", "all", 1),
    ("AR_10", "0.50:0.95", "all", 10),
    ("AR_100", "0.50:0.95", "all", 100),
    ("AR_small", "0.50:0.95", "small", 100),
    ("AR_medium", "0.50:0.95", "medium", 100),
    ("AR_large", "0.50:0.95", "large", 100),
)


@dataclass(frozen=True)
class CocoMetrics:
    """Values in 0..1; -1, as in COCO's own tool, where nothing in the ground truth answers to the question.

    statistics: COCO's twelve numbers by name. per_class: category name to (AP, AP50, objects that count).
    per_class_by_size: category name to AP_small, AP_medium and AP_large.
    """

    statistics: dict[str, float]
    per_class: dict[str, tuple[float, float, int]]
    per_class_by_size: dict[str, dict[str, float]]

    def table(self, more: Mapping[str, Mapping[str, float]] | None = None) -> str:
        """COCO's table, and a row per class, with more columns (heading to value of each class) at its end."""
        more = more or {}
        rows = [f"{'':<12} {'IoU':<10} {'area':<7} {'max':>4} {'value':>7}"]
        for name, iou, area, limit in STATISTICS:
            rows.append(f"{name:<12} {iou:<10} {area:<7} {limit:>4} {self.statistics[name]:>7.3f}")
        width = max([5, *map(len, self.per_class)])
        headings = "".join(f" {heading:>8}" for heading in more)
        rows += ["", f"{'class':<{width}} {'objects':>8} {'AP':>7} {'AP50':>7}{headings}"]
        for name, (ap, ap50, objects) in self.per_class.items():
            further = "".join(f" {column[name]:>8.3f}" for column in more.values())
            rows.append(f"{name:<{width}} {objects:>8} {ap:>7.3f} {ap50:>7.3f}{further}")
        return "\n".join(rows)

    def as_json(self) -> dict:
        """The same as a JSON-able mapping."""
        names = ("AP", "AP50", "objects")
        per_class = {
            name: dict(zip(names, values, strict=True)) | self.per_class_by_size[name]
            for name, values in self.per_class.items()
        }
        return {**self.statistics, "per_class": per_class}


def coco_ap(results: CocoResults) -> CocoMetrics:
    """COCO's numbers of detections, on the samples that they were looked for in.

    They are pycocotools' own to the last digits, also for equal scores, which count in order of image id.
    """
    # Of equal scores those in the image of the lowest id come first.
    by_id = np.argsort([sample.id for sample in results.samples], kind="stable")
    place = np.empty_like(by_id)
    place[by_id] = np.arange(len(by_id))
    images = len(by_id)
    detections = sorted_detections(results.classes * images + place[results.images], results.boxes_xywh, results.scores)
    samples = [results.samples[index] for index in by_id]
    objects = ground_truth(samples, results.categories)
    made = curves(detections, objects, images, len(results.categories))
    counted = np.concatenate([sample.labels[~sample.crowd & ~sample.difficult] for sample in samples])
    counts = np.bincount(class_numbers(results.categories, counted), minlength=len(results.categories))
    return CocoMetrics(
        _statistics(made),
        _per_class(made, results.categories, counts.tolist()),
        _per_class_by_size(made, results.categories),
    )


def ground_truth(samples: list[Sample], categories: list[Category]) -> GroundTruth:
    """The ground truth of the samples.

    Difficult objects lie outside of all ranges of areas. So they are ignored, with the detections that match them:
    VOC's rule. Marked as crowds they would be ignored too, but their IoU would be another.
    """
    images = np.repeat(np.arange(len(samples)), [len(sample.labels) for sample in samples])
    labels, boxes, crowd, difficult, areas = (
        np.concatenate([getattr(sample, name) for sample in samples])
        for name in ("labels", "boxes", "crowd", "difficult", "areas")
    )
    cells = class_numbers(categories, labels) * len(samples) + images
    ignored = outside_ranges(areas) | (crowd | difficult)[:, None]
    order = np.argsort(cells, kind="stable")
    return GroundTruth(cells[order], xyxy_to_xywh(boxes[order]), crowd[order], ignored[order])


def _statistics(made: Curves) -> dict[str, float]:
    areas, thresholds = list(AREA_RANGES), [f"{threshold:.2f}" for threshold in IOU_THRESHOLDS]
    statistics = {}
    for name, iou, area, limit in STATISTICS:
        at = slice(None) if iou == "0.50:0.95" else slice(thresholds.index(iou), thresholds.index(iou) + 1)
        if name.startswith("AP"):
            values = made.precision[at, :, :, areas.index(area)]
        else:
            values = made.recall[at, :, areas.index(area), DETECTION_LIMITS.index(limit)]
        statistics[name] = _mean(values)
    return statistics


def _per_class(made: Curves, categories: list[Category], counts: list[int]) -> dict[str, tuple[float, float, int]]:
    precision = made.precision[:, :, :, list(AREA_RANGES).index("all")]
    return {
        category.name: (_mean(precision[:, :, number]), _mean(precision[0, :, number]), counts[number])
        for number, category in enumerate(categories)
    }


def _per_class_by_size(made: Curves, categories: list[Category]) -> dict[str, dict[str, float]]:
    return {
        category.name: {
            f"AP_{size}": _mean(made.precision[:, :, number, area]) for area, size in enumerate(AREA_RANGES) if area
        }
        for number, category in enumerate(categories)
    }


def _mean(values: np.ndarray) -> float:
    known = values[values > -1]
    return float(known.mean()) if known.size else -1.0
