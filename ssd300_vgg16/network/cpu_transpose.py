"""Feature maps turned from channels first to channels last on the CPU: much faster than OneFlow 0.9.0's `permute`."""

import numpy as np

from ssd300_vgg16.network.buffers import reused
from ssd300_vgg16.network.threads import run_in_threads
from ssd300_vgg16.runtime import flow


def swap_last_two(arrays: np.ndarray) -> np.ndarray:
    """float32 [B, M, N] -> [B, N, M], laid out anew."""
    swapped = reused((len(arrays), arrays.shape[2], arrays.shape[1]))

    def swap(rows: range) -> None:
        for row in rows:
            swapped[row] = arrays[row].T

    run_in_threads(swap, range(len(arrays)))
    return swapped


class SwapLastTwo(flow.autograd.Function):
    """`swap_last_two` for OneFlow's autograd: `SwapLastTwo.apply(tensor)`, a tensor on the CPU."""

    @staticmethod
    def forward(ctx, tensor):
        return flow.from_numpy(swap_last_two(tensor.numpy()))

    @staticmethod
    def backward(ctx, gradient):
        return flow.from_numpy(swap_last_two(gradient.numpy()))
