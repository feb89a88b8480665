"""Formats of labels that are not read: told by their files, with what to export instead."""

import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from ssd300_vgg16 import reading
from ssd300_vgg16.data.layout import file_names, folders_below, read_json
from ssd300_vgg16.data.yolo_layout import LABEL_LINE
from ssd300_vgg16.errors import UserError

FILES_LOOKED_AT = 20  # of each suffix in a folder
MAX_FILES = 1000  # in all: someone may have named a folder with all that they have
BYTES_LOOKED_AT = 1 << 20
_FROM_THE_PROGRAM = "export them as COCO, VOC or YOLO from the program that they were labelled with"
# What each program offers to export.
_ADVICE = {
    "labelme": "convert them to COCO or VOC: labelme's own examples/bounding_box/labelme2voc.py does",
    "VGG Image Annotator": "export them as COCO: Annotation, Export Annotations (COCO format)",
    "VoTT": "export them as Pascal VOC: Export Settings",
    "CreateML": _FROM_THE_PROGRAM,
    "Label Studio": "export them as COCO or YOLO, with images",
    "Datumaro": "convert them: datum convert -if datumaro -f coco",
    "CVAT's own XML": "export the task as COCO 1.0, PASCAL VOC 1.1 or YOLO 1.1",
    "CSV": _FROM_THE_PROGRAM,
    "YOLO without class names": "list them in a file classes.txt there, one a line, in the order of their numbers",
    "KITTI": "convert them: datum convert -if kitti -f coco",
    "TFRecord": _FROM_THE_PROGRAM,
}
# By keys of a JSON file's object, of the objects in that, and of the first in a list.
_KEYS = (
    ("labelme", {"shapes", "imagePath"}),
    ("VoTT", {"asset", "regions"}),
    ("VoTT", {"assets", "tags"}),
    ("Datumaro", {"categories", "items"}),
    ("VGG Image Annotator", {"_via_img_metadata"}),
)
_KEYS_INSIDE = (("VGG Image Annotator", {"filename", "regions"}),)
_KEYS_OF_LIST = (
    ("CreateML", {"image", "annotations"}),
    ("Label Studio", {"data", "annotations"}),
    ("Label Studio", {"data", "completions"}),
)
_COLUMNS = {"xmin", "x_min", "x1", "bbox", "bbox_x", "xtl"}


def foreign_format(path: Path) -> str | None:
    """A sentence on the format of the labels in a folder or file, if it is a known one that is not read; else on a JSON
    file that cannot be read, if there is one."""
    broken = None
    for file in islice(_files(path), MAX_FILES):
        try:
            name = _TELL[file.suffix.lower()](file)
        except UserError as error:
            broken = broken or str(error)
            continue
        if name:
            return f"labels in the format {name} ({file}), which is not read: {_ADVICE[name]}"
    return broken


def _files(path: Path) -> Iterator[Path]:
    if path.is_file():
        yield from [path] if path.suffix.lower() in _TELL else []
    for folder in folders_below(path):
        names = sorted(file_names(folder))
        for suffix in _TELL:
            yield from islice((folder / name for name in names if name.lower().endswith(suffix)), FILES_LOOKED_AT)


def _tell_json(file: Path) -> str | None:
    document = read_json(file)
    if isinstance(document, list):
        return _with_keys(_KEYS_OF_LIST, document[:1])
    if not isinstance(document, dict):
        return None
    return _with_keys(_KEYS, [document]) or _with_keys(_KEYS_INSIDE, list(document.values()))


def _with_keys(known: tuple[tuple[str, set[str]], ...], entries: list) -> str | None:
    entries = [entry for entry in entries if isinstance(entry, dict)]
    return next((name for name, keys in known if any(keys <= entry.keys() for entry in entries)), None)


def _tell_xml(file: Path) -> str | None:
    return "CVAT's own XML" if re.search(r"<annotations[\s>]", _start(file)) else None


def _tell_csv(file: Path) -> str | None:
    header = _start(file).partition("\n")[0]  # not by the csv module, which raises for what no table has
    columns = {column.strip('"\r ').lower() for column in header.split(",")}
    if "region_shape_attributes" in columns:
        return "VGG Image Annotator"
    return "CSV" if columns & _COLUMNS else None


def _tell_text(file: Path) -> str | None:
    first = next(iter(_start(file).splitlines()), "")
    if LABEL_LINE.fullmatch(first):
        return "YOLO without class names"
    fields = first.split()
    is_kitti = len(fields) in (15, 16) and re.fullmatch("[A-Za-z_]+", fields[0])
    return "KITTI" if is_kitti and all(re.fullmatch(r"-?[\d.]+", field) for field in fields[1:]) else None


def _start(file: Path) -> str:
    try:
        with reading.opened(file) as opened:
            return opened.read(BYTES_LOOKED_AT).decode("utf-8-sig", "replace")
    except OSError:
        return ""


_TELL = {
    ".json": _tell_json,
    ".xml": _tell_xml,
    ".csv": _tell_csv,
    ".vott": lambda _: "VoTT",
    ".tfrecord": lambda _: "TFRecord",
    ".txt": _tell_text,
}
