"""The score threshold to work with: where F1, the balance of precision and recall, is best."""

import numpy as np

from ssd300_vgg16.metrics.coco_ap import AREA_RANGES, IGNORED, IOU_THRESHOLDS, TRUE, ground_truth, matches
from ssd300_vgg16.metrics.coco_results import CocoResults

# Two decimals: more would follow the chance of a few images, and are hard to remember.
SCORE_THRESHOLDS = np.arange(100) / 100
IOU = 0.5


def operating_points(results: CocoResults) -> dict:
    """What detections scored above the threshold of the best F1 come to at IoU 0.5; under "per_class" of each class.

    Detections are matched by COCO's rules; those that match a crowd or a difficult object count for nothing.
    """
    images = len(results.samples)
    cells = results.classes * images + results.images
    order = np.lexsort((-results.scores, cells))
    objects = ground_truth(results.samples, results.categories)
    rows, what = matches(cells[order], results.boxes_xywh[order], objects)
    threshold, area = int(np.flatnonzero(IOU_THRESHOLDS == IOU)[0]), list(AREA_RANGES).index("all")
    became = np.zeros(len(order), dtype=what.dtype)
    became[rows] = what[:, threshold, area]
    scores, classes = results.scores[order], results.classes[order]
    asked = objects.cells[~objects.ignored[:, area]] // images
    per_class = {
        category.name: _best(scores[classes == number], became[classes == number], int((asked == number).sum()))
        for number, category in enumerate(results.categories)
    }
    return _best(scores, became, len(asked)) | {"per_class": per_class}


def _best(scores: np.ndarray, became: np.ndarray, objects: int) -> dict[str, float]:
    """The figures at the best threshold; one is 0 where there is nothing to divide by."""
    hits, alarms = (
        chosen.sum() - np.searchsorted(np.sort(scores[chosen]), SCORE_THRESHOLDS, side="right")
        for chosen in (became == TRUE, (became != TRUE) & (became != IGNORED))
    )
    f1 = 2 * hits / np.maximum(hits + alarms + objects, 1)  # misses are the objects that are not hits
    best = int(np.argmax(f1))  # the lowest of equal thresholds: nothing is gained by hiding more
    found, false = int(hits[best]), int(alarms[best])
    return {
        "score_threshold": float(SCORE_THRESHOLDS[best]),
        "precision": found / max(found + false, 1),
        "recall": found / max(objects, 1),
        "f1": float(f1[best]),
        "hits": found,
        "misses": objects - found,
        "false_alarms": false,
    }
