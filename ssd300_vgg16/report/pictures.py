"""The pictures of report.html: the image files themselves, and copies of those that browsers do not show upright."""

import os
from collections.abc import Sequence
from multiprocessing.pool import ThreadPool
from pathlib import Path
from urllib.parse import quote

import cv2
import numpy as np
from tqdm import tqdm

from ssd300_vgg16.data.dataset import Sample
from ssd300_vgg16.data.images import AS_STORED, LYING, ImageError, exif_orientation, read_image, shown_upright
from ssd300_vgg16.data.sizes import View, view_of
from ssd300_vgg16.files import write_atomically

COPIES = "report_images"  # a folder beside the page
MAX_SIDE = 2048  # pixels of a copy
_MIRRORED = ((2, 3, 7, 8), (3, 4, 6, 7))  # EXIF orientations that mirror x, and y, before a transposition


class AsShown:
    """The boxes of an evaluation as the page shows its images: upright.

    sizes: by index, width and height of the images that boxes refer to, where the files have others.
    """

    def __init__(self, samples: Sequence[Sample]) -> None:
        self.sizes: dict[int, list[int]] = {}
        self._orientations = np.full(len(samples), AS_STORED)
        self._widths_heights = np.array([(sample.width, sample.height) for sample in samples])
        for number, sample in enumerate(samples):
            try:
                view = view_of(sample)
                orientation = AS_STORED if view.upright else exif_orientation(sample.path)
            except ImageError:
                continue  # it has gone meanwhile
            self._set(number, view, orientation)

    def _set(self, number: int, view: View, orientation: int) -> None:
        height, width = view.annotated
        self._orientations[number] = orientation
        self._widths_heights[number] = width, height
        if view.annotated != view.size:
            self.sizes[number] = [height, width] if orientation in LYING else [width, height]

    def boxes(self, boxes_xywh: np.ndarray, images: Sequence[int] | np.ndarray) -> np.ndarray:
        """The boxes [N, 4] of these images [N]."""
        orientations, turned = self._orientations[images], boxes_xywh.copy()
        opposite = self._widths_heights[images] - boxes_xywh[:, :2] - boxes_xywh[:, 2:]
        for axis, mirrored in enumerate(_MIRRORED):
            there = np.isin(orientations, mirrored)
            turned[there, axis] = opposite[there, axis]
        lying = np.isin(orientations, LYING)
        turned[lying] = turned[lying][:, [1, 0, 3, 2]]
        return turned


def pictures_of(paths: Sequence[Path], output: Path) -> dict:
    """What the page in output needs to show these files: names, links as a browser takes them, and copies, made here.

    copies: by index, links; sizes: by index, width and height of the upright images, where copies have others.
    """
    places = [os.path.abspath(path) for path in paths]  # noqa: PTH100 - resolve() would follow links
    base = os.path.commonpath([os.path.dirname(place) for place in places]) if places else ""  # noqa: PTH120
    folder = os.path.relpath(base, os.path.abspath(output)) if places else ""  # noqa: PTH100
    files = [os.path.relpath(place, base) for place in places]
    sizes = _copied(paths, output / COPIES)
    return {
        "files": files,
        "folder": quote(os.fsencode(folder)) + "/",
        "links": [quote(os.fsencode(file)) for file in files],
        "copies": {number: f"{COPIES}/{number}.jpg" for number in sizes},
        "sizes": sizes,
    }


def _copied(paths: Sequence[Path], folder: Path) -> dict[int, list[int]]:
    """Copies the files that need it, as NUMBER.jpg; returns width and height of each, upright, by its number."""

    def copy(number: int) -> list[int] | None:
        try:
            pixels = read_image(paths[number], upright=True)
        except ImageError:
            return None  # it has gone meanwhile
        height, width = pixels.shape[:2]
        if (scale := MAX_SIDE / max(height, width)) < 1:
            size = max(1, round(width * scale)), max(1, round(height * scale))
            pixels = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
        jpeg = cv2.imencode(".jpg", pixels[..., ::-1])[1].tobytes()
        write_atomically(folder / f"{number}.jpg", jpeg, sync=False, inside=folder.parent)
        return [width, height]

    numbers = [number for number, path in enumerate(paths) if not _is_shown(path)]
    if not numbers:
        return {}
    with ThreadPool(len(os.sched_getaffinity(0))) as threads:  # decoders let go of Python's lock
        each = threads.imap(copy, numbers)
        bar = tqdm(each, "copies for the page", len(numbers), leave=False, unit="image", disable=None)
        return {number: size for number, size in zip(numbers, bar, strict=True) if size}


def _is_shown(path: Path) -> bool:
    try:
        return shown_upright(path)
    except ImageError:
        return True  # no copy would be
