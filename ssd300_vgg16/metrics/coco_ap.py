"""COCO's box average precision: ground truth and detections in, the twelve numbers and AP per class out."""

import contextlib
import io
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from ssd300_vgg16.boxes import xyxy_to_xywh
from ssd300_vgg16.data.dataset import Dataset

# COCOeval.stats in its order: name, IoU, area, detections per image.
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


def coco_results(dataset: Dataset, positions: list[int], detections: list[dict[str, np.ndarray]]) -> list[dict]:
    """Detections in COCO's results format, with the ids of the data set and box xywh in pixels.

    detections are those of `postprocess`, for the samples at these positions. Labels the data set does not have are
    left out: it has no objects of theirs to be right or wrong about. Data sets whose image ids are mere numbers get
    file names too.
    """
    category_ids = {category.label: category.id for category in dataset.categories}
    results = []
    for position, found in zip(positions, detections, strict=True):
        boxes_xywh = xyxy_to_xywh(found["boxes"].astype(np.float64)).round(3)
        for box, score, label in zip(
            boxes_xywh.tolist(), found["scores"].tolist(), found["labels"].tolist(), strict=True
        ):
            if label in category_ids:
                sample = dataset.samples[position]
                file_name = {} if dataset.kind == "coco" else {"file_name": sample.path.name}
                result = {"image_id": sample.id, "category_id": category_ids[label], "bbox": box, "score": score}
                results.append({**result, **file_name})
    return results


def coco_ap(dataset: Dataset, positions: list[int], results: list[dict]) -> CocoMetrics:
    """COCO's numbers of results (as `coco_results` makes them) on the samples at these positions, by pycocotools."""
    with contextlib.redirect_stdout(io.StringIO()):
        truth = ground_truth(dataset, positions)
        found = truth.loadRes([dict(result) for result in results]) if results else COCO()  # it writes into them
        evaluation = COCOeval(truth, found, "bbox")
        evaluation.params.imgIds = truth.getImgIds()
        evaluation.params.catIds = truth.getCatIds()
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    names = [name for name, *_ in STATISTICS]
    statistics = dict(zip(names, map(float, evaluation.stats), strict=True))
    return CocoMetrics(statistics, _per_class(dataset, truth, evaluation))


def ground_truth(dataset: Dataset, positions: list[int]) -> COCO:
    """A pycocotools COCO of the samples at these positions.

    Difficult objects are of no range of areas, which makes it ignore them and what is found of them: VOC's rule. As
    crowds they would be ignored too, but with another IoU.
    """
    samples = [dataset.samples[position] for position in positions]
    category_ids = {category.label: category.id for category in dataset.categories}
    annotations = []
    for sample in samples:
        areas = np.where(sample.difficult, np.inf, sample.areas)
        columns = (xyxy_to_xywh(sample.boxes).tolist(), sample.labels.tolist(), areas.tolist())
        for box, label, area, crowd in zip(*columns, sample.crowd.tolist(), strict=True):
            entry = {"image_id": sample.id, "category_id": category_ids[label], "bbox": box, "area": area}
            # Ids count from 1: pycocotools takes a match with annotation 0 for no match.
            annotations.append({**entry, "iscrowd": int(crowd), "id": len(annotations) + 1})
    truth = COCO()
    truth.dataset = {
        "images": [{"id": s.id, "width": s.width, "height": s.height} for s in samples],
        "annotations": annotations,
        "categories": [{"id": category.id, "name": category.name} for category in dataset.categories],
    }
    truth.createIndex()
    return truth


def _per_class(dataset: Dataset, truth: COCO, evaluation: COCOeval) -> dict[str, tuple[float, float, int]]:
    names = {category.id: category.name for category in dataset.categories}
    # precision: [IoU thresholds, recalls, classes, areas, detections]; area 0 is "all", the last limit is 100.
    precision = evaluation.eval["precision"][:, :, :, 0, -1]
    per_class = {}
    for column, category_id in enumerate(evaluation.params.catIds):
        entries = truth.loadAnns(truth.getAnnIds(catIds=[category_id], iscrowd=False))
        objects = sum(entry["area"] < np.inf for entry in entries)  # none of the difficult
        ap, ap50 = _mean(precision[:, :, column]), _mean(precision[0, :, column])
        per_class[names[category_id]] = (ap, ap50, objects)
    return per_class


def _mean(precision: np.ndarray) -> float:
    known = precision[precision > -1]
    return float(known.mean()) if known.size else -1.0
