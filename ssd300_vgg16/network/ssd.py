"""The SSD network: images in, offsets and class logits of every default box out."""

from typing import TYPE_CHECKING

import numpy as np

from ssd300_vgg16.network.cpu import ops
from ssd300_vgg16.network.variants import PIXEL_MEAN, SSD300_VGG16, Variant, variant_of
from ssd300_vgg16.network.vgg import Backbone, Conv2d
from ssd300_vgg16.runtime import flow

if TYPE_CHECKING:
    from oneflow import nn
else:
    nn = flow.nn

COCO_CLASSES = 91


class ScoringHead(nn.Module):
    """One 3x3 convolution for each feature map, giving `values` numbers for each default box of each cell."""

    def __init__(self, channels: tuple[int, ...], boxes_per_cell: tuple[int, ...], values: int):
        super().__init__()
        self.values = values
        pairs = zip(channels, boxes_per_cell, strict=True)
        self.module_list = nn.ModuleList([Conv2d(c, boxes * values, 3, padding=1) for c, boxes in pairs])
        for conv in self.module_list:
            conv.initialise(nn.init.xavier_uniform_)

    def forward(self, maps: list):
        rows = []
        for conv, feature_map in zip(self.module_list, maps, strict=True):
            # By cell and then by box, which is the order of the default boxes.
            by_cell = _channels_last(conv(feature_map))
            rows.append(by_cell.reshape(by_cell.shape[0], -1, self.values))
        return flow.cat(rows, dim=1)


def _channels_last(x):
    """[B, C, H, W] -> [B, H * W, C]."""
    if not (x.is_cuda or x.is_lazy):
        return ops.channels_last(x)
    return x.reshape(x.shape[0], x.shape[1], -1).permute(0, 2, 1)


class Heads(nn.Module):
    """Class logits and box offsets from the feature maps; named as in the published checkpoints."""

    def __init__(self, channels: tuple[int, ...], boxes_per_cell: tuple[int, ...], num_classes: int):
        super().__init__()
        # Two convolutions for each feature map, where one could give both: the published files have two.
        self.classification_head = ScoringHead(channels, boxes_per_cell, num_classes)
        self.regression_head = ScoringHead(channels, boxes_per_cell, 4)

    def forward(self, maps: list) -> tuple:
        return self.regression_head(maps), self.classification_head(maps)


class SSD(nn.Module):
    """An SSD with a VGG16 backbone (Liu et al. 2016); `variant` says which.

    num_classes counts the background (label 0). width scales every layer's channels; 1.0 is the published network.
    Parameter names and, at width 1, shapes are those of the checkpoints that flowvision and torchvision publish.
    """

    def __init__(self, variant: Variant = SSD300_VGG16, num_classes: int = COCO_CLASSES, width: float = 1.0):
        super().__init__()
        if num_classes < 2:
            raise ValueError(f"num_classes is {num_classes}: it counts the background, so 2 is the least")
        if width <= 0:
            raise ValueError(f"width is {width}: it has to be above 0")
        self.variant = variant
        self.num_classes = num_classes
        self.width = width
        self.layout = variant.layout
        self.backbone = Backbone(variant.extra_layers, width)
        self.head = Heads(self.backbone.out_channels, self.layout.boxes_per_cell, num_classes)
        mean = np.array(PIXEL_MEAN, dtype=np.float32).reshape(1, 3, 1, 1)
        # Not kept in files of weights: the published ones have no such tensor.
        self.register_buffer("pixel_mean", flow.tensor(mean), persistent=False)

    def forward(self, images) -> tuple:
        """Offsets [B, D, 4] and logits [B, D, num_classes] of images [B, 3, S, S].

        Images are RGB in 0..255, uint8 or float32. S is 300 or 512; D is 8732 or 24564, in the order of
        `default_boxes(model.layout)`.
        """
        if not (images.is_cuda or images.is_lazy):
            # Few channels: a layer takes less than what is spent around it, so all layers are computed in one call.
            answers = ops.narrow_network(self, images)
            if answers is not None:
                return answers
        x = images.to(flow.float32) - self.pixel_mean
        return self.head(self.backbone(x))

    def answers(self, images: np.ndarray) -> list:
        """As `forward`, for images in main memory and without gradients: float32 on the network's device."""
        with flow.no_grad():
            return [answer.float() for answer in self(flow.from_numpy(images).to(self.pixel_mean.device))]


def SSD300(num_classes: int = COCO_CLASSES, width: float = 1.0, boxes: str = "coco") -> SSD:  # noqa: N802 (public name)
    """SSD300: images of 300 x 300, 8732 default boxes, of the sizes published for "coco" or "voc"."""
    return SSD(variant_of("ssd300_vgg16", boxes), num_classes, width)


def SSD512(num_classes: int = COCO_CLASSES, width: float = 1.0, boxes: str = "coco") -> SSD:  # noqa: N802
    """SSD512: images of 512 x 512, 24564 default boxes, of the sizes published for "coco" or "voc"."""
    return SSD(variant_of("ssd512_vgg16", boxes), num_classes, width)
