"""The kernels here for OneFlow's autograd, on tensors on the CPU: all that the rest of the package uses of them."""

from functools import cache

from ssd300_vgg16.runtime import flow


def _kernels():
    # At first use: loading numba is spared on GPUs, and where ONNX Runtime detects.
    from ssd300_vgg16.network.cpu import convolution, layers

    return convolution, layers


def covers_convolution(kernel_size: int, stride: int, padding: int, dilation: int) -> bool:
    """Whether a square convolution of these numbers is one that `convolution` computes."""
    return stride == 1 and 2 * padding == dilation * (kernel_size - 1)


def convolution(x, weight, bias, dilation: int = 1, relu: bool = False):
    """Same-size convolution, and a ReLU if asked for: [B, C, H, W], weight [O, C, K, K], bias [O] -> [B, O, H, W]."""
    return _convolution_function(dilation, relu).apply(x, weight, bias)


def max_pool(x):
    """Maxima of 2x2 cells: [B, C, H, W] -> [B, C, ceil(H / 2), ceil(W / 2)]; odd edges by themselves."""
    return _MaxPool.apply(x)


def l2_normalise(x, scale):
    """x [B, C, H, W] divided by the norm over C at each position, times scale [C]."""
    return _L2Normalise.apply(x, scale)


def channels_last(x):
    """[B, C, H, W] -> [B, H * W, C], laid out anew."""
    return _Transpose.apply(x.reshape(x.shape[0], x.shape[1], -1))


@cache
def _convolution_function(dilation: int, relu: bool) -> type:
    """A class for each kind, because OneFlow's `apply` takes nothing but tensors."""

    class Convolution(flow.autograd.Function):
        @staticmethod
        def forward(ctx, images, weight, bias):
            kernels, _ = _kernels()
            arrays = images.numpy(), weight.numpy()
            output = kernels.convolve(*arrays, bias.numpy(), dilation, relu)
            ctx.arrays = *arrays, output
            output = flow.from_numpy(output)
            ctx.save_for_backward(images, weight, output)
            return output

        @staticmethod
        def backward(ctx, output_gradient):
            kernels, _ = _kernels()
            saved = ctx.saved_tensors
            # An array is had without waiting for OneFlow, but is not let go by it: only the first time, and no longer.
            images, weight, output = ctx.arrays or [tensor.numpy() for tensor in saved]
            ctx.arrays = None
            # The photographs themselves need no gradient.
            for_images = saved[0].requires_grad
            relu_output = output if relu else None
            found = kernels.gradients(images, weight, output_gradient.numpy(), relu_output, dilation, for_images)
            return tuple(None if array is None else flow.from_numpy(array) for array in found)

    Convolution.__name__ = f"ConvolutionDilated{dilation}{'ReLU' if relu else ''}"
    return Convolution


class _MaxPool(flow.autograd.Function):
    @staticmethod
    def forward(ctx, images):
        _, kernels = _kernels()
        pooled = flow.from_numpy(kernels.max_pool(images.numpy()))
        ctx.save_for_backward(images, pooled)
        return pooled

    @staticmethod
    def backward(ctx, pooled_gradient):
        _, kernels = _kernels()
        images, pooled = (tensor.numpy() for tensor in ctx.saved_tensors)
        return flow.from_numpy(kernels.max_pool_gradient(images, pooled, pooled_gradient.numpy()))


class _L2Normalise(flow.autograd.Function):
    @staticmethod
    def forward(ctx, images, scale):
        _, kernels = _kernels()
        ctx.save_for_backward(images, scale)
        return flow.from_numpy(kernels.l2_normalise(images.numpy(), scale.numpy()))

    @staticmethod
    def backward(ctx, output_gradient):
        _, kernels = _kernels()
        images, scale = (tensor.numpy() for tensor in ctx.saved_tensors)
        return tuple(map(flow.from_numpy, kernels.l2_normalise_gradients(images, scale, output_gradient.numpy())))


class _Transpose(flow.autograd.Function):
    @staticmethod
    def forward(ctx, matrices):
        _, kernels = _kernels()
        return flow.from_numpy(kernels.transposed(matrices.numpy()))

    @staticmethod
    def backward(ctx, gradient):
        _, kernels = _kernels()
        return flow.from_numpy(kernels.transposed(gradient.numpy()))
