"""Detections and ground truth drawn into an image."""

import colorsys
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ssd300_vgg16 import boxes as box_math
from ssd300_vgg16 import fonts

Colour = tuple[int, int, int]

LINE_WIDTH = 1 / 220  # of the image's size, the square root of its area
FONT_SIZE = 1 / 40
CROWD = 32  # boxes: of more than these, lines and tags are smaller, and leave something of the image to be seen
MIN_FONT = 11  # in pixels
MIN_LEGIBLE_FONT = 7  # only for a tag that would not fit into the image otherwise
# Hues that are steps of the golden ratio apart never come round to one another; with three lightnesses in turn,
# neighbours differ in brightness too.
GOLDEN_RATIO = 0.6180339887
LIGHTNESS = (0.36, 0.5, 0.68)


def draw_detections(
    image: np.ndarray, boxes: np.ndarray, scores: np.ndarray | None, names: Sequence[str], labels: np.ndarray
) -> np.ndarray:
    """A copy of image, uint8 [H, W, 3] RGB, with boxes [N, 4] xyxy in its pixels, each with a tag like "dog 87%".

    scores: [N] in 0..1, or None for ground truth, whose tags are the names alone; names: N strings; labels: int [N],
    which give the colours. The best scores lie on top; without scores, the smallest boxes. Boxes are cut at the border
    and left out where nothing remains; tags are always inside, and left out only where the image is too small.
    """
    height, width = image.shape[:2]
    clipped = box_math.clip(np.asarray(boxes, dtype=np.float64).reshape(-1, 4), height, width)
    areas = box_math.area(clipped)
    ranks = np.argsort(-areas if scores is None else scores, kind="stable")
    shown = [int(index) for index in ranks if areas[index] > 0]
    colours = {index: label_colour(int(labels[index])) for index in shown}
    texts = {index: names[index] if scores is None else f"{names[index]} {scores[index]:.0%}" for index in shown}

    scale = np.sqrt(height * width * min(1, CROWD / max(1, len(shown))))
    picture = Image.fromarray(image)
    canvas = ImageDraw.Draw(picture)
    for index in shown:
        _draw_box(canvas, clipped[index], colours[index], picture.size, scale)
    # After all boxes, which would be drawn across them.
    for index, place, font in _arrange_tags(clipped, texts, picture.size, scale):
        _draw_tag(canvas, place, texts[index], font, colours[index])
    return np.array(picture)


def label_colour(label: int) -> Colour:
    """RGB 0..255 of a class: always the same, and unlike that of its neighbours."""
    red, green, blue = colorsys.hls_to_rgb(label * GOLDEN_RATIO % 1, LIGHTNESS[label % len(LIGHTNESS)], 0.9)
    return round(255 * red), round(255 * green), round(255 * blue)


def _draw_box(
    canvas: ImageDraw.ImageDraw, box: np.ndarray, colour: Colour, size: tuple[int, int], scale: float
) -> None:
    width, height = size
    line = max(1, round(LINE_WIDTH * scale))
    x1, y1, x2, y2 = np.rint(box).astype(int).tolist()
    x1, y1 = min(x1, width - 1), min(y1, height - 1)
    x2, y2 = max(x1, x2 - 1), max(y1, y2 - 1)
    rim = max(1, line // 4)  # of black or white outside the line, for where the image has its colour
    canvas.rectangle((x1 - rim, y1 - rim, x2 + rim, y2 + rim), outline=_text_colour(colour), width=rim)
    canvas.rectangle((x1, y1, x2, y2), outline=colour, width=line)


def _arrange_tags(
    boxes: np.ndarray, texts: dict[int, str], size: tuple[int, int], scale: float
) -> list[tuple[int, np.ndarray, ImageFont.FreeTypeFont]]:
    """Index, place and font of the tags, in the order of texts."""
    tags = []
    taken = np.zeros((0, 4), dtype=np.int64)
    for index in reversed(texts):  # the last, which lies on top, has the first choice of its place
        font = _fitting_font(texts[index], size, scale)
        if font is not None:
            place = _free_place(boxes[index], _tag_size(texts[index], font), taken, size)
            taken = np.concatenate((taken, place[None]))
            tags.append((index, place, font))
    return tags[::-1]


def _free_place(box: np.ndarray, tag_size: tuple[int, int], taken: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Where the tag goes, xyxy int64 [4], inside the image: at the box's top, if possible clear of those taken."""
    x1, y1, x2, y2 = np.rint(box).astype(np.int64)
    width, height = tag_size
    above, inside = (x1, y1 - height), (x1, y1)
    preferred = [above, inside] if y1 >= height else [inside]
    others = [(x2 - width, y1 - height), (x2 - width, y1), (x1, y2), (x1, y2 - height)]
    corners = np.clip(preferred + others, 0, np.array(size) - tag_size)
    places = np.concatenate((corners, corners + tag_size), axis=1)
    free = ~box_math.intersection(places, taken).any(axis=1)
    return places[np.argmax(free)]  # the preferred one where none is free


def _fitting_font(text: str, size: tuple[int, int], scale: float) -> ImageFont.FreeTypeFont | None:
    """The font for an image of this width and height, smaller if the tag asks for it; None if illegibly small."""
    font_size = max(MIN_FONT, round(FONT_SIZE * scale))
    for candidate in range(font_size, MIN_LEGIBLE_FONT - 1, -1):
        font = fonts.font_of(candidate)
        if all(tag <= side for tag, side in zip(_tag_size(text, font), size, strict=True)):
            return font
    return None


def _padding(font: ImageFont.FreeTypeFont) -> int:
    return max(1, round(font.size / 4))


def _tag_size(text: str, font: ImageFont.FreeTypeFont) -> tuple[int, int]:
    ascent, descent = font.getmetrics()
    return int(np.ceil(fonts.length(text, font))) + 2 * _padding(font), ascent + descent


def _draw_tag(
    canvas: ImageDraw.ImageDraw, place: np.ndarray, text: str, font: ImageFont.FreeTypeFont, colour: Colour
) -> None:
    x1, y1, x2, y2 = place.tolist()
    canvas.rectangle((x1, y1, x2 - 1, y2 - 1), fill=colour)
    fonts.write(canvas, (x1 + _padding(font), y1), text, font, _text_colour(colour))


def _text_colour(background: Colour) -> Colour:
    """Black or white, whichever stands out more (contrast ratio of WCAG 2)."""
    linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in np.array(background) / 255]
    luminance = float(np.dot(linear, (0.2126, 0.7152, 0.0722)))
    return (0, 0, 0) if (luminance + 0.05) / 0.05 > 1.05 / (luminance + 0.05) else (255, 255, 255)
