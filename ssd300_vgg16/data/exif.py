"""EXIF orientation: how a photograph is to be turned so that what was up is at its top."""

import struct
from typing import BinaryIO

import cv2
import numpy as np

AS_STORED = 1
ORIENTATIONS = range(1, 9)
LYING = range(5, 9)  # those that exchange width and height

_TAG = 0x0112
_SHORT = 3
_ENTRY_BYTES = 12
_JPEG = b"\xff\xd8\xff"
_PNG = b"\x89PNG\r\n\x1a\n"
_APP1 = b"\xff\xe1"
_START_OF_SCAN = b"\xff\xda"
# After a transposition, if it is LYING, which axes cv2.flip mirrors: 0 upside down, 1 left to right, -1 both.
_FLIPS = {2: 1, 3: -1, 4: 0, 6: 1, 7: -1, 8: 0}


def orientation_of(file: BinaryIO) -> int:
    """The orientation, one of ORIENTATIONS, of a JPEG or PNG file, from its header; AS_STORED where it says nothing
    that makes sense, and for other formats. Moves the file's position."""
    file.seek(0)
    signature = file.read(len(_PNG))
    if signature.startswith(_JPEG):
        return _orientation_in(_exif_of_jpeg(file))
    return _orientation_in(_exif_of_png(file)) if signature == _PNG else AS_STORED


def turn(image: np.ndarray, orientation: int) -> np.ndarray:
    """The pixels [H, W, C] turned as one of ORIENTATIONS says: [W, H, C] for those that are LYING."""
    if orientation in LYING:
        image = cv2.transpose(image)
    return cv2.flip(image, _FLIPS[orientation]) if orientation in _FLIPS else image


def _exif_of_jpeg(file: BinaryIO) -> bytes:
    """The content of the first segment of EXIF data; empty if there is none before the pixels."""
    file.seek(2)
    while len(marker := _marker(file)) == 2 and marker[:1] == b"\xff" and marker != _START_OF_SCAN:
        length = int.from_bytes(file.read(2), "big") - 2
        if length < 0:
            break
        if marker != _APP1:
            file.seek(length, 1)
        elif (content := file.read(length)).startswith(b"Exif\0"):
            return content[6:]
    return b""


def _marker(file: BinaryIO) -> bytes:
    """The next two bytes; any number of fill bytes may stand before a marker."""
    marker = file.read(2)
    while marker == b"\xff\xff":
        marker = b"\xff" + file.read(1)
    return marker


def _exif_of_png(file: BinaryIO) -> bytes:
    """The content of the chunk of EXIF data; empty if there is none before the pixels."""
    file.seek(len(_PNG))
    while len(head := file.read(8)) == 8 and head[4:] != b"IDAT":
        length = int.from_bytes(head[:4], "big")
        if head[4:] == b"eXIf":
            return file.read(length)
        file.seek(length + 4, 1)
    return b""


def _orientation_in(exif: bytes) -> int:
    """Of EXIF data, which is a TIFF file's header with its first directory."""
    order = {b"II": "<", b"MM": ">"}.get(exif[:2])
    if order is None:
        return AS_STORED
    try:
        (start,) = struct.unpack_from(f"{order}I", exif, 4)
        (entries,) = struct.unpack_from(f"{order}H", exif, start)
        for place in range(start + 2, start + 2 + entries * _ENTRY_BYTES, _ENTRY_BYTES):
            tag, kind, _, value = struct.unpack_from(f"{order}HHIH", exif, place)
            if tag == _TAG:
                return value if kind == _SHORT and value in ORIENTATIONS else AS_STORED
    except struct.error:
        pass
    return AS_STORED
