"""The whole network on the CPU, for narrow ones: each thread takes images of its own through all layers.

A narrow layer takes less time than what surrounds it: waking threads, waiting for the last of them, OneFlow's own
bookkeeping, and the way to memory, since a batch's maps are larger than the cache and one image's are not.

Gradients go from layer to layer as those before the ReLU.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import prod

import numpy as np

from ssd300_vgg16.network.cpu.narrow_layers import (
    Convolution,
    Head,
    MaxPool,
    filled_up_line,
    l2_normalise,
    l2_normalise_gradients,
)
from ssd300_vgg16.network.cpu.threads import one_blas_thread, reused, run_in_threads, sum_of
from ssd300_vgg16.network.variants import PIXEL_MEAN, DefaultBoxLayout
from ssd300_vgg16.runtime import flow

Arrays = list[np.ndarray]

# Multiples of the published channels up to which this is faster than layer after layer.
MAX_WIDTH = 0.5
_PIXEL_MEAN = np.array(PIXEL_MEAN, dtype=np.float32)


@dataclass(frozen=True)
class Network:
    """stages: the layers up to each feature map. Parameters come in the order: weight and bias of each convolution in
    the stages, the scale of the first map, and for each map weight and bias of the logits, then of the offsets."""

    stages: tuple[tuple[Convolution | MaxPool, ...], ...]
    scale: int
    num_classes: int
    layout: DefaultBoxLayout
    shapes: tuple[tuple[int, ...], ...]

    def split(self, flat: np.ndarray) -> Arrays:
        """The parameters, from all of them in one line."""
        ends = np.cumsum([prod(shape) for shape in self.shapes])
        return [part.reshape(shape) for part, shape in zip(np.split(flat, ends[:-1]), self.shapes, strict=True)]

    def forward(self, images: np.ndarray, parameters: Arrays, keep: bool) -> tuple[np.ndarray, np.ndarray, list]:
        """Offsets [B, D, 4] and logits [B, D, num_classes] of images [B, 3, S, S] of 0 to 255.

        The third is what `backward` needs, with `keep`: the output of each layer for each image.
        """
        weights, scale = self._weights(parameters), filled_up_line(parameters[self.scale])
        kernels = self._kernels(weights, backward=False)
        biases = [filled_up_line(bias) for _, bias in weights]
        boxes = self._rows_of_maps()[-1].stop
        offsets, logits = (reused((len(images), boxes, values)) for values in (4, self.num_classes))
        kept: list = [None] * len(images)

        def work(numbers: Sequence[int]) -> None:
            for number in numbers:
                outputs = self._forward_one(images[number], kernels, biases, scale, offsets[number], logits[number])
                kept[number] = outputs if keep else None

        run_in_threads(work, range(len(images)))
        return offsets, logits, kept

    def backward(
        self, parameters: Arrays, kept: list, offsets_gradient: np.ndarray, logits_gradient: np.ndarray
    ) -> np.ndarray:
        """Gradients of all parameters, in one line."""
        weights, scale = self._weights(parameters), filled_up_line(parameters[self.scale])
        kernels = self._kernels(weights, backward=True)
        convolutions = self._convolutions()

        def work(numbers: Sequence[int]) -> Arrays:
            totals = [conv.total(weight) for conv, (weight, _) in zip(convolutions, weights, strict=True)]
            totals += [np.zeros(total.shape[-1], dtype=np.float32) for total in totals] + [np.zeros_like(scale)]
            for number in numbers:
                gradients = offsets_gradient[number], logits_gradient[number]
                self._backward_one(kept[number], kernels, scale, *gradients, totals)
                kept[number] = None  # memory for the next
            return totals

        with one_blas_thread():
            shares = run_in_threads(work, range(len(kept)))
        gradients: list = [None] * len(weights)

        def add(numbers: Sequence[int]) -> None:
            for number in numbers:
                weight, bias = weights[number]
                # Fixed shares, added in a fixed order: the same sums every time.
                total = sum_of(share[number] for share in shares)
                bias_total = sum_of(share[len(weights) + number] for share in shares)
                gradients[number] = convolutions[number].weight_gradient(total, weight), bias_total[: len(bias)]

        with one_blas_thread():
            run_in_threads(add, range(len(weights)))
        split = [each for pair in gradients[: -len(self.stages)] for each in pair]
        split.append(sum_of(share[-1] for share in shares)[: self.shapes[self.scale][0]])
        for (weight, bias), boxes in zip(gradients[-len(self.stages) :], self.layout.boxes_per_cell, strict=True):
            outputs = boxes * self.num_classes
            split += [weight[:outputs], bias[:outputs], weight[outputs:], bias[outputs:]]
        return np.concatenate([each.reshape(-1) for each in split], out=reused((sum(map(prod, self.shapes)),)))

    def _rows_of_maps(self) -> list[slice]:
        """Where the default boxes of each feature map lie among all."""
        sides, boxes_per_cell = self.layout.feature_maps, self.layout.boxes_per_cell
        ends = np.cumsum([side**2 * boxes for side, boxes in zip(sides, boxes_per_cell, strict=True)])
        return [slice(*pair) for pair in pairwise([0, *ends])]

    def _convolutions(self) -> list[Convolution]:
        """Of all stages, then the heads."""
        return [layer for stage in self.stages for layer in stage if isinstance(layer, Convolution)] + self._heads()

    def _heads(self) -> list[Head]:
        """Of each map: both heads as one, logits first."""
        first = self.scale // 2
        # On the last, smallest maps there is hardly a whole tile.
        return [Head(first + index, relu=False, tiled=index < 2) for index in range(len(self.stages))]

    def _weights(self, parameters: Arrays) -> list[tuple[np.ndarray, np.ndarray]]:
        """Weight and bias of each of the convolutions."""
        weights = list(zip(parameters[: self.scale : 2], parameters[1 : self.scale : 2], strict=True))
        for number in range(self.scale + 1, len(parameters), 4):
            weight, bias, offsets_weight, offsets_bias = parameters[number : number + 4]
            weights.append((np.concatenate([weight, offsets_weight]), np.concatenate([bias, offsets_bias])))
        return weights

    def _kernels(self, weights: list[tuple[np.ndarray, np.ndarray]], backward: bool) -> Arrays:
        convolutions = self._convolutions()
        kernels: Arrays = [np.empty(0)] * len(weights)

        def work(numbers: Sequence[int]) -> None:
            for number in numbers:
                kernels[number] = convolutions[number].kernels(weights[number][0], backward)

        with one_blas_thread():
            run_in_threads(work, range(len(weights)))
        return kernels

    def _forward_one(
        self,
        image: np.ndarray,
        kernels: Arrays,
        biases: Arrays,
        scale: np.ndarray,
        offsets: np.ndarray,
        logits: np.ndarray,
    ) -> Arrays:
        """The layers' outputs; offsets [D, 4] and logits [D, num_classes] are filled."""
        x = np.subtract(image.transpose(1, 2, 0), _PIXEL_MEAN, order="C")
        outputs = [x]
        parts = zip(self.stages, self._heads(), self._rows_of_maps(), strict=True)
        for index, (stage, head, rows) in enumerate(parts):
            for layer in stage:
                if isinstance(layer, Convolution):
                    x = layer.forward(x, kernels[layer.number], biases[layer.number])
                else:
                    x = layer.forward(x)
                outputs.append(x)
            feature_map = x if index else l2_normalise(x, scale)
            answers = head.forward(feature_map, kernels[head.number], biases[head.number])
            # What comes behind both fills up the last vector.
            by_cell = answers.reshape(-1, answers.shape[2])
            of_logits, of_offsets = (self._by_cell(each[rows], index) for each in (logits, offsets))
            width = of_logits.shape[1]
            of_logits[:], of_offsets[:] = by_cell[:, :width], by_cell[:, width : width + of_offsets.shape[1]]
        return outputs

    def _by_cell(self, rows: np.ndarray, index: int) -> np.ndarray:
        """Rows of a map's default boxes, as one row of each cell."""
        return rows.reshape(self.layout.feature_maps[index] ** 2, -1)

    def _backward_one(
        self,
        outputs: Arrays,
        kernels: Arrays,
        scale: np.ndarray,
        offsets_gradient: np.ndarray,
        logits_gradient: np.ndarray,
        totals: Arrays,
    ) -> None:
        place, count = len(outputs) - 1, len(kernels)
        heads, rows = self._heads(), self._rows_of_maps()
        gradient: np.ndarray | None = None
        for index in reversed(range(len(self.stages))):
            x, number = outputs[place], heads[index].number
            of_answers = [self._by_cell(each[rows[index]], index) for each in (logits_gradient, offsets_gradient)]
            of_map = heads[index].backward_from_cells(
                x if index else l2_normalise(x, scale),
                of_answers,
                kernels[number],
                totals[number],
                totals[count + number],
            )
            if not index:
                of_map, of_scale = l2_normalise_gradients(x, scale, of_map)
                totals[-1] += of_scale
            of_map = of_map * (x > 0)
            gradient = of_map if gradient is None else gradient + of_map
            for layer in reversed(self.stages[index]):
                x = outputs[place - 1]
                if isinstance(layer, Convolution):
                    number = layer.number
                    gradient = layer.backward(x, gradient, kernels[number], totals[number], totals[count + number])
                else:
                    gradient = layer.backward(x, outputs[place], gradient)
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
                if not relu or part.groups > 1:
                    return None
                tiled = bool(parameters) and (size, stride, padding, dilation) == (3, 1, 1, 1)
                number = len(parameters) // 2
                stage.append(Convolution(number, size, stride, padding, dilation, tiled=tiled))
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
    return Network(tuple(stages), scale, model.num_classes, model.layout, shapes), parameters


def _numbers(part) -> tuple[int, int, int, int]:
    """Kernel size, stride, padding and dilation of a square convolution."""
    return part.kernel_size[0], part.stride[0], part.padding[0], part.dilation[0]
