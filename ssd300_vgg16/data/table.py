"""The objects of a whole data set as columns, on the way from any format's files to samples."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ssd300_vgg16.data.dataset import Problems, Sample

# COCO's boxes are rounded to hundredths and other tools' to whole pixels: less than this is not a mistake.
PIXELS_BEYOND_IMAGE = 1.0
# Coordinates must fit float32, the sum of two included.
MAX_COORDINATE = 1e38
UNKNOWN_CATEGORY = "category that the model does not know"


class ImageRow(NamedTuple):
    """One image; sizes in pixels."""

    id: int
    path: Path
    height: int
    width: int

    def __str__(self) -> str:
        return f"{self.path.name}, {self.width} x {self.height}"


class ObjectTable(NamedTuple):
    """Columns of N objects; image_index counts in a list of images."""

    image_index: np.ndarray  # int64 [N]
    boxes: np.ndarray  # float64 [N, 4] xyxy
    labels: np.ndarray  # int64 [N]
    crowd: np.ndarray  # bool [N]
    areas: np.ndarray  # float64 [N]
    difficult: np.ndarray  # bool [N]


def samples_of(images: list[ImageRow], table: ObjectTable, upright: bool = False) -> tuple[Sample, ...]:
    """A sample for each image, its objects in the table's order; upright: sizes and boxes are of upright images."""
    order = np.argsort(table.image_index, kind="stable")
    starts = np.searchsorted(table.image_index[order], np.arange(len(images) + 1)).tolist()
    columns = [column[order] for column in table[1:]]
    return tuple(
        Sample(*image, *(column[first:last] for column in columns), upright=upright)
        for image, first, last in zip(images, starts, starts[1:], strict=False)
    )


def report_boxes(
    images: list[ImageRow], table: ObjectTable, described: Callable[[int], str], problems: Problems
) -> None:
    """Count the boxes that are well-formed and yet wrong for their image; each under the worst that is true of it.

    described: the object of this row, with its place in the file.
    """
    x1, y1, x2, y2 = table.boxes.T
    height, width = np.array([image[2:] for image in images], dtype=np.float64)[table.image_index].T
    empty = (x2 <= x1) | (y2 <= y1)
    outside = (x1 >= width) | (y1 >= height) | (x2 <= 0) | (y2 <= 0)
    far = PIXELS_BEYOND_IMAGE
    beyond = (x1 < -far) | (y1 < -far) | (x2 > width + far) | (y2 > height + far)
    for kind, rows in (
        ("box of no area", empty),
        ("box outside the image", outside & ~empty),
        ("box beyond the image", beyond & ~outside & ~empty),
    ):
        for row in np.flatnonzero(rows).tolist():
            problems.add(kind, described(row))


def file_names(folder: Path) -> frozenset[str]:
    """The files in a folder; none if it cannot be read."""
    try:
        with os.scandir(folder) as entries:
            return frozenset(entry.name for entry in entries if entry.is_file())
    except (OSError, ValueError):
        return frozenset()
