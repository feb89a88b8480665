"""Files that are written whole or not at all, and such that grow; never through a link.

A folder may be a stranger's: a link in it could lead to any file of the user's, so all that is written goes through
here. What is written whole is written aside, under a new name, and replaces whatever had the name before.
"""

import json
import os
import re
import secrets
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from io import BufferedWriter, FileIO
from pathlib import Path
from typing import BinaryIO

from ssd300_vgg16 import reading
from ssd300_vgg16.errors import UserError, advice
from ssd300_vgg16.folders import entered

TEMPORARY_SUFFIX = ".ssd300-tmp"  # which nobody else's files have: what a killed process has left may be removed
_MAX_LETTERS = 40  # of a name in that of its temporary file, which may be too long otherwise


def temporary(path: Path) -> Path:
    """Where a file is written before it takes its name: hidden, beside it, and a new name at each call."""
    return path.with_name(f".{path.name[:_MAX_LETTERS]}.{secrets.randbelow(10**12)}{TEMPORARY_SUFFIX}")


def is_temporary(path: Path) -> bool:
    """Whether the file's name is one that `temporary` gives."""
    return re.fullmatch(rf"\..+\.\d+{re.escape(TEMPORARY_SUFFIX)}", path.name, re.DOTALL) is not None


@contextmanager
def open_atomically(path: Path, sync: bool = True, inside: Path | None = None) -> Iterator[BinaryIO]:
    """A file to write to, which takes its name at the end of the block, synced; UserError if it cannot be written.

    If the block fails, the former version stays and nothing else is left. inside: a folder that the user has named;
    those of the path below it are `entered`.
    """
    aside = temporary(path).name
    try:
        # By a descriptor: whoever puts a link in the folder's place meanwhile is not followed.
        with entered(path.parent, inside) as folder:
            try:
                with BufferedWriter(FileIO(aside, "x", opener=partial(os.open, mode=0o666, dir_fd=folder))) as file:
                    yield file
                    # Or a power cut after the renaming could leave an empty file under the name.
                    file.flush()
                    if sync:
                        os.fsync(file.fileno())
                os.replace(aside, path.name, src_dir_fd=folder, dst_dir_fd=folder)
            finally:
                with suppress(OSError):  # where it could not be made, or has its name by now
                    os.unlink(aside, dir_fd=folder)
    except OSError as error:
        if not path.parent.exists():
            raise UserError(f"{path} could not be written: its folder is not there, or no longer") from error
        raise UserError(
            f"{path} could not be written ({error.strerror or error}){advice(error)}; its former version is whole"
        ) from error


@contextmanager
def temporary_files_told() -> Iterator[None]:
    """Have what goes wrong in the block with files in the system's folder for temporary ones end in a UserError."""
    try:
        yield
    except OSError as error:
        folder = tempfile.tempdir or os.environ.get("TMPDIR", "/tmp")
        raise UserError(
            f"temporary files in {folder} could not be written ({error.strerror or error}): make room there, or set "
            "TMPDIR to a folder with room"
        ) from error


def new_file(path: Path) -> Path:
    """The path, where there is an empty file of our own now, for libraries that write to what has a name."""
    with _named(path):
        path.unlink(missing_ok=True)
        FileIO(path, "x").close()
    return path


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Have errors of the system name the path: those of files that are open do not."""
    try:
        yield
    except OSError as error:
        error.filename = str(path)
        raise


def name_also(path: Path, other: Path) -> None:
    """Let a file have another name too, atomically; where the disk knows no second names, a copy has it.

    Raises UserError if neither can be.
    """
    link = temporary(other)
    try:
        os.link(path, link)
        link.replace(other)
    except OSError:
        with open_atomically(other) as copy, reading.opened(path) as source:
            shutil.copyfileobj(source, copy)
    finally:
        with suppress(OSError):  # it is still there if both were names of one file
            link.unlink(missing_ok=True)


class GrowingFile:
    """A file that is added to while others may read it. Raises OSError that names it for what cannot be done."""

    def __init__(self, path: Path, end: int = 0, closing: bytes = b""):
        """end: how many bytes of what is there stay. closing: what always stands behind all that was added."""
        self.end, self._path, self._closing = end, path, closing
        with _named(path):
            if end and os.path.lexists(path):
                self._file = self._former()
                self.end = min(end, self._file.seek(0, os.SEEK_END))
            else:
                self.end = 0
                self._file = FileIO(new_file(path), "r+")
            self._file.truncate(self.end)
            self._status = os.fstat(self._file.fileno())

    def _former(self) -> FileIO:
        """What is there, a copy of it if it has other names too. Raises UserError for what is not a file itself."""
        if not stat.S_ISREG(self._path.lstat().st_mode):
            raise UserError(f"{self._path} is a link or no file at all, and nothing is written to it: remove it")
        file = FileIO(self._path, "r+", opener=lambda path, flags: os.open(path, flags | os.O_NOFOLLOW))
        if os.fstat(file.fileno()).st_nlink <= 1:  # network drives may say 0
            return file
        with file, open_atomically(self._path) as copy:
            shutil.copyfileobj(file, copy)
        return self._former()

    def refuse_removed(self) -> None:
        """Raises UserError if the name is no longer this file's: what is added would be lost."""
        with suppress(OSError):
            if os.path.samestat(self._status, self._path.stat()):
                return
        raise UserError(f"{self._path} was removed or moved while it was written: begin again")

    def add(self, content: bytes) -> None:
        """Write behind what is there, all of it or, after an error, none of it."""
        with _named(self._path):
            try:
                self._put(content)
            except OSError:
                # The former closing is there already, on a full disk too: it is written over itself.
                self._file.truncate(self.end + len(self._closing if self.end else b""))
                if self.end:
                    self._put(b"")
                raise
        self.end += len(content)

    def _put(self, content: bytes) -> None:
        view, place = memoryview(content + self._closing), self.end
        while view:  # on a disk that gets full, the first part of it is written without an error
            written = os.pwrite(self._file.fileno(), view, place)
            place, view = place + written, view[written:]

    def sync(self) -> None:
        """See that all is on the disk."""
        with _named(self._path):
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close it; what was added is no more certain to be on the disk than before."""
        with _named(self._path):
            self._file.close()


def write_atomically(path: Path, content: bytes | str, sync: bool = True, inside: Path | None = None) -> None:
    """Write a file as `open_atomically` does."""
    with open_atomically(path, sync, inside) as file:
        file.write(content.encode() if isinstance(content, str) else content)


def write_json(path: Path, content: object) -> None:
    """Write JSON, atomically; raises UserError if it cannot be written."""
    write_atomically(path, json.dumps(content, indent=2) + "\n")
