"""What other projects call the parameters of an SSD-VGG16: tables from their names to the published ones, used here.

Names stand without their ending, ".weight" or ".bias".
"""

from dataclasses import dataclass

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


def _below(prefix: str, table: dict[str, str]) -> dict[str, str]:
    return {f"{prefix}{theirs}": ours for theirs, ours in table.items()}


def _heads(theirs: str, ours: str) -> dict[str, str]:
    return {f"{theirs}.{level}": f"{ours}.{level}" for level in range(MAX_MAPS)}


@dataclass(frozen=True)
class Project:
    """A project's names; ssd512: the model that it publishes (or has code for) as SSD512."""

    name: str
    table: dict[str, str]
    ssd512: str = "ssd512_vgg16"

    def published(self, name: str) -> str | None:
        """The published name of a parameter of this project; None if it is not one of an SSD's."""
        layer, _, ending = name.rpartition(".")
        if name == SCALE and self.table.get(SCALE) == SCALE:
            return SCALE
        ours = self.table.get(layer)
        if ours is None or ending not in ("weight", "bias"):
            return None
        return ours if ours == SCALE else f"{ours}.{ending}"

    def own(self, published: str) -> str | None:
        """What the project calls the parameter of a published name; None if it has none."""
        if published == SCALE:
            layers = [theirs for theirs, ours in self.table.items() if ours == SCALE]
            return next((SCALE if layer == SCALE else f"{layer}.weight" for layer in layers), None)
        layer, _, ending = published.rpartition(".")
        return next((f"{theirs}.{ending}" for theirs, ours in self.table.items() if ours == layer), None)


_AMDEGROOT = {
    **_below("vgg.", _VGG16_REDUCED),
    **_below("extras.", _EXTRA),
    "L2Norm": SCALE,
    **_heads("loc", REGRESSION),
    **_heads("conf", CLASSIFICATION),
}
_LUFFICC = {
    **_below("backbone.vgg.", _VGG16_REDUCED),
    **_below("backbone.extras.", _EXTRA),
    "backbone.l2_norm": SCALE,
    **_heads("box_head.predictor.reg_headers", REGRESSION),
    **_heads("box_head.predictor.cls_headers", CLASSIFICATION),
}
PUBLISHED = Project("torchvision", {ours: ours for ours in _AMDEGROOT.values()}, ssd512="ssd512_vgg16_highres")
AMDEGROOT = Project("amdegroot", _AMDEGROOT)
LUFFICC = Project("lufficc", _LUFFICC)
# vgg16_reducedfc.pth: the trunk alone, fc6 and fc7 already decimated.
REDUCED_FC = Project("vgg16_reducedfc", _VGG16_REDUCED)
# The classifier of torchvision and flowvision, without its fully connected layers.
VGG16 = Project("VGG16", _below("features.", _VGG16))
PROJECTS = (PUBLISHED, AMDEGROOT, LUFFICC, REDUCED_FC, VGG16)
