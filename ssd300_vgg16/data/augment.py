"""Training augmentation (Liu et al. 2016, section 2.2 "Data augmentation", and 3.6 for the zoom-out).

Every geometric step is a function of (view, boxes, labels, rng) that returns the new (view, boxes, labels): the view is
a window onto the image, boxes float32 [N, 4] xyxy are in pixels of the image and within it, labels int64 [N], N may be
0. No step writes into its arguments, though what it returns may share memory with them. Colours are drawn first. Pixels
are touched once, after all steps (`seen_pixels`). Ranges are those of the published 25.1 AP recipe.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import cv2
import numpy as np

from ssd300_vgg16 import boxes as box_math
from ssd300_vgg16.data.images import DecodedImage

# Between what the amount of a change is drawn: factors, and of the hue a part of a turn.
AMOUNTS = {"brightness": (0.875, 1.125), "saturation": (0.5, 1.5), "hue": (-0.05, 0.05), "contrast": (0.5, 1.5)}
GREY_WEIGHTS = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601
# Contrast is about the mean grey of the whole image, which is estimated from a 4th of its rows and columns.
SAMPLING = 4

SAME_CHANNELS = (0, 1, 2)


@dataclass(frozen=True)
class Colours:
    """Changes of colour: `changes`, name and amount, in their order; then output channel c is `channels[c]`."""

    changes: tuple[tuple[str, float], ...] = ()
    channels: tuple[int, int, int] = SAME_CHANNELS


def draw_colours(rng: np.random.Generator) -> Colours:
    """Brightness, contrast, saturation, hue and another order of the channels, each with probability 0.5.

    Contrast comes before saturation and hue or, as often, after them.
    """
    chosen = rng.random(6) < 0.5
    names = ["brightness", "saturation", "hue"]
    names.insert(1 if chosen[5] else 3, "contrast")
    changes = [(name, rng.uniform(*AMOUNTS[name])) for name, wanted in zip(names, chosen[:4], strict=True) if wanted]
    channels = tuple(rng.permutation(3).tolist()) if chosen[4] else SAME_CHANNELS
    return Colours(tuple(changes), channels)


def change_colours(part: np.ndarray, colours: Colours, image: np.ndarray) -> np.ndarray:
    """Apply the changes, but for the channels' order, to uint8 [h, w, 3] RGB, a part of an image [H, W, 3].

    The part may have been resized. Neither argument is written to.
    """
    for number, (name, amount) in enumerate(colours.changes):
        if name == "contrast":
            part = adjust_contrast(part, amount, _mean_grey_after(colours.changes[:number], image))
        else:
            part = _ADJUST[name](part, amount)
    return part


def _mean_grey_after(changes: tuple[tuple[str, float], ...], image: np.ndarray) -> float:
    size = tuple(-(-side // SAMPLING) for side in image.shape[1::-1])
    sample = cv2.resize(image, size, interpolation=cv2.INTER_NEAREST)
    for name, amount in changes:
        sample = _ADJUST[name](sample, amount)
    return float(GREY_WEIGHTS @ cv2.mean(sample)[:3])


def adjust_brightness(image: np.ndarray, factor: float) -> np.ndarray:
    """Every value times factor."""
    return _map_values(image, np.arange(256) * factor)


def adjust_contrast(image: np.ndarray, factor: float, grey: float) -> np.ndarray:
    """Blend with a grey, 0..255: factor 0 gives that grey, 1 the image, 2 twice the contrast."""
    return _map_values(image, np.arange(256) * factor + grey * (1 - factor))


def adjust_saturation(image: np.ndarray, factor: float) -> np.ndarray:
    """Blend with the image in grey: 0 gives grey, 1 the image."""
    return cv2.transform(image, factor * np.eye(3) + (1 - factor) * np.tile(GREY_WEIGHTS, (3, 1)))


def adjust_hue(image: np.ndarray, turns: float) -> np.ndarray:
    """Turn the hue; 1 is a whole turn."""
    # In floats: OpenCV's 8-bit HSV moves colours by up to 10 levels and takes longer.
    hsv: np.ndarray = cv2.cvtColor(image.astype(np.float32), cv2.COLOR_RGB2HSV)
    hsv[..., 0] += 360 * (turns % 1)  # never negative: OpenCV's vectorised HSV2RGB gets negative hues wrong
    return cv2.convertScaleAbs(cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB))


def _map_values(image: np.ndarray, new_values: np.ndarray) -> np.ndarray:
    """Replace value v by new_values[v], rounded and clipped to 0..255."""
    return cv2.LUT(image, np.clip(np.rint(new_values), 0, 255).astype(np.uint8))


_ADJUST = {"brightness": adjust_brightness, "saturation": adjust_saturation, "hue": adjust_hue}

# Around an image; about the mean that the network subtracts (variants.PIXEL_MEAN), in whole levels.
FILL_COLOUR = (123, 117, 104)


@dataclass(frozen=True)
class View:
    """What is seen of an image: window, xyxy in whole pixels of the image, then mirrored left and right or not.

    The window may reach beyond the image, where it shows FILL_COLOUR, but has some pixel of it.
    """

    window: tuple[int, ...]
    mirrored: bool = False

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels of the image."""
        left, top, right, bottom = self.window
        return bottom - top, right - left


class _Span(NamedTuple):
    """Along one axis: which pixels of the image are seen, and where, in whole pixels of the network's input."""

    source: slice
    target: slice

    @property
    def scale(self) -> float:
        return (self.target.stop - self.target.start) / (self.source.stop - self.source.start)


def _span(start: int, stop: int, length: int, size: int) -> _Span:
    """A window start..stop on an image of `length` pixels, resized to `size`; what is seen gets at least a pixel."""
    first, last = max(start, 0), min(stop, length)
    # At least a pixel: cv2.resize refuses an empty target, and a crop may show a sliver of the image only.
    low = min(round((first - start) * size / (stop - start)), size - 1)
    high = max(round((last - start) * size / (stop - start)), low + 1)
    return _Span(slice(first, last), slice(low, high))


def _spans(view: View, size_hw: tuple[int, ...], size: int) -> tuple[_Span, _Span]:
    left, top, right, bottom = view.window
    height, width = size_hw
    return _span(top, bottom, height, size), _span(left, right, width, size)


def seen_boxes(boxes: np.ndarray, view: View, size_hw: tuple[int, ...], size: int) -> np.ndarray:
    """Boxes float32 [N, 4] in pixels of an image of this (height, width) -> [N, 4] in those of `seen_pixels`."""
    rows, columns = _spans(view, size_hw, size)
    corner = np.array([columns.source.start, rows.source.start] * 2, dtype=np.float32)
    place = np.array([columns.target.start, rows.target.start] * 2, dtype=np.float32)
    moved = (boxes - corner) * np.array([columns.scale, rows.scale] * 2, dtype=np.float32) + place
    if view.mirrored:
        moved[:, [0, 2]] = size - moved[:, [2, 0]]
    return moved


def seen_pixels(image: np.ndarray, view: View, colours: Colours, out: np.ndarray) -> None:
    """Write the view of an image uint8 [H, W, 3] RGB, with its colours changed, into out, uint8 [3, size, size]."""
    rows, columns = _spans(view, image.shape[:2], out.shape[-1])
    part, place = image[rows.source, columns.source], (rows.target, columns.target)
    shape = (columns.target.stop - columns.target.start, rows.target.stop - rows.target.start)
    # Colours are changed where there are fewer pixels, before or after the resizing.
    grows = shape[0] * shape[1] > part.shape[0] * part.shape[1]
    if grows:
        part = change_colours(part, colours, image)
    part = cv2.resize(part, shape, interpolation=cv2.INTER_LINEAR)
    if not grows:
        part = change_colours(part, colours, image)
    if view.mirrored:
        part = cv2.flip(part, 1)
        place = rows.target, slice(out.shape[-1] - columns.target.stop, out.shape[-1] - columns.target.start)
    # Plane by plane, since the network takes channels first: a transposed copy would touch every pixel once more.
    planes = cv2.split(part)
    if shape != out.shape[1:]:
        out[:] = np.array(FILL_COLOUR, dtype=np.uint8)[:, None, None]
    for channel, plane in zip(out, (planes[source] for source in colours.channels), strict=True):
        channel[place] = plane


Example = tuple[View, np.ndarray, np.ndarray]
Step = Callable[[View, np.ndarray, np.ndarray, np.random.Generator], Example]

MAX_ZOOM_OUT = 4.0  # an area 16 times as large, as in section 3.6

MIN_IOU_OPTIONS = (0.0, 0.1, 0.3, 0.5, 0.7, 0.9, None)  # None: the whole image
CROP_TRIALS = 40
CROP_SCALE = (0.3, 1.0)
CROP_ASPECT = (0.5, 2.0)
# The recipe draws options until one succeeds. "The whole image" always does, so even where no crop fits, as in an image
# one pixel wide, this many draws miss it in 2 of 10000 cases only.
MAX_OPTION_DRAWS = 55
STAND_IN = -1  # the label of what an image without objects is cropped by


@dataclass(frozen=True)
class Policy:
    """Whether colours are distorted, which comes first, and the geometric steps in their order."""

    distorts_colours: bool
    steps: tuple[Step, ...]

    def min_side(self, size: int) -> int:
        """Pixels that each side of an image needs, so that even the smallest crop has `size` of them."""
        return math.ceil(size / (CROP_SCALE[0] if iou_crop in self.steps else 1))


def augment(
    decoded: DecodedImage,
    boxes: np.ndarray,
    labels: np.ndarray,
    rng: np.random.Generator,
    policy: str,
    out: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Apply one of `POLICIES` to an image, and write what the network sees of it into out, uint8 [3, size, size].

    boxes float32 [N, 4] xyxy in pixels of the file and within it, labels int64 [N] -> boxes [M, 4] in pixels of out,
    and their labels [M]. The outcome depends on the arguments and the state of rng alone, and what is drawn does not
    depend on the factor that it was reduced by. An image without boxes is cropped as one with a box of drawn place and
    size is.
    """
    image = decoded.pixels
    colours = draw_colours(rng) if POLICIES[policy].distorts_colours else Colours()
    if not len(boxes):
        boxes, labels = _stand_in(decoded.size, rng), np.full(1, STAND_IN)
    view, boxes, labels = draw_view(decoded.size, boxes, labels, rng, policy)
    # The same view of the image with its sides reduced, to the next whole pixel of it.
    view = replace(view, window=tuple(round(side / decoded.factor) for side in view.window))
    boxes = boxes / np.float32(decoded.factor)
    seen_pixels(image, view, colours, out)
    boxes = seen_boxes(boxes, view, image.shape[:2], out.shape[-1])
    # float32 may leave nothing of a box that is very thin, and the offsets to a default box take its logarithm.
    keep = (box_math.area(boxes) > 0) & (labels != STAND_IN)
    return boxes[keep], labels[keep]


def draw_view(
    size_hw: tuple[int, int], boxes: np.ndarray, labels: np.ndarray, rng: np.random.Generator, policy: str
) -> Example:
    """A view of an image of this (height, width) by one of `POLICIES`, with the boxes [M, 4] and labels [M] in it."""
    height, width = size_hw
    view = View((0, 0, width, height))
    for step in POLICIES[policy].steps:
        view, boxes, labels = step(view, boxes, labels, rng)
    return view, boxes, labels


def _stand_in(size_hw: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """A box float32 [1, 4] anywhere in an image of this (height, width), of a tenth of its sides to all."""
    height, width = size_hw
    sides = rng.uniform(0.1, 1.0, 2) * (width, height)
    corner = rng.random(2) * ((width, height) - sides)
    return np.concatenate((corner, corner + sides), dtype=np.float32)[None]


def zoom_out(view: View, boxes: np.ndarray, labels: np.ndarray, rng: np.random.Generator) -> Example:
    """With probability 0.5, see the image somewhere on a canvas of 1 to 4 times its sides."""
    if rng.random() >= 0.5:
        return view, boxes, labels
    (left, top, _, _), (height, width) = view.window, view.size
    ratio = rng.uniform(1.0, MAX_ZOOM_OUT)
    canvas_height, canvas_width = int(height * ratio), int(width * ratio)
    top -= int((canvas_height - height) * rng.random())
    left -= int((canvas_width - width) * rng.random())
    return replace(view, window=(left, top, left + canvas_width, top + canvas_height)), boxes, labels


def iou_crop(view: View, boxes: np.ndarray, labels: np.ndarray, rng: np.random.Generator) -> Example:
    """Crop so that some box has at least a drawn IoU with the crop, or keep all that is seen.

    Boxes whose centre is in the crop stay, clipped to it.
    """
    for _ in range(MAX_OPTION_DRAWS):
        min_iou = MIN_IOU_OPTIONS[rng.integers(len(MIN_IOU_OPTIONS))]
        if min_iou is None:
            break
        crop = _find_crop(view, boxes, min_iou, rng)
        if crop is not None:
            limits = crop.astype(boxes.dtype)
            clipped = np.clip(boxes, limits[[0, 1, 0, 1]], limits[[2, 3, 2, 3]])
            keep = _centres_inside(boxes, crop[None])[0] & (box_math.area(clipped) > 0)
            return replace(view, window=tuple(crop.tolist())), clipped[keep], labels[keep]
    return view, boxes, labels


def _find_crop(view: View, boxes: np.ndarray, min_iou: float, rng: np.random.Generator) -> np.ndarray | None:
    """The first crop, xyxy int64 [4], of `CROP_TRIALS` random ones that fits the boxes; None when none does."""
    crops = _random_crops(*view.size, rng) + np.array(view.window[:2] * 2)
    fits = _centres_inside(boxes, crops)
    if min_iou > 0:  # an object that counts has its centre in the crop, so a minimum IoU of 0 still asks for a centre
        fits &= box_math.iou(crops.astype(np.float32), boxes) >= min_iou
    fits = fits.any(axis=1)
    return crops[fits.argmax()] if fits.any() else None


def _random_crops(height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    """Up to `CROP_TRIALS` crops, xyxy int64 [M, 4], of an image; those of a wrong aspect are left out."""
    # All at once: forty calls of numpy for one crop each take far longer than their arithmetic.
    draws = rng.random((CROP_TRIALS, 4))
    whole = np.array([width, height])
    sides = (whole * (CROP_SCALE[0] + (CROP_SCALE[1] - CROP_SCALE[0]) * draws[:, :2])).astype(np.int64)
    corners = ((whole - sides) * draws[:, 2:]).astype(np.int64)
    aspect = sides[:, 0] / np.maximum(sides[:, 1], 1)  # no centre is inside a crop without area, whatever its aspect
    allowed = (aspect >= CROP_ASPECT[0]) & (aspect <= CROP_ASPECT[1])
    return np.concatenate((corners, corners + sides), axis=1)[allowed]


def _centres_inside(boxes: np.ndarray, crops: np.ndarray) -> np.ndarray:
    """bool [M, N]: whether the centre of each of boxes [N, 4] is strictly inside each of crops [M, 4]."""
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    return ((crops[:, None, :2] < centres) & (centres < crops[:, None, 2:])).all(axis=-1)


def horizontal_flip(view: View, boxes: np.ndarray, labels: np.ndarray, rng: np.random.Generator) -> Example:
    """With probability 0.5, mirror left and right."""
    return (replace(view, mirrored=not view.mirrored) if rng.random() < 0.5 else view), boxes, labels


POLICIES = {
    "ssd": Policy(True, (zoom_out, iou_crop, horizontal_flip)),
    "ssdlite": Policy(False, (iou_crop, horizontal_flip)),
    "hflip": Policy(False, (horizontal_flip,)),
    "none": Policy(False, ()),
}
