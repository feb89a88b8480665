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
    TORCHVISION,
    TRAINING,
    Job,
    run,
)
from benchmarks.frame import Benchmark, Claim, Figures, Options, markdown, median, paragraphs, significant

BATCH = {FORWARD: 1, TRAINING: 4}
# ONNX Runtime and MKL compute on the CPU only.
ENGINES = {
    "cpu": (ONEFLOW, ONNX_RUNTIME, TORCHVISION, FLOWVISION_MKL, FLOWVISION),
    "cuda": (ONEFLOW, TORCHVISION, FLOWVISION),
}
NAMES = OURS | {FLOWVISION: "flowvision 0.2.1 as installed", FLOWVISION_MKL: "flowvision 0.2.1 with MKL"}


def jobs_of(engine: str, device: str, quick: bool) -> list[Job]:
    """What an engine is to do in a round."""
    jobs = []
    for what in (what for what in BATCH if (engine, what) in PREPARE):
        # flowvision's step takes half a minute, in which starting up is next to nothing.
        warm_up = not quick and (engine, what) != (FLOWVISION, TRAINING)
        batch, repeats = (1, 1) if quick else (BATCH[what], 3)
        jobs.append(Job(what, batch, device=device, repeats=repeats, seconds=10, warm_up=warm_up))
    return jobs


def measure(options: Options) -> Figures:
    """Median seconds per image by engine and what it did."""
    names = NAMES | ({TORCHVISION: options.peers.name(TORCHVISION)} if TORCHVISION in options.peers else {})
    slow = (FLOWVISION, FLOWVISION_MKL) if options.quick else ()
    engines = [each for each in ENGINES[options.device.partition(":")[0]] if each in names and each not in slow]
    times: dict[str, dict[str, list]] = {engine: {} for engine in engines}
    for number in range(options.rounds):
        for engine in engines:
            jobs = jobs_of(engine, options.device, options.quick)
            for job, timing in zip(jobs, run(engine, jobs, options.peers), strict=True):
                times[engine].setdefault(job.what, []).append([seconds / job.batch for seconds in timing.seconds])
                print(f"round {number + 1}, {engine}, {job.what}: {min(timing.seconds):.3f} s", flush=True)
    return {
        names[engine]: {what: median(rounds) for what, rounds in of_engine.items()}
        for engine, of_engine in times.items()
    }


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
