"""Files that are written whole or not at all."""

import errno
import hashlib
import json
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from ssd300_vgg16 import reading
from ssd300_vgg16.errors import UserError

TEMPORARY_SUFFIX = ".ssd300-tmp"  # which nobody else's files have: what a killed process has left may be removed
_BLOCK = 1 << 20
_MIN_FREE = 1 << 20  # bytes, below which results are not begun


def refuse_unwritable(folder: Path) -> None:
    """Before work is begun: raises UserError if its results cannot be written to this folder, which need not exist."""
    place = folder.absolute()
    while not os.path.lexists(place):
        place = place.parent
    try:
        with tempfile.TemporaryFile(dir=place) as file:  # permissions say nothing about a disk that is read only
            file.write(b"x")
        usage = os.statvfs(place)
    except OSError as error:
        raise UserError(f"{folder} cannot be written ({error.strerror}): name another folder") from error
    free = usage.f_bavail * usage.f_frsize
    if free < _MIN_FREE:
        raise UserError(f"{folder}: the disk is full ({free:,} bytes are free): make room, or name another folder")


def is_inside(path: Path, folder: Path) -> bool:
    """Whether a path, its links followed, is the folder or below it."""
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))


def told(error: OSError) -> str:
    """An error of the system for people: the file, what is wrong, and what to do where that is known."""
    advice = ": make room on its disk, or name another folder" if error.errno in (errno.ENOSPC, errno.EDQUOT) else ""
    where = f"{os.fsdecode(error.filename)}: " if error.filename else ""
    return f"{where}{error.strerror or error}{advice}"


def temporary(path: Path) -> Path:
    """Where a file is written before it takes its name: hidden, and with the process's number, as several may do so."""
    return path.with_name(f".{path.name}.{os.getpid()}{TEMPORARY_SUFFIX}")


def is_temporary(path: Path) -> bool:
    """Whether the file's name is one that `temporary` gives."""
    return re.fullmatch(rf"\..+\.\d+{re.escape(TEMPORARY_SUFFIX)}", path.name, re.DOTALL) is not None


@contextmanager
def open_atomically(path: Path, sync: bool = True) -> Iterator[BinaryIO]:
    """A file to write to, which takes its name at the end of the block, synced; UserError if it cannot be written.

    If the block fails, the former version stays and nothing else is left.
    """
    aside = temporary(path)
    try:
        with aside.open("wb") as file:
            yield file
            # Or a power cut after the renaming could leave an empty file under the name.
            file.flush()
            if sync:
                os.fsync(file.fileno())
        aside.replace(path)
    except OSError as error:
        raise UserError(
            f"{path} could not be written ({error.strerror or error}); its former version is whole"
        ) from error
    finally:
        with suppress(OSError):  # where it could not be made, nor can it be looked for
            aside.unlink(missing_ok=True)


def write_atomically(path: Path, content: bytes | str) -> None:
    """Write a file, atomically and synced; raises UserError if it cannot be written."""
    with open_atomically(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


def write_json(path: Path, content: object) -> None:
    """Write JSON, atomically; raises UserError if it cannot be written."""
    write_atomically(path, json.dumps(content, indent=2) + "\n")


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file of weights, hexadecimal. Raises OSError, also for one that is too large."""
    digest = hashlib.sha256()
    with reading.opened(path, reading.WEIGHTS_BYTES) as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()
