"""What others have made is opened here and nowhere else: a regular file, and no more of it than a limit.

A pipe or a device would be waited for without end, or fill the memory. No real data meets the limits; each is moved by
the environment variable that its message names.
"""

import errno
import hashlib
import os
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, NamedTuple

from ssd300_vgg16.errors import UserError

_BLOCK = 1 << 20
_SETTLED_NS = 2 * 10**9  # since a file was changed; in less, it could change once more without a new time of change
_digests: dict[tuple[int, ...], str] = {}  # SHA-256 of files by what tells their state
_KINDS = {
    stat.S_IFIFO: "a named pipe, not a file",
    stat.S_IFSOCK: "a socket, not a file",
    stat.S_IFCHR: "a device, not a file",
    stat.S_IFBLK: "a device, not a file",
}


class Limit(NamedTuple):
    """A count that is refused from here on: what is counted, and the environment variable that moves it."""

    default: int
    things: str
    variable: str

    @property
    def value(self) -> int:
        """Raises UserError if the variable is no whole number."""
        given = os.environ.get(self.variable, "")
        if given and not (given.isascii() and given.isdigit() and len(given) < 19):
            raise UserError(f"{self.variable}={given:.80}: write a whole number of {self.things}")
        return int(given or self.default)

    def told(self, count: int | str) -> str:
        """What is said of so many, behind a name."""
        count = count if isinstance(count, str) else f"{count:,}"
        return f"{count} {self.things}, where {self.value:,} is the limit; {self.variable} moves it"


# Cameras have up to 200 megapixels; 150 of them in 16 bits, not compressed, are 900 MB.
IMAGE_PIXELS = Limit(200_000_000, "pixels", "SSD_MAX_IMAGE_PIXELS")
IMAGE_BYTES = Limit(1 << 30, "bytes", "SSD_MAX_IMAGE_BYTES")
# Of one picture of a video; those of 8K have 33 million.
FRAME_PIXELS = Limit(50_000_000, "pixels", "SSD_MAX_FRAME_PIXELS")
# A progressive JPEG is computed anew for each, of which encoders make ten; one of 31 bytes takes 16 megapixels 40 ms.
JPEG_SCANS = Limit(64, "scans", "SSD_MAX_JPEG_SCANS")
# The annotations of a whole data set, or a list of its images.
ANNOTATION_BYTES = Limit(4 << 30, "bytes", "SSD_MAX_ANNOTATION_BYTES")
# What is said of one image: 100,000 boxes in text.
LABEL_BYTES = Limit(8 << 20, "bytes", "SSD_MAX_LABEL_BYTES")
# A data set in short: 50,000 names, which take PyYAML seconds.
YAML_BYTES = Limit(1 << 20, "bytes", "SSD_MAX_YAML_BYTES")
# Photographs of crowds have had 25,000; SSD512 has 24,564 default boxes.
OBJECTS = Limit(30_000, "objects", "SSD_MAX_OBJECTS")
WEIGHTS_BYTES = Limit(2 << 30, "bytes", "SSD_MAX_WEIGHTS_BYTES")
# What a run says of itself, pictures and all; and its figures, a line of 300 bytes a report.
RUN_BYTES = Limit(16 << 20, "bytes", "SSD_MAX_RUN_BYTES")
METRICS_BYTES = Limit(256 << 20, "bytes", "SSD_MAX_METRICS_BYTES")


@contextmanager
def opened(path: str | os.PathLike, limit: Limit | None = None) -> Iterator[BinaryIO]:
    """A regular file, to be read. Raises OSError, with a reason for people, for anything else and what is too large.

    limit: None where not all of it is read.
    """
    _refuse(path, Path(path).stat(), limit)  # before it is opened, which some devices take for a command
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    with os.fdopen(descriptor, "rb") as file:
        _refuse(path, os.fstat(descriptor), limit)  # or another file has its name by now
        yield file


def read_bytes(path: str | os.PathLike, limit: Limit) -> bytes:
    """All of a file. Raises OSError as `opened` does."""
    with opened(path, limit) as file:
        return all_of(file, limit)


def read_text(path: str | os.PathLike, limit: Limit) -> str:
    """All of a text in UTF-8, lines ended by \\n. Raises OSError as `opened` does, and ValueError if it is none."""
    blocks = []
    with opened(path, limit) as file:
        while block := file.read(_BLOCK):
            # The holes of a sparse file are read as zeros: it takes no place on a disk, and all of the memory.
            if block == bytes(_BLOCK):
                raise ValueError("null bytes")
            blocks.append(block)
    return b"".join(blocks).decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")


def lines_of(path: str | os.PathLike, limit: Limit | None = None) -> Iterator[bytes]:
    """The lines of a file, one at a time; one of more than 1 MiB comes in pieces. Raises OSError as `opened` does."""
    with opened(path, limit) as file:
        while line := file.readline(_BLOCK):
            yield line


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file of weights, hexadecimal. Raises OSError, also for one that is too large.

    A process reads a file again only if it was changed, or replaced, since.
    """
    with opened(path, WEIGHTS_BYTES) as file:
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


def all_of(file: BinaryIO, limit: Limit) -> bytes:
    """All of an opened file. Raises OSError if it is larger than it has said."""
    # Files of the system say that they have no size.
    size = min(os.fstat(file.fileno()).st_size or _BLOCK, limit.value)
    content = file.read(size + 1) or b""  # None of what would have to be waited for
    if len(content) > limit.value:
        raise OSError(errno.EOVERFLOW, f"has more than {limit.told(limit.value)}", file.name)
    return content


def _refuse(path: str | os.PathLike, status: os.stat_result, limit: Limit | None) -> None:
    kind = stat.S_IFMT(status.st_mode)
    if kind == stat.S_IFDIR:
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), os.fspath(path))
    if kind != stat.S_IFREG:
        raise OSError(errno.EINVAL, _KINDS.get(kind, "no file"), os.fspath(path))
    if limit and status.st_size > limit.value:
        raise OSError(errno.EOVERFLOW, f"has {limit.told(status.st_size)}", os.fspath(path))
