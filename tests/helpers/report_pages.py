"""Pages of made-up results, with pictures that can be looked at."""

from pathlib import Path

import coco_files
import numpy as np
from PIL import Image

from ssd300_vgg16.data.dataset import Category
from ssd300_vgg16.metrics.coco_ap import coco_ap
from ssd300_vgg16.metrics.coco_results import CocoResults, coco_results
from ssd300_vgg16.metrics.evaluation import Evaluation
from ssd300_vgg16.report.results_page import REPORT, DetectionsPage, write_evaluation_page

HOSTILE_NAME = "<img src=x onerror=alert(1)>.jpg"


def detections_page(folder: Path, files: dict, heading: str = "weights", categories=("dog", "cat")) -> Path:
    """The page in folder/out of detections, rows (score, name of the class, box), on files of these names."""
    page = DetectionsPage([Category(label, label, name) for label, name in enumerate(categories, start=1)])
    for name, rows in files.items():
        found = coco_files.detections_of(*((score, 1, box) for score, _, box in rows))
        page.add(folder / name, found | {"names": [class_name for _, class_name, _ in rows]})
    (folder / "out").mkdir()
    return page.write(folder / "out", heading, 0.25)


def evaluation_page(folder: Path, seed: int = 1) -> tuple[Path, CocoResults, dict]:
    """The page in folder/out of an evaluation, with what it is of: the results and the metrics."""
    rng = np.random.default_rng(seed)
    annotations = coco_files.random_annotations(rng)
    # Objects close to others of their class, so that it matters which one a detection takes.
    for entry in annotations[::2]:
        x, y, width, height = entry["bbox"]
        near = {"id": len(annotations) + 1, "bbox": [x + 0.1 * width, y + 0.1 * height, width, height]}
        annotations.append({**entry, **near})
    dataset = coco_files.load(folder, annotations)
    for sample in dataset.samples:
        Image.new("RGB", (640, 480), (90, 120, 150)).save(sample.path)
    detections = coco_files.random_detections(rng, annotations)
    for found in detections:  # some are of another class
        other = rng.random(len(found["labels"])) < 0.3
        found["labels"] = np.where(other, found["labels"] % 3 + 1, found["labels"])
    results = coco_results(dataset, list(range(len(dataset.samples))), detections)
    return write_page(folder / "out", results)


def write_page(output: Path, results: CocoResults) -> tuple[Path, CocoResults, dict]:
    """The same of any results."""
    output.mkdir()
    evaluation = Evaluation(coco_ap(results), results, [])
    metrics = evaluation.as_json()
    write_evaluation_page(evaluation, metrics, "weights on data", output)
    return output / REPORT, results, metrics
