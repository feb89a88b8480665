"""The model for ONNX Runtime beside the weights: made once, and used only if it is whole and of these weights."""

import hashlib
import os
import shutil
import stat
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


@pytest.fixture
def made(monkeypatch):
    """The weights that models were made from."""
    paths, load_model = [], deploy_model.load_model
    monkeypatch.setattr(deploy_model, "load_model", lambda path: paths.append(path) or load_model(path))
    return paths


def kept_beside(weights):
    return [path for path in weights.parent.iterdir() if path != weights]


def logits(weights):
    return onnx_runtime_network(weights)[0](IMAGES)[1]


def test_it_is_made_once(weights, made):
    expected = Detector.load(weights, "cpu", engine="oneflow").model
    made.clear()
    networks = [onnx_runtime_network(weights) for _ in range(3)]
    assert made == [weights] and len(kept_beside(weights)) == 1
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
    (old,) = kept_beside(weights)
    shutil.copy(originals[1], weights)
    assert np.abs(logits(weights) - before).max() > 0.01
    (new,) = kept_beside(weights)
    assert new != old, "and that of the former ones is gone"
    assert len(made) == 2


@pytest.mark.parametrize("settings", ["onnxruntime", "processor", "name", "version"])
def test_it_is_made_anew_where_anything_is_different(weights, made, monkeypatch, settings):
    logits(weights)
    if settings == "name":  # which some are recognised by
        (kept,) = kept_beside(weights)
        weights = weights.rename(weights.with_name("b.safetensors"))
        kept.rename(kept.with_name(kept.name.replace("a[b] *", "b")))
    changes = {
        "onnxruntime": (cache.onnxruntime, "__version__", "1.99"),
        "processor": (cache, "processor_flags", lambda: {"avx2"}),
        "version": (cache, "MODEL_VERSION", cache.MODEL_VERSION + 1),
    }
    if settings in changes:
        monkeypatch.setattr(*changes[settings])
    logits(weights)
    assert len(made) == 2
    assert [path.suffix for path in kept_beside(weights)] == [".onnx"]


# The exported graph of a small network with weights of a formula, by MODEL_VERSION.
GRAPHS = {1: "4f26d5130d59e615", 2: "dc5b0e5b83832f5c"}


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
def test_one_that_is_damaged_or_no_model_is_replaced(weights, made, damage, checksum_fits):
    expected = logits(weights)
    (kept,) = kept_beside(weights)
    content = damage(kept.read_bytes())
    if checksum_fits:
        kept = kept.rename(kept.with_name(f"{kept.name.rpartition('-')[0]}-{zlib.crc32(content):08x}.onnx"))
    kept.write_bytes(content)
    for _ in range(2):
        np.testing.assert_array_equal(logits(weights), expected)
        assert len(made) == 2 and len(kept_beside(weights)) == 1


@pytest.mark.parametrize("fault", ["read only", "full"])
def test_a_disk_that_cannot_be_written_is_no_error(weights, monkeypatch, capfd, fault):
    def read_only(*_, **__):
        raise OSError(30, "Read-only file system")

    expected = logits(weights)
    kept_beside(weights)[0].unlink()
    if fault == "read only":
        monkeypatch.setattr(Path, "touch", read_only)
    with full_disk(at=20_000):
        found = logits(weights)
    np.testing.assert_array_equal(found, expected)
    assert kept_beside(weights) == [], "nor is a part of it left"
    assert capfd.readouterr() == ("", "")


def test_nothing_is_kept_of_weights_that_changed_meanwhile(weights, originals, monkeypatch):
    load_model = deploy_model.load_model

    def replaced_while_read(path):
        shutil.copy(originals[1], path)
        return load_model(path)

    monkeypatch.setattr(deploy_model, "load_model", replaced_while_read)
    logits(weights)
    assert kept_beside(weights) == []


def test_who_may_not_read_the_weights_may_not_read_it(weights):
    weights.chmod(0o640)
    logits(weights)
    assert stat.S_IMODE(kept_beside(weights)[0].stat().st_mode) == 0o640


def test_what_a_killed_process_left_behind_is_removed_after_a_while(weights):
    left, going_on, others = (weights.with_name(f".{weights.name}.{name}.ssd300-tmp") for name in (1, 2, "own"))
    for path in (left, going_on, others):
        path.touch()
    for path in (left, others):
        os.utime(path, (0, 0))
    logits(weights)
    assert [path.exists() for path in (left, going_on, others)] == [False, True, True]


def test_weights_that_cannot_be_read_are_reported_as_ever(tmp_path):
    with pytest.raises(UserError, match="nothing: no such file of weights"):
        onnx_runtime_network(tmp_path / "nothing")
    (tmp_path / "text").write_text("text")
    with pytest.raises(UserError, match="text: it is text, not weights; it begins b'text'"):
        onnx_runtime_network(tmp_path / "text")
    assert [path.name for path in tmp_path.iterdir()] == ["text"]


def test_several_processes_at_once(weights, tmp_path):
    data = shapes_folder(tmp_path / "data", 1, 2)
    common = ("--weights", weights, "--device", "cpu", data / "val", "--output-dir")
    processes = [start("infer", *common, tmp_path / str(number), folder=tmp_path) for number in range(3)]
    assert [process.communicate(timeout=120)[1] for process in processes] == ["", "", ""]
    assert [process.returncode for process in processes] == [0, 0, 0]
    assert [path.suffix for path in weights.parent.iterdir() if path.name.startswith(".")] == [".onnx"]
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
