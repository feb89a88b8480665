"""The whole network on the CPU, for narrow ones: each thread takes images of its own through all layers.

A narrow layer takes less time than what surrounds it: waking threads, waiting for the last of them, OneFlow's own
bookkeeping, and the way to memory, since a batch's maps are larger than the cache and one image's are not.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import numpy as np

from ssd300_vgg16.network.cpu import convolution, layers
from ssd300_vgg16.network.cpu.threads import one_blas_thread, run_in_threads, sum_of, thread_count
from ssd300_vgg16.runtime import flow

Arrays = list[np.ndarray]

# Multiples of the published channels up to which this is faster than layer after layer.
MAX_WIDTH = 0.25


@dataclass(frozen=True)
class Convolution:
    """A convolution with ReLU; `number` is that of its weight among the parameters, the bias follows.

    Computed as one of stride 1 whose output is as large as its input, of which the outer `crop` cells and all but each
    stride-th are left out: the few layers of which that leaves something out are tiny.
    """

    number: int
    dilation: int = 1
    stride: int = 1
    crop: int = 0

    def forward(self, x: np.ndarray, parameters: Arrays) -> np.ndarray:
        weight, bias = parameters[self.number : self.number + 2]
        return np.ascontiguousarray(self._kept(convolution.convolve(x, weight, bias, self.dilation, relu=True)))

    def backward(
        self, x: np.ndarray, y: np.ndarray, gradient: np.ndarray, parameters: Arrays, totals: Arrays
    ) -> np.ndarray:
        relu_output: np.ndarray | None = y
        if self.stride > 1 or self.crop:
            whole = np.zeros((1, y.shape[1], *x.shape[2:]), dtype=np.float32)
            self._kept(whole)[...] = convolution.relu_gradient(gradient, y)
            gradient, relu_output = whole, None
        # The image itself needs no gradient.
        for_images = self.number > 0
        found = convolution.gradients(x, parameters[self.number], gradient, relu_output, self.dilation, for_images)
        totals[self.number] += found[1]
        totals[self.number + 1] += found[2]
        return found[0]

    def _kept(self, y: np.ndarray) -> np.ndarray:
        inside = slice(self.crop, -self.crop or None, self.stride)
        return y[:, :, inside, inside]


@dataclass(frozen=True)
class MaxPool:
    """Maxima of 2x2 cells, or of 3x3 around each cell."""

    size: int

    def forward(self, x: np.ndarray, _: Arrays) -> np.ndarray:
        return layers.max_pool(x) if self.size == 2 else layers.max_pool_3x3(x)

    def backward(self, x: np.ndarray, y: np.ndarray, gradient: np.ndarray, _: Arrays, __: Arrays) -> np.ndarray:
        return (layers.max_pool_gradient if self.size == 2 else layers.max_pool_3x3_gradient)(x, y, gradient)


@dataclass(frozen=True)
class Network:
    """stages: the layers up to each feature map. Parameters come in the order: weight and bias of each convolution in
    the stages, the scale of the first map, and for each map weight and bias of the logits, then of the offsets."""

    stages: tuple[tuple[Convolution | MaxPool, ...], ...]
    scale: int
    num_classes: int
    boxes_per_cell: tuple[int, ...]
    shapes: tuple[tuple[int, ...], ...]

    def split(self, flat: np.ndarray) -> Arrays:
        """The parameters, from all of them in one line."""
        ends = np.cumsum([prod(shape) for shape in self.shapes])
        return [part.reshape(shape) for part, shape in zip(np.split(flat, ends[:-1]), self.shapes, strict=True)]

    def forward(self, images: np.ndarray, parameters: Arrays, keep: bool) -> tuple[np.ndarray, np.ndarray, list]:
        """Offsets [B, D, 4] and logits [B, D, num_classes] of images [B, 3, S, S].

        The third is what `backward` needs, with `keep`: the output of each layer for each image.
        """
        heads = self._heads(parameters)
        results: list = [None] * len(images)

        def work(numbers: Sequence[int]) -> None:
            for number in numbers:
                offsets, logits, outputs = self._forward_one(images[number : number + 1], parameters, heads)
                results[number] = offsets, logits, outputs if keep else None

        self._over(work, len(images))
        offsets, logits, outputs = zip(*results, strict=True)
        return np.stack(offsets), np.stack(logits), list(outputs)

    def backward(
        self, parameters: Arrays, kept: list, offsets_gradient: np.ndarray, logits_gradient: np.ndarray
    ) -> np.ndarray:
        """Gradients of all parameters, in one line."""
        heads = self._heads(parameters)

        def work(numbers: Sequence[int]) -> tuple[Arrays, Arrays]:
            totals = [np.zeros_like(each) for each in parameters]
            head_totals = [np.zeros_like(each) for each in heads]
            for number in numbers:
                gradients = offsets_gradient[number], logits_gradient[number]
                self._backward_one(kept[number], parameters, heads, *gradients, totals, head_totals)
                kept[number] = None  # memory for the next
            return totals, head_totals

        # Fixed shares, added in a fixed order: the same sums every time.
        shares = self._over(work, len(kept))
        totals, head_totals = (
            [sum_of(parts) for parts in zip(*each, strict=True)] for each in zip(*shares, strict=True)
        )
        for index, logits in enumerate(self._head_numbers()):
            outputs = self.boxes_per_cell[index] * self.num_classes
            weight, bias = head_totals[2 * index : 2 * index + 2]
            totals[logits : logits + 4] = [weight[:outputs], bias[:outputs], weight[outputs:], bias[outputs:]]
        return np.concatenate([each.reshape(-1) for each in totals])

    @staticmethod
    def _over(work, images: int) -> list:
        # With fewer images than threads, the layers themselves are shared out.
        if images < thread_count():
            return [work(range(images))]
        with one_blas_thread():
            return run_in_threads(work, range(images))

    def _head_numbers(self) -> range:
        """For each map, the number of its first head's weight."""
        return range(self.scale + 1, self.scale + 1 + 4 * len(self.stages), 4)

    def _heads(self, parameters: Arrays) -> Arrays:
        """Weight and bias for each map of both heads as one convolution: logits, then offsets."""
        heads = []
        for number in self._head_numbers():
            weight, bias, offsets_weight, offsets_bias = parameters[number : number + 4]
            heads += [np.concatenate([weight, offsets_weight]), np.concatenate([bias, offsets_bias])]
        return heads

    def _forward_one(self, x: np.ndarray, parameters: Arrays, heads: Arrays) -> tuple[np.ndarray, np.ndarray, Arrays]:
        outputs, offsets, logits = [x], [], []
        for index, stage in enumerate(self.stages):
            for layer in stage:
                x = layer.forward(x, parameters)
                outputs.append(x)
            feature_map = x if index else layers.l2_normalise(x, parameters[self.scale])
            answers = convolution.convolve(feature_map, heads[2 * index], heads[2 * index + 1])
            by_cell = answers.reshape(answers.shape[1], -1).T
            split = self.boxes_per_cell[index] * self.num_classes
            logits.append(by_cell[:, :split].reshape(-1, self.num_classes))
            offsets.append(by_cell[:, split:].reshape(-1, 4))
        return np.concatenate(offsets), np.concatenate(logits), outputs

    def _backward_one(
        self,
        outputs: Arrays,
        parameters: Arrays,
        heads: Arrays,
        offsets_gradient: np.ndarray,
        logits_gradient: np.ndarray,
        totals: Arrays,
        head_totals: Arrays,
    ) -> None:
        end, place = len(offsets_gradient), len(outputs) - 1
        gradient: np.ndarray | None = None
        for index in reversed(range(len(self.stages))):
            x = outputs[place]
            start = end - x.shape[2] * x.shape[3] * self.boxes_per_cell[index]
            rows = [
                each[start:end].reshape(x.shape[2] * x.shape[3], -1) for each in (logits_gradient, offsets_gradient)
            ]
            end = start
            answers_gradient = np.concatenate(rows, axis=1).T.reshape(1, -1, *x.shape[2:])
            scale = parameters[self.scale]
            feature_map = x if index else layers.l2_normalise(x, scale)
            of_map, of_weight, of_bias = convolution.gradients(feature_map, heads[2 * index], answers_gradient)
            head_totals[2 * index] += of_weight
            head_totals[2 * index + 1] += of_bias
            if not index:
                of_map, of_scale = layers.l2_normalise_gradients(x, scale, of_map)
                totals[self.scale] += of_scale
            gradient = of_map if gradient is None else gradient + of_map
            for layer in reversed(self.stages[index]):
                gradient = layer.backward(outputs[place - 1], outputs[place], gradient, parameters, totals)
                place -= 1


def network_of(model) -> tuple[Network, list] | None:
    """The layers of an SSD and its parameters in their order; None where they are not narrow, or not of these kinds.

    A model whose parts were replaced, or have hooks, has to be computed as it is: part by part.
    """
    if model.width > MAX_WIDTH or any(part._forward_hooks or part._forward_pre_hooks for part in model.modules()):
        return None
    stages: list[tuple[Convolution | MaxPool, ...]] = []
    parameters: list = []
    for block in (model.backbone.features, *model.backbone.extra):
        stage: list[Convolution | MaxPool] = []
        for part in block.modules():
            if isinstance(part, flow.nn.Conv2d):
                (size, stride, padding, dilation), relu = _numbers(part), getattr(part, "relu", False)
                if not relu or size % 2 == 0 or part.groups > 1:
                    return None
                stage.append(Convolution(len(parameters), dilation, stride, dilation * (size - 1) // 2 - padding))
                parameters += [part.weight, part.bias]
            elif isinstance(part, flow.nn.MaxPool2d):
                stage.append(MaxPool(3 if part.kernel_size in (3, (3, 3)) else 2))
            elif not isinstance(part, (flow.nn.Sequential, flow.nn.Identity)):
                return None
        stages.append(tuple(stage))
    scale = len(parameters)
    parameters.append(model.backbone.scale_weight)
    heads = (model.head.classification_head.module_list, model.head.regression_head.module_list)
    for pair in zip(*heads, strict=True):
        if any(_numbers(part) != (3, 1, 1, 1) or getattr(part, "relu", False) for part in pair):
            return None
        parameters += [each for part in pair for each in (part.weight, part.bias)]
    shapes = tuple(tuple(parameter.shape) for parameter in parameters)
    return Network(tuple(stages), scale, model.num_classes, model.layout.boxes_per_cell, shapes), parameters


def _numbers(part) -> tuple[int, int, int, int]:
    """Kernel size, stride, padding and dilation of a square convolution."""
    return part.kernel_size[0], part.stride[0], part.padding[0], part.dilation[0]
