"""What `train.sh` learns from nothing without a GPU, from seed to seed: figures on unseen images, and the time.

    .venv/bin/python -m benchmarks learning                generated shapes, seeds 0 to 4: `bash train.sh --seed N`
    .venv/bin/python -m benchmarks learning --data bccd    and these images too, seeds 0 to 2

Every run is `train.sh` itself, one after the other, in runs/learning; those that are there already stay as they are.
"""

import json
import re
import statistics
import subprocess
import time
from pathlib import Path

from benchmarks.frame import ROOT, Benchmark, Figures, Options, markdown, paragraphs

RUNS = ROOT / "runs" / "learning"
# Photographs: a third more steps than a first training takes.
OWN_DATA = {
    "photographs, width 1/8": ("--width", "0.125", "--iterations", "2000"),
    "photographs, width 1/4": ("--width", "0.25", "--iterations", "1100"),
}
METRICS = ("AP50", "AP")


def train(folder: Path, *arguments: str) -> dict[str, float]:
    """The figures and the seconds of one run of train.sh."""
    record = folder / "learning.json"
    if not record.exists():
        since = time.monotonic()
        subprocess.run(["bash", ROOT / "train.sh", "--output-dir", folder, *arguments], check=True)
        seconds = time.monotonic() - since
        rows = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
        last = [row for row in rows if row["kind"] == "evaluation"][-1]
        record.write_text(json.dumps({"seconds": seconds, **{name: last[name] for name in METRICS}}))
    return json.loads(record.read_text())


def measure(options: Options) -> Figures:
    """By case and seed."""
    # The pictures are made once, and belong to no run.
    shapes = ("--dataset", "shapes", "--data-path", str(RUNS / "data"), "--preset", "narrow")
    figures = {"shapes": [train(RUNS / f"shapes-{seed}", *shapes, "--seed", str(seed)) for seed in range(5)]}
    if options.data_given:
        given = ("--preset", "narrow", "--dataset", "voc", "--default-boxes", "coco", "--eval-every", "20")
        given += ("--data-path", str(options.data))
        for name, arguments in OWN_DATA.items():
            runs = [train(RUNS / f"{slug(name)}-{seed}", *given, *arguments, "--seed", str(seed)) for seed in range(3)]
            figures[name] = runs
    return figures


def slug(name: str) -> str:
    """The name as part of a folder's."""
    return re.sub("[^a-z0-9]+", "-", name)


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
