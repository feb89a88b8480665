"""Classes, box shapes and default boxes of a data set as a picture."""

import warnings
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from ssd300_vgg16.boxes import xyxy_to_cxcywh
from ssd300_vgg16.data.matching import MATCH_IOU
from ssd300_vgg16.draw import label_colour
from ssd300_vgg16.inspection.figures import SIZE_LIMITS, Candidate, ClassCount, Objects, SizeRow
from ssd300_vgg16.inspection.text import interval, plain

CLASSES_SHOWN = 40
OBJECTS_SHOWN = 4000
GRID = 160  # points along each axis, to find where default boxes fit


def plot_inspection(
    classes: Sequence[ClassCount],
    objects: Objects,
    size_rows: Sequence[SizeRow],
    candidate: Candidate,
    title: str,
) -> Figure:
    """Three panels: objects of each class, widths and heights at the network's input with the shapes of its
    default boxes, and how many objects of each size fit one."""
    figure = Figure(figsize=(19, 6.5), layout="constrained")
    FigureCanvasAgg(figure)
    class_axes, shape_axes, fit_axes = figure.subplots(1, 3)
    _plot_classes(class_axes, classes)
    _plot_shapes(shape_axes, objects, candidate)
    _plot_fit(fit_axes, size_rows)
    figure.suptitle(_literal(title))
    return figure


def save_figure(figure: Figure, file) -> None:
    """Write the figure as PNG; letters that its font does not have become boxes, without a warning for each."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        figure.savefig(file, format="png", dpi=100)


def _literal(text: str) -> str:
    """Text as it is: matplotlib takes what is between dollar signs for formulas."""
    return text.replace("$", r"\$")


def _plot_classes(axes: Axes, classes: Sequence[ClassCount]) -> None:
    shown = [row for row in classes if row.objects][:CLASSES_SHOWN]
    colours = [_colour(row.label) for row in shown]
    places = range(len(shown))
    bars = axes.barh(places, [row.objects for row in shown], color=colours)
    font = 10 if len(shown) <= 20 else 7
    axes.bar_label(bars, [f"{row.objects:,}" for row in shown], padding=3, fontsize=font)
    axes.set_yticks(places, [_literal(plain(row.name)) for row in shown], fontsize=font)
    axes.invert_yaxis()
    axes.margins(x=0.15, y=0.02)
    more = f" ({len(shown)} of {len(classes)} classes)" if len(shown) < len(classes) else ""
    axes.set(title=f"objects of each class{more}", xlabel="objects")


def _plot_shapes(axes: Axes, objects: Objects, candidate: Candidate) -> None:
    image_size = candidate.image_size
    rows = np.random.default_rng(0).permutation(len(objects))[:OBJECTS_SHOWN]
    shapes = np.unique(np.rint(xyxy_to_cxcywh(candidate.default_boxes)[:, 2:] * 10) / 10, axis=0)
    least = _least_side(objects, shapes)
    grid = np.geomspace(least, image_size, GRID)
    axes.contourf(grid, grid, _centred_iou(grid, shapes), levels=[MATCH_IOU, 1.01], colors=["0.88"])
    axes.scatter(
        objects.widths[rows],
        objects.heights[rows],
        s=np.clip(8000 / max(len(rows), 1), 5, 25),
        c=[_colour(label) for label in objects.labels[rows].tolist()],
        alpha=0.6,
        linewidths=0,
    )
    axes.scatter(shapes[:, 0], shapes[:, 1], marker="+", s=70, c="black")
    _scale_axes(axes, least, image_size)
    some = f"{len(rows):,} of {len(objects):,}" if len(rows) < len(objects) else f"{len(objects):,}"
    point = {"linestyle": "", "color": "dimgrey"}
    handles = [
        Line2D([], [], **point, marker="o", label=f"objects ({some}), in their classes' colours"),
        Line2D([], [], **point, marker="+", label="default boxes"),
        Patch(color="0.88", label=f"IoU >= {MATCH_IOU} with a default box around the same centre"),
    ]
    axes.legend(handles=handles, loc="lower left", fontsize=9)


def _scale_axes(axes: Axes, least: float, image_size: int) -> None:
    """Both axes logarithmic, with marks at powers of two and at the input's size."""
    limits = least, image_size * 1.1
    axes.set(xscale="log", yscale="log", xlim=limits, ylim=limits, aspect="equal")
    axes.set(title=f"shapes at {image_size} x {image_size}", xlabel="width, pixels", ylabel="height, pixels")
    ticks = [*(side for side in (2, 4, *SIZE_LIMITS) if least <= side <= 0.8 * image_size), image_size]
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_ticks([], minor=True)
        axis.set_ticks(ticks, [str(side) for side in ticks])


def _least_side(objects: Objects, shapes: np.ndarray) -> float:
    """Where the axes start, in pixels: below nearly all objects and all shapes [K, 2] of default boxes."""
    sides = np.concatenate((objects.widths, objects.heights, shapes.min(axis=0)))
    return float(np.clip(np.percentile(sides, 0.5), 1.0, shapes.min() / 2))


def _centred_iou(sides: np.ndarray, shapes: np.ndarray) -> np.ndarray:
    """[height, width]: highest IoU of a box of these sides [G] with any of the shapes [K, 2] around the same centre."""
    shared = np.minimum(sides[:, None], shapes[:, 0]), np.minimum(sides[:, None], shapes[:, 1])
    shared = shared[1][:, None] * shared[0][None]  # [G, G, K]
    areas = sides[:, None] * sides[None]
    return (shared / (areas[..., None] + shapes.prod(axis=1) - shared)).max(axis=-1)


def _plot_fit(axes: Axes, rows: Sequence[SizeRow]) -> None:
    places = range(len(rows))
    fitting, objects = (np.array([getattr(row, name) for row in rows]) for name in ("fitting", "objects"))
    axes.bar(places, fitting, label=f"IoU >= {MATCH_IOU}", color="tab:green")
    bars = axes.bar(places, objects - fitting, bottom=fitting, label="below", color="tab:orange")
    axes.bar_label(bars, [f"{row.fitting / row.objects:.0%}" if row.objects else "" for row in rows], padding=2)
    axes.set_xticks(places, [interval(row) for row in rows])
    axes.set_ylim(0, 1.1 * max(1, *objects.tolist()) if len(rows) else 1)
    axes.set(
        title=f"objects with a default box that fits, of {objects.sum():,}",
        xlabel="side, sqrt(area), pixels",
        ylabel="objects",
    )
    axes.legend()


def _colour(label: int) -> tuple[float, float, float]:
    return tuple(value / 255 for value in label_colour(label))
