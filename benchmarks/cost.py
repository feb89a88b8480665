"""What SSD costs as it grows: time per image by batch, size of the input, and number of classes.

    .venv/bin/python benchmarks/cost.py                    on the CPU
    .venv/bin/python benchmarks/cost.py --device cuda      on a GPU (never tried)

Each round runs every engine once, in a process of its own that goes through all settings; medians over all rounds, of
the network alone (benchmarks/network.py, which has flowvision too, says what is timed).
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass

import part
import peers
from engines import FORWARD, ONEFLOW, ONNX_RUNTIME, PREPARE, TORCHVISION, TRAINING, Job, run
from network import OUR_ENGINES

TITLE = "The network's cost: by batch, by size of the input, by number of classes"
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
    Sweep(
        "input",
        ("SSD300", "SSD512", "SSD512 highres"),
        ({}, {"model": UNKNOWN_TO_TORCHVISION}, {"model": HIGHRES}),
    ),
    Sweep("classes", (2, 21, 91, 1204), tuple({"classes": classes} for classes in (2, 21, 91, 1204))),
)
QUICK = (Sweep("classes", (2, 21), ({"classes": 2}, {"classes": 21})),)


def jobs_of(engine: str, sweeps: Sequence[Sweep], options: argparse.Namespace) -> list[Job]:
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


def measure(engines: Sequence[str], sweeps: Sequence[Sweep], options: argparse.Namespace) -> dict[str, dict]:
    """By engine and `key`, median seconds per image."""
    found = {engine: {} for engine in engines}
    for number in range(options.rounds):
        for engine in engines:
            jobs = jobs_of(engine, sweeps, options)
            for job, timing in zip(jobs, run(engine, jobs, options.peer_python), strict=True):
                found[engine].setdefault(key(job), []).append([seconds / job.batch for seconds in timing.seconds])
            print(f"round {number + 1}, {engine}: {len(jobs)} settings", flush=True)
    return {engine: {job: part.median(rounds) for job, rounds in times.items()} for engine, times in found.items()}


def figures_of(medians: dict[str, dict], sweeps: Sequence[Sweep], names: dict[str, str]) -> dict:
    """For each sweep its points, and for each line of a plot, WHAT and engine, the seconds there (None: not had)."""
    figures = {}
    for sweep in sweeps:
        lines = {}
        for what in (FORWARD, TRAINING):
            for engine, times in medians.items():
                values = [times.get(key(Job(what, **setting))) for setting in sweep.settings]
                if any(values):
                    lines[f"{what}, {names[engine]}"] = values
        figures[sweep.name] = {"points": list(sweep.points), "lines": lines}
    return figures


def table_of(figures: dict, notes: Sequence[str], about: str) -> str:
    tables = []
    for name, sweep in figures.items():
        rows = []
        for place, point in enumerate(sweep["points"]):
            rows.append([str(point), *(part.significant(values[place]) for values in sweep["lines"].values())])
        tables.append(part.markdown([name, *sweep["lines"]], rows))
    return part.paragraphs(about, *tables, *notes)


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    return peers.options_of(part.parser(__doc__), "one call each of two settings: a rehearsal", arguments)


def main() -> None:
    options = parse()
    installed = peers.find_peers(options.peer_python)
    names = {ONEFLOW: OUR_ENGINES[ONEFLOW]}
    if options.device == "cpu":
        names[ONNX_RUNTIME] = OUR_ENGINES[ONNX_RUNTIME]
    if TORCHVISION in installed:
        names[TORCHVISION] = installed.name(TORCHVISION)
    sweeps = QUICK if options.quick else SWEEPS
    figures = figures_of(measure(list(names), sweeps, options), sweeps, names)
    about = (
        f"Seconds per image of the network alone; medians over {part.rounds(options)}. Unless the table says "
        "otherwise: batch 1, SSD300, 91 classes. SSD512 is the paper's; torchvision can be put together as the "
        "`highres` one only, whose cost is about the same."
    )
    part.answer(options, TITLE, table_of(figures, installed.left_out(TORCHVISION), about), figures)


if __name__ == "__main__":
    main()
