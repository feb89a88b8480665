"""Convolution on the CPU, with gradients, by whichever method is faster for a layer."""

from typing import Any

import numpy as np
from numba import float32, types

from ssd300_vgg16.network.cpu import unrolled_convolution, winograd
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


def convolve(images: np.ndarray, weight: np.ndarray, bias: np.ndarray, dilation: int = 1, relu: bool = False):
    """Same-size convolution: images [B, C, H, W], weight [O, C, K, K], bias [O] -> [B, O, H, W], all float32.

    Raises ValueError if the images have not the channels of the weight.
    """
    if images.shape[1] != weight.shape[1]:  # what is compiled looks at no bounds
        raise ValueError(f"images of {images.shape[1]} channels, and a convolution of {weight.shape[1]}")
    if winograd_pays(images, weight, dilation):
        return winograd.convolve(images, weight, bias, relu)
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
    if winograd_pays(images, weight, dilation):
        return winograd.gradients(images, weight, output_gradient, relu_output, for_images)
    if relu_output is not None:
        output_gradient = relu_gradient(output_gradient, relu_output)
    return unrolled_convolution.gradients(images, weight, output_gradient, dilation, for_images)


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
