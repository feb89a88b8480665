"""Weights as the start of another network: what is taken, row by row, and the table that says so."""

from pathlib import Path

import numpy as np
import pytest

from ssd300_vgg16.data.categories import COCO_CATEGORIES, VOC_CATEGORIES
from ssd300_vgg16.data.dataset import Category
from ssd300_vgg16.errors import UserError
from ssd300_vgg16.network.variants import VARIANTS
from ssd300_vgg16.weights.model import build_model, model_tensors
from ssd300_vgg16.weights.recognise import Weights
from ssd300_vgg16.weights.safetensors_file import ModelDescription
from ssd300_vgg16.weights.transfer import start_from

WIDTH = 1 / 64
CLASSIFICATION = "head.classification_head.module_list"
BOXES = (4, 6, 6, 6, 4, 4)
CELLS = tuple(Category(label, 10 * label, name) for label, name in enumerate(("RBC", "WBC", "Platelets"), start=1))


def described(categories, num_classes=None, variant="ssd300_vgg16_coco", width=WIDTH):
    return ModelDescription(num_classes or len(categories) + 1, width, tuple(categories), VARIANTS[variant])


def initial(description, value):
    """A network's tensors, each element a number of its own."""
    shapes = {name: array.shape for name, array in model_tensors(build_model(description)).items()}
    return {name: (np.arange(np.prod(s)) + value).reshape(s).astype(np.float32) for name, s in shapes.items()}


def weights_of(description, without=()):
    tensors = {n: array for n, array in initial(description, 0.25).items() if not n.startswith(tuple(without))}
    heads = any(name.startswith("head.") for name in tensors)
    return Weights(Path("w.pth"), "PyTorch zip", "amdegroot", tensors, description if heads else None, ("epoch",), ())


def rows(array, level, num_classes, label):
    """The rows of one class in a classification head: [boxes, ...]."""
    return array.reshape(BOXES[level], num_classes, *array.shape[1:])[:, label]


def test_the_same_network_is_taken_whole():
    description = described(CELLS)
    weights = weights_of(description)
    start = start_from(weights, description, initial(description, 0.5))
    for name, array in start.tensors.items():
        np.testing.assert_array_equal(array, weights.tensors[name])
    assert "initialised" not in start.table
    assert "classes from the file: background, RBC, WBC, Platelets" in start.table
    assert "not used: epoch" in start.table


# VOC's labels, and COCO's ids of the same things; some are spelled in another way.
VOC_TO_COCO = dict(enumerate((5, 2, 16, 9, 44, 6, 3, 17, 62, 21, 67, 18, 19, 4, 1, 64, 20, 63, 7, 72), start=1))


@pytest.mark.parametrize(
    ("theirs", "ours", "shared"),
    [
        (COCO_CATEGORIES, VOC_CATEGORIES, VOC_TO_COCO),
        (VOC_CATEGORIES, COCO_CATEGORIES, {coco: voc for voc, coco in VOC_TO_COCO.items()}),
        (CELLS, (Category(1, 1, "wbc "), Category(2, 2, "cell")), {1: 2}),
        (CELLS, tuple(Category(4 - c.label, c.id, c.name) for c in reversed(CELLS)), {1: 3, 2: 2, 3: 1}),
        (COCO_CATEGORIES, CELLS, {}),  # ids 10 and 20 are traffic lights and sheep there
    ],
)
def test_rows_follow_the_names_of_classes(theirs, ours, shared):
    before, after = (described(categories, max(c.label for c in categories) + 1) for categories in (theirs, ours))
    weights, fresh = weights_of(before), initial(after, 0.5)
    start = start_from(weights, after, fresh)
    for level in range(6):
        for part in ("weight", "bias"):
            name = f"{CLASSIFICATION}.{level}.{part}"
            for label in range(after.num_classes):
                taken = label in shared or label == 0
                source, classes, row = (weights.tensors, before.num_classes, shared.get(label, 0))
                if not taken:
                    source, classes, row = fresh, after.num_classes, label
                found = rows(start.tensors[name], level, after.num_classes, label)
                np.testing.assert_array_equal(found, rows(source[name], level, classes, row))
    rest = [name for name in start.tensors if not name.startswith(CLASSIFICATION)]
    assert all((start.tensors[name] == weights.tensors[name]).all() for name in rest)
    new = [category.name for category in ours if category.label not in shared]
    assert ("classes initialised" in start.table) == bool(new)
    partly = f"from the file in {1 + len(shared)} of {after.num_classes} outputs" in start.table
    assert partly == (1 + len(shared) < after.num_classes)
    assert all(name in start.table for name in new[:12])


def test_classes_without_names_go_by_their_order_if_there_are_as_many():
    unnamed = [Category(label, label, f"class {label}") for label in (1, 2, 3)]
    weights = weights_of(described(unnamed))
    start = start_from(weights, described(CELLS), initial(described(CELLS), 0.5))
    np.testing.assert_array_equal(
        start.tensors[f"{CLASSIFICATION}.2.bias"], weights.tensors[f"{CLASSIFICATION}.2.bias"]
    )
    assert "class scores are taken by position" in start.table and "RBC" not in start.table
    fewer = described(CELLS[:2])
    start = start_from(weights, fewer, initial(fewer, 0.5))
    name = f"{CLASSIFICATION}.2.bias"
    np.testing.assert_array_equal(rows(start.tensors[name], 2, 3, 1), rows(initial(fewer, 0.5)[name], 2, 3, 1))
    np.testing.assert_array_equal(rows(start.tensors[name], 2, 3, 0), rows(weights.tensors[name], 2, 4, 0))
    assert "classes from the file: background\n  classes initialised: RBC, WBC" in start.table


EXTRA_LAYERS = tuple(f"backbone.extra.{layer}" for layer in range(1, 5))


@pytest.mark.parametrize(
    ("without", "initialised"),
    [
        (("head.",), {"box offsets", "class scores"}),
        (("head.", *EXTRA_LAYERS), {"extra layers"}),
        (("head.", *EXTRA_LAYERS, "backbone.extra.0.7"), {"fc6 and fc7"}),
    ],
)
def test_a_trunk_alone_leaves_the_rest_as_it_was(without, initialised):
    description = described(CELLS)
    fresh = initial(description, 0.5)
    start = start_from(weights_of(description, without), description, fresh)
    for name, array in start.tensors.items():
        assert (array[..., :1] % 1 == (0.5 if name.startswith(without) else 0.25)).all(), name
    lines = {line.strip(): line for line in start.table.splitlines()}
    for part in initialised:
        assert any(line.startswith(part) and line.endswith("initialised") for line in lines)
    assert "classes" not in start.table


def test_ssd300_starts_ssd512():
    before, after = described(CELLS), described(CELLS, variant="ssd512_vgg16_coco")
    start = start_from(weights_of(before), after, initial(after, 0.5))
    # The fifth map has other ratios, the seventh is new.
    assert {level for level in range(7) if start.tensors[f"{CLASSIFICATION}.{level}.bias"][0] % 1 == 0.5} == {4, 6}
    assert "6 tensors  8 of 10 from the file" not in start.table
    assert "extra layers                20 tensors  16 of 20 from the file" in start.table
    assert "class scores                14 tensors  10 of 14 from the file" in start.table


@pytest.mark.parametrize(
    ("width", "without", "problem"),
    [
        (1 / 32, (), r"w.pth: backbone.features.0.weight is \(1, 3, 3, 3\).*Give the --width"),
        (WIDTH, ("backbone.features.17.bias",), r"w.pth: backbone.features.17.bias is missing"),
    ],
)
def test_a_trunk_that_is_not_this_networks_is_refused(width, without, problem):
    description = described(CELLS, width=width)
    with pytest.raises(UserError, match=problem):
        start_from(weights_of(described(CELLS), without), description, initial(description, 0))
