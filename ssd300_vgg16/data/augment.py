"""Training augmentation (Liu et al. 2016, section 2.2 "Data augmentation", and 3.6 for the zoom-out).

Every step is a function of (image, boxes, labels, rng) that returns the new (image, boxes, labels):
image uint8 [H, W, 3] RGB, boxes float32 [N, 4] xyxy in pixels, labels int64 [N], N may be 0. No step writes into its
arguments, though what it returns may share memory with them. Ranges are those of the published 25.1 AP recipe.
"""

from collections.abc import Callable

import cv2
import numpy as np

from ssd300_vgg16 import boxes as box_math
from ssd300_vgg16.errors import UserError

Example = tuple[np.ndarray, np.ndarray, np.ndarray]
Step = Callable[[np.ndarray, np.ndarray, np.ndarray, np.random.Generator], Example]

BRIGHTNESS = (0.875, 1.125)
CONTRAST = (0.5, 1.5)
SATURATION = (0.5, 1.5)
HUE = (-0.05, 0.05)  # of a turn
GREY_WEIGHTS = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601

PIXEL_MEAN = (123, 117, 104)
MAX_ZOOM_OUT = 4.0

MIN_IOU_OPTIONS = (0.0, 0.1, 0.3, 0.5, 0.7, 0.9, None)  # None: the whole image
CROP_TRIALS = 40
CROP_SCALE = (0.3, 1.0)
CROP_ASPECT = (0.5, 2.0)
# The recipe draws options until one succeeds. "The whole image" always does, so even where no crop fits, as in an image
# one pixel wide, this many draws miss it in 2 of 10000 cases only.
MAX_OPTION_DRAWS = 55


def augment(image: np.ndarray, boxes: np.ndarray, labels: np.ndarray, rng: np.random.Generator, policy: str) -> Example:
    """Apply the steps of a policy, one of `POLICIES`, in their order.

    image uint8 [H, W, 3] RGB, boxes float32 [N, 4] xyxy in pixels, labels int64 [N] -> the same for the new image.
    The outcome depends on the arguments and the state of rng alone. Raises UserError for an unknown policy.
    """
    if policy not in POLICIES:
        raise UserError(f"unknown augmentation {policy!r}: choose one of {', '.join(POLICIES)}")
    for step in POLICIES[policy]:
        image, boxes, labels = step(image, boxes, labels, rng)
    return image, boxes, labels


def resize(image: np.ndarray, boxes: np.ndarray, size: int = 300) -> tuple[np.ndarray, np.ndarray]:
    """Image [H, W, 3] and its boxes [N, 4] -> [size, size, 3] and boxes in its pixels; the aspect is not kept."""
    height, width = image.shape[:2]
    scale = np.array([size / width, size / height] * 2, dtype=np.float32)
    return cv2.resize(image, (size, size), interpolation=cv2.INTER_LINEAR), boxes * scale


def photometric_distortion(
    image: np.ndarray, boxes: np.ndarray, labels: np.ndarray, rng: np.random.Generator
) -> Example:
    """Change brightness, contrast, saturation, hue and the order of the channels, each with probability 0.5.

    Contrast comes before saturation and hue or, as often, after them.
    """
    chosen = rng.random(5) < 0.5
    contrast_first = rng.random() < 0.5
    steps = [(adjust_brightness, BRIGHTNESS), (adjust_saturation, SATURATION), (adjust_hue, HUE)]
    steps.insert(1 if contrast_first else 3, (adjust_contrast, CONTRAST))
    for (adjust, bounds), wanted in zip(steps, chosen[:4], strict=True):
        if wanted:
            image = adjust(image, rng.uniform(*bounds))
    if chosen[4]:
        image = cv2.transform(image, np.eye(3)[rng.permutation(3)])
    return image, boxes, labels


def adjust_brightness(image: np.ndarray, factor: float) -> np.ndarray:
    """Every value times factor."""
    return _map_values(image, np.arange(256) * factor)


def adjust_contrast(image: np.ndarray, factor: float) -> np.ndarray:
    """Blend with one grey, the mean of the image in grey: 0 gives that grey, 1 the image, 2 twice the contrast."""
    mean = float(GREY_WEIGHTS @ cv2.mean(image)[:3])
    return _map_values(image, np.arange(256) * factor + mean * (1 - factor))


def adjust_saturation(image: np.ndarray, factor: float) -> np.ndarray:
    """Blend with the image in grey: 0 gives grey, 1 the image."""
    return cv2.transform(image, factor * np.eye(3) + (1 - factor) * np.tile(GREY_WEIGHTS, (3, 1)))


def adjust_hue(image: np.ndarray, turns: float) -> np.ndarray:
    """Turn the hue; 1 is a whole turn."""
    # In floats: OpenCV's 8-bit HSV moves colours by up to 10 levels and takes longer.
    hsv = cv2.cvtColor(image.astype(np.float32), cv2.COLOR_RGB2HSV)
    hsv[..., 0] += 360 * (turns % 1)  # never negative: OpenCV's vectorised HSV2RGB gets negative hues wrong
    return cv2.convertScaleAbs(cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB))


def _map_values(image: np.ndarray, new_values: np.ndarray) -> np.ndarray:
    """Replace value v by new_values[v], rounded and clipped to 0..255."""
    return cv2.LUT(image, np.clip(np.rint(new_values), 0, 255).astype(np.uint8))


def zoom_out(image: np.ndarray, boxes: np.ndarray, labels: np.ndarray, rng: np.random.Generator) -> Example:
    """With probability 0.5, put the image somewhere on a canvas of 1 to 4 times its sides, filled with the mean."""
    if rng.random() >= 0.5:
        return image, boxes, labels
    height, width = image.shape[:2]
    ratio = rng.uniform(1.0, MAX_ZOOM_OUT)
    spare_height, spare_width = int(height * ratio) - height, int(width * ratio) - width
    top, left = int(spare_height * rng.random()), int(spare_width * rng.random())
    bottom, right = spare_height - top, spare_width - left
    canvas = cv2.copyMakeBorder(image, top, bottom, left, right, cv2.BORDER_CONSTANT, value=PIXEL_MEAN)
    return canvas, boxes + np.array([left, top, left, top], dtype=boxes.dtype), labels


def iou_crop(image: np.ndarray, boxes: np.ndarray, labels: np.ndarray, rng: np.random.Generator) -> Example:
    """Crop so that some box has at least a drawn IoU with the crop, or keep the whole image.

    Boxes whose centre is in the crop stay, clipped to it. An image without boxes stays whole.
    """
    if not len(boxes):
        return image, boxes, labels
    for _ in range(MAX_OPTION_DRAWS):
        min_iou = MIN_IOU_OPTIONS[rng.integers(len(MIN_IOU_OPTIONS))]
        if min_iou is None:
            break
        crop = _find_crop(image.shape[0], image.shape[1], boxes, min_iou, rng)
        if crop is not None:
            return _cut(image, boxes, labels, crop)
    return image, boxes, labels


def _find_crop(
    height: int, width: int, boxes: np.ndarray, min_iou: float, rng: np.random.Generator
) -> np.ndarray | None:
    """The first crop, xyxy int64 [4], of `CROP_TRIALS` random ones that fits the boxes; None when none does."""
    crops = _random_crops(height, width, rng)
    inside = _centres_inside(boxes, crops)
    overlap = box_math.iou(crops.astype(np.float32), boxes)
    # An object that counts has its centre in the crop, so a least IoU of 0 still asks for a centre.
    fits = (inside & (overlap >= min_iou)).any(axis=1)
    return crops[np.argmax(fits)] if fits.any() else None


def _random_crops(height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    """Up to `CROP_TRIALS` crops, xyxy int64 [M, 4], of an image; those of a wrong aspect are left out."""
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


def _cut(image: np.ndarray, boxes: np.ndarray, labels: np.ndarray, crop: np.ndarray) -> Example:
    left, top, right, bottom = crop
    corner = np.array([left, top, left, top], dtype=boxes.dtype)
    moved = box_math.clip(boxes - corner, bottom - top, right - left)
    keep = _centres_inside(boxes, crop[None])[0] & (box_math.area(moved) > 0)
    return image[top:bottom, left:right], moved[keep], labels[keep]


def horizontal_flip(image: np.ndarray, boxes: np.ndarray, labels: np.ndarray, rng: np.random.Generator) -> Example:
    """With probability 0.5, mirror left and right."""
    if rng.random() >= 0.5:
        return image, boxes, labels
    mirrored = boxes.copy()
    mirrored[:, [0, 2]] = image.shape[1] - boxes[:, [2, 0]]
    return cv2.flip(image, 1), mirrored, labels


POLICIES: dict[str, tuple[Step, ...]] = {
    "ssd": (photometric_distortion, zoom_out, iou_crop, horizontal_flip),
    "ssdlite": (iou_crop, horizontal_flip),
    "hflip": (horizontal_flip,),
    "none": (),
}
