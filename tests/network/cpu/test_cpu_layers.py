"""Pooling, normalisation and transposition in numpy or compiled, against OneFlow's own."""

import subprocess
import sys

import numba
import numpy as np
import pytest
from kernels import with_gradients

from ssd300_vgg16.network.cpu import ops, threads
from ssd300_vgg16.network.cpu.layers import max_pool, max_pool_gradient
from ssd300_vgg16.network.variants import SQUARED_NORM_FLOOR
from ssd300_vgg16.runtime import flow


def assert_alike(function, reference, arrays, output_shape, **tolerance):
    output_gradient = np.random.default_rng(1).standard_normal(output_shape, dtype=np.float32)
    found = with_gradients(function, arrays, output_gradient)
    expected = with_gradients(reference, arrays, output_gradient)
    for one, other in zip(found, expected, strict=True):
        assert one.shape == other.shape
        np.testing.assert_allclose(one, other, **tolerance)


@pytest.mark.parametrize("size", [(2, 2), (1, 1), (6, 4), (5, 7), (75, 75), (1, 8), (8, 1)])
def test_pooling_is_oneflows(size):
    """Whole numbers of few values, so that many windows hold their maximum more than once."""
    images = np.random.default_rng(0).integers(-2, 3, (2, 5, *size)).astype(np.float32)
    pooled = (2, 5, -(-size[0] // 2), -(-size[1] // 2))
    assert_alike(ops.max_pool, flow.nn.MaxPool2d(2, 2, ceil_mode=True), [images], pooled, rtol=0)


def test_pooling_keeps_what_is_not_a_number():
    images = np.zeros((1, 1, 4, 5), dtype=np.float32)
    images[0, 0, 1, 0] = images[0, 0, 2, 4] = np.nan
    assert np.isnan(max_pool(images))[0, 0].tolist() == [[True, False, False], [False, False, True]]


def test_pooling_of_views():
    images = np.random.default_rng(0).standard_normal((2, 6, 8, 3), dtype=np.float32)
    view, whole = images.transpose(0, 3, 1, 2), np.ascontiguousarray(images.transpose(0, 3, 1, 2))
    np.testing.assert_array_equal(max_pool(view), max_pool(whole))
    gradient = np.ones((2, 3, 3, 4), dtype=np.float32)
    np.testing.assert_array_equal(
        max_pool_gradient(view, max_pool(view), gradient), max_pool_gradient(whole, max_pool(whole), gradient)
    )


def test_normalisation_is_that_of_single_operations():
    rng = np.random.default_rng(0)
    images, scale = rng.standard_normal((3, 7, 5, 4), dtype=np.float32), rng.random(7, dtype=np.float32)
    images[1, :, 2, 3] = 0  # a position without a direction

    def reference(x, scale):
        norm = flow.sqrt((x * x).sum(dim=1, keepdim=True) + SQUARED_NORM_FLOOR)
        return x / norm * scale.view(1, -1, 1, 1)

    assert_alike(ops.l2_normalise, reference, [images, scale], images.shape, rtol=1e-5, atol=1e-5)


def test_exchanged_axes():
    array = np.random.default_rng(0).standard_normal((2, 3, 5, 4), dtype=np.float32)
    assert_alike(ops.channels_last, lambda x: x.reshape(2, 3, -1).permute(0, 2, 1), [array], (2, 20, 3), rtol=0)


@pytest.mark.parametrize(
    ("module", "spared"),
    [("network.ssd", "numba"), ("network.cpu.convolution", "oneflow"), ("network.cpu.layers", "oneflow")],
)
def test_kernels_are_loaded_at_first_use_and_know_no_oneflow(module, spared):
    program = f"import ssd300_vgg16.{module}, sys; print({spared!r} in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


@pytest.mark.parametrize("error", [RuntimeError("no locator available"), OSError("No space left on device")])
def test_without_a_place_for_what_was_compiled(monkeypatch, error):
    make = numba.njit

    def njit(signature, cache=False, **options):
        if cache:
            raise error
        return make(signature, **options)

    monkeypatch.setattr(numba, "njit", njit)
    double = threads.compiled(numba.float32(numba.float32))(lambda value: numba.float32(2) * value)
    assert double(1.5) == 3
