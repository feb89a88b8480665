"""What the header of an image file says: its size in pixels, and how EXIF turns it. Nothing else of it is read.

Readers that hold all that a header claims can be made to fill the memory: a megabyte of EXIF data may stand for the
value of each of 65,535 tags.
"""

import re
import struct
from collections.abc import Iterator
from io import BytesIO
from typing import BinaryIO, NamedTuple

# EXIF orientations: how an image is to be turned so that what was up is at its top.
AS_STORED = 1
ORIENTATIONS = range(1, 9)
LYING = range(5, 9)  # those that exchange width and height
_MAX_PARTS = 10_000  # of a header: more would keep this busy
_MAX_BYTES = 1 << 16  # of a header without parts, or between two parts of a damaged one
_MAX_EXIF = 1 << 20  # bytes: of 65,535 tags the first directory has 786,420
_EXIF = b"Exif\0\0"
# Tags of TIFF, which EXIF data are, and the types that a whole number has there.
_WIDTH, _HEIGHT, _ORIENTATION = 0x0100, 0x0101, 0x0112
_TILE_WIDTH, _TILE_HEIGHT, _MAX_TILE = 0x0142, 0x0143, 1 << 24  # pixels of one, in a smaller image too
_WHOLE = {1: "B", 3: "H", 4: "I"}
_STARTS_OF_FRAME = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # the others hold tables
_APP1, _START_OF_SCAN, _END = 0xE1, 0xDA, 0xD9
_PROGRESSIVE = (0xC2, 0xC6, 0xCA, 0xCE)
_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]", re.DOTALL)  # among pixels
_WITHOUT_LENGTH = (0x01, *range(0xD0, 0xD9))
_FRAME, _TRAILER, _CONTROL = 0x2C, 0x3B, b"\xf9"  # of a GIF; the last tells how to show a frame
_BLOCK = re.compile(rb"[,!;]")
_PPM = re.compile(rb"P[56](?:\s|#[^\n]*\n)+(\d{1,9})(?:\s|#[^\n]*\n)+(\d{1,9})\s")


class Header(NamedTuple):
    """size: (height, width) as stored, in pixels, None if it is not there. Of a JPEG: where it ends, in bytes, and
    whether its pixels may be in several scans."""

    size: tuple[int, int] | None
    orientation: int = AS_STORED
    end: int = 0
    in_scans: bool = False


def read_header(file: BinaryIO, kind: str) -> Header:
    """The header of a file of one of HEADERS, whatever is there."""
    try:
        return HEADERS[kind](file)
    except (struct.error, OSError):  # it is cut short, or sends elsewhere
        return Header(None)


def _size(height: int, width: int) -> tuple[int, int] | None:
    return (height, width) if height and width else None


def _jpeg(file: BinaryIO) -> Header:
    size, exif, end, in_scans, components = None, b"", 0, False, 0
    file.seek(2)
    for _ in range(_MAX_PARTS):
        marker, end = _marker(file), file.tell()
        if marker == _START_OF_SCAN:
            in_scans |= file.read(3)[2:] != bytes([components])
        if marker in (None, _START_OF_SCAN, _END):
            break
        if marker in _WITHOUT_LENGTH:
            continue
        start, length = file.tell(), max(2, int.from_bytes(file.read(2), "big"))
        if marker in _STARTS_OF_FRAME and size is None:
            height, width, components = struct.unpack(">xHHB", file.read(6))
            size, in_scans = _size(height, width), marker in _PROGRESSIVE
        elif marker == _APP1 and len(exif) < _MAX_EXIF and (segment := file.read(length - 2)).startswith(_EXIF):
            exif += segment[len(_EXIF) :]
        file.seek(start + length)
    return Header(size, _orientation(exif), end, in_scans)


def _marker(file: BinaryIO) -> int | None:
    """The next one, found as libjpeg does, past bytes that do not belong there."""
    behind_ff = False
    for _ in range(_MAX_BYTES):
        byte = file.read(1)
        if behind_ff and byte not in (b"", b"\0", b"\xff"):
            return byte[0]
        if not byte:
            break
        behind_ff = byte == b"\xff"
    return None


def count_scans(data: bytes, place: int, enough: int) -> int:
    """The scans of a JPEG, from where its first begins; those beyond enough + 1 are not looked for."""
    count = 1
    for _ in range(_MAX_PARTS):
        marker = _MARKER.search(data, place)
        if marker is None or marker[0][1] == _END or count > enough:
            break
        count += marker[0][1] == _START_OF_SCAN
        place = marker.end() + int.from_bytes(data[marker.end() : marker.end() + 2], "big")
    else:
        return enough + 1
    return count


def _chunks(file: BinaryIO, start: int, png: bool) -> Iterator[tuple[bytes, int]]:
    """Name and length of each chunk, of PNG or RIFF; within the loop the file is at the chunk's content."""
    for _ in range(_MAX_PARTS):
        file.seek(start)
        if png:
            length, name = struct.unpack(">I4s", file.read(8))
        else:
            name, length = struct.unpack("<4sI", file.read(8))
        yield name, length
        # PNG's checksum; RIFF's chunks begin at even places.
        start += 8 + length + (4 if png else length % 2)


def plain_png(png: bytes) -> bytes:
    """The PNG without what makes it an animation: OpenCV writes where its frames say, beyond the image too.

    Empty where a chunk is longer than what is left of the file: OpenCV makes room for it all the same, up to 2 GB.
    """
    place, start, parts = 8, 0, []
    for _ in range(max(_MAX_PARTS, len(png) >> 10)):
        if len(png) - place < 8:
            break
        length, name = struct.unpack_from(">I4s", png, place)
        end = place + 8 + length
        if end > len(png):
            return b""
        if name == b"IEND":
            break
        end += 4  # a checksum
        if name == b"acTL":
            parts.append(png[start:place])
            start = end
        place = end
    else:
        return b""
    return b"".join((*parts, png[start:]))


def plain_gif(gif: bytes) -> bytes:
    """The GIF's first frame alone: its decoder takes minutes for comments of some megabytes."""
    place = 13 + _colours(gif[10:11])
    parts = [gif[:place]]
    # Between blocks there may be other bytes, which decoders pass over.
    while (found := _BLOCK.search(gif, place)) and gif[start := found.start()] != _TRAILER:
        is_frame = gif[start] == _FRAME
        place = start + (11 + _colours(gif[start + 9 : start + 10]) if is_frame else 2)
        while length := int.from_bytes(gif[place : place + 1], "big"):
            place += 1 + length
        place += 1
        if is_frame or gif[start + 1 : start + 2] == _CONTROL:
            parts.append(gif[start:place])
        if is_frame:
            break
    return b"".join((*parts, b";"))


def _colours(flags: bytes) -> int:
    """Bytes of a GIF's table of colours; flags: of what it follows."""
    return 6 << (flags[0] & 7) if flags and flags[0] & 0x80 else 0


def _png(file: BinaryIO) -> Header:
    size, exif = None, b""
    for name, length in _chunks(file, 8, png=True):
        if name == b"IHDR" and size is None:
            width, height = struct.unpack(">II", file.read(8))
            size = _size(height, width)
        elif name == b"eXIf":
            exif = file.read(min(length, _MAX_EXIF))
        elif name == b"IDAT":
            break
    return Header(size, _orientation(exif))


def _bmp(file: BinaryIO) -> Header:
    file.seek(14)
    start = file.read(12)
    old = start[:4] == b"\x0c\0\0\0"
    width, height = struct.unpack_from("<HH" if old else "<ii", start, 4)
    return Header(_size(abs(height), abs(width)))


def _tiff(file: BinaryIO) -> Header:
    tags = _tags(file)
    size = _size(tags.get(_HEIGHT, 0), tags.get(_WIDTH, 0))
    tile = tags.get(_TILE_WIDTH, 0) * tags.get(_TILE_HEIGHT, 0)
    if size and tile > max(_MAX_TILE, 4 * size[0] * size[1]):
        return Header(None)  # its decoder would make room for it
    # Its decoder turns it, always.
    return Header(size[::-1] if size and tags.get(_ORIENTATION) in LYING else size)


def _webp(file: BinaryIO) -> Header:
    size, exif = None, b""
    try:
        for name, length in _chunks(file, 12, png=False):
            if size is None:
                size = _webp_size(name, file.read(10))
            elif name == b"EXIF":
                exif = file.read(min(length, _MAX_EXIF)).removeprefix(_EXIF)
                break
    except struct.error:  # the end, without EXIF data
        pass
    return Header(size, _orientation(exif))


def _webp_size(name: bytes, start: bytes) -> tuple[int, int] | None:
    """From the first chunk, which says it for all."""
    if name == b"VP8X":
        width, height = (1 + int.from_bytes(start[place : place + 3], "little") for place in (4, 7))
    elif name == b"VP8L":
        bits = int.from_bytes(start[1:5], "little")
        width, height = 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    elif name == b"VP8 ":
        width, height = (side & 0x3FFF for side in struct.unpack_from("<HH", start, 6))
    else:
        return None
    return _size(height, width)


def _ppm(file: BinaryIO) -> Header:
    file.seek(0)
    numbers = _PPM.match(file.read(_MAX_BYTES))
    return Header(_size(int(numbers[2]), int(numbers[1])) if numbers else None)


def _orientation(exif: bytes) -> int:
    """That of EXIF data; AS_STORED if it makes no sense."""
    orientation = _tags(BytesIO(exif)).get(_ORIENTATION, AS_STORED)
    return orientation if orientation in ORIENTATIONS else AS_STORED


def _tags(file: BinaryIO) -> dict[int, int]:
    """The first directory's tags that are one whole number; none if it is cut short. The first of each counts."""
    file.seek(0)
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(file.read(4))
    if order is None:
        return {}
    try:
        file.seek(*struct.unpack(f"{order}I", file.read(4)))
        (count,) = struct.unpack(f"{order}H", file.read(2))
    except struct.error:
        return {}
    tags: dict[int, int] = {}
    entries = file.read(12 * count)
    for tag, kind, number, value in struct.iter_unpack(f"{order}HHI4s", entries[: len(entries) // 12 * 12]):
        if kind in _WHOLE and number == 1:
            tags.setdefault(tag, struct.unpack_from(order + _WHOLE[kind], value)[0])
    return tags


HEADERS = {"JPEG": _jpeg, "PNG": _png, "BMP": _bmp, "TIFF": _tiff, "WebP": _webp, "PPM or PGM": _ppm}
