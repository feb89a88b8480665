"""What tests of the CPU's kernels share."""

from ssd300_vgg16.runtime import flow


def with_gradients(function, arrays, output_gradient):
    """What a function of tensors gives, and the gradients of its arguments, as arrays."""
    tensors = [flow.tensor(array, requires_grad=True) for array in arrays]
    output = function(*tensors)
    output.backward(flow.tensor(output_gradient))
    return [output.numpy(), *(tensor.grad.numpy() for tensor in tensors)]
