"""Data sets in YOLO's layout: data.yaml, a text file of labels for each image, checked while they are read."""

import math
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml

from ssd300_vgg16 import boxes as box_math
from ssd300_vgg16.data.categories import match_names
from ssd300_vgg16.data.dataset import (
    MAX_COORDINATE,
    PIXELS_BEYOND_IMAGE,
    UNKNOWN_CATEGORY,
    Category,
    Dataset,
    ImageRow,
    ObjectTable,
    Problems,
    report_boxes,
    samples_of,
)
from ssd300_vgg16.data.images import ImageError, find_images, image_size
from ssd300_vgg16.errors import UserError

SPLITS = ("train", "val")
FILE_NAMES = ("data.yaml", "data.yml", "dataset.yaml")


@dataclass(frozen=True)
class YoloDescription:
    """What data.yaml says: the class names in order of their index, the folder that paths are relative to, and for
    each split that it names where its images are: folders, or text files that list them."""

    file: Path
    names: tuple[str, ...]
    root: Path
    places: dict[str, tuple[Path, ...]]


def find_yaml(data_path: Path) -> Path | None:
    """data_path if it is a YAML file; in a folder the file of a usual name, else its only YAML file."""
    if data_path.is_file():
        return data_path if data_path.suffix.lower() in (".yaml", ".yml") else None
    usual = [data_path / name for name in FILE_NAMES if (data_path / name).is_file()]
    if usual:
        return usual[0]
    others = [*data_path.glob("*.yaml"), *data_path.glob("*.yml")]
    return others[0] if len(others) == 1 else None


def read_yaml(data_path: Path) -> YoloDescription:
    """The description in this file, or in this folder. Places need not exist. Raises UserError, naming the key."""
    file = find_yaml(data_path)
    if file is None:
        raise UserError(f"{data_path}: no data.yaml there; name a YOLO data set's YAML file, or its folder")
    content = _content(file)
    if "kpt_shape" in content:
        raise UserError(f"{file}: kpt_shape: the labels are key points, not boxes; they cannot be used")
    root = _root(content.get("path"), file)
    places = {split: _places(content[split], split, root, file) for split in SPLITS if content.get(split) is not None}
    return YoloDescription(file, _names(content, file), root, places)


def _content(file: Path) -> dict:
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise UserError(f"{file}: cannot be read: {error.strerror}") from None
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise UserError(f"{file}{line}: not valid YAML: {error.problem}") from None
    except (yaml.YAMLError, ValueError, OverflowError, RecursionError) as error:
        raise UserError(f"{file}: not valid YAML: {error}") from None
    if not isinstance(content, dict):
        raise UserError(f"{file}: a YOLO data set's YAML has keys train, val and names; this has none")
    return content


def _root(path: object, file: Path) -> Path:
    """The folder that `path` means: relative to the file, which itself is in it if there is no `path`."""
    if path is None:
        return file.parent
    if not isinstance(path, str):
        raise UserError(f"{file}: path: must be the name of a folder, not {path!r:.80}")
    root = file.parent / path  # an absolute path stays as it is
    if not root.is_dir():
        raise UserError(f"{file}: path: no folder {root}; without this key it is the YAML file's own folder")
    return root


def _places(value: Any, split: str, root: Path, file: Path) -> tuple[Path, ...]:
    values = value if isinstance(value, list) else [value]
    if not values or not all(isinstance(entry, str) and entry.strip() for entry in values):
        raise UserError(f"{file}: {split}: must be a folder, a list of folders or a .txt file, not {value!r:.80}")
    return tuple(_place(entry.strip(), root) for entry in values)


def _place(entry: str, root: Path) -> Path:
    place = root / entry
    inside = root / entry.removeprefix("../")
    # Exports of some tools say ../train/images for a folder beside the file.
    return inside if not place.exists() and inside.exists() else place


def _names(content: dict, file: Path) -> tuple[str, ...]:
    names = content.get("names")
    if isinstance(names, dict):
        if not names or any(type(key) is not int for key in names) or sorted(names) != list(range(len(names))):
            raise UserError(f"{file}: names: its numbers must be 0, 1, 2 and so on, one for each class")
        names = [names[index] for index in range(len(names))]
    if not isinstance(names, list) or not names:
        raise UserError(f"{file}: names: must be a list of the classes' names" + (", it is absent" * (names is None)))
    for index, name in enumerate(names):
        if type(name) not in (str, int) or not str(name).strip():
            raise UserError(f"{file}: names: the name of class {index} is {name!r:.80}; put names in quotes")
    _refuse_other_count(content.get("nc"), len(names), file)
    return tuple(str(name).strip() for name in names)


def _refuse_other_count(nc: object, count: int, file: Path) -> None:
    if nc is not None and (type(nc) is not int or nc != count):
        raise UserError(f"{file}: nc: {nc!r:.80}, but there are {count} names")


BOX_NUMBERS = 4
POLYGON_NUMBERS = 6  # the fewest: three points


class _Object(NamedTuple):
    image_index: int
    place: str  # "labels/1.txt, line 3"
    class_index: int
    box: tuple[float, float, float, float]  # xyxy, as fractions of the image


def load_yolo(
    data_path: str | os.PathLike, split: str, categories: tuple[Category, ...] | None = None, strict: bool = False
) -> Dataset:
    """The split, "train" or "val", of the data set that a data.yaml, or the folder with it, describes.

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
    description = read_yaml(Path(data_path))
    problems = Problems(f"{description.file} ({split})")
    images, objects = _read(description, split, problems)
    category_of = _categories(description.names, objects, categories, problems)
    objects = [entry for entry in objects if entry.class_index in category_of]
    if not objects:
        raise UserError(f"{problems.message()}\nNo object is left.")
    table = _table(objects, images, category_of)

    def described(row: int) -> str:
        return f"{objects[row].place} ({images[objects[row].image_index]})"

    report_boxes(images, table, described, problems)
    if strict:
        problems.refuse()
    samples = samples_of(images, table, upright=True)
    return Dataset(problems.source, tuple(category_of.values()), samples, problems, kind="yolo")


def _read(description: YoloDescription, split: str, problems: Problems) -> tuple[list[ImageRow], list[_Object]]:
    """Usable images, and well-formed objects. Raises UserError if there is not one object."""
    images: list[ImageRow] = []
    objects: list[_Object] = []
    labels = None
    for number, path in enumerate(_image_paths(description, split, problems), start=1):
        try:
            image = ImageRow(number, path, *image_size(path, upright=True))
        except ImageError as error:
            problems.add("image that cannot be read", str(error))
            continue
        labels = _label_file(path)
        objects += _read_labels(labels, len(images), len(description.names), problems)
        images.append(image)
    if not objects:
        looked = f" Labels were looked for in files like {labels}." if labels else ""
        raise UserError(f"{problems.message()}\nNo object is left.{looked}")
    return images, objects


def find_yolo_split(data_path: str | os.PathLike, split: str) -> tuple[Path, ...]:
    """The folders of images, or text files that list images, of the split. Raises UserError when not found."""
    description = read_yaml(Path(data_path))
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
    for place in find_yolo_split(description.file, split):
        paths = find_images([str(place)]) if place.is_dir() else _listed_images(place, description.root, problems)
        # A list may name an image that a folder holds too; twice in an epoch, it would weigh double.
        for path in paths:
            key = os.path.abspath(path)  # noqa: PTH100 - resolve() would merge links
            if key in seen:
                problems.add("image listed twice", f"{place}: {path}")
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
        path = next((path for folder in (file.parent, root) if (path := folder / entry).is_file()), None)
        if path:
            images.append(path)
        else:
            problems.add("listed image that is missing", f"{file}, line {number}: {entry[:200]}")
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


def _read_labels(file: Path, image_index: int, classes: int, problems: Problems) -> Iterator[_Object]:
    """The well-formed objects of one image; none if it has no file of labels."""
    try:
        text = file.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        return
    except OSError as error:
        problems.add("label file that cannot be read", f"{file}: {error.strerror}")
        return
    except ValueError:
        problems.add("label file that is not text", str(file))
        return
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        place = f"{file}, line {number}"
        parsed = _parse(line, classes)
        if isinstance(parsed, str):
            problems.add(parsed, f"{place}: {line.strip()[:80]}")
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
        problems.add(UNKNOWN_CATEGORY, f"{names[index]!r} (class {index}, {counts[index]} objects)")
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
