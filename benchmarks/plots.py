"""What the benchmarks draw their pictures with.

matplotlib is imported in the functions: the peers' environment lacks it.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ssd300_vgg16.files import open_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# By what a name holds: an engine has its colour in every picture. The first that fits.
COLOURS = {"ONNX Runtime": "tab:green", "package": "tab:blue", "torchvision": "tab:orange", "pycocotools": "tab:purple"}


def colour(name: str) -> str:
    return next((value for part, value in COLOURS.items() if part in name), "tab:grey")


def lines(
    axes: "Axes", points: Sequence, values_of: dict[str, Sequence[float | None]], title: str, xlabel: str, ylabel: str
) -> None:
    """A line for each name over the points, both axes logarithmic where the points are numbers."""
    from matplotlib.ticker import FuncFormatter, NullFormatter

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


def save(draw: "Callable[[Figure, dict], None]", figures: dict, path: Path) -> None:
    """Write what `draw` makes of the figures."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(layout="constrained")
    FigureCanvasAgg(figure)
    draw(figure, figures)
    with open_atomically(path) as file:
        figure.savefig(file, format="png", dpi=80)
