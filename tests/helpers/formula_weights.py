"""The weights of the reference figures (golden/README.md), and networks that are to get them."""

import zlib
from contextlib import contextmanager
from math import prod

import numpy as np
import pytest

from ssd300_vgg16.runtime import flow

# A float32 sum of thousands of terms is off by its last digits: relative to the result, and absolutely near zero.
CLOSE = {"rtol": 1e-4, "atol": 1e-4}


def formula_weights(shapes):
    """The weights of the reference figures (golden/README.md), by name."""
    weights = {}
    for name, shape in shapes.items():
        z = np.random.default_rng([zlib.crc32(name.encode()), 0]).standard_normal(shape, dtype=np.float32)
        if name.endswith("scale_weight"):
            weights[name] = 20 + z
        elif len(shape) > 1:
            deviation = np.sqrt(2 / prod(shape[1:])) * (0.05 if name.startswith("head.") else 1)
            weights[name] = z * np.float32(deviation)
        else:
            weights[name] = z * np.float32(0.01)
    return weights


@contextmanager
def weights_left_unset():
    """Random numbers for 35 million weights take seconds, and these are about to be replaced."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("kaiming_uniform_", "kaiming_normal_", "xavier_uniform_", "normal_", "uniform_"):
            patch.setattr(flow.nn.init, name, lambda weight, *_, **__: weight)
        yield
