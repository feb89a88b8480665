"""COCO's box average precision: ground truth and detections in, the twelve numbers and AP per class out."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ssd300_vgg16.boxes import xyxy_to_xywh
from ssd300_vgg16.data.dataset import Category, Sample
from ssd300_vgg16.metrics.coco_curves import DETECTION_LIMITS, Curves, curves, sorted_found
from ssd300_vgg16.metrics.coco_matching import AREA_RANGES, IOU_THRESHOLDS, Objects, outside_ranges
from ssd300_vgg16.metrics.coco_results import CocoResults, class_numbers

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
    """

    statistics: dict[str, float]
    per_class: dict[str, tuple[float, float, int]]

    def table(self, more: Mapping[str, Mapping[str, float]] | None = None) -> str:
        """COCO's table, and a row per class, with more columns (heading to value of each class) at its end."""
        more = more or {}
        rows = [f"{'':<12} {'IoU':<10} {'area':<7} {'max':>4} {'value':>7}"]
        for name, iou, area, most in STATISTICS:
            rows.append(f"{name:<12} {iou:<10} {area:<7} {most:>4} {self.statistics[name]:>7.3f}")
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
        per_class = {name: dict(zip(names, values, strict=True)) for name, values in self.per_class.items()}
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
    found = sorted_found(results.classes * images + place[results.images], results.boxes_xywh, results.scores)
    samples = [results.samples[index] for index in by_id]
    objects = _objects(samples, results.categories)
    made = curves(found, objects, images, len(results.categories))
    counted = np.concatenate([sample.labels[~sample.crowd & ~sample.difficult] for sample in samples])
    counts = np.bincount(class_numbers(results.categories, counted), minlength=len(results.categories))
    return CocoMetrics(_statistics(made), _per_class(made, results.categories, counts.tolist()))


def _objects(samples: list[Sample], categories: list[Category]) -> Objects:
    """The ground truth of the samples.

    Difficult objects are of no range of areas, which makes them ignored with what is found of them: VOC's rule. As
    crowds they would be ignored too, but with another IoU.
    """
    images = np.repeat(np.arange(len(samples)), [len(sample.labels) for sample in samples])
    labels, boxes, crowd, difficult, areas = (
        np.concatenate([getattr(sample, name) for sample in samples])
        for name in ("labels", "boxes", "crowd", "difficult", "areas")
    )
    cells = class_numbers(categories, labels) * len(samples) + images
    ignored = outside_ranges(areas) | (crowd | difficult)[:, None]
    order = np.argsort(cells, kind="stable")
    return Objects(cells[order], xyxy_to_xywh(boxes[order]), crowd[order], ignored[order])


def _statistics(made: Curves) -> dict[str, float]:
    areas, thresholds = list(AREA_RANGES), [f"{threshold:.2f}" for threshold in IOU_THRESHOLDS]
    statistics = {}
    for name, iou, area, most in STATISTICS:
        at = slice(None) if iou == "0.50:0.95" else slice(thresholds.index(iou), thresholds.index(iou) + 1)
        if name.startswith("AP"):
            values = made.precision[at, :, :, areas.index(area)]
        else:
            values = made.recall[at, :, areas.index(area), DETECTION_LIMITS.index(most)]
        statistics[name] = _mean(values)
    return statistics


def _per_class(made: Curves, categories: list[Category], counts: list[int]) -> dict[str, tuple[float, float, int]]:
    precision = made.precision[:, :, :, list(AREA_RANGES).index("all")]
    return {
        category.name: (_mean(precision[:, :, number]), _mean(precision[0, :, number]), counts[number])
        for number, category in enumerate(categories)
    }


def _mean(values: np.ndarray) -> float:
    known = values[values > -1]
    return float(known.mean()) if known.size else -1.0
