"""The entries of a COCO annotation file, one at a time: what is wrong with one, and where it stands."""

import contextlib
import re
from typing import Any

from pycocotools import mask as coco_mask

from ssd300_vgg16.data.dataset import MAX_COORDINATE

MAX_MASK_PIXELS = (1 << 32) - 1  # pycocotools keeps a run in 32 bits
_WHOLE_NUMBER = re.compile("-?[0-9]{1,18}")


def with_numbers(entry: Any) -> Any:
    """The entry with numbers where some tools write them as texts: "7", ["1.5", "2", "10", "20"]."""
    if type(entry) is not dict:
        return entry
    numbers: dict[str, Any] = {
        name: int(value)
        for name in ("id", "image_id", "category_id", "iscrowd")
        if isinstance(value := entry.get(name), str) and _WHOLE_NUMBER.fullmatch(value)
    }
    bbox = entry.get("bbox")
    if type(bbox) is list and any(type(value) is str for value in bbox):
        with contextlib.suppress(ValueError, TypeError):
            numbers["bbox"] = [float(value) for value in bbox]
    return entry | numbers if numbers else entry


def annotation_fault(entry: Any, images: dict, names: dict) -> str | None:
    """What is wrong with an annotation of these images and categories, by id, in words that follow "annotation"."""
    # Its own id is not asked for: some tools count anew in each image, and nothing here refers to it.
    if type(entry) is not dict:
        return "that is not an object"
    for field, known in (("image_id", images), ("category_id", names)):
        value = entry.get(field)
        if type(value) is not int:  # not isinstance: true is an int too
            return f"without {field}" if field not in entry else f"whose {field} is not a whole number"
        if value not in known:
            return f"of unknown {field}"
    if entry.get("iscrowd") not in (None, 0, 1):
        return "whose iscrowd is not 0 or 1"
    return _bbox_fault(entry)


def _bbox_fault(entry: dict) -> str | None:
    bbox = entry.get("bbox")
    if type(bbox) is not list or len(bbox) != 4:
        return "without bbox" if "bbox" not in entry else "whose bbox is not 4 numbers"
    for value in bbox:
        if type(value) is not float and type(value) is not int:
            return "whose bbox is not 4 numbers"
        if not -MAX_COORDINATE < value < MAX_COORDINATE:
            return "whose bbox is not finite"
    return None


def with_box_of_mask(entry: Any) -> Any:
    """The entry; one without a usable bbox gets that of its mask, if this is run-length encoded."""
    mask = entry.get("segmentation") if type(entry) is dict else None
    if type(mask) is not dict or not _bbox_fault(entry):
        return entry
    box = _box_of_mask(mask.get("size"), mask.get("counts"))
    return entry if box is None else entry | {"bbox": box}


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


def id_fault(entry: Any, known: dict | set) -> str | None:
    """What is wrong with the entry's id, given those before it."""
    if type(entry) is not dict:
        return "that is not an object"
    if type(entry.get("id")) is not int:
        return "without id" if "id" not in entry else "whose id is not a whole number"
    return "with the id of another" if entry["id"] in known else None


def text_fault(entry: dict, field: str) -> str | None:
    """What is wrong with a field that has to be a text."""
    if field not in entry:
        return f"without {field}"
    value = entry[field]
    return None if isinstance(value, str) and value.strip() else f"whose {field} is not a text"


def located(section: str, entry: object, position: int) -> str:
    """Where an entry stands in the file: by its ids as far as it has them."""
    if not isinstance(entry, dict):
        return f"{section}[{position}]"
    fields = ("id", "image_id", "category_id", "bbox", "file_name", "name")
    # Cut short: a field may hold anything, a whole mask too.
    values = [f"{field} {str(entry[field])[:80]}" for field in fields if field in entry]
    return f"{section}[{position}] ({', '.join(values)})" if values else f"{section}[{position}]"


def is_size(value: Any) -> bool:
    """Whether it can be an image's width or height, in pixels; 640.0 can."""
    return type(value) in (int, float) and 0 < value < MAX_COORDINATE and value == int(value)
