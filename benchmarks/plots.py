"""The page's plots: a function for each part that has one, from its figures to a picture."""

from collections.abc import Callable, Sequence
from pathlib import Path

from engines import FORWARD, TRAINING
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

# By what a name holds: an engine has its colour in every picture. The first that fits.
COLOURS = {
    "ONNX Runtime": "tab:green",
    "onnxruntime": "tab:green",
    "exported": "tab:olive",
    "package": "tab:blue",
    "oneflow": "tab:blue",
    "MKL": "tab:pink",
    "flowvision": "tab:red",
    "torchvision": "tab:orange",
    "numpy": "tab:cyan",
    "faster": "tab:brown",
    "pycocotools": "tab:purple",
}


def colour(name: str) -> str:
    return next((found for part, found in COLOURS.items() if part in name), "tab:grey")


def bars(axes: Axes, values: dict[str, float], title: str, label: str, text: str = "{:.2f}") -> None:
    """A horizontal bar for each name, its value beside it."""
    drawn = axes.barh(list(values), list(values.values()), color=[colour(name) for name in values])
    axes.bar_label(drawn, [text.format(value) for value in values.values()], padding=3)
    axes.invert_yaxis()
    axes.margins(x=0.18)
    axes.set(title=title, xlabel=label)


def lines(
    axes: Axes, points: Sequence, values_of: dict[str, Sequence[float | None]], title: str, xlabel: str, ylabel: str
) -> None:
    """A line for each name over the points, both axes logarithmic where the points are numbers."""
    numbers = all(isinstance(point, int | float) for point in points)
    places = list(points) if numbers else list(range(len(points)))
    for name, values in values_of.items():
        kept = [(place, value) for place, value in zip(places, values, strict=True) if value is not None]
        axes.plot(*zip(*kept, strict=True), marker="o", label=name, color=colour(name))
    if numbers:
        axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_ylim(*_a_decade(*axes.get_ylim()))
    axes.set_xticks(places, [str(point) for point in points])
    axes.xaxis.set_minor_formatter(NullFormatter())
    for formatter in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
        formatter(FuncFormatter(_tick))
    axes.tick_params(axis="y", which="minor", labelsize=7)
    axes.grid(alpha=0.3, which="both")
    axes.set(title=title, xlabel=xlabel, ylabel=ylabel)


def _a_decade(low: float, high: float) -> tuple[float, float]:
    """Limits of a logarithmic axis, widened so that a small difference does not look large."""
    widen = max(1, (10 * low / high) ** 0.5)
    return low / widen, high * widen


def _tick(value: float, _place: int) -> str:
    """Plain numbers, and of those between powers of ten only some, so that none covers another."""
    first = f"{value:.0e}"[0]
    return f"{value:g}" if first in "125" else ""


def draw_network(figure: Figure, figures: dict) -> None:
    engines = figures["engines"]
    figure.set_size_inches(14, 6)
    for axes, what in zip(figure.subplots(2, 2).T, (FORWARD, TRAINING), strict=True):
        seconds = {name: found[what] for name, found in engines.items() if what in found}
        shares = {name: 100 * engines[name][f"{what}, share"] for name in seconds}
        bars(axes[0], seconds, what, "seconds per image")
        bars(axes[1], shares, "", f"% of {figures['limit']:.0f} GFLOP/s", "{:.0f} %")
        axes[1].axvline(100, color="black", linewidth=0.8, linestyle=":")


def draw_cost(figure: Figure, figures: dict) -> None:
    figure.set_size_inches(5.2 * len(figures), 8)
    grid = figure.subplots(2, len(figures), squeeze=False)
    for row, what in zip(grid, (FORWARD, TRAINING), strict=True):
        for axes, (name, sweep) in zip(row, figures.items(), strict=True):
            chosen = {line: values for line, values in sweep["lines"].items() if line.startswith(what)}
            named = {line.removeprefix(f"{what}, "): values for line, values in chosen.items()}
            lines(axes, sweep["points"], named, what, name, "seconds per image")
    grid[0][0].legend()


def draw_around_network(figure: Figure, figures: dict) -> None:
    figure.set_size_inches(15, 8)
    for axes, (what, found) in zip(figure.subplots(2, 3).ravel(), figures.items(), strict=True):
        values = {name: [second and 1e3 * second for second in row] for name, row in found["lines"].items()}
        lines(axes, found["points"], values, what, found["axis"], "milliseconds")
        axes.legend(fontsize=9)


def draw_memory(figure: Figure, figures: dict) -> None:
    figure.set_size_inches(14, 4.5)
    step_axes, other_axes = figure.subplots(1, 2)
    for name, by_batch in figures.get(TRAINING, {}).items():
        step_axes.plot(list(map(int, by_batch)), list(by_batch.values()), marker="o", label=name, color=colour(name))
        step_axes.legend()
    step_axes.set(title=TRAINING, xlabel="images in a batch", ylabel="peak memory, MiB")
    step_axes.set_ylim(bottom=0)
    step_axes.grid(alpha=0.3)
    rest = {
        f"{what}, batch {batch}: {name}": value
        for what in (FORWARD, "evaluation")
        for name, by_batch in figures.get(what, {}).items()
        for batch, value in by_batch.items()
    }
    bars(other_axes, rest, "forward pass, evaluation", "peak memory, MiB", "{:,.0f}")


def draw_coco_ap(figure: Figure, figures: dict) -> None:
    figure.set_size_inches(14, 2.6)
    texts = {"AP, seconds": "{:.1f}", "peak memory, MiB": "{:,.0f}"}
    for axes, (name, text) in zip(figure.subplots(1, 2), texts.items(), strict=True):
        bars(axes, {side: found[name] for side, found in figures.items()}, "", name, text)


def draw_deployment(figure: Figure, figures: dict) -> None:
    figure.set_size_inches(10, 3)
    milliseconds = {name.replace("`", ""): 1e3 * seconds for name, seconds in figures.items()}
    bars(figure.subplots(), milliseconds, "a photograph, from file to detections", "milliseconds", "{:.0f}")


DRAW: dict[str, Callable[[Figure, dict], None]] = {
    "network": draw_network,
    "cost": draw_cost,
    "around_network": draw_around_network,
    "memory": draw_memory,
    "coco_ap": draw_coco_ap,
    "deployment": draw_deployment,
}


def draw(name: str, figures: dict, path: Path) -> bool:
    """Draw a part's picture; whether it has one."""
    if name not in DRAW:
        return False
    figure = Figure(layout="constrained")
    FigureCanvasAgg(figure)
    DRAW[name](figure, figures)
    aside = path.with_suffix(".tmp")
    figure.savefig(aside, format="png", dpi=80)
    aside.replace(path)
    return True
