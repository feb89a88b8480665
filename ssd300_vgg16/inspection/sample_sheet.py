"""A sheet of sample images with their ground truth."""

from collections.abc import Mapping, Sequence
from functools import cache

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ssd300_vgg16.data.dataset import Sample
from ssd300_vgg16.draw import FONT_FILE, Colour, draw_detections, label_colour
from ssd300_vgg16.inspection.figures import Objects
from ssd300_vgg16.inspection.text import plain

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
MOST_NAMES = 15


def choose_samples(objects: Objects, samples: int, count: int, seed: int) -> list[int]:
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
    ImageDraw.Draw(cell).text((0, 2), f"{plain(sample.path.name)}   {text}", fill=INK, font=_font())
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
    if len(labels) > MOST_NAMES:
        _outline(picture, boxes, labels, dashed=False)
        return picture
    tags = [plain(names[label]) for label in labels.tolist()]
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
        length = round(_font().getlength(plain(names[label]))) + 2 * CAPTION
        if x and x + length > width:
            x, y = 0, y + CAPTION
        entries.append((label, x, y))
        x += length
    legend = Image.new("RGB", (width, y + CAPTION), PAPER)
    canvas = ImageDraw.Draw(legend)
    for label, x, y in entries:
        canvas.rectangle((x, y + 3, x + CAPTION - 6, y + CAPTION - 3), fill=label_colour(label))
        canvas.text((x + CAPTION, y + 2), plain(names[label]), fill=INK, font=_font())
    return legend


@cache
def _font() -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(FONT_FILE, FONT_SIZE)
