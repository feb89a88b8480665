"""Checkpoints: a run that is interrupted and goes on ends with the very weights of one that was not."""

import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file
from small_data import WIDTH, shapes_folder

from ssd300_vgg16 import train
from ssd300_vgg16.errors import UserError
from ssd300_vgg16.metrics import evaluation
from ssd300_vgg16.runtime import flow
from ssd300_vgg16.training import trainer
from ssd300_vgg16.training.checkpoint import Progress, checkpoint_description, load_checkpoint, save_checkpoint
from ssd300_vgg16.training.run_folder import BEST, LAST, read_metrics
from ssd300_vgg16.weights import ModelDescription, build_model, model_tensors, read_weights, save_weights

EPOCHS, STEPS = 2, 2  # of two images, one at a time
SCHEDULES = {
    "adamw": ("--preset", "narrow", "--data-augmentation", "ssd"),
    "sgd": ("--lr-steps", 1, "--warmup-steps", 1, "--lr", 1e-4, "--data-augmentation", "none"),
}


@pytest.fixture(scope="module", autouse=True)
def no_curves():
    """Curves are none of this file's concern, and slow to draw."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "draw_curves", lambda folder: None)
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return shapes_folder(tmp_path_factory.mktemp("checkpoint"), 2, 1)


def train_run(folder, data, *options):
    settings = ("--width", WIDTH, "-b", 1, "-j", 0, "--print-freq", 1, "--device", "cpu")
    return call("--data-path", data, "--output-dir", folder, *settings, *options)


def call(*arguments):
    return train.main([str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def uninterrupted(data, tmp_path_factory):
    """A run of two epochs with each schedule."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    for name, options in SCHEDULES.items():
        assert train_run(folder / name, data, "--epochs", EPOCHS, *options) == 0
    return folder


@pytest.fixture(scope="module")
def one_epoch(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("one-epoch") / "run"
    train_run(folder, data, "--epochs", 1, *SCHEDULES["sgd"])
    return folder


@pytest.fixture
def finished(one_epoch, tmp_path):
    """A copy of a run of one epoch."""
    return shutil.copytree(one_epoch, tmp_path / "finished")


def interrupt_after(steps, monkeypatch):
    """Ctrl-C when that many training steps have been done."""
    left, real = iter(range(steps)), trainer.training_batches

    def batches(*arguments):
        for batch in real(*arguments):
            if next(left, None) is None:
                raise KeyboardInterrupt
            yield batch

    monkeypatch.setattr(trainer, "training_batches", batches)


def interrupt_evaluation(number, monkeypatch):
    """Ctrl-C in that evaluation, counted from 1."""
    left, real = iter(range(number - 1)), evaluation.evaluate

    def evaluate(*arguments):
        if next(left, None) is None:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(evaluation, "evaluate", evaluate)


def assert_same_tensors(folder, other):
    for name in (LAST, BEST):
        tensors, others = load_file(folder / name), load_file(other / name)
        assert tensors.keys() == others.keys()
        for key, array in tensors.items():
            np.testing.assert_array_equal(array, others[key], err_msg=f"{name}: {key}")


def readings(folder):
    """metrics.jsonl without what a clock has measured."""
    measured = ("images_per_second", "seconds_left")
    return [{key: row[key] for key in row if key not in measured} for row in read_metrics(folder)]


@pytest.mark.parametrize(
    ("interrupt", "when", "steps_done"),
    [
        (interrupt_after, 0, 0),
        (interrupt_after, 1, 1),
        (interrupt_after, STEPS, STEPS),
        (interrupt_after, STEPS + 1, STEPS + 1),
        (interrupt_evaluation, 1, STEPS),
        (interrupt_evaluation, 2, 2 * STEPS),
    ],
)
def test_a_run_that_goes_on_ends_like_one_never_interrupted(
    uninterrupted, data, tmp_path, monkeypatch, capsys, interrupt, when, steps_done
):
    expected, folder = uninterrupted / "adamw", tmp_path / "a run"
    with monkeypatch.context() as patch:
        interrupt(when, patch)
        with pytest.raises(KeyboardInterrupt):
            train_run(folder, data, "--epochs", EPOCHS, *SCHEDULES["adamw"])
    assert (
        f"Stopped after step {steps_done}. Go on with:\n  bash train.sh --resume '{folder}'" in capsys.readouterr().out
    )
    assert read_weights(folder / LAST)[1]["progress"]["step"] == steps_done
    assert call("--resume", folder, "-j", 0) == 0
    assert_same_tensors(folder, expected)
    assert readings(folder) == readings(expected)


def test_more_epochs_later_are_as_good_as_at_once(uninterrupted, finished):
    """With a schedule that does not depend on the end, as a cosine does."""
    assert call("--resume", finished / LAST, "--epochs", EPOCHS, "-j", 0) == 0
    assert_same_tensors(finished, uninterrupted / "sgd")
    assert readings(finished) == readings(uninterrupted / "sgd")


def test_options_given_to_resume_hold_for_the_next_one_too(finished, monkeypatch):
    with monkeypatch.context() as patch:
        interrupt_after(1, patch)
        with pytest.raises(KeyboardInterrupt):
            call("--resume", finished, "--epochs", 2, "-j", 0)
    call("--resume", finished, "-j", 0)
    assert [row["step"] for row in read_metrics(finished) if row["kind"] == "evaluation"] == [STEPS, 2 * STEPS]


def test_a_run_that_is_finished_trains_no_more(finished):
    before, rows = (finished / LAST).read_bytes(), read_metrics(finished)
    assert call("--resume", finished, "-j", 0) == 0
    assert (finished / LAST).read_bytes() == before
    assert read_metrics(finished) == rows


def make_infinite(part, monkeypatch):
    """That part of the loss, from now on."""
    real = trainer.EagerStep.__call__

    def infinite(step, *batch):
        factors = [float("inf") if name == part else 1.0 for name in trainer.LOSS_PARTS]
        return real(step, *batch) * flow.tensor(factors)

    monkeypatch.setattr(trainer.EagerStep, "__call__", infinite)


@pytest.mark.parametrize("part", ["localization", "classification"])
def test_a_loss_that_is_not_finite_stops_the_run_and_leaves_its_checkpoint(finished, data, monkeypatch, part):
    before = {name: (finished / name).read_bytes() for name in (LAST, BEST)}
    make_infinite(part, monkeypatch)
    with pytest.raises(UserError) as caught:
        call("--resume", finished, "--epochs", 2, "-j", 0)
    message = str(caught.value)
    assert f"the loss of step {STEPS} is not finite" in message and f"{part} is inf" in message
    assert sum(str(image) in message for image in (data / "train").iterdir()) == 1
    assert "--lr" in message
    assert {name: (finished / name).read_bytes() for name in (LAST, BEST)} == before


def test_an_interruption_does_not_save_a_loss_that_nobody_has_looked_at(finished, monkeypatch):
    before = (finished / LAST).read_bytes()
    make_infinite("localization", monkeypatch)
    interrupt_after(1, monkeypatch)
    with pytest.raises((UserError, KeyboardInterrupt)) as caught:
        call("--resume", finished, "--epochs", 2, "-j", 0, "--print-freq", 50)
    assert "is not finite" in str(caught.value)
    assert (finished / LAST).read_bytes() == before


@pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")  # numpy's, about the numbers it multiplies
def test_a_wild_learning_rate_is_told(data, tmp_path):
    with pytest.raises(UserError, match=r"the loss of step 1 is not finite: .* nan.*lower --lr"):
        train_run(tmp_path / "run", data, "--optimizer", "sgd", "--lr", 1e30, "--warmup-steps", 0, "--epochs", 1)
    assert not (tmp_path / "run" / LAST).exists()


@pytest.mark.parametrize("images", [1, 3])
def test_another_number_of_images_is_refused(finished, tmp_path, images):
    """To go on would leave out steps or repeat them."""
    other = shapes_folder(tmp_path, images, 1)
    with pytest.raises(UserError, match=f"the run had 2 steps an epoch, now it is {images}"):
        call("--resume", finished, "--data-path", other, "--epochs", 2, "-j", 0)


def test_another_batch_size_is_refused(finished):
    with pytest.raises(UserError, match="--batch-size 2: the run was started with 1"):
        call("--resume", finished, "--batch-size", 2, "--epochs", 2, "-j", 0)


def test_resuming_with_another_network_is_refused_and_changes_nothing(finished):
    with pytest.raises(UserError, match=r"last\.safetensors does not fit this network"):
        call("--resume", finished, "--width", 0.04, "-j", 0)
    assert call("--resume", finished, "-j", 0) == 0


def test_a_checkpoint_brings_back_all_of_it(tmp_path):
    path = tmp_path / LAST
    description = ModelDescription(3, WIDTH, ())
    state = {"step": np.array(9), "backbone.scale_weight-momentum": np.arange(10, dtype=np.float32)}
    progress = Progress(step=9, epoch=4, best_ap=0.25, steps_per_epoch=2)
    model, other = build_model(description), build_model(description)
    save_checkpoint(path, model, description, state, progress)
    loaded, loaded_progress = load_checkpoint(path, other)
    assert loaded_progress == progress
    assert loaded.keys() == state.keys()
    for name, array in state.items():
        np.testing.assert_array_equal(loaded[name], array)
    for name, array in model_tensors(model).items():
        np.testing.assert_array_equal(array, model_tensors(other)[name])
    assert checkpoint_description(path) == description


def test_weights_alone_are_no_checkpoint(tmp_path):
    path = tmp_path / LAST
    model = build_model(ModelDescription(3, WIDTH, ()))
    save_weights(path, model_tensors(model), ModelDescription(3, WIDTH, ()))
    with pytest.raises(UserError, match=r"last\.safetensors holds weights but no state of training: use --load"):
        load_checkpoint(path, model)
    with pytest.raises(UserError, match="no such file"):
        load_checkpoint(tmp_path / "missing.safetensors", model)


def test_optimizer_state_of_a_run_is_kept(finished):
    tensors, header = read_weights(finished / LAST)
    optimizer = {name for name in tensors if name.startswith("optimizer/")}
    assert header["progress"]["step"] == tensors["optimizer/step"] == STEPS
    assert "optimizer/backbone.scale_weight-momentum" in optimizer
    assert len(optimizer) == len(tensors.keys() - optimizer) + 1
    best = read_weights(finished / BEST)[0]
    assert best.keys() == tensors.keys() - optimizer
