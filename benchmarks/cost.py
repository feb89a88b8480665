"""What SSD costs as it grows: time per image by batch, size of the input, and number of classes.

Each round runs every engine once, in a process of its own that goes through all settings; medians of the network alone
(`network`, which has flowvision too, says what is timed).
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from benchmarks import plots
from benchmarks.engines import (
    FORWARD,
    ONEFLOW,
    ONNX_RUNTIME,
    PREPARE,
    TRAINING,
    Job,
    names_here,
    seconds_per_image,
)
from benchmarks.frame import TORCHVISION, Benchmark, Options
from benchmarks.tables import Claim, Figures, claims_at, markdown, paragraphs, significant

if TYPE_CHECKING:
    from matplotlib.figure import Figure

UNKNOWN_TO_TORCHVISION = "ssd512_vgg16"
# What varies, its points, and what a Job is to have there.
SWEEPS: dict[str, dict] = {
    "images in a batch": {batch: {"batch": batch} for batch in (1, 2, 4, 8)},
    "input": {
        "SSD300": {},
        "SSD512": {"model": UNKNOWN_TO_TORCHVISION},
        "SSD512 highres": {"model": "ssd512_vgg16_highres"},
    },
    "classes": {classes: {"classes": classes} for classes in (2, 21, 91, 1204)},
}
QUICK: dict[str, dict] = {"classes": {2: {"classes": 2}, 21: {"classes": 21}}}


def measure(options: Options) -> Figures:
    """For each sweep its points, and for each WHAT and engine the seconds per image there (None: not had)."""
    sweeps = QUICK if options.quick else SWEEPS

    def job(what: str, setting: dict) -> Job:
        return Job(what, device=options.device, repeats=1, warm_up=not options.quick, **setting)

    def jobs_of(engine: str) -> list[Job]:
        """All that an engine can do of the sweeps, each once."""
        settings = [setting for points in sweeps.values() for setting in points.values()]
        whats = [what for what in (FORWARD, TRAINING) if (engine, what) in PREPARE]
        jobs = dict.fromkeys(job(what, setting) for what in whats for setting in settings)
        return [each for each in jobs if engine != TORCHVISION or each.model != UNKNOWN_TO_TORCHVISION]

    names = names_here(options, ONEFLOW, ONNX_RUNTIME, TORCHVISION)
    times = seconds_per_image({engine: jobs_of(engine) for engine in names}, options)
    figures = {}
    for sweep, points in sweeps.items():
        lines = {}
        for what in (FORWARD, TRAINING):
            for engine, found in times.items():
                values = [found.get(job(what, setting)) for setting in points.values()]
                if any(values):
                    lines[f"{what}, {names[engine]}"] = values
        figures[sweep] = {"points": list(points), "lines": lines}
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
