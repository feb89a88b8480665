"""From the images and objects that a format's files name to a data set: its categories, and checks of its boxes."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

from ssd300_vgg16 import boxes as box_math
from ssd300_vgg16.data.categories import COCO_CATEGORIES, match_names
from ssd300_vgg16.data.dataset import (
    PIXELS_BEYOND_IMAGE,
    UNKNOWN_CATEGORY,
    Category,
    Dataset,
    Fate,
    Problems,
    Sample,
)
from ssd300_vgg16.data.sizes import report_sizes
from ssd300_vgg16.errors import UserError
from ssd300_vgg16.reading import OBJECTS

# Coordinates must fit float32, the sum of two included.
MAX_COORDINATE = 1e38
SHOWN = 80  # letters of what stands in a file
JOINED = "image that is there again: joined with the first"
# Boxes that are fractions of the image may stick out of it a little.
FRACTION_LIMIT = 1.01
SMALLEST_IMAGE = 8  # pixels a side; in smaller ones a box may be within 0 to 1 by right
# From how many boxes, and which part of them beyond the image, it is told that they are corners.
FEWEST_TELLING = 4
BEYOND_TELLING = 0.25
WRITTEN = {
    "coco": "COCO's bbox is in pixels: x, y, width, height",
    "voc": "VOC's bndbox is in pixels: xmin, ymin, xmax, ymax",
    "yolo": "YOLO's lines are: class, x and y of the centre, width, height",
}

Box = tuple[float, float, float, float]
Key = TypeVar("Key", int, str)


class ImageRow(NamedTuple):
    """One image; sizes in pixels."""

    id: int
    path: Path
    height: int
    width: int


class ObjectRow(NamedTuple):
    """One well-formed object. image_index: in the list of images; category: a key of the names; box: xyxy in pixels;
    where: its place in the file; area: nan for that of the box."""

    image_index: int
    category: int | str
    box: Box
    where: str
    area: float = math.nan
    crowd: bool = False
    difficult: bool = False


def is_side(value: Any) -> bool:
    """Whether it can be an image's width or height, in pixels; 640.0 can."""
    return type(value) in (int, float) and 0 < value < MAX_COORDINATE and value == int(value)  # true is no number


def are_finite(numbers: Sequence[float]) -> bool:
    """Whether all are finite, and fit float32."""
    return all(-MAX_COORDINATE < number < MAX_COORDINATE for number in numbers)


def dataset_of(
    kind: str,
    images: Sequence[ImageRow],
    objects: Sequence[ObjectRow],
    names: dict[Key, str],
    given: tuple[Category, ...] | None,
    problems: Problems,
    strict: bool,
    advice: str = "",
) -> Dataset:
    """The data set of these images and those of the objects that have one of the categories.

    Without given categories labels count from 1 in the order of the names, and are COCO's for exactly COCO's 80 names
    and ids. With given ones labels and names are theirs (`match_names`), and ids too where keys are words, as in VOC;
    names of objects that are not among them are counted.

    Images of one file are joined. Odd boxes are kept and counted. Of objects that are there twice one is left out, but
    not of COCO's own categories in its format: its published figures count what is in its files. Image files are held
    against the declared sizes, but for YOLO, which declares none.
    Raises UserError, with advice, when there is no object or no given category; where all boxes say that they are
    written in another way than the format's; or, if strict, for any problem.
    """
    problems.totals.setdefault("images", len(images) + problems.count(Fate.IMAGE_LEFT_OUT))
    problems.totals.setdefault("objects", len(objects) + problems.count(Fate.OBJECT_LEFT_OUT))
    images, objects = _joined(images, objects, problems)
    images, objects = _without_overfull(images, objects, problems)
    category_of = _choose_categories(names, given, objects, problems)
    objects = [row for row in objects if row.category in category_of]
    if not objects:
        raise UserError(f"{problems.message()}\nNo object is left. {advice}".rstrip())
    image_index = np.array([row.image_index for row in objects], dtype=np.int64)
    boxes = np.array([row.box for row in objects], dtype=np.float64)
    areas = np.array([row.area for row in objects], dtype=np.float64)
    columns = {
        "boxes": boxes,
        "labels": np.array([category_of[row.category].label for row in objects], dtype=np.int64),
        "crowd": np.array([row.crowd for row in objects]),
        "areas": np.where(np.isnan(areas), box_math.area(boxes), areas),
        "difficult": np.array([row.difficult for row in objects]),
    }

    def report(fault: str, rows: np.ndarray, fate: Fate) -> None:
        for index in np.flatnonzero(rows).tolist():
            row = objects[index]
            image = images[row.image_index]
            about = f"{category_of[row.category].name}; {image.path.name}, {image.width} x {image.height}"
            box = ", ".join(f"{side:.6g}" for side in row.box)
            problems.add(fault, f"{row.where} ({about}): xyxy {box}", fate)

    height, width = np.array([image[2:] for image in images], dtype=np.float64)[image_index].T
    _refuse_other_boxes(kind, boxes, height, width, problems.source)
    for (fault, fate), rows in faulty_boxes(boxes, height, width).items():
        report(fault, rows, fate)
    if not (kind == "coco" and set(category_of.values()) <= set(COCO_CATEGORIES)):
        repeated = _repeated(image_index, columns)
        report("object that is there twice, with the same box: counted once", repeated, Fate.OBJECT_LEFT_OUT)
        image_index = image_index[~repeated]
        columns = {name: column[~repeated] for name, column in columns.items()}
    samples = _samples(images, image_index, columns, problems.incomplete, upright=kind == "yolo")
    if kind != "yolo":
        report_sizes(samples, problems)
    if strict:
        problems.refuse()
    return Dataset(problems.source, tuple(category_of.values()), samples, problems, kind)


def _joined(
    images: Sequence[ImageRow], objects: Sequence[ObjectRow], problems: Problems
) -> tuple[Sequence[ImageRow], Sequence[ObjectRow]]:
    """The same, with one image for each file: some tools write an image once for each of its boxes."""
    kept: dict[Path, ImageRow] = {}
    for image in images:
        if kept.setdefault(image.path, image) is not image:
            problems.add(JOINED, f"image {image.id} ({image.path})", Fate.READ_ALL_THE_SAME)
    index_of = {path: index for index, path in enumerate(kept)}
    joined = (row._replace(image_index=index_of[images[row.image_index].path]) for row in objects)
    return list(kept.values()), objects if len(kept) == len(images) else list(joined)


def _without_overfull(
    images: Sequence[ImageRow], objects: Sequence[ObjectRow], problems: Problems
) -> tuple[Sequence[ImageRow], Sequence[ObjectRow]]:
    """Those of the images that have no more objects than can be matched to default boxes in reasonable time."""
    counts = Counter(row.image_index for row in objects)
    overfull = {index: count for index, count in counts.items() if count > OBJECTS.value}
    if not overfull:
        return images, objects
    for index, count in overfull.items():
        problems.add("image with too many objects", f"{images[index].path}: {OBJECTS.told(count)}", Fate.IMAGE_LEFT_OUT)
    kept = [index for index in range(len(images)) if index not in overfull]
    place = {index: number for number, index in enumerate(kept)}
    left = [row._replace(image_index=place[row.image_index]) for row in objects if row.image_index in place]
    return [images[index] for index in kept], left


def _choose_categories(
    names: dict[Key, str], given: tuple[Category, ...] | None, objects: Sequence[ObjectRow], problems: Problems
) -> dict[Any, Category]:
    problems.totals.setdefault("categories", len(names))
    # Only with all of them: a subset would have outputs that nothing is ever learned for.
    if given is None and names == {category.id: category.name for category in COCO_CATEGORIES}:
        given = COCO_CATEGORIES
    if given is None:
        matched = {key: Category(label, label, name) for label, (key, name) in enumerate(names.items(), start=1)}
    else:
        matched = match_names(names, given, problems.source) if names else {}
    counts = Counter(row.category for row in objects)
    for key, name in names.items():
        if key not in matched and counts[key]:
            problems.add(UNKNOWN_CATEGORY, f"{name!r} ({counts[key]} objects)", Fate.CATEGORY_LEFT_OUT)
    if all(isinstance(key, str) for key in names):
        return dict(sorted(matched.items(), key=lambda item: item[1].label))
    ids: Any = [key for key in names if key in matched]
    return {id_: replace(matched[id_], id=id_) for id_ in ids}


def _samples(
    images: Sequence[ImageRow],
    image_index: np.ndarray,
    columns: dict[str, Any],
    incomplete: set[int],
    upright: bool,
) -> tuple[Sample, ...]:
    """A sample for each image, its objects in the order of the columns."""
    # Sorted once, then cut: to look for the rows of each image alone is quadratic.
    order = np.argsort(image_index, kind="stable")
    starts = np.searchsorted(image_index[order], np.arange(len(images) + 1)).tolist()
    columns = {name: column[order] for name, column in columns.items()}
    return tuple(
        Sample(
            *image,
            **{name: column[first:last] for name, column in columns.items()},
            upright=upright,
            incomplete=index in incomplete,
        )
        for index, (image, (first, last)) in enumerate(zip(images, pairwise(starts), strict=True))
    )


def _repeated(image_index: np.ndarray, columns: dict[str, Any]) -> np.ndarray:
    """Which objects are there before, with the same box and label: bool [N]. Boxes of no area are never so."""
    same = (columns[name] for name in ("labels", "crowd", "difficult", "boxes"))
    _, first = np.unique(np.column_stack((image_index, *same)), axis=0, return_index=True)
    return (box_math.area(columns["boxes"]) > 0) & ~np.isin(np.arange(len(image_index)), first)


def _refuse_other_boxes(kind: str, boxes: np.ndarray, height: np.ndarray, width: np.ndarray, source: str) -> None:
    """UserError if all boxes [N, 4] xyxy of these images [N] say that they are written in another way."""
    x1, y1, x2, y2 = boxes.T
    # VOC's begin one pixel before what is written.
    is_fraction = (
        (boxes[:, 2:] <= FRACTION_LIMIT).all() and (boxes[:, :2] >= -1).all() and (box_math.area(boxes) > 0).any()
    )
    if kind != "yolo" and is_fraction and min(height.min(), width.min()) > SMALLEST_IMAGE:
        raise UserError(
            f"{source}: all {len(boxes)} boxes are within 0 to 1: they are fractions of the image, and "
            f"{WRITTEN[kind]}; multiply them by width and height"
        )
    # What would be the right and bottom edges is written as the size, and the left and top ones as another point.
    right, bottom = x2 - x1, y2 - y1
    left, top = ((x1 + x2) / 2, (y1 + y2) / 2) if kind == "yolo" else (x1, y1)
    corners = (right > left) & (bottom > top) & (right <= width + 1) & (bottom <= height + 1) & (left >= 0) & (top >= 0)
    beyond = (x2 > width + 1) | (y2 > height + 1) | (x1 < -1) | (y1 < -1)
    if kind != "voc" and len(boxes) >= FEWEST_TELLING and corners.all() and beyond.mean() >= BEYOND_TELLING:
        raise UserError(
            f"{source}: {beyond.sum()} of {len(boxes)} boxes lead out of their images, and all fit as x1, y1, x2, y2; "
            f"{WRITTEN[kind]}: correct what wrote the file"
        )


def faulty_boxes(boxes: np.ndarray, height: np.ndarray, width: np.ndarray) -> dict[tuple[str, Fate], np.ndarray]:
    """Which of the boxes [N, 4] xyxy are wrong for their images of this height and width [N]: bool [N] for each kind.

    Each is under the worst that is true of it.
    """
    x1, y1, x2, y2 = boxes.T
    empty = (x2 <= x1) | (y2 <= y1)
    outside = (x1 >= width) | (y1 >= height) | (x2 <= 0) | (y2 <= 0)
    far = PIXELS_BEYOND_IMAGE
    beyond = (x1 < -far) | (y1 < -far) | (x2 > width + far) | (y2 > height + far)
    return {
        ("box of no area", Fate.OBJECT_UNTRAINED): empty,
        ("box outside the image", Fate.OBJECT_UNTRAINED): outside & ~empty,
        ("box beyond the image", Fate.OBJECT_CLIPPED): beyond & ~outside & ~empty,
    }
