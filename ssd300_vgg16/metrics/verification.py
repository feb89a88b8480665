"""COCO's twelve numbers once more, by COCO's own tool (pycocotools), beside those computed here."""

import contextlib
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from ssd300_vgg16.boxes import xyxy_to_xywh
from ssd300_vgg16.data.coco import JOINED
from ssd300_vgg16.data.dataset import Dataset
from ssd300_vgg16.data.layout import read_json
from ssd300_vgg16.metrics.coco_ap import STATISTICS, CocoMetrics
from ssd300_vgg16.metrics.coco_results import CocoResults

TOLERANCE = 1e-6


@dataclass(frozen=True)
class Verification:
    """The twelve numbers by name, of this package and of pycocotools; notes: what was changed for pycocotools."""

    ours: dict[str, float]
    theirs: dict[str, float]
    notes: tuple[str, ...] = ()

    @property
    def differences(self) -> dict[str, float]:
        """Absolute differences by name."""
        return {name: abs(value - self.theirs[name]) for name, value in self.ours.items()}

    def table(self) -> str:
        """A row for each number, the notes, the largest difference, and the `problem` if there is one."""
        rows = [f"{'':<12} {'IoU':<10} {'area':<7} {'max':>4} {'here':>11} {'pycocotools':>11} {'difference':>10}"]
        for name, iou, area, limit in STATISTICS:
            values = f"{self.ours[name]:>11.8f} {self.theirs[name]:>11.8f} {self.differences[name]:>10.1e}"
            rows.append(f"{name:<12} {iou:<10} {area:<7} {limit:>4} {values}")
        rows += [*self.notes, f"largest difference: {max(self.differences.values()):.1e}"]
        return "\n".join([*rows, problem] if (problem := self.problem()) else rows)

    def problem(self) -> str | None:
        """A sentence if a number differs by more than TOLERANCE."""
        names = ", ".join(name for name, difference in self.differences.items() if difference > TOLERANCE)
        said = f"pycocotools computes other numbers from the same detections (tolerance {TOLERANCE:g}): {names}"
        return said if names else None


def verification_of(metrics: CocoMetrics, results: CocoResults, dataset: Dataset) -> Verification:
    """The metrics of these results beside pycocotools' own.

    COCO's annotations are read anew from their file, so that the reading is verified too. Those of other formats, and
    of a file of which annotations were left out, are converted from what was read here.
    """
    notes = []
    truth = read_json(Path(dataset.name)) if dataset.kind == "coco" else None
    # Images that were joined and numbers that were texts are not what pycocotools would read.
    is_plain = truth and not (dataset.problems.notes or JOINED in dataset.problems.counts)
    if truth and is_plain and len(truth["annotations"]) == sum(len(sample.labels) for sample in dataset.samples):
        if _complete(truth["annotations"]):
            notes.append("Annotations have id 0, none, or that of another, which pycocotools cannot count: renumbered.")
    else:
        truth = coco_ground_truth(results)
        notes.append("The annotations were converted to COCO's form for pycocotools.")
    statistics = run_pycocotools(truth, results).stats.tolist()
    names = [name for name, *_ in STATISTICS]
    return Verification(metrics.statistics, dict(zip(names, statistics, strict=True)), tuple(notes))


def _complete(annotations: list[dict[str, Any]]) -> bool:
    """Fill in what pycocotools cannot do without, in place; returns whether the annotations had to be renumbered."""
    for entry in annotations:
        _, _, width, height = entry["bbox"]
        if type(entry.get("area")) not in (int, float):
            entry["area"] = width * height
        entry["iscrowd"] = entry.get("iscrowd") or 0
    # pycocotools notes the id of the annotation that a detection found, and reads 0 as "none".
    renumbered = len({entry.get("id") for entry in annotations} - {0, None}) < len(annotations)
    if renumbered:
        for number, entry in enumerate(annotations, start=1):
            entry["id"] = number
    return renumbered


def coco_ground_truth(results: CocoResults) -> dict[str, list[dict[str, Any]]]:
    """The annotations of the samples of results as a document in COCO's form."""
    ids = {category.label: category.id for category in results.categories}
    annotations: list[dict[str, Any]] = []
    for sample in results.samples:
        # COCO knows no difficult objects. One whose area lies outside of all ranges is ignored, as VOC's rule wants it.
        areas = np.where(sample.difficult, np.inf, sample.areas).tolist()
        columns = (sample.labels.tolist(), xyxy_to_xywh(sample.boxes).tolist(), areas, sample.crowd.tolist())
        for label, box, area, crowd in zip(*columns, strict=True):
            entry = {"id": len(annotations) + 1, "image_id": sample.id, "category_id": ids[label]}
            annotations.append({**entry, "bbox": box, "area": area, "iscrowd": int(crowd)})
    return {
        "images": [{"id": sample.id} for sample in results.samples],
        "annotations": annotations,
        "categories": [{"id": category.id, "name": category.name} for category in results.categories],
    }


def run_pycocotools(truth: dict[str, list[dict[str, Any]]], results: CocoResults) -> COCOeval:
    """pycocotools' evaluation of results on a document in COCO's form; its `stats` are the twelve numbers."""
    with contextlib.redirect_stdout(io.StringIO()):  # it reports its progress
        reference = COCO()
        reference.dataset = truth
        reference.createIndex()
        rows = list(results)
        # loadRes fails on an empty list.
        evaluation = COCOeval(reference, reference.loadRes(rows) if rows else COCO(), "bbox")
        evaluation.params.imgIds = sorted(sample.id for sample in results.samples)
        evaluation.params.catIds = [category.id for category in results.categories]
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation
