"""Layers of narrow networks, channels last, against OneFlow's own."""

import numpy as np
import pytest

from ssd300_vgg16.network.cpu.narrow_layers import Convolution, Head, MaxPool, filled_up
from ssd300_vgg16.runtime import flow


def channels_last(array):
    """[1, C, H, W] -> [H, W, C'], the last vector of channels filled up with zeros."""
    return np.pad(array[0].transpose(1, 2, 0), ((0, 0), (0, 0), (0, filled_up(array.shape[1]) - array.shape[1])))


def assert_close(found, expected):
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize(
    "layer",
    [
        Convolution(1, tiled=True),
        Convolution(1),
        Convolution(1, stride=2),
        Convolution(1, padding=0),
        Convolution(1, padding=6, dilation=6),
        Convolution(1, size=1, padding=0),
        Convolution(1, size=4),
        Head(1, relu=False, tiled=True),
        Head(1, relu=False),
    ],
    ids=str,
)
@pytest.mark.parametrize(("channels", "outputs", "height", "width"), [(5, 30, 9, 7), (24, 8, 13, 16), (16, 16, 4, 4)])
def test_convolution(layer, channels, outputs, height, width):
    rng = np.random.default_rng(0)
    x = np.maximum(rng.standard_normal((1, channels, height, width), dtype=np.float32), 0)
    weight = rng.standard_normal((outputs, channels, layer.size, layer.size), dtype=np.float32)
    bias = rng.standard_normal(outputs, dtype=np.float32)
    tensors = [flow.tensor(array, requires_grad=True) for array in (x, weight, bias)]
    numbers = [layer.stride] * 2, [layer.padding] * 2, [layer.dilation] * 2
    expected = flow._C.conv2d(*tensors, *numbers, 1, "channels_first")
    gradient = rng.standard_normal(tuple(expected.shape), dtype=np.float32)
    gradient[:, :, ::2, 1:] = 0  # as behind the loss, where few cells count
    expected.backward(flow.tensor(gradient))
    of_x, of_weight, of_bias = (tensor.grad.numpy() for tensor in tensors)

    y = layer.forward(channels_last(x), layer.kernels(weight, False), np.pad(bias, (0, filled_up(outputs) - outputs)))
    answer = expected.numpy()
    assert_close(y, channels_last(np.maximum(answer, 0) if layer.relu else answer))
    total, bias_total = layer.total(weight), np.zeros(filled_up(outputs), dtype=np.float32)
    kernels = layer.kernels(weight, True)
    if isinstance(layer, Head):
        by_cell = gradient[0].reshape(outputs, -1).T
        parts = [np.ascontiguousarray(by_cell[:, :6]), np.ascontiguousarray(by_cell[:, 6:])]
        found = layer.backward_from_cells(channels_last(x), parts, kernels, total, bias_total)
        assert_close(found, channels_last(of_x))
    else:
        found = layer.backward(channels_last(x), channels_last(gradient), kernels, total, bias_total)
        assert_close(found, channels_last(of_x * (x > 0)))
    assert_close(layer.weight_gradient(total, weight), of_weight)
    assert_close(bias_total[:outputs], of_bias)


@pytest.mark.parametrize("size", [2, 3])
def test_pooling(size):
    """Whole numbers of few values, so that many windows hold their maximum more than once."""
    rng = np.random.default_rng(0)
    x = rng.integers(-2, 3, (1, 8, 7, 10)).astype(np.float32)
    tensor = flow.tensor(x, requires_grad=True)
    pool = flow.nn.MaxPool2d(2, 2, ceil_mode=True) if size == 2 else flow.nn.MaxPool2d(3, 1, 1)
    expected = pool(tensor)
    gradient = rng.integers(-9, 9, tuple(expected.shape)).astype(np.float32)
    expected.backward(flow.tensor(gradient))
    layer = MaxPool(size)
    pooled = layer.forward(channels_last(x))
    np.testing.assert_array_equal(pooled, channels_last(expected.numpy()))
    found = layer.backward(channels_last(x), pooled, channels_last(gradient))
    np.testing.assert_array_equal(found, channels_last(tensor.grad.numpy()))
