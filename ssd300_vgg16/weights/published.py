"""The weights that others have published: what they are, where they lie, and how to know them again."""

from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import PurePosixPath
from urllib.parse import unquote, urlsplit

from ssd300_vgg16.errors import UserError


@dataclass(frozen=True)
class Source:
    """One place to download from, and what is known beforehand of the file there."""

    url: str
    size: int | None = None  # bytes
    sha256: str | None = None  # hexadecimal, its first digits or all

    @property
    def file_name(self) -> str:
        """The last part of the URL, which the file keeps: mirrors may hold other files, in other formats."""
        return PurePosixPath(unquote(urlsplit(self.url).path)).name

    def mismatch(self, size: int, sha256: str) -> str | None:
        """Why a file of so many bytes and this SHA-256 is not the published one; None if it may be."""
        if size == 0:
            return "it is empty"
        if self.size not in (None, size):
            return f"it has {size:,} bytes and the published file {self.size:,}"
        if self.sha256 is not None and not sha256.startswith(self.sha256):
            known = self.sha256[:16]
            return f"its SHA-256 is {sha256[: len(known)]}... and the published file's {known}..."
        return None


@dataclass(frozen=True)
class Published:
    """Weights with a name; the first source that answers with the right file is taken: those with a hash go first."""

    name: str
    kind: str  # "detector" or "backbone"
    about: str
    sources: tuple[Source, ...]


def published(name: str) -> Published:
    """The published weights of that name. Raises UserError with the names there are."""
    if name not in PUBLISHED:
        near = get_close_matches(name, PUBLISHED, n=1)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise UserError(f"{name}: no published weights have this name.{hint} There are {', '.join(PUBLISHED)}")
    return PUBLISHED[name]


# flowvision 0.2.1 names its two files in flowvision/models/detection/ssd.py, and its model zoo's page gives the 25.1.
_ONEFLOW = "https://oneflow-public.oss-cn-beijing.aliyuncs.com/model_zoo/flowvision/detection/ssd"
# torchvision names them in torchvision/models/vgg.py and models/detection/ssd.py; a name ends with the SHA-256's start.
_PYTORCH = "https://download.pytorch.org/models"
# The whole SHA-256, as those give it who have pinned the file, such as LibreYOLO (the first).
_SSD300_COCO = "b556d3b43ab6c3f63d81bfb8835fe8756ac22da664357da100dccf96b6a6b42d"
_VGG16 = "397923af8e79cdbb6a7127f12361acd7a2f83e06b05044ddf496e83de57a5bf0"
# The README of https://github.com/amdegroot/ssd.pytorch, "Training SSD" and "Download a pre-trained network".
_AMDEGROOT = "https://s3.amazonaws.com/amdegroot-models"
# The README of https://github.com/lufficc/SSD, "Model Zoo", which gives the figures.
_LUFFICC = "https://github.com/lufficc/SSD/releases/download/1.2"

_DETECTORS: dict[str, tuple[str, list[Source]]] = {
    "ssd300_vgg16_coco": (
        "SSD300, COCO: 25.1 box AP on val2017; what torchvision and flowvision publish",
        [
            Source(f"{_PYTORCH}/ssd300_vgg16_coco-b556d3b4.pth", 142_594_222, _SSD300_COCO),
            Source(f"{_ONEFLOW}/ssd300_vgg16.tar.gz"),
        ],
    ),
    "ssd300_voc_amdegroot": (
        "SSD300, VOC 07+12: 77.43 mAP on VOC2007 test; amdegroot/ssd.pytorch",
        [Source(f"{_AMDEGROOT}/ssd300_mAP_77.43_v2.pth")],
    ),
    "ssd300_voc_caffe": (
        "SSD300, VOC 07+12: 77.26 mAP on VOC2007 test; the paper's own Caffe weights, from amdegroot/ssd.pytorch",
        [Source(f"{_AMDEGROOT}/ssd_300_VOC0712.pth")],
    ),
    "ssd300_voc_lufficc": (
        "SSD300, VOC 07+12: 77.7 mAP on VOC2007 test; lufficc/SSD",
        [Source(f"{_LUFFICC}/vgg_ssd300_voc0712.pth")],
    ),
    "ssd300_coco_lufficc": (
        "SSD300, COCO trainval35k: 25.2 box AP; lufficc/SSD",
        [Source(f"{_LUFFICC}/vgg_ssd300_coco_trainval35k.pth")],
    ),
    "ssd512_voc_lufficc": (
        "SSD512, VOC 07+12: 80.7 mAP on VOC2007 test; lufficc/SSD",
        [Source(f"{_LUFFICC}/vgg_ssd512_voc0712.pth")],
    ),
    "ssd512_coco_lufficc": (
        "SSD512, COCO trainval35k: 29.0 box AP; lufficc/SSD",
        [Source(f"{_LUFFICC}/vgg_ssd512_coco_trainval35k.pth")],
    ),
}
_BACKBONES: dict[str, tuple[str, list[Source]]] = {
    "vgg16_amdegroot": (
        "VGG16 to conv5_3, ImageNet, the Caffe weights behind the 25.1; its classifier is NaN",
        [
            Source(f"{_PYTORCH}/vgg16_features-amdegroot-88682ab5.pth", sha256="88682ab5"),
            Source(f"{_ONEFLOW}/vgg16_amdegroot.tar.gz"),
        ],
    ),
    "vgg16_reducedfc": (
        "VGG16 to conv5_3 and fc6 and fc7 as convolutions, ImageNet, Caffe's; amdegroot/ssd.pytorch",
        [Source(f"{_AMDEGROOT}/vgg16_reducedfc.pth")],
    ),
    "vgg16_imagenet": (
        "plain VGG16, ImageNet: 71.6 top-1; torchvision's own training, with its own normalisation of images",
        [Source(f"{_PYTORCH}/vgg16-397923af.pth", 553_433_881, _VGG16)],
    ),
}

# Files whose first layer takes BGR, as Caffe's networks do; all others here take RGB. Of the authors' own weights,
# amdegroot/ssd.pytorch's issues 31 and 321 report 77.2 mAP with BGR and 72.5 with RGB.
TAKE_BGR = frozenset({"ssd_300_VOC0712.pth"})

PUBLISHED = {
    name: Published(name, kind, about, tuple(sources))
    for kind, table in (("detector", _DETECTORS), ("backbone", _BACKBONES))
    for name, (about, sources) in table.items()
}
