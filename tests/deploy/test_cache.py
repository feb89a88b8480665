"""The model for ONNX Runtime beside the weights: made once, and used only if it is whole and of these weights."""

import os
import shutil
import stat
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from full_disk import full_disk
from small_data import environment, run, shapes_folder, start, untrained_run

from ssd300_vgg16 import Detector
from ssd300_vgg16.deploy import cache
from ssd300_vgg16.deploy.cache import onnx_runtime_network
from ssd300_vgg16.errors import UserError
from ssd300_vgg16.weights import model as weights_model
from ssd300_vgg16.weights.locate import BEST

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
    paths, load_model = [], weights_model.load_model

    def counted(path):
        paths.append(path)
        return load_model(path)

    monkeypatch.setattr(weights_model, "load_model", counted)
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
    from ssd300_vgg16.runtime import flow

    with flow.no_grad():
        np.testing.assert_allclose(networks[2][0](IMAGES)[1], expected(flow.from_numpy(IMAGES))[1].numpy(), atol=1e-4)


def test_what_was_assumed_of_the_weights_is_said_again(tmp_path):
    from foreign_weights import random_detector, write_pth

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


@pytest.mark.parametrize("settings", ["onnxruntime", "processor", "name", "code"])
def test_it_is_made_anew_where_anything_is_different(weights, made, monkeypatch, settings, tmp_path):
    logits(weights)
    if settings == "onnxruntime":
        monkeypatch.setattr(cache.onnxruntime, "__version__", "1.99")
    elif settings == "processor":
        monkeypatch.setattr(cache, "processor_flags", lambda: {"avx2"})
    elif settings == "name":  # which some are recognised by
        (kept,) = kept_beside(weights)
        weights = weights.rename(weights.with_name("b.safetensors"))
        kept.rename(kept.with_name(kept.name.replace("a[b] *", "b")))
    else:
        package = tmp_path / "package"
        (package / "deploy").mkdir(parents=True)
        (package / "network.py").write_text("another")
        monkeypatch.setattr(cache, "__file__", str(package / "deploy" / "cache.py"))
    logits(weights)
    assert len(made) == 2
    assert len([path for path in kept_beside(weights) if path.suffix == ".onnx"]) == 1


def flipped(content):
    """With one bit of a weight changed, so that it is still a model."""
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 64]) + content[middle + 1 :]


@pytest.mark.parametrize("damage", [flipped, lambda content: content[:-5], lambda _: b""])
def test_a_damaged_one_is_replaced(weights, made, damage):
    expected = logits(weights)
    (kept,) = kept_beside(weights)
    kept.write_bytes(damage(kept.read_bytes()))
    np.testing.assert_array_equal(logits(weights), expected)
    assert len(made) == 2
    logits(weights)
    assert len(made) == 2 and len(kept_beside(weights)) == 1


@pytest.mark.parametrize("content", [b"no model", b""])
def test_one_that_is_whole_but_no_model_of_ours_is_replaced(weights, made, content):
    expected = logits(weights)
    (kept,) = kept_beside(weights)
    foreign = kept.with_name(f"{kept.name.rpartition('-')[0]}-{zlib.crc32(content):08x}.onnx")
    kept.unlink()
    foreign.write_bytes(content)
    np.testing.assert_array_equal(logits(weights), expected)
    assert len(made) == 2 and not foreign.exists() and len(kept_beside(weights)) == 1


def test_a_folder_that_cannot_be_written_is_no_error(weights, made, monkeypatch, capfd):
    really_open = os.open

    def read_only(path, *options):
        if str(path).endswith(".tmp"):
            raise OSError(30, "Read-only file system")
        return really_open(path, *options)

    monkeypatch.setattr(os, "open", read_only)
    np.testing.assert_array_equal(logits(weights), logits(weights))
    assert len(made) == 2 and kept_beside(weights) == []
    assert capfd.readouterr() == ("", "")


def test_a_full_disk_is_no_error(weights, capfd):
    expected = logits(weights)
    kept_beside(weights)[0].unlink()
    with full_disk(at=20_000):
        found = logits(weights)
    np.testing.assert_array_equal(found, expected)
    assert kept_beside(weights) == [], "nor is a part of it left"
    assert capfd.readouterr() == ("", "")


def test_nothing_is_kept_of_weights_that_changed_meanwhile(weights, originals, monkeypatch):
    load_model = weights_model.load_model

    def replaced_while_read(path):
        shutil.copy(originals[1], path)
        return load_model(path)

    monkeypatch.setattr(weights_model, "load_model", replaced_while_read)
    logits(weights)
    assert kept_beside(weights) == []


def test_who_may_not_read_the_weights_may_not_read_it(weights):
    weights.chmod(0o640)
    logits(weights)
    assert stat.S_IMODE(kept_beside(weights)[0].stat().st_mode) == 0o640


def test_what_a_killed_process_left_behind_is_removed_after_a_while(weights):
    left, going_on = (weights.with_name(f".{weights.name}.{number}.tmp") for number in (1, 2))
    left.touch()
    going_on.touch()
    os.utime(left, (0, 0))
    logits(weights)
    assert sorted(path.suffix for path in kept_beside(weights)) == [".onnx", ".tmp"]
    assert going_on.exists()


def test_weights_that_cannot_be_read_are_reported_as_ever(tmp_path):
    with pytest.raises(UserError, match="nothing: no such file of weights"):
        onnx_runtime_network(tmp_path / "nothing")
    (tmp_path / "text").write_text("text")
    with pytest.raises(UserError, match="text: it is text, not weights"):
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


def test_evaluation_keeps_one_too_and_says_nothing_of_it(weights, tmp_path):
    data = shapes_folder(tmp_path / "data", 1, 2)
    done = run("evaluate", "--weights", weights, "--data-path", data, "--device", "cpu", "-j", "0", folder=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert ".onnx" not in done.stdout
    assert len(list(weights.parent.glob(".*.onnx"))) == 1
