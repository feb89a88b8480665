"""Whose names a file's tensors have, and which network they make: by state dicts built as those projects build them."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from foreign_weights import NAMES, convolutions, foreign_detector, published_order, random_detector, thin
from safetensors.numpy import save_file
from small_data import FITTED_SHAPES

from ssd300_vgg16.data.dataset import Category
from ssd300_vgg16.errors import UserError
from ssd300_vgg16.network.variants import VARIANTS, fitted_variant
from ssd300_vgg16.weights.formats import Contents
from ssd300_vgg16.weights.parameter_names import AMDEGROOT, LUFFICC, PUBLISHED
from ssd300_vgg16.weights.recognise import CLASSIFIER_DEVIATION, CLASSIFIER_MEAN, read_as_ssd, recognise
from ssd300_vgg16.weights.safetensors_file import ModelDescription

FILE = Path("weights.pth")
CONV1_1 = "backbone.features.0.weight"


def read(tensors, header=None, ignored=()):
    return recognise(Contents("test", tensors, list(ignored), header or {}), FILE)


def published_detector(size, num_classes):
    """The tensors of a detector by the published names."""
    return dict(zip(published_order(size), foreign_detector("amdegroot", size, num_classes).values(), strict=True))


@pytest.mark.parametrize("project", NAMES)
@pytest.mark.parametrize(
    ("size", "num_classes", "variant", "first_class"),
    [
        (300, 21, "ssd300_vgg16_voc", Category(1, 1, "aeroplane")),
        (300, 81, "ssd300_vgg16_coco", Category(1, 1, "person")),
        (512, 21, "ssd512_vgg16_voc", Category(1, 1, "aeroplane")),
        (512, 91, "ssd512_vgg16_coco", Category(1, 1, "person")),
        (300, 4, None, Category(1, 1, "class 1")),
    ],
)
def test_detectors_of_other_projects(project, size, num_classes, variant, first_class):
    """For classes of one's own, lufficc's settings have VOC's default boxes and amdegroot's code COCO's."""
    variant = variant or {"amdegroot": "ssd300_vgg16_coco", "lufficc": "ssd300_vgg16_voc"}[project]
    theirs = foreign_detector(project, size, num_classes)
    found = read({**theirs, "epoch": np.zeros(())}, ignored=["optimizer"])
    assert found.names == project
    assert list(found.tensors) == published_order(size)
    for array, original in zip(found.tensors.values(), theirs.values(), strict=True):
        assert array is original
    assert found.unused == ("epoch", "optimizer")
    description = found.description
    assert (description.num_classes, description.width) == (num_classes, 1 / 16)
    assert description.variant is VARIANTS[variant]
    assert description.categories[0] == first_class


def test_eighty_classes_without_gaps_are_cocos():
    categories = read(foreign_detector("lufficc", 300, 81)).description.categories
    assert [category.label for category in categories] == list(range(1, 81))
    assert [(c.label, c.id, c.name) for c in categories if c.id in (11, 13, 90)] == [
        (11, 11, "fire hydrant"),
        (12, 13, "stop sign"),
        (80, 90, "toothbrush"),
    ]


def test_published_names_are_the_golden_ones(golden):
    names = golden("state_dict")["names"].tolist()
    assert sorted(names) == sorted(published_order(300))
    for project in (PUBLISHED, AMDEGROOT, LUFFICC):
        assert [project.table[project.own(name)] for name in names] == names


def test_the_two_ssd512_are_told_apart_by_their_names():
    """Their tensors have the same shapes."""
    theirs, published = foreign_detector("amdegroot", 512, 91), published_detector(512, 91)
    for tensors, variant in ((theirs, "ssd512_vgg16"), (published, "ssd512_vgg16_highres")):
        found = read(tensors)
        assert found.description.variant is VARIANTS[f"{variant}_coco"]
        assert any(variant in note for note in found.notes)


@pytest.mark.parametrize("variant", [VARIANTS["ssd512_vgg16_voc"], fitted_variant("ssd300_vgg16", FITTED_SHAPES)])
def test_a_header_goes_before_what_shapes_say(variant):
    said = ModelDescription(91, 1 / 16, (Category(1, 7, "cell"),), variant, tile_side=1300)
    kept = json.loads(json.dumps(said.as_json()))
    assert read(published_detector(variant.layout.image_size, 91), {"model": kept}).description == said
    assert ("default_boxes" in kept) == (variant.name not in VARIANTS)  # an older version knows neither, and says so


@pytest.mark.parametrize(
    "said",
    [
        {"width": None},
        {"categories": None},
        {"variant": 3},
        *({"width": width} for width in (1e200, 10**400, -1, 0, float("nan"), "1", True)),
        *({"tile_side": side} for side in (0, -5, 2.5, 10**30, "640", True)),
        {"num_classes": 1},
        {"num_classes": "3"},
        {"num_classes": 10**9},
        {"variant": []},
        {"categories": [{"label": 3, "id": 1, "name": "beyond the last output"}]},
        {"categories": [{"label": "1", "id": 1, "name": "cat"}]},
        {"categories": [{"label": 1, "id": 1, "name": ["cat"]}]},
        {"variant": "ssd300_vgg16_fit"},
        {"variant": "vgg19_fit", "default_boxes": FITTED_SHAPES},
        *(
            {"variant": "ssd300_vgg16_fit", "default_boxes": boxes}
            for boxes in (
                3,
                [],
                [[]] * 6,
                [[[20, 20, 20]] * 4, *FITTED_SHAPES[1:]],
                [[[20, 0]] * 4, *FITTED_SHAPES[1:]],
            )
        ),
        {"variant": "ssd300_vgg16_fit", "default_boxes": [[[20, float("nan")]] * 4, *FITTED_SHAPES[1:]]},
        {"variant": "ssd300_vgg16_fit", "default_boxes": [[[20, 20]] * 10**5, *FITTED_SHAPES[1:]]},
    ],
    ids=lambda said: f"{said!s:.60}",
)
def test_a_header_that_cannot_be_is_refused(said):
    """Whatever it says, no network is built that the file's tensors are not those of."""
    good = {"num_classes": 3, "width": 1 / 16, "categories": []}
    assert read(published_detector(300, 3), {"model": good}).description.num_classes == 3
    with pytest.raises(UserError, match=r"weights\.pth: .* make no SSD-VGG16"):
        read(published_detector(300, 3), {"model": {**good, **said}})
    with pytest.raises(UserError, match="make no SSD-VGG16"):
        read(published_detector(300, 3), {"model": list(said)})


def test_state_of_training_is_left_aside():
    found = read(
        {**published_detector(300, 3), "optimizer/x": np.zeros(1), "average/backbone.features.0.bias": np.zeros(4)}
    )
    assert list(found.tensors) == published_order(300)
    assert found.unused == ()


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf, 1e39])
def test_a_tensor_that_is_not_finite_is_named(tmp_path, number):
    tensors = {name: array.astype(np.float64) for name, array in random_detector("lufficc").items()}
    name = list(tensors)[-3]
    tensors[name].flat[-1] = number
    save_file(tensors, tmp_path / "w.safetensors")
    with pytest.raises(UserError, match=rf"w\.safetensors: its tensor '{re.escape(name)}' holds NaN or infinity"):
        read_as_ssd(tmp_path / "w.safetensors")


def test_reduced_vgg16():
    theirs = foreign_detector("amdegroot", 300, 3)
    trunk = {name.removeprefix("vgg."): array for name, array in theirs.items() if name.startswith("vgg.")}
    found = read(trunk)
    assert found.description is None
    assert list(found.tensors) == published_order(300)[:30]
    assert found.tensors["backbone.extra.0.7.1.weight"] is theirs["vgg.31.weight"]


def plain_vgg16(rng, classifier):
    """VGG16 with 64/16 ... channels; its fully connected layers have 4096/16 outputs."""
    trunk = convolutions(300)[0][:-2]
    tensors = {}
    for index, after, before, kernel in trunk:
        tensors[f"features.{index}.weight"] = rng.standard_normal((after, before, kernel, kernel), dtype=np.float32)
        tensors[f"features.{index}.bias"] = rng.standard_normal(after, dtype=np.float32)
    for (layer, before), after in zip(((0, thin(512) * 49), (3, 256), (6, 256)), (256, 256, 10), strict=True):
        tensors[f"classifier.{layer}.weight"] = rng.standard_normal((after, before), dtype=np.float32)
        tensors[f"classifier.{layer}.bias"] = rng.standard_normal(after, dtype=np.float32)
        if not classifier:
            tensors[f"classifier.{layer}.weight"][:] = np.nan
    return tensors


def test_a_classifier_is_decimated(rng):
    theirs = plain_vgg16(rng, classifier=True)
    found = read(theirs)
    fc6, fc7 = theirs["classifier.0.weight"], theirs["classifier.3.weight"]
    weight = found.tensors["backbone.extra.0.7.1.weight"]
    assert weight.shape == (64, 32, 3, 3)
    for output, channel, row, column in ((0, 0, 0, 0), (3, 5, 1, 2), (63, 31, 2, 2)):
        # Flattened as channel, row, column of the 7x7 positions.
        assert weight[output, channel, row, column] == fc6[4 * output, channel * 49 + 3 * row * 7 + 3 * column]
    assert found.tensors["backbone.extra.0.7.3.weight"].shape == (64, 64, 1, 1)
    assert found.tensors["backbone.extra.0.7.3.weight"][5, 7, 0, 0] == fc7[20, 28]
    np.testing.assert_array_equal(found.tensors["backbone.extra.0.7.1.bias"], theirs["classifier.0.bias"][::4])
    np.testing.assert_array_equal(found.tensors["backbone.extra.0.7.3.bias"], theirs["classifier.3.bias"][::4])
    assert len(found.notes) == 2
    assert "classifier.6.weight" in found.unused
    assert "classifier.0.weight" not in found.unused


@pytest.mark.parametrize("head", [(10, 32), (512, 32), (128, 32 * 49)])
def test_a_classifier_with_other_layers_gives_its_trunk(rng, head):
    """As those for small images, or one whose last layers were exchanged for a task of their own."""
    theirs = {name: array for name, array in plain_vgg16(rng, classifier=True).items() if "classifier" not in name}
    theirs["classifier.0.weight"] = rng.standard_normal(head, dtype=np.float32)
    theirs["classifier.0.bias"] = np.zeros(head[0], dtype=np.float32)
    theirs["classifier.3.weight"] = np.zeros((8, head[0]), dtype=np.float32)
    theirs["classifier.3.bias"] = np.zeros(8, dtype=np.float32)
    found = read(theirs)
    assert list(found.tensors) == published_order(300)[:26]
    assert not np.array_equal(found.tensors[CONV1_1], theirs["features.0.weight"])
    assert len(found.notes) == 1
    assert found.unused == tuple(f"classifier.{layer}.{part}" for layer in (0, 3) for part in ("weight", "bias"))


def test_torchvisions_default_boxes_are_cocos_whatever_it_learns():
    found = read(published_detector(300, 21))
    assert found.description.variant is VARIANTS["ssd300_vgg16_coco"]
    assert found.description.categories[0].name == "aeroplane"


def test_the_authors_own_weights_are_turned_to_rgb():
    theirs = foreign_detector("amdegroot", 300, 21)
    theirs["vgg.0.weight"] = np.arange(4 * 3 * 9, dtype=np.float32).reshape(4, 3, 3, 3)
    contents = Contents("test", theirs, [])
    found = recognise(contents, Path("cache/ssd_300_VOC0712.pth"))
    np.testing.assert_array_equal(found.tensors[CONV1_1], theirs["vgg.0.weight"][:, [2, 1, 0]])
    assert any("BGR" in note for note in found.notes)
    assert recognise(contents, FILE).tensors[CONV1_1] is theirs["vgg.0.weight"]


def test_numbers_that_serve_many_tensors_are_counted_once():
    """A small file of views of one array is not taken for a network of hundreds of millions of parameters."""
    zeros = np.zeros(20_000_000, dtype=np.float32)
    header = {"model": {"num_classes": 3, "width": 8, "categories": []}}
    names = [name for name in published_order(300) if name.endswith(("weight", "bias"))]
    tensors = {name: zeros[:12] if name.endswith("bias") else zeros for name in names}
    tensors[CONV1_1] = zeros[: 512 * 27].reshape(512, 3, 3, 3)
    with pytest.raises(UserError, match="20,000,000 parameters are too few"):
        read(tensors, header)


def test_a_classifiers_first_layer_answers_as_before_to_ssds_pixels(rng):
    """One 3x3 window of an image: normalised, through the classifier's layer; minus SSD's mean, through the new one."""
    theirs = plain_vgg16(rng, classifier=True)
    found = read(theirs)
    pixels = rng.integers(0, 256, (3, 3, 3)).astype(np.float64)
    normalised = (pixels / 255 - CLASSIFIER_MEAN.reshape(3, 1, 1)) / CLASSIFIER_DEVIATION.reshape(3, 1, 1)
    centred = pixels - np.array([0.48235, 0.45882, 0.40784]).reshape(3, 1, 1) * 255
    before = (theirs["features.0.weight"] * normalised).sum(axis=(1, 2, 3)) + theirs["features.0.bias"]
    weight, bias = found.tensors[CONV1_1], found.tensors["backbone.features.0.bias"]
    np.testing.assert_allclose((weight * centred).sum(axis=(1, 2, 3)) + bias, before, rtol=1e-5, atol=1e-5)


def test_a_trunk_whose_classifier_is_nan_is_taken_as_it_is(rng):
    theirs = plain_vgg16(rng, classifier=False)
    found = read(theirs)
    assert list(found.tensors) == published_order(300)[:26]
    assert found.tensors[CONV1_1] is theirs["features.0.weight"]
    assert found.notes == ()


@pytest.mark.parametrize(
    "tensors",
    [
        {},
        {"layer1.0.conv1.weight": np.zeros((4, 3, 3, 3)), "fc.bias": np.zeros(9)},
        {"0.weight": np.zeros((4, 9))},  # the first layer of something else
        {"features.0.weight": np.zeros((4, 1, 3, 3))},  # of grey images
    ],
)
def test_what_is_no_ssd_is_refused_with_its_names(tensors):
    with pytest.raises(UserError, match="neither an SSD-VGG16 nor a VGG16") as caught:
        read(tensors)
    assert "weights.pth" in str(caught.value)
    assert all(name in str(caught.value) for name in tensors)


@pytest.fixture
def rng():
    return np.random.default_rng(0)
