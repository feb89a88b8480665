"""Where the annotation files and images of a COCO-style data set are, in whatever layout a tool exports it."""

import os
import re
from collections.abc import Callable
from functools import cache, lru_cache
from pathlib import Path

from ssd300_vgg16.data.layout import Splits, by_split, file_names, folders_below, read_json, shorter_paths, split_named
from ssd300_vgg16.errors import UserError

# More JSON files than this in one folder are one for each image, which COCO's are not.
MAX_JSON_FILES = 20
NAMES_LOOKED_FOR = 50
# COCO's own annotations of other kinds, which lie beside those of the boxes.
_OTHER_KINDS = re.compile("^(captions|person_keypoints|stuff|panoptic|image_info)_")
# Label Studio puts eight digits before the name of a file that is uploaded to it.
_UPLOADED = re.compile("^[0-9a-f]{8}-(.+)$")
FilesIn = Callable[[str], frozenset[str]]  # the names of the files in a folder of the image folder


def coco_files(data: Path) -> dict[Path, tuple[str, ...]]:
    """The COCO annotation files in a folder, and if there is none those beside it, sorted; or the one that data is.

    Each with some of its file_names."""
    if data.is_file():
        return _coco_files([data])
    paths = [path for folder in folders_below(data) for path in _json_files(folder)]
    files = _coco_files(paths)
    if not files and data.is_dir():
        inside = cache(file_names)
        # What lies beside a folder may belong to another one.
        beside = Path(os.path.normpath(data / "..")) if data.name in ("", "..") else data.parent
        near = _coco_files(_json_files(beside))
        files = {path: names for path, names in near.items() if _count_there(names, data, inside)}
    return files


def _json_files(folder: Path) -> list[Path]:
    names = (name for name in file_names(folder) if name.lower().endswith(".json") and not name.startswith("."))
    paths = sorted(folder / name for name in names)
    if any(path.name.startswith("instances_") for path in paths):
        paths = [path for path in paths if not _OTHER_KINDS.match(path.name)]
    return paths if len(paths) <= MAX_JSON_FILES else []


def _coco_files(paths: list[Path]) -> dict[Path, tuple[str, ...]]:
    """Those of the JSON files that are COCO's."""
    status = {path: path.stat() for path in paths}
    names = {path: _names(path, status[path].st_mtime_ns, status[path].st_size) for path in paths}
    return {path: some for path, some in names.items() if some is not None}


@lru_cache  # the kind of the data and both of its splits are asked for, and each reads all of a large file
def _names(path: Path, mtime_ns: int, size: int) -> tuple[str, ...] | None:
    """Some file_names of a COCO annotation file, from all over it; None if it is not one."""
    try:
        document = read_json(path)
    except UserError:
        return None
    if not (isinstance(document, dict) and {"images", "annotations", "categories"} <= document.keys()):
        return None
    images = document["images"] if isinstance(document["images"], list) else []
    names = [image["file_name"] for image in images if isinstance(image, dict) and type(image.get("file_name")) is str]
    return tuple(names[:: max(1, len(names) // NAMES_LOOKED_FOR)])


def find_coco_splits(data: Path) -> Splits:
    """(annotation file, image folder) of each split that is there.

    Raises UserError where several files are for one split, or where the images of a file are not found.
    """
    places = {split: place for split in ("train", "val") if (place := _in_coco_layout(data, split))}
    if len(places) == 2:
        return places  # without reading COCO's other files, which are large
    files = coco_files(data)
    candidates = by_split(files, data)
    is_divided = {"train", "val"} <= candidates.keys()
    if data.is_dir() and not is_divided:
        # One that is broken may be the split that is missing.
        for path in dict.fromkeys(other for file in files for other in _json_files(file.parent) if other not in files):
            read_json(path)
    for split, paths in candidates.items():
        if split in places or (is_divided and split not in ("train", "val")):
            continue
        # trainval.json lies beside train.json, and has the images of val.json too.
        paths = tuple(path for path in paths if "trainval" not in path.name.lower()) or paths
        if len(paths) > 1:
            raise UserError(
                f"{data}: {len(paths)} COCO annotation files ({split}), and which is meant is not clear: "
                f"{', '.join(map(str, paths[:3]))}. "
                "Name one: --train-annotations FILE --train-images FOLDER, and the same with val"
            )
        places[split] = (paths[0], _image_folder(paths[0], files[paths[0]], data))
    return places


def _in_coco_layout(data: Path, split: str) -> tuple[Path, ...] | None:
    """The places of a split in COCO's own layout, or that of tools which write COCO's format."""
    files = [data / "annotations" / f"instances_{name}.json" for name in (f"{split}2017", split)]
    names = (f"{split}2017", split, f"images/{split}2017", f"images/{split}", "images", "JPEGImages")
    file = next(filter(Path.is_file, files), None)
    folder = next(filter(Path.is_dir, (data / name for name in names)), None)
    return (file, folder) if file and folder else None


def _image_folder(file: Path, names: tuple[str, ...], data: Path) -> Path:
    """The folder with most of the images that the file names; the nearest of several."""
    root = data if data.is_dir() else data.parent
    near = list(dict.fromkeys([file.parent, *folders_below(root), *folders_below(file.parent, 1)]))
    # A file in DATA/annotations, named outright: its images are in DATA. What is there may be of other data too.
    above = folders_below(file.parent.parent) if data.is_file() else []
    inside = cache(file_names)
    split = split_named(file, root)

    def fitness(folder: Path) -> tuple[int, bool]:
        return _count_there(names, folder, inside), split_named(folder, root) == split

    for folders in (near, above):
        best = max(folders, key=fitness, default=root)
        if _count_there(names, best, inside):
            return best
    raise UserError(
        f"{file}: none of the images that it names ({', '.join(names[:2]) or 'it names none'}) is in "
        f"{', '.join(map(str, near[:5]))}; name their folder with --train-annotations FILE --train-images FOLDER"
    )


def _count_there(names: tuple[str, ...], folder: Path, inside: Callable[[Path], frozenset[str]]) -> int:
    return sum(find_image(name, lambda parent: inside(folder / parent)) is not None for name in names)


def find_image(file_name: str, files_in: FilesIn) -> str | None:
    """The path in the image folder that a file_name means, as written or as far as its end goes; None if not there.

    Label Studio writes /data/upload/1/3f2a5c07-a.jpg.
    """
    for path in shorter_paths(file_name):
        parent, _, name = path.rpartition("/")
        files = files_in(parent)
        uploaded = _UPLOADED.match(name)
        for candidate in (name, uploaded[1] if uploaded else ""):
            if candidate in files:
                return f"{parent}/{candidate}" if parent else candidate
    return None
