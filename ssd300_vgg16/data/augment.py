"""Training augmentation (Liu et al. 2016, section 2.2 "Data augmentation", and 3.6 for the zoom-out).

Every geometric step is a function of (view, boxes, labels, rng) that returns the new (view, boxes, labels): the view is
a window onto the image, boxes float32 [N, 4] xyxy are in pixels of the image and within it, labels int64 [N], N may be
0. No step writes into its arguments, though what it returns may share memory with them. Pixels are touched once, after
all steps (`seen_pixels`). Ranges are those of the published 25.1 AP recipe.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import cv2
import numpy as np

from ssd300_vgg16 import boxes as box_math
from ssd300_vgg16.data.colour import Colours, change_colours, draw_colours
from ssd300_vgg16.data.images import DecodedImage
from ssd300_vgg16.errors import UserError

# Around an image; about the mean that the network subtracts (variants.PIXEL_MEAN), in whole levels.
FILL_COLOUR = (123, 117, 104)


@dataclass(frozen=True)
class View:
    """What is seen of an image: window, xyxy in whole pixels of the image, then mirrored left and right or not.

    The window may reach beyond the image, where it shows FILL_COLOUR, but has some pixel of it.
    """

    window: tuple[int, int, int, int]
    mirrored: bool = False

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels of the image."""
        left, top, right, bottom = self.window
        return bottom - top, right - left

    def reduced(self, factor: int) -> "View":
        """The same view of the image with sides `factor` times smaller, to the next whole pixel of it."""
        left, top, right, bottom = (round(side / factor) for side in self.window)
        return replace(self, window=(left, top, right, bottom))


def whole(size: tuple[int, int]) -> View:
    """The view of all of an image of this (height, width)."""
    return View((0, 0, size[1], size[0]))


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


def _spans(view: View, image: np.ndarray, size: int) -> tuple[_Span, _Span]:
    left, top, right, bottom = view.window
    height, width = image.shape[:2]
    return _span(top, bottom, height, size), _span(left, right, width, size)


def seen_boxes(boxes: np.ndarray, view: View, image: np.ndarray, size: int) -> np.ndarray:
    """Boxes float32 [N, 4] in pixels of the image [H, W, 3] -> [N, 4] in those of `seen_pixels`."""
    rows, columns = _spans(view, image, size)
    corner = np.array([columns.source.start, rows.source.start] * 2, dtype=np.float32)
    place = np.array([columns.target.start, rows.target.start] * 2, dtype=np.float32)
    moved = (boxes - corner) * np.array([columns.scale, rows.scale] * 2, dtype=np.float32) + place
    if view.mirrored:
        moved[:, [0, 2]] = size - moved[:, [2, 0]]
    return moved


def seen_pixels(image: np.ndarray, view: View, colours: Colours, out: np.ndarray) -> None:
    """Write the view of an image uint8 [H, W, 3] RGB, with its colours changed, into out, uint8 [3, size, size]."""
    rows, columns = _spans(view, image, out.shape[-1])
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
    depend on the factor that it was reduced by. Raises UserError for an unknown policy.
    """
    chosen, image = policy_of(policy), decoded.pixels
    colours = draw_colours(rng) if chosen.distorts_colours else Colours()
    view = whole(decoded.size)
    for step in chosen.steps:
        view, boxes, labels = step(view, boxes, labels, rng)
    view, boxes = view.reduced(decoded.factor), boxes / np.float32(decoded.factor)
    seen_pixels(image, view, colours, out)
    boxes = seen_boxes(boxes, view, image, out.shape[-1])
    # float32 may leave nothing of a box that is very thin, and the offsets to a default box take its logarithm.
    keep = box_math.area(boxes) > 0
    return boxes[keep], labels[keep]


def policy_of(name: str) -> Policy:
    """The policy of that name. Raises UserError if there is none."""
    if name not in POLICIES:
        raise UserError(f"unknown augmentation {name!r}: choose one of {', '.join(POLICIES)}")
    return POLICIES[name]


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

    Boxes whose centre is in the crop stay, clipped to it. A view without boxes stays as it is.
    """
    if not len(boxes):
        return view, boxes, labels
    for _ in range(MAX_OPTION_DRAWS):
        min_iou = MIN_IOU_OPTIONS[rng.integers(len(MIN_IOU_OPTIONS))]
        if min_iou is None:
            break
        crop = _find_crop(view, boxes, min_iou, rng)
        if crop is not None:
            return _cut(view, boxes, labels, crop)
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


def _cut(view: View, boxes: np.ndarray, labels: np.ndarray, crop: np.ndarray) -> Example:
    limits = crop.astype(boxes.dtype)
    clipped = np.clip(boxes, limits[[0, 1, 0, 1]], limits[[2, 3, 2, 3]])
    keep = _centres_inside(boxes, crop[None])[0] & (box_math.area(clipped) > 0)
    return replace(view, window=tuple(crop.tolist())), clipped[keep], labels[keep]


def horizontal_flip(view: View, boxes: np.ndarray, labels: np.ndarray, rng: np.random.Generator) -> Example:
    """With probability 0.5, mirror left and right."""
    return (replace(view, mirrored=not view.mirrored) if rng.random() < 0.5 else view), boxes, labels


POLICIES = {
    "ssd": Policy(True, (zoom_out, iou_crop, horizontal_flip)),
    "ssdlite": Policy(False, (iou_crop, horizontal_flip)),
    "hflip": Policy(False, (horizontal_flip,)),
    "none": Policy(False, ()),
}
