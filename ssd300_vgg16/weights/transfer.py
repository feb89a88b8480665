"""Weights of one network as the start of another: what fits is taken, and a table says what came from where.

Of a detector for other classes, the rows of the classification heads are taken for the classes that both have.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from ssd300_vgg16.data.categories import same_name
from ssd300_vgg16.data.dataset import BACKGROUND
from ssd300_vgg16.errors import UserError
from ssd300_vgg16.text import listed
from ssd300_vgg16.weights.parameter_names import CLASSIFICATION, FC6, FC7, REGRESSION, SCALE, VGG16_LAYERS
from ssd300_vgg16.weights.recognise import Weights, is_unnamed
from ssd300_vgg16.weights.safetensors_file import ModelDescription

MAX_NAMES = 12
VGG16 = tuple(f"{layer}." for layer in VGG16_LAYERS)
# Parts of the network for the table, and the beginnings of their parameters' names; the first that fits counts.
PARTS: dict[str, tuple[str, ...]] = {
    "VGG16, conv1_1 to conv5_3": VGG16,
    "fc6 and fc7": (FC6, FC7),
    "scale of conv4_3": (SCALE,),
    "extra layers": ("backbone.extra.",),
    "box offsets": (REGRESSION,),
    "class scores": (CLASSIFICATION,),
}


@dataclass(frozen=True)
class Start:
    """Tensors for every parameter of a network, and a table of where they came from."""

    tensors: dict[str, np.ndarray]
    table: str


def start_from(weights: Weights, description: ModelDescription, fresh: Mapping[str, np.ndarray]) -> Start:
    """The tensors of a network of this description that starts from these weights.

    fresh: the network's initial tensors, for what the weights do not have. Raises UserError if they are not whole, or
    of a network of another width.
    """
    theirs = weights.description
    labels = _shared_labels(theirs, description)
    taken = {}
    for name, initial in fresh.items():
        array = weights.tensors.get(name)
        # VGG16 itself is in every file of weights: if it is not all there, or of another shape, the file is wrong.
        if array is None and name.startswith(VGG16):
            raise UserError(f"{weights.path}: {name} is missing; the file is not whole")
        if array is not None and array.shape != initial.shape and name.startswith(VGG16):
            raise UserError(
                f"{weights.path}: {name} is {array.shape}, in this network {initial.shape}. "
                "Give the --width that the weights have"
            )
        if array is not None and theirs and name.startswith(CLASSIFICATION):
            array = _rows_by_class(array, theirs.num_classes, initial, description.num_classes, labels)
        if array is not None and array.shape == initial.shape:
            taken[name] = array
    tensors = {name: np.asarray(taken.get(name, initial), dtype=np.float32) for name, initial in fresh.items()}
    return Start(tensors, "\n".join(_table(weights, description, fresh, taken, labels)))


def trunk_of(weights: Weights) -> Weights:
    """VGG16 alone of these weights: conv1_1 to fc7, without the layers behind it and without heads."""
    if weights.description is None:
        return weights
    tensors = {name: array for name, array in weights.tensors.items() if name.startswith((*VGG16, FC6, FC7))}
    notes = (*weights.notes, "of this detector, VGG16 alone is taken")
    return replace(weights, tensors=tensors, description=None, notes=notes)


def _shared_labels(theirs: ModelDescription | None, ours: ModelDescription) -> dict[int, int]:
    """For labels of ours, background first, the label that means the same to them."""
    if theirs is None:
        return {}
    if is_unnamed(theirs.categories):
        # Without names there is only the order, which says something if there are as many.
        same = theirs.num_classes == ours.num_classes
        return {label: label for label in range(theirs.num_classes if same else 1)}
    # Reversed, so that of two categories of one name the first counts.
    known = {same_name(category.name): category.label for category in reversed(theirs.categories)}
    named = {
        category.label: known[same_name(category.name)]
        for category in ours.categories
        if same_name(category.name) in known
    }
    return {BACKGROUND: BACKGROUND, **named}


def _rows_by_class(
    head: np.ndarray, their_classes: int, initial: np.ndarray, our_classes: int, labels: Mapping[int, int]
) -> np.ndarray | None:
    """A classification head [boxes * our_classes, ...] with their rows for the shared labels; None if it is unlike."""
    if head.ndim != initial.ndim or len(head) % their_classes:
        return None
    # A head's rows go by default box, and for each box by class.
    theirs = head.reshape(-1, their_classes, *head.shape[1:])
    ours = initial.reshape(-1, our_classes, *initial.shape[1:]).copy()
    if theirs.shape[0] != ours.shape[0] or theirs.shape[2:] != ours.shape[2:]:
        return None
    ours[:, list(labels)] = theirs[:, list(labels.values())]
    return ours.reshape(initial.shape)


def _table(
    weights: Weights,
    description: ModelDescription,
    fresh: Mapping[str, np.ndarray],
    taken: Mapping[str, np.ndarray],
    labels: Mapping[int, int],
) -> list[str]:
    kind = weights.description.variant.name if weights.description else "a VGG16"
    rows = [f"starting from {weights.path}: {weights.format}, {weights.names}'s names, {kind}"]
    rows += [f"  ({note})" for note in weights.notes]
    if weights.description and weights.description.variant.layout != description.variant.layout:
        rows.append(f"  (its heads have learnt other default boxes than these of {description.variant.name})")
    parts: dict[str, list[str]] = {part: [] for part in PARTS}
    for name in fresh:
        parts[next(part for part, beginnings in PARTS.items() if name.startswith(beginnings))].append(name)
    for part, names in parts.items():
        have = sum(name in taken for name in names)
        # Some of a part: say how many, as it is seldom what was meant.
        source = {0: "initialised", len(names): "from the file"}.get(have, f"{have} of {len(names)} from the file")
        if names[0].startswith(CLASSIFICATION) and have == len(names) and len(labels) < description.num_classes:
            source = f"from the file in {len(labels)} of {description.num_classes} outputs"
        rows.append(f"  {part:<26} {len(names):>3} tensors  {source}")
    if weights.description:
        rows += _class_rows(weights.description, description, labels)
    if weights.unused:
        rows.append(f"  not used: {listed(weights.unused, MAX_NAMES)}")
    return rows


def _class_rows(theirs: ModelDescription, description: ModelDescription, labels: Mapping[int, int]) -> list[str]:
    if is_unnamed(theirs.categories) and len(labels) > 1:
        return ["  class scores are taken by position: the file does not name its classes"]
    same = [category.name for category in description.categories if category.label in labels]
    other = [category.name for category in description.categories if category.label not in labels]
    rows = [f"  classes from the file: {listed(['background', *same], MAX_NAMES + 1)}"]
    return rows + ([f"  classes initialised: {listed(other, MAX_NAMES)}"] if other else [])
