"""Folders: the user's own for what is kept, one that nobody else works in, and those that are made for results."""

import errno
import fcntl
import os
import shlex
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ssd300_vgg16.errors import UserError, advice

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
        what_to_do = advice(error, otherwise="name another folder")
        raise UserError(f"{folder} cannot be written ({error.strerror}){what_to_do}") from error
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
    remedy = "set SSD_CACHE to a folder of your own"
    try:
        folder = named.expanduser().absolute()
        with suppress(FileExistsError):  # a link or a file: told below
            folder.mkdir(0o700, parents=True, exist_ok=True)
        status = folder.lstat()
    except (OSError, RuntimeError) as error:  # RuntimeError: this user has no home
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"the cache folder {named} cannot be made ({reason}): {remedy}") from error
    if stat.S_ISLNK(status.st_mode):
        problem, remedy = f"is a link to {folder.readlink()}", "set SSD_CACHE to the folder itself"
    elif not stat.S_ISDIR(status.st_mode):
        problem = "is a file"
    elif status.st_uid not in (os.geteuid(), 0):  # from root nothing is safe anyway, and images have folders of root's
        problem = f"belongs to another user (number {status.st_uid}), who could change what is kept there"
    elif status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        problem = "can be written by other users, who could have changed what is kept there"
        remedy = f"look through it, and chmod 700 {shlex.quote(str(folder))}, or {remedy}"
    else:
        return folder
    raise UserError(f"the cache folder {folder} {problem}: {remedy}")


def make_folder(folder: Path, inside: Path) -> None:
    """Make a folder that is, or lies below, one that the user has named. Raises UserError as `entered` does."""
    with entered(folder, inside):
        pass


@contextmanager
def entered(folder: Path, inside: Path | None) -> Iterator[int]:
    """A descriptor of a folder that is, or lies below, one that the user has named and that may be a link.

    Both are made; inside: the one that was named, None for a folder that is there. Raises UserError for a link on the
    way from there: nobody has named that.
    """
    if inside:
        inside.mkdir(parents=True, exist_ok=True)
    else:
        inside = folder
    descriptor = os.open(inside, os.O_PATH | os.O_DIRECTORY)  # which takes no permission to list it
    try:
        for part in folder.relative_to(inside).parts:
            inside = inside / part
            with suppress(FileExistsError):
                os.mkdir(part, dir_fd=descriptor)
            try:
                below = os.open(part, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=descriptor)
            except NotADirectoryError as error:
                problem = "is a link, and nothing is written through it" if inside.is_symlink() else "is no folder"
                raise UserError(f"{inside} {problem}: remove it, or name another folder") from error
            os.close(descriptor)
            descriptor = below
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def held(path: Path, busy: str) -> Iterator[bool]:
    """Keep other processes out of a folder, or of a file, which is made if need be: UserError(busy) if one is in it.

    The lock is the kernel's, on the thing itself, and ends with the process, however that comes about. A drive that
    knows no locks goes without, and False is given.
    """
    try:
        # A network drive locks no file that is open for reading alone.
        descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise UserError(f"{path} is a link, and nothing is written through it: remove it") from error
        raise
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
