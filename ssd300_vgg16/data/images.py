"""Images as RGB: files, and what a program has in memory, arrays and Pillow images."""

import io
import os
import struct
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib import import_module
from typing import BinaryIO, NamedTuple

import cv2
import numpy as np
from PIL import Image, ImageOps, _avif

from ssd300_vgg16 import reading
from ssd300_vgg16.data import decoder
from ssd300_vgg16.data.dataset import Note
from ssd300_vgg16.data.image_headers import (
    AS_STORED,
    HEADERS,
    LYING,
    Header,
    count_scans,
    plain_gif,
    plain_png,
    read_header,
)
from ssd300_vgg16.errors import UserError
from ssd300_vgg16.reading import JPEG_SCANS
from ssd300_vgg16.text import printable

ImageLike = str | os.PathLike | np.ndarray | Image.Image

# Only formats whose decoders fail with an error on damaged files: OpenCV's JPEG 2000 decoder ends the process.
_SIGNATURES = {
    "JPEG": (b"\xff\xd8\xff",),
    "PNG": (b"\x89PNG\r\n\x1a\n",),
    "BMP": (b"BM",),
    "GIF": (b"GIF87a", b"GIF89a"),
    "TIFF": (b"II*\0", b"MM\0*"),
    "WebP": (b"RIFF",),
    "PPM or PGM": (b"P5", b"P6"),
}
# Containers of ISO's kind say which brands of images they hold. OpenCV's wheel reads neither; Pillow reads AVIF.
_BRANDS = {"AVIF": (b"avif", b"avis"), "HEIC": (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")}
_IN_BROWSERS = ("PNG", "BMP", "GIF", "WebP", "AVIF")  # and JPEG
_HEADER = 64  # bytes that tell the kind
_END_OF_JPEG = b"\xff\xd9"
_TRUNCATED = "image is truncated: its end is missing; fetch or export it again"
# How much smaller a JPEG can be decoded, each side, and OpenCV's name for it.
_REDUCED = {8: cv2.IMREAD_REDUCED_COLOR_8, 4: cv2.IMREAD_REDUCED_COLOR_4, 2: cv2.IMREAD_REDUCED_COLOR_2}

# After a transposition, if it is LYING, which axes cv2.flip mirrors: 0 upside down, 1 left to right, -1 both.
_FLIPS = {2: 1, 3: -1, 4: 0, 6: 1, 7: -1, 8: 0}
# How many bits of 16 an image may be made of: those that cameras and scanners give.
_DEPTHS = (8, 10, 12, 14, 16)
_HARMLESS = "known incorrect sRGB profile"  # of libpng's warnings: so common that nobody wants to hear of it
# Python's filters of warnings are those of the whole process, and images are read by threads.
_without_warnings_in_turn = threading.RLock()

# ImageError tells what went wrong; the decoders' own lines would come once more for each worker.
cv2.setLogLevel(0)


class ImageError(UserError):
    """An image file that cannot be read: made of its path and the reason."""

    def __str__(self) -> str:
        path, reason = self.args
        return f"{printable(os.fspath(path), 500)}: {reason}"


def read_image(path: str | os.PathLike, upright: bool = False) -> np.ndarray:
    """The pixels of an image file: uint8 [height, width, 3], RGB, contiguous.

    Pixels come as stored, since most annotations refer to them; upright turns an image as its EXIF orientation says
    (JPEG, PNG, WebP and AVIF; a TIFF's and a HEIC's orientation is always applied). Of 16 bits the upper 8 of those
    that are used are kept: an image that holds 12 is not left dark. Transparency is dropped and the colour underneath
    kept, as Pillow's convert("RGB") does, so that one file gives the same pixels here and in other frameworks (TIFF:
    blended with black by its decoder). Of an animation the first frame is read.
    Raises ImageError when the file is missing, empty, no image, of an unsupported format, truncated or too large.
    """
    return decode_image(path, upright).pixels


class DecodedImage(NamedTuple):
    """What `read_image` gives, or that reduced by `factor`: side n has ceil(n / factor) pixels.

    pixels: uint8 [h, w, 3]; size: (height, width) in pixels of the file; notes: what is odd about it.
    """

    pixels: np.ndarray
    size: tuple[int, int]
    factor: int = 1
    notes: tuple[Note, ...] = ()


def decode_image(path: str | os.PathLike, upright: bool = False, min_side: int | None = None) -> DecodedImage:
    """As `read_image`, but a JPEG with more pixels than it takes is decoded smaller, by 2, 4 or 8.

    Both sides keep at least `min_side` pixels; None: nothing is reduced. Each pixel stands for a block of the file's.
    """
    with _opened(path) as file:
        data = reading.all_of(file, reading.IMAGE_BYTES)
    if not data:
        raise ImageError(path, "the file is empty")
    kind = _kind_of(data)
    if kind is None:
        supported = ", ".join((*_SIGNATURES, *_BRANDS))
        raise ImageError(path, f"not an image, or of an unsupported format; these can be read: {supported}")
    header = _header(io.BytesIO(data), kind, path)
    # Other decoders refuse what has no end; this one fills up with grey. Thumbnails in the header have ends of their
    # own, and bytes after the end are fine: cameras append some.
    if kind == "JPEG" and data.rfind(_END_OF_JPEG, header.end) < 0:
        raise ImageError(path, f"the JPEG {_TRUNCATED}")
    if kind == "PNG" and not (data := plain_png(data)):
        raise ImageError(path, f"the PNG {_TRUNCATED}")
    scans = count_scans(data, header.end, JPEG_SCANS.value) if header.in_scans else 1
    if scans > JPEG_SCANS.value:
        raise ImageError(path, f"the JPEG image has {JPEG_SCANS.told(f'{scans} or more')}")
    size = _checked_size(header, kind, path)
    factor, notes = 1, tuple[Note, ...]()
    if kind not in HEADERS:
        image = _decode_by_pillow(data, kind, path)
    else:
        factor = reduction(*size, min_side) if kind == "JPEG" and min_side else 1
        image, notes = _decode(data, kind, path, factor)
    height, width = size if factor > 1 else image.shape[:2]
    orientation = header.orientation if upright else AS_STORED
    turned_size = (width, height) if orientation in LYING else (height, width)
    return DecodedImage(_turned(image, orientation), turned_size, factor, notes)


def reduction(height: int, width: int, min_side: int) -> int:
    """By what a JPEG of this size is reduced so that both sides keep at least `min_side` pixels: 1, 2, 4 or 8."""
    return next((factor for factor in _REDUCED if min(height, width) >= min_side * factor), 1)


def network_input(image: np.ndarray, image_size: int) -> np.ndarray:
    """An image uint8 [H, W, 3] resized and laid out as the network takes it: uint8 [3, image_size, image_size]."""
    return network_inputs([image], image_size)[0]


def network_inputs(images: Sequence[np.ndarray], image_size: int) -> np.ndarray:
    """The same of several, of any sizes: uint8 [B, 3, image_size, image_size]."""
    batch = np.empty((len(images), 3, image_size, image_size), dtype=np.uint8)
    for image, planes in zip(images, batch, strict=True):
        # Into the batch itself: a copy would take longer than this.
        cv2.split(cv2.resize(image, (image_size, image_size), interpolation=cv2.INTER_LINEAR), list(planes))
    return batch


def image_size(path: str | os.PathLike, upright: bool = False) -> tuple[int, int]:
    """(height, width) in pixels as `read_image` gives them, from the file's header alone. Raises ImageError."""
    with _opened(path) as file:
        kind = _kind_of(file.read(_HEADER))
        if kind is None:
            raise ImageError(path, "not an image, or damaged")
        header = _header(file, kind, path)
    height, width = _checked_size(header, kind, path)
    return (width, height) if upright and header.orientation in LYING else (height, width)


def shown_upright(path: str | os.PathLike) -> bool:
    """Whether every browser shows the file, turned as its EXIF orientation says. Raises ImageError if it is not there.

    JPEG alone is turned by all of them: Chromium does not turn WebP.
    """
    with _opened(path) as file:
        kind = _kind_of(file.read(_HEADER))
    return kind == "JPEG" or (kind in _IN_BROWSERS and exif_orientation(path) == AS_STORED)


def exif_orientation(path: str | os.PathLike) -> int:
    """How `read_image` turns the file if it is to be upright, one of ORIENTATIONS, from its header alone.

    AS_STORED where the file says nothing that makes sense. Raises ImageError where it cannot be opened.
    """
    with _opened(path) as file:
        kind = _kind_of(file.read(_HEADER))
        with suppress(ImageError):  # whether there are pixels, their decoder tells
            return _header(file, kind, path).orientation if kind else AS_STORED
    return AS_STORED


def rgb(image: object, name: str = "the image") -> np.ndarray:
    """The pixels of an image, uint8 [H, W, 3] RGB; an array that is this already is returned itself.

    image: a file, which is taken upright as a viewer shows it; a Pillow image, whose EXIF orientation is applied too;
    or an array [H, W, 3] RGB, [H, W, 4] RGBA, [H, W] or [H, W, 1] grey, in uint8 (0..255) or floats (0..1).
    Transparency is dropped and the colour underneath kept.
    Raises ImageError for a file that cannot be read, UserError, which begins with the name, for anything else.
    """
    if isinstance(image, str | os.PathLike):
        return read_image(image, upright=True)
    if isinstance(image, Image.Image):
        return _of_array(_array_of(image, name), name)
    if isinstance(image, np.ndarray):
        return _of_array(image, name)
    raise UserError(f"{name}: a path, a numpy array or a Pillow image is needed, not {type(image).__name__}")


def _of_array(image: np.ndarray, name: str) -> np.ndarray:
    if image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] not in (1, 3, 4)):
        channels_first = image.ndim == 3 and image.shape[0] in (1, 3, 4)
        hint = ": its channels come first, and image.transpose(1, 2, 0) puts them last" if channels_first else ""
        raise UserError(f"{name}: an array of shape {image.shape}, not [H, W, 3], [H, W, 4] or [H, W]{hint}")
    if not image.size:
        raise UserError(f"{name}: an array of shape {image.shape} has no pixels")
    if np.issubdtype(image.dtype, np.floating):
        if not (image.min() >= 0 and image.max() <= 1):
            raise UserError(
                f"{name}: floats from {image.min():g} to {image.max():g}, where 0 to 1 is expected: "
                "convert what goes to 255 by image.astype(np.uint8), and undo normalisation"
            )
        image = np.rint(image * 255).astype(np.uint8)
    if image.dtype != np.uint8:
        raise UserError(f"{name}: {image.dtype} values, where uint8 from 0 to 255 or floats from 0 to 1 are expected")
    if image.ndim == 2 or image.shape[2] == 1:
        return np.repeat(image.reshape(*image.shape[:2], 1), 3, axis=2)
    return image[..., :3]


def _array_of(image: Image.Image, name: str) -> np.ndarray:
    try:
        image.load()
    except (OSError, ValueError, SyntaxError) as error:
        raise UserError(f"{name}: the Pillow image cannot be read: {error}") from error
    with suppress(Exception):  # of damaged EXIF data, which is ignored in files too
        image = ImageOps.exif_transpose(image)
    # convert() would cut off at 255 what these hold.
    return np.asarray(image if image.mode == "F" or image.mode.startswith("I") else image.convert("RGB"))


@contextmanager
def _opened(path: str | os.PathLike) -> Iterator[BinaryIO]:
    """The file, to be read. Raises ImageError, also for what is no file."""
    try:
        with reading.opened(path, reading.IMAGE_BYTES) as file:
            yield file
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ImageError(path, reason[:1].lower() + reason[1:]) from None


def _header(file: BinaryIO, kind: str, path: str | os.PathLike) -> Header:
    """What the header says, unchecked. Raises ImageError where another library reads it, and cannot."""
    if kind in HEADERS:
        return read_header(file, kind)
    file.seek(0)
    with _by_pillow(file, kind, path) as (header, _):
        return header


def _checked_size(header: Header, kind: str, path: str | os.PathLike) -> tuple[int, int]:
    """(height, width), which can be decoded."""
    if header.size is None:
        raise ImageError(path, f"the {kind} image is damaged or truncated: its header makes no sense")
    pixels = header.size[0] * header.size[1]
    if pixels > reading.IMAGE_PIXELS.value:
        width_height = f"{header.size[1]:,} x {header.size[0]:,}"
        raise ImageError(path, f"the {kind} image is too large: {width_height}, {reading.IMAGE_PIXELS.told(pixels)}")
    return header.size


def _turned(image: np.ndarray, orientation: int) -> np.ndarray:
    """The pixels [H, W, C] turned as one of ORIENTATIONS says: [W, H, C] for those that are LYING."""
    if orientation in LYING:
        image = cv2.transpose(image)
    return cv2.flip(image, _FLIPS[orientation]) if orientation in _FLIPS else image


def _kind_of(data: bytes) -> str | None:
    for kind, signatures in _SIGNATURES.items():
        if data.startswith(signatures) and (kind != "WebP" or data[8:12] == b"WEBP"):
            return kind
    if data[4:8] != b"ftyp":
        return None
    # The main brand, a version, and other brands; a general one such as mif1 may come first.
    brands = {data[place : place + 4] for place in range(8, min(_HEADER, int.from_bytes(data[:4], "big")), 4)}
    return next((kind for kind, names in _BRANDS.items() if brands.intersection(names)), None)


def _decode(data: bytes, kind: str, path: str | os.PathLike, factor: int) -> tuple[np.ndarray, tuple[Note, ...]]:
    """The pixels as they are stored, RGB, by OpenCV; and what is odd about them."""
    flags = _REDUCED.get(factor, cv2.IMREAD_COLOR) | cv2.IMREAD_IGNORE_ORIENTATION
    try:
        bgr, lines = decoder.decode(data, flags | cv2.IMREAD_ANYDEPTH)
        if bgr is not None and bgr.dtype not in (np.uint8, np.uint16):  # a TIFF of floats, made 8 bits by OpenCV
            bgr, lines = decoder.decode(data, flags)
    except cv2.error as error:
        raise ImageError(path, f"the {kind} image cannot be decoded: {error.err or error}") from None
    if bgr is None:
        if (kind == "PNG" and b"IEND" not in data) or (
            kind == "WebP" and len(data) < int.from_bytes(data[4:8], "little") + 8
        ):
            raise ImageError(path, f"the {kind} {_TRUNCATED}")
        said = f" ({lines[-1].partition(': ')[2]})" if lines else ""
        raise ImageError(path, f"the {kind} image is damaged, truncated or of a kind that is not supported{said}")
    notes = _damage(lines, path)
    if bgr.dtype == np.uint16:
        bits = next(depth for depth in _DEPTHS if int(bgr.max()) < 1 << depth)
        bgr = (bgr >> (bits - 8)).astype(np.uint8)
        if bits < 16:
            notes = (*notes, Note(os.fspath(path), "16-bit image, scaled to 8 by what is in it", f"{bits} bits"))
    return cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB), notes


def _damage(lines: list[str], path: str | os.PathLike) -> tuple[Note, ...]:
    """A note of what the decoder's libraries printed about an image, if it is worth one."""
    told = [line.partition(": ")[2] or line for line in lines if _HARMLESS not in line]
    if not told:
        return ()
    if any(line.startswith("libpng") for line in lines):
        return (Note(os.fspath(path), "a chunk of the PNG image is damaged, its pixels are not", told[0]),)
    what = "the JPEG image is damaged, and part of it may be grey or shifted: fetch or export it again"
    return (Note(os.fspath(path), what, told[0], harmful=True),)


def _decode_by_pillow(data: bytes, kind: str, path: str | os.PathLike) -> np.ndarray:
    """The first frame [height, width, 3] RGB, by Pillow: the OpenCV wheel has no decoder of these."""
    with _by_pillow(io.BytesIO(data), kind, path) as (_, pixels):
        return np.array(pixels())


@contextmanager
def _by_pillow(
    file: BinaryIO, kind: str, path: str | os.PathLike
) -> Iterator[tuple[Header, Callable[[], Image.Image | np.ndarray]]]:
    """The header, and what decodes to [height, width, 3]; what goes wrong while it is open is an ImageError."""
    try:
        with _without_warnings():
            if kind == "AVIF":  # by Pillow's decoder alone: AvifImageFile would take in all EXIF data
                av1 = _avif.AvifDecoder(file.read(), "auto", os.cpu_count() or 1)
                (width, height), _, mode, _, _, orientation, _ = av1.get_info()
                shape = height, width, len(mode)
                pixels = lambda: np.frombuffer(av1.get_frame(0)[0], np.uint8).reshape(shape)[..., :3]  # noqa: E731
                yield Header((height, width), orientation), pixels
                return
            if kind == "HEIC":
                import_module("pillow_heif").register_heif_opener()
            with Image.open(io.BytesIO(plain_gif(file.read())) if kind == "GIF" else file) as image:
                yield Header((image.height, image.width)), lambda: image.convert("RGB")
    except ModuleNotFoundError:
        raise ImageError(
            path, "HEIC images are read where pillow-heif is installed: .venv/bin/python -m pip install pillow-heif"
        ) from None
    except Image.UnidentifiedImageError:
        raise ImageError(path, "not an image, or damaged") from None
    except Image.DecompressionBombError as error:
        raise ImageError(path, f"the image is too large: {error}") from None
    except (OSError, ValueError, SyntaxError, EOFError, IndexError, TypeError, RuntimeError, struct.error) as error:
        raise ImageError(path, f"damaged, or of a kind that is not supported: {error}") from None


@contextmanager
def _without_warnings() -> Iterator[None]:
    with _without_warnings_in_turn, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
