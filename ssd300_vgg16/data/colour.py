"""Photometric distortion (Liu et al. 2016, section 2.2; the ranges are those of the published 25.1 AP recipe).

What is to change is drawn first and applied later, so that it can be applied to the pixels that are kept alone.
"""

from dataclasses import dataclass

import cv2
import numpy as np

BRIGHTNESS = (0.875, 1.125)
CONTRAST = (0.5, 1.5)
SATURATION = (0.5, 1.5)
HUE = (-0.05, 0.05)  # of a turn
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
    drawn = [("brightness", BRIGHTNESS), ("saturation", SATURATION), ("hue", HUE)]
    drawn.insert(1 if chosen[5] else 3, ("contrast", CONTRAST))
    changes = [(name, rng.uniform(*bounds)) for (name, bounds), wanted in zip(drawn, chosen[:4], strict=True) if wanted]
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
