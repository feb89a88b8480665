"""Data sets in YOLO's layout: data.yaml, a text file of labels for each image, checked while they are read."""

import math
import os
from collections import Counter
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ssd300_vgg16 import boxes as box_math
from ssd300_vgg16.data.categories import match_names, told_apart
from ssd300_vgg16.data.dataset import (
    CATEGORY_LEFT_OUT,
    IMAGE_LEFT_OUT,
    LABELS_LEFT_OUT,
    MAX_COORDINATE,
    OBJECT_LEFT_OUT,
    PIXELS_BEYOND_IMAGE,
    READ_ALL_THE_SAME,
    UNKNOWN_CATEGORY,
    Category,
    Dataset,
    ImageRow,
    ObjectTable,
    Problems,
    report_boxes,
    samples_of,
    without_repeated,
)
from ssd300_vgg16.data.image_files import find_images
from ssd300_vgg16.data.images import ImageError, image_size
from ssd300_vgg16.data.layout import shorter_paths
from ssd300_vgg16.data.yolo_layout import YoloDescription, read_description
from ssd300_vgg16.errors import UserError

BOX_NUMBERS = 4
POLYGON_NUMBERS = 6  # the fewest: three points
MISSING_IMAGE = "listed image that is missing"
MAX_LINE = 10_000  # letters


class _Object(NamedTuple):
    image_index: int
    place: str  # "labels/1.txt, line 3"
    class_index: int
    box: tuple[float, float, float, float]  # xyxy, as fractions of the image


def load_yolo(
    data_path: str | os.PathLike, split: str, categories: tuple[Category, ...] | None = None, strict: bool = False
) -> Dataset:
    """One split of the data set that a data.yaml, or the folder with it, describes (`read_description`).

    The labels of DIR/images/x.jpg are in DIR/labels/x.txt (beside the image, if no folder is called images): a line
    "class cx cy width height" for each object, or its class and the points of its outline, which stands for the box
    around it; all in fractions of the image, turned as its EXIF orientation says, since that is how YOLO reads it. An
    image without such a file has no objects. Images come in the order of their paths, or of the list, and their ids
    count from 1. Category ids are YOLO's class numbers, labels are one more; with categories, labels are those of the
    categories with the same names (`match_names`).

    Images that are missing or unreadable and malformed lines are dropped; boxes that stick out of the image by no
    more than PIXELS_BEYOND_IMAGE are clipped, other odd ones kept as in `load_coco`. All this is counted in
    Dataset.problems. Raises UserError when data.yaml cannot be used, nothing in the split is usable, categories have
    no name in common with it, or, if strict, when there is any problem.
    """
    description = read_description(Path(data_path))
    problems = Problems(f"{description.file} ({split})", notes=description.notes)
    images, objects = _read(description, split, problems)
    names = told_apart(dict(enumerate(description.names)))
    for index, name in enumerate(description.names):
        if names[index] != name:
            problems.add("category name used twice", f"{name!r} (class {index})", READ_ALL_THE_SAME)
    category_of = _categories(tuple(names.values()), objects, categories, problems)
    objects = [entry for entry in objects if entry.class_index in category_of]
    if not objects:
        raise UserError(f"{problems.message()}\nNo object is left.")
    table = _table(objects, images, category_of)

    def described(row: int) -> str:
        return f"{objects[row].place} ({images[objects[row].image_index]})"

    report_boxes(images, table, described, problems)
    samples = samples_of(images, without_repeated(table, described, problems), upright=True)
    if strict:
        problems.refuse()
    return Dataset(problems.source, tuple(category_of.values()), samples, problems, kind="yolo")


def _read(description: YoloDescription, split: str, problems: Problems) -> tuple[list[ImageRow], list[_Object]]:
    """Usable images, and well-formed objects. Raises UserError if there is not one object."""
    images: list[ImageRow] = []
    objects: list[_Object] = []
    labels = None
    paths = list(_image_paths(description, split, problems))
    for number, path in enumerate(paths, start=1):
        try:
            image = ImageRow(number, path, *image_size(path, upright=True))
        except ImageError as error:
            problems.add("image that cannot be read", str(error), IMAGE_LEFT_OUT)
            continue
        labels = _label_file(path)
        objects += _read_labels(labels, len(images), len(description.names), problems)
        images.append(image)
    _report_without_image(_places(description, split), paths, len(description.names), problems)
    problems.totals |= {
        "images": len(paths) + problems.counts.get(MISSING_IMAGE, 0),
        "objects": len(objects) + problems.count(OBJECT_LEFT_OUT),
        "categories": len(description.names),
    }
    if not objects:
        looked = f" Labels were looked for in files like {labels}." if labels else ""
        raise UserError(f"{problems.message()}\nNo object is left.{looked}")
    return images, objects


def find_yolo_split(data_path: str | os.PathLike, split: str) -> tuple[Path, ...]:
    """The folders of images, or text files that list images, of the split. Raises UserError when not found."""
    return _places(read_description(Path(data_path)), split)


def _places(description: YoloDescription, split: str) -> tuple[Path, ...]:
    places = description.places.get(split, ())
    if not places:
        raise UserError(f"{description.file}: {split}: this key is absent; it names the folder of the {split} images")
    for place in places:
        if not place.exists():
            raise UserError(f"{description.file}: {split}: there is no {place}")
    return places


def _image_paths(description: YoloDescription, split: str, problems: Problems) -> Iterator[Path]:
    """The images of a split, each once."""
    seen = set()
    for place in _places(description, split):
        paths = find_images([str(place)]) if place.is_dir() else _listed_images(place, description.root, problems)
        # A list may name an image that a folder holds too; twice in an epoch, it would weigh double.
        for path in paths:
            key = os.path.abspath(path)  # noqa: PTH100 - resolve() would merge links
            if key in seen:
                problems.add("image listed twice", f"{place}: {path}", READ_ALL_THE_SAME)
            else:
                seen.add(key)
                yield path


def _listed_images(file: Path, root: Path, problems: Problems) -> list[Path]:
    """The images that a text file lists, by paths relative to the file's folder or to the data set's."""
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "not a text file; it should list images"
        raise UserError(f"{file}: cannot be read: {reason}") from None
    images = []
    for number, line in enumerate(lines, start=1):
        entry = line.strip()
        if not entry:
            continue
        # As it is, else as far as its end goes: the list may be of another machine.
        entries = (entry, *shorter_paths(entry))
        paths = (folder / path for path in entries for folder in (file.parent, root))
        path = next((path for path in paths if path.is_file()), None)
        if path:
            images.append(path)
        else:
            problems.add(MISSING_IMAGE, f"{file}, line {number}: {entry[:200]}", IMAGE_LEFT_OUT)
    return images


def _label_file(image: Path) -> Path:
    """The file of labels for an image: the last folder called images, if any, becomes labels."""
    # A data set may be given from inside of its folder of images: then only the absolute path names it.
    if "images" not in image.parent.parts:
        image = image.absolute()
    parts = list(image.parts)
    folders = [index for index, part in enumerate(parts[:-1]) if part == "images"]
    if folders:
        parts[folders[-1]] = "labels"
    return Path(*parts).with_suffix(".txt")


def _report_without_image(places: tuple[Path, ...], images: list[Path], classes: int, problems: Problems) -> None:
    """Count the files of labels that belong to no image, in the folders of labels of the places that are folders.

    A list of images may leave out others by intent, whose labels lie there too.
    """
    of_images = {os.path.abspath(_label_file(image)) for image in images}  # noqa: PTH100 - resolve() would merge links
    folders = {_label_file(place / "any.jpg").parent for place in places if place.is_dir()}
    for parent, below, names in chain.from_iterable(map(os.walk, sorted(folders))):
        below[:] = sorted(name for name in below if not name.startswith("."))  # hidden images are none of the data set
        absolute = os.path.abspath(parent)  # noqa: PTH100
        for name in sorted(names):
            is_other = name.endswith(".txt") and f"{absolute}/{name}" not in of_images
            if is_other and not name.startswith(".") and _is_label_file(Path(parent, name), classes):
                problems.add("label file without an image", str(Path(parent, name)), LABELS_LEFT_OUT)


def _is_label_file(file: Path, classes: int) -> bool:
    """Whether a text file begins with an object, unlike a list of names that lies beside."""
    if not file.is_file():
        return False
    try:
        with file.open(encoding="utf-8-sig") as opened:
            first = opened.read(MAX_LINE).strip().partition("\n")[0]
    except (OSError, ValueError):
        return False
    return not isinstance(_parse(first, classes), str)


def _read_labels(file: Path, image_index: int, classes: int, problems: Problems) -> Iterator[_Object]:
    """The well-formed objects of one image; none if it has no file of labels."""
    try:
        text = file.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        return
    except OSError as error:
        problems.add("label file that cannot be read", f"{file}: {error.strerror}", LABELS_LEFT_OUT)
        return
    except ValueError:
        problems.add("label file that is not text", str(file), LABELS_LEFT_OUT)
        return
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        place = f"{file}, line {number}"
        parsed = _parse(line, classes)
        if isinstance(parsed, str):
            problems.add(parsed, f"{place}: {line.strip()[:80]}", OBJECT_LEFT_OUT)
        else:
            yield _Object(image_index, place, *parsed)


def _parse(line: str, classes: int) -> tuple[int, tuple[float, float, float, float]] | str:
    """Class and box xyxy of one line, or what is wrong with it."""
    try:
        index, *numbers = map(float, line.split())  # some tools write the class as 0.0
    except ValueError:
        return "line with something else than numbers"
    if len(numbers) != BOX_NUMBERS and (len(numbers) < POLYGON_NUMBERS or len(numbers) % 2):
        return "line that is neither a class with 4 numbers nor one with 3 or more points"
    if not all(-MAX_COORDINATE < number < MAX_COORDINATE for number in numbers):
        return "line with numbers that are not finite"
    if not (math.isfinite(index) and index == int(index)):
        return "line whose class is not a whole number"
    if not 0 <= index < classes:
        return f"line whose class is not one of 0 to {classes - 1}"
    if len(numbers) == BOX_NUMBERS:
        x, y, width, height = numbers
        return int(index), (x - width / 2, y - height / 2, x + width / 2, y + height / 2)
    xs, ys = numbers[0::2], numbers[1::2]
    return int(index), (min(xs), min(ys), max(xs), max(ys))


def _categories(
    names: tuple[str, ...], objects: list[_Object], given: tuple[Category, ...] | None, problems: Problems
) -> dict[int, Category]:
    """The category of each class, as far as the given ones have it."""
    if given is None:
        return {index: Category(index + 1, index, name) for index, name in enumerate(names)}
    matched = match_names(dict(enumerate(names)), given, problems.source)
    counts = Counter(entry.class_index for entry in objects)
    for index in sorted(counts.keys() - matched.keys()):
        described = f"{names[index]!r} (class {index}, {counts[index]} objects)"
        problems.add(UNKNOWN_CATEGORY, described, CATEGORY_LEFT_OUT)
    return {index: Category(matched[index].label, index, matched[index].name) for index in sorted(matched)}


def _table(objects: list[_Object], images: list[ImageRow], category_of: dict[int, Category]) -> ObjectTable:
    image_index = np.array([entry.image_index for entry in objects], dtype=np.int64)
    heights, widths = np.array([image[2:] for image in images], dtype=np.float64)[image_index].T
    sizes = np.stack((widths, heights, widths, heights), axis=1)
    boxes = np.array([entry.box for entry in objects], dtype=np.float64) * sizes
    inside = np.clip(boxes, 0, sizes)
    # Centre and size are rounded to some digits each, so edges that touch the border miss it by a fraction of a pixel.
    boxes = np.where(np.abs(boxes - inside) <= PIXELS_BEYOND_IMAGE, inside, boxes)
    return ObjectTable(
        image_index=image_index,
        boxes=boxes,
        labels=np.array([category_of[entry.class_index].label for entry in objects], dtype=np.int64),
        crowd=np.zeros(len(objects), dtype=bool),
        areas=box_math.area(boxes),
        difficult=np.zeros(len(objects), dtype=bool),
    )
