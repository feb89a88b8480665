"""The score threshold to work with: where F1, the balance of precision and recall, is best."""

from dataclasses import asdict, dataclass

import numpy as np

from ssd300_vgg16.metrics.coco_ap import ground_truth
from ssd300_vgg16.metrics.coco_matching import AREA_RANGES, IGNORED, IOU_THRESHOLDS, TRUE, matches
from ssd300_vgg16.metrics.coco_results import CocoResults

# Two decimals: more would follow the chance of a few images, and are hard to remember.
SCORE_THRESHOLDS = np.arange(100) / 100
IOU = 0.5


@dataclass(frozen=True)
class OperatingPoint:
    """What detections scored above the threshold come to; a figure is 0 where there is nothing to divide by."""

    score_threshold: float
    precision: float
    recall: float
    f1: float
    hits: int
    misses: int
    false_alarms: int

    def as_json(self) -> dict[str, float]:
        """The figures by name."""
        return asdict(self)


def operating_points(results: CocoResults) -> tuple[OperatingPoint, dict[str, OperatingPoint]]:
    """That of the best F1 at IoU 0.5: over all classes, and of each class by name.

    Detections are matched by COCO's rules; those that match a crowd or a difficult object count for nothing.
    """
    images = len(results.samples)
    cells = results.classes * images + results.images
    order = np.lexsort((-results.scores, cells))
    objects = ground_truth(results.samples, results.categories)
    rows, what = matches(cells[order], results.boxes_xywh[order], objects)
    became = np.zeros(len(order), dtype=what.dtype)
    became[rows] = what[:, int(np.flatnonzero(IOU_THRESHOLDS == IOU)[0]), list(AREA_RANGES).index("all")]
    scores, classes = results.scores[order], results.classes[order]
    counted = objects.cells[~objects.ignored[:, list(AREA_RANGES).index("all")]] // images
    per_class = {
        category.name: _best(*_above(scores[classes == number], became[classes == number]), (counted == number).sum())
        for number, category in enumerate(results.categories)
    }
    return _best(*_above(scores, became), len(counted)), per_class


def _above(scores: np.ndarray, became: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How many hits and false alarms are scored above each of SCORE_THRESHOLDS."""
    hits = np.sort(scores[became == TRUE])
    alarms = np.sort(scores[(became != TRUE) & (became != IGNORED)])
    return _count_above(hits), _count_above(alarms)


def _count_above(ascending: np.ndarray) -> np.ndarray:
    return len(ascending) - np.searchsorted(ascending, SCORE_THRESHOLDS, side="right")


def _best(hits: np.ndarray, alarms: np.ndarray, objects: int) -> OperatingPoint:
    # F1 from counts: misses are the objects that are not hits, so they are not needed.
    f1 = 2 * hits / np.maximum(hits + alarms + objects, 1)
    # The lowest of equal thresholds: nothing is gained by hiding more.
    best = int(np.argmax(f1))
    found, false = int(hits[best]), int(alarms[best])
    return OperatingPoint(
        float(SCORE_THRESHOLDS[best]),
        found / max(found + false, 1),
        found / max(int(objects), 1),
        float(f1[best]),
        found,
        int(objects) - found,
        false,
    )
