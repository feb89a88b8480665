"""The VGG16 trunk and SSD's extra feature layers (Liu et al. 2016, section 2.1 and figure 2)."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING

from ssd300_vgg16.network.cpu import ops
from ssd300_vgg16.network.variants import SQUARED_NORM_FLOOR, ExtraLayer
from ssd300_vgg16.runtime import flow

if TYPE_CHECKING:
    from oneflow import nn
else:
    nn = flow.nn

# conv4_3 is scaled to this norm at first (section 3.1, after Liu, Rabinovich and Berg, "ParseNet").
INITIAL_SCALE = 20.0
# Convolutions up to conv4_3, block by block: channels at width 1, and whether the pooling behind them rounds up.
# (pool3 does, so that 75 cells become 38; conv4_3 has no pooling of its own here.)
TRUNK_BLOCKS = (((64, 64), False), ((128, 128), False), ((256, 256, 256), True), ((512, 512, 512), None))
CONV4_3_CHANNELS, FC7_CHANNELS = 512, 1024
CONV5 = ("extra.0.1", "extra.0.3", "extra.0.5")
_left_empty: ContextVar[bool] = ContextVar("left_empty", default=False)


@contextmanager
def parameters_left_empty() -> Iterator[None]:
    """Networks made in here are spared their random weights: each of their parameters has to be set before use."""
    token = _left_empty.set(True)
    try:
        yield
    finally:
        _left_empty.reset(token)


class Conv2d(nn.Conv2d):
    """A convolution, and with relu=True a ReLU behind it, that avoids what is slow in OneFlow's own on the CPU.

    On the CPU `network.cpu` computes it, wherever it can. Elsewhere there, as in a graph, the bias is added as a
    broadcast sum: OneFlow's way of adding it costs more than the convolution. On a GPU it is OneFlow's own.
    """

    def __init__(self, *sizes, relu: bool = False, **options):
        super().__init__(*sizes, **options)
        self.relu = relu

    def reset_parameters(self) -> None:
        """OneFlow's own initial weights, which it asks for in the constructor."""
        if not _left_empty.get():
            super().reset_parameters()

    def initialise(self, draw: Callable, **options) -> None:
        """Weights by one of OneFlow's `nn.init` functions, and zero biases."""
        if not _left_empty.get():
            draw(self.weight, **options)
            nn.init.zeros_(self.bias)

    def forward(self, x):
        return self._convolve(x, self.relu)

    def without_relu(self, x):
        """What goes into the ReLU."""
        return self._convolve(x, relu=False)

    def _convolve(self, x, relu: bool):
        sizes = (each[0] for each in (self.kernel_size, self.stride, self.padding, self.dilation))
        if not (x.is_cuda or x.is_lazy) and ops.covers_convolution(*sizes):
            return ops.convolution(x, self.weight, self.bias, self.dilation[0], relu)
        x = nn.Conv2d.forward(self, x) if x.is_cuda else self._with_broadcast_bias(x)
        return flow.relu(x, inplace=True) if relu else x

    def _with_broadcast_bias(self, x):
        x = flow._C.conv2d(
            x, self.weight, None, self.stride, self.padding, self.dilation, self.groups, "channels_first"
        )
        return x + self.bias.view(1, -1, 1, 1)


class MaxPool2x2(nn.MaxPool2d):
    """Maxima of 2x2 cells; with ceil_mode an odd last row or column is pooled by itself."""

    def __init__(self, ceil_mode: bool = False):
        super().__init__(2, 2, ceil_mode=ceil_mode)

    def forward(self, x):
        odd = x.shape[2] % 2 or x.shape[3] % 2
        if x.is_cuda or x.is_lazy or (odd and not self.ceil_mode):
            return nn.MaxPool2d.forward(self, x)  # not super(): in a graph, self is a stand-in
        return ops.max_pool(x)


def in_float32(x):
    """x itself, marked in a graph as to be computed and kept in float32, whatever a compiled step computes in.

    Squares and sums over channels or default boxes soon leave the range of half precision. OneFlow chooses each
    operation's precision by itself, from lists and from its neighbours'; this operation is on its list of float32.
    """
    return flow._C.amp_black_identity(x) if x.is_lazy else x


def scaled(channels: int, width: float) -> int:
    """The number of channels of a layer that has `channels` in the published network, at the given width."""
    return max(1, round(channels * width))


def _conv_relu(*sizes, **options) -> list[nn.Module]:
    """A convolution with its ReLU, and an empty place where published checkpoints count the ReLU as a layer."""
    return [Conv2d(*sizes, relu=True, **options), nn.Identity()]


def _trunk(width: float) -> nn.Sequential:
    """conv1_1 to conv4_3, each with its ReLU."""
    layers, channels = [], 3
    for block, ceil_mode in TRUNK_BLOCKS:
        for out in block:
            layers += _conv_relu(channels, scaled(out, width), 3, padding=1)
            channels = scaled(out, width)
        if ceil_mode is not None:
            layers.append(MaxPool2x2(ceil_mode))
    return nn.Sequential(*layers)


def _atrous_fc(width: float) -> nn.Sequential:
    """Pool5 without stride, then fc6 and fc7 as convolutions, fc6 dilated ("a trous", section 3)."""
    # A pooling without stride keeps 19 x 19 cells; fc6 is dilated to see as far as it did behind one with stride 2.
    fc = scaled(FC7_CHANNELS, width)
    return nn.Sequential(
        nn.MaxPool2d(3, stride=1, padding=1),
        *_conv_relu(scaled(512, width), fc, 3, padding=6, dilation=6),
        *_conv_relu(fc, fc, 1),
    )


def _conv5_to_fc7(width: float) -> nn.Sequential:
    # VGG's own layers stand with the extra ones here, because the published files number them so.
    channels, layers = scaled(512, width), [MaxPool2x2()]
    for _ in range(3):
        layers += _conv_relu(channels, channels, 3, padding=1)
    return nn.Sequential(*layers, _atrous_fc(width))


def _extra_layer(before: int, layer: ExtraLayer, width: float) -> nn.Sequential:
    """A 1x1 convolution that narrows, and a larger one that makes the next, smaller feature map."""
    between, after = scaled(layer.between, width), scaled(layer.channels, width)
    return nn.Sequential(
        *_conv_relu(scaled(before, width), between, 1),
        *_conv_relu(between, after, layer.kernel, stride=layer.stride, padding=layer.padding),
    )


class Backbone(nn.Module):
    """Images to feature maps: conv4_3 (L2-normalised and scaled), fc7, and one of each extra layer, conv8_2 and on.

    Input [B, 3, S, S], RGB with the mean taken off. Parameter names are those of the published checkpoints.
    """

    def __init__(self, extra_layers: tuple[ExtraLayer, ...], width: float):
        super().__init__()
        channels = (CONV4_3_CHANNELS, FC7_CHANNELS, *(layer.channels for layer in extra_layers))
        self.out_channels = tuple(scaled(each, width) for each in channels)
        self.scale_weight = nn.Parameter(flow.ones(self.out_channels[0]) * INITIAL_SCALE)
        self.features = _trunk(width)
        before_each = channels[1:]
        extra = [_extra_layer(*pair, width) for pair in zip(before_each, extra_layers, strict=False)]
        self.extra = nn.ModuleList([_conv5_to_fc7(width), *extra])
        self._initialise()

    def _initialise(self) -> None:
        """Xavier-uniform weights in the layers that SSD adds, as published; Kaiming's in VGG's own; zero biases."""
        for name, module in self.named_modules():
            if not isinstance(module, Conv2d):
                continue
            if name.startswith("extra.") and name not in CONV5:
                module.initialise(nn.init.xavier_uniform_)
            else:
                module.initialise(nn.init.kaiming_normal_, mode="fan_out", nonlinearity="relu")

    def forward(self, images) -> list:
        x = self.features(images)
        maps = [self._rescaled(x)]
        for block in self.extra:
            x = block(x)
            maps.append(x)
        return maps

    def _rescaled(self, x):
        if not (x.is_cuda or x.is_lazy):
            return ops.l2_normalise(x, self.scale_weight)
        # Squares of activations leave the range of half precision.
        x = in_float32(x)
        norm = flow.sqrt((x * x).sum(dim=1, keepdim=True) + SQUARED_NORM_FLOOR)
        return in_float32(x / norm * self.scale_weight.view(1, -1, 1, 1))
