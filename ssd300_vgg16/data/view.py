"""A window onto an image, and what the network sees through it.

Cropping, zooming out and mirroring only move the window. Pixels are touched once, at the end: the part of the image
that is in the window is cut out, resized to its place in the network's input, and coloured where it has fewer pixels,
before or after that. The result is that of doing each step on the whole image, within what tests/test_view.py states.
"""

from dataclasses import dataclass, replace
from typing import NamedTuple

import cv2
import numpy as np

from ssd300_vgg16.data.colour import Colours, change_colours

PIXEL_MEAN = (123, 117, 104)


@dataclass(frozen=True)
class View:
    """What is seen of an image: window, xyxy in whole pixels of the image, then mirrored left and right or not.

    The window may reach beyond the image, where it shows PIXEL_MEAN, but has some pixel of it.
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
        return replace(self, window=tuple(round(side / factor) for side in self.window))


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
    grows = shape[0] * shape[1] > part.shape[0] * part.shape[1]
    if grows:
        part = change_colours(part, colours, image)
    part = cv2.resize(part, shape, interpolation=cv2.INTER_LINEAR)
    if not grows:
        part = change_colours(part, colours, image)
    if view.mirrored:
        part = cv2.flip(part, 1)
        place = rows.target, slice(out.shape[-1] - columns.target.stop, out.shape[-1] - columns.target.start)
    planes = cv2.split(part)
    if shape != out.shape[1:]:
        out[:] = np.array(PIXEL_MEAN, dtype=np.uint8)[:, None, None]
    for channel, plane in zip(out, (planes[source] for source in colours.channels), strict=True):
        channel[place] = plane
