"""Batches of examples to train on: how they are made, compared and spoiled."""

from dataclasses import replace

import numpy as np

from ssd300_vgg16.data.loader import BatchConfig
from ssd300_vgg16.network.variants import default_boxes

SIZE = 300


def batch_config(**changes):
    settings = {"batch_size": 2, "augmentation": "ssd", "seed": 5, "default_boxes": default_boxes(), "image_size": SIZE}
    return BatchConfig(**settings | changes)


def assert_same(batches, others):
    assert len(batches) == len(others) > 0
    for batch, other in zip(batches, others, strict=True):
        assert (batch.files, batch.unreadable) == (other.files, other.unreadable)
        for name in ("images", "offsets", "labels"):
            np.testing.assert_array_equal(getattr(batch, name), getattr(other, name))


def spoiled(sample, folder, kind):
    """The sample with a file that cannot be read or, of kind "damaged", whose pixels are partly wrong."""
    path = folder / f"{kind}.jpg"
    jpeg = sample.path.read_bytes()
    half = len(jpeg) // 2
    content = {
        "missing": None,
        "empty": b"",
        "text": b"no image",
        "truncated": jpeg[:-500],
        "damaged": jpeg[:half] + bytes(range(60, 100)) + jpeg[half + 40 :],
    }[kind]
    if content is not None:
        path.write_bytes(content)
    return replace(sample, path=path)
