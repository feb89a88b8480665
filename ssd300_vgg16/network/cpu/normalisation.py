"""L2 normalisation over channels, and feature maps laid out anew, with gradients."""

import numpy as np

from ssd300_vgg16.network.cpu.threads import reused, run_in_threads
from ssd300_vgg16.runtime import flow

# Added to a squared norm, so that a position where every channel is zero has a finite gradient.
SQUARED_NORM_FLOOR = 1e-10


def normalise(images: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Images [B, C, H, W] divided by the norm over C at each position, times scale [C]; all float32."""
    normalised = reused(images.shape)

    def work(rows: range) -> None:
        for row in rows:
            np.multiply(images[row], _inverse_norm(images[row]), out=normalised[row])
            normalised[row] *= scale[:, None, None]

    run_in_threads(work, range(len(images)))
    return normalised


def gradients(images: np.ndarray, scale: np.ndarray, output_gradient: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Gradients of `normalise` for images [B, C, H, W] and scale [C]."""
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

    return images_gradient, sum(run_in_threads(work, range(len(images))))


def _inverse_norm(image: np.ndarray) -> np.ndarray:
    return 1 / np.sqrt(np.einsum("chw,chw->hw", image, image) + np.float32(SQUARED_NORM_FLOOR))


class CpuNormalisation(flow.autograd.Function):
    """`normalise` for OneFlow's autograd: `CpuNormalisation.apply(images, scale)`, tensors on the CPU."""

    @staticmethod
    def forward(ctx, images, scale):
        ctx.save_for_backward(images, scale)
        return flow.from_numpy(normalise(images.numpy(), scale.numpy()))

    @staticmethod
    def backward(ctx, output_gradient):
        images, scale = (tensor.numpy() for tensor in ctx.saved_tensors)
        return tuple(map(flow.from_numpy, gradients(images, scale, output_gradient.numpy())))


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
