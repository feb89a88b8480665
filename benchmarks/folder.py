"""infer.sh on a folder: reading, network, drawing and writing one after another, and as the package does it.

    .venv/bin/python benchmarks/folder.py FOLDER [--weights runs/RUN] [--photographs 40] [--rounds 5] [--write] [--json]

Without --weights: SSD300 of full width with 91 outputs, made up so that scores are spread as a trained network's are.
FOLDER: photographs; they are also enlarged to 12 megapixels, as telephones make them. The ways are measured in turn,
over the same photographs; the table gives medians of rounds. The network alone has its input in memory.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import ssd300_vgg16.cli  # noqa: F401 - before numpy, as in train.sh

# isort: split
import cv2
import numpy as np
from made_up_weights import save_made_up

from ssd300_vgg16.data.images import find_images, network_input, read_image
from ssd300_vgg16.detect_files import ImageFile, _draw, detect_each
from ssd300_vgg16.detector import Detector

HERE = Path(__file__).parent
SHOWN = 0.25  # the score threshold of infer.sh
LARGE = (4000, 3000)


def one_after_another(detector: Detector, photographs: list[ImageFile]) -> None:
    """As infer.sh did it at first."""
    for photograph in photographs:
        image = read_image(photograph.path, upright=True)
        _draw(image, detector(image), photograph.picture)


def overlapped(detector: Detector, photographs: list[ImageFile], batch_size: int = 1) -> None:
    """As it does it now."""
    for _ in detect_each(detector, photographs, 100, batch_size):
        pass


def network_alone(detector: Detector, photographs: list[ImageFile]) -> None:
    """The network, over and over, on one photograph's pixels."""
    prepared = network_input(read_image(photographs[0].path, upright=True), detector.image_size)[None]
    for _ in photographs:
        detector._network(prepared)


class Measured:
    """A way to go through photographs, timed: seconds per photograph, and the part of it that is the network's."""

    def __init__(self, way: Callable, detector: Detector):
        self.way, self.detector = way, detector
        self.seconds, self.shares = [], []

    def run(self, photographs: list[ImageFile], counted: bool = True) -> None:
        spent, network = [], self.detector._network

        def timed(images: np.ndarray):
            start = time.perf_counter()
            answer = network(images)
            spent.append(time.perf_counter() - start)
            return answer

        self.detector._network = timed
        start = time.perf_counter()
        self.way(self.detector, photographs)
        whole = time.perf_counter() - start
        self.detector._network = network
        if counted:
            self.seconds.append(whole / len(photographs))
            self.shares.append(sum(spent) / whole)


def enlarged(paths: list[Path], folder: Path) -> list[Path]:
    """Copies of 12 megapixels."""
    folder.mkdir()
    for path in paths:
        cv2.imwrite(str(folder / f"{path.stem}.jpg"), cv2.resize(cv2.imread(str(path)), LARGE))
    return find_images([str(folder)])


def measure(weights: Path, paths: list[Path], folder: Path, rounds: int) -> dict[str, Measured]:
    """All ways over the files, in turn."""
    photographs = [ImageFile(n, path, folder / f"{n}.jpg") for n, path in enumerate(paths, start=1)]
    ways = {
        "the network alone": network_alone,
        "one after another": one_after_another,
        "the package": overlapped,
        "the package, 4 at a time": lambda detector, files: overlapped(detector, files, 4),
    }
    measured = {name: Measured(way, Detector.load(weights, "cpu", SHOWN)) for name, way in ways.items()}
    for number in range(rounds + 1):
        for each in measured.values():
            each.run(photographs if number else photographs[:4], counted=number > 0)
    return measured


def table(sections: dict[str, dict[str, Measured]], options: argparse.Namespace) -> str:
    """Markdown: a row for each size and way."""
    from ssd300_vgg16.runtime import cpu_name

    lines = [
        "# Detecting in a folder",
        "",
        f"CPU: {cpu_name()}, {len(os.sched_getaffinity(0))} cores. {options.about}Medians of {options.rounds} rounds "
        f"over {options.photographs} photographs, all in turn; from files to pictures and detections, with ONNX "
        "Runtime. Repeat with `.venv/bin/python benchmarks/folder.py FOLDER --write`.",
        "",
        "| photographs | way | ms per photograph | in the network | times as fast |",
        "|---|---|---|---|---|",
    ]
    for size, measured in sections.items():
        before = statistics.median(measured["one after another"].seconds)
        for name, each in measured.items():
            seconds, share = statistics.median(each.seconds), statistics.median(each.shares)
            lines.append(f"| {size} | {name} | {seconds * 1e3:.1f} | {share:.0%} | {before / seconds:.2f} |")
    return "\n".join(lines) + "\n"


def main(arguments: list[str]) -> int:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--photographs", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--about", default="", help="a sentence for the table, ending in a space")
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    paths = find_images([options.folder])[: options.photographs]
    options.photographs = len(paths)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        weights = options.weights or folder / "made-up.safetensors"
        if not options.weights:
            save_made_up(weights, paths[:12])
            options.about += "SSD300 of full width, made up so that scores are spread as a trained network's are. "
        height, width = read_image(paths[0]).shape[:2]
        files = {f"{width} x {height}": paths, f"{LARGE[0]} x {LARGE[1]}": enlarged(paths, folder / "large")}
        sections = {size: measure(weights, each, folder, options.rounds) for size, each in files.items()}
    text = table(sections, options)
    print(text)
    if options.write:
        (HERE / "folder.md").write_text(text)
    if options.json:
        figures = {
            f"{size}, {name}": {"seconds": statistics.median(each.seconds), "network": statistics.median(each.shares)}
            for size, measured in sections.items()
            for name, each in measured.items()
        }
        print(json.dumps({"title": "Detecting in a folder", "table": text, "figures": figures}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
