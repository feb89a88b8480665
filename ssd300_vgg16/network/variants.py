"""The published SSDs with a VGG16 backbone, and their default boxes (Liu et al. 2016, section 2.2)."""

from dataclasses import dataclass, replace
from functools import cache

import numpy as np

from ssd300_vgg16.boxes import cxcywh_to_xyxy

# Of networks that are built, however one is described, and of data sets: width 8 has 1.5 billion parameters.
MAX_WIDTH, MAX_CLASSES = 8, 30_000


@dataclass(frozen=True)
class DefaultBoxLayout:
    """Constants from which default boxes are made; every length is in pixels of the square input image.

    feature_maps: cells along one side of each map. steps: distance between neighbouring cells.
    sizes: scale s of each map, and one more for the last map's sqrt(s s'). ratios: r of each map's w:h = r and 1/r.
    """

    image_size: int
    feature_maps: tuple[int, ...]
    steps: tuple[float, ...]
    sizes: tuple[float, ...]
    ratios: tuple[tuple[int, ...], ...]

    @property
    def boxes_per_cell(self) -> tuple[int, ...]:
        """Default boxes around one cell of each feature map: s, sqrt(s s'), and two for each ratio."""
        return tuple(2 + 2 * len(ratios) for ratios in self.ratios)


# The published COCO model: scales 0.07, 0.15 ... 1.05 of the image (section 3.4: smaller than on VOC).
SSD300_COCO = DefaultBoxLayout(
    image_size=300,
    feature_maps=(38, 19, 10, 5, 3, 1),
    steps=(8, 16, 32, 64, 100, 300),
    sizes=(21, 45, 99, 153, 207, 261, 315),
    ratios=((2,), (2, 3), (2, 3), (2, 3), (2,), (2,)),
)
# Section 3.1: conv4_3 at scale 0.1, the others from 0.2 to 0.9.
SSD300_VOC = replace(SSD300_COCO, sizes=(30, 60, 111, 162, 213, 264, 315))
# Section 3.4 and 3.2: conv4_3 at scale 0.04 on COCO and 0.07 on VOC, the others from 0.1 and from 0.15 to 0.9.
SSD512_COCO = DefaultBoxLayout(
    image_size=512,
    feature_maps=(64, 32, 16, 8, 4, 2, 1),
    steps=(8, 16, 32, 64, 128, 256, 512),
    sizes=(20.48, 51.2, 133.12, 215.04, 296.96, 378.88, 460.8, 542.72),
    ratios=((2,), (2, 3), (2, 3), (2, 3), (2, 3), (2,), (2,)),
)
SSD512_VOC = replace(SSD512_COCO, sizes=(35.84, 76.8, 153.6, 230.4, 307.2, 384, 460.8, 537.6))
# The `highres` backbone of torchvision and flowvision, with the authors' sizes and with steps as their box generators
# make them (no weights of it are published that would say otherwise).
_HIGHRES_MAPS = (64, 32, 16, 8, 6, 4, 1)
SSD512_HIGHRES_COCO = replace(SSD512_COCO, feature_maps=_HIGHRES_MAPS, steps=tuple(512 / n for n in _HIGHRES_MAPS))
SSD512_HIGHRES_VOC = replace(SSD512_HIGHRES_COCO, sizes=SSD512_VOC.sizes)


@cache
def default_boxes(layout: DefaultBoxLayout = SSD300_COCO) -> np.ndarray:
    """Default boxes of a layout in the order of the network's outputs.

    Returns float32 [D, 4], xyxy in pixels of the network's input, read-only; D is 8732 for SSD300, 24564 for SSD512.
    Map by map, row by row, cell by cell, and in a cell s, sqrt(s s'), then w:h = r and 1/r for each ratio r. Widths and
    heights are at most the image's; centres are not clipped, so boxes reach beyond the border.
    """
    maps = [_boxes_of_map(layout, index) for index in range(len(layout.feature_maps))]
    boxes = cxcywh_to_xyxy(np.concatenate(maps)) * np.float32(layout.image_size)
    boxes.setflags(write=False)
    return boxes


def _boxes_of_map(layout: DefaultBoxLayout, index: int) -> np.ndarray:
    """float32 [cells * K, 4] centre, width and height in units of the image's side."""
    # float32 in units of the image, as published implementations compute: which default box an object is matched to can
    # hang on the last bits of these numbers.
    shapes = np.minimum(_shapes_in_cell(layout, index), 1)
    cells_across_image = np.float32(layout.image_size / layout.steps[index])
    centres = (np.arange(layout.feature_maps[index], dtype=np.float32) + np.float32(0.5)) / cells_across_image
    y, x = np.meshgrid(centres, centres, indexing="ij")
    cells = np.stack((x, y), axis=-1).reshape(-1, 1, 2)
    pairs = np.broadcast_arrays(cells, shapes[None])
    return np.concatenate(pairs, axis=-1).reshape(-1, 4)


def _shapes_in_cell(layout: DefaultBoxLayout, index: int) -> np.ndarray:
    """Widths and heights of one cell's default boxes, float32 [K, 2] in units of the image's side."""
    scale, next_scale = (size / layout.image_size for size in layout.sizes[index : index + 2])
    between = np.sqrt(scale * next_scale)
    shapes = [(scale, scale), (between, between)]
    for ratio in layout.ratios[index]:
        long, short = scale * np.sqrt(ratio), scale / np.sqrt(ratio)
        shapes += [(long, short), (short, long)]
    return np.array(shapes, dtype=np.float32)


# Mean of ImageNet's pixels, RGB 0..255; nothing is divided by a deviation, as in the Caffe VGG16 the weights come from.
PIXEL_MEAN = (0.48235 * 255, 0.45882 * 255, 0.40784 * 255)
# Added to a squared norm, so that a position where every channel is zero has a finite gradient.
SQUARED_NORM_FLOOR = 1e-10
# Of the loss: hard negatives for each positive, at the most (section 2.2, "Hard negative mining").
NEGATIVES_PER_POSITIVE = 3
# Of an image without objects, where such images are trained on: it is weighed as one with this many positives.
BACKGROUND_POSITIVES = 10


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
