"""Weights, images and targets from random numbers that are the same on every machine."""

import zlib
from collections.abc import Mapping
from math import prod

import numpy as np

from ssd300_vgg16.data.loader import TrainingBatch
from ssd300_vgg16.network.ssd import SSD, SSD300
from ssd300_vgg16.network.vgg import parameters_left_empty
from ssd300_vgg16.runtime import flow

FIRST_LAYER = "backbone.features.0.weight"
PIXEL_DEVIATION = 75.0  # of images whose pixels are random


def random_weights(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Weights under which each layer's values deviate by about 1, from the name of each alone."""
    made = {}
    for name, shape in shapes.items():
        values = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape, dtype=np.float32)
        if name.endswith("scale_weight"):
            made[name] = 20 + values
        elif len(shape) > 1:
            # Kaiming's deviation keeps the variance through the ReLUs.
            made[name] = values * np.float32(np.sqrt(2 / prod(shape[1:])))
        else:
            made[name] = values * np.float32(0.01)
    made[FIRST_LAYER] /= PIXEL_DEVIATION
    return made


def model(num_classes: int, width: float, device: str) -> SSD:
    """An SSD300 with such weights."""
    with parameters_left_empty():
        network = SSD300(num_classes, width)
    made = random_weights({name: tuple(tensor.shape) for name, tensor in network.state_dict().items()})
    network.load_state_dict({name: flow.tensor(array) for name, array in made.items()})
    return network.to(device)


def images(count: int) -> np.ndarray:
    """uint8 [count, 3, 300, 300]."""
    return np.random.default_rng(0).integers(0, 256, (count, 3, 300, 300), dtype=np.uint8)


def batch(count: int, num_classes: int, default_boxes: int, positive: float) -> TrainingBatch:
    """Images, with objects at this share of the default boxes."""
    rng = np.random.default_rng(1)
    labels = rng.integers(1, num_classes, (count, default_boxes)) * (rng.random((count, default_boxes)) < positive)
    offsets = rng.standard_normal((count, default_boxes, 4), dtype=np.float32)
    return TrainingBatch(images(count), offsets, labels, [], [])
