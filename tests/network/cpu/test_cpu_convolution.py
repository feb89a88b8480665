"""The convolutions in numpy, by either method, against OneFlow's own."""

from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pytest
from kernels import with_gradients

from ssd300_vgg16 import machine
from ssd300_vgg16.network.cpu import convolution, ops, threads, winograd
from ssd300_vgg16.network.cpu.convolution import convolve, gradients, winograd_pays
from ssd300_vgg16.runtime import flow


@pytest.fixture(params=["blocks as shipped", "a block for each row", "blocks of some rows"])
def blocks(request, monkeypatch):
    """Runs the test with the work cut into larger or smaller blocks."""
    if request.param != "blocks as shipped":
        monkeypatch.setattr(convolution, "BUFFER_BYTES", 1)
        monkeypatch.setattr(convolution, "LEAST_COLUMNS", 1 if "each" in request.param else 50)
        monkeypatch.setattr(winograd, "TILES", 1 if "each" in request.param else 7)


@pytest.fixture(params=["unrolled", "winograd"])
def method(request, monkeypatch):
    """Runs the test with each method, whatever the size; sizes that Winograd's do not fit are unrolled."""
    least = 0 if request.param == "winograd" else 10**9
    monkeypatch.setattr(convolution, "WINOGRAD_OUTPUTS", least)
    monkeypatch.setattr(convolution, "WINOGRAD_TILES", least)
    return request.param


def assert_close(found, expected):
    """Equal to 1e-5 of the largest: Winograd's method rounds larger numbers than it gives."""
    for one, other in zip(found, expected, strict=True):
        assert one.shape == other.shape
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-5 * max(1, np.abs(other).max()))


def random_arrays(*shapes, seed=0):
    """Arrays that raise when they are written to."""
    rng = np.random.default_rng(seed)
    arrays = [rng.standard_normal(shape, dtype=np.float32) for shape in shapes]
    for array in arrays:
        array.setflags(write=False)
    return arrays


def oneflow_convolution(kernel_size, dilation, relu):
    padding = dilation * (kernel_size - 1) // 2

    def convolution(images, weight, bias):
        y = flow._C.conv2d(images, weight, bias, [1, 1], [padding] * 2, [dilation] * 2, 1, "channels_first")
        return flow.relu(y) if relu else y

    return convolution


SIZES = [
    pytest.param(1, 3, 4, 1, 1, id="one pixel"),
    pytest.param(2, 3, 5, 7, 11, id="odd"),
    pytest.param(3, 5, 2, 19, 6, id="high"),
    pytest.param(2, 4, 3, 2, 33, id="wide"),
    pytest.param(1, 1, 1, 13, 13, id="one channel"),
]


@pytest.mark.parametrize(("batch", "channels", "outputs", "height", "width"), SIZES)
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize(("kernel_size", "dilation"), [(1, 1), (3, 1), (3, 6), (5, 2), (2, 2)])
def test_equal_to_oneflow(method, kernel_size, dilation, relu, batch, channels, outputs, height, width):
    *arrays, output_gradient = random_arrays(
        (batch, channels, height, width),
        (outputs, channels, kernel_size, kernel_size),
        (outputs,),
        (batch, outputs, height, width),
    )
    found = with_gradients(partial(ops.convolution, dilation=dilation, relu=relu), arrays, output_gradient)
    assert_close(found, with_gradients(oneflow_convolution(kernel_size, dilation, relu), arrays, output_gradient))


@pytest.mark.parametrize("batch", [1, 2, 3])
@pytest.mark.parametrize(("kernel_size", "dilation"), [(1, 1), (3, 1), (3, 6)])
def test_equal_however_the_work_is_cut(method, thread_count, blocks, kernel_size, dilation, batch):
    *arrays, output_gradient = random_arrays(
        (batch, 4, 17, 9), (6, 4, kernel_size, kernel_size), (6,), (batch, 6, 17, 9)
    )
    found = with_gradients(partial(ops.convolution, dilation=dilation, relu=True), arrays, output_gradient)
    assert_close(found, with_gradients(oneflow_convolution(kernel_size, dilation, True), arrays, output_gradient))


def test_blocks_cover_every_row_once(thread_count, blocks):
    images = np.empty((3, 4, 17, 9), dtype=np.float32)
    rows = convolution._blocks(images, 3)
    assert len(rows) >= thread_count
    covered = [(image, row) for image, first, last in rows for row in range(first, last)]
    assert sorted(covered) == [(image, row) for image in range(3) for row in range(17)]
    of_tiles = winograd._blocks(3, 17, 9)
    assert [row for first, last in of_tiles for row in range(first, last)] == list(range(15))
    assert len(of_tiles) >= min(thread_count, 15)


def test_few_tiles_are_summed_by_few_threads(monkeypatch, thread_count):
    """Each thread's sum takes as much memory as the weights."""
    monkeypatch.setattr(winograd, "LEAST_TILES", 15)
    images, weight, output_gradient = random_arrays((2, 3, 17, 9), (4, 3, 3, 3), (2, 4, 17, 9))
    assert len(winograd._blocks(2, 17, 9, winograd.LEAST_TILES)) == min(thread_count, 2)
    assert not winograd_pays(images, weight, 1)
    assert_close(winograd.gradients(images, weight, output_gradient), gradients(images, weight, output_gradient))


def test_smaller_after_larger_finds_no_remains(method):
    """The buffers are kept from call to call."""
    large = random_arrays((2, 8, 20, 20), (4, 8, 3, 3), (4,))
    small = random_arrays((1, 2, 5, 5), (4, 2, 3, 3), (4,), seed=1)
    alone = convolve(*small)
    convolve(*large)
    np.testing.assert_array_equal(convolve(*small), alone)


def test_the_same_sums_every_time(method, thread_count):
    images, weight, output_gradient = random_arrays((3, 8, 20, 20), (4, 8, 3, 3), (3, 4, 20, 20))
    first, again = (gradients(images, weight, output_gradient) for _ in range(2))
    for one, other in zip(first, again, strict=True):
        np.testing.assert_array_equal(one, other)


def test_one_thread_may_take_the_shares_of_two(method, monkeypatch):
    monkeypatch.setattr(machine, "thread_count", lambda: 2)
    monkeypatch.setattr(threads, "thread_count", lambda: 2)
    for module in (convolution, winograd):
        monkeypatch.setattr(module, "thread_count", lambda: 2)
    arrays = random_arrays((2, 8, 20, 20), (4, 8, 3, 3), (2, 4, 20, 20))
    expected = gradients(*arrays)
    with ThreadPoolExecutor(1) as only:
        monkeypatch.setattr(threads, "_executor", lambda: only)
        found = gradients(*arrays)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)


def test_going_back_twice_gives_twice_the_gradients():
    tensors = [flow.tensor(array, requires_grad=True) for array in random_arrays((1, 3, 9, 9), (4, 3, 3, 3), (4,))]
    total = ops.convolution(*tensors, relu=True).sum()
    total.backward(retain_graph=True)
    once = [tensor.grad.numpy().copy() for tensor in tensors]
    total.backward()
    for tensor, gradient in zip(tensors, once, strict=True):
        np.testing.assert_array_equal(tensor.grad.numpy(), 2 * gradient)


def test_nothing_is_written_into_arguments(method):
    """The arrays are read-only: writing raises."""
    images, weight, bias, output_gradient = random_arrays((2, 3, 9, 9), (4, 3, 3, 3), (4,), (2, 4, 9, 9))
    output = convolve(images, weight, bias, relu=True)
    assert (output >= 0).all()
    output.setflags(write=False)
    found = gradients(images, weight, output_gradient, output, 1, True)
    assert [array.shape for array in found] == [array.shape for array in (images, weight, bias)]


def test_images_of_other_channels_are_refused(method):
    images, weight, bias = random_arrays((1, 2, 9, 9), (4, 3, 3, 3), (4,))
    with pytest.raises(ValueError, match="images of 2 channels, and a convolution of 3"):
        convolve(images, weight, bias)


def test_images_that_need_no_gradient_get_none(method):
    images, weight, bias = random_arrays((2, 3, 9, 9), (4, 3, 3, 3), (4,))
    assert gradients(images, weight, np.ones((2, 4, 9, 9), dtype=np.float32), None, 1, False)[0] is None
    photographs = flow.tensor(images)
    parameters = [flow.tensor(array, requires_grad=True) for array in (weight, bias)]
    ops.convolution(photographs, *parameters, relu=True).sum().backward()
    assert photographs.grad is None
    assert all(parameter.grad is not None for parameter in parameters)


def test_images_and_gradients_that_are_views(method):
    """Axes exchanged without a copy, before the convolution and behind it."""
    images, weight, bias, output_gradient = random_arrays((2, 9, 8, 3), (4, 3, 3, 3), (4,), (2, 9, 8, 4))

    def between_views(convolution):
        return lambda x, w, b: convolution(x.permute(0, 3, 1, 2), w, b).permute(0, 2, 3, 1)

    found = with_gradients(between_views(partial(ops.convolution, relu=True)), (images, weight, bias), output_gradient)
    reference = between_views(oneflow_convolution(3, 1, True))
    assert_close(found, with_gradients(reference, (images, weight, bias), output_gradient))


@pytest.mark.parametrize("relu", [False, True])
def test_what_is_not_a_number_stays_so(method, relu):
    """Or the trainer would not see that a training has failed."""
    images, weight, bias = (array.copy() for array in random_arrays((1, 2, 8, 8), (3, 2, 3, 3), (3,)))
    images[0, 1, 5, 5] = np.nan
    assert np.isnan(convolve(images, weight, bias, relu=relu)[0, :, 4:7, 4:7]).all()
    gradient = np.ones((1, 3, 8, 8), dtype=np.float32)
    gradient[0, 0, 5, 5] = np.nan
    found = gradients(np.ones_like(images), weight, gradient, np.ones_like(gradient) if relu else None)
    assert [np.isnan(array).any() for array in found] == [True, True, True]


@pytest.mark.parametrize(
    ("images", "weight", "dilation", "pays"),
    [
        ((1, 64, 38, 38), (64, 64, 3, 3), 1, True),
        ((1, 3, 300, 300), (64, 3, 3, 3), 1, True),
        ((1, 64, 32, 32), (64, 64, 3, 3), 1, True),
        ((1, 64, 28, 28), (64, 64, 3, 3), 1, False),
        ((2, 64, 29, 29), (64, 64, 3, 3), 1, True),
        ((1, 64, 38, 38), (16, 64, 3, 3), 1, False),
        ((1, 64, 38, 38), (64, 64, 1, 1), 1, False),
        ((1, 64, 38, 38), (64, 64, 5, 5), 1, False),
        ((1, 64, 38, 38), (64, 64, 3, 3), 6, False),
    ],
)
def test_winograds_method_is_for_many_tiles_and_outputs(images, weight, dilation, pays):
    assert winograd_pays(np.empty(images), np.empty(weight), dilation) is pays


@pytest.mark.parametrize(
    ("kernel_size", "stride", "padding", "dilation", "covered"),
    [
        (3, 1, 1, 1, True),
        (1, 1, 0, 1, True),
        (3, 1, 6, 6, True),
        (5, 1, 2, 1, True),
        (2, 1, 1, 2, True),
        (3, 2, 1, 1, False),
        (3, 1, 0, 1, False),
        (1, 1, 1, 1, False),
        (3, 1, 1, 6, False),
        (3, 1, 6, 1, False),
        (4, 1, 1, 1, False),
        (2, 1, 0, 1, False),
    ],
)
def test_what_is_covered(kernel_size, stride, padding, dilation, covered):
    """Exactly what has stride 1 and an output as large as the input."""
    assert ops.covers_convolution(kernel_size, stride, padding, dilation) is covered
    images = flow.zeros(1, 1, 40, 40)
    weight = flow.zeros(1, 1, kernel_size, kernel_size)
    y = flow._C.conv2d(images, weight, None, [stride] * 2, [padding] * 2, [dilation] * 2, 1, "channels_first")
    assert (y.shape == images.shape) is covered
