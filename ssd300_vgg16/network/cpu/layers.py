"""The network's other layers on the CPU, with gradients: pooling, L2 normalisation, channels put last.

Pooling is compiled, and several times faster than OneFlow 0.9.0's.
"""

import numpy as np
from numba import float32, int64, types

from ssd300_vgg16.network.cpu.threads import compiled, ranges_of, reused, run_in_threads, sum_of
from ssd300_vgg16.network.variants import SQUARED_NORM_FLOOR

_PLANES = types.Array(float32, 3, "C", readonly=True)
_MADE = types.Array(float32, 3, "C")


def max_pool(images: np.ndarray) -> np.ndarray:
    """Maxima of 2x2 cells: float32 [B, C, H, W] -> [B, C, ceil(H / 2), ceil(W / 2)]; odd edges by themselves."""
    images = np.ascontiguousarray(images)
    batch, channels, height, width = images.shape
    pooled = reused((batch, channels, (height + 1) // 2, (width + 1) // 2))
    planes = _planes(images), _planes(pooled)
    run_in_threads(lambda parts: [_pool(*planes, *part) for part in parts], ranges_of(batch * channels))
    return pooled


def max_pool_gradient(images: np.ndarray, pooled: np.ndarray, pooled_gradient: np.ndarray) -> np.ndarray:
    """Gradient for the images of `max_pool`: it goes to the first cell of each window that holds the maximum."""
    gradient = reused(images.shape)
    planes = [_planes(np.ascontiguousarray(array)) for array in (images, pooled, pooled_gradient, gradient)]
    run_in_threads(lambda parts: [_hand_back(*planes, *part) for part in parts], ranges_of(len(planes[0])))
    return gradient


def _planes(images: np.ndarray) -> np.ndarray:
    return images.reshape(-1, *images.shape[2:])


@compiled(float32(float32, float32))
def _larger(one, other):
    """The larger of two; not a number if either is not."""
    return one if one > other or one != one else other


@compiled(types.void(_PLANES, _MADE, int64, int64))
def _pool(images, pooled, first, last):
    _, height, width = images.shape
    line = np.empty(width, dtype=np.float32)
    for plane in range(first, last):
        for row in range(pooled.shape[1]):
            top, below = images[plane, 2 * row], images[plane, min(2 * row + 1, height - 1)]
            for x in range(width):
                line[x] = _larger(top[x], below[x])
            for x in range(width // 2):
                pooled[plane, row, x] = _larger(line[2 * x], line[2 * x + 1])
            if width % 2:
                pooled[plane, row, width // 2] = line[width - 1]


@compiled(types.void(_PLANES, _PLANES, _PLANES, _MADE, int64, int64))
def _hand_back(images, pooled, pooled_gradient, gradient, first, last):
    _, height, width = images.shape
    left = np.empty(pooled.shape[2], dtype=np.float32)
    for plane in range(first, last):
        for row in range(pooled.shape[1]):
            left[:] = pooled_gradient[plane, row]
            best = pooled[plane, row]
            for y in range(2 * row, min(2 * row + 2, height)):
                line, out = images[plane, y], gradient[plane, y]
                for x in range(width // 2):
                    first_won = float32(line[2 * x] == best[x])
                    second_won = float32(line[2 * x + 1] == best[x]) * (float32(1) - first_won)
                    out[2 * x] = left[x] * first_won
                    out[2 * x + 1] = left[x] * second_won
                    left[x] *= float32(1) - first_won - second_won
                if width % 2:
                    won = line[width - 1] == best[width // 2]
                    out[width - 1] = left[width // 2] if won else float32(0)
                    left[width // 2] = float32(0) if won else left[width // 2]


def l2_normalise(images: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Images [B, C, H, W] divided by the norm over C at each position, times scale [C]; all float32."""
    normalised = reused(images.shape)

    def work(rows: range) -> None:
        for row in rows:
            np.multiply(images[row], _inverse_norm(images[row]), out=normalised[row])
            normalised[row] *= scale[:, None, None]

    run_in_threads(work, range(len(images)))
    return normalised


def l2_normalise_gradients(
    images: np.ndarray, scale: np.ndarray, output_gradient: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Gradients of `l2_normalise` for images [B, C, H, W] and scale [C]."""
    images_gradient = reused(images.shape)

    def work(rows: range) -> np.ndarray:
        scale_gradient = np.zeros(len(scale), dtype=np.float32)
        for row in rows:
            image, inverse, gradient = images[row], _inverse_norm(images[row]), images_gradient[row]
            product = output_gradient[row] * image
            scale_gradient += np.einsum("chw,hw->c", product, inverse)
            along = np.einsum("chw,c->hw", product, scale) * inverse**3
            np.multiply(output_gradient[row], scale[:, None, None], out=gradient)
            gradient *= inverse
            np.multiply(image, along, out=product)
            gradient -= product
        return scale_gradient

    return images_gradient, sum_of(run_in_threads(work, range(len(images))))


def _inverse_norm(image: np.ndarray) -> np.ndarray:
    return 1 / np.sqrt(np.einsum("chw,chw->hw", image, image) + np.float32(SQUARED_NORM_FLOOR))


def transposed(matrices: np.ndarray) -> np.ndarray:
    """float32 [B, M, N] -> [B, N, M], laid out anew."""
    result = reused((len(matrices), matrices.shape[2], matrices.shape[1]))

    def transpose(rows: range) -> None:
        for row in rows:
            result[row] = matrices[row].T

    run_in_threads(transpose, range(len(matrices)))
    return result
