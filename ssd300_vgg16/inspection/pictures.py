"""Pictures of samples with their boxes, and which samples to show."""

import io
from collections.abc import Mapping

import cv2
import numpy as np
from PIL import Image, ImageDraw

from ssd300_vgg16.data.dataset import Sample
from ssd300_vgg16.draw import draw_detections, label_colour
from ssd300_vgg16.inspection.figures import InputObjects, Marked
from ssd300_vgg16.text import printable

SIDE = 480  # pixels, of the longer side of a picture
DASH = 6
PAPER = (255, 255, 255)
INK = (30, 30, 30)
BEYOND = (128, 128, 128)
MARGIN = 8  # pixels around boxes that reach beyond the image
RING = 14  # pixels around marked boxes that are smaller
LIGHT = 380  # sum of red, green and blue
MAX_NAMES = 15  # of more boxes the names would cover the image: the page explains their colours
MAX_LETTERS = 30  # of such a name


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


def draw_sample(sample: Sample, image: np.ndarray, names: Mapping[int, str]) -> Image.Image:
    """The image, uint8 [H, W, 3], with all boxes of the sample; crowds and difficult objects are dashed.

    names: of classes, by label.
    """
    picture, boxes = _resized(image, sample.boxes)
    dashed = sample.crowd | sample.difficult
    _outline(picture, boxes[dashed], sample.labels[dashed], dashed=True)
    boxes, labels = boxes[~dashed], sample.labels[~dashed]
    if len(labels) > MAX_NAMES:
        _outline(picture, boxes, labels, dashed=False)
        return picture
    tags = [printable(names[label], MAX_LETTERS) for label in labels.tolist()]
    return Image.fromarray(draw_detections(np.array(picture), boxes, None, tags, labels))


def draw_marked(image: np.ndarray, marked: Marked) -> Image.Image:
    """The image, uint8 [H, W, 3], with these boxes alone; around it as much grey as they reach beyond it."""
    height, width = image.shape[:2]
    sides = np.array([width, height] * 2)
    boxes = np.clip(marked.boxes, -sides, 2 * sides)  # not farther than the image is large
    left, top = (round(MARGIN - low) if low < 0 else 0 for low in boxes[:, :2].min(axis=0))
    right, bottom = (round(MARGIN + high) if high > 0 else 0 for high in (boxes[:, 2:] - sides[:2]).max(axis=0))
    padded = cv2.copyMakeBorder(image, top, bottom, left, right, cv2.BORDER_CONSTANT, value=BEYOND)
    picture, boxes = _resized(padded, boxes + np.array([left, top] * 2))
    _outline(picture, boxes, marked.labels, dashed=False)
    for x1, y1, x2, y2 in boxes[(boxes[:, 2:] - boxes[:, :2]).max(axis=1) < RING].tolist():
        around = (x1 - RING, y1 - RING, x2 + RING, y2 + RING)  # or they would be looked for in vain
        ImageDraw.Draw(picture).ellipse(around, outline=PAPER, width=3)
    return picture


def as_jpeg(picture: Image.Image) -> bytes:
    """The picture as a file, small enough for many on a page."""
    content = io.BytesIO()
    picture.save(content, "jpeg", quality=85)
    return content.getvalue()


def _resized(image: np.ndarray, boxes: np.ndarray) -> tuple[Image.Image, np.ndarray]:
    """The image at the size of a picture, and the boxes [N, 4] there."""
    height, width = image.shape[:2]
    scale = SIDE / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    picture = cv2.resize(image, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    return Image.fromarray(picture), boxes * np.array([size[0] / width, size[1] / height] * 2)


def _outline(picture: Image.Image, boxes: np.ndarray, labels: np.ndarray, dashed: bool) -> None:
    """Boxes [N, 4] in pixels of the picture, drawn into it without names; solid ones have a rim that stands out."""
    canvas = ImageDraw.Draw(picture)
    limits = [picture.width - 1, picture.height - 1] * 2
    for box, label in zip(np.clip(np.rint(boxes), 0, limits).astype(int).tolist(), labels.tolist(), strict=True):
        x1, y1, x2, y2 = box[0], box[1], max(box[0], box[2]), max(box[1], box[3])
        colour = label_colour(label)
        if dashed:
            dashes = [((x, y), (min(x + DASH, x2), y)) for y in (y1, y2) for x in range(x1, x2, 2 * DASH)]
            dashes += [((x, y), (x, min(y + DASH, y2))) for x in (x1, x2) for y in range(y1, y2, 2 * DASH)]
            for ends in dashes:
                canvas.line(ends, fill=colour, width=2)
        else:
            rim = INK if sum(colour) > LIGHT else PAPER
            canvas.rectangle((x1 - 1, y1 - 1, x2 + 1, y2 + 1), outline=rim)
            canvas.rectangle((x1, y1, x2, y2), outline=colour, width=2)
