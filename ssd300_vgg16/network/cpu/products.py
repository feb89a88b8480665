"""Matrix products of small matrices inside compiled code, of any strides."""

from numba import float32, njit

from ssd300_vgg16.network.cpu.vectors import LANES, filled, load, spread, store

# With two vectors of columns each these rows' sums fill, but for four, the 16 registers of AVX2.
ROWS = 6
_FUSED = {"fastmath": {"contract"}, "error_model": "numpy"}


@njit(**_FUSED)
def add_product(rows, columns, depth, a, a0, a_row, a_column, b, b0, b_row, c, c0, c_row, add):
    """c [rows, columns] = a [rows, depth] x b [depth, columns], or, with `add`, the sum of both.

    All lie in flat arrays, from a place on and with so many numbers from row to row; columns are a multiple of LANES.
    """
    for column in range(0, columns - LANES, 2 * LANES):
        for row in range(0, rows, ROWS):
            _wide_block(
                min(ROWS, rows - row), depth, a, a0 + row * a_row, a_row, a_column, b, b0 + column, b_row,
                c, c0 + row * c_row + column, c_row, add,
            )  # fmt: skip
    if columns // LANES % 2:
        column = columns - LANES
        for row in range(0, rows, 2 * ROWS):
            _high_block(
                min(2 * ROWS, rows - row), depth, a, a0 + row * a_row, a_row, a_column, b, b0 + column, b_row,
                c, c0 + row * c_row + column, c_row, add,
            )  # fmt: skip


@njit(**_FUSED)
def _wide_block(rows, depth, a, a0, a_row, a_column, b, b0, b_row, c, c0, c_row, add):
    """Two vectors of columns of as many as ROWS rows, of which the last is repeated."""
    a1, a2, a3 = a0 + min(1, rows - 1) * a_row, a0 + min(2, rows - 1) * a_row, a0 + min(3, rows - 1) * a_row
    a4, a5 = a0 + min(4, rows - 1) * a_row, a0 + min(5, rows - 1) * a_row
    x0 = x1 = x2 = x3 = x4 = x5 = y0 = y1 = y2 = y3 = y4 = y5 = filled(float32(0))
    p = 0
    for _ in range(depth):
        x, y = load(b, b0), load(b, b0 + LANES)
        w0, w1, w2, w3 = spread(a, a0 + p), spread(a, a1 + p), spread(a, a2 + p), spread(a, a3 + p)
        w4, w5 = spread(a, a4 + p), spread(a, a5 + p)
        x0, x1, x2 = x0 + w0 * x, x1 + w1 * x, x2 + w2 * x
        x3, x4, x5 = x3 + w3 * x, x4 + w4 * x, x5 + w5 * x
        y0, y1, y2 = y0 + w0 * y, y1 + w1 * y, y2 + w2 * y
        y3, y4, y5 = y3 + w3 * y, y4 + w4 * y, y5 + w5 * y
        p += a_column
        b0 += b_row
    found = ((x0, y0), (x1, y1), (x2, y2), (x3, y3), (x4, y4), (x5, y5))
    for row in range(rows):
        _put(found[row][0], c, c0 + row * c_row, add)
        _put(found[row][1], c, c0 + row * c_row + LANES, add)


@njit(**_FUSED)
def _high_block(rows, depth, a, a0, a_row, a_column, b, b0, b_row, c, c0, c_row, add):
    """A vector of columns of as many as 2 * ROWS rows, of which the last is repeated."""
    a1, a2, a3 = a0 + min(1, rows - 1) * a_row, a0 + min(2, rows - 1) * a_row, a0 + min(3, rows - 1) * a_row
    a4, a5, a6 = a0 + min(4, rows - 1) * a_row, a0 + min(5, rows - 1) * a_row, a0 + min(6, rows - 1) * a_row
    a7, a8, a9 = a0 + min(7, rows - 1) * a_row, a0 + min(8, rows - 1) * a_row, a0 + min(9, rows - 1) * a_row
    a10, a11 = a0 + min(10, rows - 1) * a_row, a0 + min(11, rows - 1) * a_row
    x0 = x1 = x2 = x3 = x4 = x5 = x6 = x7 = x8 = x9 = x10 = x11 = filled(float32(0))
    p = 0
    for _ in range(depth):
        x = load(b, b0)
        x0, x1, x2 = x0 + spread(a, a0 + p) * x, x1 + spread(a, a1 + p) * x, x2 + spread(a, a2 + p) * x
        x3, x4, x5 = x3 + spread(a, a3 + p) * x, x4 + spread(a, a4 + p) * x, x5 + spread(a, a5 + p) * x
        x6, x7, x8 = x6 + spread(a, a6 + p) * x, x7 + spread(a, a7 + p) * x, x8 + spread(a, a8 + p) * x
        x9, x10, x11 = x9 + spread(a, a9 + p) * x, x10 + spread(a, a10 + p) * x, x11 + spread(a, a11 + p) * x
        p += a_column
        b0 += b_row
    found = (x0, x1, x2, x3, x4, x5, x6, x7, x8, x9, x10, x11)
    for row in range(rows):
        _put(found[row], c, c0 + row * c_row, add)


@njit(**_FUSED)
def _put(value, c, place, add):
    store(c, place, value + load(c, place) if add else value)
