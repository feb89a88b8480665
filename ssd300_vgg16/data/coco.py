"""Data sets in COCO's annotation format, checked while they are read."""

import json
import os
from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from ssd300_vgg16 import boxes as box_math
from ssd300_vgg16.data.categories import COCO_CATEGORIES, folded, match_names, told_apart
from ssd300_vgg16.data.coco_entries import (
    annotation_fault,
    id_fault,
    is_size,
    located,
    text_fault,
    with_box_of_mask,
    with_numbers,
)
from ssd300_vgg16.data.coco_layout import find_image
from ssd300_vgg16.data.dataset import (
    CATEGORY_LEFT_OUT,
    IMAGE_LEFT_OUT,
    MAX_COORDINATE,
    OBJECT_LEFT_OUT,
    READ_ALL_THE_SAME,
    UNKNOWN_CATEGORY,
    Category,
    Dataset,
    ImageRow,
    ObjectTable,
    Problems,
    Sample,
    file_names,
    report_boxes,
    samples_of,
    without_repeated,
)
from ssd300_vgg16.data.images import ImageError, image_size
from ssd300_vgg16.data.sizes import report_sizes
from ssd300_vgg16.errors import UserError
from ssd300_vgg16.text import listed

JOINED = "image that is there again: joined with the first"
MAX_SECTIONS = 20  # in a message
# Boxes that are fractions of the image may stick out of it a little.
FRACTION_LIMIT = 1.01
SMALLEST_IMAGE = 8  # pixels a side; in smaller ones a box may be within 0 to 1 by right
# From how many boxes, and which part of them beyond the image, it is told that they are corners.
FEWEST_TELLING = 4
BEYOND_TELLING = 0.25


def load_coco(
    annotation_file: str | os.PathLike,
    image_folder: str | os.PathLike,
    categories: tuple[Category, ...] | None = None,
    strict: bool = False,
) -> Dataset:
    """The data set of a COCO annotation file; samples in the file's order of images.

    categories fixes the labels (of the training split, or of trained weights): the file's categories are matched to
    them by name (`match_names`) and come back with the file's own ids. Without it, a file with exactly COCO's 80
    categories gets label = COCO id; any other, a subset of COCO's too, gets labels 1..N in order of id.

    Images that are missing on disk, and entries that are malformed or refer to unknown ids, are dropped; of entries
    with the same id the first is kept. Boxes of finite numbers stay as they are, even with no area or outside the
    image, since COCO's evaluation counts them (Sample.objects leaves them out of training). All this is counted in
    Dataset.problems, as are boxes that stick out of the image by more than PIXELS_BEYOND_IMAGE. Images without
    annotations and crowds are no problem. An annotation without a usable bbox whose segmentation is run-length encoded
    gets the box around this mask. An absent area is width x height, an absent iscrowd 0; an absent image
    size is read from the image file.

    Raises UserError when the file cannot be read as COCO annotations, no image or no annotation of it is usable,
    categories have no name in common with it, or, if strict, when there is any problem.
    """
    document = _read_json(Path(annotation_file))
    images_section, annotations_section, categories_section = (
        _section(document, name, annotation_file) for name in ("images", "annotations", "categories")
    )
    problems = Problems(str(annotation_file))
    problems.totals = {
        "images": len(images_section),
        "objects": len(annotations_section),
        "categories": len(categories_section),
    }
    names = _without_root(_read_categories(categories_section, problems), categories_section, annotations_section)
    images = _read_images(images_section, Path(image_folder), problems)
    if any(with_numbers(entry) is not entry for entry in (*images_section, *annotations_section)):
        problems.notes.append(f"{annotation_file}: numbers that are written as texts are read as numbers")
    entries = _usable_annotations(annotations_section, images, names, problems)
    chosen = _choose_categories(names, categories, entries, problems)
    rows = list(dict.fromkeys(filter(None, images.values())))
    samples = _samples(rows, entries, chosen, problems)
    if strict:
        problems.refuse()
    return Dataset(str(annotation_file), chosen, samples, problems)


def image_entries(path: Path) -> list[dict]:
    """Those of the file's images that have an id and a file name. Raises UserError if it is not COCO's JSON."""
    entries = filter(lambda entry: isinstance(entry, dict), _section(_read_json(path), "images", path))
    return [
        entry for entry in entries if isinstance(entry.get("id"), int | str) and isinstance(entry.get("file_name"), str)
    ]


def _read_json(path: Path) -> dict:
    try:
        with path.open(encoding="utf-8-sig") as file:
            document = json.load(file)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    except json.JSONDecodeError as error:
        raise UserError(f"{path}, line {error.lineno}, column {error.colno}: not valid JSON: {error.msg}") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not valid JSON: {error}") from None
    if not isinstance(document, dict):
        raise UserError(f"{path}: COCO annotations are a JSON object, this is a {type(document).__name__}")
    return document


def _section(document: dict, name: str, path: str | os.PathLike) -> list:
    if name not in document:
        others = listed(list(document), MAX_SECTIONS) or "nothing"
        raise UserError(
            f'{path}: no "{name}": COCO annotations have images, annotations and categories; found {others}'
        )
    if not isinstance(document[name], list):
        raise UserError(f'{path}: "{name}" must be a list, it is a {type(document[name]).__name__}')
    if not document[name]:
        raise UserError(f'{path}: "{name}" is empty')
    return document[name]


def _read_categories(entries: list, problems: Problems) -> dict[int, str]:
    """Names by id, in order of id."""
    names: dict[int, str] = {}
    ids_by_name: dict[str, int] = {}
    for position, entry in enumerate(map(with_numbers, entries)):
        fault = id_fault(entry, names) or text_fault(entry, "name")
        if fault:
            problems.add(f"category {fault}", located("categories", entry, position), CATEGORY_LEFT_OUT)
            continue
        id_, name = entry["id"], entry["name"].strip()
        if folded(name) in ids_by_name:
            ids = f"ids {ids_by_name[folded(name)]} and {id_}"
            problems.add("category name used twice", f"{name!r} ({ids})", READ_ALL_THE_SAME)
        names[id_] = name
        ids_by_name.setdefault(folded(name), id_)
    if not names:
        raise UserError(f"{problems.message()}\nNo category is left.")
    return told_apart(dict(sorted(names.items())))


def _without_root(names: dict[int, str], entries: list, annotations: list) -> dict[int, str]:
    """The names without that of Roboflow's category 0, which stands above the others and has no objects."""
    above = {entry.get("supercategory") for entry in entries if isinstance(entry, dict) and entry.get("id") != 0}
    is_root = len(names) > 1 and names.get(0) in above
    if not is_root or any(isinstance(entry, dict) and entry.get("category_id") == 0 for entry in annotations):
        return names
    return {id_: name for id_, name in names.items() if id_ != 0}


def _read_images(entries: list, folder: Path, problems: Problems) -> dict[int, ImageRow | None]:
    """Images by id, in the file's order; None for those that are dropped."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder of images")
    # Each folder is listed once: to ask for each of 100,000 files takes long on a network drive.
    files_in = cache(lambda parent: file_names(folder / parent))
    images: dict[int, ImageRow | None] = {}
    id_of: dict[str, int] = {}  # by file_name
    for position, entry in enumerate(map(with_numbers, entries)):
        file_name = entry.get("file_name") if type(entry) is dict else None
        first_id = id_of.get(file_name) if isinstance(file_name, str) else None
        # Some tools write an image once for each of its boxes, with the same id or another.
        if first_id is not None and not id_fault(entry, set() if entry.get("id") == first_id else images):
            images[entry["id"]] = images[first_id]
            problems.add(JOINED, located("images", entry, position), READ_ALL_THE_SAME)
            continue
        fault = id_fault(entry, images)
        if fault:
            problems.add(f"image {fault}", located("images", entry, position), IMAGE_LEFT_OUT)
            continue
        images[entry["id"]], fault = _read_image_entry(entry, folder, files_in)
        if isinstance(file_name, str):
            id_of.setdefault(file_name, entry["id"])
        if fault:
            problems.add(f"image {fault}", f"image {entry['id']} ({entry.get('file_name')})", IMAGE_LEFT_OUT)
    if not any(images.values()):
        raise UserError(f"{problems.message()}\nNo image is left: is {folder} the folder that the file_names refer to?")
    return images


def _read_image_entry(
    entry: dict, folder: Path, files_in: Callable[[str], frozenset[str]]
) -> tuple[ImageRow | None, str | None]:
    """The image, or None and what is wrong with it."""
    fault = text_fault(entry, "file_name")
    if fault:
        return None, fault
    file = find_image(entry["file_name"], files_in)
    if file is None:
        return None, f"missing in {folder}"
    path = folder / file
    height, width = entry.get("height"), entry.get("width")
    if height is None or width is None:
        try:
            height, width = image_size(path)
        except ImageError:
            return None, "without width and height, whose file cannot be read"
    if not (is_size(height) and is_size(width)):
        return None, "whose width or height is not a positive whole number"
    return ImageRow(entry["id"], path, int(height), int(width)), None


def _usable_annotations(
    entries: list, images: dict[int, ImageRow | None], names: dict[int, str], problems: Problems
) -> list[dict]:
    """The well-formed annotations of images that are kept; those of dropped images are no problem of their own."""
    usable = []
    for position, entry in enumerate(with_box_of_mask(with_numbers(entry)) for entry in entries):
        fault = annotation_fault(entry, images, names)
        if fault:
            problems.add(f"annotation {fault}", located("annotations", entry, position), OBJECT_LEFT_OUT)
            continue
        image = images[entry["image_id"]]
        if image:  # else its image is dropped, which has been counted
            usable.append(entry if image.id == entry["image_id"] else entry | {"image_id": image.id})
    return usable


def _choose_categories(
    names: dict[int, str], given: tuple[Category, ...] | None, entries: list[dict], problems: Problems
) -> tuple[Category, ...]:
    if given is not None:
        return _match_categories(names, given, entries, problems)
    # Only with all of them: a subset would have outputs that nothing is ever learned for.
    if names == {category.id: category.name for category in COCO_CATEGORIES}:
        return COCO_CATEGORIES
    return tuple(Category(label, id_, name) for label, (id_, name) in enumerate(names.items(), start=1))


def _match_categories(
    names: dict[int, str], given: tuple[Category, ...], entries: list[dict], problems: Problems
) -> tuple[Category, ...]:
    """The file's categories with the given labels; annotated ones that are not among the given are a problem."""
    matched = match_names(names, given, problems.source)
    annotated = Counter(entry["category_id"] for entry in entries)
    for id_ in annotated.keys() - matched.keys():
        described = f"{names[id_]!r} (id {id_}, {annotated[id_]} annotations)"
        problems.add(UNKNOWN_CATEGORY, described, CATEGORY_LEFT_OUT)
    return tuple(Category(matched[id_].label, id_, matched[id_].name) for id_ in names if id_ in matched)


def _samples(
    images: list[ImageRow], entries: list[dict], chosen: tuple[Category, ...], problems: Problems
) -> tuple[Sample, ...]:
    label_of = {category.id: category.label for category in chosen}
    entries = [entry for entry in entries if entry["category_id"] in label_of]
    if not entries:
        raise UserError(f"{problems.message()}\nNo annotation is left.")
    table = _table(entries, images, label_of, problems)

    def described(row: int) -> str:
        image = images[table.image_index[row]]
        return f"annotation {entries[row].get('id')} (image {image.id}, {image}): bbox {entries[row]['bbox']}"

    report_boxes(images, table, described, problems)
    _refuse_other_boxes(table, images, problems.source)
    # COCO's own published figures count what is in its files, twice where it is there twice.
    if not all(category in COCO_CATEGORIES for category in chosen):
        table = without_repeated(table, described, problems)
    samples = samples_of(images, table)
    report_sizes(samples, problems)
    return samples


def _refuse_other_boxes(table: ObjectTable, images: list[ImageRow], source: str) -> None:
    """UserError if all boxes of the file say that they are written in another way than COCO's."""
    height, width = np.array([image[2:] for image in images], dtype=np.float64)[table.image_index].T
    x, y, x_end, y_end = table.boxes.T
    right, bottom = x_end - x, y_end - y  # what is the width in COCO's sense would be the right edge
    is_fraction = (table.boxes <= FRACTION_LIMIT).all() and (table.boxes >= 0).all() and (right * bottom > 0).any()
    if is_fraction and min(height.min(), width.min()) > SMALLEST_IMAGE:
        raise UserError(
            f"{source}: all {len(x)} boxes are within 0 to 1: they are fractions of the image, and COCO's bbox is in "
            "pixels: x, y, width, height; multiply them by width and height"
        )
    corners = (right > x) & (bottom > y) & (right <= width + 1) & (bottom <= height + 1)
    beyond = (x_end > width + 1) | (y_end > height + 1)
    if len(x) >= FEWEST_TELLING and corners.all() and beyond.mean() >= BEYOND_TELLING:
        raise UserError(
            f"{source}: {beyond.sum()} of {len(x)} boxes lead out of their images, and all fit as x1, y1, x2, y2; "
            "COCO's bbox is x, y, width, height: correct what wrote the file"
        )


def _table(entries: list[dict], images: list[ImageRow], label_of: dict[int, int], problems: Problems) -> ObjectTable:
    index_of = {image.id: index for index, image in enumerate(images)}
    boxes_xywh = np.array([entry["bbox"] for entry in entries], dtype=np.float64)
    return ObjectTable(
        image_index=np.array([index_of[entry["image_id"]] for entry in entries], dtype=np.int64),
        boxes=box_math.xywh_to_xyxy(boxes_xywh),
        labels=np.array([label_of[entry["category_id"]] for entry in entries], dtype=np.int64),
        crowd=np.array([bool(entry.get("iscrowd")) for entry in entries]),
        areas=_areas(entries, boxes_xywh, problems),
        difficult=np.zeros(len(entries), dtype=bool),
    )


def _areas(entries: list[dict], boxes_xywh: np.ndarray, problems: Problems) -> np.ndarray:
    areas = boxes_xywh[:, 2] * boxes_xywh[:, 3]
    for row, entry in enumerate(entries):
        area: Any = entry.get("area")
        if type(area) in (int, float) and abs(area) < MAX_COORDINATE**2:
            areas[row] = area
        elif area is not None:
            described = f"annotation {entry.get('id')} (area {str(area)[:80]})"
            problems.add("area that is not a number", described, READ_ALL_THE_SAME)
    return areas
