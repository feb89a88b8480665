"""Files that are written whole or not at all, and such that grow; never through a link.

A folder may be a stranger's: a link in it could lead to any file of the user's, so all that is written goes through
here. What is written whole is written aside, under a new name, and replaces whatever had the name before.
"""

import errno
import fcntl
import hashlib
import json
import os
import re
import secrets
import shlex
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import BufferedWriter, FileIO
from pathlib import Path
from typing import BinaryIO

from ssd300_vgg16 import reading
from ssd300_vgg16.errors import UserError

TEMPORARY_SUFFIX = ".ssd300-tmp"  # which nobody else's files have: what a killed process has left may be removed
_BLOCK = 1 << 20
_SETTLED_NS = 2 * 10**9  # since a file was changed; in less, it could change once more without a new time of change
_digests: dict[tuple[int, ...], str] = {}  # SHA-256 of files by what tells their state
_MIN_FREE = 1 << 20  # bytes, below which results are not begun
_MAX_LETTERS = 40  # of a name in that of its temporary file, which may be too long otherwise
_ROOM = "make room on its disk, or name another folder"
_FILES = "allow more (ulimit -n 1024), or take fewer --workers"
_ADVICE = {
    errno.ENOSPC: _ROOM,
    errno.EDQUOT: _ROOM,
    errno.EFBIG: "raise the limit on the size of files (ulimit -f)",
    errno.EMFILE: _FILES,
    errno.ENFILE: _FILES,
    errno.EAGAIN: "allow more processes (ulimit -u), or take fewer --workers",  # of a process that cannot be started
}


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
        advice = _advice(error) or ": name another folder"
        raise UserError(f"{folder} cannot be written ({error.strerror}){advice}") from error
    free = usage.f_bavail * usage.f_frsize
    if free < _MIN_FREE:
        raise UserError(f"{folder}: the disk is full ({free:,} bytes are free): make room, or name another folder")


def own_cache_folder() -> Path:
    """The user's own folder for what is kept: SSD_CACHE, else ~/.cache/ssd300_vgg16. Made with mode 0700 if need be.

    Raises UserError where what is in it could be a stranger's: it is a link, another user's, or others may write in
    it. Also if it cannot be made.
    """
    caches = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    named = Path(os.environ.get("SSD_CACHE") or f"{caches}/ssd300_vgg16")
    advice = "set SSD_CACHE to a folder of your own"
    try:
        folder = named.expanduser().absolute()
        with suppress(FileExistsError):  # a link or a file: told below
            folder.mkdir(0o700, parents=True, exist_ok=True)
        status = folder.lstat()
    except (OSError, RuntimeError) as error:  # RuntimeError: this user has no home
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"the cache folder {named} cannot be made ({reason}): {advice}") from error
    if stat.S_ISLNK(status.st_mode):
        problem, advice = f"is a link to {folder.readlink()}", "set SSD_CACHE to the folder itself"
    elif not stat.S_ISDIR(status.st_mode):
        problem = "is a file"
    elif status.st_uid not in (os.geteuid(), 0):  # from root nothing is safe anyway, and images have folders of root's
        problem = f"belongs to another user (number {status.st_uid}), who could change what is kept there"
    elif status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        problem = "can be written by other users, who could have changed what is kept there"
        advice = f"look through it, and chmod 700 {shlex.quote(str(folder))}, or {advice}"
    else:
        return folder
    raise UserError(f"the cache folder {folder} {problem}: {advice}")


@contextmanager
def held(path: Path, busy: str) -> Iterator[bool]:
    """Keep other processes out of a folder, or of a file, which is made if need be: UserError(busy) if one is in it.

    The lock is the kernel's, on the thing itself, and ends with the process, however that comes about. A drive that
    knows no locks goes without, and False is given.
    """
    # A network drive locks no file that is open for reading alone.
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
    locked = False
    try:
        with suppress(OSError):
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                locked = True
            except BlockingIOError as error:
                raise UserError(busy) from error
        yield locked
    finally:
        os.close(descriptor)


def is_inside(path: Path, folder: Path) -> bool:
    """Whether a path, its links followed, is the folder or below it."""
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))


def told(error: OSError) -> str:
    """An error of the system for people: the file, what is wrong, and what to do where that is known."""
    where = f"{os.fsdecode(error.filename)}: " if error.filename else ""
    return f"{where}{error.strerror or error}{_advice(error)}"


def _advice(error: OSError) -> str:
    return f": {_ADVICE[error.errno]}" if error.errno in _ADVICE else ""


def temporary(path: Path) -> Path:
    """Where a file is written before it takes its name: hidden, beside it, and a new name at each call."""
    return path.with_name(f".{path.name[:_MAX_LETTERS]}.{secrets.randbelow(10**12)}{TEMPORARY_SUFFIX}")


def is_temporary(path: Path) -> bool:
    """Whether the file's name is one that `temporary` gives."""
    return re.fullmatch(rf"\..+\.\d+{re.escape(TEMPORARY_SUFFIX)}", path.name, re.DOTALL) is not None


def make_folder(folder: Path, inside: Path) -> None:
    """Make a folder that is, or lies below, one that the user has named and that may be a link.

    Raises UserError for a link on the way from there: nobody has named that.
    """
    inside.mkdir(parents=True, exist_ok=True)
    for part in folder.relative_to(inside).parts:
        inside = inside / part
        if inside.is_symlink():
            raise UserError(f"{inside} is a link, and nothing is written through it: remove it, or name another folder")
        inside.mkdir(exist_ok=True)


@contextmanager
def open_atomically(path: Path, sync: bool = True) -> Iterator[BinaryIO]:
    """A file to write to, which takes its name at the end of the block, synced; UserError if it cannot be written.

    If the block fails, the former version stays and nothing else is left.
    """
    aside = temporary(path)
    try:
        with BufferedWriter(FileIO(aside, "x")) as file:
            yield file
            # Or a power cut after the renaming could leave an empty file under the name.
            file.flush()
            if sync:
                os.fsync(file.fileno())
        aside.replace(path)
    except OSError as error:
        if not path.parent.exists():
            raise UserError(f"{path} could not be written: its folder is not there, or no longer") from error
        raise UserError(
            f"{path} could not be written ({error.strerror or error}){_advice(error)}; its former version is whole"
        ) from error
    finally:
        with suppress(OSError):  # where it could not be made, nor can it be looked for
            aside.unlink(missing_ok=True)


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
            if end and path.exists():
                self._refuse_link()
                self._file = FileIO(path, "r+")
                self.end = min(end, self._file.seek(0, os.SEEK_END))
            else:
                self.end = 0
                self._file = FileIO(new_file(path), "r+")
            self._file.truncate(self.end)
            self._status = os.fstat(self._file.fileno())

    def _refuse_link(self) -> None:
        """Raises UserError for what is not a file itself; of a file that has other names too, make a copy."""
        status = self._path.lstat()
        if not stat.S_ISREG(status.st_mode):
            raise UserError(f"{self._path} is a link or no file at all, and nothing is written to it: remove it")
        if status.st_nlink > 1:
            with open_atomically(self._path) as copy, reading.opened(self._path) as source:
                shutil.copyfileobj(source, copy)

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


def write_atomically(path: Path, content: bytes | str, sync: bool = True) -> None:
    """Write a file, atomically and synced; raises UserError if it cannot be written."""
    with open_atomically(path, sync) as file:
        file.write(content.encode() if isinstance(content, str) else content)


def write_json(path: Path, content: object) -> None:
    """Write JSON, atomically; raises UserError if it cannot be written."""
    write_atomically(path, json.dumps(content, indent=2) + "\n")


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file of weights, hexadecimal. Raises OSError, also for one that is too large.

    A process reads a file again only if it was changed, or replaced, since.
    """
    with reading.opened(path, reading.WEIGHTS_BYTES) as file:
        status = os.fstat(file.fileno())
        # The time of the inode's change is the kernel's to set, and nobody's to put back; but it is a coarse one.
        state = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
        if state in _digests:
            return _digests[state]
        settled = time.time_ns() - status.st_ctime_ns > _SETTLED_NS
        digest = hashlib.sha256()
        while block := file.read(_BLOCK):
            digest.update(block)
    if settled:
        _digests[state] = digest.hexdigest()
    return digest.hexdigest()
