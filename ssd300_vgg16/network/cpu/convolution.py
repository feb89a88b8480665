"""Convolution on the CPU for OneFlow's autograd, by whichever method is faster for a layer."""

from functools import cache

import numpy as np

from ssd300_vgg16.network.cpu import unrolled_convolution
from ssd300_vgg16.network.cpu.threads import reused, run_in_threads
from ssd300_vgg16.runtime import flow

# With fewer outputs, transforming tiles takes longer than it saves in products; with fewer tiles in a batch,
# transforming weights does.
WINOGRAD_OUTPUTS, WINOGRAD_TILES = 32, 64
WINOGRAD_TILE = 4


def covers(kernel_size: int, stride: int, padding: int, dilation: int) -> bool:
    """Whether a square convolution of these numbers is one this module computes."""
    return stride == 1 and 2 * padding == dilation * (kernel_size - 1)


def winograd_pays(images: np.ndarray, weight: np.ndarray, dilation: int) -> bool:
    """Whether Winograd's method is faster than unrolling for images [B, C, H, W] and weight [O, C, K, K]."""
    batch, _, height, width = images.shape
    tiles = batch * -(-height // WINOGRAD_TILE) * -(-width // WINOGRAD_TILE)
    fits = weight.shape[2] == 3 and dilation == 1
    return fits and len(weight) >= WINOGRAD_OUTPUTS and tiles >= WINOGRAD_TILES


def convolve(images: np.ndarray, weight: np.ndarray, bias: np.ndarray, dilation: int = 1, relu: bool = False):
    """Same-size convolution: images [B, C, H, W], weight [O, C, K, K], bias [O] -> [B, O, H, W], all float32."""
    if winograd_pays(images, weight, dilation):
        from ssd300_vgg16.network.cpu import winograd  # compiled: loading it is spared where nothing is convolved here

        return winograd.convolve(images, weight, bias, relu)
    return unrolled_convolution.convolve(images, weight, bias, dilation, relu)


def gradients(
    images: np.ndarray,
    weight: np.ndarray,
    output_gradient: np.ndarray,
    relu_output: np.ndarray | None,
    dilation: int,
    for_images: bool,
) -> tuple[np.ndarray | None, np.ndarray, np.ndarray]:
    """Gradients of `convolve` for images [B, C, H, W] (None unless asked for), weight [O, C, K, K] and bias [O].

    relu_output: the output [B, O, H, W], where the convolution had a ReLU.
    """
    if winograd_pays(images, weight, dilation):
        from ssd300_vgg16.network.cpu import winograd

        return winograd.gradients(images, weight, output_gradient, relu_output, for_images)
    if relu_output is not None:
        output_gradient = relu_gradient(output_gradient, relu_output)
    return unrolled_convolution.gradients(images, weight, output_gradient, dilation, for_images)


def relu_gradient(output_gradient: np.ndarray, output: np.ndarray) -> np.ndarray:
    """The gradient before a ReLU, from the one after it and the ReLU's output, both [B, O, H, W]."""
    gradient = reused(output.shape)

    def mask(images: range) -> None:
        for image in images:
            np.multiply(output_gradient[image], output[image] > 0, out=gradient[image])

    run_in_threads(mask, range(len(output)))
    return gradient


@cache
def convolution_function(dilation: int, relu: bool) -> type:
    """An autograd function for `convolve`: `apply(images, weight, bias)`, tensors on the CPU.

    A class for each kind, because OneFlow's `apply` takes nothing but tensors.
    """

    class Convolution(flow.autograd.Function):
        @staticmethod
        def forward(ctx, images, weight, bias):
            arrays = images.numpy(), weight.numpy()
            output = convolve(*arrays, bias.numpy(), dilation, relu)
            ctx.arrays = *arrays, output
            output = flow.from_numpy(output)
            ctx.save_for_backward(images, weight, output)
            return output

        @staticmethod
        def backward(ctx, output_gradient):
            saved = ctx.saved_tensors
            # An array is had without waiting for OneFlow, but is not let go by it: only the first time, and no longer.
            images, weight, output = ctx.arrays or [tensor.numpy() for tensor in saved]
            ctx.arrays = None
            # The photographs themselves need no gradient.
            for_images = saved[0].requires_grad
            found = gradients(images, weight, output_gradient.numpy(), output if relu else None, dilation, for_images)
            return tuple(None if array is None else flow.from_numpy(array) for array in found)

    Convolution.__name__ = f"ConvolutionDilated{dilation}{'ReLU' if relu else ''}"
    return Convolution
