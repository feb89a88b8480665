"""SSD300-VGG16 object detection on OneFlow.

The names below are loaded when first used: importing the package costs nothing, so that the command lines answer at
once and data workers stay free of OneFlow.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from ssd300_vgg16.machine import use_widest_kernels

if TYPE_CHECKING:  # what type checkers see of the names that __getattr__ loads
    from ssd300_vgg16.data.matching import match as match
    from ssd300_vgg16.data.matching import training_targets as training_targets
    from ssd300_vgg16.detector import Detector as Detector
    from ssd300_vgg16.errors import UserError as UserError
    from ssd300_vgg16.network.loss import multibox_loss as multibox_loss
    from ssd300_vgg16.network.postprocess import postprocess as postprocess
    from ssd300_vgg16.network.ssd import SSD300 as SSD300
    from ssd300_vgg16.network.ssd import SSD512 as SSD512
    from ssd300_vgg16.network.variants import default_boxes as default_boxes

__version__ = "0.1.0"  # as in pyproject.toml
_HOME_OF = {
    "SSD300": "network.ssd",
    "SSD512": "network.ssd",
    "default_boxes": "network.variants",
    "match": "data.matching",
    "training_targets": "data.matching",
    "multibox_loss": "network.loss",
    "postprocess": "network.postprocess",
    "Detector": "detector",
    "UserError": "errors",
}
__all__ = sorted(_HOME_OF)


def __getattr__(name: str) -> object:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    # Before numpy, which most of these import: its BLAS chooses its kernels when it is loaded. Not when the package is
    # imported, which is to leave the environment alone.
    use_widest_kernels()
    return getattr(import_module(f"{__name__}.{_HOME_OF[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
