"""3x3 convolution of few channels on the CPU, with gradients: half the multiplications, all along rows.

Winograd's F(4, 3) down the columns only: six transformed rows give four rows of outputs, and along each of them the
kernel is three shifted products. With few channels the transforms of `winograd`, along rows as well, take longer than
the products that they save; here every loop runs along rows, several of them as one line.
"""

from collections.abc import Callable
from functools import cache

import numpy as np
from numba import boolean, float32, int64, types, uintp

from ssd300_vgg16.network.cpu.threads import buffer, compiled, ranges_of, reused, run_in_threads, sum_of, thread_count
from ssd300_vgg16.network.cpu.winograd_transforms import (
    INPUT_TILE,
    TILE,
    WEIGHT_TRANSFORM,
    input_1d,
    output_1d,
    transposed_output_1d,
)

# Numbers in a line: those of a few channels stay in a first-level cache.
LINE = 1024
# Multiplications that take less time than waking another thread.
ONE_THREAD = 1 << 19

_IMAGE = types.Array(float32, 3, "C", readonly=True)
_IMAGES = types.Array(float32, 4, "C", readonly=True)
_LINES = types.Array(float32, 3, "C")
_ROWS = types.Array(float32, 2, "C")
_KERNELS = types.Array(float32, 4, "C", readonly=True)
_MADE = types.Array(float32, 4, "C")
_BIAS = types.Array(float32, 1, "C", readonly=True)
_BLOCKS = types.Array(int64, 2, "C")
# Nothing laxer: a NaN has to stay one, for the trainer to see.
_FUSED = {"fastmath": {"contract"}}
_SUMS = {"fastmath": {"contract", "reassoc"}}
_TRANSFORM = WEIGHT_TRANSFORM.astype(np.float32)


def convolve(images: np.ndarray, weight: np.ndarray, bias: np.ndarray, relu: bool = False) -> np.ndarray:
    """Same-size convolution: images [B, C, H, W], weight [O, C, 3, 3], bias [O] -> [B, O, H, W], all float32."""
    images = np.ascontiguousarray(images)
    batch, channels, height, width = images.shape
    outputs = len(weight)
    output = reused((batch, outputs, height, width))
    kernels = _transformed(weight)
    length = _line_length(height, width)

    def multiply(blocks: np.ndarray) -> None:
        lines = buffer("lines", (INPUT_TILE, channels, length))
        sums = buffer("sums", (2, INPUT_TILE, length))
        _convolve(images, kernels, np.ascontiguousarray(bias), relu, output, blocks, lines, sums)

    _share_out(multiply, images.shape, outputs)
    return output


def gradients(
    images: np.ndarray, weight: np.ndarray, output_gradient: np.ndarray, for_images: bool = True
) -> tuple[np.ndarray | None, np.ndarray, np.ndarray]:
    """Gradients of `convolve` for images [B, C, H, W] (None unless asked for), weight [O, C, 3, 3] and bias [O]."""
    images, output_gradient = np.ascontiguousarray(images), np.ascontiguousarray(output_gradient)
    channels, outputs, (height, width) = images.shape[1], len(weight), images.shape[2:]
    # The images' gradient is a convolution too, of the output's with the kernels rotated by 180 degrees.
    rotated = _transformed(weight[:, :, ::-1, ::-1].transpose(1, 0, 2, 3) if for_images else weight[:0])
    images_gradient = reused(images.shape if for_images else (0, 0, 0, 0))
    length = _line_length(height, width)

    def accumulate(blocks: np.ndarray) -> np.ndarray:
        gradient_lines = buffer("lines", (INPUT_TILE, outputs, length))
        image_lines = buffer("image_lines", (INPUT_TILE, channels, length))
        sums = buffer("sums", (2, INPUT_TILE, length))
        products = np.zeros((INPUT_TILE, outputs, channels, 3), dtype=np.float32)
        _gradients(
            images, output_gradient, blocks, gradient_lines, image_lines, products, rotated, images_gradient, sums
        )  # fmt: skip
        return products

    # Fixed shares, added in a fixed order: the same sums every time.
    products = sum_of(_share_out(accumulate, images.shape, outputs))
    weight_gradient = np.empty(weight.shape, dtype=np.float32)
    _weight_gradient(products, _TRANSFORM, weight_gradient)
    return images_gradient if for_images else None, weight_gradient, output_gradient.sum(axis=(0, 2, 3))


def _transformed(weight: np.ndarray) -> np.ndarray:
    """Weight [O, C, 3, 3], its columns transformed: [6, O, C, 3]."""
    transformed = np.empty((INPUT_TILE, *weight.shape[:2], 3), dtype=np.float32)
    _transform_weight(np.ascontiguousarray(weight), _TRANSFORM, transformed)
    return transformed


def _share_out(work: Callable, shape: tuple[int, ...], outputs: int) -> list:
    """What `work` returns for each thread's share of the blocks."""
    batch, channels, height, width = shape
    blocks = _blocks(batch, height, width)
    if len(blocks) < thread_count() or 9 * channels * outputs * batch * height * width < ONE_THREAD:
        return [work(blocks)]
    return run_in_threads(lambda parts: work(blocks[slice(*parts[0])]), ranges_of(len(blocks)))


@cache
def _blocks(batch: int, height: int, width: int) -> np.ndarray:
    """(image, first row of tiles, last) of every block, int64 [N, 3]."""
    rows = -(-height // TILE)
    each = -(-rows // max(1, LINE // (width + 2)))
    edges = [rows * number // each for number in range(each + 1)]
    return np.array([(image, *edges[number : number + 2]) for image in range(batch) for number in range(each)])


@cache
def _line_length(height: int, width: int) -> int:
    """Of the highest block, and two numbers behind: the last of the shifted lines reads so far."""
    blocks = _blocks(1, height, width)
    return int((blocks[:, 2] - blocks[:, 1]).max()) * (width + 2) + 2


@compiled(types.void(_KERNELS, types.Array(float32, 2, "C", readonly=True), _MADE), **_FUSED)
def _transform_weight(weight, transform, transformed):
    outputs, channels = weight.shape[:2]
    for point in range(INPUT_TILE):
        g0, g1, g2 = transform[point, 0], transform[point, 1], transform[point, 2]
        for output in range(outputs):
            for channel in range(channels):
                for column in range(3):
                    kernel = weight[output, channel]
                    transformed[point, output, channel, column] = (
                        g0 * kernel[0, column] + g1 * kernel[1, column] + g2 * kernel[2, column]
                    )


@compiled(types.void(_KERNELS, types.Array(float32, 2, "C", readonly=True), _MADE), **_FUSED)
def _weight_gradient(products, transform, gradient):
    """Products [6, O, C, 3] of shifted gradients with images -> gradient [O, C, 3, 3], taps in their true order."""
    outputs, channels = gradient.shape[:2]
    for output in range(outputs):
        for channel in range(channels):
            for row in range(3):
                for column in range(3):
                    total = float32(0)
                    for point in range(INPUT_TILE):
                        total += transform[point, row] * products[point, output, channel, column]
                    # The gradient was shifted, not the image: the taps are in reverse order.
                    gradient[output, channel, 2 - row, 2 - column] = total


@compiled(_BIAS(_IMAGE, int64, int64, types.Array(float32, 1, "C")))
def _row(image, channel, y, outside):
    """A row of a channel; `outside` where the image has none."""
    return image[channel, y] if 0 <= y < image.shape[1] else outside


@compiled(types.void(_IMAGE, int64, int64, _LINES), **_FUSED)
def _transform_inputs(image, first, last, lines):
    """Rows of tiles first to last of an image [C, H, W]: lines [6, C, length], each row between two zeros."""
    channels, _, width = image.shape
    pitch = width + 2
    outside = np.zeros(width, dtype=np.float32)
    for channel in range(channels):
        for tile in range(first, last):
            top, start = TILE * tile - 1, (tile - first) * pitch
            r0, r1 = _row(image, channel, top, outside), _row(image, channel, top + 1, outside)
            r2, r3 = _row(image, channel, top + 2, outside), _row(image, channel, top + 3, outside)
            r4, r5 = _row(image, channel, top + 4, outside), _row(image, channel, top + 5, outside)
            for point in range(INPUT_TILE):
                lines[point, channel, start] = lines[point, channel, start + width + 1] = 0
            inside = slice(start + 1, start + 1 + width)
            o0, o1, o2 = lines[0, channel, inside], lines[1, channel, inside], lines[2, channel, inside]
            o3, o4, o5 = lines[3, channel, inside], lines[4, channel, inside], lines[5, channel, inside]
            for x in range(width):
                o0[x], o1[x], o2[x], o3[x], o4[x], o5[x] = input_1d(r0[x], r1[x], r2[x], r3[x], r4[x], r5[x])
        for point in range(INPUT_TILE):
            lines[point, channel, (last - first) * pitch :] = 0


@compiled(types.void(_IMAGE, int64, int64, _LINES), **_FUSED)
def _transform_outputs(image, first, last, lines):
    """Rows of tiles in the place of outputs, transposed transform: lines [6, C, length], two zeros behind each row."""
    channels, _, width = image.shape
    pitch = width + 2
    outside = np.zeros(width, dtype=np.float32)
    for channel in range(channels):
        for tile in range(first, last):
            top, start = TILE * tile, (tile - first) * pitch
            r0, r1 = _row(image, channel, top, outside), _row(image, channel, top + 1, outside)
            r2, r3 = _row(image, channel, top + 2, outside), _row(image, channel, top + 3, outside)
            for point in range(INPUT_TILE):
                lines[point, channel, start + width : start + pitch] = 0
            inside = slice(start, start + width)
            o0, o1, o2 = lines[0, channel, inside], lines[1, channel, inside], lines[2, channel, inside]
            o3, o4, o5 = lines[3, channel, inside], lines[4, channel, inside], lines[5, channel, inside]
            for x in range(width):
                o0[x], o1[x], o2[x], o3[x], o4[x], o5[x] = transposed_output_1d(r0[x], r1[x], r2[x], r3[x])


@compiled(types.void(_ROWS, float32, boolean, int64, int64, _ROWS), **_FUSED)
def _write(sums, bias, relu, first, last, output):
    """Sums [6, length] -> rows of tiles first to last of an output [H, W]."""
    height, width = output.shape
    pitch = width + 2
    rows = np.empty((TILE, width), dtype=np.float32)
    w0, w1, w2, w3 = rows[0], rows[1], rows[2], rows[3]
    for tile in range(first, last):
        start = (tile - first) * pitch
        m0, m1, m2 = sums[0, start : start + width], sums[1, start : start + width], sums[2, start : start + width]
        m3, m4, m5 = sums[3, start : start + width], sums[4, start : start + width], sums[5, start : start + width]
        for x in range(width):
            w0[x], w1[x], w2[x], w3[x] = output_1d(m0[x], m1[x], m2[x], m3[x], m4[x], m5[x])
        for row in range(min(TILE, height - TILE * tile)):
            out, values = output[TILE * tile + row], rows[row]
            for x in range(width):
                value = values[x] + bias
                # Written so that a NaN stays one.
                out[x] = float32(0) if relu and value < 0 else value


@compiled(types.void(_LINES, _KERNELS, _BIAS, boolean, int64, int64, int64, _MADE, _LINES), **_FUSED)
def _multiply(lines, kernels, bias, relu, image, first, last, output, sums):
    _, outputs, channels, _ = kernels.shape
    width = output.shape[3]
    pitch = width + 2
    length = (last - first) * pitch
    # Unsigned places: else each is first looked at for being negative, and the loop is not vectorised.
    one, two = uintp(1), uintp(2)
    for output_a in range(0, outputs, 2):
        output_b = min(output_a + 1, outputs - 1)
        for point in range(INPUT_TILE):
            sums_a, sums_b = sums[0, point], sums[1, point]
            sums_a[:length] = 0
            sums_b[:length] = 0
            for channel in range(0, channels - 1, 2):
                line, next_line = lines[point, channel], lines[point, channel + 1]
                a, b = kernels[point, output_a, channel], kernels[point, output_b, channel]
                c, d = kernels[point, output_a, channel + 1], kernels[point, output_b, channel + 1]
                a0, a1, a2, b0, b1, b2 = a[0], a[1], a[2], b[0], b[1], b[2]
                c0, c1, c2, d0, d1, d2 = c[0], c[1], c[2], d[0], d[1], d[2]
                for place in range(length):
                    p = uintp(place)
                    x0, x1, x2 = line[p], line[p + one], line[p + two]
                    y0, y1, y2 = next_line[p], next_line[p + one], next_line[p + two]
                    sums_a[p] += a0 * x0 + a1 * x1 + a2 * x2 + c0 * y0 + c1 * y1 + c2 * y2
                    sums_b[p] += b0 * x0 + b1 * x1 + b2 * x2 + d0 * y0 + d1 * y1 + d2 * y2
            if channels % 2:
                line = lines[point, channels - 1]
                a, b = kernels[point, output_a, channels - 1], kernels[point, output_b, channels - 1]
                a0, a1, a2, b0, b1, b2 = a[0], a[1], a[2], b[0], b[1], b[2]
                for place in range(length):
                    p = uintp(place)
                    x0, x1, x2 = line[p], line[p + one], line[p + two]
                    sums_a[p] += a0 * x0 + a1 * x1 + a2 * x2
                    sums_b[p] += b0 * x0 + b1 * x1 + b2 * x2
        _write(sums[0], bias[output_a], relu, first, last, output[image, output_a])
        _write(sums[1], bias[output_b], relu, first, last, output[image, output_b])


@compiled(types.void(_IMAGES, _KERNELS, _BIAS, boolean, _MADE, _BLOCKS, _LINES, _LINES), **_FUSED)
def _convolve(images, kernels, bias, relu, output, blocks, lines, sums):
    for image, first, last in blocks:
        _transform_inputs(images[image], first, last, lines)
        _multiply(lines, kernels, bias, relu, image, first, last, output, sums)


@compiled(types.void(_LINES, _LINES, int64, _MADE), **_SUMS)
def _correlate(gradient_lines, image_lines, length, products):
    """Add to products [6, O, C, 3] those of each gradient's line, shifted by 0, 1 and 2, with each image's line."""
    one, two = uintp(1), uintp(2)
    points, outputs, channels, _ = products.shape
    for point in range(points):
        for output in range(outputs):
            line, out = gradient_lines[point, output], products[point, output]
            for first in range(0, channels, 4):
                ca, cb = first, min(first + 1, channels - 1)
                cc, cd = min(first + 2, channels - 1), min(first + 3, channels - 1)
                la, lb, lc, ld = (
                    image_lines[point, ca], image_lines[point, cb], image_lines[point, cc], image_lines[point, cd]
                )  # fmt: skip
                a0 = a1 = a2 = b0 = b1 = b2 = c0 = c1 = c2 = d0 = d1 = d2 = float32(0)
                for place in range(length):
                    p = uintp(place)
                    x0, x1, x2 = line[p], line[p + one], line[p + two]
                    a, b, c, d = la[p], lb[p], lc[p], ld[p]
                    a0 += a * x0
                    a1 += a * x1
                    a2 += a * x2
                    b0 += b * x0
                    b1 += b * x1
                    b2 += b * x2
                    c0 += c * x0
                    c1 += c * x1
                    c2 += c * x2
                    d0 += d * x0
                    d1 += d * x1
                    d2 += d * x2
                out[ca, 0] += a0
                out[ca, 1] += a1
                out[ca, 2] += a2
                if first + 1 < channels:
                    out[cb, 0] += b0
                    out[cb, 1] += b1
                    out[cb, 2] += b2
                if first + 2 < channels:
                    out[cc, 0] += c0
                    out[cc, 1] += c1
                    out[cc, 2] += c2
                if first + 3 < channels:
                    out[cd, 0] += d0
                    out[cd, 1] += d1
                    out[cd, 2] += d2


@compiled(types.void(_IMAGES, _IMAGES, _BLOCKS, _LINES, _LINES, _MADE, _KERNELS, _MADE, _LINES), **_FUSED)
def _gradients(
    images, output_gradient, blocks, gradient_lines, image_lines, products, rotated, images_gradient, sums
):  # fmt: skip
    pitch = images.shape[3] + 2
    no_bias = np.zeros(images.shape[1], dtype=np.float32)
    for image, first, last in blocks:
        _transform_inputs(output_gradient[image], first, last, gradient_lines)
        _transform_outputs(images[image], first, last, image_lines)
        _correlate(gradient_lines, image_lines, (last - first) * pitch, products)
        if len(images_gradient):
            _multiply(gradient_lines, rotated, no_bias, False, image, first, last, images_gradient, sums)
