"""Training from nothing against fine-tuning, on the same data with the same options: AP by step.

    .venv/bin/python -m benchmarks fine_tuning --data bccd

The weights to fine-tune are trained first, on generated shapes. All runs are `train.sh` itself, one after the other, in
runs/fine-tuning; those that are there already are left as they are.
"""

from typing import TYPE_CHECKING

from benchmarks.frame import ROOT, Benchmark, Options, trained
from benchmarks.tables import Figures, markdown, paragraphs

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RUNS = ROOT / "runs" / "fine-tuning"
EPOCHS = 8
NAMES = ("from nothing", "fine-tuned")
METRICS = ("AP", "AP50")


def measure(options: Options) -> Figures:
    """By run, step, AP and AP50 of each evaluation."""
    trained(RUNS / "shapes", "--preset", "narrow", "--dataset", "shapes")
    data = ["--preset", "narrow", "--data-path", options.data, "--dataset", "voc", "--default-boxes", "coco"]
    data += ["--epochs", EPOCHS, "--eval-every", 2]
    runs = trained(RUNS / "nothing", *data), trained(RUNS / "fine-tuned", *data, "--load", RUNS / "shapes")
    columns = ("step", *METRICS)
    return {
        name: [{key: row[key] for key in columns} for row in run["evaluations"]]
        for name, run in zip(NAMES, runs, strict=True)
    }


def table(figures: Figures) -> str:
    """The same as text, and the step at which fine-tuning has reached the last AP of training from nothing."""
    runs = [figures[name] for name in NAMES]
    rows = []
    for pair in zip(*runs, strict=True):
        rows.append([str(pair[0]["step"]), *(f"{row[metric]:.3f}" for metric in METRICS for row in pair)])
    header = ["step", *(f"{metric}, {name}" for metric in METRICS for name in NAMES)]
    last = runs[0][-1]
    reached = next((row["step"] for row in runs[1] if row["AP"] >= last["AP"]), "more steps than these")
    told = f"From nothing, AP {last['AP']:.3f} after {last['step']} steps. Fine-tuned, as much after {reached}."
    return paragraphs(f"An eighth of the channels, {EPOCHS} epochs.", markdown(header, rows), told)


def draw(figure: "Figure", figures: Figures) -> None:
    """AP and AP50 by step, a line for each run."""
    figure.set_size_inches(10, 4)
    for axes, metric in zip(figure.subplots(1, 2), METRICS, strict=True):
        for name, rows in figures.items():
            axes.plot([row["step"] for row in rows], [row[metric] for row in rows], marker="o", label=name)
        axes.set(title=metric, xlabel="training step", ylim=(0, 1))
        axes.grid(alpha=0.3)
        axes.legend()


BENCHMARK = Benchmark(
    "Training from nothing against fine-tuning", measure, table, draw=draw, rounds=1, quick=False, own_data=True
)
