"""Matrix products of small matrices inside compiled code: BLAS takes as long to be called as to compute these."""

from numba import float32, njit

from ssd300_vgg16.network.cpu.vectors import LANES, filled, load, spread, store

ROWS = 6  # with two vectors of outputs each they fill, but for four, the 16 registers of AVX2


@njit(fastmath={"contract"}, error_model="numpy")
def add_product(rows, columns, depth, a, a0, a_row, a_column, b, b0, b_row, c, c0, c_row, add):
    """c [rows, columns] = a [rows, depth] x b [depth, columns], or, with `add`, the sum of both.

    All lie in flat arrays, from a place on and with so many numbers from row to row; columns are a multiple of LANES.
    """
    for column in range(0, columns, 2 * LANES):
        second = LANES if column + LANES < columns else 0
        for row in range(0, rows, ROWS):
            _block(
                min(ROWS, rows - row), second, depth, a, a0 + row * a_row, a_row, a_column, b, b0 + column, b_row,
                c, c0 + row * c_row + column, c_row, add,
            )  # fmt: skip


@njit(fastmath={"contract"}, error_model="numpy")
def _block(rows, second, depth, a, a0, a_row, a_column, b, b0, b_row, c, c0, c_row, add):
    """Two vectors of columns (the first one twice if second is 0) of as many as ROWS rows; the last is repeated."""
    a1, a2, a3 = a0 + min(1, rows - 1) * a_row, a0 + min(2, rows - 1) * a_row, a0 + min(3, rows - 1) * a_row
    a4, a5 = a0 + min(4, rows - 1) * a_row, a0 + min(5, rows - 1) * a_row
    x0 = x1 = x2 = x3 = x4 = x5 = y0 = y1 = y2 = y3 = y4 = y5 = filled(float32(0))
    for _ in range(depth):
        x, y = load(b, b0), load(b, b0 + second)
        w0, w1, w2, w3 = spread(a, a0), spread(a, a1), spread(a, a2), spread(a, a3)
        w4, w5 = spread(a, a4), spread(a, a5)
        x0, x1, x2 = x0 + w0 * x, x1 + w1 * x, x2 + w2 * x
        x3, x4, x5 = x3 + w3 * x, x4 + w4 * x, x5 + w5 * x
        y0, y1, y2 = y0 + w0 * y, y1 + w1 * y, y2 + w2 * y
        y3, y4, y5 = y3 + w3 * y, y4 + w4 * y, y5 + w5 * y
        a0, a1, a2 = a0 + a_column, a1 + a_column, a2 + a_column
        a3, a4, a5 = a3 + a_column, a4 + a_column, a5 + a_column
        b0 += b_row
    found = ((x0, y0), (x1, y1), (x2, y2), (x3, y3), (x4, y4), (x5, y5))
    for row in range(rows):
        x, y = found[row]
        place = c0 + row * c_row
        if add:
            x, y = x + load(c, place), y + load(c, place + second)
        store(c, place, x)
        if second:
            store(c, place + second, y)
