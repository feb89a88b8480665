"""Images of a training kept as they were decoded, from one epoch to the next, in memory or on the disk (`--cache`).

A cache gives what `read_photograph` gives: batches are the same with it and without. An image is kept when it is first
read. A file that has changed since, by its size or its time of change, is read anew, and one that cannot be read is an
ImageError each time. Caches are small objects that travel to the workers, and to other processes of the host.
"""

import errno
import fcntl
import hashlib
import mmap
import os
import shutil
import struct
import weakref
import zlib
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from ssd300_vgg16.data.dataset import Sample
from ssd300_vgg16.data.free_memory import available_memory
from ssd300_vgg16.data.images import Photograph, read_photograph, reduction
from ssd300_vgg16.errors import UserError

KINDS = ("none", "ram", "disk")
# Of the memory that is available, the part that a cache may take; the rest is the training's.
SHARE_OF_MEMORY = 0.7
# Bytes that a cache leaves free on a disk: checkpoints have to be written too.
LEAST_FREE = 2 << 30
_REDUCIBLE = (".jpg", ".jpeg", ".jpe", ".jfif")


def decoded_bytes(sample: Sample, least_side: int) -> int:
    """How much memory an image takes once it is decoded, by the size that its annotations declare."""
    reducible = sample.path.suffix.lower() in _REDUCIBLE
    factor = reduction(sample.height, sample.width, least_side) if reducible else 1
    return -(-sample.height // factor) * -(-sample.width // factor) * 3


def gigabytes(size: float) -> str:
    """A number of bytes in words: "9.3 GB"."""
    return f"{size / 1e9:.1f} GB"


def _identity(path: Path) -> tuple[int, int] | None:
    """What tells whether a file has changed; None if there is none."""
    try:
        status = path.stat()
    except (OSError, ValueError):
        return None
    return status.st_mtime_ns, status.st_size


# A row for each image: where its pixels are and how many bytes have room there; then, once `kept`, what is there.
_ROW = np.dtype(
    [(name, np.int64) for name in ("start", "room", "kept", "changed", "bytes", "h", "w", "H", "W", "factor")]
)


@dataclass(frozen=True)
class RamCache:
    """Images in memory that processes of this host share; it lasts as long as the object that `create` gave.

    Each image is written once, where nobody looks until it is whole, and never changes from then on. One that is larger
    than was declared, or has changed since, is decoded each time.
    """

    path: str
    inode: int

    @classmethod
    def create(cls, samples: Sequence[Sample], least_side: int) -> "RamCache":
        """An empty one for these samples. Raises UserError, before anything is read, if they would not fit."""
        table = np.zeros(len(samples), dtype=_ROW)
        table["room"] = [decoded_bytes(sample, least_side) for sample in samples]
        ends = table.nbytes + np.cumsum(table["room"])
        table["start"] = ends - table["room"]
        _refuse_too_large(int(table["room"].sum()), len(samples))
        memory = os.memfd_create("images")
        os.pwrite(memory, table.tobytes(), 0)
        os.ftruncate(memory, int(ends[-1]))
        cache = cls(f"/proc/{os.getpid()}/fd/{memory}", os.fstat(memory).st_ino)
        weakref.finalize(cache, os.close, memory)
        return cache

    def can_be_opened(self) -> bool:
        """Whether this process can see the memory, which may be that of a process in another container."""
        with suppress(OSError):
            return _opened(self) is not None
        return False

    def read(self, index: int, sample: Sample, least_side: int, notices: list[str]) -> Photograph:
        """The image of this sample, the index-th. notices: is added what the user should know. Raises ImageError."""
        identity = _identity(sample.path)
        if identity is None:
            return read_photograph(sample.path, sample.upright, least_side)
        memory = _opened(self)
        found = memory.find(index, identity)
        if found is None:
            found = read_photograph(sample.path, sample.upright, least_side)
            try:
                memory.keep(index, identity, found)
            except OSError as error:
                notices.append(f"--cache ram: no more images are kept ({error.strerror})")
        return found


def _refuse_too_large(size: int, images: int) -> None:
    available = available_memory()
    if size > SHARE_OF_MEMORY * available:
        raise UserError(
            f"--cache ram: the {images} training images take {gigabytes(size)} decoded, and of the "
            f"{gigabytes(available)} of memory available here no more than {gigabytes(SHARE_OF_MEMORY * available)} "
            "may be taken for them: use --cache disk, or none"
        )


class _Memory:
    """The memory of a RamCache as one process sees it."""

    def __init__(self, cache: RamCache):
        self._descriptor = os.open(cache.path, os.O_RDWR | os.O_CLOEXEC)
        weakref.finalize(self, os.close, self._descriptor)
        status = os.fstat(self._descriptor)
        if status.st_ino != cache.inode:
            raise FileNotFoundError(errno.ENOENT, "the memory is gone", cache.path)
        mapping = mmap.mmap(self._descriptor, status.st_size)
        self._bytes = np.frombuffer(mapping, dtype=np.uint8)
        rows = int(self._bytes[: _ROW.itemsize].view(_ROW)["start"][0]) // _ROW.itemsize  # the table ends there
        self._table = self._bytes[: rows * _ROW.itemsize].view(_ROW)

    def find(self, index: int, identity: tuple[int, int]) -> Photograph | None:
        """The image that is kept of such a file, its pixels read-only."""
        row = self._table[index]
        if not row["kept"] or (row["changed"], row["bytes"]) != identity:
            return None
        h, w, height, width, factor = (int(row[name]) for name in ("h", "w", "H", "W", "factor"))
        pixels = self._bytes[row["start"] : row["start"] + h * w * 3].reshape(h, w, 3)
        pixels.flags.writeable = False
        return Photograph(pixels, (height, width), factor)

    def keep(self, index: int, identity: tuple[int, int], photograph: Photograph) -> None:
        """Write the image, if none is kept there, and it has room. Raises OSError."""
        row, pixels = self._table[index], photograph.pixels
        place = index * _ROW.itemsize
        if row["kept"] or pixels.nbytes > row["room"] or not self._lock(place):
            return
        try:
            if not row["kept"]:
                _write(self._descriptor, pixels, int(row["start"]))
                row["changed"], row["bytes"] = identity
                row["h"], row["w"] = pixels.shape[:2]
                row["H"], row["W"] = photograph.size
                row["factor"] = photograph.factor
                row["kept"] = 1  # last: others look at it first
        finally:
            fcntl.lockf(self._descriptor, fcntl.LOCK_UN, 1, place)

    def _lock(self, place: int) -> bool:
        """Hold a row, until it is unlocked or this process dies; False if another process holds it."""
        try:
            fcntl.lockf(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, place)
        except (BlockingIOError, PermissionError):
            return False
        return True


@lru_cache(maxsize=1)
def _opened(cache: RamCache) -> _Memory:
    return _Memory(cache)


def _write(descriptor: int, pixels: np.ndarray, place: int) -> None:
    # By calls rather than through the mapping: where memory runs out it is an error and not a SIGBUS.
    rest = memoryview(np.ascontiguousarray(pixels)).cast("B")
    while rest:
        written = os.pwrite(descriptor, rest, place)
        rest, place = rest[written:], place + written


_HEADER = struct.Struct("<8s5qI")
_MAGIC = b"pixels1\0"
_HEADER_BYTES = 64
# A prime below a page: of each page of a file a byte is checked, since a loss of power can leave some empty.
_CHECKED = 4093


@dataclass(frozen=True)
class DiskCache:
    """Images in files of a folder, each with its pixels as they are: any training that asks for the same ones has them.

    A file is named after the image's path, size and time of change. It is written aside and renamed, so it is whole,
    and nothing but numbers is read from it. Where room on the disk runs out, the other images are decoded each time.
    """

    folder: str

    @classmethod
    def create(cls, folder: Path) -> "DiskCache":
        """Raises UserError if files cannot be written in that folder, which is made."""
        try:
            folder.mkdir(parents=True, exist_ok=True)
            aside = folder / f".{os.getpid()}.tmp"
            aside.write_bytes(b"")
            aside.unlink()
        except OSError as error:
            raise UserError(
                f"--cache disk: {folder} cannot be written to ({error.strerror}): set SSD_CACHE to another folder"
            ) from None
        return cls(str(folder))

    def read(self, index: int, sample: Sample, least_side: int, notices: list[str]) -> Photograph:
        """The image of this sample. notices: is added what the user should know. Raises ImageError."""
        identity = _identity(sample.path)
        if identity is None:
            return read_photograph(sample.path, sample.upright, least_side)
        path = self._file(sample, identity, least_side)
        found = _read_pixels(path)
        if found is None:
            found = read_photograph(sample.path, sample.upright, least_side)
            try:
                self._keep(path, found)
            except OSError as error:
                notices.append(f"--cache disk: {self.folder}: {error.strerror}: no more images are kept there")
        return found

    def _file(self, sample: Sample, identity: tuple[int, int], least_side: int) -> Path:
        what = (os.path.abspath(sample.path), *identity, sample.upright, least_side)  # noqa: PTH100 - a link is no change
        name = hashlib.sha256(os.fsencode("\0".join(map(str, what)))).hexdigest()
        return Path(self.folder, name[:2], name[2:])

    def _keep(self, path: Path, photograph: Photograph) -> None:
        if shutil.disk_usage(self.folder).free < LEAST_FREE + photograph.pixels.nbytes:
            raise OSError(errno.ENOSPC, f"less than {gigabytes(LEAST_FREE)} are free")
        pixels = np.ascontiguousarray(photograph.pixels).reshape(-1)
        about = (*photograph.pixels.shape[:2], *photograph.size, photograph.factor)
        header = _HEADER.pack(_MAGIC, *about, zlib.crc32(pixels[::_CHECKED].tobytes()))
        path.parent.mkdir(exist_ok=True)
        aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            with aside.open("wb") as file:
                file.write(header.ljust(_HEADER_BYTES, b"\0"))
                file.write(pixels)
            aside.replace(path)
        except BaseException:
            with suppress(OSError):
                aside.unlink(missing_ok=True)
            raise


def _read_pixels(path: Path) -> Photograph | None:
    """What a DiskCache has written; None if there is no such file, or not a whole one."""
    try:
        content = np.fromfile(path, dtype=np.uint8)
    except OSError:
        return None
    if content.size < _HEADER_BYTES:
        return None
    magic, h, w, height, width, factor, checksum = _HEADER.unpack_from(content)
    pixels = content[_HEADER_BYTES:]
    if magic != _MAGIC or pixels.size != h * w * 3 or zlib.crc32(pixels[::_CHECKED].tobytes()) != checksum:
        return None
    return Photograph(pixels.reshape(h, w, 3), (height, width), factor)
