"""What other projects call the parameters of an SSD-VGG16: tables from their names to the published ones, used here."""

from collections.abc import Mapping
from dataclasses import dataclass, field

# The trunk's convolutions conv1_1 to conv4_3 and conv5_1 to conv5_3, as VGG16's layers are numbered everywhere.
_TRUNK = {str(n): f"backbone.features.{n}" for n in (0, 2, 5, 7, 10, 12, 14, 17, 19, 21)}
_CONV5 = {str(n): f"backbone.extra.0.{place}" for n, place in ((24, 1), (26, 3), (28, 5))}
_VGG16 = {**_TRUNK, **_CONV5}
VGG16_LAYERS = tuple(_VGG16.values())
CONV1_1 = "backbone.features.0"
FC6, FC7 = "backbone.extra.0.7.1", "backbone.extra.0.7.3"
# Behind conv5_3 and pool5 (30), as a list of layers with their ReLUs: fc6 and fc7 as convolutions.
_VGG16_REDUCED = {**_VGG16, "31": FC6, "33": FC7}
SCALE = "backbone.scale_weight"
CLASSIFICATION = "head.classification_head.module_list"
REGRESSION = "head.regression_head.module_list"
MAX_MAPS = 7  # of SSD512; SSD300 has 6

# From conv8_1 on, two convolutions for each extra layer; published ones are numbered with the ReLUs between.
_EXTRA = {str(2 * layer + half): f"backbone.extra.{layer + 1}.{2 * half}" for layer in range(5) for half in range(2)}


def _parameters(prefix: str, layers: dict[str, str]) -> dict[str, str]:
    """Published names of weights and biases by those of a project, whose layers' names stand behind the prefix."""
    parts = ("weight", "bias")
    return {f"{prefix}{theirs}.{part}": f"{ours}.{part}" for theirs, ours in layers.items() for part in parts}


def _detector(trunk: str, extras: str, scale: str, offsets: str, scores: str) -> dict[str, str]:
    """Published names of a detector's parameters by those of a project, which calls its parts so."""
    maps = [str(level) for level in range(MAX_MAPS)]
    return {
        **_parameters(f"{trunk}.", _VGG16_REDUCED),
        **_parameters(f"{extras}.", _EXTRA),
        f"{scale}.weight": SCALE,
        **_parameters(f"{offsets}.", {level: f"{REGRESSION}.{level}" for level in maps}),
        **_parameters(f"{scores}.", {level: f"{CLASSIFICATION}.{level}" for level in maps}),
    }


@dataclass(frozen=True)
class Project:
    """table: the published name of each of its parameters; ssd512: the model that it has code for as SSD512.

    boxes: whose sizes its code gives the default boxes, "coco" or "voc", by the number of outputs; None: for others.
    """

    name: str
    table: dict[str, str]
    ssd512: str = "ssd512_vgg16"
    boxes: Mapping[int | None, str] = field(default_factory=lambda: {None: "coco"})

    def own(self, published: str) -> str | None:
        """What the project calls the parameter of a published name; None if it has none."""
        return next((theirs for theirs, ours in self.table.items() if ours == published), None)


_AMDEGROOT = _detector("vgg", "extras", "L2Norm", "loc", "conf")
_LUFFICC_HEADS = ("box_head.predictor.reg_headers", "box_head.predictor.cls_headers")
_LUFFICC = _detector("backbone.vgg", "backbone.extras", "backbone.l2_norm", *_LUFFICC_HEADS)
PUBLISHED = Project("torchvision", {ours: ours for ours in _AMDEGROOT.values()}, ssd512="ssd512_vgg16_highres")
# Its code asks whether there are 21 outputs.
AMDEGROOT = Project("amdegroot", _AMDEGROOT, boxes={21: "voc", None: "coco"})
# Its defaults are VOC's, which its settings for COCO change.
LUFFICC = Project("lufficc", _LUFFICC, boxes={81: "coco", 91: "coco", None: "voc"})
# vgg16_reducedfc.pth: the trunk alone, fc6 and fc7 already decimated.
REDUCED_FC = Project("vgg16_reducedfc", _parameters("", _VGG16_REDUCED))
# The classifier of torchvision and flowvision, without its fully connected layers.
VGG16 = Project("VGG16", _parameters("features.", _VGG16))
PROJECTS = (PUBLISHED, AMDEGROOT, LUFFICC, REDUCED_FC, VGG16)
