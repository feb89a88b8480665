"""Where the annotation files and images of a COCO-style data set are, in whatever layout a tool exports it."""

import json
import os
import re
from collections.abc import Callable, Sequence
from functools import cache, lru_cache
from pathlib import Path
from typing import NamedTuple

from ssd300_vgg16.data.dataset import file_names
from ssd300_vgg16.data.layout import folders_below, shorter_paths, split_named, the_only
from ssd300_vgg16.errors import UserError

# More JSON files than this in one folder are one for each image, which COCO's are not.
MAX_JSON_FILES = 20
NAMES_LOOKED_FOR = 50
# COCO's own annotations of other kinds, which lie beside those of the boxes.
_OTHER_KINDS = re.compile("^(captions|person_keypoints|stuff|panoptic|image_info)_")
# Label Studio puts eight digits before the name of a file that is uploaded to it.
_UPLOADED = re.compile("^[0-9a-f]{8}-(.+)$")


class CocoFile(NamedTuple):
    """An annotation file, and some of its file_names."""

    path: Path
    names: tuple[str, ...]


def coco_files(data: Path) -> list[CocoFile]:
    """The COCO annotation files in a folder, and if there is none those beside it, sorted; or the one that data is."""
    if data.is_file():
        names = coco_names(data)
        return [] if names is None else [CocoFile(data, names)]
    files = [file for folder in folders_below(data) for file in _files_in(folder)]
    if not files and data.is_dir():
        inside = cache(file_names)
        beside = _files_in(Path(os.path.normpath(data / "..")) if data.name in ("", "..") else data.parent)
        # What lies beside a folder may belong to another one.
        files = [file for file in beside if _count_there(file.names, data, inside)]
    return files


def _files_in(folder: Path) -> list[CocoFile]:
    paths = sorted(folder / name for name in file_names(folder) if name.lower().endswith(".json"))
    if any(path.name.startswith("instances_") for path in paths):
        paths = [path for path in paths if not _OTHER_KINDS.match(path.name)]
    if len(paths) > MAX_JSON_FILES:
        return []
    return [CocoFile(path, names) for path in paths if (names := coco_names(path)) is not None]


def coco_names(path: Path) -> tuple[str, ...] | None:
    """Some file_names of a COCO annotation file, from all over it; None if it is not one."""
    try:
        status = path.stat()
    except OSError:
        return None
    return _coco_names(path, status.st_mtime_ns, status.st_size)


@lru_cache
def _coco_names(path: Path, *_: int) -> tuple[str, ...] | None:
    try:
        document = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError):
        return None
    if not (isinstance(document, dict) and {"images", "annotations", "categories"} <= document.keys()):
        return None
    images = document["images"] if isinstance(document["images"], list) else []
    names = [image["file_name"] for image in images if isinstance(image, dict) and type(image.get("file_name")) is str]
    return tuple(names[:: max(1, len(names) // NAMES_LOOKED_FOR)])


def find_coco_splits(data: Path) -> dict[str, tuple[Path, Path]]:
    """(annotation file, image folder) of each split that is there: train, val, test, or layout.WHOLE.

    Raises UserError where several files are for one split, or where the images of a file are not found.
    """
    known = _in_coco_layout(data)
    if {"train", "val"} <= known.keys():
        return known  # without reading COCO's other files, which are large
    files = coco_files(data)
    by_split: dict[str, list[CocoFile]] = {}
    for file in files:
        by_split.setdefault(split_named(file.path, data), []).append(file)
    places = {}
    for split, ones in by_split.items():
        if split in known:
            continue
        paths = [file.path for file in ones]
        advice = "Name one: --train-annotations FILE --train-images FOLDER, and the same with val"
        path = the_only(paths, f"COCO annotation files ({split})", data, advice)
        places[split] = (path, _image_folder(ones[paths.index(path)], data))
    return {**places, **known}


def _in_coco_layout(data: Path) -> dict[str, tuple[Path, Path]]:
    places = {}
    for split in ("train", "val"):
        try:
            places[split] = find_coco_split(data, split)
        except UserError:
            continue
    return places


def find_coco_split(data_path: str | os.PathLike, split: str) -> tuple[Path, Path]:
    """(annotation file, image folder) of the split, "train" or "val", of a data set in COCO's layout.

    DATA/annotations/instances_{split}2017.json or instances_{split}.json, with the images in DATA or DATA/images,
    in a folder {split}2017 or {split}, or all in DATA/images or DATA/JPEGImages. Raises UserError when not found.
    """
    data = Path(data_path)
    # COCO's own layout goes first, then that of tools which write COCO's format.
    files = [data / "annotations" / f"instances_{name}.json" for name in (f"{split}2017", split)]
    folders = [data / name for name in (f"{split}2017", split, f"images/{split}2017", f"images/{split}")]
    folders += [data / "images", data / "JPEGImages"]
    annotation_file = _first(Path.is_file, files, f"{split} annotations", f"--{split}-annotations FILE")
    image_folder = _first(Path.is_dir, folders, f"folder of {split} images", f"--{split}-images FOLDER")
    return annotation_file, image_folder


def _first(exists: Callable[[Path], bool], candidates: Sequence[Path], what: str, option: str) -> Path:
    for path in candidates:
        if exists(path):
            return path
    raise UserError(f"no {what}: looked for {', '.join(map(str, candidates))}. Or give it with {option}.")


def _image_folder(file: CocoFile, data: Path) -> Path:
    """The folder with most of the images that the file names; the nearest of several."""
    root = data if data.is_dir() else data.parent
    above = file.path.parent.parent
    folders = dict.fromkeys([file.path.parent, *folders_below(root), *folders_below(file.path.parent, 1)])
    # A file in DATA/annotations, named outright: its images are in DATA.
    folders |= dict.fromkeys(folders_below(above) if data.is_file() else [])
    inside = cache(file_names)
    split = split_named(file.path, root)

    def fitness(folder: Path) -> tuple[int, bool]:
        return _count_there(file.names, folder, inside), split_named(folder, root) == split

    best = max(folders, key=fitness)
    if not _count_there(file.names, best, inside):
        looked = ", ".join(map(str, list(folders)[:5]))
        raise UserError(
            f"{file.path}: none of the images that it names ({', '.join(file.names[:2]) or 'it names none'}) is in "
            f"{looked}; name their folder with --train-annotations FILE --train-images FOLDER"
        )
    return best


def _count_there(names: tuple[str, ...], folder: Path, inside: Callable[[Path], frozenset[str]]) -> int:
    return sum(find_image(name, lambda parent: inside(folder / parent)) is not None for name in names)


def find_image(file_name: str, files_in: Callable[[str], frozenset[str]]) -> str | None:
    """The path in the image folder that a file_name means, as written or as far as its end goes; None if not there.

    files_in: the names of the files in a folder of the image folder. Label Studio writes /data/upload/1/3f2a5c07-a.jpg.
    """
    for path in shorter_paths(file_name):
        parent, _, name = path.rpartition("/")
        files = files_in(parent)
        uploaded = _UPLOADED.match(name)
        for candidate in (name, uploaded[1] if uploaded else ""):
            if candidate in files:
                return f"{parent}/{candidate}" if parent else candidate
    return None
