"""Files of weights: whole or not at all, and a clear word about every kind of file that does not fit."""

import json
import stat

import numpy as np
import pytest
from foreign_weights import write_pth
from formula_weights import CLOSE, formula_weights, weights_left_unset
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from small_data import WIDTH

from ssd300_vgg16.data.categories import COCO_CATEGORIES
from ssd300_vgg16.data.dataset import Category
from ssd300_vgg16.errors import UserError
from ssd300_vgg16.network.variants import SSD300_VGG16
from ssd300_vgg16.network.vgg import parameters_left_empty
from ssd300_vgg16.runtime import flow
from ssd300_vgg16.weights.model import SMALL, arrays_of, build_model, load_model, load_tensors, model_tensors
from ssd300_vgg16.weights.recognise import read_as_ssd
from ssd300_vgg16.weights.safetensors_file import ModelDescription, read_weights, save_weights

CATEGORIES = (Category(1, 3, "Kätzchen"), Category(2, 70, "狗 🐕"), Category(3, 71, 'a "b"\n'))
DESCRIPTION = ModelDescription(4, WIDTH, CATEGORIES)
SCALE = "backbone.scale_weight"
# The narrowest width at which every layer has a whole number of channels, as the published width has.
EXACT_WIDTH = 1 / 32


@pytest.fixture(scope="module")
def model():
    flow.manual_seed(0)
    return build_model(DESCRIPTION)


@pytest.fixture(scope="module")
def tensors(model):
    return model_tensors(model)


@pytest.fixture
def path(tmp_path, tensors):
    save_weights(tmp_path / "ssd.safetensors", tensors, DESCRIPTION)
    return tmp_path / "ssd.safetensors"


def answers(model):
    images = np.random.default_rng(0).integers(0, 256, (1, 3, 300, 300), dtype=np.uint8)
    with flow.no_grad():
        return [answer.numpy() for answer in model(flow.from_numpy(images))]


def test_a_saved_network_answers_as_before(model, path):
    loaded, description = load_model(path)
    assert description == DESCRIPTION
    assert description.names() == {1: "Kätzchen", 2: "狗 🐕", 3: 'a "b"\n'}
    for answer, other in zip(answers(loaded), answers(model), strict=True):
        np.testing.assert_array_equal(answer, other)


def numbers_drawn_by(work):
    """Whether OneFlow's random numbers go on elsewhere after the work than without it."""
    flow.manual_seed(5)
    expected = flow.randn(4).numpy()
    flow.manual_seed(5)
    work()
    return not np.array_equal(flow.randn(4).numpy(), expected)


def test_loading_spares_the_random_weights_and_leaves_those_of_new_networks(model, path):
    assert not numbers_drawn_by(lambda: load_model(path))
    with pytest.raises(ZeroDivisionError), parameters_left_empty():
        _ = 1 / 0
    assert numbers_drawn_by(lambda: build_model(DESCRIPTION))
    flow.manual_seed(0)
    for name, again in model_tensors(build_model(DESCRIPTION)).items():
        np.testing.assert_array_equal(again, model.state_dict()[name].numpy(), err_msg=name)


def test_the_file_is_plain_safetensors_with_the_published_names(golden, path, tensors):
    assert sorted(load_file(path)) == sorted(golden("state_dict")["names"].tolist())
    with safe_open(path, framework="numpy") as file:
        assert list(file.metadata()) == ["ssd300_vgg16"]
    for name, array in load_file(path).items():
        assert array.dtype == np.float32
        np.testing.assert_array_equal(array, tensors[name])


def test_other_tensors_and_extras_come_back(tmp_path, tensors):
    path = tmp_path / "checkpoint.safetensors"
    save_weights(path, {**tensors, "optimizer/step": np.array(7)}, DESCRIPTION, {"progress": {"step": 7}})
    read, header = read_weights(path)
    assert read["optimizer/step"] == 7 and len(read) == len(tensors) + 1
    assert header["progress"] == {"step": 7}
    assert load_model(path)[1] == DESCRIPTION


def test_weights_can_be_read_by_whoever_may_read_other_files(path):
    path.with_name("other").touch()
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE(path.with_name("other").stat().st_mode)


@pytest.mark.parametrize("place", ["os.fsync", "os.replace"])
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_write_that_fails_leaves_the_former_file_whole(path, tensors, monkeypatch, place, error):
    def fail(*_, **__):
        raise error

    before = path.read_bytes()
    monkeypatch.setattr(f"ssd300_vgg16.files.{place}", fail)
    expected = UserError if isinstance(error, OSError) else KeyboardInterrupt
    with pytest.raises(expected) as caught:
        save_weights(path, {"other": np.zeros(3, dtype=np.float32)}, DESCRIPTION)
    if expected is UserError:
        assert str(path) in str(caught.value) and "No space left on device" in str(caught.value)
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_a_new_file_takes_the_place_of_the_former_in_one_step(path, tensors):
    """A reader of the former file, here by another name of it, keeps it whole."""
    before = path.read_bytes()
    path.with_name("opened").hardlink_to(path)
    save_weights(path, {**tensors, "other": np.zeros(3, dtype=np.float32)}, DESCRIPTION)
    assert path.with_name("opened").read_bytes() == before != path.read_bytes()


@pytest.mark.parametrize(("kind", "reason"), [("nothing", ": its folder is not"), ("file", r" \(Not a directory\)")])
def test_a_folder_that_is_none_is_named(tmp_path, tensors, kind, reason):
    (tmp_path / "file").touch()
    path = tmp_path / kind / "ssd.safetensors"
    with pytest.raises(UserError, match=rf"{kind}/ssd\.safetensors could not be written{reason}"):
        save_weights(path, tensors, DESCRIPTION)


DAMAGE = {
    "half": (lambda data: data[: len(data) // 2], "not a whole safetensors file"),
    "last byte": (lambda data: data[:-1], "not a whole safetensors file"),
    "header": (lambda data: data[:100], "not a whole safetensors file"),
    "a number": (lambda data: data[:-100] + bytes([data[-100] ^ 1]) + data[-99:], "its checksum is another"),
    "the description": (lambda data: data.replace(b'es\\": 4', b'es\\": 5'), "its checksum is another"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_is_named(path, damage):
    damaged = DAMAGE[damage][0](path.read_bytes())
    assert damaged != path.read_bytes()
    path.write_bytes(damaged)
    with pytest.raises(UserError, match=rf"ssd\.safetensors: .*{DAMAGE[damage][1]}"):
        load_model(path)


@pytest.mark.parametrize("header", ["[" * 100_000, "[1]", "3", "null", "{"])
def test_a_header_that_is_none_is_named(tmp_path, tensors, header):
    path = tmp_path / "ssd.safetensors"
    save_file(tensors, path, metadata={"ssd300_vgg16": header})
    with pytest.raises(UserError, match=r"ssd\.safetensors: (its header is not one|not a whole safetensors)"):
        load_model(path)


def test_a_file_of_before_checksums_loads(path, tensors):
    with safe_open(path, framework="numpy") as file:
        header = json.loads(file.metadata()["ssd300_vgg16"])
    assert header.pop("crc32")
    save_file(tensors, path, metadata={"ssd300_vgg16": json.dumps(header)})
    assert load_model(path)[1] == DESCRIPTION


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({SCALE: np.zeros(3, dtype=np.float32)}, r"another shape: backbone\.scale_weight \(3,\) instead"),
        (
            {SCALE: None, "backbone.features.2.bias": None},
            r"missing: backbone\.scale_weight\n  missing: backbone\.features\.2\.bias",
        ),
        ({"backbone.features.0.weight": None}, r"neither an SSD-VGG16 nor a VGG16\..* its tensors: backbone\.\w+"),
    ],
    ids=["shape", "missing", "first"],
)
def test_tensors_that_do_not_fit_are_named(tmp_path, tensors, change, expected):
    path = tmp_path / "ssd.safetensors"
    changed = {name: array for name, array in {**tensors, **change}.items() if array is not None}
    save_weights(path, changed, DESCRIPTION)
    with pytest.raises(UserError, match=expected) as caught:
        load_model(path)
    assert str(path) in str(caught.value)


def test_a_network_that_weights_do_not_fit_stays_as_it_was(model, tensors, path):
    wrong = {name: array + 1 for name, array in tensors.items()}
    wrong[SCALE] = np.zeros(3, dtype=np.float32)
    with pytest.raises(UserError):
        load_tensors(model, wrong, path)
    for name, array in model_tensors(model).items():
        np.testing.assert_array_equal(array, tensors[name])


def test_small_tensors_are_read_together_and_as_they_are(monkeypatch):
    given = {
        "scalar": 3,
        "numbers": [1, 2],
        "row": [[1.5, -0.0]],
        "large": [0.5] * (SMALL + 1),
        "column": [[2.0], [4.0]],
    }
    tensors = {name: flow.tensor(value) for name, value in given.items()} | {"none": flow.zeros(0, 2)}
    expected = {name: tensor.numpy().copy() for name, tensor in tensors.items()}
    reads, real = [], flow.Tensor.numpy
    monkeypatch.setattr(flow.Tensor, "numpy", lambda tensor: reads.append(tensor.numel()) or real(tensor))
    found = arrays_of(tensors)
    assert [*found] == [*given, "none"] and reads == [3, 4, SMALL + 1]
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name, strict=True)


@pytest.mark.parametrize("num_classes", [91, 2])
def test_published_weights_tell_width_and_classes_by_their_shapes(tmp_path, num_classes):
    path = tmp_path / "published.safetensors"
    model = build_model(ModelDescription(num_classes, EXACT_WIDTH, ()))
    save_file(model_tensors(model), path)
    loaded, description = load_model(path)
    assert (description.num_classes, description.width) == (num_classes, EXACT_WIDTH)
    if num_classes == 91:
        assert description.categories == COCO_CATEGORIES
        assert description.names()[18] == "dog"
    else:
        assert [category.label for category in description.categories] == list(range(1, num_classes))
        assert description.names()[1] == "class 1"
    expected = model_tensors(model)
    for name, array in model_tensors(loaded).items():
        np.testing.assert_array_equal(array, expected[name])


def test_the_published_detector_is_known_and_answers_as_it_did(golden, tmp_path):
    """In a file of its own format and size, with the numbers of the reference figures."""
    layout = golden("state_dict")
    shapes = [tuple(map(int, text.split(","))) for text in layout["shapes"]]
    published_file = write_pth(
        tmp_path / "w.pth", formula_weights(dict(zip(layout["names"].tolist(), shapes, strict=True)))
    )
    assert 142_500_000 < published_file.stat().st_size < 142_700_000
    weights = read_as_ssd(published_file)
    assert (weights.format, weights.names, weights.unused) == ("PyTorch zip", "torchvision", ())
    assert weights.description == ModelDescription(91, 1, COCO_CATEGORIES, SSD300_VGG16, tile_side=640)
    with weights_left_unset():
        model, _ = load_model(published_file)
    reference = golden("forward")
    images = np.random.default_rng(int(reference["image_seed"])).random((2, 3, 300, 300), dtype=np.float32)
    with flow.no_grad():
        offsets, logits = model(flow.from_numpy(images * 255))
    for name, answer in (("offsets", offsets), ("logits", logits)):
        found = answer.numpy().reshape(-1)[reference[f"{name}_index"]]
        np.testing.assert_allclose(found, reference[name], **CLOSE)
