"""Layers of narrow networks for one image, forward and backward, in one thread.

Maps are [H, W, C], C filled up to a multiple of LANES; the compiled loops are in `channels_last`.
"""

from dataclasses import dataclass

import numpy as np

from ssd300_vgg16.network.cpu import channels_last
from ssd300_vgg16.network.cpu.threads import reused
from ssd300_vgg16.network.cpu.vectors import LANES
from ssd300_vgg16.network.cpu.winograd import ROTATED_WEIGHT_TRANSFORM_2D, WEIGHT_TRANSFORM_2D
from ssd300_vgg16.network.variants import SQUARED_NORM_FLOOR


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

    @property
    def tiled_backward(self) -> bool:
        return self.tiled

    def kernels(self, weight: np.ndarray, backward: bool) -> np.ndarray:
        """Weight [O, C, K, K] as the compiled functions read it, in one line."""
        weight = self._filled_up(weight)
        if not backward:
            weight = weight.transpose(1, 0, 2)
        if self.tiled_backward if backward else self.tiled:
            transform = ROTATED_WEIGHT_TRANSFORM_2D if backward else WEIGHT_TRANSFORM_2D
            taps = weight.reshape(-1, 9).T
            return np.matmul(transform, taps, out=reused((len(transform), taps.shape[1]))).reshape(-1)
        return np.ascontiguousarray(weight.transpose(2, 0, 1)).reshape(-1)

    def total(self, weight: np.ndarray) -> np.ndarray:
        """Zeros to add the weight's gradients to."""
        outputs, channels, taps = self._filled_up(weight).shape
        total = reused((channels_last.POINTS if self.tiled_backward else taps, channels, outputs))
        total.fill(0)
        return total

    def weight_gradient(self, total: np.ndarray, weight: np.ndarray) -> np.ndarray:
        outputs, channels = weight.shape[:2]
        if self.tiled_backward:
            total = (WEIGHT_TRANSFORM_2D.T @ total.reshape(len(total), -1)).reshape(9, *total.shape[1:])[::-1]
        return total.transpose(2, 1, 0)[:outputs, :channels].reshape(weight.shape)

    def _filled_up(self, weight: np.ndarray) -> np.ndarray:
        outputs, channels = weight.shape[:2]
        # Not the three channels of the image, which products take one by one.
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
        if self.tiled_backward:
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

    tiled_backward = False

    def backward_from_cells(
        self, x: np.ndarray, gradients: list[np.ndarray], kernels: np.ndarray, total: np.ndarray, bias_total: np.ndarray
    ) -> np.ndarray:
        """The gradient for x, from those of its answers in parts [H * W, ...], logits first."""
        padded = self._padded(x)
        found = np.zeros_like(padded)
        channels_last.gradients_from_cells(padded, *gradients, kernels, total.reshape(-1), bias_total, found, self.size)
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


def filled_up_line(values: np.ndarray) -> np.ndarray:
    """Values [C] of a map's channels, such as biases, with 0 for those that fill it up."""
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
