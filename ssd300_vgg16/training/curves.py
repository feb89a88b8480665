"""A run's curves as a picture: losses, learning rate, AP."""

from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ssd300_vgg16.training.run_folder import read_metrics

CURVES = "curves.png"


def draw_curves(folder: Path) -> None:
    """Draw folder/curves.png from folder/metrics.jsonl."""
    rows = read_metrics(folder)
    training = [row for row in rows if row["kind"] == "training"]
    evaluations = [row for row in rows if row["kind"] == "evaluation"]
    figure = Figure(figsize=(12, 4), layout="constrained")
    FigureCanvasAgg(figure)
    loss_axes, rate_axes, ap_axes = figure.subplots(1, 3)
    _plot(loss_axes, training, ("localization", "classification"), "loss")
    _plot(rate_axes, training, ("lr",), "learning rate")
    _plot(ap_axes, evaluations, ("AP50", "AP"), "box AP", marker="o")
    ap_axes.set_ylim(0, 1)
    if training:
        loss_axes.set_yscale("log")
    aside = folder / f".{CURVES}.tmp"
    figure.savefig(aside, format="png", dpi=100)
    aside.replace(folder / CURVES)


def _plot(axes, rows: list[dict], names: tuple[str, ...], title: str, marker: str | None = None) -> None:
    for name in names:
        axes.plot([row["step"] for row in rows], [row[name] for row in rows], label=name, marker=marker)
    axes.set(title=title, xlabel="step")
    axes.grid(alpha=0.3)
    if len(names) > 1 and rows:
        axes.legend()
