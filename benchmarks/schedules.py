"""What `--preset narrow` learns with other schedules, with and without an average of the weights, by number of images.

    .venv/bin/python -m benchmarks schedules --data bccd   200 and 2,000 generated shapes, and these photographs

Every run is `train.sh` itself with `--ema 0.99`; its last checkpoint also holds the weights without the average.
The runs stay in runs/schedules; those that are there already are not repeated.
"""

import json
import subprocess
from pathlib import Path
from statistics import mean

from benchmarks.frame import ROOT, Benchmark, Options, in_fresh_process, trained
from benchmarks.made_up import write_shapes
from benchmarks.tables import Figures, markdown, paragraphs

RUNS = ROOT / "runs" / "schedules"
SIZES = (200, 2000)
SCHEDULES = {
    "cosine": (),
    "multistep": ("--lr-scheduler", "multistep"),
}
SEEDS = (0, 1)
EMA = "0.99"  # an average over about 100 steps


def train(folder: Path, data: tuple, *arguments: object) -> dict[str, list[float]]:
    """[AP50, AP] of the last weights, and of their average; data: the options that say what to learn from."""
    options = ("--preset", "narrow", "--default-boxes", "coco", "--eval-every", 1000, "--ema", EMA)
    averaged = trained(folder, *data, *options, *arguments)["evaluations"][-1]
    metrics = folder / "last" / "coco_metrics.json"
    if not metrics.exists():
        # A checkpoint's own weights, without the average beside them.
        weights = ["--weights", folder / "last.safetensors", "--output-dir", metrics.parent]
        subprocess.run(["bash", ROOT / "eval.sh", *map(str, data), *weights], check=True)
    last = json.loads(metrics.read_text())
    return {name: [found["AP50"], found["AP"]] for name, found in (("last", last), ("average", averaged))}


def measure(options: Options) -> Figures:
    """Lists of [AP50, AP] by images, schedule and weights, one for each seed."""
    data = {"photographs": ("--data-path", options.data, "--dataset", "voc")}
    for size in SIZES:
        folder = RUNS / f"data-{size}"
        in_fresh_process(write_shapes, folder, size, 100)
        data[f"{size:,} shapes"] = ("--data-path", folder, "--dataset", "coco")
    figures: Figures = {name: {schedule: {"last": [], "average": []} for schedule in SCHEDULES} for name in data}
    # Seed by seed, so that a benchmark that is stopped has whole tables.
    for seed in SEEDS:
        for schedule, arguments in SCHEDULES.items():
            for name, source in data.items():
                folder = RUNS / f"{name}-{schedule}-{seed}".replace(",", "").replace(" ", "-")
                found = train(folder, source, *arguments, "--seed", seed)
                for weights, values in found.items():
                    figures[name][schedule][weights].append(values)
    return figures


def table(figures: Figures) -> str:
    """A row for each schedule: AP of each seed, and the mean of their AP50."""
    rows = []
    for name, schedules in figures.items():
        for schedule, weights in schedules.items():
            row = [name, schedule]
            for values in weights.values():
                row += [" ".join(f"{ap:.3f}" for _, ap in values), f"{mean(ap50 for ap50, _ in values):.3f}"]
            rows.append(row)
    both = [weights for schedules in figures.values() for weights in schedules.values()]
    gains = [ours[1] - last[1] for each in both for last, ours in zip(each["last"], each["average"], strict=True)]
    about = (
        f"`--preset narrow`, 1,500 steps, seeds {' and '.join(map(str, SEEDS))}; on 100 other shapes, or on the "
        f"photographs' own validation set. `--ema {EMA}` averages the weights over about 100 steps; it changes AP by "
        f"{min(gains):+.3f} to {max(gains):+.3f}."
    )
    heads = ["images", "schedule", "AP", "AP50", f"AP, `--ema {EMA}`", "AP50"]
    return paragraphs(about, markdown(heads, rows))


BENCHMARK = Benchmark("Schedule and average, by number of images", measure, table, rounds=1, quick=False, own_data=True)
