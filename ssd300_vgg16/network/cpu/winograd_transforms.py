"""Winograd's transforms for 3x3 convolutions on tiles of 4x4 outputs, compiled.

Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks" (2015): F(4x4, 3x3). A tile of 4x4 outputs needs 6x6
inputs. Transformed, they are 36 numbers, and the convolution is one product for each of these instead of nine for each
of 16 outputs: a quarter of the multiplications. Transforms are written for lines of numbers, and a tile is transformed
along its columns, then along its rows.

Tiles are numbered row by row, image after image; a kernel works on whole rows of tiles, `first` to `last`, counted over
the batch. What lies outside an image is 0.
"""

import numpy as np
from numba import float32, float64, int64, types

from ssd300_vgg16.network.cpu.threads import compiled

TILE = 4
INPUT_TILE = TILE + 2

# The polynomials are interpolated at 0, the root of 1/2 and of 2 with either sign, and infinity: sums round much less
# than at the whole numbers of the paper (Alam et al., "Winograd Convolution for Deep Neural Networks", 2022).
ROOT, HALF_ROOT = np.float32(np.sqrt(2)), np.float32(np.sqrt(0.5))

# Six transformed values of three weights (G in the paper).
WEIGHT_TRANSFORM = np.array(
    [
        [1, 0, 0],
        [-2 / 3, -np.sqrt(2) / 3, -1 / 3],
        [-2 / 3, np.sqrt(2) / 3, -1 / 3],
        [1 / 6, np.sqrt(2) / 6, 1 / 3],
        [1 / 6, -np.sqrt(2) / 6, 1 / 3],
        [0, 0, 1],
    ]
)

_IMAGES = types.Array(float32, 4, "C", readonly=True)
_TRANSFORMED = types.Array(float32, 3, "C")
_MADE = types.Array(float32, 4, "C")
_BIAS = types.Array(float32, 1, "C", readonly=True)
_LINE = types.Array(float32, 1, "C")
_LINES = types.Array(float32, 2, "C")
_TOTALS = types.Array(float64, 1, "C")
# Contraction is what makes fused multiplications; anything laxer could lose a NaN that the trainer has to see.
_FUSED = {"fastmath": {"contract"}}
_SIX = types.UniTuple(float32, 6)
_FOUR = types.UniTuple(float32, 4)


@compiled(_SIX(*[float32] * 6), **_FUSED)
def input_1d(d0, d1, d2, d3, d4, d5):
    """Six inputs of a line, transformed (B^T in the paper)."""
    even_1, odd_1 = d4 - float32(2) * d2, HALF_ROOT * (d3 - float32(2) * d1)
    even_2, odd_2 = d4 - float32(0.5) * d2, ROOT * (d3 - float32(0.5) * d1)
    return (
        d0 - float32(2.5) * d2 + d4,
        even_1 + odd_1,
        even_1 - odd_1,
        even_2 + odd_2,
        even_2 - odd_2,
        d1 - float32(2.5) * d3 + d5,
    )


@compiled(_SIX(*[float32] * 4), **_FUSED)
def transposed_output_1d(x0, x1, x2, x3):
    """Four numbers of a line in the place of outputs, transformed (A): the transpose of `output_1d`."""
    even_1, odd_1 = x0 + float32(0.5) * x2, HALF_ROOT * (x1 + float32(0.5) * x3)
    even_2, odd_2 = x0 + float32(2) * x2, ROOT * (x1 + float32(2) * x3)
    return x0, even_1 + odd_1, even_1 - odd_1, even_2 + odd_2, even_2 - odd_2, x3


@compiled(_FOUR(*[float32] * 6), **_FUSED)
def output_1d(m0, m1, m2, m3, m4, m5):
    """Four outputs of a line from six products (A^T)."""
    sum_1, difference_1 = m1 + m2, HALF_ROOT * (m1 - m2)
    sum_2, difference_2 = m3 + m4, ROOT * (m3 - m4)
    return (
        m0 + sum_1 + sum_2,
        difference_1 + difference_2,
        float32(0.5) * sum_1 + float32(2) * sum_2,
        float32(0.5) * difference_1 + float32(2) * difference_2 + m5,
    )


@compiled(float32(_LINE), fastmath={"contract", "reassoc"})
def _sum(values):
    total = float32(0)
    for value in values:
        total += value
    return total


@compiled(types.void(_IMAGES, _IMAGES, types.boolean, int64, int64, int64, _LINES), **_FUSED)
def _read(images, relu_outputs, relu, image, channel, top, window):
    """Rows of one channel from `top` on, as many as the window [rows, W] has; those outside the image are 0."""
    for k in range(window.shape[0]):
        if not 0 <= top + k < images.shape[2]:
            window[k] = 0
        elif relu:
            line, passed = images[image, channel, top + k], relu_outputs[image, channel, top + k]
            for x in range(images.shape[3]):
                window[k, x] = line[x] if passed[x] > 0 else float32(0)
        else:
            window[k] = images[image, channel, top + k]


@compiled(types.void(_IMAGES, _IMAGES, types.boolean, _TRANSFORMED, _TOTALS, int64, int64), **_FUSED)
def input_transform(images, relu_outputs, relu, transformed, totals, first, last):
    """Images [B, C, H, W] -> transformed [36, C, tiles]: each tile's 6x6 inputs; totals [C] grow by the sum of each.

    With relu, images are gradients behind a ReLU: what had no positive relu_outputs [B, C, H, W] is taken as 0.
    """
    _, channels, height, width = images.shape
    across, down = (width + TILE - 1) // TILE, (height + TILE - 1) // TILE
    # Tiles reach a column before the image, and beyond its end: zeros are there.
    lines = np.zeros((INPUT_TILE, TILE * across + 2), dtype=np.float32)
    window = np.empty((INPUT_TILE, width), dtype=np.float32)
    for channel in range(channels):
        for row in range(first, last):
            _read(images, relu_outputs, relu, row // down, channel, row % down * TILE - 1, window)
            for k in range(1, 1 + TILE):
                totals[channel] += _sum(window[k])
            for x in range(width):
                values = input_1d(window[0, x], window[1, x], window[2, x], window[3, x], window[4, x], window[5, x])
                for k in range(INPUT_TILE):
                    lines[k, 1 + x] = values[k]
            start = (row - first) * across
            for k in range(INPUT_TILE):
                line = lines[k]
                out = transformed[INPUT_TILE * k : INPUT_TILE * (k + 1), channel, start : start + across]
                for tile in range(across):
                    x = TILE * tile
                    values = input_1d(line[x], line[x + 1], line[x + 2], line[x + 3], line[x + 4], line[x + 5])
                    for j in range(INPUT_TILE):
                        out[j, tile] = values[j]


@compiled(types.void(_IMAGES, _TRANSFORMED, int64, int64), **_FUSED)
def transposed_output_transform(outputs, transformed, first, last):
    """Outputs [B, O, H, W] -> transformed [36, O, tiles]: the 4x4 outputs of each tile."""
    _, channels, height, width = outputs.shape
    across, down = (width + TILE - 1) // TILE, (height + TILE - 1) // TILE
    lines = np.zeros((INPUT_TILE, TILE * across), dtype=np.float32)
    window = np.empty((TILE, width), dtype=np.float32)
    for channel in range(channels):
        for row in range(first, last):
            _read(outputs, outputs, False, row // down, channel, row % down * TILE, window)
            for x in range(width):
                values = transposed_output_1d(window[0, x], window[1, x], window[2, x], window[3, x])
                for k in range(INPUT_TILE):
                    lines[k, x] = values[k]
            start = (row - first) * across
            for k in range(INPUT_TILE):
                line = lines[k]
                out = transformed[INPUT_TILE * k : INPUT_TILE * (k + 1), channel, start : start + across]
                for tile in range(across):
                    x = TILE * tile
                    values = transposed_output_1d(line[x], line[x + 1], line[x + 2], line[x + 3])
                    for j in range(INPUT_TILE):
                        out[j, tile] = values[j]


@compiled(types.void(_TRANSFORMED, _MADE, _BIAS, types.boolean, int64, int64), **_FUSED)
def output_transform(products, outputs, bias, relu, first, last):
    """Products [36, O, tiles] -> outputs [B, O, H, W], the bias [O] added; with relu, negative results become 0."""
    _, channels, height, width = outputs.shape
    across, down = (width + TILE - 1) // TILE, (height + TILE - 1) // TILE
    lines = np.empty((TILE, INPUT_TILE, across), dtype=np.float32)
    whole = np.empty(TILE * across, dtype=np.float32)
    for channel in range(channels):
        added = bias[channel]
        for row in range(first, last):
            start = (row - first) * across
            found = products[:, channel, start : start + across]
            for j in range(INPUT_TILE):
                for t in range(across):
                    values = output_1d(
                        found[j, t],
                        found[6 + j, t],
                        found[12 + j, t],
                        found[18 + j, t],
                        found[24 + j, t],
                        found[30 + j, t],
                    )
                    for k in range(TILE):
                        lines[k, j, t] = values[k]
            image, top = row // down, row % down * TILE
            for k in range(min(TILE, height - top)):
                line = lines[k]
                for t in range(across):
                    values = output_1d(line[0, t], line[1, t], line[2, t], line[3, t], line[4, t], line[5, t])
                    for j in range(TILE):
                        whole[TILE * t + j] = values[j] + added
                out = outputs[image, channel, top + k]
                for x in range(width):
                    # Written so that a NaN stays one.
                    out[x] = float32(0) if relu and whole[x] < 0 else whole[x]
