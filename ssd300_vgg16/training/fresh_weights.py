"""Weights to start from when there is nothing to load: made for learning from nothing.

The published initialisation, which `SSD` has, is made for a trunk that knows ImageNet. From nothing, its first
losses are large, and getting them down costs the trunk most of what it could tell about the image.
"""

from ssd300_vgg16.network.ssd import SSD
from ssd300_vgg16.network.vgg import Conv2d
from ssd300_vgg16.runtime import flow

# Deviation of pixel values around their mean. The trunk takes it down to one, each layer by its share: an optimizer
# like Adam, whose steps do not know the scale of what they change, would wreck one layer of very small weights.
PIXEL_DEVIATION = 58.0
# Deviation of the heads' weights: at first every class is as likely as another, and the trunk is left in peace.
HEAD_DEVIATION = 0.01


def initialise_from_nothing(model: SSD) -> None:
    """He's initialisation in the backbone, so that depth mutes nothing; heads close to zero; zero biases."""
    init = flow.nn.init
    for convolution in _convolutions(model.backbone):
        init.kaiming_normal_(convolution.weight, mode="fan_in", nonlinearity="relu")
        init.zeros_(convolution.bias)
    for convolution in _convolutions(model.head):
        init.normal_(convolution.weight, std=HEAD_DEVIATION)
        init.zeros_(convolution.bias)
    trunk = _convolutions(model.backbone.features)
    with flow.no_grad():
        for convolution in trunk:
            convolution.weight.mul_(PIXEL_DEVIATION ** (-1 / len(trunk)))


def _convolutions(module) -> list[Conv2d]:
    return [child for child in module.modules() if isinstance(child, Conv2d)]
