"""Convolution on the CPU as blocked matrix products in numpy, with gradients.

OneFlow 0.9.0 unrolls a convolution's whole input in one thread before it multiplies, which takes longer than the
product. Here a few rows at a time are unrolled into a buffer that stays in cache, and each core works on rows of its
own. Only the kind that makes up nearly all of VGG's work is covered: stride 1, output as large as input.
"""

import os
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from functools import cache

import numpy as np
from numpy.lib.stride_tricks import as_strided
from threadpoolctl import ThreadpoolController

from ssd300_vgg16.runtime import flow

# A block is as many rows as fill the buffer, which should fit a core's second-level cache, but never fewer than keep
# the matrix product efficient.
BUFFER_BYTES = 2 << 20
LEAST_COLUMNS = 1024

_buffers = threading.local()


@cache
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(_thread_count(), thread_name_prefix="convolution")


@cache
def _thread_count() -> int:
    return int(os.environ.get("OMP_NUM_THREADS") or len(os.sched_getaffinity(0)))


@cache
def _numpy_blas() -> ThreadpoolController:
    return ThreadpoolController().select(internal_api="openblas")


def _one_blas_thread() -> AbstractContextManager:
    """The threads here share out the work; the BLAS below them must not do it again."""
    return _numpy_blas().limit(limits=1)


def covers(kernel_size: int, stride: int, padding: int, dilation: int) -> bool:
    """Whether a square convolution of these numbers is one this module computes."""
    return stride == 1 and 2 * padding == dilation * (kernel_size - 1)


def convolve(
    images: np.ndarray, weight: np.ndarray, bias: np.ndarray | None = None, dilation: int = 1, relu: bool = False
) -> np.ndarray:
    """Same-size convolution: images [B, C, H, W], weight [O, C, K, K], bias [O] -> [B, O, H, W], all float32.

    With relu, negative results become 0 while they are still in cache.
    """
    batch, _, height, width = images.shape
    matrix = weight.reshape(len(weight), -1)
    output = np.empty((batch, len(weight), height * width), dtype=np.float32)
    unroll = _Unroller(images, weight.shape[2], dilation)

    def multiply(block: tuple[int, int, int]) -> None:
        image, first, last = block
        rows = output[image, :, first * width : last * width]
        np.matmul(matrix, unroll(image, first, last), out=rows)
        if bias is not None:
            rows += bias[:, None]
        if relu:
            np.maximum(rows, 0, out=rows)

    with _one_blas_thread():
        _run(multiply, unroll.blocks())
    return output.reshape(batch, len(weight), height, width)


def input_gradient(output_gradient: np.ndarray, weight: np.ndarray, dilation: int) -> np.ndarray:
    """Gradient [B, C, H, W] for the images of `convolve`: a convolution with the weights turned around."""
    turned = np.ascontiguousarray(weight[:, :, ::-1, ::-1].transpose(1, 0, 2, 3))
    return convolve(output_gradient, turned, dilation=dilation)


def weight_gradient(
    images: np.ndarray, output_gradient: np.ndarray, kernel_size: int, dilation: int
) -> tuple[np.ndarray, np.ndarray]:
    """Gradients [O, C, K, K] and [O] for weight and bias of `convolve`."""
    batch, channels, height, width = images.shape
    outputs = output_gradient.shape[1]
    flat = output_gradient.reshape(batch, outputs, height * width)
    unroll = _Unroller(images, kernel_size, dilation)

    def accumulate(blocks: list[tuple[int, int, int]]) -> tuple[np.ndarray, np.ndarray]:
        weight = np.zeros((outputs, channels * kernel_size**2), dtype=np.float32)
        bias = np.zeros(outputs, dtype=np.float32)
        for image, first, last in blocks:
            rows = flat[image, :, first * width : last * width]
            weight += rows @ unroll(image, first, last).T
            bias += rows.sum(axis=1)
        return weight, bias

    blocks = unroll.blocks()
    with _one_blas_thread():
        # A fixed share for each thread, added in a fixed order: the same sums every time.
        shares = _run(accumulate, [blocks[start :: _thread_count()] for start in range(_thread_count())])
    weights, biases = zip(*shares, strict=True)
    return sum(weights).reshape(outputs, channels, kernel_size, kernel_size), sum(biases)


def _run(task: Callable, items: Iterable) -> list:
    if _thread_count() == 1:
        return [task(item) for item in items]
    return list(_threads().map(task, items))


class _Unroller:
    """Rows of images, unrolled so that a convolution of them is one matrix product."""

    def __init__(self, images: np.ndarray, kernel_size: int, dilation: int):
        self.images = images
        self.kernel_size, self.dilation = kernel_size, dilation
        self.border = dilation * (kernel_size - 1) // 2

    def __call__(self, image: int, first: int, last: int) -> np.ndarray:
        """Rows first to last of one image: [C * K * K, rows * W], valid until the thread asks for the next."""
        _, channels, _, width = self.images.shape
        size = self.kernel_size
        padded = self._padded(image, first, last)
        step_c, step_y, step_x = padded.strides
        shape = (channels, size, size, last - first, width)
        strides = (step_c, self.dilation * step_y, self.dilation * step_x, step_y, step_x)
        unrolled = _buffer("unrolled", shape)
        np.copyto(unrolled, as_strided(padded, shape, strides))
        return unrolled.reshape(channels * size * size, -1)

    def _padded(self, image: int, first: int, last: int) -> np.ndarray:
        """The rows that rows first to last depend on, zeros around the image: [C, rows + 2 border, W + 2 border]."""
        _, channels, height, width = self.images.shape
        border = self.border
        padded = _buffer("padded", (channels, last - first + 2 * border, width + 2 * border))
        padded.fill(0)
        top, bottom = max(first - border, 0), min(last + border, height)
        inside = slice(top - first + border, bottom - first + border)
        padded[:, inside, border : border + width] = self.images[image, :, top:bottom]
        return padded

    def blocks(self) -> list[tuple[int, int, int]]:
        """(image, first row, last row) of every block, at least one for each thread."""
        batch, channels, height, width = self.images.shape
        bytes_per_row = 4 * channels * self.kernel_size**2 * width
        rows = max(BUFFER_BYTES // bytes_per_row, LEAST_COLUMNS // width, 1)
        blocks_per_image = max(-(-height // rows), -(-_thread_count() // batch))
        rows = -(-height // blocks_per_image)
        return [(i, row, min(row + rows, height)) for i in range(batch) for row in range(0, height, rows)]


def _buffer(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """This thread's memory of that name: asking the system for it anew each time costs more than filling it."""
    size = int(np.prod(shape))
    memory = getattr(_buffers, name, None)
    if memory is None or memory.size < size:
        memory = np.empty(size, dtype=np.float32)
        setattr(_buffers, name, memory)
    return memory[:size].reshape(shape)


def relu_gradient(output_gradient: np.ndarray, output: np.ndarray) -> np.ndarray:
    """The gradient before a ReLU, from the one after it and the ReLU's output, both [B, O, H, W]."""
    gradient = np.empty_like(output)

    def mask(image: int) -> None:
        np.multiply(output_gradient[image], output[image] > 0, out=gradient[image])

    _run(mask, range(len(output)))
    return gradient


@cache
def convolution_function(dilation: int, relu: bool) -> type:
    """An autograd function for `convolve`: `apply(images, weight, bias)`, tensors on the CPU.

    A class for each kind, because OneFlow's `apply` takes nothing but tensors.
    """

    class Convolution(flow.autograd.Function):
        @staticmethod
        def forward(ctx, images, weight, bias):
            output = flow.from_numpy(convolve(images.numpy(), weight.numpy(), bias.numpy(), dilation, relu))
            ctx.save_for_backward(images, weight, output)
            return output

        @staticmethod
        def backward(ctx, output_gradient):
            images, weight, output = ctx.saved_tensors
            gradient = output_gradient.numpy()
            if relu:
                gradient = relu_gradient(gradient, output.numpy())
            for_images = None
            if images.requires_grad:  # not for the photographs themselves
                for_images = flow.from_numpy(input_gradient(gradient, weight.numpy(), dilation))
            for_weight, for_bias = weight_gradient(images.numpy(), gradient, weight.shape[2], dilation)
            return for_images, flow.from_numpy(for_weight), flow.from_numpy(for_bias)

    Convolution.__name__ = f"ConvolutionDilated{dilation}{'ReLU' if relu else ''}"
    return Convolution
