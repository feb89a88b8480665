"""Convolution on the CPU, with gradients, by whichever method is faster for a layer."""

from typing import Any

import numpy as np
from numba import float32, types

from ssd300_vgg16.network.cpu import row_winograd, unrolled_convolution, winograd
from ssd300_vgg16.network.cpu.threads import compiled, reused, run_in_threads

_READ = types.Array(float32, 1, "C", readonly=True)

# With fewer outputs, transforming tiles takes longer than it saves in products; with fewer tiles in a batch,
# transforming weights does.
WINOGRAD_OUTPUTS, WINOGRAD_TILES = 32, 64
WINOGRAD_TILE = 4


def winograd_pays(images: np.ndarray, weight: np.ndarray, dilation: int) -> bool:
    """Whether Winograd's method is faster than unrolling for images [B, C, H, W] and weight [O, C, K, K]."""
    batch, _, height, width = images.shape
    tiles = batch * -(-height // WINOGRAD_TILE) * -(-width // WINOGRAD_TILE)
    fits = weight.shape[2] == 3 and dilation == 1
    return fits and len(weight) >= WINOGRAD_OUTPUTS and tiles >= WINOGRAD_TILES


# Kernels (outputs x channels) up to which transforms along rows as well would take longer than what they save.
ROW_KERNELS = 8192


def rows_pay(weight: np.ndarray, dilation: int) -> bool:
    """Whether Winograd's method on whole rows is the fastest for weight [O, C, K, K]."""
    outputs, channels, size, _ = weight.shape
    return size == 3 and dilation == 1 and outputs * channels <= ROW_KERNELS


def convolve(images: np.ndarray, weight: np.ndarray, bias: np.ndarray, dilation: int = 1, relu: bool = False):
    """Same-size convolution: images [B, C, H, W], weight [O, C, K, K], bias [O] -> [B, O, H, W], all float32.

    Raises ValueError if the images have not the channels of the weight.
    """
    if images.shape[1] != weight.shape[1]:  # what is compiled looks at no bounds
        raise ValueError(f"images of {images.shape[1]} channels, and a convolution of {weight.shape[1]}")
    if rows_pay(weight, dilation):
        return row_winograd.convolve(images, weight, bias, relu)
    if winograd_pays(images, weight, dilation):
        return winograd.convolve(images, weight, bias, relu)
    if weight.shape[2] == 1 and len(images) == 1:
        return _product(images, weight, bias, relu)
    return unrolled_convolution.convolve(images, weight, bias, dilation, relu)


def gradients(
    images: np.ndarray,
    weight: np.ndarray,
    output_gradient: np.ndarray,
    relu_output: np.ndarray | None = None,
    dilation: int = 1,
    for_images: bool = True,
) -> tuple[Any, np.ndarray, np.ndarray]:
    """Gradients of `convolve` for images [B, C, H, W] (None unless asked for), weight [O, C, K, K] and bias [O].

    relu_output: the output [B, O, H, W], where the convolution had a ReLU.
    """
    by_rows = rows_pay(weight, dilation)
    if not by_rows and winograd_pays(images, weight, dilation):
        return winograd.gradients(images, weight, output_gradient, relu_output, for_images)
    if relu_output is not None:
        output_gradient = relu_gradient(output_gradient, relu_output)
    if by_rows:
        return row_winograd.gradients(images, weight, output_gradient, for_images)
    if weight.shape[2] == 1 and len(images) == 1:
        return _product_gradients(images, weight, output_gradient, for_images)
    return unrolled_convolution.gradients(images, weight, output_gradient, dilation, for_images)


def _product(images: np.ndarray, weight: np.ndarray, bias: np.ndarray, relu: bool) -> np.ndarray:
    """A 1x1 convolution of one image [1, C, H, W]."""
    output = weight.reshape(weight.shape[:2]) @ images.reshape(images.shape[1], -1)
    output += bias[:, None]
    if relu:
        np.maximum(output, 0, out=output)
    return output.reshape(1, len(weight), *images.shape[2:])


def _product_gradients(
    images: np.ndarray, weight: np.ndarray, output_gradient: np.ndarray, for_images: bool
) -> tuple[np.ndarray | None, np.ndarray, np.ndarray]:
    matrix, flat = weight.reshape(weight.shape[:2]), output_gradient.reshape(len(weight), -1)
    images_gradient = (matrix.T @ flat).reshape(images.shape) if for_images else None
    return images_gradient, (flat @ images.reshape(images.shape[1], -1).T).reshape(weight.shape), flat.sum(axis=1)


def relu_gradient(output_gradient: np.ndarray, output: np.ndarray) -> np.ndarray:
    """The gradient before a ReLU, from the one after it and the ReLU's output, both [B, O, H, W]."""
    arrays = np.ascontiguousarray(output_gradient), np.ascontiguousarray(output), reused(output.shape)

    def mask(images: range) -> None:
        for image in images:
            _pass(*(array[image].reshape(-1) for array in arrays))

    run_in_threads(mask, range(len(output)))
    return arrays[2]


@compiled(types.void(_READ, _READ, types.Array(float32, 1, "C")))
def _pass(gradient, output, passed):
    for place in range(len(gradient)):
        # A product, so that a NaN stays one.
        passed[place] = gradient[place] * float32(output[place] > 0)
