"""The kept models for ONNX Runtime: made once, and used only if they are whole, our own and of these weights."""

import hashlib
import os
import shutil
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from foreign_weights import random_detector, write_pth
from full_disk import full_disk
from small_data import WIDTH, environment, shapes_folder, start, untrained_run

from ssd300_vgg16 import Detector
from ssd300_vgg16.data.dataset import Category
from ssd300_vgg16.deploy import cache
from ssd300_vgg16.deploy import model as deploy_model
from ssd300_vgg16.deploy.cache import onnx_runtime_network
from ssd300_vgg16.deploy.model import RAW, onnx_model
from ssd300_vgg16.errors import UserError
from ssd300_vgg16.runtime import flow
from ssd300_vgg16.weights import model as weights_model
from ssd300_vgg16.weights.locate import BEST
from ssd300_vgg16.weights.safetensors_file import ModelDescription

IMAGES = np.random.default_rng(0).integers(0, 256, (1, 3, 300, 300), dtype=np.uint8)


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kept")
    return [untrained_run(folder / str(seed), seed) / BEST for seed in (1, 2)]


@pytest.fixture
def weights(originals, tmp_path):
    """Weights alone in a folder, with a name that is a pattern too."""
    return Path(shutil.copy(originals[0], tmp_path / "a[b] *.safetensors"))


@pytest.fixture(autouse=True)
def _empty_cache(kept_models):
    """So that each test makes its own."""


@pytest.fixture
def made(monkeypatch):
    """The weights that models were made from."""
    paths, load_model = [], deploy_model.load_model
    monkeypatch.setattr(deploy_model, "load_model", lambda path: paths.append(path) or load_model(path))
    return paths


def logits(weights):
    return onnx_runtime_network(weights)[0](IMAGES)[1]


def test_it_is_made_once(weights, made, kept_models):
    expected = Detector.load(weights, "cpu", engine="oneflow").model
    made.clear()
    networks = [onnx_runtime_network(weights) for _ in range(3)]
    assert made == [weights] and len(kept_models()) == 1
    assert list(weights.parent.glob(".*")) == [], "nothing is written beside the weights"
    for network, description in networks:
        np.testing.assert_array_equal(network(IMAGES)[1], networks[0][0](IMAGES)[1])
        assert description == networks[0][1] and description.names()[5] == "ring"
        assert network(IMAGES)[0].shape == (1, 8732, 4)
    with flow.no_grad():
        np.testing.assert_allclose(networks[2][0](IMAGES)[1], expected(flow.from_numpy(IMAGES))[1].numpy(), atol=1e-4)


def test_what_was_assumed_of_the_weights_is_said_again(tmp_path):
    source = write_pth(tmp_path / "theirs.pth", random_detector("amdegroot"))
    first, second = (Detector.load(source, "cpu").description for _ in range(2))
    assert "class names taken to be VOC's" in first.notes[0] and second.notes == first.notes
    assert second == first


def test_other_weights_of_that_name_get_a_model_of_their_own(weights, originals, made):
    before = logits(weights)
    shutil.copy(originals[1], weights)
    assert np.abs(logits(weights) - before).max() > 0.01
    shutil.copy(originals[0], weights)
    np.testing.assert_array_equal(logits(weights), before)
    assert len(made) == 2, "and that of the former ones is still there"


def test_a_model_that_came_with_the_weights_is_not_used(weights, originals, made, kept_models):
    """A stranger's, under the name that models had beside the weights, or in the cache of theirs."""
    foreign = logits(originals[1])
    (theirs,) = kept_models()
    for beside in (f".{weights.name}.{theirs.name}", theirs.name, f"onnx/{theirs.name}"):
        place = weights.parent / beside
        place.parent.mkdir(exist_ok=True)
        shutil.copy(theirs, place)
    assert np.abs(logits(weights) - foreign).max() > 0.01
    assert made == [originals[1], weights]


@pytest.mark.parametrize("others", ["a link", "writable"])
def test_a_cache_that_is_not_the_users_own_is_not_used(weights, made, kept_models, others):
    logits(weights)
    cache = kept_models()[0].parent.parent
    if others == "a link":
        cache.symlink_to(cache.rename(cache.with_name("elsewhere")))
    else:
        cache.chmod(0o777)
    logits(weights)
    assert made == [weights] * 2


def test_those_that_were_not_used_for_longest_are_removed(weights, originals, kept_models, monkeypatch):
    monkeypatch.setattr(cache, "MAX_KEPT", 2)
    logits(originals[0])
    (first,) = kept_models()
    logits(originals[1])
    (second,) = set(kept_models()) - {first}
    os.utime(first, (0, 0))
    os.utime(second, (1, 1))
    logits(originals[0])  # used
    monkeypatch.setattr(cache, "MODEL_VERSION", 99)
    logits(originals[0])
    assert len(kept_models()) == 2 and first in kept_models() and second not in kept_models()


@pytest.mark.parametrize("settings", ["onnxruntime", "processor", "name", "version"])
def test_it_is_made_anew_where_anything_is_different(weights, made, kept_models, monkeypatch, settings):
    logits(weights)
    if settings == "name":  # which some are recognised by
        weights = weights.rename(weights.with_name("b.safetensors"))
    changes = {
        "onnxruntime": (cache.onnxruntime, "__version__", "1.99"),
        "processor": (cache, "processor_flags", lambda: {"avx2"}),
        "version": (cache, "MODEL_VERSION", cache.MODEL_VERSION + 1),
    }
    if settings in changes:
        monkeypatch.setattr(*changes[settings])
    logits(weights)
    assert len(made) == 2
    assert [path.suffix for path in kept_models()] == [".onnx"] * 2


# The exported graph of a small network with weights of a formula, by MODEL_VERSION.
GRAPHS = {1: "4f26d5130d59e615", 2: "dc5b0e5b83832f5c", 3: "dc5b0e5b83832f5c"}


def test_the_version_is_raised_with_the_graph():
    description = ModelDescription(2, WIDTH, (Category(1, 1, "ring"),))
    model = weights_model.empty_model(description)
    # Exact in float32 on any machine, unlike what a random generator gives.
    tensors = {
        name: np.arange(tensor.size).reshape(tensor.shape) % 251 / 1024
        for name, tensor in weights_model.model_tensors(model).items()
    }
    weights_model.load_tensors(model, tensors, Path("formula"))
    graph = onnx_model(model, description, RAW).graph
    digest = hashlib.sha256(graph.SerializeToString(deterministic=True)).hexdigest()[:16]
    assert digest == GRAPHS[cache.MODEL_VERSION], "raise MODEL_VERSION in deploy/cache.py, and note the new digest here"


def flipped(content):
    """With one bit of a weight changed, so that it is still a model."""
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 64]) + content[middle + 1 :]


@pytest.mark.parametrize(
    ("damage", "checksum_fits"),
    [(flipped, False), (lambda content: content[:-5], False), (lambda _: b"", True), (lambda _: b"no model", True)],
)
def test_one_that_is_damaged_or_no_model_is_replaced(weights, made, kept_models, damage, checksum_fits):
    expected = logits(weights)
    (kept,) = kept_models()
    content = damage(kept.read_bytes())
    if checksum_fits:
        kept = kept.rename(kept.with_name(f"{kept.name.rpartition('-')[0]}-{zlib.crc32(content):08x}.onnx"))
    kept.write_bytes(content)
    for _ in range(2):
        np.testing.assert_array_equal(logits(weights), expected)
        assert len(made) == 2 and len(kept_models()) == 1


@pytest.mark.parametrize("fault", ["read only", "full"])
def test_a_disk_that_cannot_be_written_is_no_error(weights, kept_models, monkeypatch, capfd, fault):
    def read_only(*_, **__):
        raise OSError(30, "Read-only file system")

    expected = logits(weights)
    kept_models()[0].unlink()
    if fault == "read only":
        monkeypatch.setattr(cache, "new_file", read_only)
    with full_disk(at=20_000):
        found = logits(weights)
    np.testing.assert_array_equal(found, expected)
    assert kept_models() == [], "nor is a part of it left"
    assert capfd.readouterr() == ("", "")


def test_nothing_is_kept_of_weights_that_changed_meanwhile(weights, originals, kept_models, monkeypatch):
    load_model = deploy_model.load_model

    def replaced_while_read(path):
        shutil.copy(originals[1], path)
        return load_model(path)

    monkeypatch.setattr(deploy_model, "load_model", replaced_while_read)
    logits(weights)
    assert kept_models() == []


def test_what_a_killed_process_left_behind_is_removed_after_a_while(weights, kept_models, originals):
    logits(originals[1])
    folder = kept_models()[0].parent
    assert folder.stat().st_mode & 0o777 == 0o700, "who may not read the weights may not read their models"
    left, going_on, others = (folder / f".model.{name}.ssd300-tmp" for name in (1, 2, "own"))
    for path in (left, going_on, others):
        path.touch()
    for path in (left, others):
        os.utime(path, (0, 0))
    logits(weights)
    assert [path.exists() for path in (left, going_on, others)] == [False, True, True]


def test_weights_that_cannot_be_read_are_reported_as_ever(tmp_path, kept_models):
    with pytest.raises(UserError, match="nothing: no such file of weights"):
        onnx_runtime_network(tmp_path / "nothing")
    (tmp_path / "text").write_text("text")
    with pytest.raises(UserError, match="text: it is text, not weights; it begins b'text'"):
        onnx_runtime_network(tmp_path / "text")
    assert kept_models() == []


def test_several_processes_at_once(weights, tmp_path, kept_models):
    data = shapes_folder(tmp_path / "data", 1, 2)
    common = ("--weights", weights, "--device", "cpu", data / "val", "--output-dir")
    processes = [start("infer", *common, tmp_path / str(number), folder=tmp_path) for number in range(3)]
    assert [process.communicate(timeout=120)[1] for process in processes] == ["", "", ""]
    assert [process.returncode for process in processes] == [0, 0, 0]
    assert [path.suffix for path in kept_models()] == [".onnx"]
    pictures = [(tmp_path / str(number) / "000001.jpg").read_bytes() for number in range(3)]
    assert pictures[0] == pictures[1] == pictures[2]


def test_detecting_with_it_starts_without_oneflow(weights):
    logits(weights)
    script = (
        "import sys, numpy, ssd300_vgg16 as ssd; detector = ssd.Detector.load(sys.argv[1], engine='onnxruntime', "
        "device='cpu'); print(len(detector(numpy.zeros((20, 30, 3), 'uint8'))['names']) >= 0, "
        "sorted({'oneflow', 'onnx', 'matplotlib'} & set(sys.modules)))"
    )
    command = [sys.executable, "-c", script, weights]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "True []\n"
