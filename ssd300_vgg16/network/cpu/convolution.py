"""Convolution on the CPU, with gradients: by Winograd's method where it pays, else as products of unrolled images.

OneFlow 0.9.0 unrolls a convolution's whole input in one thread before it multiplies, which takes longer than the
product. Here a few rows at a time are unrolled into a buffer that stays in cache, and each core works on rows of its
own. Only the kind that makes up nearly all of VGG's work is covered: stride 1, output as large as input.
"""

import numpy as np
from numba import float32, int64, types
from numpy.lib.stride_tricks import as_strided

from ssd300_vgg16.network.cpu import winograd
from ssd300_vgg16.network.cpu.threads import (
    buffer,
    compiled,
    one_blas_thread,
    ranges_of,
    reused,
    run_in_threads,
    thread_count,
)

# With fewer outputs, transforming tiles takes longer than it saves in products; with fewer tiles in a batch,
# transforming weights does.
WINOGRAD_OUTPUTS, WINOGRAD_TILES = 32, 64
# A block is as many rows as fill the buffer, which should fit a core's second-level cache, but never fewer than keep
# the matrix product efficient.
BUFFER_BYTES = 2 << 20
LEAST_COLUMNS = 1024
# Rows written side by side: while they are, what is read of a line of memory stays in the cache.
SIDE_BY_SIDE = 16

_MADE = types.Array(float32, 3, "C")
Block = tuple[int, int, int]  # an image, and its rows: the first, and the one behind the last


def winograd_pays(images: np.ndarray, weight: np.ndarray, dilation: int) -> bool:
    """Whether Winograd's method is faster than unrolling for images [B, C, H, W] and weight [O, C, K, K]."""
    batch, _, height, width = images.shape
    tiles = batch * winograd.tiles_in(height) * winograd.tiles_in(width)
    fits = weight.shape[2] == 3 and dilation == 1
    return fits and len(weight) >= WINOGRAD_OUTPUTS and tiles >= WINOGRAD_TILES


def convolve(images: np.ndarray, weight: np.ndarray, bias: np.ndarray, dilation: int = 1, relu: bool = False):
    """Same-size convolution: images [B, C, H, W], weight [O, C, K, K], bias [O] -> [B, O, H, W], all float32.

    Raises ValueError if the images have not the channels of the weight.
    """
    if images.shape[1] != weight.shape[1]:  # what is compiled looks at no bounds
        raise ValueError(f"images of {images.shape[1]} channels, and a convolution of {weight.shape[1]}")
    if winograd_pays(images, weight, dilation):
        return winograd.convolve(images, weight, bias, relu)
    batch, _, height, width = images.shape
    outputs, _, size, _ = weight.shape
    matrix = weight.reshape(outputs, -1)
    output = reused((batch, outputs, height * width))

    def multiply(blocks: list[Block]) -> None:
        for image, first, last in blocks:
            rows = output[image, :, first * width : last * width]
            np.matmul(matrix, _unrolled(images[image], first, last, size, dilation), out=rows)
            rows += bias[:, None]
            if relu:  # while it is still in cache
                np.maximum(rows, 0, out=rows)

    with one_blas_thread():
        run_in_threads(multiply, _blocks(images, size))
    return output.reshape(batch, outputs, height, width)


def gradients(
    images: np.ndarray,
    weight: np.ndarray,
    output_gradient: np.ndarray,
    relu_output: np.ndarray | None = None,
    dilation: int = 1,
    for_images: bool = True,
) -> tuple[np.ndarray | None, np.ndarray, np.ndarray]:
    """Gradients of `convolve` for images [B, C, H, W] (None unless asked for), weight [O, C, K, K] and bias [O].

    relu_output: the output [B, O, H, W], where the convolution had a ReLU.
    """
    if winograd_pays(images, weight, dilation):
        return winograd.gradients(images, weight, output_gradient, relu_output, for_images)
    if relu_output is not None:
        # A product, so that a NaN stays one.
        output_gradient = np.multiply(output_gradient, relu_output > 0, out=reused(output_gradient.shape))
    batch, channels, height, width = images.shape
    outputs, _, size, _ = weight.shape
    taps = size * size
    flat_images = images.reshape(batch, channels, height * width)
    # Both large ones are products with the same unrolled rows of output_gradient: the images' with the weights rotated
    # by 180 degrees, the weights' with the images.
    rotated = _rotated_180(weight.reshape(outputs, channels, taps)).reshape(channels, -1) if for_images else None
    images_gradient = reused(flat_images.shape) if for_images else None

    def accumulate(blocks: list[Block]) -> np.ndarray | None:
        if not blocks:
            return None
        # Not a buffer: one thread may take the shares of two.
        total, part = reused((outputs * taps, channels)), buffer("part", (outputs * taps, channels))
        for number, (image, first, last) in enumerate(blocks):
            unrolled = _unrolled(output_gradient[image], first, last, size, dilation)
            rows = np.s_[image, :, first * width : last * width]
            if rotated is not None and images_gradient is not None:
                np.matmul(rotated, unrolled, out=images_gradient[rows])
            np.matmul(unrolled, flat_images[rows].T, out=part if number else total)
            if number:
                total += part
        return total.reshape(outputs, taps, channels)

    with one_blas_thread():
        # Fixed shares, added in a fixed order: the same sums every time.
        shares = run_in_threads(accumulate, _blocks(output_gradient, size))
    weight_gradient = _sum_by_tap([share for share in shares if share is not None]).reshape(weight.shape)
    if images_gradient is not None:
        images_gradient = images_gradient.reshape(images.shape)
    return images_gradient, weight_gradient, output_gradient.sum(axis=(0, 2, 3))


def _blocks(images: np.ndarray, kernel_size: int) -> list[Block]:
    """Blocks that cover all rows, at least one for each thread."""
    batch, channels, height, width = images.shape
    bytes_per_row = 4 * channels * kernel_size**2 * width
    rows = max(BUFFER_BYTES // bytes_per_row, LEAST_COLUMNS // width, 1)
    blocks_per_image = max(-(-height // rows), -(-thread_count() // batch))
    rows = -(-height // blocks_per_image)
    return [(i, row, min(row + rows, height)) for i in range(batch) for row in range(0, height, rows)]


def _unrolled(image: np.ndarray, first: int, last: int, size: int, dilation: int) -> np.ndarray:
    """Rows of an image [C, H, W], so that a convolution of them is one product: [C * K * K, rows * W].

    Valid until the thread asks for the next.
    """
    channels, height, width = image.shape
    border = dilation * (size - 1) // 2
    if not border:
        return image[:, first:last].reshape(channels, -1)
    padded = buffer("padded", (channels, last - first + 2 * border, width + 2 * border))
    padded.fill(0)
    top, bottom = max(first - border, 0), min(last + border, height)
    padded[:, top - first + border : bottom - first + border, border : border + width] = image[:, top:bottom]
    step_c, step_y, step_x = padded.strides
    unrolled = buffer("unrolled", (channels, size, size, last - first, width))
    strides = (step_c, dilation * step_y, dilation * step_x, step_y, step_x)
    np.copyto(unrolled, as_strided(padded, unrolled.shape, strides))
    return unrolled.reshape(channels * size * size, -1)


def _rotated_180(weight: np.ndarray) -> np.ndarray:
    """Weight [O, C, taps] transposed and rotated by 180 degrees: [C, O, taps], the taps in reverse order."""
    weight = np.ascontiguousarray(weight)
    outputs, channels, taps = weight.shape
    rotated = reused((channels, outputs, taps))
    run_in_threads(lambda ranges: [_rotate(weight, rotated, *each) for each in ranges], ranges_of(channels))
    return rotated


def _sum_by_tap(shares: list[np.ndarray]) -> np.ndarray:
    """The sum of gradients [O, taps, C] of rotated weights -> [O, C, taps]; the first of them is overwritten."""
    total, *others = shares
    outputs, taps, channels = total.shape
    gradient = reused((outputs, channels, taps))

    def add(rows: range) -> None:
        for row in rows:  # a row at a time: it is still in the cache when it is laid out anew
            for other in others:
                total[row] += other[row]
            _lay_out(total, gradient, row)

    run_in_threads(add, range(outputs))
    return gradient


@compiled(types.void(types.Array(float32, 3, "C", readonly=True), _MADE, int64, int64))
def _rotate(weight, rotated, first, last):
    outputs, _, taps = weight.shape
    for start in range(first, last, SIDE_BY_SIDE):
        for output in range(outputs):
            for channel in range(start, min(start + SIDE_BY_SIDE, last)):
                for tap in range(taps):
                    rotated[channel, output, tap] = weight[output, channel, taps - 1 - tap]


@compiled(types.void(_MADE, _MADE, int64))
def _lay_out(by_tap, gradient, output):
    _, taps, channels = by_tap.shape
    for channel in range(channels):
        for tap in range(taps):
            gradient[output, channel, tap] = by_tap[output, taps - 1 - tap, channel]
