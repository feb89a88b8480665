"""Images as their annotations see them: tiles, and files of another size than declared, turned by EXIF or resized after
labelling.
"""

import math
from collections import OrderedDict
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ssd300_vgg16.data.dataset import PIXELS_BEYOND_IMAGE, Fate, Problems, Sample, Tile
from ssd300_vgg16.data.images import LYING, DecodedImage, ImageError, decode_image, exif_orientation, image_size
from ssd300_vgg16.errors import UserError

FILES_LOOKED_AT = 200  # when a data set is loaded; the others tell as they are read
SAME_SHAPE = 0.02  # how far width / height of a resized image may be from the declared one
TURNED = "image that its EXIF orientation turns to the declared size: read upright"
RESIZED = "image of another size than declared: its boxes are scaled to it"
MAX_BYTES_KEPT = 300_000_000  # of images that tiles are cut from, in each process: eight of 12 megapixels
MISDECLARED = "image of another size than declared, to which its boxes fit: they are taken as they are"


class View(NamedTuple):
    """How an image is read, and the (height, width) of the file so read, and of the image that its boxes refer to."""

    upright: bool
    size: tuple[int, int]
    annotated: tuple[int, int]


def view_of(sample: Sample) -> View:
    """How `read_as_annotated` sees an image, from its header alone. Raises ImageError as that does."""
    size, declared = image_size(sample.path, sample.upright), (sample.height, sample.width)
    if size == declared or _is_turned(sample, size):
        return View(sample.upright or size != declared, declared, declared)
    return View(sample.upright, size, _annotated_size(sample, size))


def read_as_annotated(sample: Sample, min_side: int | None = None) -> tuple[DecodedImage, tuple[int, int]]:
    """The image as the boxes see it, and the (height, width) of the image that their numbers refer to.

    These are the file's own, unless it was resized after labelling. Raises ImageError where the sizes cannot both be
    right.

    Of a tile: that part of the image, and its size. The images that tiles were last cut from are kept decoded.
    """
    if sample.tile:
        return _cut_out(sample.tile, min_side)
    decoded = decode_image(sample.path, sample.upright, min_side)
    if decoded.size == (sample.height, sample.width):
        return decoded, decoded.size
    if _is_turned(sample, decoded.size):
        return decode_image(sample.path, True, min_side), (sample.height, sample.width)
    return decoded, _annotated_size(sample, decoded.size)


def _cut_out(tile: Tile, min_side: int | None) -> tuple[DecodedImage, tuple[int, int]]:
    image, (left, top, right, bottom) = tile.image, tile.window
    declared, size = (image.height, image.width), (bottom - top, right - left)
    if min_side:  # the tile is to keep so many pixels
        min_side = math.ceil(min_side * min(declared) / min(size))
    decoded, annotated = _kept.read(image, min_side)
    if annotated != declared:
        height, width = decoded.size
        what = f"{width} x {height} pixels, by the annotations {image.width} x {image.height}, to which its boxes do "
        raise _WrongSize(image.path, f"{what}not fit: of such an image no tiles are cut; correct width and height")
    window = np.rint(scaled(np.array(tile.window, dtype=float), declared, decoded.size))
    x1, y1, x2, y2 = window.astype(int).tolist()
    height, width, _ = decoded.pixels.shape
    rows, columns = _reduced(y1, y2, height, decoded.factor), _reduced(x1, x2, width, decoded.factor)
    return decoded._replace(pixels=decoded.pixels[rows, columns], size=(y2 - y1, x2 - x1)), size


def _reduced(start: int, stop: int, length: int, factor: int) -> slice:
    """Pixels start..stop in an image of `length` pixels, of which each stands for `factor`; off by half of one."""
    count = -(-(stop - start) // factor)
    first = min(round(start / factor), length - count)
    return slice(first, first + count)


class _Kept:
    """Images that were read, as many of the last ones as go into MAX_BYTES_KEPT; one at least."""

    def __init__(self) -> None:
        self._images: OrderedDict[tuple, tuple[DecodedImage, tuple[int, int]]] = OrderedDict()

    def read(self, sample: Sample, min_side: int | None) -> tuple[DecodedImage, tuple[int, int]]:
        """What `read_as_annotated` gives."""
        key = sample.path, sample.upright, sample.height, sample.width, min_side
        if key not in self._images:
            read = read_as_annotated(sample, min_side)
            self._images[key] = read
            while len(self._images) > 1 and self._bytes() > MAX_BYTES_KEPT:
                self._images.popitem(last=False)
        self._images.move_to_end(key)
        return self._images[key]

    def _bytes(self) -> int:
        return sum(decoded.pixels.nbytes for decoded, _ in self._images.values())


_kept = _Kept()


def scaled(boxes: np.ndarray, annotated: tuple[int, int], size: tuple[int, int]) -> np.ndarray:
    """Boxes [N, 4] xyxy of an image of the annotated (height, width) in one of this size, in their own type."""
    if annotated == size:
        return boxes
    (height, width), (new_height, new_width) = annotated, size
    return boxes * np.array([new_width / width, new_height / height] * 2, dtype=boxes.dtype)


def looked_at(samples: Sequence[Sample]) -> Sequence[Sample]:
    """Those whose files `report_sizes` compares with the declared sizes."""
    return samples[:: max(1, -(-len(samples) // FILES_LOOKED_AT))]


def report_sizes(samples: Sequence[Sample], problems: Problems) -> None:
    """Count images of another size than declared, among some from all over the data set, by what becomes of them.

    Raises UserError if most have a size that cannot be right.
    """
    some = looked_at(samples)
    faults = []
    for sample in some:
        declared = sample.height, sample.width
        try:
            view = view_of(sample)
        except _WrongSize as error:
            faults.append(str(error))
        except ImageError:
            pass  # it will be said when it is read
        else:
            if view.size == declared and view.upright == sample.upright:
                continue
            height, width = reversed(declared) if view.size == declared else view.size
            kind = TURNED if view.size == declared else RESIZED if view.annotated == declared else MISDECLARED
            example = f"{sample.path.name}: {width} x {height}, declared {sample.width} x {sample.height}"
            problems.add(kind, example, Fate.READ_ALL_THE_SAME)
    if len(faults) > len(some) / 2:
        raise UserError(f"{problems.source}: {len(faults)} of {len(some)} images looked at are so: {faults[0]}")
    for fault in faults:
        problems.add("image of another size and shape than declared: left out", fault, Fate.IMAGE_SKIPPED)


class _WrongSize(ImageError):
    pass


def _is_turned(sample: Sample, size: tuple[int, int]) -> bool:
    is_swapped = size == (sample.width, sample.height)
    return is_swapped and not sample.upright and exif_orientation(sample.path) in LYING


def _annotated_size(sample: Sample, size: tuple[int, int]) -> tuple[int, int]:
    """Of a file of another size than declared: the size that the boxes refer to, the declared one or the file's."""
    declared = sample.height, sample.width
    if not _fits(sample, declared) and _fits(sample, size):
        return size
    ratio = (size[1] / size[0]) / (sample.width / sample.height)
    # Rounding to whole pixels changes the shape of small images.
    tolerance = max(SAME_SHAPE, 1 / min(size), 1 / min(declared))
    if abs(ratio - 1) <= tolerance or not _fits(sample, size):
        return declared
    turned = ", as if turned" if size == (sample.width, sample.height) else ""
    raise _WrongSize(
        sample.path,
        f"{size[1]} x {size[0]} pixels, by the annotations {sample.width} x {sample.height}{turned}: which of "
        "them the boxes refer to cannot be told; correct width and height, or label these files anew",
    )


def _fits(sample: Sample, size: tuple[int, int]) -> bool:
    height, width = size
    limits = np.array([width, height]) + PIXELS_BEYOND_IMAGE
    return bool((sample.boxes[:, 2:] <= limits).all())
