"""Milliseconds of post-processing an image, from offsets and logits to detections, beside torchvision's.

    .venv/bin/python benchmarks/postprocess.py [--peer PYTHON] [--rounds 9] [--write] [--json]

The outputs are those of the tests' reference figures (tests/golden/README.md), random ones with a given number of
classes and of scores above the threshold, and the worst: every class of every default box is above it, in boxes all
over the image, and in boxes that all lie in one place, of which each class keeps one. --peer: a Python that has
torchvision, which gets the same arrays. One after the other for each case; medians of rounds.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import ssd300_vgg16.cli  # noqa: F401 - before numpy, as in train.sh

# isort: split
import numpy as np

from ssd300_vgg16 import boxes as box_math
from ssd300_vgg16.network.postprocess import SCORE_THRESHOLD, _softmax, postprocess
from ssd300_vgg16.network.variants import default_boxes

HERE = Path(__file__).parent
GOLDEN = HERE.parent / "tests" / "golden" / "postprocess.npz"
BOXES, CLASSES = 8732, 91
IMAGE = (300, 300)
Outputs = tuple[np.ndarray, np.ndarray]


def golden_outputs() -> Iterator[Outputs]:
    """The three images of tests/golden, as their README makes them."""
    with np.load(GOLDEN) as reference:
        rng = np.random.default_rng(int(reference["seed"]))
    logits = rng.standard_normal((3, BOXES, CLASSES), dtype=np.float32)
    logits[..., 0] += np.array([[6], [9], [12]])
    hot, classes = rng.integers(0, BOXES, (3, 60)), rng.integers(1, CLASSES, (3, 60))
    for image in range(3):
        logits[image, hot[image], classes[image]] += 9
        logits[image, np.minimum(hot[image] + 1, BOXES - 1), classes[image]] += 8
    offsets = rng.standard_normal((3, BOXES, 4), dtype=np.float32)
    for image in range(3):
        yield offsets[image : image + 1], logits[image : image + 1]


def spread_outputs(classes: int, above: int) -> Outputs:
    """Random outputs of which so many scores are above the threshold, of 500 default boxes or as few as will do."""
    rng = np.random.default_rng(classes)
    logits = rng.standard_normal((1, BOXES, classes), dtype=np.float32)
    logits[..., 0] += 20
    places = rng.choice(BOXES * (classes - 1), above, replace=False)
    logits[0, places // (classes - 1), places % (classes - 1) + 1] += 19
    return rng.standard_normal((1, BOXES, 4), dtype=np.float32), logits


def worst_outputs(one_place: bool) -> Outputs:
    """Every score above the threshold; one_place: of boxes that are all the same but for a pixel."""
    rng = np.random.default_rng(0)
    offsets = rng.standard_normal((1, BOXES, 4), dtype=np.float32)
    if one_place:
        boxes = np.array([100, 100, 200, 220], np.float32) + rng.standard_normal((BOXES, 4), dtype=np.float32)
        offsets = box_math.encode(boxes, default_boxes())[None]
    return offsets, 0.05 * rng.standard_exponential((1, BOXES, CLASSES), dtype=np.float32)


def cases() -> dict[str, Outputs]:
    """All outputs by what they are called in the table."""
    found = {f"tests/golden, image {number}": outputs for number, outputs in enumerate(golden_outputs(), start=1)}
    for classes, above in ((4, 1000), (21, 1000), (91, 100), (91, 1000), (91, 10_000), (91, 100_000)):
        found[f"random, {above:,} above, {classes} classes"] = spread_outputs(classes, above)
    found["the worst: all above, all over the image"] = worst_outputs(one_place=False)
    found["the worst: all above, in one place"] = worst_outputs(one_place=True)
    return found


def ours(outputs: Outputs, rounds: int) -> dict[str, float]:
    """Median seconds, and how many are found."""
    times = []
    for _ in range(rounds + 1):
        start = time.perf_counter()
        found = postprocess(*outputs, [IMAGE])
        times.append(time.perf_counter() - start)
    return {"seconds": statistics.median(times[1:]), "found": len(found[0]["scores"])}


class Torchvision:
    """peer_torchvision.py in a process of its own."""

    def __init__(self, python: str, folder: Path):
        self._path = folder / "outputs.npz"
        command = [python, HERE / "peer_torchvision.py"]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def __call__(self, outputs: Outputs, rounds: int) -> dict[str, float]:
        offsets, logits = outputs
        np.savez(self._path, offsets=offsets, logits=logits)
        request = {"postprocess": str(self._path), "rounds": rounds}
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def close(self) -> None:
        """End the process."""
        self._process.communicate()


def measure(options: argparse.Namespace) -> dict[str, dict]:
    """For each case, how many scores are above the threshold, and seconds of either side."""
    rows = {}
    with tempfile.TemporaryDirectory() as folder:
        peer = Torchvision(options.peer, Path(folder)) if options.peer else None
        for name, outputs in cases().items():
            above = int(np.count_nonzero(_softmax(outputs[1][0])[:, 1:] > SCORE_THRESHOLD))
            rows[name] = {"above": above, "ours": ours(outputs, options.rounds)}
            if peer and outputs[1].shape[-1] == CLASSES:
                rows[name]["torchvision"] = peer(outputs, options.rounds)
        if peer:
            peer.close()
    return rows


def table(rows: dict[str, dict], options: argparse.Namespace) -> str:
    """Markdown: a row for each case."""
    from ssd300_vgg16.runtime import cpu_name

    lines = [
        "# Post-processing",
        "",
        f"CPU: {cpu_name()}, {len(os.sched_getaffinity(0))} cores. {options.about}One image of SSD300, from offsets "
        f"and logits to detections above {SCORE_THRESHOLD:g}; medians of {options.rounds} rounds. torchvision: 0.26's "
        "`postprocess_detections` on the same arrays. Repeat with `.venv/bin/python benchmarks/postprocess.py "
        "--peer PYTHON --write`.",
        "",
        "| outputs | scores above the threshold | found | ms | torchvision: found | ms | times as fast |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, row in rows.items():
        here, there = row["ours"], row.get("torchvision")
        beside = there and f"{there['found']} | {there['seconds'] * 1e3:.1f} | {there['seconds'] / here['seconds']:.0f}"
        lines.append(
            f"| {name} | {row['above']:,} | {here['found']} | {here['seconds'] * 1e3:.1f} | "
            f"{beside if there else ' | | '} |"
        )
    return "\n".join(lines) + "\n"


def main(arguments: list[str]) -> int:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", metavar="PYTHON")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--about", default="", help="a sentence for the table, ending in a space")
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    rows = measure(options)
    text = table(rows, options)
    print(text)
    if options.write:
        (HERE / "postprocess.md").write_text(text)
    if options.json:
        print(json.dumps({"title": "Post-processing", "table": text, "figures": rows}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
