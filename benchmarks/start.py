"""Seconds from calling infer.sh to its end, on one image, by engine; and with ONNX Runtime's model kept or not.

Each round is a process for each row, in turn. Loading is `Detector.load` alone, in a process that has imported the
package.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

from benchmarks.frame import Benchmark, Options, environment, in_fresh_process, in_turn
from benchmarks.made_up import write_weights
from benchmarks.tables import Figures, markdown, medians, paragraphs

# Engine, and whether the model that ONNX Runtime is given is there from before.
ROWS = {
    "`--engine oneflow`": ("oneflow", False),
    "`--engine onnxruntime`, the first time": ("onnxruntime", False),
    "`--engine onnxruntime`, from then on": ("onnxruntime", True),
}


def load_seconds(weights: str, engine: str) -> float:
    """For a fresh process."""
    from ssd300_vgg16.detector import Detector

    start = time.perf_counter()
    Detector.load(weights, "cpu", engine=engine)
    return time.perf_counter() - start


def infer_seconds(weights: Path, engine: str, image: Path) -> float:
    """infer.sh, but for its look at .venv."""
    command = [sys.executable, "-m", "ssd300_vgg16.infer", "--weights", str(weights), "--engine", engine, str(image)]
    start = time.perf_counter()
    subprocess.run(
        [*command, "--output-dir", str(weights.parent / "pictures")],
        env=environment(),
        check=True,
        stdout=subprocess.DEVNULL,
    )
    return time.perf_counter() - start


def measure(options: Options) -> Figures:
    """By row, seconds of infer.sh and of Detector.load, of each round."""
    image = min((options.data / "JPEGImages").iterdir())
    with tempfile.TemporaryDirectory() as folder:
        weights, cache = Path(folder) / "weights.safetensors", Path(folder) / "cache"
        os.environ["SSD_CACHE"] = str(cache)  # not the user's own, from which things are removed
        if options.weights:
            shutil.copy(options.weights / "best.safetensors" if options.weights.is_dir() else options.weights, weights)
        else:
            in_fresh_process(write_weights, weights, [image])

        def forget(kept: bool) -> None:
            if not kept:
                shutil.rmtree(cache / "onnx", ignore_errors=True)

        def row(engine: str, kept: bool) -> list[float]:
            forget(kept)
            whole = infer_seconds(weights, engine, image)
            forget(kept)
            return [whole, in_fresh_process(load_seconds, weights, engine)]

        rounds = in_turn(options.rounds + 1, {name: partial(row, *what) for name, what in ROWS.items()})
    # The first round brings programs and libraries into memory.
    return {name: times[1:] for name, times in rounds.items()}


def table(figures: Figures) -> str:
    rows = []
    for name, rounds in figures.items():
        rows.append([name, *(f"{seconds:.2f}" for seconds in medians(rounds))])
    header = ["seconds", "infer.sh, from call to end", "`Detector.load`"]
    return paragraphs("SSD300 of full width, one image.", markdown(header, rows))


BENCHMARK = Benchmark("Starting to detect", measure, table)
