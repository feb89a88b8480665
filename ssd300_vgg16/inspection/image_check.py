"""Whether the image files of a data set are what their annotations say."""

import os
from collections.abc import Iterator, Sequence
from multiprocessing.pool import ThreadPool
from typing import NamedTuple

import numpy as np

from ssd300_vgg16.data.dataset import Sample
from ssd300_vgg16.data.exif import AS_STORED
from ssd300_vgg16.data.images import ImageError, exif_orientation, read_image

SAMPLES_PER_TURN = 8


class Finding(NamedTuple):
    """What reading a sample's file has shown.

    fault: what is wrong with it, a line that names it, or None; ignored_rotation: the file and its EXIF orientation,
    where it asks for one but the boxes are taken to refer to the pixels as stored, or None.
    """

    fault: str | None
    ignored_rotation: str | None


def read_checked(sample: Sample) -> tuple[np.ndarray | None, Finding]:
    """The pixels that the boxes refer to, uint8 [H, W, 3] RGB or None, and what reading them has shown."""
    try:
        image = read_image(sample.path, sample.upright)
        orientation = AS_STORED if sample.upright else exif_orientation(sample.path)
    except ImageError as error:
        return None, Finding(str(error), None)
    rotation = None if orientation == AS_STORED else f"{sample.path} (orientation {orientation})"
    return image, Finding(_wrong_size(sample, *image.shape[:2]), rotation)


def check_images(samples: Sequence[Sample]) -> Iterator[Finding]:
    """What each sample's file has shown, in order; all are read, by as many threads as there are cores."""
    with ThreadPool(len(os.sched_getaffinity(0))) as threads:
        yield from threads.imap(_finding, samples, chunksize=SAMPLES_PER_TURN)


def _finding(sample: Sample) -> Finding:
    return read_checked(sample)[1]


def _wrong_size(sample: Sample, height: int, width: int) -> str | None:
    if (height, width) == (sample.height, sample.width):
        return None
    declared = f"{sample.width} x {sample.height}"
    turned = ", as if turned" if (width, height) == (sample.height, sample.width) else ""
    return f"{sample.path}: {width} x {height} pixels, by the annotations {declared}{turned}"
