"""How folders of data sets are laid out: splits by name, folders below a folder, paths that another machine wrote."""

import hashlib
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import TypeVar

from ssd300_vgg16.data.dataset import Dataset
from ssd300_vgg16.errors import UserError

# Of a data set that is not divided.
WHOLE = "whole"
VAL_FRACTION = 0.2
MAX_FOLDERS = 2000
_SPLIT_WORD = re.compile(r"(?<![a-z])(trainval|train|training|val|valid|validation|test|testing)(?![a-z])")

Place = TypeVar("Place")


def split_named(path: Path, data: Path) -> str:
    """Which of train, val, test or WHOLE a file or folder in a data set is for, by its name, else its folders'."""
    relative = path.relative_to(data) if path.is_relative_to(data) else Path(path.name)
    for name in reversed(relative.parts):
        word = _SPLIT_WORD.search(name.lower())
        if word:
            return next(split for split in ("train", "val", "test") if word[0].startswith(split))
    return WHOLE


def folders_below(folder: Path, depth: int = 2) -> list[Path]:
    """The folder and those in it, down to this depth, sorted; not the hidden ones, and no more than MAX_FOLDERS."""
    found, level = [folder], [folder]
    for _ in range(depth):
        level = [child for parent in level for child in _folders_in(parent)]
        found += level[: max(0, MAX_FOLDERS - len(found))]
    return found


def _folders_in(folder: Path) -> list[Path]:
    try:
        with os.scandir(folder) as entries:
            return sorted(Path(entry.path) for entry in entries if not entry.name.startswith(".") and entry.is_dir())
    except OSError:
        return []


def shorter_paths(written: str) -> Iterator[str]:
    """The path as it is written, then without its first folders, one after the other: for a data set that has moved.

    All are relative, and lead nowhere out of the folder that they are taken to be in.
    """
    parts = [part for part in PurePosixPath(written.replace("\\", "/")).parts if part not in ("/", ".", "..")]
    return ("/".join(parts[first:]) for first in range(len(parts)))


def the_only(places: Sequence[Place], what: str, data: Path, advice: str) -> Place:
    """The only one of the places. Raises UserError, which names some of them, if there are several."""
    if len(places) > 1:
        some = ", ".join(map(str, places[:3]))
        raise UserError(f"{data}: {len(places)} of {what}, and which is meant is not clear: {some}. {advice}")
    return places[0]


def divided(dataset: Dataset, split: str, fraction: float) -> Dataset:
    """The "train" or "val" part of a data set that has no split of its own: of each image its file's name decides.

    The same name falls into the same part whatever other images there are, and val of a smaller fraction is in that of
    a larger one. Raises UserError if nothing is left for the split.
    """
    shares = [_share(sample.path.name) for sample in dataset.samples]
    # A few images may all fall on one side; then the nearest one changes it.
    limit = max(fraction, min(shares)) if fraction < 1 else 1.0
    if fraction < 1 and max(shares) <= limit:
        limit = max((share for share in shares if share < max(shares)), default=limit)
    chosen = [
        sample for sample, share in zip(dataset.samples, shares, strict=True) if (share <= limit) == (split == "val")
    ]
    if not chosen:
        raise UserError(
            f"{dataset.name}: of {len(shares)} images none is left for {split} with --val-fraction {fraction:g}"
        )
    return replace(dataset, samples=tuple(chosen))


def _share(name: str) -> float:
    """From 0 to 1, evenly spread over names."""
    return int.from_bytes(hashlib.sha256(name.encode(errors="surrogateescape")).digest()[:6], "big") / 2**48
