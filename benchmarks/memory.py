"""Peak memory of a training step by batch, of a forward pass, and of an evaluation; each in a process of its own.

The peak is the largest resident memory of the process, libraries included, after two steps or passes; on a GPU it is
that of the GPU, in use by whomever.
"""

import contextlib
import io
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks import plots
from benchmarks.engines import (
    FLOWVISION,
    FORWARD,
    ONEFLOW,
    ONNX_RUNTIME,
    OURS,
    TORCHVISION,
    TRAINING,
    Job,
    peak_mib,
    run,
)
from benchmarks.frame import Benchmark, Claim, Figures, Options, in_fresh_process, markdown, paragraphs

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BATCHES = (1, 2, 4, 8)
# flowvision's step takes eight seconds an image: one batch says enough.
CASES = {
    TRAINING: {ONEFLOW: BATCHES, TORCHVISION: BATCHES, FLOWVISION: (2,)},
    FORWARD: {ONEFLOW: (1, 8), ONNX_RUNTIME: (1, 8), TORCHVISION: (1, 8), FLOWVISION: (1,)},
}
QUICK = {FORWARD: {ONEFLOW: (1,), TORCHVISION: (1,)}}
EVALUATION, EVALUATED_IMAGES = "evaluation", 32


def evaluation_peak() -> float:
    """MiB of eval.sh at full width on generated shapes; for a fresh process."""
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


def measure(options: Options) -> Figures:
    """By what is done and engine, MiB by batch; the highest of all rounds."""
    names = OURS | {FLOWVISION: "flowvision 0.2.1"}
    if TORCHVISION in options.peers:
        names[TORCHVISION] = options.peers.name(TORCHVISION)
    if options.device != "cpu":
        del names[ONNX_RUNTIME]
    figures: dict[str, dict[str, dict[str, float]]] = {}
    for what, batches_of in (QUICK if options.quick else CASES).items():
        figures[what] = {}
        for engine in (engine for engine in batches_of if engine in names):
            peaks = figures[what][names[engine]] = {}
            for batch in batches_of[engine]:
                job = Job(what, batch, device=options.device, repeats=1, seconds=600)
                timings = [run(engine, [job], options.peers)[0] for _ in range(options.rounds)]
                kind = "peak_mib" if options.device == "cpu" else "gpu_mib"
                peaks[str(batch)] = max(getattr(timing, kind) for timing in timings)
                print(f"{what}, batch {batch}, {engine}: {peaks[str(batch)]:.0f} MiB", flush=True)
    if options.device == "cpu" and not options.quick:
        figures[EVALUATION] = {OURS[ONNX_RUNTIME]: {"8": in_fresh_process(evaluation_peak)}}
    return figures


def table(figures: Figures) -> str:
    about = (
        f"SSD300, 91 classes, float32, libraries included. Evaluation: `eval.sh` on {EVALUATED_IMAGES} images, without "
        "data workers."
    )
    tables = []
    for what, engines in figures.items():
        batches = sorted({int(batch) for by_batch in engines.values() for batch in by_batch})
        rows = [
            [name, *(f"{by_batch[str(batch)]:,.0f}" if str(batch) in by_batch else "-" for batch in batches)]
            for name, by_batch in engines.items()
        ]
        tables.append(markdown([f"{what}, MiB", *(f"batch {batch}" for batch in batches)], rows))
    return paragraphs(about, *tables)


def claims(figures: Figures) -> Iterator[Claim]:
    """A training step of four images, a forward pass of one, against torchvision."""
    for what, batch in ((TRAINING, "4"), (FORWARD, "1")):
        engines = {name: found[batch] for name, found in figures.get(what, {}).items() if batch in found}
        for engine in (ONNX_RUNTIME, ONEFLOW):
            ours = engines.get(OURS[engine])
            for peer, theirs in engines.items():
                if ours and peer.startswith(TORCHVISION):
                    yield Claim(f"memory, {what}, batch {batch}, {engine}", ours, peer, theirs, "MiB")


def draw(figure: "Figure", figures: Figures) -> None:
    figure.set_size_inches(14, 4.5)
    step_axes, other_axes = figure.subplots(1, 2)
    for name, by_batch in figures.get(TRAINING, {}).items():
        step_axes.plot(
            list(map(int, by_batch)), list(by_batch.values()), marker="o", label=name, color=plots.colour(name)
        )
        step_axes.legend()
    step_axes.set(title=TRAINING, xlabel="images in a batch", ylabel="peak memory, MiB")
    step_axes.set_ylim(bottom=0)
    step_axes.grid(alpha=0.3)
    rest = {
        f"{what}, batch {batch}: {name}": value
        for what in (FORWARD, EVALUATION)
        for name, by_batch in figures.get(what, {}).items()
        for batch, value in by_batch.items()
    }
    plots.bars(other_axes, rest, "forward pass, evaluation", "peak memory, MiB", "{:,.0f}")


# Memory hardly varies: one round is enough.
BENCHMARK = Benchmark("Peak memory", measure, table, claims, draw, needs=(TORCHVISION,), rounds=1, on_gpu=True)
