"""Peak memory of a training step by batch, of a forward pass, and of an evaluation; each in a process of its own.

    .venv/bin/python benchmarks/memory.py
    .venv/bin/python benchmarks/memory.py --device cuda      the GPU's, in use by whomever, too (never tried)

The peak is the largest resident memory of the process, libraries included, after two steps or passes.
"""

import argparse
import contextlib
import io
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import part
import peers
from engines import (
    FLOWVISION,
    FORWARD,
    ONEFLOW,
    ONNX_RUNTIME,
    TORCHVISION,
    TRAINING,
    Job,
    Timing,
    environment,
    peak_mib,
    run,
)
from network import OUR_ENGINES

TITLE = "Peak memory"
BATCHES = (1, 2, 4, 8)
# flowvision's step takes eight seconds an image: one batch says enough.
CASES = {
    TRAINING: {ONEFLOW: BATCHES, TORCHVISION: BATCHES, FLOWVISION: (2,)},
    FORWARD: {ONEFLOW: (1, 8), ONNX_RUNTIME: (1, 8), TORCHVISION: (1, 8), FLOWVISION: (1,)},
}
QUICK = {FORWARD: {ONEFLOW: (1,), TORCHVISION: (1,)}}
EVALUATED_IMAGES = 32


def evaluation_peak() -> float:
    """MiB of eval.sh at full width on generated shapes, in a fresh process."""
    command = [sys.executable, __file__, "--evaluate"]
    done = subprocess.run(command, env=environment(ONEFLOW), check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def evaluate() -> float:
    """Make weights and pictures, evaluate, and return this process's peak in MiB."""
    from ssd300_vgg16 import evaluate as command
    from ssd300_vgg16.data.dataset import Category
    from ssd300_vgg16.data.shapes import CATEGORY_IDS, write_shapes
    from ssd300_vgg16.weights.model import build_model, model_tensors
    from ssd300_vgg16.weights.safetensors_file import ModelDescription, save_weights

    named = CATEGORY_IDS.items()
    categories = tuple(Category(label, id_, name) for label, (name, id_) in enumerate(named, start=1))
    description = ModelDescription(91, 1.0, categories)
    with tempfile.TemporaryDirectory() as name, contextlib.redirect_stdout(io.StringIO()):
        weights, shapes = Path(name) / "best.safetensors", Path(name) / "shapes"
        save_weights(weights, model_tensors(build_model(description)), description)
        write_shapes(shapes, 0, EVALUATED_IMAGES, seed=0)
        command.main(["--weights", str(weights), "--data-path", str(shapes), "--device", "cpu", "-j", "0"])
    return peak_mib()


def measure(
    cases: dict, engines: Sequence[str], options: argparse.Namespace
) -> dict[str, dict[str, dict[int, Timing]]]:
    """By what is done, engine and batch; the highest of all rounds."""
    found = {}
    for what, batches_of in cases.items():
        for engine in (engine for engine in batches_of if engine in engines):
            for batch in batches_of[engine]:
                job = Job(what, batch, device=options.device, repeats=1, seconds=600)
                rounds = [run(engine, [job], options.peer_python)[0] for _ in range(options.rounds)]
                highest = max(rounds, key=lambda timing: timing.peak_mib)
                found.setdefault(what, {}).setdefault(engine, {})[batch] = highest
                print(f"{what}, batch {batch}, {engine}: {highest.peak_mib:.0f} MiB", flush=True)
    return found


def figures_of(found: dict, names: dict[str, str], device: str) -> dict:
    """By what is done and engine, MiB by batch; on a GPU the GPU's."""
    kind = "peak_mib" if device == "cpu" else "gpu_mib"
    return {
        what: {
            names[engine]: {str(batch): getattr(timing, kind) for batch, timing in by_batch.items()}
            for engine, by_batch in of_engine.items()
        }
        for what, of_engine in found.items()
    }


def table_of(figures: dict, notes: Sequence[str], about: str) -> str:
    tables = []
    for what, engines in figures.items():
        batches = sorted({int(batch) for by_batch in engines.values() for batch in by_batch})
        rows = [
            [name, *(f"{by_batch[str(batch)]:,.0f}" if str(batch) in by_batch else "-" for batch in batches)]
            for name, by_batch in engines.items()
        ]
        tables.append(part.markdown([f"{what}, MiB", *(f"batch {batch}" for batch in batches)], rows))
    return part.paragraphs(about, *tables, *notes)


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = part.parser(__doc__)
    parser.set_defaults(rounds=1)  # memory hardly varies
    parser.add_argument("--evaluate", action="store_true", help=argparse.SUPPRESS)
    return peers.options_of(parser, "a forward pass alone: a rehearsal", arguments)


def main() -> None:
    options = parse()
    if options.evaluate:
        print(json.dumps(evaluate()))
        return
    installed = peers.find_peers(options.peer_python)
    names = OUR_ENGINES | {FLOWVISION: "flowvision 0.2.1"}
    if TORCHVISION in installed:
        names[TORCHVISION] = installed.name(TORCHVISION)
    engines = list(names) if options.device == "cpu" else [name for name in names if name != ONNX_RUNTIME]
    figures = figures_of(measure(QUICK if options.quick else CASES, engines, options), names, options.device)
    about = "SSD300, 91 classes, float32, libraries included."
    if options.device == "cpu" and not options.quick:
        figures["evaluation"] = {"this package, ONNX Runtime": {"8": evaluation_peak()}}
        about += (
            f" Evaluation: `eval.sh` on {EVALUATED_IMAGES} images, without data workers. "
            "That of the AP of 5,000 images is in its own table."
        )
    part.answer(options, TITLE, table_of(figures, installed.left_out(TORCHVISION), about), figures)


if __name__ == "__main__":
    main()
