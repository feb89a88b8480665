"""Data sets in PASCAL VOC's layout: image sets, an XML file for each image, checked while they are read."""

import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ssd300_vgg16 import boxes as box_math
from ssd300_vgg16.data.category_names import folded, match_names
from ssd300_vgg16.data.dataset import Category, Dataset, Problems
from ssd300_vgg16.data.images import IMAGE_SUFFIXES, ImageError, image_size
from ssd300_vgg16.data.table import UNKNOWN_CATEGORY, ImageRow, ObjectTable, file_names, report_boxes, samples_of
from ssd300_vgg16.data.voc_xml import VocAnnotation, VocFault, VocObject, read_voc_xml
from ssd300_vgg16.errors import UserError

# A test set whose annotations were published has nearly all of them; VOC2012's has some, of another task.
PUBLISHED_SHARE = 0.9


class _ImageNames(NamedTuple):
    """The image files of one folder."""

    all: frozenset[str]
    by_stem: dict[str, str]


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
    An image is the one with the name of its XML file, else the XML's <filename>. Its id is its number in the lists,
    counted from 1. Without categories, the names in the files get labels and ids 1..N in alphabetical order, which for
    VOC is VOC's own; with them, names are matched (`match_names`), ids are theirs, and those that no object has are
    left out.

    Images without a usable XML file or without the image file, and malformed objects, are dropped; odd boxes are kept
    as in `load_coco`. All this is counted in Dataset.problems. An absent size is read from the image file.
    Raises UserError when an image set cannot be read or nothing in it is usable, categories have no name in common
    with it, or, if strict, when there is any problem.
    """
    problems = Problems(_joined_name(image_sets))
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
    names_in = cache(_image_names)
    for number, (folder, name) in enumerate(_listed_images(image_sets, problems), start=1):
        path = folder / "Annotations" / f"{name}.xml"
        try:
            annotation = read_voc_xml(path)
        except VocFault as fault:
            problems.add(f"annotation file {fault}", str(path))
            continue
        pictures = image_folder or folder / "JPEGImages"
        image = _image(number, name, annotation, pictures, names_in(pictures), problems)
        if image:
            objects += [_Object(len(images), path, content) for content in annotation.objects]
            images.append(image)
            for kind, where in annotation.faults:
                problems.add(kind, f"{path}, {where}")
    if not objects:
        raise UserError(f"{problems.message()}\nNo object is left.")
    return images, objects


def find_voc_split(data_path: str | os.PathLike, split: str) -> tuple[Path, ...]:
    """The image sets that make up the split, "train" or "val", of the data in a folder of `voc_folders`.

    Where the test set of some year is there with its annotations, "val" is the test sets, and "train" is trainval of
    every year (train and val, where there is no trainval.txt): 2007 and 2012 together give the usual "07+12".
    Otherwise "train" is train.txt and "val" is val.txt of every year. Raises UserError when there is none.
    """
    folders = voc_folders(data_path)
    if not folders:
        raise UserError(
            f"{data_path}: no VOC data set: it, or folders in it or in its VOCdevkit, should have ImageSets/Main and "
            "Annotations"
        )
    with_tests = [test for folder in folders if _is_published(test := _image_set(folder, "test"))]
    if with_tests:
        found = with_tests if split == "val" else [path for folder in folders for path in _trainval(folder)]
    else:
        found = [path for folder in folders if (path := _image_set(folder, split)).is_file()]
    if not found:
        sets = ", ".join(str(_image_set(folder, split)) for folder in folders)
        raise UserError(f"no {split} image set: looked for {sets}. Or give it with --{split}-annotations FILE.")
    return tuple(found)


def voc_folders(data_path: str | os.PathLike) -> list[Path]:
    """The folders with ImageSets/Main and Annotations that data_path means, by name: it is one, or holds some (VOC2007,
    VOC2012), or holds VOCdevkit, which does."""
    data = Path(data_path)
    if _is_voc(data):
        return [data]
    for parent in (data, data / "VOCdevkit"):
        children = sorted(parent.iterdir()) if parent.is_dir() else []
        found = [child for child in children if _is_voc(child)]
        if found:
            return found
    return []


def voc_folder_of(image_set: Path) -> Path:
    """The folder that an image set, in its ImageSets/Main, belongs to. Raises UserError if either is not there."""
    folder = Path(os.path.normpath(image_set.parent / ".." / ".."))
    if not image_set.is_file():
        raise UserError(f"{image_set}: no such file; a VOC image set is a text file like ImageSets/Main/train.txt")
    if not (folder / "Annotations").is_dir():
        raise UserError(f"{image_set}: not in a VOC data set: an image set is ImageSets/Main/x.txt beside Annotations/")
    return folder


def _is_voc(folder: Path) -> bool:
    return (folder / "ImageSets" / "Main").is_dir() and (folder / "Annotations").is_dir()


def _image_set(folder: Path, name: str) -> Path:
    return folder / "ImageSets" / "Main" / f"{name}.txt"


def _trainval(folder: Path) -> list[Path]:
    both = _image_set(folder, "trainval")
    return (
        [both]
        if both.is_file()
        else [path for name in ("train", "val") if (path := _image_set(folder, name)).is_file()]
    )


def _is_published(test_set: Path) -> bool:
    """Whether an image set is there with its images and annotations."""
    if not test_set.is_file():
        return False
    folder = voc_folder_of(test_set)
    names = _lines(test_set)
    annotated = file_names(folder / "Annotations")
    images = _image_names(folder / "JPEGImages").by_stem
    there = sum(f"{name}.xml" in annotated and name in images for name in names)
    return there > 0 and there >= PUBLISHED_SHARE * len(names)


def _joined_name(image_sets: Sequence[Path]) -> str:
    """The file, or the folder of several with their years: data/VOCdevkit (VOC2007 trainval + VOC2012 trainval)."""
    if len(image_sets) == 1:
        return str(image_sets[0])
    folders = [voc_folder_of(path) for path in image_sets]
    sets = [f"{folder.name} {path.stem}" for folder, path in zip(folders, image_sets, strict=True)]
    return f"{folders[0].parent} ({' + '.join(sets)})"


def _listed_images(image_sets: Sequence[Path], problems: Problems) -> Iterator[tuple[Path, str]]:
    """(VOC folder, name of the image) for each line of the image sets."""
    seen = set()
    for image_set in image_sets:
        folder = voc_folder_of(image_set)
        for name in _lines(image_set):
            if "/" in name or "\\" in name or "\0" in name:
                problems.add("image set entry that is not a name in Annotations", f"{image_set}: {name[:80]}")
            elif (folder, name) in seen:
                problems.add("image listed twice", f"{image_set}: {name}")
            else:
                seen.add((folder, name))
                yield folder, name


def _lines(image_set: Path) -> list[str]:
    """The names that an image set lists. Raises UserError for lists of one class, in which every line has a flag."""
    try:
        lines = [line.strip() for line in image_set.read_text(encoding="utf-8-sig").splitlines()]
    except (OSError, ValueError) as error:
        raise UserError(f"{image_set}: cannot be read: {getattr(error, 'strerror', None) or error}") from None
    names = [line for line in lines if line]
    flagged = names and all(re.search(r"\s(-1|0|1)$", name) for name in names)
    if flagged and not (voc_folder_of(image_set) / "Annotations" / f"{names[0]}.xml").is_file():
        raise UserError(
            f"{image_set}: this is the image set of one class, with a flag in each line ({names[0]}); give one that "
            f"lists images only, like {image_set.parent / 'train.txt'}"
        )
    return names


def _image(
    number: int, name: str, annotation: VocAnnotation, folder: Path, names: _ImageNames, problems: Problems
) -> ImageRow | None:
    file_name = _image_name(name, annotation.file_name, names)
    if file_name is None:
        problems.add(f"image missing in {folder}", name)
        return None
    path, size = folder / file_name, annotation.size
    if size is None:
        try:
            size = image_size(path)
        except ImageError:
            problems.add("image without a size in its XML, whose file cannot be read", str(path))
            return None
    return ImageRow(number, path, *size)


def _image_name(name: str, named_in_xml: str | None, names: _ImageNames) -> str | None:
    """The image with the XML file's name, else the one that the XML names."""
    if name in names.by_stem:
        return names.by_stem[name]
    named = (named_in_xml or "").replace("\\", "/").rpartition("/")[2]
    if named in names.all:
        return named
    return names.by_stem.get(named) or names.by_stem.get(Path(named).stem)


def _image_names(folder: Path) -> _ImageNames:
    names = [name for name in file_names(folder) if Path(name).suffix.lower() in IMAGE_SUFFIXES]
    # The last of several with one stem is taken: a JPEG, which VOC's are.
    names.sort(key=lambda name: (Path(name).suffix.lower() in (".jpg", ".jpeg"), name))
    return _ImageNames(frozenset(names), {Path(name).stem: name for name in names})


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
