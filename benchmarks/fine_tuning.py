"""Training from nothing against fine-tuning, on the same data with the same options: AP by step.

    .venv/bin/python benchmarks/fine_tuning.py --data-path bccd --dataset voc
    .venv/bin/python benchmarks/fine_tuning.py --runs NOTHING FINE_TUNED      the curves of runs that are there already

The weights to fine-tune are trained first, on generated shapes. All runs are `train.sh` itself, one after the other, in
--output-dir. The table goes to benchmarks/fine-tuning.md, the picture to docs/fine-tuning.png.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

ROOT = Path(__file__).resolve().parent.parent
# What learns BCCD from nothing: with the preset's eighth of the channels and twice the rate it stays on the plateau.
OPTIONS = ("--preset", "narrow", "--width", "0.25", "--lr", "5e-4")
NAMES = ("from nothing", "fine-tuned")
FIGURES = ("AP", "AP50")


def train(folder: Path, *arguments: str) -> Path:
    """One run of train.sh in this folder; one that is there is left as it is."""
    if not (folder / "coco_metrics.json").exists():
        command = ["bash", str(ROOT / "train.sh"), *OPTIONS, "--output-dir", str(folder), *arguments]
        subprocess.run(command, check=True)
    return folder


def evaluations(run: Path) -> list[dict]:
    """The rows of the run's metrics.jsonl that hold an AP."""
    rows = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [row for row in rows if row["kind"] == "evaluation"]


def draw(runs: list[list[dict]], path: Path) -> None:
    """AP and AP50 by step, a line for each run."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, name in zip(figure.subplots(1, 2), FIGURES, strict=True):
        for label, rows in zip(NAMES, runs, strict=True):
            axes.plot([row["step"] for row in rows], [row[name] for row in rows], marker="o", label=label)
        axes.set(title=name, xlabel="training step", ylim=(0, 1))
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(path, dpi=100)


def table(runs: list[list[dict]]) -> str:
    """The same as text, and the step at which fine-tuning has reached the last AP of training from nothing."""
    rows = ["| step | " + " | ".join(f"{figure}, {name}" for figure in FIGURES for name in NAMES) + " |"]
    rows.append("|---" * (1 + len(FIGURES) * len(NAMES)) + "|")
    for pair in zip(*runs, strict=True):
        values = " | ".join(f"{row[figure]:.3f}" for figure in FIGURES for row in pair)
        rows.append(f"| {pair[0]['step']} | {values} |")
    nothing, tuned = runs
    last = nothing[-1]
    reached = next((row["step"] for row in tuned if row["AP"] >= last["AP"]), None)
    rows += ["", f"From nothing, AP {last['AP']:.3f} after {last['step']} steps. "]
    rows[-1] += f"Fine-tuned, as much after {reached}." if reached else "Fine-tuned, not reached."
    return "\n".join(rows)


def main() -> None:
    """Train what is not there yet, then draw and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-path", help="the data to learn")
    parser.add_argument("--dataset", default="voc", help="its kind (default: voc)")
    parser.add_argument("--epochs", default="16", help="(default: 16)")
    parser.add_argument("--output-dir", type=Path, default=Path("runs/fine-tuning"), help="(default: %(default)s)")
    parser.add_argument("--runs", nargs=2, type=Path, metavar="RUN", help="draw these instead")
    options = parser.parse_args()
    if options.runs:
        folders = options.runs
    elif options.data_path:
        before = train(options.output_dir / "shapes", "--dataset", "shapes")
        data = ("--data-path", options.data_path, "--dataset", options.dataset, "--epochs", options.epochs)
        data += ("--eval-every", "2", "--default-boxes", "coco")
        tuned = train(options.output_dir / "fine-tuned", *data, "--load", str(before))
        folders = [train(options.output_dir / "nothing", *data), tuned]
    else:
        parser.error("--data-path or --runs is needed")
    runs = [evaluations(folder) for folder in folders]
    draw(runs, ROOT / "docs" / "fine-tuning.png")
    text = f"# Training from nothing against fine-tuning\n\n`{Path(sys.argv[0]).name}`, on the CPU\n\n{table(runs)}\n"
    (ROOT / "benchmarks" / "fine-tuning.md").write_text(text)
    print(table(runs))


if __name__ == "__main__":
    main()
