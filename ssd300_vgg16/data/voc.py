"""Data sets in PASCAL VOC's layout: image sets, an XML file for each image, checked while they are read."""

from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ssd300_vgg16 import boxes as box_math
from ssd300_vgg16.data.category_names import folded, match_names
from ssd300_vgg16.data.dataset import Category, Dataset, Problems
from ssd300_vgg16.data.images import ImageError, image_size
from ssd300_vgg16.data.table import UNKNOWN_CATEGORY, ImageRow, ObjectTable, report_boxes, samples_of
from ssd300_vgg16.data.voc_sets import ImageNames, ImageSet, image_names, joined_name, read_image_set
from ssd300_vgg16.data.voc_xml import VocAnnotation, VocFault, VocObject, read_voc_xml
from ssd300_vgg16.errors import UserError

MISSING_IMAGE = "image missing in"


class _Object(NamedTuple):
    image_index: int
    annotation_file: Path
    content: VocObject


def load_voc(
    image_sets: Sequence[Path],
    image_folder: Path | None = None,
    categories: tuple[Category, ...] | None = None,
    strict: bool = False,
) -> Dataset:
    """The data set of one or several image sets (VOC2007/ImageSets/Main/train.txt), joined in this order.

    The files in Annotations and JPEGImages, beside ImageSets, go with each; image_folder stands for all of the latter.
    A folder of XML files stands for an image set that lists them all (`read_image_set`); images without are left out.
    An image is the one with the name of its XML file, else the XML's <filename>. Its id is its number in the lists,
    counted from 1. Without categories, the names in the files get labels and ids 1..N in alphabetical order, which for
    VOC is VOC's own; with them, names are matched (`match_names`), ids are theirs, and those that no object has are
    left out.

    Images without a usable XML file or without the image file, and malformed objects, are dropped; odd boxes are kept
    as in `load_coco`. All this is counted in Dataset.problems. An absent size is read from the image file.
    Raises UserError when an image set cannot be read or nothing in it is usable, categories have no name in common
    with it, or, if strict, when there is any problem.
    """
    problems = Problems(joined_name(image_sets))
    images, objects = _read(image_sets, image_folder, problems)
    category_of = _categories(objects, categories, problems)
    objects = [entry for entry in objects if folded(entry.content.name) in category_of]
    table = _table(objects, category_of)

    def described(row: int) -> str:
        index, path, content = objects[row]
        return f"{path}, object {content.number} ({content.name}; {images[index]}): xyxy {content.box}"

    report_boxes(images, table, described, problems)
    if strict:
        problems.refuse()
    chosen = tuple(sorted(category_of.values(), key=lambda category: category.label))
    return Dataset(problems.source, chosen, samples_of(images, table), problems, kind="voc")


def _read(
    image_sets: Sequence[Path], image_folder: Path | None, problems: Problems
) -> tuple[list[ImageRow], list[_Object]]:
    """Usable images, and well-formed objects. Raises UserError if there is not one object."""
    images: list[ImageRow] = []
    objects: list[_Object] = []
    # Each folder is listed once: to ask for each of 16,000 files takes long on a network drive.
    names_in = cache(image_names)
    for number, (image_set, name) in enumerate(_listed_images(image_sets, problems), start=1):
        path = image_set.annotations / f"{name}.xml"
        try:
            annotation = read_voc_xml(path)
        except VocFault as fault:
            problems.add(f"annotation file {fault}", str(path))
            continue
        pictures = image_folder or image_set.images
        image = _image(number, name, annotation, pictures, names_in(pictures), problems)
        if image:
            objects += [_Object(len(images), path, content) for content in annotation.objects]
            images.append(image)
            for kind, where in annotation.faults:
                problems.add(kind, f"{path}, {where}")
    if not images and any(kind.startswith(MISSING_IMAGE) for kind in problems.counts):
        options = "--train-images or --val-images"
        raise UserError(f"{problems.message()}\nNo image is left: name the folder that they are in with {options}.")
    if not objects:
        raise UserError(f"{problems.message()}\nNo object is left.")
    return images, objects


def _listed_images(image_sets: Sequence[Path], problems: Problems) -> Iterator[tuple[ImageSet, str]]:
    """Each name that the image sets list, once."""
    seen = set()
    for image_set in map(read_image_set, image_sets):
        for name in image_set.names:
            if "/" in name or "\\" in name or "\0" in name:
                problems.add("image set entry that is not a name in Annotations", f"{image_set.path}: {name[:80]}")
            elif (image_set.annotations, name) in seen:
                problems.add("image listed twice", f"{image_set.path}: {name}")
            else:
                seen.add((image_set.annotations, name))
                yield image_set, name


def _image(
    number: int, name: str, annotation: VocAnnotation, folder: Path, names: ImageNames, problems: Problems
) -> ImageRow | None:
    file_name = _image_name(name, annotation.file_name, names)
    if file_name is None:
        problems.add(f"{MISSING_IMAGE} {folder}", name)
        return None
    path, size = folder / file_name, annotation.size
    if size is None:
        try:
            size = image_size(path)
        except ImageError:
            problems.add("image without a size in its XML, whose file cannot be read", str(path))
            return None
    return ImageRow(number, path, *size)


def _image_name(name: str, named_in_xml: str | None, names: ImageNames) -> str | None:
    """The image with the XML file's name, else the one that the XML names."""
    if name in names.by_stem:
        return names.by_stem[name]
    named = (named_in_xml or "").replace("\\", "/").rpartition("/")[2]
    if named in names.all:
        return named
    return names.by_stem.get(named) or names.by_stem.get(Path(named).stem)


def _categories(objects: list[_Object], given: tuple[Category, ...] | None, problems: Problems) -> dict[str, Category]:
    """The category of each name, by the name without regard to case, as far as the given ones have it."""
    counts = Counter(entry.content.name for entry in objects)
    spellings: dict[str, list[str]] = {}
    for name, _ in counts.most_common():
        spellings.setdefault(folded(name), []).append(name)
    for names in spellings.values():
        if len(names) > 1:
            problems.add("category in several spellings", " = ".join(map(repr, names)))
    names = {key: spellings[key][0] for key in sorted(spellings)}
    if given is None:
        return {key: Category(label, label, name) for label, (key, name) in enumerate(names.items(), start=1)}
    matched = match_names(names, given, problems.source)
    for key in names.keys() - matched.keys():
        objects_of = sum(counts[name] for name in spellings[key])
        problems.add(UNKNOWN_CATEGORY, f"{names[key]!r} ({objects_of} objects)")
    return matched


def _table(objects: list[_Object], category_of: dict[str, Category]) -> ObjectTable:
    boxes = np.array([entry.content.box for entry in objects], dtype=np.float64)
    return ObjectTable(
        image_index=np.array([entry.image_index for entry in objects], dtype=np.int64),
        boxes=boxes,
        labels=np.array([category_of[folded(entry.content.name)].label for entry in objects], dtype=np.int64),
        crowd=np.zeros(len(objects), dtype=bool),
        areas=box_math.area(boxes),
        difficult=np.array([entry.content.difficult for entry in objects]),
    )
