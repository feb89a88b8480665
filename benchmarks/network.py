"""Forward pass and training step of SSD300: the package's engines, flowvision and torchvision, in turn.

All have the same shape: 91 classes, width 1, random weights, images of 300x300. Each round runs every engine in a
process of its own.
"""

from collections.abc import Iterator

from benchmarks.engines import (
    FLOWVISION,
    FLOWVISION_MKL,
    FORWARD,
    ONEFLOW,
    ONNX_RUNTIME,
    OURS,
    PREPARE,
    TRAINING,
    Job,
    names_here,
    seconds_per_image,
)
from benchmarks.frame import TORCHVISION, Benchmark, Options
from benchmarks.tables import Claim, Figures, markdown, paragraphs, significant

BATCH = {FORWARD: 1, TRAINING: 4}


def jobs_of(engine: str, options: Options) -> list[Job]:
    """What an engine is to do in a round."""
    jobs = []
    for what in (what for what in BATCH if (engine, what) in PREPARE):
        # flowvision's step takes half a minute, in which starting up is next to nothing.
        warm_up = not options.quick and (engine, what) != (FLOWVISION, TRAINING)
        batch, repeats = (1, 1) if options.quick else (BATCH[what], 3)
        jobs.append(Job(what, batch, device=options.device, repeats=repeats, seconds=10, warm_up=warm_up))
    return jobs


def measure(options: Options) -> Figures:
    """Median seconds per image by engine and what it did."""
    slow = () if options.quick else (FLOWVISION_MKL, FLOWVISION)
    names = names_here(options, ONEFLOW, ONNX_RUNTIME, TORCHVISION, *slow)
    times = seconds_per_image({engine: jobs_of(engine, options) for engine in names}, options)
    return {names[engine]: {job.what: seconds for job, seconds in found.items()} for engine, found in times.items()}


def table(figures: Figures) -> str:
    ours, rows = figures[OURS[ONEFLOW]], []
    for name, found in figures.items():
        cells = [name]
        for what in BATCH:
            seconds = found.get(what)
            cells += [significant(seconds), "-" if seconds is None else f"{seconds / ours[what]:.2f}"]
        rows.append(cells)
    about = (
        f"SSD300, 91 classes. Forward: batch 1; training step: batch {BATCH[TRAINING]}, with loss, gradients, update. "
        '"With MKL": with the matrix products that this package puts before OneFlow\'s own.'
    )
    header = ["", "forward, s per image", "times ours", "training step, s per image", "times ours"]
    return paragraphs(about, markdown(header, rows))


def claims(figures: Figures) -> Iterator[Claim]:
    """Both engines against the model zoos as they are installed."""
    for what in BATCH:
        for engine in (ONNX_RUNTIME, ONEFLOW):
            ours = figures.get(OURS[engine], {}).get(what)
            for peer, found in figures.items():
                if ours and peer not in OURS.values() and what in found and "MKL" not in peer:
                    yield Claim(f"{what} of an image, {engine}", ours, peer, found[what], "s")


BENCHMARK = Benchmark("The network", measure, table, claims, needs=(TORCHVISION,), on_gpu=True)
