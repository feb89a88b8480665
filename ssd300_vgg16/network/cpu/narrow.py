"""The whole network on the CPU, for narrow ones: each thread takes images of its own through all layers.

A narrow layer takes less time than what surrounds it: waking threads, waiting for the last of them, OneFlow's own
bookkeeping, and the way to memory, since a batch's maps are larger than the cache and one image's are not.

Gradients go from layer to layer as those before the ReLU.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from ssd300_vgg16.network.cpu import channels_last
from ssd300_vgg16.network.cpu.threads import one_blas_thread, reused, run_in_threads, sum_of
from ssd300_vgg16.network.cpu.vectors import LANES
from ssd300_vgg16.network.cpu.winograd import ROTATED_WEIGHT_TRANSFORM_2D, WEIGHT_TRANSFORM_2D
from ssd300_vgg16.network.variants import PIXEL_MEAN, SQUARED_NORM_FLOOR
from ssd300_vgg16.runtime import flow

Arrays = list[np.ndarray]

# Multiples of the published channels up to which this is faster than layer after layer.
MAX_WIDTH = 0.5
_PIXEL_MEAN = np.array(PIXEL_MEAN, dtype=np.float32)


@dataclass(frozen=True)
class Convolution:
    """A convolution of weight `number`; tiled: by Winograd's method. Maps are [H, W, C], C a multiple of LANES."""

    number: int
    size: int = 3
    stride: int = 1
    padding: int = 1
    dilation: int = 1
    relu: bool = True
    tiled: bool = False

    def kernels(self, weight: np.ndarray, backward: bool) -> np.ndarray:
        """Weight [O, C, K, K] as the compiled functions read it, in one line."""
        weight = self._filled_up(weight)
        if self.tiled and backward:
            return (ROTATED_WEIGHT_TRANSFORM_2D @ weight.reshape(-1, 9).T).reshape(-1)
        if self.tiled:
            return (WEIGHT_TRANSFORM_2D @ weight.transpose(1, 0, 2).reshape(-1, 9).T).reshape(-1)
        return np.ascontiguousarray(weight.transpose(2, 0, 1) if backward else weight.transpose(2, 1, 0)).reshape(-1)

    def total(self, weight: np.ndarray) -> np.ndarray:
        """Zeros to add the weight's gradients to."""
        outputs, channels, taps = self._filled_up(weight).shape
        total = reused((channels_last.POINTS if self.tiled else taps, channels, outputs))
        total.fill(0)
        return total

    def weight_gradient(self, total: np.ndarray, weight: np.ndarray) -> np.ndarray:
        outputs, channels = weight.shape[:2]
        if self.tiled:
            total = (WEIGHT_TRANSFORM_2D.T @ total.reshape(len(total), -1)).reshape(9, *total.shape[1:])[::-1]
        return total.transpose(2, 1, 0)[:outputs, :channels].reshape(weight.shape)

    def _filled_up(self, weight: np.ndarray) -> np.ndarray:
        outputs, channels = weight.shape[:2]
        # The image itself is of three channels.
        shape = filled_up(outputs), filled_up(channels) if self.number else channels, self.size**2
        result = np.zeros(shape, dtype=np.float32)
        result[:outputs, :channels] = weight.reshape(outputs, channels, -1)
        return result

    def forward(self, x: np.ndarray, kernels: np.ndarray, bias: np.ndarray) -> np.ndarray:
        if self.tiled:
            return channels_last.convolve(x, kernels, bias, self.relu)
        padded = self._padded(x)
        y = reused((*self._shape_of(x), len(bias)))
        channels_last.convolve_directly(
            padded, kernels, bias, self.relu, self._flat(y), self.size, self.stride, self.dilation
        )
        return y

    def backward(
        self, x: np.ndarray, gradient: np.ndarray, kernels: np.ndarray, total: np.ndarray, bias_total: np.ndarray
    ) -> np.ndarray:
        """The gradient before the ReLU that x comes from, from that before the ReLU here."""
        if self.tiled:
            return channels_last.gradients(x, gradient, kernels, total, bias_total)
        padded = self._padded(x)
        # The image itself needs no gradient.
        found = np.zeros(padded.shape if self.number else (0, 0, 0), dtype=np.float32)
        channels_last.direct_gradients(
            padded, self._flat(gradient), kernels, total.reshape(-1), bias_total, found,
            self.size, self.stride, self.dilation,
        )  # fmt: skip
        if not self.number:
            return found
        inside = slice(self.padding, -self.padding or None)
        found = found.reshape(x.shape) if self.size == 1 else np.ascontiguousarray(found[inside, inside])
        return found * (x > 0)

    def _shape_of(self, x: np.ndarray) -> tuple[int, ...]:
        reach = self.dilation * (self.size - 1) + 1
        return tuple((side + 2 * self.padding - reach) // self.stride + 1 for side in x.shape[:2])

    def _flat(self, x: np.ndarray) -> np.ndarray:
        """A 1x1 convolution has one long row."""
        return x.reshape(1, -1, x.shape[2]) if self.size == 1 else x

    def _padded(self, x: np.ndarray) -> np.ndarray:
        if self.size == 1:
            return self._flat(x)
        height, width, channels = x.shape
        padded = np.zeros((height + 2 * self.padding, width + 2 * self.padding, channels), dtype=np.float32)
        padded[self.padding : self.padding + height, self.padding : self.padding + width] = x
        return padded


class Head(Convolution):
    """A convolution without ReLU whose gradient is 0 in most cells: few of the default boxes count in the loss."""

    def kernels(self, weight: np.ndarray, backward: bool) -> np.ndarray:
        if not backward:
            return super().kernels(weight, backward)
        weight = self._filled_up(weight)
        return weight.transpose(0, 2, 1).reshape(len(weight), -1)

    def total(self, weight: np.ndarray) -> np.ndarray:
        outputs, channels, taps = self._filled_up(weight).shape
        return np.zeros((channels * taps, outputs), dtype=np.float32)

    def weight_gradient(self, total: np.ndarray, weight: np.ndarray) -> np.ndarray:
        outputs, channels, size, _ = weight.shape
        return total.reshape(-1, size, size, total.shape[1]).transpose(3, 0, 1, 2)[:outputs, :channels]

    def backward(
        self, x: np.ndarray, gradient: np.ndarray, kernels: np.ndarray, total: np.ndarray, bias_total: np.ndarray
    ) -> np.ndarray:
        """The gradient for x, of the cells alone whose gradient is not 0."""
        cells = np.nonzero(gradient.any(axis=2))
        rows, columns = cells
        values, padded = gradient[cells], self._padded(x)
        around = sliding_window_view(padded, (self.size, self.size), axis=(0, 1))[cells]  # type: ignore[call-overload]
        total += around.reshape(len(rows), len(total)).T @ values
        bias_total += values.sum(axis=0)
        found = np.zeros_like(padded)
        for tap, of_tap in enumerate(np.split(values @ kernels, self.size**2, axis=1)):
            found[rows + tap // self.size, columns + tap % self.size] += of_tap
        return found[self.padding : -self.padding, self.padding : -self.padding]


@dataclass(frozen=True)
class MaxPool:
    """Maxima of 2x2 cells, odd edges by themselves, or of 3x3 around each cell."""

    size: int

    def forward(self, x: np.ndarray) -> np.ndarray:
        height, width, channels = x.shape
        pooled = reused(x.shape if self.size == 3 else ((height + 1) // 2, (width + 1) // 2, channels))
        channels_last.max_pool(x, pooled, *self._numbers())
        return pooled

    def backward(self, x: np.ndarray, pooled: np.ndarray, gradient: np.ndarray) -> np.ndarray:
        found = reused(x.shape) if self.size == 2 else np.zeros_like(x)
        channels_last.max_pool_gradient(x, pooled, gradient, found, *self._numbers())
        return found

    def _numbers(self) -> tuple[int, int, int]:
        """Size, stride and border."""
        return (3, 1, 1) if self.size == 3 else (2, 2, 0)


def filled_up(channels: int) -> int:
    """Channels of a map: the last vector is full."""
    return -(-channels // LANES) * LANES


def _filled_up_line(values: np.ndarray) -> np.ndarray:
    return np.pad(values, (0, filled_up(len(values)) - len(values)))


def l2_normalise(x: np.ndarray, scale: np.ndarray) -> np.ndarray:
    return x * _inverse_norm(x) * scale


def l2_normalise_gradients(x: np.ndarray, scale: np.ndarray, gradient: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For x [H, W, C] and scale [C]."""
    inverse, product = _inverse_norm(x), gradient * x
    along = (product @ scale)[:, :, None] * inverse**3
    return gradient * scale * inverse - x * along, (product * inverse).sum(axis=(0, 1))


def _inverse_norm(x: np.ndarray) -> np.ndarray:
    return 1 / np.sqrt(np.einsum("hwc,hwc->hw", x, x) + np.float32(SQUARED_NORM_FLOOR))[:, :, None]


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
        """Offsets [B, D, 4] and logits [B, D, num_classes] of images [B, 3, S, S] of 0 to 255.

        The third is what `backward` needs, with `keep`: the output of each layer for each image.
        """
        weights, scale = self._weights(parameters), _filled_up_line(parameters[self.scale])
        kernels = self._kernels(weights, backward=False)
        biases = [_filled_up_line(bias) for _, bias in weights]
        results: list = [None] * len(images)

        def work(numbers: Sequence[int]) -> None:
            for number in numbers:
                offsets, logits, outputs = self._forward_one(images[number], kernels, biases, scale)
                results[number] = offsets, logits, outputs if keep else None

        run_in_threads(work, range(len(images)))
        offsets, logits, outputs = zip(*results, strict=True)
        return np.stack(offsets), np.stack(logits), list(outputs)

    def backward(
        self, parameters: Arrays, kept: list, offsets_gradient: np.ndarray, logits_gradient: np.ndarray
    ) -> np.ndarray:
        """Gradients of all parameters, in one line."""
        weights, scale = self._weights(parameters), _filled_up_line(parameters[self.scale])
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
        for (weight, bias), boxes in zip(gradients[-len(self.stages) :], self.boxes_per_cell, strict=True):
            outputs = boxes * self.num_classes
            split += [weight[:outputs], bias[:outputs], weight[outputs:], bias[outputs:]]
        return np.concatenate([each.reshape(-1) for each in split])

    def _convolutions(self) -> list[Convolution]:
        """Of all stages, then of the heads: both heads of a map as one, logits first."""
        of_stages = [layer for stage in self.stages for layer in stage if isinstance(layer, Convolution)]
        # On the last, smallest maps there is hardly a whole tile.
        heads = range(len(self.stages))
        return of_stages + [Head(len(of_stages) + map_, relu=False, tiled=map_ < 2) for map_ in heads]

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
        self, image: np.ndarray, kernels: Arrays, biases: Arrays, scale: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, Arrays]:
        x = np.subtract(image.transpose(1, 2, 0), _PIXEL_MEAN, order="C")
        outputs, offsets, logits = [x], [], []
        heads = self._convolutions()[-len(self.stages) :]
        for index, (stage, head) in enumerate(zip(self.stages, heads, strict=True)):
            for layer in stage:
                if isinstance(layer, Convolution):
                    x = layer.forward(x, kernels[layer.number], biases[layer.number])
                else:
                    x = layer.forward(x)
                outputs.append(x)
            feature_map = x if index else l2_normalise(x, scale)
            answers = head.forward(feature_map, kernels[head.number], biases[head.number])
            by_cell = answers.reshape(-1, answers.shape[2])
            split, end = (self.boxes_per_cell[index] * each for each in (self.num_classes, self.num_classes + 4))
            logits.append(by_cell[:, :split].reshape(-1, self.num_classes))
            offsets.append(by_cell[:, split:end].reshape(-1, 4))
        return np.concatenate(offsets), np.concatenate(logits), outputs

    def _backward_one(
        self,
        outputs: Arrays,
        kernels: Arrays,
        scale: np.ndarray,
        offsets_gradient: np.ndarray,
        logits_gradient: np.ndarray,
        totals: Arrays,
    ) -> None:
        end, place = len(offsets_gradient), len(outputs) - 1
        heads = self._convolutions()[-len(self.stages) :]
        gradient: np.ndarray | None = None

        def backward(layer: Convolution, x: np.ndarray, gradient: np.ndarray) -> np.ndarray:
            number = layer.number
            return layer.backward(x, gradient, kernels[number], totals[number], totals[len(kernels) + number])

        for index in reversed(range(len(self.stages))):
            x = outputs[place]
            cells = x.shape[0] * x.shape[1]
            start = end - cells * self.boxes_per_cell[index]
            split, width = (self.boxes_per_cell[index] * each for each in (self.num_classes, self.num_classes + 4))
            answers_gradient = np.zeros((cells, filled_up(width)), dtype=np.float32)
            answers_gradient[:, :split] = logits_gradient[start:end].reshape(cells, -1)
            answers_gradient[:, split:width] = offsets_gradient[start:end].reshape(cells, -1)
            answers_gradient = answers_gradient.reshape(*x.shape[:2], -1)
            end = start
            of_map = backward(heads[index], x if index else l2_normalise(x, scale), answers_gradient)
            if not index:
                of_map, of_scale = l2_normalise_gradients(x, scale, of_map)
                totals[-1] += of_scale
            of_map = of_map * (x > 0)
            gradient = of_map if gradient is None else gradient + of_map
            for layer in reversed(self.stages[index]):
                x = outputs[place - 1]
                if isinstance(layer, Convolution):
                    gradient = backward(layer, x, gradient)
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
    return Network(tuple(stages), scale, model.num_classes, model.layout.boxes_per_cell, shapes), parameters


def _numbers(part) -> tuple[int, int, int, int]:
    """Kernel size, stride, padding and dilation of a square convolution."""
    return part.kernel_size[0], part.stride[0], part.padding[0], part.dilation[0]
