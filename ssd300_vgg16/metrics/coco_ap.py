"""COCO's box average precision: ground truth and detections in, the twelve numbers and AP per class out.

COCO's tool goes image by image, class by class, detection by detection. Here a cell is one class in one image, and
step k decides on the detection with the k-th best score of every cell that has as many, for all IoU thresholds and
ranges of areas at once. Only pairs of a detection and an object whose IoU reaches the lowest threshold are looked at,
and of those there are few.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from ssd300_vgg16.boxes import xyxy_to_xywh
from ssd300_vgg16.data.dataset import Category, Sample
from ssd300_vgg16.metrics.coco_results import CocoResults, class_numbers, object_columns
from ssd300_vgg16.text import printable

# Computed as pycocotools does: the last digit decides on IoUs and recalls that equal a threshold.
IOU_THRESHOLDS = np.linspace(0.5, 0.95, int(np.round((0.95 - 0.5) / 0.05)) + 1, endpoint=True)
RECALLS = np.linspace(0.0, 1.00, int(np.round((1.00 - 0.0) / 0.01)) + 1, endpoint=True)
AREA_RANGES = {"all": (0, 1e5**2), "small": (0, 32**2), "medium": (32**2, 96**2), "large": (96**2, 1e5**2)}
DETECTION_LIMITS = (1, 10, 100)  # per image and class
UNKNOWN = -1.0  # of classes without objects to find, as in pycocotools
PAIRS_AT_A_TIME = 1_000_000
MISSED, TRUE, IGNORED = 0, 1, 2

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
_THRESHOLDS_OF = {"0.50:0.95": slice(None), "0.50": slice(0, 1), "0.75": slice(5, 6)}


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
        names = {name: printable(name) for name in self.per_class}
        width = max([5, *map(len, names.values())])
        headings = "".join(f" {heading:>8}" for heading in more)
        rows += ["", f"{'class':<{width}} {'objects':>8} {'AP':>7} {'AP50':>7}{headings}"]
        for name, (ap, ap50, objects) in self.per_class.items():
            further = "".join(f" {column[name]:>8.3f}" for column in more.values())
            rows.append(f"{names[name]:<{width}} {objects:>8} {ap:>7.3f} {ap50:>7.3f}{further}")
        return "\n".join(rows)

    def as_json(self) -> dict:
        """The same as a JSON-able mapping."""
        per_class = {
            name: {"AP": ap, "AP50": ap50, "objects": objects} | self.per_class_by_size[name]
            for name, (ap, ap50, objects) in self.per_class.items()
        }
        return {**self.statistics, "per_class": per_class}


def coco_ap(results: CocoResults) -> CocoMetrics:
    """COCO's numbers of detections, on the samples that they were looked for in.

    They are pycocotools' own to the last digits, also for equal scores, which count in order of image id.
    """
    categories = results.categories
    by_id = np.argsort([sample.id for sample in results.samples], kind="stable")
    samples = [results.samples[index] for index in by_id]
    cells = results.classes * len(samples) + np.argsort(by_id)[results.images]
    # A stable sort: pycocotools keeps equal scores in the order of the results, and so must we.
    order = np.lexsort((-results.scores, cells))
    order = order[_rank_in_cell(cells[order]) < DETECTION_LIMITS[-1]]
    objects = ground_truth(samples, categories)
    precision, recall = _curves(cells[order], results.boxes_xywh[order], results.scores[order], objects, categories)
    areas = list(AREA_RANGES)
    statistics = {
        name: mean_of_known(
            precision[_THRESHOLDS_OF[iou], :, :, areas.index(area)]
            if name.startswith("AP")
            else recall[_THRESHOLDS_OF[iou], :, areas.index(area), DETECTION_LIMITS.index(limit)]
        )
        for name, iou, area, limit in STATISTICS
    }
    counted = np.concatenate([sample.labels[~sample.crowd & ~sample.difficult] for sample in samples])
    counts = np.bincount(class_numbers(categories, counted), minlength=len(categories)).tolist()
    per_class, by_size = {}, {}
    for number, category in enumerate(categories):
        of_class = precision[:, :, number]
        ap, ap50 = mean_of_known(of_class[:, :, 0]), mean_of_known(of_class[0, :, 0])
        per_class[category.name] = ap, ap50, counts[number]
        by_size[category.name] = {
            f"AP_{size}": mean_of_known(of_class[:, :, area]) for area, size in enumerate(areas) if area
        }
    return CocoMetrics(statistics, per_class, by_size)


def mean_of_known(values: np.ndarray) -> float:
    """The mean of those that are not UNKNOWN; UNKNOWN where all are."""
    known = values[values > UNKNOWN]
    return float(known.mean()) if known.size else UNKNOWN


@dataclass(frozen=True)
class GroundTruth:
    """The ground truth of so many images, sorted by cell, which is class number x images + image.

    cells: int64 [M]; boxes_xywh: float64 [M, 4]; crowd: bool [M]; ignored: bool [M, A], whether an object is left out
    for a range of areas, with the detections that match it.
    """

    images: int
    cells: np.ndarray
    boxes_xywh: np.ndarray
    crowd: np.ndarray
    ignored: np.ndarray


def ground_truth(samples: list[Sample], categories: list[Category]) -> GroundTruth:
    """The ground truth of the samples."""
    images, labels, boxes, crowd, difficult, areas = object_columns(
        samples, "labels", "boxes", "crowd", "difficult", "areas"
    )
    cells = class_numbers(categories, labels) * len(samples) + images
    # Difficult objects are ignored with the detections that match them: VOC's rule. Marked as crowds they would be
    # ignored too, but their IoU would be another.
    ignored = _outside_ranges(areas) | (crowd | difficult)[:, None]
    order = np.argsort(cells, kind="stable")
    return GroundTruth(len(samples), cells[order], xyxy_to_xywh(boxes[order]), crowd[order], ignored[order])


def _curves(
    cells: np.ndarray, boxes_xywh: np.ndarray, scores: np.ndarray, objects: GroundTruth, categories: list[Category]
) -> tuple[np.ndarray, np.ndarray]:
    """Precision float64 [T, R, K, A] of IoU thresholds, recalls, classes and areas; recall [T, K, A, limits].

    UNKNOWN where there is no object to find. Detections are sorted by cell, then falling score.
    """
    classes = len(categories)
    rows, became = matches(cells, boxes_xywh, objects)
    ranks = _rank_in_cell(cells)[rows]
    inside = ~_outside_ranges(boxes_xywh[:, 2] * boxes_xywh[:, 3])
    precision = np.full((len(IOU_THRESHOLDS), len(RECALLS), classes, len(AREA_RANGES)), UNKNOWN)
    recall = np.full((len(IOU_THRESHOLDS), classes, len(AREA_RANGES), len(DETECTION_LIMITS)), UNKNOWN)
    edges = np.arange(classes + 1) * objects.images
    ends, object_ends = np.searchsorted(cells, edges), np.searchsorted(objects.cells, edges)
    for number, (start, end) in enumerate(pairwise(ends.tolist())):
        to_find = (~objects.ignored[object_ends[number] : object_ends[number + 1]]).sum(axis=0)
        mine = slice(*np.searchsorted(rows, (start, end)))
        # Mergesort, as in pycocotools: another order of equal scores would be another curve.
        order = np.argsort(-scores[start:end], kind="stable")
        places = np.argsort(order)[rows[mine] - start]
        for area in np.flatnonzero(to_find):
            what, counts = became[mine, :, area], inside[start:end, area][order]
            for limit, most in enumerate(DETECTION_LIMITS):
                recall[:, number, area, limit] = (what[ranks[mine] < most] == TRUE).sum(axis=0) / to_find[area]
            precision[:, :, number, area] = _precision(what, places, counts, to_find[area])
    return precision, recall


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
    ranks = _rank_in_cell(cells)
    order = np.argsort(ranks, kind="stable")
    yield from np.split(order, np.cumsum(np.bincount(ranks))[:-1]) if len(cells) else ()


def _rank_in_cell(cells: np.ndarray) -> np.ndarray:
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


def _outside_ranges(areas: np.ndarray) -> np.ndarray:
    """Whether areas float64 [N] in square pixels are outside of each range: bool [N, A]."""
    low, high = np.array(list(AREA_RANGES.values())).T
    return (areas[:, None] < low) | (areas[:, None] > high)


def iou_xywh(detections: np.ndarray, objects: np.ndarray, crowd: np.ndarray) -> np.ndarray:
    """IoU of boxes xywh, float64 [..., 4] that broadcast; with a crowd the part of the detection inside of it.

    Operation by operation as in pycocotools, so that equal IoUs come out equal there and here.
    """
    width, height = (
        np.minimum(detections[..., 2 + axis] + detections[..., axis], objects[..., 2 + axis] + objects[..., axis])
        - np.maximum(detections[..., axis], objects[..., axis])
        for axis in (0, 1)
    )
    shared = width * height
    area, area_of_object = (boxes[..., 2] * boxes[..., 3] for boxes in (detections, objects))
    union = np.where(crowd, area, area + area_of_object - shared)
    return np.divide(shared, union, out=np.zeros_like(shared), where=(width > 0) & (height > 0))
