"""AP and time per photograph of a detector with either engine and as exported models, on this machine's CPU.

    .venv/bin/python benchmarks/deployment.py --weights runs/RUN --data-path DIR --dataset voc
    .venv/bin/python benchmarks/deployment.py --data-path DIR --dataset voc --peer PYTHON --write

--write: the table goes to deployment-WIDTH.md too. AP is that of the val split; ranges for int8 are measured on the
train split. Without --weights: SSD300 with 91 outputs, made up so that scores are spread as a trained network's are;
then there is no AP. --peer: a Python that has torchvision, whose SSD300 with the same weights is measured too, for
networks of full width with 91 outputs. Time is from the file to detections, one photograph at a time: each round runs
all of them over the same photographs in turn; the table gives medians of rounds. --json: the last line of the output
is the result as JSON.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import ssd300_vgg16.cli  # noqa: F401 - before numpy, as in train.sh

# isort: split
import numpy as np
import onnxruntime
from made_up_weights import save_made_up

from ssd300_vgg16 import export
from ssd300_vgg16.data.dataset import Dataset
from ssd300_vgg16.data.formats import KINDS, DataSource
from ssd300_vgg16.data.images import network_input, read_image
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


class Torchvision:
    """torchvision's SSD300 with a detector's weights, in a process of its own that answers when it is asked."""

    def __init__(self, python: str, detector: Detector, folder: Path):
        from ssd300_vgg16.weights.model import model_tensors

        np.savez(folder / "weights.npz", **model_tensors(detector.model))
        command = [python, HERE / "peer_torchvision.py", folder / "weights.npz"]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.name = "torchvision {torchvision}, PyTorch {torch}".format(**self.ask({}))

    def ask(self, request: dict) -> dict:
        """The answer to a request: see peer_torchvision.py."""
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def seconds(self, photographs: list[Path]) -> float:
        """As `seconds_per_photograph`."""
        return self.ask({"detect": [str(path.resolve()) for path in photographs]})["seconds"]


def rates(measured: dict[str, Callable], photographs: list[Path], rounds: int) -> dict[str, float]:
    """Median seconds per photograph of each, the rounds in turn, after two photographs that are not counted."""
    times = {name: [] for name in measured}
    for seconds in measured.values():
        seconds(photographs[:2])
    for _ in range(rounds):
        for name, seconds in measured.items():
            times[name].append(seconds(photographs))
    return {name: statistics.median(values) for name, values in times.items()}


def network_share(detector: Detector, photographs: list[Path]) -> float:
    """The part of the time from file to detections that the network takes."""
    spent, network = [], detector._network

    def timed(images: np.ndarray):
        start = time.perf_counter()
        answer = network(images)
        spent.append(time.perf_counter() - start)
        return answer

    detector._network = timed
    whole = seconds_per_photograph(detector.detect, photographs, detector.image_size) * len(photographs)
    detector._network = network
    return sum(spent) / whole


def average_precision(detect: Detect, dataset: Dataset, side: int) -> tuple[str, str]:
    """AP and AP50."""
    with WorkerPool(0) as pool:
        figures = evaluate(detect, dataset, side, 1, pool).metrics.statistics
    return f"{figures['AP']:.4f}", f"{figures['AP50']:.4f}"


def table(options: argparse.Namespace, detector: Detector, rows: list[tuple], share: float) -> str:
    """Markdown: a row for each engine."""
    description = detector.description
    lines = [
        "# Detecting: the two engines, and exported models",
        "",
        f"CPU: {cpu_name()}, {len(os.sched_getaffinity(0))} cores. {description.variant.name}, width "
        f"{description.width:g}, {description.num_classes - 1} classes. ONNX Runtime {onnxruntime.__version__}. "
        f"{options.about}From the file to detections, one photograph at a time; medians of {options.rounds} rounds "
        f"over {options.photographs} photographs, all in turn. Of the time with `--engine onnxruntime`, the network "
        f"takes {share:.0%}; the rest is decoding, resizing and post-processing.",
        "",
        "| | AP | AP50 | ms per photograph | times as fast as the first | weights, MB |",
        "|---|---|---|---|---|---|",
    ]
    first = rows[0][3]
    for name, ap, ap50, seconds, size in rows:
        lines.append(f"| {name} | {ap} | {ap50} | {seconds * 1e3:.1f} | {first / seconds:.2f} | {size:.1f} |")
    return "\n".join(lines) + "\n"


def parse(arguments: list[str]) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights")
    parser.add_argument("--data-path", type=Path, required=True)
    parser.add_argument("--dataset", choices=KINDS, default="coco")
    parser.add_argument("--peer", metavar="PYTHON")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--photographs", type=int, default=40)
    parser.add_argument("--calibration", type=int, default=200, help="photographs at the most, for the ranges of int8")
    parser.add_argument("--time-only", action="store_true", help="no AP, for weights that were not trained")
    parser.add_argument("--about", default="", help="a sentence for the table, ending in a space")
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--json", action="store_true")
    return parser.parse_args(arguments)


def measure(options: argparse.Namespace, folder: Path) -> tuple[str, dict[str, float], Detector]:
    """The table, seconds per photograph of each row, and the detector."""
    source = DataSource(options.dataset, options.data_path)
    files = {split: [sample.path for sample in source.load(split).samples] for split in ("val", "train")}
    photographs = files["val"][: options.photographs]
    options.photographs = len(photographs)
    weights = options.weights or str(folder / "made-up.safetensors")
    if not options.weights:
        save_made_up(Path(weights), photographs[:12])
        options.about += "Weights made up so that scores are spread as a trained network's are. "
    detector = Detector.load(weights, "cpu", engine="oneflow")
    side = detector.image_size
    by_onnx_runtime = Detector.load(weights, "cpu", engine="onnxruntime")
    paths = exported(weights, folder, files["train"][: options.calibration])
    detects = {"`--engine oneflow`": detector.detect, "`--engine onnxruntime`": by_onnx_runtime.detect}
    detects |= {name: onnx_detect(path) for name, path in paths.items()}
    sizes = [sum(tensor.numel() for tensor in detector.model.parameters()) * 4 / 1e6] * 2
    sizes = dict(zip(detects, [*sizes, *(path.stat().st_size / 1e6 for path in paths.values())], strict=True))
    measured = {name: partial(seconds_per_photograph, detect, side=side) for name, detect in detects.items()}
    measured = {name: (lambda files, run=run: run(photographs=files)) for name, run in measured.items()}
    if options.peer:
        peer = Torchvision(options.peer, detector, folder)
        measured = {peer.name: peer.seconds, **measured}
        sizes[peer.name] = sizes["`--engine oneflow`"]
    seconds = rates(measured, photographs, options.rounds)
    with_ap = options.weights and not options.time_only
    dataset = source.load("val", detector.description.categories) if with_ap else None
    rows = []
    for name in measured:
        figures = average_precision(detects[name], dataset, side) if dataset and name in detects else ("", "")
        rows.append((name, *figures, seconds[name], sizes[name]))
    return table(options, detector, rows, network_share(by_onnx_runtime, photographs)), seconds, detector


def main(arguments: list[str]) -> int:
    """Export, evaluate, measure."""
    options = parse(arguments)
    with tempfile.TemporaryDirectory() as folder:
        text, seconds, detector = measure(options, Path(folder))
    print(text)
    if options.write:
        (HERE / f"deployment-{detector.description.width:g}.md").write_text(text)
    if options.json:
        print(json.dumps({"title": "Detecting, from file to detections", "table": text, "figures": seconds}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
