"""Networks from files of weights, and their parameters as arrays."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from ssd300_vgg16.errors import UserError
from ssd300_vgg16.network.ssd import SSD
from ssd300_vgg16.network.vgg import convolutions_in_half, parameters_left_empty
from ssd300_vgg16.runtime import flow
from ssd300_vgg16.weights.recognise import read_as_ssd
from ssd300_vgg16.weights.safetensors_file import ModelDescription

MAX_MISFITS = 12
SMALL = 1 << 18  # numbers in a tensor; a larger one is not copied


def build_model(description: ModelDescription) -> SSD:
    """A network of this description with fresh weights."""
    return SSD(description.variant, description.num_classes, description.width)


def empty_model(description: ModelDescription) -> SSD:
    """A network of this description for weights that are at hand: its own are whatever lay in memory."""
    with parameters_left_empty():
        return build_model(description)


def model_tensors(model: SSD) -> dict[str, np.ndarray]:
    """The network's parameters by their published names."""
    return arrays_of({name: local(tensor) for name, tensor in model.state_dict().items()})


def arrays_of(tensors: Mapping) -> dict[str, np.ndarray]:
    """Each tensor as an array; small ones on the CPU are parts of a larger one, read at once.

    A network has hundreds, and each read there waits for OneFlow's thread: a millisecond, or seven on busy cores.
    """
    small = defaultdict(list)
    for name, tensor in tensors.items():
        if not tensor.is_cuda and tensor.numel() <= SMALL:
            small[tensor.dtype].append(name)
    arrays = {}
    with flow.no_grad():
        for names in small.values():
            together = flow.cat([tensors[name].reshape(-1) for name in names]).numpy()
            ends = np.cumsum([tensors[name].numel() for name in names])
            for name, part in zip(names, np.split(together, ends[:-1]), strict=True):
                arrays[name] = part.reshape(tuple(tensors[name].shape))
    return {name: arrays[name] if name in arrays else tensor.numpy() for name, tensor in tensors.items()}


def local(tensor):
    """This process's copy of a tensor that all processes share; the tensor itself where there is one process."""
    return tensor.to_local() if tensor.is_global else tensor


def load_model(path: Path, in_half: bool = False) -> tuple[SSD, ModelDescription]:
    """A network with the weights of a detector's file, of any known format, and its description.

    in_half: its convolutions compute in half precision, which needs a GPU.

    Raises UserError for a file that does not hold a whole detector.
    """
    weights = read_as_ssd(path)
    if weights.description is None:
        raise UserError(
            f"{path} holds a VGG16 without SSD's heads ({weights.names}), which detects nothing: "
            "train from it with --weights-backbone"
        )
    model = empty_model(weights.description)
    load_tensors(model, weights.tensors, path)
    if in_half:
        convolutions_in_half(model)
    return model, replace(weights.description, notes=weights.notes)


def load_tensors(model: SSD, tensors: Mapping[str, np.ndarray], path: Path) -> None:
    """Copy tensors into a network; raises UserError that lists what is missing, of another shape, or too much."""
    # Before anything is copied: a network that the tensors do not fit stays as it was.
    refuse_misfits(model, tensors, path)
    arrays = {name: np.ascontiguousarray(array, dtype=np.float32) for name, array in tensors.items()}
    model.load_state_dict({name: flow.tensor(array) for name, array in arrays.items()})


def refuse_misfits(model: SSD, tensors: Mapping[str, np.ndarray], path: Path) -> None:
    """Raises UserError with all misfits, if there are any."""
    if problems := misfits(model, tensors):
        lines = "\n  ".join(problems)
        raise UserError(f"{path} does not fit this network ({model.variant.name}, width {model.width:g}):\n  {lines}")


def misfits(model: SSD, tensors: Mapping[str, np.ndarray]) -> list[str]:
    """What keeps tensors from being this network's parameters, one entry each; a last one counts the rest."""
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    problems = [f"missing: {name}" for name in expected if name not in tensors]
    problems += [
        f"of another shape: {name} {tensors[name].shape} instead of {shape}"
        for name, shape in expected.items()
        if name in tensors and tensors[name].shape != shape
    ]
    problems += [f"too much: {name}" for name in tensors if name not in expected]
    if len(problems) > MAX_MISFITS:
        problems[MAX_MISFITS:] = [f"and {len(problems) - MAX_MISFITS} more"]
    return problems
