"""Data sets in COCO's annotation format, checked while they are read."""

import contextlib
import os
import re
from functools import cache
from pathlib import Path
from typing import Any

from pycocotools import mask as coco_mask

from ssd300_vgg16.data.annotations import JOINED, SHOWN, ImageRow, ObjectRow, are_finite, dataset_of, is_side
from ssd300_vgg16.data.categories import told_apart
from ssd300_vgg16.data.coco_layout import FilesIn, find_image
from ssd300_vgg16.data.dataset import Category, Dataset, Fate, Problems
from ssd300_vgg16.data.images import ImageError, image_size
from ssd300_vgg16.data.layout import file_names, read_json
from ssd300_vgg16.errors import UserError
from ssd300_vgg16.text import listed

ID_AGAIN = "with the id of another"
MAX_MASK_PIXELS = (1 << 32) - 1  # pycocotools keeps a run in 32 bits
MAX_ID_BITS = 64
MAX_CATEGORY_ID = 2**63 - 1  # as numpy has them
_WHOLE_NUMBER = re.compile("-?[0-9]{1,18}")


def load_coco(
    annotation_file: str | os.PathLike,
    image_folder: str | os.PathLike,
    categories: tuple[Category, ...] | None = None,
    strict: bool = False,
) -> Dataset:
    """The data set of a COCO annotation file (`dataset_of`); samples in the file's order of images.

    categories fixes the labels: those of the training split, or of trained weights.
    Images that are missing on disk, and entries that are malformed or refer to unknown ids, are dropped and counted in
    Dataset.problems; of entries with the same id the first is kept. Boxes of finite numbers stay as they are, even with
    no area or outside the image, since COCO's evaluation counts them (Sample.objects leaves them out of training).
    Images without annotations and crowds are no problem. An annotation without a usable bbox whose segmentation is
    run-length encoded gets the box around this mask. An absent area is width x height, an absent iscrowd 0; an absent
    image size is read from the image file.
    Raises UserError when the file cannot be read as COCO annotations, and as `dataset_of` does.
    """
    document = _read_document(Path(annotation_file))
    problems = Problems(str(annotation_file))
    images_section, annotations_section, categories_section = (
        _with_numbers(_section(document, name, annotation_file), problems)
        for name in ("images", "annotations", "categories")
    )
    problems.totals = {
        "images": len(images_section),
        "objects": len(annotations_section),
        "categories": len(categories_section),
    }
    names = _without_root(_read_categories(categories_section, problems), categories_section, annotations_section)
    images = _read_images(images_section, Path(image_folder), problems)
    rows = list(filter(None, images.values()))
    objects = _read_objects(annotations_section, images, rows, names, problems)
    return dataset_of("coco", rows, objects, names, categories, problems, strict)


def image_entries(path: Path) -> list[dict]:
    """Those of the file's images that have an id and a file name. Raises UserError if it is not COCO's JSON."""
    entries = filter(lambda entry: isinstance(entry, dict), _section(_read_document(path), "images", path))
    return [
        entry for entry in entries if isinstance(entry.get("id"), int | str) and isinstance(entry.get("file_name"), str)
    ]


def _read_document(path: Path) -> dict:
    document = read_json(path)
    if not isinstance(document, dict):
        raise UserError(f"{path}: COCO annotations are a JSON object, this is a {type(document).__name__}")
    return document


def _section(document: dict, name: str, path: str | os.PathLike) -> list:
    if name not in document:
        others = listed(list(document)) or "nothing"
        raise UserError(
            f'{path}: no "{name}": COCO annotations have images, annotations and categories; found {others}'
        )
    if not isinstance(document[name], list):
        raise UserError(f'{path}: "{name}" must be a list, it is a {type(document[name]).__name__}')
    if not document[name]:
        raise UserError(f'{path}: "{name}" is empty')
    return document[name]


def _with_numbers(entries: list, problems: Problems) -> list:
    """The entries with whole numbers where some tools write texts or fractions of 0, which is noted."""
    read = [_entry_with_numbers(entry) for entry in entries]
    note = f"{problems.source}: numbers that are written as texts, or ids as 7.0, are read as numbers"
    if note not in problems.notes and any(one is not other for one, other in zip(read, entries, strict=True)):
        problems.notes.append(note)
    return read


def _entry_with_numbers(entry: Any) -> Any:
    """The same entry, or a copy with numbers in place of "7", 7.0 and ["1.5", "2", "10", "20"]."""
    if type(entry) is not dict:
        return entry
    numbers: dict[str, Any] = {
        name: int(value)
        for name in ("id", "image_id", "category_id", "iscrowd")
        if (type(value := entry.get(name)) is str and _WHOLE_NUMBER.fullmatch(value))
        or (type(value) is float and value.is_integer())
    }
    bbox = entry.get("bbox")
    if type(bbox) is list and any(type(value) is str for value in bbox):
        with contextlib.suppress(ValueError, TypeError, OverflowError):
            numbers["bbox"] = [float(value) for value in bbox]
    return entry | numbers if numbers else entry


def _located(section: str, entry: object, position: int) -> str:
    """Where an entry stands in the file: by its ids as far as it has them."""
    if not isinstance(entry, dict):
        return f"{section}[{position}]"
    fields = ("id", "image_id", "category_id", "bbox", "file_name", "name")
    # Cut short: a field may hold anything, a whole mask too.
    values = [f"{field} {str(entry[field])[:SHOWN]}" for field in fields if field in entry]
    return f"{section}[{position}] ({', '.join(values)})" if values else f"{section}[{position}]"


def _fault(entry: Any, **fields: type) -> str | None:
    """What is wrong with an entry's fields, which have to be of these types; in words that follow "annotation"."""
    if type(entry) is not dict:
        return "that is not an object"
    for field, kind in fields.items():
        if field not in entry:
            return f"without {field}"
        value: Any = entry[field]
        if type(value) is not kind or (kind is str and not str(value).strip()):  # not isinstance: true is an int too
            return f"whose {field} is not a {'whole number' if kind is int else 'text'}"
        # Longer ones can be chosen to have one hash: to look up 100,000 of them takes hours.
        if isinstance(value, int) and value.bit_length() > MAX_ID_BITS:
            return f"whose {field} has more than {MAX_ID_BITS} bits"
    return None


def _id_fault(entry: Any, known: dict) -> str | None:
    """What is wrong with the entry's id, given those before it."""
    return _fault(entry, id=int) or (ID_AGAIN if entry["id"] in known else None)


def _read_categories(entries: list, problems: Problems) -> dict[int, str]:
    """Names by id, in order of id."""
    names: dict[int, str] = {}
    for position, entry in enumerate(entries):
        fault = _id_fault(entry, names) or _fault(entry, name=str)
        if not fault and abs(entry["id"]) > MAX_CATEGORY_ID:
            fault = f"whose id is beyond {MAX_CATEGORY_ID}"
        if fault:
            problems.add(f"category {fault}", _located("categories", entry, position), Fate.CATEGORY_LEFT_OUT)
        else:
            names[entry["id"]] = entry["name"].strip()
    if not names:
        raise UserError(f"{problems.message()}\nNo category is left.")
    return told_apart(dict(sorted(names.items())), problems)


def _without_root(names: dict[int, str], entries: list, annotations: list) -> dict[int, str]:
    """The names without that of Roboflow's category 0, which stands above the others and has no objects."""
    # A list, as it may be of anything.
    above = [entry.get("supercategory") for entry in entries if isinstance(entry, dict) and entry.get("id") != 0]
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
    name_of: dict[int, Any] = {}
    for position, entry in enumerate(entries):
        fault = _id_fault(entry, images)
        if fault == ID_AGAIN and entry.get("file_name") == name_of[entry["id"]]:
            problems.add(JOINED, _located("images", entry, position), Fate.READ_ALL_THE_SAME)
        elif fault:
            problems.add(f"image {fault}", _located("images", entry, position), Fate.IMAGE_LEFT_OUT)
        else:
            image = _read_image(entry, folder, files_in)
            images[entry["id"]] = image if isinstance(image, ImageRow) else None
            name_of[entry["id"]] = name = entry.get("file_name")
            if isinstance(image, str):
                problems.add(f"image {image}", f"image {entry['id']} ({name})", Fate.IMAGE_LEFT_OUT)
    if not any(images.values()):
        raise UserError(f"{problems.message()}\nNo image is left: is {folder} the folder that the file_names refer to?")
    return images


def _read_image(entry: dict, folder: Path, files_in: FilesIn) -> ImageRow | str:
    """The image, or what is wrong with it."""
    fault = _fault(entry, file_name=str)
    if fault:
        return fault
    file = find_image(entry["file_name"], files_in)
    if file is None:
        return f"missing in {folder}"
    height, width = entry.get("height"), entry.get("width")
    if height is None or width is None:
        try:
            height, width = image_size(folder / file)
        except ImageError:
            return "without width and height, whose file cannot be read"
    if not (is_side(height) and is_side(width)):
        return "whose width or height is not a positive whole number"
    return ImageRow(entry["id"], folder / file, int(height), int(width))


def _read_objects(
    entries: list, images: dict[int, ImageRow | None], rows: list[ImageRow], names: dict[int, str], problems: Problems
) -> list[ObjectRow]:
    """The well-formed annotations of images that are kept; those of dropped images are no problem of their own."""
    index_of = {row.id: index for index, row in enumerate(rows)}
    objects = []
    for position, entry in enumerate(entries):
        bbox = _reference_fault(entry, images, names) or _bbox(entry)
        if isinstance(bbox, str):
            of_image = entry.get("image_id") if isinstance(entry, dict) else None
            image = images.get(of_image) if isinstance(of_image, int) else None
            located = _located("annotations", entry, position)
            problems.add(f"annotation {bbox}", located, Fate.OBJECT_LEFT_OUT, index_of[image.id] if image else None)
            continue
        image = images[entry["image_id"]]
        if image:  # else it is dropped, which has been counted
            x, y, width, height = map(float, bbox)
            where = f"annotation {entry.get('id')} of image {image.id}"
            area = _area(entry, width * height, where, problems)
            box, crowd = (x, y, x + width, y + height), bool(entry.get("iscrowd"))
            objects.append(ObjectRow(index_of[image.id], entry["category_id"], box, where, area, crowd))
    return objects


def _reference_fault(entry: Any, images: dict, names: dict) -> str | None:
    """What is wrong with an annotation but for its box."""
    # Its own id is not asked for: some tools count anew in each image, and nothing here refers to it.
    fault = _fault(entry, image_id=int, category_id=int)
    if fault:
        return fault
    for field, known in (("image_id", images), ("category_id", names)):
        if entry[field] not in known:
            return f"of unknown {field}"
    return None if entry.get("iscrowd") in (None, 0, 1) else "whose iscrowd is not 0 or 1"


def _area(entry: dict, of_box: float, where: str, problems: Problems) -> float:
    area: Any = entry.get("area")
    if type(area) in (int, float) and are_finite([area]):
        return area
    if area is not None:
        problems.add("area that is not a number", f"{where} (area {str(area)[:SHOWN]})", Fate.READ_ALL_THE_SAME)
    return of_box


def _bbox(entry: dict) -> list | str:
    """The box xywh, else that around the run-length encoded mask, else what is wrong with the box."""
    bbox = entry.get("bbox")
    if type(bbox) is not list or len(bbox) != 4 or any(type(value) not in (int, float) for value in bbox):
        fault = "without bbox" if "bbox" not in entry else "whose bbox is not 4 numbers"
    elif not are_finite(bbox):
        fault = "whose bbox is not finite"
    else:
        return bbox
    mask = entry.get("segmentation")
    box = _box_of_mask(mask.get("size"), mask.get("counts")) if type(mask) is dict else None
    return box or fault


def _box_of_mask(size: object, counts: object) -> list[float] | None:
    """The box xywh around a mask (height, width) in COCO's run-length encoding; None if it is malformed.

    counts: lengths of the runs, column by column, or these compressed to a text.
    """
    # pycocotools checks nothing: a side of 0 ends the process, and runs that do not fill the size give any box.
    if not (type(size) is list and len(size) == 2 and all(type(side) is int and side > 0 for side in size)):
        return None
    height, width = size
    if height * width > MAX_MASK_PIXELS:
        return None
    if type(counts) is list:
        if not all(type(run) is int and run >= 0 for run in counts) or sum(counts) != height * width:
            return None
        encoded = coco_mask.frPyObjects({"size": size, "counts": counts}, height, width)
    elif type(counts) is str and re.fullmatch("[0-o]*", counts):
        encoded = {"size": size, "counts": counts.encode()}
    else:
        return None
    # Last of all, once nothing can be handed to C code that it does not expect.
    x, y, box_width, box_height = coco_mask.toBbox(encoded).tolist()
    is_within = x + box_width <= width and y + box_height <= height
    return [x, y, box_width, box_height] if is_within else None
