"""Data sets in YOLO's layout: data.yaml, a text file of labels for each image, checked while they are read."""

import math
import os
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

from ssd300_vgg16 import reading
from ssd300_vgg16.data.annotations import SHOWN, Box, ImageRow, ObjectRow, are_finite, dataset_of
from ssd300_vgg16.data.categories import told_apart
from ssd300_vgg16.data.dataset import PIXELS_BEYOND_IMAGE, Category, Dataset, Fate, Problems
from ssd300_vgg16.data.image_files import find_images
from ssd300_vgg16.data.images import ImageError, image_size
from ssd300_vgg16.data.layout import read_lines, shorter_paths
from ssd300_vgg16.data.yolo_layout import YoloDescription, places_of, read_description, some_lines
from ssd300_vgg16.errors import UserError
from ssd300_vgg16.reading import OBJECTS

BOX_NUMBERS = 4
POLYGON_NUMBERS = 6  # the fewest: three points
LABELS_OF = {"images": "labels", "Images": "Labels", "JPEGImages": "labels"}  # folders; the last is darknet's for VOC
MAX_LINE = 10_000  # bytes


def load_yolo(
    data_path: str | os.PathLike, split: str, categories: tuple[Category, ...] | None = None, strict: bool = False
) -> Dataset:
    """One split of the data set that a data.yaml, or the folder with it, describes (`read_description`).

    The labels of DIR/images/x.jpg are in DIR/labels/x.txt, else beside the image (`LABELS_OF`): a line
    "class cx cy width height" for each object, or its class and the points of its outline, which stands for the box
    around it; all in fractions of the image, turned as its EXIF orientation says, since that is how YOLO reads it. An
    image without such a file has no objects. Images come in the order of their paths, or of the list, and their ids
    count from 1. Category ids are YOLO's class numbers, labels are one more, or those of given categories
    (`dataset_of`).
    Images that are missing or unreadable and malformed lines are dropped and counted in Dataset.problems; boxes that
    stick out of the image by no more than PIXELS_BEYOND_IMAGE are clipped.
    Raises UserError when data.yaml cannot be used, and as `dataset_of` does.
    """
    description = read_description(Path(data_path))
    places = places_of(description, split)
    problems = Problems(f"{description.file} ({split})", notes=description.notes)
    classes = len(description.names)
    images: list[ImageRow] = []
    objects: list[ObjectRow] = []
    paths = list(_image_paths(places, description.root, problems))
    for number, path in enumerate(paths, start=1):
        try:
            image = ImageRow(number, path, *image_size(path, upright=True))
        except ImageError as error:
            problems.add("image that cannot be read", str(error), Fate.IMAGE_LEFT_OUT)
            continue
        objects += _read_labels(image, len(images), classes, problems)
        images.append(image)
    _report_other_labels(places, paths, description, problems)
    names = told_apart(dict(enumerate(description.names)), problems)
    advice = f"Labels were looked for in files like {_label_files(images[-1].path)[0]}." if images else ""
    return dataset_of("yolo", images, objects, names, categories, problems, strict, advice)


def _image_paths(places: tuple[Path, ...], root: Path, problems: Problems) -> Iterator[Path]:
    """The images of a split, each once."""
    seen = set()
    for place in places:
        # A list may name an image that a folder holds too; twice in an epoch, it would weigh double.
        for path in find_images([str(place)]) if place.is_dir() else _listed_images(place, root, problems):
            key = os.path.abspath(path)  # noqa: PTH100 - resolve() would merge links
            if key in seen:
                problems.add("image listed twice", f"{place}: {path}", Fate.READ_ALL_THE_SAME)
            else:
                seen.add(key)
                yield path


def _listed_images(file: Path, root: Path, problems: Problems) -> Iterator[Path]:
    """The images that a text file lists, by paths relative to the file's folder or to the data set's."""
    try:
        lines = read_lines(file)
    except UserError as error:
        raise UserError(f"{error}; a split is a folder of images, or a text file that lists them") from None
    for number, entry in lines:
        # As it is, else as far as its end goes: the list may be of another machine.
        paths = (folder / path for path in (entry, *shorter_paths(entry)) for folder in (file.parent, root))
        # Not Path.is_file(), which raises for a line that is too long for a name.
        path = next(filter(os.path.isfile, paths), None)
        if path:
            yield path
        else:
            example = f"{file}, line {number}: {entry[:SHOWN]}"
            problems.add("listed image that is missing", example, Fate.IMAGE_LEFT_OUT)


def _label_files(image: Path) -> list[Path]:
    """Where the labels of an image may be: in place of the last folder called images, if any; beside the image."""
    # A data set may be given from inside of its folder of images: then only the absolute path names it.
    if not LABELS_OF.keys() & set(image.parent.parts):
        image = image.absolute()
    parts = image.parts
    folders = [index for index, part in enumerate(parts[:-1]) if part in LABELS_OF][-1:]
    files = [Path(*parts[:index], LABELS_OF[parts[index]], *parts[index + 1 :]) for index in folders]
    return [file.with_suffix(".txt") for file in (*files, image)]


def _report_other_labels(
    places: tuple[Path, ...], images: list[Path], description: YoloDescription, problems: Problems
) -> None:
    """Count the files of labels that belong to no image, in the folders of labels of the places that are folders.

    A list of images may leave out others by intent, whose labels lie there too. LabelImg's list of class names is noted
    if it says otherwise.
    """
    # Not resolve(), which would merge links.
    of_images = {os.path.abspath(file) for image in images for file in _label_files(image)}  # noqa: PTH100
    folders = {file.parent for place in places if place.is_dir() for file in _label_files(place / "any.jpg")}
    for parent, below, names in chain.from_iterable(map(os.walk, sorted(folders))):
        below[:] = sorted(name for name in below if not name.startswith("."))  # hidden images are none of the data set
        for name in sorted(names):
            file = Path(parent, name)
            is_other = name.endswith(".txt") and os.path.abspath(file) not in of_images  # noqa: PTH100
            if is_other and not name.startswith(".") and _is_label_file(file, len(description.names)):
                problems.add("label file without an image", str(file), Fate.LABELS_LEFT_OUT)
        if "classes.txt" in names:
            file = Path(parent, "classes.txt")
            if any(ours != theirs for ours, theirs in zip(description.names, some_lines(file), strict=False)):
                problems.notes.append(f"{file}: other class names than in {description.file}, which are taken")


def _is_label_file(file: Path, classes: int) -> bool:
    """Whether a text file begins with an object, unlike a list of names that lies beside."""
    try:
        with reading.opened(file) as opened:
            first = opened.read(MAX_LINE).decode("utf-8-sig", "ignore").strip().partition("\n")[0]
    except (OSError, ValueError):
        return False
    return not isinstance(_parse(first, classes), str)


def _read_labels(image: ImageRow, image_index: int, classes: int, problems: Problems) -> Iterator[ObjectRow]:
    """The well-formed objects of one image; none if it has no file of labels."""
    try:
        file = next(filter(Path.exists, _label_files(image.path)), None)
        lines = read_lines(file, reading.LABEL_BYTES) if file else []
    except (UserError, OSError) as error:  # exists() raises if the folder may not be looked into
        problems.add("label file that cannot be read", str(error), Fate.LABELS_LEFT_OUT, image_index)
        return
    for number, line in lines[: OBJECTS.value + 1]:  # with more the image is left out, whatever they say
        where = f"{file}, line {number}"
        parsed = _parse(line, classes)
        if isinstance(parsed, str):
            problems.add(parsed, f"{where}: {line[:SHOWN]}", Fate.OBJECT_LEFT_OUT, image_index)
        else:
            category, box = parsed
            yield ObjectRow(image_index, category, _in_pixels(box, image), where)


def _parse(line: str, classes: int) -> tuple[int, Box] | str:
    """Class and box xyxy, in fractions of the image, of one line; or what is wrong with it."""
    try:
        index, *numbers = map(float, line.split())  # some tools write the class as 0.0
    except ValueError:
        return "line with something else than numbers"
    if len(numbers) != BOX_NUMBERS and (len(numbers) < POLYGON_NUMBERS or len(numbers) % 2):
        return "line that is neither a class with 4 numbers nor one with 3 or more points"
    if not are_finite(numbers):
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


def _in_pixels(box: Box, image: ImageRow) -> Box:
    """The box in pixels, clipped to the image where it sticks out by a pixel at most."""

    # Centre and size are rounded to some digits each, so edges that touch the border miss it by a fraction of a pixel.
    def side(fraction: float, size: int) -> float:
        inside = min(max(fraction * size, 0.0), float(size))
        return inside if abs(fraction * size - inside) <= PIXELS_BEYOND_IMAGE else fraction * size

    x1, y1, x2, y2 = box
    return side(x1, image.width), side(y1, image.height), side(x2, image.width), side(y2, image.height)
