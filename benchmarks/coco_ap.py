"""COCO's AP of 5,000 images: pycocotools, the package as it was when it called that, and the package, in turn.

    .venv/bin/python benchmarks/coco_ap.py               a table on the terminal
    .venv/bin/python benchmarks/coco_ap.py --write       and in benchmarks/coco_ap.md

Everyone gets the same data set and arrays of detections, made up in the proportions of COCO's val2017, and is measured
from there to the twelve numbers and AP per class, and to the file of detections; in a process of its own, whose memory
is measured too. The table gives medians over all rounds. faster-coco-eval takes part if it is installed.
"""

import argparse
import contextlib
import importlib.util
import io
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import types
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from ssd300_vgg16.boxes import xyxy_to_xywh  # noqa: E402 - from this tree, installed or not
from ssd300_vgg16.data.dataset import Category, Dataset, Problems, Sample  # noqa: E402

FORMER_COMMIT = "d76a8e1"
OBJECTS_PER_IMAGE, CLASSES, CROWDS = 7.2, 80, 0.012
FIGURES = ("AP, seconds", "file of detections, seconds", "peak memory, MiB")


def made_up(images: int, detections: int, seed: int = 0) -> tuple[Dataset, list[dict[str, np.ndarray]]]:
    """A data set of 640 x 480 images, and detections of it."""
    rng = np.random.default_rng(seed)
    frequency = 1 / np.arange(2, CLASSES + 2)
    frequency /= frequency.sum()
    ids = rng.permutation(600_000)[:images].tolist()
    samples = tuple(_sample(rng, id_, frequency) for id_ in ids)
    categories = tuple(Category(number, number, f"class {number}") for number in range(1, CLASSES + 1))
    found = [_detections(rng, sample, detections, frequency) for sample in samples]
    return Dataset("made up", categories, samples, Problems("made up")), found


def _sample(rng: np.random.Generator, id_: int, frequency: np.ndarray) -> Sample:
    count = int(rng.poisson(OBJECTS_PER_IMAGE))
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


def run_former(dataset: Dataset, found: list, path: Path):
    file = f"{FORMER_COMMIT}:ssd300_vgg16/metrics/coco_ap.py"
    source = subprocess.run(["git", "-C", ROOT, "show", file], check=True, capture_output=True, text=True).stdout
    module = sys.modules["former"] = types.ModuleType("former")
    exec(compile(source, file, "exec"), module.__dict__)
    positions = list(range(len(dataset.samples)))
    rows = module.coco_results(dataset, positions, found)
    return _numbers(module.coco_ap(dataset, positions, rows)), lambda: path.write_text(json.dumps(rows, indent=2))


def run_ours(dataset: Dataset, found: list, path: Path):
    from ssd300_vgg16.metrics.coco_ap import coco_ap
    from ssd300_vgg16.metrics.coco_results import coco_results

    results = coco_results(dataset, list(range(len(dataset.samples))), found)
    return _numbers(coco_ap(results)), lambda: results.write(path)


def _numbers(metrics) -> list[float]:
    return [
        *metrics.statistics.values(),
        *(value for ap, ap50, _ in metrics.per_class.values() for value in (ap, ap50)),
    ]


SIDES = {
    "pycocotools 2.0.11": run_pycocotools,
    f"the package at {FORMER_COMMIT}": run_former,
    "faster-coco-eval 1.8.0": run_faster,
    "the package": run_ours,
}


def measure(side: str, images: int, detections: int) -> dict:
    """The figures and the numbers of one side; imports are not timed, as they are not in an evaluation."""
    dataset, found = made_up(images, detections)
    small = made_up(2, 2)
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        path = Path(folder) / "detections.json"
        SIDES[side](*small, path)
        start = time.perf_counter()
        numbers, write = SIDES[side](dataset, found, path)
        done = time.perf_counter()
        write()
        written = time.perf_counter()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"numbers": numbers, "figures": [done - start, written - done, peak]}


def run_side(side: str, images: int, detections: int) -> dict:
    """Measure one side in a fresh process."""
    command = [sys.executable, __file__, "--side", side, "--images", str(images), "--detections", str(detections)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def table(measured: dict[str, list[dict]], images: int, detections: int, rounds: int) -> str:
    """The results as Markdown."""
    from ssd300_vgg16.runtime import environment

    reference = np.array(measured["pycocotools 2.0.11"][0]["numbers"])
    medians = {
        side: [statistics.median(column) for column in zip(*(run["figures"] for run in runs), strict=True)]
        for side, runs in measured.items()
    }
    lines = [
        f"CPU: {environment()['cpu']}. {images} images, {OBJECTS_PER_IMAGE} objects and {detections} detections an "
        f"image, {CLASSES} classes; {rounds} rounds in turn, medians. The data set and the detections are part of the "
        "memory. The difference is the largest of the twelve numbers, and AP and AP50 of each class. Repeat with "
        f"`.venv/bin/python benchmarks/coco_ap.py --images {images} --detections {detections} --rounds {rounds} "
        "--write`.",
        "",
        f"| | {' | '.join(FIGURES)} | AP, ratio | difference |",
        "|---|---|---|---|---|---|",
    ]
    for side, (ap, file, peak) in medians.items():
        difference = max(np.abs(np.array(run["numbers"]) - reference).max() for run in measured[side])
        ratio = ap / medians["the package"][0]
        lines.append(f"| {side} | {ap:.2f} | {file:.2f} | {peak:.0f} | {ratio:.1f} | {difference:.0e} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--detections", type=int, default=100, help="per image (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--write", action="store_true", help="write benchmarks/coco_ap.md")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        print(json.dumps(measure(options.side, options.images, options.detections)))
        return
    sides = [side for side in SIDES if side[:6] != "faster" or importlib.util.find_spec("faster_coco_eval")]
    measured = {side: [] for side in sides}
    for number in range(options.rounds):
        for side in sides:
            measured[side].append(run_side(side, options.images, options.detections))
            print(f"round {number + 1}, {side}: {measured[side][-1]['figures'][0]:.2f} s", flush=True)
    text = table(measured, options.images, options.detections, options.rounds)
    print(text)
    if options.write:
        (Path(__file__).parent / "coco_ap.md").write_text(f"# COCO's AP of made-up detections\n\n{text}")


if __name__ == "__main__":
    main()
