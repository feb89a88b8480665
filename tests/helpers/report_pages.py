"""Pages of made-up results, with pictures that can be looked at."""

from pathlib import Path

import coco_files
import numpy as np
from PIL import Image

from ssd300_vgg16.metrics.coco_ap import coco_ap
from ssd300_vgg16.metrics.coco_results import CocoResults, coco_results
from ssd300_vgg16.metrics.errors import error_figures, judge
from ssd300_vgg16.metrics.operating_point import operating_points
from ssd300_vgg16.report.results_page import REPORT, write_evaluation_page

HOSTILE_NAME = "<img src=x onerror=alert(1)>.jpg"


def evaluation_page(folder: Path, seed: int = 1) -> tuple[Path, CocoResults, dict]:
    """The page in folder/out of an evaluation, with what it is of: the results and the metrics."""
    rng = np.random.default_rng(seed)
    annotations = coco_files.random_annotations(rng)
    dataset = coco_files.load(folder, annotations)
    for sample in dataset.samples:
        Image.new("RGB", (640, 480), (90, 120, 150)).save(sample.path)
    detections = coco_files.random_detections(rng, annotations)
    results = coco_results(dataset, list(range(len(dataset.samples))), detections)
    return write_page(folder / "out", results)


def write_page(output: Path, results: CocoResults) -> tuple[Path, CocoResults, dict]:
    """The same of any results."""
    output.mkdir()
    judgement = judge(results)
    best, per_class = operating_points(results)
    metrics = {
        **coco_ap(results).as_json(),
        "best_f1": best.as_json() | {"per_class": {name: point.as_json() for name, point in per_class.items()}},
        "errors": error_figures(results, judgement).as_json(),
    }
    write_evaluation_page(results, judgement, metrics, "weights on data", output)
    return output / REPORT, results, metrics
