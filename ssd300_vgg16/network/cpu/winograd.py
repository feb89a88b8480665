"""3x3 convolution on the CPU by Winograd's method, with gradients: a quarter of the multiplications.

Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks" (2015), F(4x4, 3x3). Results differ from a plain
sum by about 3e-6 of the largest.
"""

from itertools import pairwise

import numpy as np

from ssd300_vgg16.network.cpu.threads import buffer, one_blas_thread, reused, run_in_threads, sum_of, thread_count
from ssd300_vgg16.network.cpu.winograd_transforms import (
    INPUT_TILE,
    TILE,
    WEIGHT_TRANSFORM,
    input_transform,
    output_transform,
    transposed_output_transform,
)

# Tiles that a thread takes at a time: enough for an efficient product, few enough to stay in its cache.
TILES = 256
KERNELS = 1 << 14  # likewise, of weights that are transformed or summed
# Sums over fewer tiles take less time than adding up the threads' sums, each of which is as large as the weights.
LEAST_TILES = 32
POINTS = INPUT_TILE * INPUT_TILE
WEIGHT_TRANSFORM_2D = np.kron(WEIGHT_TRANSFORM, WEIGHT_TRANSFORM).astype(np.float32)
# That of weights rotated by 180 degrees. (Rotating the weights would do, but BLAS reads no array backwards.)
ROTATED_WEIGHT_TRANSFORM_2D = np.ascontiguousarray(WEIGHT_TRANSFORM_2D[:, ::-1])


def convolve(images: np.ndarray, weight: np.ndarray, bias: np.ndarray, relu: bool = False) -> np.ndarray:
    """Same-size convolution: images [B, C, H, W], weight [O, C, 3, 3], bias [O] -> [B, O, H, W], all float32."""
    images = np.ascontiguousarray(images)
    batch, channels, height, width = images.shape
    output = reused((batch, len(weight), height, width))
    transformed_weight = _weight_transform(weight)

    def multiply(blocks: list[tuple[int, int]]) -> None:
        unused = np.zeros(channels)
        for first, last in blocks:
            tiles = (last - first) * tiles_in(width)
            transformed = buffer("transformed", (POINTS, channels, tiles))
            products = buffer("products", (POINTS, len(weight), tiles))
            input_transform(images, images, False, transformed, unused, first, last)
            np.matmul(transformed_weight, transformed, out=products)
            output_transform(products, output, bias, relu, first, last)

    with one_blas_thread():
        run_in_threads(multiply, _blocks(batch, height, width))
    return output


def gradients(
    images: np.ndarray,
    weight: np.ndarray,
    output_gradient: np.ndarray,
    relu_output: np.ndarray | None = None,
    for_images: bool = True,
) -> tuple[np.ndarray | None, np.ndarray, np.ndarray]:
    """Gradients of `convolve` for images [B, C, H, W] (None unless asked for), weight [O, C, 3, 3] and bias [O].

    relu_output: the output [B, O, H, W], where the convolution had a ReLU.
    """
    images, output_gradient = np.ascontiguousarray(images), np.ascontiguousarray(output_gradient)
    relu = relu_output is not None
    relu_output = np.ascontiguousarray(relu_output) if relu else output_gradient
    batch, channels, height, width = images.shape
    outputs = len(weight)
    # Gradients for the images are a convolution with the weights rotated by 180 degrees; those for the weights are
    # products of the same transformed gradients with the images, rotated too.
    rotated = _weight_transform(weight, rotated=True).transpose(0, 2, 1) if for_images else None
    images_gradient = reused(images.shape) if for_images else None
    no_bias = np.zeros(channels, dtype=np.float32)

    def multiply(blocks: list[tuple[int, int]]) -> tuple[np.ndarray | None, np.ndarray]:
        bias_gradient = np.zeros(outputs)
        if not blocks:
            return None, bias_gradient
        total, part = (buffer(name, (POINTS, outputs, channels)) for name in ("total", "part"))
        for number, (first, last) in enumerate(blocks):
            tiles = (last - first) * tiles_in(width)
            transformed = buffer("transformed", (POINTS, outputs, tiles))
            products = buffer("products", (POINTS, channels, tiles))
            input_transform(output_gradient, relu_output, relu, transformed, bias_gradient, first, last)
            if rotated is not None:
                np.matmul(rotated, transformed, out=products)
                output_transform(products, images_gradient, no_bias, False, first, last)
            transposed_output_transform(images, products, first, last)
            np.matmul(transformed, products.transpose(0, 2, 1), out=part if number else total)
            if number:
                total += part
        return WEIGHT_TRANSFORM_2D.T @ total.reshape(POINTS, -1), bias_gradient

    with one_blas_thread():
        # Fixed shares, added in a fixed order: the same sums every time.
        shares = run_in_threads(multiply, _blocks(batch, height, width, LEAST_TILES))
    weight_gradient = _sum_rotated([share for share, _ in shares if share is not None]).reshape(weight.shape)
    return images_gradient, weight_gradient, sum_of(share for _, share in shares).astype(np.float32)


def _weight_transform(weight: np.ndarray, rotated: bool = False) -> np.ndarray:
    """Weight [O, C, 3, 3], rotated if asked for, transformed: [36, O, C], valid until the next is asked for."""
    kernels = weight.reshape(-1, 9)
    transformed = buffer("weight", (POINTS, len(kernels)))
    transform = ROTATED_WEIGHT_TRANSFORM_2D if rotated else WEIGHT_TRANSFORM_2D

    def multiply(starts: range) -> None:
        for start in starts:
            part = slice(start, start + KERNELS)
            np.matmul(transform, kernels[part].T, out=transformed[:, part])

    # Not by BLAS's own threads: behind a product they go on turning for a while, in the way of the threads here.
    with one_blas_thread():
        run_in_threads(multiply, range(0, len(kernels), KERNELS))
    return transformed.reshape(POINTS, *weight.shape[:2])


def _sum_rotated(shares: list[np.ndarray]) -> np.ndarray:
    """The sum of the threads' gradients [9, kernels], rotated by 180 degrees: [kernels, 9]."""
    kernels = shares[0].shape[1]
    total = reused((kernels, 9))

    def add(starts: range) -> None:
        for start in starts:
            part = slice(start, start + KERNELS)
            total[part] = sum_of(share[::-1, part] for share in shares).T

    run_in_threads(add, range(0, kernels, KERNELS))
    return total


def tiles_in(side: int) -> int:
    return -(-side // TILE)


def _blocks(batch: int, height: int, width: int, least_tiles: int = 1) -> list[tuple[int, int]]:
    """(first, last) row of tiles of each block, counted over the batch; as many for each thread, where there are.

    least_tiles: what a thread should have at least; with fewer tiles, some threads get none.
    """
    rows = batch * tiles_in(height)
    tiles = rows * tiles_in(width)
    threads = min(thread_count(), -(-tiles // least_tiles))
    blocks = min(rows, -(-tiles // (TILES * threads)) * threads)
    return list(pairwise(rows * number // blocks for number in range(blocks + 1)))
