"""Convolutions of one image whose channels come last, with gradients, in one thread: those of narrow networks.

Maps are [H, W, C], C a multiple of LANES, so that every loop runs along vectors of channels. 3x3 convolutions are
computed by Winograd's method (`winograd_transforms` has the algorithm), rows of tiles at a time; the rest as sums of
matrix products, one for each row of outputs and each weight of a kernel.
"""

import numpy as np
from numba import boolean, float32, int64, njit, types

from ssd300_vgg16.network.cpu import winograd_transforms
from ssd300_vgg16.network.cpu.products import add_product
from ssd300_vgg16.network.cpu.threads import buffer, compiled, reused
from ssd300_vgg16.network.cpu.vectors import LANES, filled, is_equal, is_positive, larger, load, store
from ssd300_vgg16.network.cpu.winograd_transforms import INPUT_TILE, TILE

POINTS = INPUT_TILE * INPUT_TILE
# Numbers in the transformed tiles of a block: more, and they leave the cache; fewer, and their products are too short.
BLOCK = 1 << 19

_MAP = types.Array(float32, 3, "C")
_FLAT = types.Array(float32, 1, "C")
_ROWS = types.Array(float32, 2, "C", readonly=True)
# Nothing laxer: a NaN has to stay one, for the trainer to see.
_FUSED = {"fastmath": {"contract"}}


def _of_vectors(function):
    return njit(error_model="numpy", **_FUSED)(function.py_func)


_input_1d = _of_vectors(winograd_transforms.input_1d)
_transposed_output_1d = _of_vectors(winograd_transforms.transposed_output_1d)
_output_1d = _of_vectors(winograd_transforms.output_1d)


def tiles_in(side: int) -> int:
    return -(-side // TILE)


def _blocks(shape: tuple[int, ...], outputs: int) -> tuple[int, int]:
    """Rows of tiles of a block, and its tiles."""
    height, width, channels = shape
    down, across = tiles_in(height), tiles_in(width)
    rows = min(down, max(1, BLOCK // (POINTS * across * (channels + outputs))))
    return rows, rows * across


def convolve(x: np.ndarray, kernels: np.ndarray, bias: np.ndarray, relu: bool) -> np.ndarray:
    """x [H, W, C], transformed kernels [36, C, O], bias [O] -> [H, W, O]."""
    y = reused((*x.shape[:2], len(bias)))
    rows, tiles = _blocks(x.shape, len(bias))
    _convolve(x, kernels.reshape(-1), bias, relu, y, *_buffers(x.shape, len(bias), tiles), rows)
    return y


def gradients(
    x: np.ndarray, gradient: np.ndarray, rotated: np.ndarray, total: np.ndarray, bias_total: np.ndarray
) -> np.ndarray:
    """Gradient of `convolve`, before the ReLU that x comes from; totals [36, C, O] and [O] grow by those of kernels
    and bias. rotated: transformed kernels [36, O, C].
    """
    outputs = gradient.shape[2]
    rows, tiles = _blocks(x.shape, outputs)
    found = reused(x.shape)
    products, transformed, lines = _buffers(x.shape, outputs, tiles)
    _gradients(
        x, gradient, rotated.reshape(-1), total.reshape(-1), bias_total, found, transformed, products, lines, rows
    )  # fmt: skip
    return found


def _buffers(shape, outputs, tiles):
    channels = shape[2]
    lines = INPUT_TILE * (TILE * tiles_in(shape[1]) + 2) * max(channels, outputs)
    return (
        buffer("transformed", (POINTS * tiles * channels,)),
        buffer("products", (POINTS * tiles * outputs,)),
        buffer("lines", (lines,)),
    )


@njit(error_model="numpy", **_FUSED)
def _get(row, inside, place):
    return load(row, place) if inside else filled(float32(0))


@compiled(types.void(_MAP, int64, int64, boolean, _FLAT, _FLAT), **_FUSED)
def _transform(image, first, last, transposed, lines, transformed):
    """Rows of tiles first to last of a map [H, W, C] -> transformed [36, tiles, C].

    transposed: in the place of outputs, a tile's own 4x4 numbers; else the 6x6 around it.
    """
    height, width, channels = image.shape
    flat = image.reshape(-1)
    across = (width + TILE - 1) // TILE
    border = 0 if transposed else 1
    line, point_size = (TILE * across + 2) * channels, (last - first) * across * channels
    pitch = width * channels
    for tile_row in range(first, last):
        top = TILE * tile_row - border
        i0, i1, i2 = top >= 0, top + 1 < height, top + 2 < height
        i3, i4, i5 = top + 3 < height, top + 4 < height, top + 5 < height
        start = top * pitch
        for place in range(0, pitch, LANES):
            p = start + place
            d0, d1, d2 = _get(flat, i0, p), _get(flat, i1, p + pitch), _get(flat, i2, p + 2 * pitch)
            d3 = _get(flat, i3, p + 3 * pitch)
            if transposed:
                v0, v1, v2, v3, v4, v5 = _transposed_output_1d(d0, d1, d2, d3)
            else:
                d4, d5 = _get(flat, i4, p + 4 * pitch), _get(flat, i5, p + 5 * pitch)
                v0, v1, v2, v3, v4, v5 = _input_1d(d0, d1, d2, d3, d4, d5)
            q = place + border * channels
            store(lines, q, v0)
            store(lines, q + line, v1)
            store(lines, q + 2 * line, v2)
            store(lines, q + 3 * line, v3)
            store(lines, q + 4 * line, v4)
            store(lines, q + 5 * line, v5)
        for row in range(INPUT_TILE):
            lines[row * line : row * line + border * channels] = 0
            lines[row * line + border * channels + pitch : (row + 1) * line] = 0
            for tile in range(across):
                source = row * line + TILE * tile * channels
                target = row * INPUT_TILE * point_size + ((tile_row - first) * across + tile) * channels
                for channel in range(0, channels, LANES):
                    p, q = source + channel, target + channel
                    d0, d1 = load(lines, p), load(lines, p + channels)
                    d2, d3 = load(lines, p + 2 * channels), load(lines, p + 3 * channels)
                    if transposed:
                        v0, v1, v2, v3, v4, v5 = _transposed_output_1d(d0, d1, d2, d3)
                    else:
                        d4, d5 = load(lines, p + 4 * channels), load(lines, p + 5 * channels)
                        v0, v1, v2, v3, v4, v5 = _input_1d(d0, d1, d2, d3, d4, d5)
                    store(transformed, q, v0)
                    store(transformed, q + point_size, v1)
                    store(transformed, q + 2 * point_size, v2)
                    store(transformed, q + 3 * point_size, v3)
                    store(transformed, q + 4 * point_size, v4)
                    store(transformed, q + 5 * point_size, v5)


@compiled(types.void(_FLAT, int64, int64, _FLAT, boolean, _MAP, boolean, _MAP, _FLAT), **_FUSED)
def _write(products, first, last, bias, relu, passed, mask, output, lines):
    """Products [36, tiles, O] -> rows of tiles first to last of an output [H, W, O], bias added, ReLU taken.

    mask: times 1 where `passed` [H, W, O] is positive, 0 elsewhere.
    """
    height, width, channels = output.shape
    flat, flat_passed = output.reshape(-1), passed.reshape(-1)
    across = (width + TILE - 1) // TILE
    row_size = across * channels
    point_size = (last - first) * row_size
    zero = filled(float32(0))
    for tile_row in range(first, last):
        source = (tile_row - first) * row_size
        for column in range(INPUT_TILE):
            for place in range(0, row_size, LANES):
                p = source + column * point_size + place
                v0, v1, v2, v3 = _output_1d(
                    load(products, p), load(products, p + 6 * point_size), load(products, p + 12 * point_size),
                    load(products, p + 18 * point_size), load(products, p + 24 * point_size),
                    load(products, p + 30 * point_size),
                )  # fmt: skip
                q = column * row_size + place
                store(lines, q, v0)
                store(lines, q + 6 * row_size, v1)
                store(lines, q + 12 * row_size, v2)
                store(lines, q + 18 * row_size, v3)
        for row in range(min(TILE, height - TILE * tile_row)):
            for tile in range(across):
                p, x = row * 6 * row_size + tile * channels, TILE * tile
                q = ((TILE * tile_row + row) * width + x) * channels
                for channel in range(0, channels, LANES):
                    found = _output_1d(
                        load(lines, p), load(lines, p + row_size), load(lines, p + 2 * row_size),
                        load(lines, p + 3 * row_size), load(lines, p + 4 * row_size), load(lines, p + 5 * row_size),
                    )  # fmt: skip
                    added = load(bias, channel)
                    for column in range(min(TILE, width - x)):
                        value = found[column] + added
                        if relu:
                            value = larger(value, zero)
                        if mask:
                            value = value * is_positive(load(flat_passed, q + column * channels))
                        store(flat, q + column * channels, value)
                    p, q = p + LANES, q + LANES


@njit(error_model="numpy", **_FUSED)
def _multiply(image, first, last, kernels, outputs, lines, transformed, products):
    """Rows of tiles first to last of a map, transformed, times kernels [36, C, O] -> products [36, tiles, O]."""
    channels, tiles = image.shape[2], (last - first) * ((image.shape[1] + TILE - 1) // TILE)
    _transform(image, first, last, False, lines, transformed)
    for point in range(POINTS):
        add_product(
            tiles, outputs, channels, transformed, point * tiles * channels, channels, 1,
            kernels, point * channels * outputs, outputs, products, point * tiles * outputs, outputs, False,
        )  # fmt: skip


@compiled(types.void(_MAP, _FLAT, _FLAT, boolean, _MAP, _FLAT, _FLAT, _FLAT, int64), **_FUSED)
def _convolve(x, kernels, bias, relu, y, transformed, products, lines, rows):
    down = (x.shape[0] + TILE - 1) // TILE
    for first in range(0, down, rows):
        last = min(first + rows, down)
        _multiply(x, first, last, kernels, y.shape[2], lines, transformed, products)
        _write(products, first, last, bias, relu, y, False, y, lines)


@njit(error_model="numpy", **_FUSED)
def add_sums(rows, total):
    """Add to total [C] the sums of flat rows [N * C]."""
    channels = len(total)
    for channel in range(0, channels, LANES):
        found = load(total, channel)
        for place in range(channel, len(rows), channels):
            found = found + load(rows, place)
        store(total, channel, found)


@compiled(types.void(_MAP, _MAP, _FLAT, _FLAT, _FLAT, _MAP, _FLAT, _FLAT, _FLAT, int64), **_FUSED)
def _gradients(x, gradient, rotated, total, bias_total, found, transformed, products, lines, rows):
    height, width, channels = x.shape
    outputs, across, down = gradient.shape[2], (width + TILE - 1) // TILE, (height + TILE - 1) // TILE
    no_bias = np.zeros(channels, dtype=np.float32)
    for first in range(0, down, rows):
        last = min(first + rows, down)
        tiles = (last - first) * across
        add_sums(gradient[TILE * first : min(TILE * last, height)].reshape(-1), bias_total)
        _multiply(gradient, first, last, rotated, channels, lines, transformed, products)
        _write(products, first, last, no_bias, False, x, True, found, lines)
        _transform(x, first, last, True, lines, products)
        for point in range(POINTS):
            add_product(
                channels, outputs, tiles, products, point * tiles * channels, 1, channels,
                transformed, point * tiles * outputs, outputs, total, point * channels * outputs, outputs, True,
            )  # fmt: skip


@compiled(types.void(_MAP, _FLAT, _FLAT, boolean, _MAP, int64, int64, int64), **_FUSED)
def convolve_directly(padded, kernels, bias, relu, y, size, stride, dilation):
    """padded [H', W', C], kernels [size, size, C, O], bias [O] -> y [H, W, O]."""
    height, width, outputs = y.shape
    flat, flat_padded, (across, channels) = y.reshape(-1), padded.reshape(-1), padded.shape[1:]
    # Neighbouring weights of a row meet neighbouring pixels: one long product is faster than several short ones.
    together = size if dilation == 1 else 1
    zero = filled(float32(0))
    for row in range(height):
        start = row * width * outputs
        for tap in range(0, size * size, together):
            place = ((row * stride + tap // size * dilation) * across + tap % size * dilation) * channels
            add_product(
                width, outputs, together * channels, flat_padded, place, stride * channels, 1,
                kernels, tap * channels * outputs, outputs, flat, start, outputs, tap > 0,
            )  # fmt: skip
        for place in range(0, width * outputs, LANES):
            value = load(flat, start + place) + load(bias, place % outputs)
            store(flat, start + place, larger(value, zero) if relu else value)


@compiled(types.void(_MAP, _MAP, _FLAT, _FLAT, _FLAT, _MAP, int64, int64, int64), **_FUSED)
def direct_gradients(padded, gradient, transposed, total, bias_total, found, size, stride, dilation):
    """Of `convolve_directly`: found [H', W', C], of transposed kernels [size, size, O, C], and totals grow by them.

    An empty `found` is not computed.
    """
    height, width, outputs = gradient.shape
    flat, flat_padded, (across, channels) = gradient.reshape(-1), padded.reshape(-1), padded.shape[1:]
    flat_found = found.reshape(-1)
    add_sums(flat, bias_total)
    together = size if dilation == 1 else 1
    for row in range(height):
        start = row * width * outputs
        for tap in range(0, size * size, together):
            place = ((row * stride + tap // size * dilation) * across + tap % size * dilation) * channels
            add_product(
                together * channels, outputs, width, flat_padded, place, 1, stride * channels,
                flat, start, outputs, total, tap * channels * outputs, outputs, True,
            )  # fmt: skip
        if len(flat_found):
            for tap in range(size * size):
                place = ((row * stride + tap // size * dilation) * across + tap % size * dilation) * channels
                add_product(
                    width, channels, outputs, flat, start, outputs, 1,
                    transposed, tap * channels * outputs, channels, flat_found, place, stride * channels, True,
                )  # fmt: skip


@njit(error_model="numpy")
def _is_zero(row):
    for value in row:  # noqa: SIM110 - numba knows no generators in all()
        if value != 0:
            return False
    return True


@compiled(types.void(_MAP, _ROWS, _ROWS, _FLAT, _FLAT, _FLAT, _MAP, int64), **_FUSED)
def gradients_from_cells(padded, logits_gradient, offsets_gradient, transposed, total, bias_total, found, size):
    """As `direct_gradients`, from gradients of both parts of the outputs, [H * W, ...], that are 0 in most cells."""
    (across, channels), outputs, taps = padded.shape[1:], len(bias_total), size * size
    flat_padded, flat_found = padded.reshape(-1), found.reshape(-1)
    of_logits, of_offsets = logits_gradient.shape[1], offsets_gradient.shape[1]
    cells = [
        cell for cell in range(len(logits_gradient))
        if not (_is_zero(logits_gradient[cell]) and _is_zero(offsets_gradient[cell]))
    ]  # fmt: skip
    values = np.zeros(len(cells) * outputs, dtype=np.float32)
    around = np.empty(len(cells) * channels, dtype=np.float32)
    products = np.empty(len(cells) * channels, dtype=np.float32)
    for number, cell in enumerate(cells):
        start = number * outputs
        values[start : start + of_logits] = logits_gradient[cell]
        values[start + of_logits : start + of_logits + of_offsets] = offsets_gradient[cell]
    add_sums(values, bias_total)
    width = across - size + 1
    places = [(cell // width * across + cell % width) * channels for cell in cells]
    for tap in range(taps):
        shift = (tap // size * across + tap % size) * channels
        for number, place in enumerate(places):
            start = number * channels
            around[start : start + channels] = flat_padded[place + shift : place + shift + channels]
        add_product(
            channels, outputs, len(cells), around, 0, 1, channels,
            values, 0, outputs, total, tap * channels * outputs, outputs, True,
        )  # fmt: skip
        add_product(
            len(cells), channels, outputs, values, 0, outputs, 1,
            transposed, tap * channels * outputs, channels, products, 0, channels, False,
        )  # fmt: skip
        for number, place in enumerate(places):
            start = number * channels
            flat_found[place + shift : place + shift + channels] += products[start : start + channels]


@compiled(types.void(_MAP, _MAP, int64, int64, int64), **_FUSED)
def max_pool(x, pooled, size, stride, border):
    """Maxima of windows of size x size cells, as far as x [H, W, C] has them -> pooled [H', W', C]."""
    height, width, channels = x.shape
    flat, flat_pooled = x.reshape(-1), pooled.reshape(-1)
    place = 0
    for row in range(pooled.shape[0]):
        top, bottom = max(row * stride - border, 0), min(row * stride - border + size, height)
        for column in range(pooled.shape[1]):
            left, right = max(column * stride - border, 0), min(column * stride - border + size, width)
            for channel in range(0, channels, LANES):
                best = load(flat, (top * width + left) * channels + channel)
                for y in range(top, bottom):
                    for z in range(left, right):
                        best = larger(best, load(flat, (y * width + z) * channels + channel))
                store(flat_pooled, place, best)
                place += LANES


@compiled(types.void(_MAP, _MAP, _MAP, _MAP, int64, int64, int64), **_FUSED)
def max_pool_gradient(x, pooled, gradient, found, size, stride, border):
    """Gradient of `max_pool`: to the first cell of each window that holds the maximum.

    Where windows overlap it is added to found [H, W, C].
    """
    height, width, channels = x.shape
    flat, flat_pooled, flat_gradient, flat_found = (
        x.reshape(-1), pooled.reshape(-1), gradient.reshape(-1), found.reshape(-1)
    )  # fmt: skip
    place = 0
    for row in range(pooled.shape[0]):
        top, bottom = max(row * stride - border, 0), min(row * stride - border + size, height)
        for column in range(pooled.shape[1]):
            left, right = max(column * stride - border, 0), min(column * stride - border + size, width)
            for channel in range(0, channels, LANES):
                best, rest = load(flat_pooled, place), load(flat_gradient, place)
                place += LANES
                for y in range(top, bottom):
                    for z in range(left, right):
                        cell = (y * width + z) * channels + channel
                        won = rest * is_equal(load(flat, cell), best)
                        store(flat_found, cell, load(flat_found, cell) + won if stride < size else won)
                        rest = rest - won
