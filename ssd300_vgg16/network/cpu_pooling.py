"""Max pooling of 2x2 cells on the CPU in numpy, with gradients: several times faster than OneFlow 0.9.0's."""

import numpy as np

from ssd300_vgg16.network.threads import run_in_threads
from ssd300_vgg16.runtime import flow

# The four cells of a window, in the order in which a tie is decided.
CELLS = tuple(np.s_[..., y::2, x::2] for y in (0, 1) for x in (0, 1))


def pool(images: np.ndarray) -> np.ndarray:
    """Maxima of 2x2 cells: float32 [B, C, H, W], H and W even -> [B, C, H / 2, W / 2]."""
    batch, channels, height, width = images.shape
    pooled = np.empty((batch, channels, height // 2, width // 2), dtype=np.float32)

    def pool_parts(parts: list[tuple]) -> None:
        for part in parts:
            rows = np.maximum(images[part][..., 0::2, :], images[part][..., 1::2, :])
            np.maximum(rows[..., 0::2], rows[..., 1::2], out=pooled[part])

    run_in_threads(pool_parts, _parts(batch, channels))
    return pooled


def pool_gradient(images: np.ndarray, pooled: np.ndarray, pooled_gradient: np.ndarray) -> np.ndarray:
    """Gradient for the images of `pool`: it goes to the first cell of each window that holds the maximum."""
    gradient = np.empty_like(images)

    def hand_back(parts: list[tuple]) -> None:
        for part in parts:
            left = pooled_gradient[part].copy()
            for cell in CELLS:
                won = images[part][cell] == pooled[part]
                np.multiply(left, won, out=gradient[part][cell])
                left *= ~won

    run_in_threads(hand_back, _parts(*images.shape[:2]))
    return gradient


def _parts(batch: int, channels: int) -> list[tuple]:
    """Pieces that stay in cache: a few channels of one image."""
    return [np.s_[image, first : first + 4] for image in range(batch) for first in range(0, channels, 4)]


class CpuMaxPool(flow.autograd.Function):
    """`pool` for OneFlow's autograd: `CpuMaxPool.apply(images)`, a tensor on the CPU."""

    @staticmethod
    def forward(ctx, images):
        pooled = flow.from_numpy(pool(images.numpy()))
        ctx.save_for_backward(images, pooled)
        return pooled

    @staticmethod
    def backward(ctx, pooled_gradient):
        images, pooled = (tensor.numpy() for tensor in ctx.saved_tensors)
        return flow.from_numpy(pool_gradient(images, pooled, pooled_gradient.numpy()))
