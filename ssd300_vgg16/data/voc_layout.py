"""Where the XML files of a VOC-style data set are, in whatever layout a tool exports it."""

import re
from pathlib import Path

from ssd300_vgg16.data.layout import WHOLE, folders_below, split_named
from ssd300_vgg16.data.voc_sets import find_voc_split, voc_folders, xml_file, xml_names
from ssd300_vgg16.errors import UserError

_ROOT = re.compile(rb"<annotation[\s>]")
BYTES_LOOKED_AT = 4096


def find_voc_splits(data: Path) -> dict[str, tuple[Path, ...]]:
    """The image sets or folders of XML files of each split that is there: train, val, test, or layout.WHOLE."""
    if data.is_file():
        is_list = data.parent.parent.name == "ImageSets"
        return {WHOLE: (data,)} if is_list else find_voc_splits(data.parent)
    folders = voc_folders(data)
    if folders:
        return _image_sets(data, folders)
    places: dict[str, tuple[Path, ...]] = {}
    for folder in xml_folders(data):
        split = split_named(folder, data)
        places[split] = (*places.get(split, ()), folder)
    return places


def _image_sets(data: Path, folders: list[Path]) -> dict[str, tuple[Path, ...]]:
    places = {}
    for split in ("train", "val"):
        try:
            places[split] = find_voc_split(data, split)
        except UserError:
            continue
    if not places:
        # CVAT calls the list of a task without subsets default.txt.
        names = ("trainval", "default")
        lists = [folder / "ImageSets" / "Main" / f"{name}.txt" for folder in folders for name in names]
        whole = [path for path in lists if path.is_file()]
        places[WHOLE] = tuple(whole or [folder / "Annotations" for folder in folders])
    return places


def xml_folders(data: Path) -> list[Path]:
    """The folder and those in it that have VOC's XML files."""
    return [folder for folder in folders_below(data) if _holds_annotations(folder)] if data.is_dir() else []


def _holds_annotations(folder: Path) -> bool:
    names = xml_names(folder)
    if not names:
        return False
    # One file tells: other programs' XML has another outermost element. UTF-16 has null bytes between its letters.
    try:
        with xml_file(folder, names[0]).open("rb") as file:
            start = file.read(BYTES_LOOKED_AT).replace(b"\0", b"")
    except OSError:
        return True  # to be said when it is read
    return not start.strip() or _ROOT.search(start) is not None
