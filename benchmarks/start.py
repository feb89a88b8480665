"""Seconds from calling infer.sh to its end, on one photograph, by engine; and with ONNX Runtime's model kept or not.

    .venv/bin/python benchmarks/start.py PHOTOGRAPH [--weights FILE] [--rounds 5] [--write] [--json]

Without --weights: SSD300 of full width with 91 outputs, made up. Each round is a process for each row, in turn; the
table gives medians. Loading is `Detector.load` alone, in a process that has imported the package.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import ssd300_vgg16.cli  # noqa: F401 - before numpy, as in train.sh

# isort: split
from made_up_weights import save_made_up

HERE = Path(__file__).parent
LOAD = (
    "import sys, time, ssd300_vgg16.detector as d; start = time.perf_counter(); "
    "d.Detector.load(sys.argv[1], 'cpu', engine=sys.argv[2]); print(time.perf_counter() - start)"
)
ROWS = {
    "`--engine oneflow`": ("oneflow", False),
    "`--engine onnxruntime`, the first time": ("onnxruntime", False),
    "`--engine onnxruntime`, from then on": ("onnxruntime", True),
}


def one_round(weights: Path, photograph: Path, engine: str, kept: bool) -> tuple[float, float]:
    """Seconds of infer.sh, and of Detector.load."""
    environment = {**os.environ, "PYTHONPATH": str(HERE.parent)}
    seconds = []
    output = ["--output-dir", str(weights.parent / "pictures")]
    infer = ["-m", "ssd300_vgg16.infer", "--weights", str(weights), "--engine", engine, str(photograph), *output]
    for arguments in (infer, ["-c", LOAD, str(weights), engine]):
        if not kept:
            for path in weights.parent.glob(f".{weights.name}.*"):
                path.unlink()
        start = time.perf_counter()
        done = subprocess.run([sys.executable, *arguments], env=environment, check=True, capture_output=True, text=True)
        seconds.append(time.perf_counter() - start)
    return seconds[0], float(done.stdout)


def table(times: dict[str, list[tuple[float, float]]], options: argparse.Namespace, size: float) -> str:
    """Markdown: a row for each way."""
    from ssd300_vgg16.runtime import cpu_name

    lines = [
        "# Starting to detect",
        "",
        f"CPU: {cpu_name()}, {len(os.sched_getaffinity(0))} cores. {options.about}Weights of {size:.0f} MB, one "
        f"photograph; medians of {options.rounds} rounds, in turn.",
        "",
        "| seconds | infer.sh, from call to end | `Detector.load` |",
        "|---|---|---|",
    ]
    for name, rounds in times.items():
        whole, load = (statistics.median(column) for column in zip(*rounds, strict=True))
        lines.append(f"| {name} | {whole:.2f} | {load:.2f} |")
    return "\n".join(lines) + "\n"


def main(arguments: list[str]) -> int:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photograph", type=Path)
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--about", default="", help="a sentence for the table, ending in a space")
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    times = {name: [] for name in ROWS}
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder) / "weights.safetensors"
        if options.weights:
            shutil.copy(options.weights, weights)
        else:
            save_made_up(weights, [options.photograph])
        for number in range(options.rounds + 1):
            for name, (engine, kept) in ROWS.items():
                measured = one_round(weights, options.photograph, engine, kept)
                if number:  # the first brings programs and libraries into memory
                    times[name].append(measured)
        text = table(times, options, weights.stat().st_size / 1e6)
    print(text)
    if options.write:
        (HERE / "start.md").write_text(text)
    if options.json:
        print(json.dumps({"title": "Starting to detect", "table": text, "figures": times}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
