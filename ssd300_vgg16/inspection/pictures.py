"""Pictures of a data set: its figures, and a sheet of samples with their boxes."""

import io
import warnings
from collections.abc import Mapping, Sequence

import cv2
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from PIL import Image, ImageDraw

from ssd300_vgg16 import fonts
from ssd300_vgg16.boxes import xyxy_to_cxcywh
from ssd300_vgg16.data.dataset import Sample
from ssd300_vgg16.data.matching import MATCH_IOU
from ssd300_vgg16.draw import Colour, draw_detections, label_colour
from ssd300_vgg16.inspection.figures import SIZE_LIMITS, Candidate, ClassCount, InputObjects, SizeRow
from ssd300_vgg16.inspection.report import MAX_LETTERS, interval
from ssd300_vgg16.text import printable

MAX_CLASSES = 40
MAX_OBJECTS = 4000
GRID = 160  # points along each axis, to find where default boxes fit


def plot_inspection(
    classes: Sequence[ClassCount],
    objects: InputObjects,
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
    figure.suptitle(_literal(fonts.drawable(title)), fontfamily=fonts.family_names(title) or None)
    return figure


def png_of(figure: Figure) -> bytes:
    """The figure as PNG; letters that its font does not have become boxes, without a warning for each."""
    content = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        figure.savefig(content, format="png", dpi=100)
    return content.getvalue()


def _literal(text: str) -> str:
    """Text as it is: matplotlib takes what is between dollar signs for formulas."""
    return text.replace("$", r"\$")


def _plot_classes(axes: Axes, classes: Sequence[ClassCount]) -> None:
    shown = [row for row in classes if row.objects][:MAX_CLASSES]
    colours = [_colour(row.label) for row in shown]
    places = range(len(shown))
    bars = axes.barh(places, [row.objects for row in shown], color=colours)
    font = 10 if len(shown) <= 20 else 7
    axes.bar_label(bars, [f"{row.objects:,}" for row in shown], padding=3, fontsize=font)
    names = [printable(row.name, MAX_LETTERS) for row in shown]
    axes.set_yticks(places, [_literal(fonts.drawable(name)) for name in names], fontsize=font)
    for tick, name in zip(axes.get_yticklabels(), names, strict=True):
        if families := fonts.family_names(name):
            tick.set_fontfamily(families)
    axes.invert_yaxis()
    axes.margins(x=0.15, y=0.02)
    more = f" ({len(shown)} of {len(classes)} classes)" if len(shown) < len(classes) else ""
    axes.set(title=f"objects of each class{more}", xlabel="objects")


def _plot_shapes(axes: Axes, objects: InputObjects, candidate: Candidate) -> None:
    image_size = candidate.image_size
    rows = np.random.default_rng(0).permutation(len(objects))[:MAX_OBJECTS]
    shapes = np.unique(np.rint(xyxy_to_cxcywh(candidate.default_boxes)[:, 2:] * 10) / 10, axis=0)
    least = _min_side(objects, shapes)
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
    handles = [
        Line2D([], [], linestyle="", color="dimgrey", marker="o", label=f"objects ({some}), in their classes' colours"),
        Line2D([], [], linestyle="", color="dimgrey", marker="+", label="default boxes"),
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


def _min_side(objects: InputObjects, shapes: np.ndarray) -> float:
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
    red, green, blue = label_colour(label)
    return red / 255, green / 255, blue / 255


CELL = 420  # pixels of the sheet, along each side of a sample
CAPTION = 22
GAP = 10
FONT_SIZE = 13
DASH = 6
PAPER = (255, 255, 255)
EMPTY = (225, 225, 225)
INK = (30, 30, 30)
LIGHT = 380  # sum of red, green and blue
# Of more boxes the names would cover the image: their colours are explained below the sheet.
MAX_NAMES = 15


def choose_samples(objects: InputObjects, samples: int, count: int, seed: int) -> list[int]:
    """Indices of `count` of the samples, or all of them: first those that show the most classes not yet seen.

    When every class has been seen, the rest is drawn at random. The same arguments give the same indices.
    """
    order = np.random.default_rng(seed).permutation(samples)
    place_of = np.argsort(order)
    pairs = np.unique(np.stack((place_of[objects.images], objects.labels)), axis=1)
    chosen: list[int] = []
    while pairs.size and len(chosen) < count:
        chosen.append(int(np.bincount(pairs[0]).argmax()))
        seen = pairs[1, pairs[0] == chosen[-1]]
        pairs = pairs[:, ~np.isin(pairs[1], seen)]
    rest = [place for place in range(min(samples, 2 * count)) if place not in chosen]
    return [int(order[place]) for place in (chosen + rest)[:count]]


def draw_sheet(samples: Sequence[Sample], images: Sequence[np.ndarray | None], names: Mapping[int, str]) -> Image.Image:
    """The samples in rows, each with its file's name, size and boxes; below, the colours of the classes.

    images: their pixels, uint8 [H, W, 3], None where the file could not be read; names: of classes, by label.
    Crowds and difficult objects are dashed. Columns are CELL pixels wide, rows as high as their highest image.
    """
    columns = min(len(samples), int(np.ceil(np.sqrt(len(samples) * 4 / 3))))
    cells = [_cell(sample, image, names) for sample, image in zip(samples, images, strict=True)]
    rows = [_row(cells[start : start + columns], columns) for start in range(0, len(cells), columns)]
    parts = [*rows, _legend(samples, names, rows[0].width)]
    sheet = Image.new("RGB", (rows[0].width + 2 * GAP, sum(part.height + GAP for part in parts) + GAP), PAPER)
    top = GAP
    for part in parts:
        sheet.paste(part, (GAP, top))
        top += part.height + GAP
    return sheet


def _row(cells: Sequence[Image.Image], columns: int) -> Image.Image:
    row = Image.new("RGB", (columns * (CELL + GAP) - GAP, max(cell.height for cell in cells)), PAPER)
    for column, cell in enumerate(cells):
        row.paste(cell, (column * (CELL + GAP), 0))
    return row


def _cell(sample: Sample, image: np.ndarray | None, names: Mapping[int, str]) -> Image.Image:
    """The image below its file's name; where there is none, a grey place."""
    if image is None:
        shown, text = Image.new("RGB", (CELL, CELL // 2), EMPTY), "cannot be read"
    else:
        shown, count = _annotated(sample, image, names), len(sample.labels)
        text = f"{image.shape[1]} x {image.shape[0]}, {count} object{'s' * (count != 1)}"
    cell = Image.new("RGB", (CELL, CAPTION + shown.height), PAPER)
    cell.paste(shown, (0, CAPTION))
    _write(cell, (0, 2), f"{printable(sample.path.name, MAX_LETTERS)}   {text}")
    return cell


def _annotated(sample: Sample, image: np.ndarray, names: Mapping[int, str]) -> Image.Image:
    """The image as large as the cell allows, with its boxes."""
    height, width = image.shape[:2]
    scale = CELL / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    shrunk = cv2.resize(image, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    boxes = sample.boxes * np.array([size[0] / width, size[1] / height] * 2)
    picture = Image.fromarray(shrunk)
    dashed = sample.crowd | sample.difficult
    _outline(picture, boxes[dashed], sample.labels[dashed], dashed=True)
    boxes, labels = boxes[~dashed], sample.labels[~dashed]
    if len(labels) > MAX_NAMES:
        _outline(picture, boxes, labels, dashed=False)
        return picture
    tags = [printable(names[label], MAX_LETTERS) for label in labels.tolist()]
    return Image.fromarray(draw_detections(np.array(picture), boxes, None, tags, labels))


def _outline(picture: Image.Image, boxes: np.ndarray, labels: np.ndarray, dashed: bool) -> None:
    """Boxes [N, 4] in pixels of the picture, drawn into it without names; solid ones have a rim that stands out."""
    canvas = ImageDraw.Draw(picture)
    limits = [picture.width - 1, picture.height - 1] * 2
    for box, label in zip(np.clip(np.rint(boxes), 0, limits).tolist(), labels.tolist(), strict=True):
        x1, y1, x2, y2 = box[0], box[1], max(box[0], box[2]), max(box[1], box[3])
        colour = label_colour(label)
        if dashed:
            _dash(canvas, (x1, y1, x2, y2), colour)
        else:
            rim = INK if sum(colour) > LIGHT else PAPER
            canvas.rectangle((x1 - 1, y1 - 1, x2 + 1, y2 + 1), outline=rim)
            canvas.rectangle((x1, y1, x2, y2), outline=colour, width=2)


def _dash(canvas: ImageDraw.ImageDraw, box: tuple[float, float, float, float], colour: Colour) -> None:
    x1, y1, x2, y2 = box
    for start in np.arange(x1, x2, 2 * DASH).tolist():
        for y in (y1, y2):
            canvas.line([(start, y), (min(start + DASH, x2), y)], fill=colour, width=2)
    for start in np.arange(y1, y2, 2 * DASH).tolist():
        for x in (x1, x2):
            canvas.line([(x, start), (x, min(start + DASH, y2))], fill=colour, width=2)


def _legend(samples: Sequence[Sample], names: Mapping[int, str], width: int) -> Image.Image:
    """The classes of these samples with their colours, in as many lines as the width asks for."""
    labels = np.unique(np.concatenate([sample.labels for sample in samples])).tolist()
    entries, x, y = [], 0, 0
    for label in labels:
        length = round(fonts.length(printable(names[label], MAX_LETTERS), fonts.font_of(FONT_SIZE))) + 2 * CAPTION
        if x and x + length > width:
            x, y = 0, y + CAPTION
        entries.append((label, x, y))
        x += length
    legend = Image.new("RGB", (width, y + CAPTION), PAPER)
    canvas = ImageDraw.Draw(legend)
    for label, x, y in entries:
        canvas.rectangle((x, y + 3, x + CAPTION - 6, y + CAPTION - 3), fill=label_colour(label))
        _write(legend, (x + CAPTION, y + 2), printable(names[label], MAX_LETTERS))
    return legend


def _write(picture: Image.Image, corner: tuple[int, int], text: str) -> None:
    fonts.write(ImageDraw.Draw(picture), corner, text, fonts.font_of(FONT_SIZE), INK)
