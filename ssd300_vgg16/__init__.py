"""SSD300-VGG16 object detection on OneFlow.

The names below are loaded when first used: importing the package costs nothing, so that the command lines answer at
once and data workers stay free of OneFlow.
"""

from importlib import import_module

from ssd300_vgg16.machine import use_widest_kernels

# Before anything imports numpy: its BLAS chooses its kernels when it is loaded.
use_widest_kernels()

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


def __getattr__(name: str):
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME_OF[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
