"""Folders and files of data sets: what is in them, splits by name, paths that another machine wrote, text."""

import json
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from ssd300_vgg16 import reading
from ssd300_vgg16.errors import UserError

# Where the images and annotations of each split are: train, val, test, or WHOLE of a data set that is not divided.
Splits = dict[str, tuple[Path, ...]]
WHOLE = "whole"
MAX_FOLDERS = 2000
MAX_PARTS = 100  # of a path
_SPLIT_WORD = re.compile(r"(?<![a-z])(trainval|train|training|val|valid|validation|test|testing)(?![a-z])")


def split_named(path: Path, data: Path) -> str:
    """Which of train, val, test or WHOLE a file or folder in a data set is for, by its name, else its folders'."""
    relative = path.relative_to(data) if path.is_relative_to(data) else Path(path.name)
    for name in reversed(relative.parts):
        word = _SPLIT_WORD.search(name.lower())
        if word:
            return next(split for split in ("train", "val", "test") if word[0].startswith(split))
    return WHOLE


def by_split(paths: Iterable[Path], data: Path) -> Splits:
    """The files or folders in a data set by the split that each is for (`split_named`)."""
    splits: Splits = {}
    for path in paths:
        split = split_named(path, data)
        splits[split] = (*splits.get(split, ()), path)
    return splits


def file_names(folder: Path) -> frozenset[str]:
    """The files in a folder; none if it cannot be read."""
    try:
        with os.scandir(folder) as entries:
            return frozenset(entry.name for entry in entries if entry.is_file())
    except (OSError, ValueError):
        return frozenset()


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
    # To look for each of the shorter ones of a path of 20,000 folders takes minutes.
    return ("/".join(parts[first:]) for first in range(len(parts) if len(parts) <= MAX_PARTS else 0))


def read_text(path: Path, limit: reading.Limit = reading.ANNOTATION_BYTES) -> str:
    """The UTF-8 text of a file. Raises UserError if it cannot be read, or is larger than the limit."""
    try:
        return reading.read_text(path, limit)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    except ValueError:
        raise UserError(f"{path}: cannot be read: it is not UTF-8 text") from None


def read_lines(path: Path, limit: reading.Limit = reading.ANNOTATION_BYTES) -> list[tuple[int, str]]:
    """The lines of a text file that are not blank, each with its number. Raises UserError as `read_text` does."""
    lines = enumerate(read_text(path, limit).splitlines(), start=1)
    return [(number, line.strip()) for number, line in lines if line.strip()]


def read_json(path: Path) -> Any:
    """The content of a JSON file. Raises UserError, naming the place, if it is none."""
    try:
        return json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise UserError(f"{path}, line {error.lineno}, column {error.colno}: not valid JSON: {error.msg}") from None
    except (ValueError, RecursionError) as error:  # numbers of thousands of digits, lists in lists in lists
        raise UserError(f"{path}: not valid JSON: {error}") from None
