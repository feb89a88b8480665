"""A loss that is not finite: the run ends with a word about it and a picture of the images, and keeps its weights."""

import shutil

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file
from small_data import WIDTH, run, shapes, shapes_folder

from ssd300_vgg16 import train
from ssd300_vgg16.data.loader import epoch_order
from ssd300_vgg16.errors import UserError
from ssd300_vgg16.training import not_finite, step
from ssd300_vgg16.weights.locate import BEST, LAST

STEPS = 3  # of three images, one at a time
SETTINGS = ("--width", WIDTH, "-b", 1, "-j", 0, "--device", "cpu", "--data-augmentation", "none", "--lr", 1e-6)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with generated shapes, and a run of one epoch on them."""
    folder = tmp_path_factory.mktemp("not-finite")
    shapes_folder(folder, STEPS, 1)
    assert call("--data-path", folder / "shapes", "--output-dir", folder / "run", "--epochs", 1, *SETTINGS) == 0
    return folder


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


@pytest.mark.parametrize(
    ("part", "other", "number", "options"),
    [
        ("localization", "classification", 2, []),
        ("classification", "localization", 2, []),
        ("localization", "classification", 1, ["--no-eager", "--print-freq", 50]),  # found out at the next report
    ],
)
def test_the_step_its_parts_and_its_images_are_told(place, tmp_path, monkeypatch, part, other, number, options):
    finished = shutil.copytree(place / "run", tmp_path / "finished")
    kept = {name: (finished / name).read_bytes() for name in (LAST, BEST)}
    make_infinite(part, number, monkeypatch)
    with pytest.raises(UserError) as caught:
        call("--resume", finished, "--epochs", 2, "-j", 0, *options)
    message, path = str(caught.value), finished / f"not-finite-step-{STEPS + number}.jpg"
    assert message.startswith(f"step {STEPS + number} is not finite: ") and f"{part} is inf" in message
    assert f"{other} is inf" not in message and f"{other} is nan" not in message
    (image,) = epoch_order(STEPS, 1, seed=0, epoch=1)[number - 1]
    assert f"are in {path}: {shapes(place / 'shapes', 'train').samples[image].path}." in message
    assert "lower --lr" in message and "--clip-norm" in message
    assert {name: (finished / name).read_bytes() for name in (LAST, BEST)} == kept
    with Image.open(path) as picture:
        assert picture.size == (300, 300) and np.ptp(picture) > 100


def test_a_disk_that_is_full_does_not_hide_which_step_it_was(place, tmp_path, monkeypatch):
    def full(path, content):
        raise UserError(f"{path} could not be written (No space left on device)")

    finished = shutil.copytree(place / "run", tmp_path / "finished")
    make_infinite("classification", 1, monkeypatch)
    monkeypatch.setattr(not_finite, "write_atomically", full)
    with pytest.raises(UserError, match=rf"^step {STEPS + 1} is not finite: .* images could not be drawn \(.*No space"):
        call("--resume", finished, "--epochs", 2, "-j", 0)


def test_of_many_images_those_that_lose_most_are_drawn(place, tmp_path, monkeypatch):
    losses = {}

    def with_one_not_finite(trainer, batch, real=not_finite._image_losses):
        of_images = real(trainer, batch)
        assert np.isfinite(of_images).all() and len(set(of_images)) == len(batch.files) == 3
        losses.update(zip(batch.files, [np.nan, *of_images[1:]], strict=True))
        return np.array(list(losses.values()))

    monkeypatch.setattr(not_finite, "_image_losses", with_one_not_finite)
    monkeypatch.setattr(not_finite, "MAX_DRAWN", 2)
    make_infinite("classification", 1, monkeypatch)
    with pytest.raises(UserError) as caught:
        call("--data-path", place / "shapes", "--output-dir", tmp_path / "run", "--epochs", 1, *SETTINGS, "-b", 3)
    path = tmp_path / "run" / "not-finite-step-1.jpg"
    first, *others = losses
    drawn = f"{first}, {max(others, key=losses.get)}"
    said = f"Those 2 of its images that lose most, as the network got them, are in {path}: {drawn}."
    assert said in str(caught.value)
    with Image.open(path) as picture:
        assert picture.size == (600, 300)


@pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")  # numpy's, about the numbers it multiplies
def test_a_wild_learning_rate_from_the_command_line(place):
    arguments = ("--data-path", "shapes", "--output-dir", "wild", "--epochs", 1, *SETTINGS)
    wild = ("--lr", 1e30, "--warmup-steps", 0, "--save-every", 1)
    process = run("train", *arguments, *wild, folder=place)
    assert process.returncode == 2
    assert process.stderr.startswith("train.sh: step 2 is not finite: localization is nan, classification is nan, ")
    assert "Traceback" not in process.stderr
    assert all(np.isfinite(array).all() for array in load_file(place / "wild" / LAST).values())
    assert (place / "wild" / "not-finite-step-2.jpg").exists()
