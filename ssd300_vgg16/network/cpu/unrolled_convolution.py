"""Convolution on the CPU as blocked matrix products of unrolled images in numpy, with gradients.

OneFlow 0.9.0 unrolls a convolution's whole input in one thread before it multiplies, which takes longer than the
product. Here a few rows at a time are unrolled into a buffer that stays in cache, and each core works on rows of its
own. Only the kind that makes up nearly all of VGG's work is covered: stride 1, output as large as input.
"""

import numpy as np
from numba import float32, int64, types
from numpy.lib.stride_tricks import as_strided

from ssd300_vgg16.network.cpu.threads import (
    buffer,
    compiled,
    one_blas_thread,
    ranges_of,
    reused,
    run_in_threads,
    thread_count,
)

_WEIGHT = types.Array(float32, 3, "C", readonly=True)
_MADE = types.Array(float32, 3, "C")
# Rows written side by side: while they are, what is read of a line of memory stays in the cache.
_SIDE_BY_SIDE = 16


def rotated_180(weight: np.ndarray) -> np.ndarray:
    """Weight [O, C, taps] transposed and rotated by 180 degrees: [C, O, taps], the taps in reverse order."""
    weight = np.ascontiguousarray(weight)
    outputs, channels, taps = weight.shape
    rotated = reused((channels, outputs, taps))
    run_in_threads(lambda ranges: [_rotate(weight, rotated, *each) for each in ranges], ranges_of(channels))
    return rotated


def sum_by_tap(shares: list[np.ndarray]) -> np.ndarray:
    """The sum of gradients [O, taps, C] of rotated weights -> [O, C, taps]; the first of them is overwritten."""
    total, *others = shares
    outputs, taps, channels = total.shape
    gradient = reused((outputs, channels, taps))

    def add(ranges: list[tuple[int, int]]) -> None:
        for first, last in ranges:
            for row in range(first, last):  # a row at a time: it is still in the cache when it is laid out anew
                for other in others:
                    total[row] += other[row]
                _lay_out(total, gradient, row)

    run_in_threads(add, ranges_of(outputs))
    return gradient


@compiled(types.void(_WEIGHT, _MADE, int64, int64))
def _rotate(weight, rotated, first, last):
    outputs, _, taps = weight.shape
    for start in range(first, last, _SIDE_BY_SIDE):
        for output in range(outputs):
            for channel in range(start, min(start + _SIDE_BY_SIDE, last)):
                for tap in range(taps):
                    rotated[channel, output, tap] = weight[output, channel, taps - 1 - tap]


@compiled(types.void(_MADE, _MADE, int64))
def _lay_out(by_tap, gradient, output):
    _, taps, channels = by_tap.shape
    for channel in range(channels):
        for tap in range(taps):
            gradient[output, channel, tap] = by_tap[output, taps - 1 - tap, channel]


# A block is as many rows as fill the buffer, which should fit a core's second-level cache, but never fewer than keep
# the matrix product efficient.
BUFFER_BYTES = 2 << 20
LEAST_COLUMNS = 1024


def convolve(
    images: np.ndarray, weight: np.ndarray, bias: np.ndarray | None = None, dilation: int = 1, relu: bool = False
) -> np.ndarray:
    """Same-size convolution: images [B, C, H, W], weight [O, C, K, K], bias [O] -> [B, O, H, W], all float32.

    With relu, negative results become 0 while they are still in cache.
    """
    batch, _, height, width = images.shape
    matrix = weight.reshape(len(weight), -1)
    output = reused((batch, len(weight), height * width))
    unroll = _Unroller(images, weight.shape[2], dilation)

    def multiply(blocks: list[tuple[int, int, int]]) -> None:
        for image, first, last in blocks:
            rows = output[image, :, first * width : last * width]
            np.matmul(matrix, unroll(image, first, last), out=rows)
            if bias is not None:
                rows += bias[:, None]
            if relu:
                np.maximum(rows, 0, out=rows)

    with one_blas_thread():
        run_in_threads(multiply, unroll.blocks())
    return output.reshape(batch, len(weight), height, width)


def gradients(
    images: np.ndarray, weight: np.ndarray, output_gradient: np.ndarray, dilation: int = 1, for_images: bool = True
) -> tuple[np.ndarray | None, np.ndarray, np.ndarray]:
    """Gradients of `convolve` for images [B, C, H, W] (None unless asked for), weight [O, C, K, K] and bias [O].

    Both large ones are products with the same unrolled rows of output_gradient [B, O, H, W]: the images' with the
    weights rotated by 180 degrees, the weights' with the images.
    """

    batch, channels, height, width = images.shape
    outputs, _, size, _ = weight.shape
    flat_images = images.reshape(batch, channels, height * width)
    rotated = rotated_180(weight.reshape(outputs, channels, -1)).reshape(channels, -1) if for_images else None
    images_gradient = reused(flat_images.shape) if for_images else None
    unroll = _Unroller(output_gradient, size, dilation)

    def accumulate(blocks: list[tuple[int, int, int]]) -> np.ndarray | None:
        if not blocks:
            return None
        # Not a buffer: one thread may take the shares of two.
        total, part = reused((outputs * size * size, channels)), buffer("part", (outputs * size * size, channels))
        for number, (image, first, last) in enumerate(blocks):
            unrolled = unroll(image, first, last)
            rows = np.s_[image, :, first * width : last * width]
            if rotated is not None and images_gradient is not None:
                np.matmul(rotated, unrolled, out=images_gradient[rows])
            np.matmul(unrolled, flat_images[rows].T, out=part if number else total)
            if number:
                total += part
        return total.reshape(outputs, size * size, channels)

    with one_blas_thread():
        # Fixed shares, added in a fixed order: the same sums every time.
        shares = run_in_threads(accumulate, unroll.blocks())
    weight_gradient = sum_by_tap([share for share in shares if share is not None]).reshape(weight.shape)
    bias_gradient = output_gradient.sum(axis=(0, 2, 3))
    if images_gradient is not None:
        images_gradient = images_gradient.reshape(images.shape)
    return images_gradient, weight_gradient, bias_gradient


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
        unrolled = buffer("unrolled", shape)
        np.copyto(unrolled, as_strided(padded, shape, strides))
        return unrolled.reshape(channels * size * size, -1)

    def _padded(self, image: int, first: int, last: int) -> np.ndarray:
        """The rows that rows first to last depend on, zeros around the image: [C, rows + 2 border, W + 2 border]."""
        _, channels, height, width = self.images.shape
        border = self.border
        padded = buffer("padded", (channels, last - first + 2 * border, width + 2 * border))
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
        blocks_per_image = max(-(-height // rows), -(-thread_count() // batch))
        rows = -(-height // blocks_per_image)
        return [(i, row, min(row + rows, height)) for i in range(batch) for row in range(0, height, rows)]
