"""What SSD costs as it grows: time per image by batch, size of the input, and number of classes.

Each round runs every engine once, in a process of its own that goes through all settings; medians of the network alone
(`network`, which has flowvision too, says what is timed).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from benchmarks import plots
from benchmarks.engines import FORWARD, ONEFLOW, ONNX_RUNTIME, OURS, PREPARE, TORCHVISION, TRAINING, Job, run
from benchmarks.frame import Benchmark, Claim, Figures, Options, claims_at, markdown, median, paragraphs, significant

if TYPE_CHECKING:
    from matplotlib.figure import Figure

HIGHRES = "ssd512_vgg16_highres"
UNKNOWN_TO_TORCHVISION = "ssd512_vgg16"


@dataclass(frozen=True)
class Sweep:
    """One thing that varies. settings: what a Job is to have, for each point of the axis."""

    name: str
    points: tuple
    settings: tuple[dict, ...]


SWEEPS = (
    Sweep("images in a batch", (1, 2, 4, 8), tuple({"batch": batch} for batch in (1, 2, 4, 8))),
    Sweep("input", ("SSD300", "SSD512", "SSD512 highres"), ({}, {"model": UNKNOWN_TO_TORCHVISION}, {"model": HIGHRES})),
    Sweep("classes", (2, 21, 91, 1204), tuple({"classes": classes} for classes in (2, 21, 91, 1204))),
)
QUICK = (Sweep("classes", (2, 21), ({"classes": 2}, {"classes": 21})),)


def jobs_of(engine: str, sweeps: Sequence[Sweep], options: Options) -> list[Job]:
    """All that an engine can do of the sweeps, each once."""
    budget = {"repeats": 1, "warm_up": not options.quick}
    settings = [setting for sweep in sweeps for setting in sweep.settings]
    if engine == TORCHVISION:
        settings = [setting for setting in settings if setting.get("model") != UNKNOWN_TO_TORCHVISION]
    whats = [what for what in (FORWARD, TRAINING) if (engine, what) in PREPARE]
    jobs = [Job(what, device=options.device, **budget, **setting) for what in whats for setting in settings]
    return list(dict.fromkeys(jobs))


def key(job: Job) -> tuple:
    """What tells one measurement from another."""
    return job.what, job.batch, job.classes, job.model


def measure(options: Options) -> Figures:
    """For each sweep its points, and for each WHAT and engine the seconds per image there (None: not had)."""
    sweeps = QUICK if options.quick else SWEEPS
    names = {ONEFLOW: OURS[ONEFLOW]}
    if options.device == "cpu":
        names[ONNX_RUNTIME] = OURS[ONNX_RUNTIME]
    if TORCHVISION in options.peers:
        names[TORCHVISION] = options.peers.name(TORCHVISION)
    times: dict[str, dict[tuple, list]] = {engine: {} for engine in names}
    for number in range(options.rounds):
        for engine, of_engine in times.items():
            jobs = jobs_of(engine, sweeps, options)
            for job, timing in zip(jobs, run(engine, jobs, options.peers), strict=True):
                of_engine.setdefault(key(job), []).append([seconds / job.batch for seconds in timing.seconds])
            print(f"round {number + 1}, {engine}: {len(jobs)} settings", flush=True)
    figures = {}
    for sweep in sweeps:
        lines = {}
        for what in (FORWARD, TRAINING):
            for engine, of_engine in times.items():
                rounds = [of_engine.get(key(Job(what, **setting))) for setting in sweep.settings]
                if any(rounds):
                    lines[f"{what}, {names[engine]}"] = [each and median(each) for each in rounds]
        figures[sweep.name] = {"points": list(sweep.points), "lines": lines}
    return figures


def table(figures: Figures) -> str:
    tables = []
    for name, sweep in figures.items():
        rows = []
        for place, point in enumerate(sweep["points"]):
            rows.append([str(point), *(significant(values[place]) for values in sweep["lines"].values())])
        tables.append(markdown([name, *sweep["lines"]], rows))
    about = (
        "Seconds per image of the network alone. Unless the table says otherwise: batch 1, SSD300, 91 classes. SSD512 "
        "is the paper's; torchvision can be put together as the `highres` one only, whose cost is about the same."
    )
    return paragraphs(about, *tables)


def claims(figures: Figures) -> Iterator[Claim]:
    """The training step, where it varies most."""
    points = {"images in a batch": (1, 8), "input": ("SSD512 highres",), "classes": (1204,)}
    texts = {"images in a batch": "batch {}, an image", "input": "{}", "classes": "{} classes"}
    for sweep, found in figures.items():
        for point in points[sweep]:
            what = f"{TRAINING}, {texts[sweep].format(point)}"
            yield from claims_at(found, point, what, "s", f"{TRAINING}, ")


def draw(figure: "Figure", figures: Figures) -> None:
    figure.set_size_inches(5.2 * len(figures), 8)
    grid = figure.subplots(2, len(figures), squeeze=False)
    for row, what in zip(grid, (FORWARD, TRAINING), strict=True):
        for axes, (name, sweep) in zip(row, figures.items(), strict=True):
            chosen = {line: values for line, values in sweep["lines"].items() if line.startswith(what)}
            named = {line.removeprefix(f"{what}, "): values for line, values in chosen.items()}
            plots.lines(axes, sweep["points"], named, what, name, "seconds per image")
    grid[0][0].legend()


BENCHMARK = Benchmark(
    "Cost by batch, size of the input, and classes", measure, table, claims, draw, needs=(TORCHVISION,), on_gpu=True
)
