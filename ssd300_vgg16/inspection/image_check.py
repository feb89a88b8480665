"""Whether the image files of a data set are what their annotations say."""

import os
from collections.abc import Iterator, Sequence
from multiprocessing.pool import ThreadPool

import numpy as np

from ssd300_vgg16.data.dataset import Sample
from ssd300_vgg16.data.images import ImageError, read_image

SAMPLES_PER_TURN = 8


def read_checked(sample: Sample) -> tuple[np.ndarray | None, str | None]:
    """The pixels, uint8 [H, W, 3] RGB or None, and what is wrong with the file, a line that names it, or None."""
    try:
        image = read_image(sample.path)
    except ImageError as error:
        return None, str(error)
    height, width = image.shape[:2]
    if (height, width) == (sample.height, sample.width):
        return image, None
    declared = f"{sample.width} x {sample.height}"
    turned = ", as if turned" if (width, height) == (sample.height, sample.width) else ""
    return image, f"{sample.path}: {width} x {height} pixels, by the annotations {declared}{turned}"


def check_images(samples: Sequence[Sample]) -> Iterator[str | None]:
    """What is wrong with each sample's file, or None, in order; all are read, by as many threads as there are cores."""
    with ThreadPool(len(os.sched_getaffinity(0))) as threads:
        yield from threads.imap(_fault, samples, chunksize=SAMPLES_PER_TURN)


def _fault(sample: Sample) -> str | None:
    return read_checked(sample)[1]
