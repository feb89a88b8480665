"""A loss that is not finite: the run ends with a word about it, and keeps what it takes to look into it."""

import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file
from small_data import WIDTH, run, shapes_folder

from ssd300_vgg16 import train
from ssd300_vgg16.data.loader import TrainingBatch
from ssd300_vgg16.errors import UserError
from ssd300_vgg16.runtime import flow
from ssd300_vgg16.training import step
from ssd300_vgg16.training.replay import replay, save_replay
from ssd300_vgg16.weights.locate import BEST, LAST
from ssd300_vgg16.weights.model import build_model, model_tensors
from ssd300_vgg16.weights.safetensors_file import ModelDescription, save_weights

STEPS = 3  # of three images, one at a time
SETTINGS = ("--width", WIDTH, "-b", 1, "-j", 0, "--device", "cpu", "--data-augmentation", "none", "--lr", 1e-6)
DESCRIPTION = ModelDescription(6, WIDTH, ())


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with generated shapes, and a run of one epoch on them."""
    folder = tmp_path_factory.mktemp("replay")
    shapes_folder(folder, STEPS, 1)
    assert call("--data-path", folder / "shapes", "--output-dir", folder / "run", "--epochs", 1, *SETTINGS) == 0
    return folder


@pytest.fixture
def finished(place, tmp_path):
    return shutil.copytree(place / "run", tmp_path / "finished")


def call(*arguments):
    return train.main([str(argument) for argument in arguments])


def make_infinite(part, number, monkeypatch):
    """That part of the loss, in that step from now on, counted from 1; a compiled step is made with it in it."""
    left, real = iter(range(number - 1)), step.multibox_loss

    def infinite(*arguments):
        losses = real(*arguments)
        if next(left, None) is None:
            losses[part] = losses[part] * float("inf")
        return losses

    monkeypatch.setattr(step, "multibox_loss", infinite)


@pytest.mark.parametrize("part", ["localization", "classification"])
def test_the_step_its_parts_and_its_images_are_told(place, finished, monkeypatch, part):
    kept = {name: (finished / name).read_bytes() for name in (LAST, BEST)}
    make_infinite(part, 2, monkeypatch)
    with pytest.raises(UserError) as caught:
        call("--resume", finished, "--epochs", 2, "-j", 0)
    message, path = str(caught.value), finished / f"replay-step-{STEPS + 2}.safetensors"
    assert message.startswith(f"step {STEPS + 2} is not finite: ") and f"{part} is inf" in message
    other = {"localization": "classification", "classification": "localization"}[part]
    assert f"{other} is inf" not in message and f"{other} is nan" not in message
    (image,) = [image for image in (place / "shapes" / "train").iterdir() if str(image) in message]
    assert f"train.sh --replay {path}" in message and "lower --lr" in message and "--clip-norm" in message
    assert {name: (finished / name).read_bytes() for name in (LAST, BEST)} == kept
    # What is finite without the patch is so in the replay.
    monkeypatch.undo()
    report = replay(path, "cpu").splitlines()
    assert report[0] == f"step {STEPS + 2}: what each image adds to the loss, and the positives it has"
    assert str(image) in report[1] and "not finite" not in report[1]
    assert report[2:] == ["targets, weights and gradients are finite"]


def test_a_compiled_step_is_found_out_at_the_next_report(finished, monkeypatch):
    kept = (finished / LAST).read_bytes()
    make_infinite("localization", 1, monkeypatch)
    with pytest.raises(UserError, match=rf"^step {STEPS + 1} is not finite: localization is inf"):
        call("--resume", finished, "--epochs", 2, "-j", 0, "--no-eager", "--print-freq", 50)
    assert (finished / LAST).read_bytes() == kept
    assert (finished / f"replay-step-{STEPS + 1}.safetensors").exists()


@pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")  # numpy's, about the numbers it multiplies
def test_a_wild_learning_rate_from_the_command_line(place):
    arguments = ("--data-path", "shapes", "--output-dir", "wild", "--epochs", 1, *SETTINGS)
    wild = ("--lr", 1e30, "--warmup-steps", 0, "--save-every", 1)
    process = run("train", *arguments, *wild, folder=place)
    assert process.returncode == 2
    assert process.stderr.startswith("train.sh: step 2 is not finite: localization is nan, classification is nan, ")
    assert "Traceback" not in process.stderr
    assert all(np.isfinite(array).all() for array in load_file(place / "wild" / LAST).values())
    path = "wild/replay-step-2.safetensors"
    assert f"train.sh --replay {path}" in process.stderr
    process = run("train", "--replay", path, "--device", "cpu", folder=place)
    assert (process.returncode, process.stderr) == (0, "")
    assert "shapes/train/00000" in process.stdout and "<- not finite" in process.stdout
    assert "  gradient: backbone.features.0.weight" in process.stdout.splitlines()


@pytest.fixture
def batch():
    """Three images, each with one positive, and the second with targets that make no sense."""
    labels = np.zeros((3, 8732), dtype=np.int64)
    labels[:, 7] = 1
    offsets = np.zeros((3, 8732, 4), dtype=np.float32)
    offsets[1, 7, 2] = np.inf
    images = np.random.default_rng(0).integers(0, 256, (3, 3, 300, 300), dtype=np.uint8)
    return TrainingBatch(images, offsets, labels, ["first.jpg", "second.jpg", "third.jpg"], [])


def test_the_image_with_bad_targets_is_marked(tmp_path, batch):
    flow.manual_seed(0)
    save_replay(tmp_path / "replay", model_tensors(build_model(DESCRIPTION)), DESCRIPTION, batch, 7)
    first, *images, header, targets = replay(tmp_path / "replay", "cpu").splitlines()[:6]
    assert first.startswith("step 7: ")
    for row, (image, name) in enumerate(zip(images, batch.files, strict=True)):
        assert f"positives    1  {name}" in image
        assert image.endswith("  <- not finite") == (row == 1)
    assert "localization        inf" in images[1]
    assert header == "not finite:"
    assert targets == "  targets: offsets of images [1]"


def test_bad_weights_are_named(tmp_path, batch):
    tensors = model_tensors(build_model(DESCRIPTION))
    tensors["backbone.scale_weight"] = np.full_like(tensors["backbone.scale_weight"], np.nan)
    save_replay(tmp_path / "replay", tensors, DESCRIPTION, batch, 7)
    assert "  weight: backbone.scale_weight" in replay(tmp_path / "replay", "cpu").splitlines()


def test_other_files_are_refused(tmp_path):
    save_weights(tmp_path / LAST, model_tensors(build_model(DESCRIPTION)), DESCRIPTION)
    with pytest.raises(UserError, match=r"--replay .*last\.safetensors: not a batch kept by a training"):
        replay(tmp_path / LAST, "cpu")
    with pytest.raises(UserError, match=r"--replay nothing: there is no such file or folder"):
        call("--replay", "nothing", "--device", "cpu")
