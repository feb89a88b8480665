"""AP and time per photograph of a detector with either engine and as exported models, on this machine's CPU.

    .venv/bin/python benchmarks/deployment.py WEIGHTS --data-path DIR --dataset voc          a table on the terminal
    .venv/bin/python benchmarks/deployment.py WEIGHTS --data-path DIR --dataset voc --write  and deployment-WIDTH.md

AP is that of the val split (--time-only: none, for weights that were not trained); ranges for int8 are measured on the
train split. Time is from the file to detections, one photograph at a time: each round runs all of them over the same
photographs in turn; the table gives medians of rounds.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

import ssd300_vgg16  # noqa: F401 - before numpy, as in train.sh

# isort: split
import numpy as np
import onnxruntime

from ssd300_vgg16 import export
from ssd300_vgg16.data.dataset import Dataset
from ssd300_vgg16.data.images import read_image
from ssd300_vgg16.data.loader import network_input
from ssd300_vgg16.data.source import KINDS, DataSource
from ssd300_vgg16.data.workers import WorkerPool
from ssd300_vgg16.detector import Detector
from ssd300_vgg16.metrics.evaluation import Detect, evaluate
from ssd300_vgg16.runtime import cpu_name

HERE = Path(__file__).parent


def onnx_detect(path: Path) -> Detect:
    """What `Detector.detect` does, by an exported model."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = ["boxes", "scores", "labels", "batch_index"]

    def detect(images: np.ndarray, sizes_hw: np.ndarray) -> list[dict[str, np.ndarray]]:
        boxes, scores, labels, batch_index = session.run(names, {"images": images})
        found = []
        for number, (height, width) in enumerate(sizes_hw):
            rows = batch_index == number
            in_pixels = boxes[rows] * np.array([width, height, width, height], dtype=np.float32)
            found.append({"boxes": in_pixels, "scores": scores[rows], "labels": labels[rows]})
        return found

    return detect


def exported(weights: str, folder: Path, calibration: list[Path]) -> dict[str, Path]:
    """Both models' files, made with the command line."""
    (folder / "images").mkdir()
    for path in calibration:
        (folder / "images" / path.name).symlink_to(path.resolve())
    paths = {"exported, float32": folder / "float32.onnx", "exported, int8": folder / "int8.onnx"}
    settings = ([], ["--int8", "--calibrate", str(folder / "images")])
    for path, options in zip(paths.values(), settings, strict=True):
        export.main([weights, "--to", str(path), *options])
    return paths


def seconds_per_photograph(detect: Detect, photographs: list[Path], side: int) -> float:
    """From files to detections, one after the other."""
    start = time.perf_counter()
    for path in photographs:
        image = read_image(path, upright=True)
        detect(network_input(image, side)[None], np.array([image.shape[:2]]))
    return (time.perf_counter() - start) / len(photographs)


def rates(detects: dict[str, Detect], photographs: list[Path], side: int, rounds: int) -> dict[str, float]:
    """Median seconds per photograph of each, the rounds in turn, after one photograph that is not counted."""
    times = {name: [] for name in detects}
    for detect in detects.values():
        seconds_per_photograph(detect, photographs[:1], side)
    for _ in range(rounds):
        for name, detect in detects.items():
            times[name].append(seconds_per_photograph(detect, photographs, side))
    return {name: statistics.median(values) for name, values in times.items()}


def average_precision(detect: Detect, dataset: Dataset, side: int) -> tuple[str, str]:
    """AP and AP50."""
    with WorkerPool(0) as pool:
        figures = evaluate(detect, dataset, side, 1, pool).metrics.statistics
    return f"{figures['AP']:.4f}", f"{figures['AP50']:.4f}"


def table(options: argparse.Namespace, detector: Detector, rows: list[tuple]) -> str:
    """Markdown: a row for each engine."""
    description = detector.description
    lines = [
        "# Detecting: the two engines, and exported models",
        "",
        f"CPU: {cpu_name()}, {len(os.sched_getaffinity(0))} cores. {description.variant.name}, width "
        f"{description.width:g}, {description.num_classes - 1} classes. ONNX Runtime {onnxruntime.__version__}. "
        f"{options.about}From the file to detections, one photograph at a time; medians of {options.rounds} rounds "
        f"over {options.photographs} photographs, all in turn.",
        "",
        "| | AP | AP50 | ms per photograph | times as fast | weights, MB |",
        "|---|---|---|---|---|---|",
    ]
    first = rows[0][3]
    for name, ap, ap50, seconds, size in rows:
        lines.append(f"| {name} | {ap} | {ap50} | {seconds * 1e3:.1f} | {first / seconds:.2f} | {size:.1f} |")
    return "\n".join(lines) + "\n"


def parse(arguments: list[str]) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights")
    parser.add_argument("--data-path", type=Path, required=True)
    parser.add_argument("--dataset", choices=KINDS, default="coco")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--photographs", type=int, default=40)
    parser.add_argument("--time-only", action="store_true")
    parser.add_argument("--about", default="", help="a sentence for the table, ending in a space")
    parser.add_argument("--write", action="store_true")
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> int:
    """Export, evaluate, measure."""
    options = parse(arguments)
    detector = Detector.load(options.weights, "cpu", engine="oneflow")
    side, categories = detector.model.layout.image_size, detector.description.categories
    source = DataSource(options.dataset, options.data_path)
    val, train = source.load("val", categories), source.load("train", categories)
    photographs = [sample.path for sample in val.samples[: options.photographs]]
    options.photographs = len(photographs)
    with tempfile.TemporaryDirectory() as folder:
        paths = exported(options.weights, Path(folder), [sample.path for sample in train.samples])
        sizes = [sum(tensor.numel() for tensor in detector.model.parameters()) * 4 / 1e6] * 2
        sizes += [path.stat().st_size / 1e6 for path in paths.values()]
        by_onnx_runtime = Detector.load(options.weights, "cpu", engine="onnxruntime")
        detects = {"`--engine oneflow`": detector.detect, "`--engine onnxruntime`": by_onnx_runtime.detect}
        detects |= {name: onnx_detect(path) for name, path in paths.items()}
        seconds = rates(detects, photographs, side, options.rounds)
    rows = []
    for (name, detect), size in zip(detects.items(), sizes, strict=True):
        figures = ("", "") if options.time_only else average_precision(detect, val, side)
        rows.append((name, *figures, seconds[name], size))
    text = table(options, detector, rows)
    print(text)
    if options.write:
        (HERE / f"deployment-{detector.description.width:g}.md").write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
