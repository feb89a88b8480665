"""The kernels here for OneFlow's autograd, on tensors on the CPU: all that the rest of the package uses of them."""

from types import SimpleNamespace
from typing import TYPE_CHECKING

import numpy as np

from ssd300_vgg16.runtime import flow

if TYPE_CHECKING:
    from oneflow.autograd import Function
else:
    Function = flow.autograd.Function


def _kernels() -> SimpleNamespace:
    # Here, and so at first use: loading numba is spared on GPUs, and where ONNX Runtime detects.
    from ssd300_vgg16.network.cpu import convolution, layers, loss, narrow

    return SimpleNamespace(convolution=convolution, layers=layers, loss=loss, narrow=narrow)


def covers_convolution(kernel_size: int, stride: int, padding: int, dilation: int) -> bool:
    """Whether a square convolution of these numbers is one that `convolution` computes."""
    return stride == 1 and 2 * padding == dilation * (kernel_size - 1)


def convolution(x, weight, bias, dilation: int = 1, relu: bool = False):
    """Same-size convolution, and a ReLU if asked for: [B, C, H, W], weight [O, C, K, K], bias [O] -> [B, O, H, W]."""
    kernels = _kernels().convolution
    keep = flow.is_grad_enabled()
    kept: list = []

    # A class for each call: `apply` takes nothing but tensors, and what is read of `ctx` may be freed twice.
    class Convolution(Function):
        @staticmethod
        def forward(ctx, images, weight, bias):
            arrays = images.numpy(), weight.numpy()
            output = kernels.convolve(*arrays, bias.numpy(), dilation, relu)
            if keep:
                kept.append((*arrays, output))
            output = flow.from_numpy(output)
            ctx.save_for_backward(images, weight, output)
            return output

        @staticmethod
        def backward(ctx, output_gradient):
            saved = ctx.saved_tensors
            # The arrays are had without waiting for OneFlow, but only once: they take memory.
            images, weight, output = kept.pop() if kept else [tensor.numpy() for tensor in saved]
            # The images themselves need no gradient.
            for_images = saved[0].requires_grad
            relu_output = output if relu else None
            found = kernels.gradients(images, weight, output_gradient.numpy(), relu_output, dilation, for_images)
            return tuple(None if array is None else flow.from_numpy(array) for array in found)

    return Convolution.apply(x, weight, bias)


def max_pool(x):
    """Maxima of 2x2 cells: [B, C, H, W] -> [B, C, ceil(H / 2), ceil(W / 2)]; odd edges by themselves."""
    return _MaxPool.apply(x)


class _MaxPool(Function):
    @staticmethod
    def forward(ctx, images):
        pooled = flow.from_numpy(_kernels().layers.max_pool(images.numpy()))
        ctx.save_for_backward(images, pooled)
        return pooled

    @staticmethod
    def backward(ctx, pooled_gradient):
        arrays = [tensor.numpy() for tensor in (*ctx.saved_tensors, pooled_gradient)]
        return flow.from_numpy(_kernels().layers.max_pool_gradient(*arrays))


def l2_normalise(x, scale):
    """x [B, C, H, W] divided by the norm over C at each position, times scale [C]."""
    return _L2Normalise.apply(x, scale)


class _L2Normalise(Function):
    @staticmethod
    def forward(ctx, images, scale):
        ctx.save_for_backward(images, scale)
        return flow.from_numpy(_kernels().layers.l2_normalise(images.numpy(), scale.numpy()))

    @staticmethod
    def backward(ctx, output_gradient):
        arrays = [tensor.numpy() for tensor in (*ctx.saved_tensors, output_gradient)]
        return tuple(map(flow.from_numpy, _kernels().layers.l2_normalise_gradients(*arrays)))


def channels_last(x):
    """[B, C, H, W] -> [B, H * W, C], laid out anew."""
    return _Transpose.apply(x.reshape(x.shape[0], x.shape[1], -1))


class _Transpose(Function):
    @staticmethod
    def forward(ctx, matrices):
        return flow.from_numpy(_kernels().layers.transposed(matrices.numpy()))

    @staticmethod
    def backward(ctx, gradient):
        return flow.from_numpy(_kernels().layers.transposed(gradient.numpy()))


def multibox_losses(offsets, logits, target_offsets, target_labels, background_positives: int):
    """Both parts of the loss, localization and classification, summed over the batch: float32 [2]."""

    class MultiboxLoss(Function):
        @staticmethod
        def forward(ctx, *tensors):
            arrays = (tensor.numpy() for tensor in tensors)
            sums, *gradients = _kernels().loss.multibox_loss(*arrays, background_positives)
            ctx.save_for_backward(*map(flow.from_numpy, gradients))
            return flow.from_numpy(sums.astype(np.float32))

        @staticmethod
        def backward(ctx, sums_gradient):
            gradients = ctx.saved_tensors
            return (*(gradient * share for gradient, share in zip(gradients, sums_gradient, strict=True)), None, None)

    return MultiboxLoss.apply(offsets, logits, target_offsets, target_labels)


def narrow_network(model, images):
    """Offsets and logits of an SSD, computed image by image (`narrow`); None where that is not how to compute it."""
    # Looked at each time: a part of the model may have been replaced since.
    found = _kernels().narrow.network_of(model) if images.shape[2] == model.layout.image_size else None
    if found is None:
        return None
    network, parameters = found
    # As one tensor: to wait for OneFlow takes long where others compute too, and each tensor would be waited for.
    flat = flow.cat([parameter.reshape(-1) for parameter in parameters])
    keep = flow.is_grad_enabled()
    kept: list = []

    class NarrowNetwork(Function):
        @staticmethod
        def forward(ctx, images, flat):
            offsets, logits, outputs = network.forward(images.numpy(), network.split(flat.numpy()), keep)
            if keep:
                kept.append(outputs)
            ctx.save_for_backward(images, flat)
            return flow.from_numpy(offsets), flow.from_numpy(logits)

        @staticmethod
        def backward(ctx, offsets_gradient, logits_gradient):
            images, flat = (tensor.numpy() for tensor in ctx.saved_tensors)
            parameters = network.split(flat)
            # What was kept goes as it is used; who goes back again pays for it again.
            outputs = kept.pop() if kept else network.forward(images, parameters, keep=True)[2]
            gradient = network.backward(parameters, outputs, offsets_gradient.numpy(), logits_gradient.numpy())
            return None, flow.from_numpy(gradient)

    return NarrowNetwork.apply(images, flat)
