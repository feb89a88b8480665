"""A convolution's weights [O, C, taps] turned around for its gradients, compiled: numpy's copies take far longer."""

import numpy as np
from numba import float32, int64, types

from ssd300_vgg16.network.buffers import reused
from ssd300_vgg16.network.compiled import compiled
from ssd300_vgg16.network.threads import ranges_of, run_in_threads

_WEIGHT = types.Array(float32, 3, "C", readonly=True)
_MADE = types.Array(float32, 3, "C")
# Rows written side by side: while they are, what is read of a line of memory stays in the cache.
_SIDE_BY_SIDE = 16


def turned_around(weight: np.ndarray) -> np.ndarray:
    """Weight [O, C, taps] -> [C, O, taps], the taps in reverse order."""
    weight = np.ascontiguousarray(weight)
    outputs, channels, taps = weight.shape
    turned = reused((channels, outputs, taps))
    run_in_threads(lambda ranges: [_turn(weight, turned, *each) for each in ranges], ranges_of(channels))
    return turned


def sum_by_tap(shares: list[np.ndarray]) -> np.ndarray:
    """The sum of gradients [O, taps, C] of weights turned around -> [O, C, taps]; the first of them is overwritten."""
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
def _turn(weight, turned, first, last):
    outputs, _, taps = weight.shape
    for start in range(first, last, _SIDE_BY_SIDE):
        for output in range(outputs):
            for channel in range(start, min(start + _SIDE_BY_SIDE, last)):
                for tap in range(taps):
                    turned[channel, output, tap] = weight[output, channel, taps - 1 - tap]


@compiled(types.void(_MADE, _MADE, int64))
def _lay_out(by_tap, gradient, output):
    _, taps, channels = by_tap.shape
    for channel in range(channels):
        for tap in range(taps):
            gradient[output, channel, tap] = by_tap[output, taps - 1 - tap, channel]
