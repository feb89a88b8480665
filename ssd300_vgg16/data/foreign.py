"""Formats of labels that are not read: told by their files, with what to export instead."""

import csv
import json
import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from ssd300_vgg16.data.dataset import file_names
from ssd300_vgg16.data.layout import folders_below

FILES_LOOKED_AT = 20
BYTES_LOOKED_AT = 1 << 20
_COLUMNS = {"xmin", "x_min", "x1", "bbox", "bbox_x", "xtl"}
# What each program offers to export.
_ADVICE = {
    "labelme": "convert them to COCO or VOC: labelme's own examples/bounding_box/labelme2voc.py does",
    "VGG Image Annotator": "export them as COCO: Annotation, Export Annotations (COCO format)",
    "VoTT": "export them as Pascal VOC: Export Settings",
    "CreateML": "export them as COCO, VOC or YOLO from the program that they were labelled with",
    "Label Studio": "export them as COCO or YOLO, with images",
    "Datumaro": "convert them: datum convert -if datumaro -f coco",
    "CVAT's own XML": "export the task as COCO 1.0, PASCAL VOC 1.1 or YOLO 1.1",
    "CSV": "export them as COCO, VOC or YOLO from the program that they were labelled with",
    "KITTI": "convert them: datum convert -if kitti -f coco",
    "TFRecord": "export them as COCO, VOC or YOLO from the program that they were labelled with",
}


def foreign_format(path: Path) -> str | None:
    """A sentence on the format of the labels in a folder or file, if it is a known one that is not read."""
    for file in islice(_files(path), FILES_LOOKED_AT * len(_TELL)):
        name = _TELL[file.suffix.lower()](file)
        if name:
            return f"labels in the format {name} ({file}), which is not read: {_ADVICE[name]}"
    return None


def _files(path: Path) -> Iterator[Path]:
    if path.is_file():
        yield from [path] if path.suffix.lower() in _TELL else []
        return
    for folder in folders_below(path):
        names = sorted(file_names(folder))
        for suffix in _TELL:
            yield from islice((folder / name for name in names if name.lower().endswith(suffix)), FILES_LOOKED_AT)


def _tell_json(file: Path) -> str | None:
    try:
        document = json.loads(file.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError):
        return None
    if isinstance(document, list):
        entry = document[0] if document and isinstance(document[0], dict) else {}
        if "image" in entry and "annotations" in entry:
            return "CreateML"
        return "Label Studio" if "data" in entry and {"annotations", "completions"} & entry.keys() else None
    if not isinstance(document, dict):
        return None
    if {"shapes", "imagePath"} <= document.keys():
        return "labelme"
    if {"asset", "regions"} <= document.keys() or {"assets", "tags"} <= document.keys():
        return "VoTT"
    if {"categories", "items"} <= document.keys():
        return "Datumaro"
    entries = [entry for entry in document.values() if isinstance(entry, dict)]
    if "_via_img_metadata" in document or any({"filename", "regions"} <= entry.keys() for entry in entries):
        return "VGG Image Annotator"
    return None


def _tell_xml(file: Path) -> str | None:
    return "CVAT's own XML" if re.search(r"<annotations[\s>]", _start(file)) else None


def _tell_csv(file: Path) -> str | None:
    header = next(csv.reader(_start(file).splitlines()), [])
    columns = {column.strip().lower() for column in header}
    if "region_shape_attributes" in columns:
        return "VGG Image Annotator"
    return "CSV" if columns & _COLUMNS else None


def _tell_text(file: Path) -> str | None:
    fields = next(iter(_start(file).splitlines()), "").split()
    is_kitti = len(fields) in (15, 16) and re.fullmatch("[A-Za-z_]+", fields[0])
    return "KITTI" if is_kitti and all(re.fullmatch(r"-?[\d.]+", field) for field in fields[1:]) else None


def _start(file: Path) -> str:
    try:
        with file.open("rb") as opened:
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
