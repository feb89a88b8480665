"""Networks from files of weights, and their parameters as arrays."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from ssd300_vgg16.data.coco_categories import COCO_CATEGORIES
from ssd300_vgg16.data.dataset import Category
from ssd300_vgg16.errors import UserError
from ssd300_vgg16.network.ssd import COCO_CLASSES, SSD300
from ssd300_vgg16.network.vgg import TRUNK_BLOCKS
from ssd300_vgg16.runtime import flow
from ssd300_vgg16.weights.description import ModelDescription
from ssd300_vgg16.weights.file import read_weights


def build_model(description: ModelDescription) -> SSD300:
    """A network of this description with fresh weights."""
    return SSD300(description.num_classes, description.width)


def model_tensors(model: SSD300) -> dict[str, np.ndarray]:
    """The network's parameters by their published names."""
    return {name: local(tensor).numpy() for name, tensor in model.state_dict().items()}


def local(tensor):
    """This process's copy of a tensor that all processes share; the tensor itself where there is one process."""
    return tensor.to_local() if tensor.is_global else tensor


def load_model(path: Path) -> tuple[SSD300, ModelDescription]:
    """A network with the weights of a file, and its description.

    A safetensors file of the published layout without this package's header loads too: its shapes tell width and class
    count, and 91 classes are taken for COCO's. Raises UserError for a file that does not hold such a network.
    """
    tensors, header = read_weights(path)
    description = describe(tensors, header, path)
    model = build_model(description)
    load_tensors(model, tensors, path)
    return model, description


def load_tensors(model: SSD300, tensors: Mapping[str, np.ndarray], path: Path) -> None:
    """Copy tensors into a network; raises UserError that lists what is missing or of another shape."""
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    missing = [name for name in expected if name not in tensors]
    misshapen = [
        f"{name} {tensors[name].shape} instead of {shape}"
        for name, shape in expected.items()
        if name in tensors and tensors[name].shape != shape
    ]
    if missing or misshapen:
        raise UserError(
            f"{path} does not fit this network: {len(missing)} tensors missing {missing[:3]}, "
            f"{len(misshapen)} of another shape {misshapen[:3]}"
        )
    model.load_state_dict({name: flow.tensor(np.ascontiguousarray(tensors[name])) for name in expected})


def describe(tensors: Mapping[str, np.ndarray], header: dict, path: Path) -> ModelDescription:
    """The description in the header, or what the shapes of published weights imply."""
    if "model" in header:
        model = header["model"]
        categories = tuple(Category(**category) for category in model["categories"])
        return ModelDescription(model["num_classes"], model["width"], categories)
    try:
        first = tensors["backbone.features.0.bias"]
        last = tensors["head.classification_head.module_list.5.bias"]
    except KeyError as error:
        raise UserError(f"{path}: no SSD300-VGG16 weights ({error} is missing)") from error
    num_classes = len(last) // 4
    return ModelDescription(num_classes, len(first) / TRUNK_BLOCKS[0][0][0], _unnamed_categories(num_classes))


def _unnamed_categories(num_classes: int) -> tuple[Category, ...]:
    if num_classes == COCO_CLASSES:
        return COCO_CATEGORIES
    return tuple(Category(label, label, f"class {label}") for label in range(1, num_classes))
