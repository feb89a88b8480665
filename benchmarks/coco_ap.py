"""COCO's AP of 5,000 images: pycocotools, faster-coco-eval and the package, in turn.

Everyone gets the same data set and arrays of detections, made up in the proportions of COCO's val2017, and is measured
from there to the twelve numbers and AP per class, and to the file of detections; in a process of its own, whose memory
is measured too.
"""

import contextlib
import io
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks.engines import peak_mib
from benchmarks.frame import Benchmark, Options, in_fresh_process, in_turn
from benchmarks.tables import Claim, Figures, markdown, medians, paragraphs
from ssd300_vgg16.boxes import xyxy_to_xywh
from ssd300_vgg16.data.dataset import Category, Dataset, Problems, Sample

IMAGES, QUICK_IMAGES, DETECTIONS = 5000, 100, 100
OBJECTS_PER_IMAGE, CLASSES, CROWDS = 7.2, 80, 0.012
FIGURES = ("AP, seconds", "file of detections, seconds", "peak memory, MiB")


def made_up(
    images: int, detections: int, objects: float = OBJECTS_PER_IMAGE
) -> tuple[Dataset, list[dict[str, np.ndarray]]]:
    """A data set of 640 x 480 images with so many objects each in the mean, and detections of it."""
    rng = np.random.default_rng(0)
    frequency = 1 / np.arange(2, CLASSES + 2)
    frequency /= frequency.sum()
    ids = rng.permutation(600_000)[:images].tolist()
    samples = tuple(_sample(rng, id_, frequency, objects) for id_ in ids)
    categories = tuple(Category(number, number, f"class {number}") for number in range(1, CLASSES + 1))
    found = [_detections(rng, sample, detections, frequency) for sample in samples]
    return Dataset("made up", categories, samples, Problems("made up")), found


def _sample(rng: np.random.Generator, id_: int, frequency: np.ndarray, objects: float) -> Sample:
    count = int(rng.poisson(objects))
    boxes = _boxes(rng, count)
    # An image has few classes, and several objects of each.
    labels = rng.choice(rng.choice(CLASSES, 3, p=frequency) + 1, count)
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1) * rng.uniform(0.4, 1, count)
    crowd, difficult = rng.random(count) < CROWDS, np.zeros(count, dtype=bool)
    return Sample(id_, Path(f"{id_}.jpg"), 480, 640, boxes, labels, crowd, areas, difficult)


def _boxes(rng: np.random.Generator, count: int) -> np.ndarray:
    sides = np.exp(rng.uniform(2, 6, (count, 2)))
    corners = rng.uniform(0, 1, (count, 2)) * np.maximum([640, 480] - sides, 1)
    return np.concatenate((corners, corners + sides), axis=1).round(2)


def _detections(rng: np.random.Generator, sample: Sample, count: int, frequency: np.ndarray) -> dict[str, np.ndarray]:
    """Objects with noise for two in five, at better scores, and boxes anywhere."""
    boxes, labels = _boxes(rng, count), rng.choice(CLASSES, count, p=frequency) + 1
    scores = rng.beta(1, 6, count)
    near = np.flatnonzero(rng.random(count) < 0.4) if len(sample.labels) else np.empty(0, dtype=np.int64)
    if len(near):
        of = rng.integers(0, len(sample.labels), len(near))
        sides = np.tile(sample.boxes[of, 2:] - sample.boxes[of, :2], 2)
        boxes[near] = sample.boxes[of] + rng.normal(0, 0.1, (len(near), 4)) * sides
        labels[near] = np.where(rng.random(len(near)) < 0.8, sample.labels[of], labels[near])
        scores[near] = rng.beta(2, 3, len(near))
    order = np.argsort(-scores)
    columns = {"boxes": boxes.astype(np.float32), "scores": scores.astype(np.float32), "labels": labels}
    return {name: column[order] for name, column in columns.items()}


def rows_of(dataset: Dataset, found: list[dict[str, np.ndarray]]) -> list[dict]:
    """Detections as pycocotools takes them."""
    rows = []
    for sample, of_image in zip(dataset.samples, found, strict=True):
        boxes = xyxy_to_xywh(of_image["boxes"].astype(np.float64)).round(3).tolist()
        columns = (boxes, of_image["scores"].tolist(), of_image["labels"].tolist())
        for box, score, label in zip(*columns, strict=True):
            rows.append({"image_id": sample.id, "category_id": label, "bbox": box, "score": score})
    return rows


def annotations_of(dataset: Dataset) -> dict:
    """The data set as pycocotools takes it; its categories' ids are their labels."""
    annotations = []
    for sample in dataset.samples:
        columns = (xyxy_to_xywh(sample.boxes).tolist(), sample.labels.tolist(), sample.areas.tolist())
        for box, label, area, crowd in zip(*columns, sample.crowd.tolist(), strict=True):
            entry = {"image_id": sample.id, "category_id": label, "bbox": box, "area": area, "iscrowd": int(crowd)}
            annotations.append({**entry, "id": len(annotations) + 1})
    images = [{"id": sample.id, "width": sample.width, "height": sample.height} for sample in dataset.samples]
    categories = [{"id": category.id, "name": category.name} for category in dataset.categories]
    return {"images": images, "annotations": annotations, "categories": categories}


def run_tool(coco: type, evaluator: type, dataset: Dataset, found: list, path: Path):
    """A tool with pycocotools' interface."""
    rows = rows_of(dataset, found)
    truth = coco()
    truth.dataset = annotations_of(dataset)
    truth.createIndex()
    evaluation = evaluator(truth, truth.loadRes([dict(row) for row in rows]), "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    precision = evaluation.eval["precision"][:, :, :, 0, -1]
    of_class = [precision[at, :, number] for number in range(CLASSES) for at in (slice(None), slice(1))]
    numbers = [float(values[values > -1].mean()) if (values > -1).any() else -1.0 for values in of_class]
    return [*map(float, evaluation.stats[:12]), *numbers], lambda: path.write_text(json.dumps(rows))


def run_pycocotools(dataset: Dataset, found: list, path: Path):
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    return run_tool(COCO, COCOeval, dataset, found, path)


def run_faster(dataset: Dataset, found: list, path: Path):
    from faster_coco_eval import COCO, COCOeval_faster

    return run_tool(COCO, COCOeval_faster, dataset, found, path)


def run_ours(dataset: Dataset, found: list, path: Path):
    from ssd300_vgg16.metrics.coco_ap import coco_ap
    from ssd300_vgg16.metrics.evaluation import coco_results

    results = coco_results(dataset, list(range(len(dataset.samples))), found)
    return _numbers(coco_ap(results)), lambda: results.write(path)


def _numbers(metrics) -> list[float]:
    return [
        *metrics.statistics.values(),
        *(value for ap, ap50, _ in metrics.per_class.values() for value in (ap, ap50)),
    ]


PACKAGE, REFERENCE = "the package", "pycocotools"
SIDES = {REFERENCE: run_pycocotools, "faster-coco-eval": run_faster, PACKAGE: run_ours}


def measure_side(side: str, images: int) -> dict:
    """The figures and the numbers of one side; for a fresh process. Imports are not timed."""
    dataset, found = made_up(images, DETECTIONS)
    small = made_up(2, 2)
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        path = Path(folder) / "detections.json"
        SIDES[side](*small, path)
        start = time.perf_counter()
        numbers, write = SIDES[side](dataset, found, path)
        done = time.perf_counter()
        write()
        written = time.perf_counter()
    return {"numbers": numbers, "figures": [done - start, written - done, peak_mib()]}


def measure(options: Options) -> Figures:
    """By side the medians of FIGURES, and the largest difference to the reference's numbers (None without it)."""
    images, sides = QUICK_IMAGES if options.quick else IMAGES, {}
    for side in (side for side in SIDES if side == PACKAGE or side in options.peers):
        python = sys.executable if side == PACKAGE else options.peers.python
        sides[side] = partial(in_fresh_process, measure_side, side, images, python=python)
    runs = in_turn(options.rounds, sides)
    figures: Figures = {}
    for side, of_side in runs.items():
        found = dict(zip(FIGURES, medians(run["figures"] for run in of_side), strict=True))
        figures[side] = found | {"difference": None}
        if REFERENCE in runs:
            reference = np.array(runs[REFERENCE][0]["numbers"])
            differences = [float(np.abs(np.array(run["numbers"]) - reference).max()) for run in of_side]
            figures[side]["difference"] = max(differences)
    return figures


def table(figures: Figures) -> str:
    rows = []
    for side, found in figures.items():
        seconds, file, peak = (found[name] for name in FIGURES)
        difference = "-" if found["difference"] is None else f"{found['difference']:.0e}"
        ratio = seconds / figures[PACKAGE][FIGURES[0]]
        rows.append([side, f"{seconds:.2f}", f"{file:.2f}", f"{peak:.0f}", f"{ratio:.1f}", difference])
    about = (
        f"{IMAGES} images, {OBJECTS_PER_IMAGE} objects and {DETECTIONS} detections an image, {CLASSES} classes. The "
        "difference is the largest of the twelve numbers, and AP and AP50 of each class."
    )
    return paragraphs(about, markdown(["", *FIGURES, "AP, ratio", "difference"], rows))


def claims(figures: Figures) -> Iterator[Claim]:
    ours = figures[PACKAGE]
    for peer, found in figures.items():
        if peer != PACKAGE:
            yield Claim("COCO's numbers", ours["AP, seconds"], peer, found["AP, seconds"], "s")
            yield Claim("their memory", ours["peak memory, MiB"], peer, found["peak memory, MiB"], "MiB")


BENCHMARK = Benchmark(
    "COCO's AP of made-up detections", measure, table, claims, needs=("pycocotools", "faster-coco-eval")
)
