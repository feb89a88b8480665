"""Archives of weights, unpacked into memory: nothing is written, so nothing in them can be written anywhere."""

import gzip
import io
import re
import stat
import struct
import tarfile
import zipfile
import zlib
from typing import IO, BinaryIO

from ssd300_vgg16.errors import UserError

MAX_MEMBERS = 10_000
MAX_UNPACKED_BYTES = 2 << 30
# Weights hardly shrink: beyond the first, an archive that unpacks to more than so many of its own bytes holds none.
FREE_BYTES, MAX_RATIO = 128 << 20, 20
# A tar may give a member a long name in a header of its own, which is read whole and searched.
MAX_LONG_NAME_BYTES = 64 << 10
# What the readers of the standard library raise. RuntimeError: headers upon headers in a tar, a zip with a password.
DAMAGED = (EOFError, OSError, RuntimeError, ValueError, struct.error, tarfile.TarError, zipfile.BadZipFile, zlib.error)
NO_FILE = "is a link, a device or a sparse file; only files and folders are read"
COPY_AGAIN = "copy or download it again"
CHUNK = 1 << 20


def read_tar(file: BinaryIO, gzipped: bool) -> dict[str, bytes]:
    """The files of a tar by name.

    Raises UserError for a name that leads outside, a link, a device, too many members, too many bytes, and damage.
    """
    # The bytes are counted behind gzip: what a small file unpacks to is what fills the memory.
    unpacked = _Counted(gzip.GzipFile(fileobj=file) if gzipped else file, _length(file))
    files = {}
    try:
        with tarfile.open(fileobj=unpacked, mode="r|", bufsize=CHUNK, tarinfo=_Header) as archive:
            for count, member in enumerate(archive):
                _check_count(count + 1)
                name = _checked_name(member.name)
                if member.isreg() and not member.issparse() and (content := archive.extractfile(member)):
                    files[name] = content.read()
                elif not member.isdir():
                    raise UserError(f"its member {name!r:.120} {NO_FILE}")
        while unpacked.read(CHUNK):  # to gzip's own checksum, which follows the tar's end
            pass
    except DAMAGED as error:
        if gzipped and isinstance(error, tarfile.ReadError):
            raise UserError(f"it is packed with gzip, but no .tar.gz ({error}): unpack it first (gunzip)") from error
        raise UserError(f"it is an archive that is damaged or cut short ({error}); {COPY_AGAIN}") from error
    return files


def read_zip(archive: zipfile.ZipFile) -> dict[str, bytes]:
    """As `read_tar`, of a zip."""
    entries = [entry for entry in checked_zip(archive) if not entry.is_dir()]
    return {_checked_name(entry.filename): read_entry(archive, entry) for entry in entries}


def open_zip(file: BinaryIO) -> zipfile.ZipFile:
    """The zip in a file; raises UserError if its list of contents cannot be read."""
    try:
        return zipfile.ZipFile(file)
    except DAMAGED as error:
        raise UserError(f"it is a zip that is damaged or cut short ({error}); {COPY_AGAIN}") from error


def checked_zip(archive: zipfile.ZipFile) -> list[zipfile.ZipInfo]:
    """The entries of a zip; raises UserError for the contents that `read_tar` refuses, by what the zip says of them."""
    entries = archive.infolist()
    _check_count(len(entries))
    assert archive.fp is not None  # it is open
    # Not what the zip says of its entries: several may be the same bytes of the file.
    _check_bytes(sum(entry.file_size for entry in entries), _length(archive.fp))
    for entry in entries:
        name = _checked_name(entry.filename)
        if not entry.filename:
            raise UserError(f"it is a zip with a member that has no name; it is damaged: {COPY_AGAIN}")
        if stat.S_IFMT(entry.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise UserError(f"its member {name!r:.120} {NO_FILE}")
        if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise UserError(f"its member {name!r:.120} is packed in a rare way; unpack it, and zip it without options")
    return entries


def read_entry(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> bytes:
    """One file of a checked zip; raises UserError if it is damaged, encrypted, or not as long as the zip says."""
    try:
        with archive.open(entry) as file:
            content = file.read(entry.file_size + 1)  # never more than what was counted
    except DAMAGED as error:
        raise UserError(f"its part {entry.filename!r:.120} cannot be unpacked ({error}); {COPY_AGAIN}") from error
    if len(content) != entry.file_size:
        raise UserError(f"its part {entry.filename!r:.120} is not as long as the zip says; {COPY_AGAIN}")
    return content


class _Header(tarfile.TarInfo):
    """A member's header, refused before tarfile reads on if it asks for what no honest name or file needs."""

    def _sparse(self, *_: object) -> "_Header":
        # Else a map of its parts is read, whose length the file says.
        raise UserError(f"its member {self.name!r:.120} {NO_FILE}")

    # tarfile's own names for what reads each of the four forms.
    _proc_sparse = _proc_gnusparse_00 = _proc_gnusparse_01 = _proc_gnusparse_10 = _sparse

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> "_Header":
        header = super().frombuf(buf, encoding, errors)
        if header.size < 0 or (header.size > MAX_LONG_NAME_BYTES and not header.isreg()):
            raise UserError(f"it is an archive with a name of {header.size} bytes; it is damaged or made up")
        return header


class _Counted(io.BufferedIOBase):
    """A stream that gives no more than MAX_UNPACKED_BYTES."""

    def __init__(self, stream: BinaryIO | gzip.GzipFile, packed: int):
        self.stream = stream
        self.packed = packed
        self.count = 0

    def read(self, size: int | None = -1, /) -> bytes:
        content = self.stream.read(-1 if size is None else size)
        self.count += len(content)
        _check_bytes(self.count, self.packed)
        return content


def _check_count(count: int) -> None:
    if count > MAX_MEMBERS:
        raise UserError(f"it is an archive of more than {MAX_MEMBERS:,} members; unpack it yourself if you trust it")


def _check_bytes(count: int, packed: int) -> None:
    limit = min(MAX_UNPACKED_BYTES, FREE_BYTES + MAX_RATIO * packed)
    if count > limit:
        raise UserError(f"it unpacks to more than {limit:,} bytes; unpack it yourself if you trust it")


def _length(file: IO[bytes]) -> int:
    here = file.tell()
    length = file.seek(0, io.SEEK_END)
    file.seek(here)
    return length


def _checked_name(name: str) -> str:
    """The name with single slashes and no "."; raises UserError if it leads outside the archive."""
    parts = re.split(r"[/\\]", name)
    if name.startswith(("/", "\\")) or ".." in parts or re.match("[A-Za-z]:", name):
        raise UserError(f"its member {name!r:.120} would lie outside the folder it is unpacked in; not loaded")
    return "/".join(part for part in name.split("/") if part not in ("", "."))
