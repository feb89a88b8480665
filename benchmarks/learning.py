"""What `train.sh` learns from nothing without a GPU, from seed to seed: figures on unseen images, and the time.

    .venv/bin/python -m benchmarks learning                generated shapes, seeds 0 to 4: `bash train.sh --seed N`
    .venv/bin/python -m benchmarks learning --data bccd    and these images too, seeds 0 to 2

Every run is `train.sh` itself, one after the other, in runs/learning; those that are there already stay as they are.
"""

import re
import statistics

from benchmarks.frame import ROOT, Benchmark, Options, trained
from benchmarks.tables import Figures, markdown, paragraphs

RUNS = ROOT / "runs" / "learning"
# Photographs: a third more steps than a first training takes.
OWN_DATA = {
    "photographs, width 1/8": ("--width", "0.125", "--iterations", "2000"),
    "photographs, width 1/4": ("--width", "0.25", "--iterations", "1100"),
}
METRICS = ("AP50", "AP")


def measure(options: Options) -> Figures:
    """Figures and seconds by case and seed."""
    # The pictures are made once, and belong to no run.
    cases = {"shapes": (5, ("--dataset", "shapes", "--data-path", RUNS / "data"))}
    if options.data_given:
        given = ("--dataset", "voc", "--data-path", options.data, "--default-boxes", "coco", "--eval-every", 20)
        cases |= {name: (3, (*given, *arguments)) for name, arguments in OWN_DATA.items()}
    figures: Figures = {name: [] for name in cases}
    for name, (seeds, arguments) in cases.items():
        for seed in range(seeds):
            folder = RUNS / f"{re.sub('[^a-z0-9]+', '-', name)}-{seed}"
            run = trained(folder, "--preset", "narrow", *arguments, "--seed", seed)
            last = run["evaluations"][-1]
            figures[name].append({"seconds": run["seconds"], **{metric: last[metric] for metric in METRICS}})
    return figures


def table(figures: Figures) -> str:
    """A row for each run, and the least of each case."""
    rows = []
    for name, runs in figures.items():
        for seed, run in enumerate(runs):
            minutes = f"{run['seconds'] / 60:.1f}"
            rows.append([name, str(seed), *(f"{run[metric]:.3f}" for metric in METRICS), minutes])
        least = [f"{min(run[metric] for run in runs):.3f}" for metric in METRICS]
        rows.append([name, "worst", *least, f"{max(run['seconds'] for run in runs) / 60:.1f}"])
    slowest = statistics.median(run["seconds"] for run in figures["shapes"]) / 60
    about = (
        '`bash train.sh` with nothing given is the rows "shapes": 1200 generated images, AP on 100 others, '
        f"{slowest:.1f} minutes in the median. The other rows are of `--data`, with `--preset narrow`."
    )
    return paragraphs(about, markdown(["data", "seed", *METRICS, "minutes"], rows))


BENCHMARK = Benchmark("Learning from nothing, seed by seed", measure, table, rounds=1, quick=False)
