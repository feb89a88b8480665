"""The published SSDs with a VGG16 backbone: constants, from which network, default boxes and targets are made."""

from dataclasses import dataclass

from ssd300_vgg16.network.default_boxes import (
    SSD300_COCO,
    SSD300_VOC,
    SSD512_COCO,
    SSD512_HIGHRES_COCO,
    SSD512_HIGHRES_VOC,
    SSD512_VOC,
    DefaultBoxLayout,
)

# Mean of ImageNet's pixels, RGB 0..255; nothing is divided by a deviation, as in the Caffe VGG16 the weights come from.
PIXEL_MEAN = (0.48235 * 255, 0.45882 * 255, 0.40784 * 255)


@dataclass(frozen=True)
class ExtraLayer:
    """A 1x1 convolution to `between` channels, and one of `kernel` that makes a feature map; channels at width 1."""

    between: int
    channels: int
    kernel: int = 3
    stride: int = 1
    padding: int = 0


@dataclass(frozen=True)
class Variant:
    """One SSD. model: its name for --model; boxes: whose default box sizes it has, "coco" or "voc"."""

    model: str
    boxes: str
    layout: DefaultBoxLayout
    extra_layers: tuple[ExtraLayer, ...]

    @property
    def name(self) -> str:
        """What files of weights call it: "ssd300_vgg16_coco"."""
        return f"{self.model}_{self.boxes}"


# Section 2.1 and figure 2: conv8_2 to conv11_2.
_LAYERS_300 = (
    ExtraLayer(256, 512, stride=2, padding=1),
    ExtraLayer(128, 256, stride=2, padding=1),
    ExtraLayer(128, 256),
    ExtraLayer(128, 256),
)
# The authors' SSD512 (Caffe), lufficc's, mmdetection's and GluonCV's: conv8_2 to conv12_2.
_LAYERS_512 = (
    ExtraLayer(256, 512, stride=2, padding=1),
    *(ExtraLayer(128, 256, stride=2, padding=1),) * 3,
    ExtraLayer(128, 256, kernel=4, padding=1),
)
# The `highres` backbone of torchvision and flowvision: its parameters have the same shapes, its maps other sizes.
_LAYERS_HIGHRES = (*_LAYERS_300, ExtraLayer(128, 256, kernel=4))

SSD300_VGG16 = Variant("ssd300_vgg16", "coco", SSD300_COCO, _LAYERS_300)
VARIANTS: dict[str, Variant] = {
    variant.name: variant
    for variant in (
        SSD300_VGG16,
        Variant("ssd300_vgg16", "voc", SSD300_VOC, _LAYERS_300),
        Variant("ssd512_vgg16", "coco", SSD512_COCO, _LAYERS_512),
        Variant("ssd512_vgg16", "voc", SSD512_VOC, _LAYERS_512),
        Variant("ssd512_vgg16_highres", "coco", SSD512_HIGHRES_COCO, _LAYERS_HIGHRES),
        Variant("ssd512_vgg16_highres", "voc", SSD512_HIGHRES_VOC, _LAYERS_HIGHRES),
    )
}
MODELS = tuple(dict.fromkeys(variant.model for variant in VARIANTS.values()))
BOX_SIZES = tuple(dict.fromkeys(variant.boxes for variant in VARIANTS.values()))


def variant_of(model: str, boxes: str) -> Variant:
    """The variant of a model's name (one of MODELS) and a choice of default box sizes (one of BOX_SIZES)."""
    return VARIANTS[f"{model}_{boxes}"]
