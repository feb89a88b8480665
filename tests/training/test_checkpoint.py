"""Checkpoints: a run that is stopped and goes on ends with the very weights of one that was not."""

import errno
import json
import os
import shutil
import signal
from dataclasses import asdict
from types import SimpleNamespace

import numpy as np
import pytest
from full_disk import full_disk
from safetensors.numpy import load_file
from small_data import WIDTH, metrics_without_times, shapes_folder

from ssd300_vgg16 import train
from ssd300_vgg16.errors import Stopped, UserError
from ssd300_vgg16.training import assembly, checkpoint, trainer
from ssd300_vgg16.training.checkpoint import (
    Checkpoint,
    Progress,
    go_back_to,
    load_checkpoint,
    newest_checkpoint,
    save_checkpoint,
)
from ssd300_vgg16.training.run_folder import read_metrics
from ssd300_vgg16.training.step import _slots
from ssd300_vgg16.weights.locate import BEST, LAST
from ssd300_vgg16.weights.model import build_model, model_tensors
from ssd300_vgg16.weights.safetensors_file import ModelDescription, read_weights, save_weights

EPOCHS, STEPS = 2, 4  # of four images, one at a time; reports after the third and the fourth
SCHEDULES = {
    "adamw": ("--preset", "narrow", "--data-augmentation", "ssd", "--ema", 0.9, "--clip-norm", 1000),
    "sgd": ("--lr-steps", 1, "--warmup-steps", 1, "--lr", 1e-4, "--data-augmentation", "none"),
}
DESCRIPTION = ModelDescription(3, WIDTH, ())
long = pytest.mark.long


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return shapes_folder(tmp_path_factory.mktemp("checkpoint"), STEPS, 1)


def train_run(folder, data, *options):
    settings = ("--width", WIDTH, "-b", 1, "-j", 0, "--print-freq", 3, "--device", "cpu")
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
    """A run of one epoch; its two checkpoints are of the steps 3 and 4."""
    folder = tmp_path_factory.mktemp("one-epoch") / "run"
    train_run(folder, data, "--epochs", 1, "--save-every", 3, *SCHEDULES["sgd"])
    return folder


@pytest.fixture
def finished(one_epoch, tmp_path):
    """A copy of it, whose last checkpoint is a name of the other one too."""
    folder = shutil.copytree(one_epoch, tmp_path / "finished")
    (folder / LAST).unlink()
    (folder / LAST).hardlink_to(step_file(folder, STEPS))
    return folder


def step_file(folder, step):
    return folder / f"step-{step:09d}.safetensors"


def stop_after(steps, monkeypatch, signal_number=signal.SIGTERM):
    """A signal to this process when that many training steps have been done."""
    left, real = iter(range(steps)), trainer.training_batches

    def batches(*arguments):
        for batch in real(*arguments):
            if next(left, None) is None:
                os.kill(os.getpid(), signal_number)
            yield batch

    monkeypatch.setattr(trainer, "training_batches", batches)


def stop_in_evaluation(number, monkeypatch):
    """A signal in that evaluation, counted from 1."""
    left, real = iter(range(number - 1)), assembly.evaluate

    def evaluate(*arguments):
        if next(left, None) is None:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(*arguments)

    monkeypatch.setattr(assembly, "evaluate", evaluate)


def assert_same_tensors(folder, other):
    for name in (LAST, BEST):
        tensors, others = load_file(folder / name), load_file(other / name)
        assert tensors.keys() == others.keys()
        for key, array in tensors.items():
            np.testing.assert_array_equal(array, others[key], err_msg=f"{name}: {key}")


@pytest.mark.parametrize(
    ("schedule", "stop", "when", "steps_done"),
    [
        pytest.param("adamw", stop_after, 0, 0, id="before the first step"),
        pytest.param("adamw", stop_after, 2, 2, id="in the middle of a report"),
        pytest.param("sgd", stop_after, 2, 2, id="in the middle of a report, with SGD"),
        pytest.param("adamw", stop_after, 3, 3, id="between two reports"),
        pytest.param("adamw", stop_after, STEPS, STEPS, id="between two epochs"),
        pytest.param("sgd", stop_after, STEPS + 1, STEPS + 1, id="in the second epoch, with SGD", marks=long),
        pytest.param("adamw", stop_in_evaluation, 1, STEPS, id="in an evaluation"),
        pytest.param("sgd", stop_in_evaluation, 2, 2 * STEPS, id="in the last evaluation, with SGD", marks=long),
    ],
)
def test_a_run_that_goes_on_ends_like_one_never_stopped(
    uninterrupted, data, tmp_path, monkeypatch, capsys, schedule, stop, when, steps_done
):
    expected, folder = uninterrupted / schedule, tmp_path / "a run"
    with monkeypatch.context() as patch:
        stop(when, patch)
        with pytest.raises(Stopped) as caught:
            train_run(folder, data, "--epochs", EPOCHS, *SCHEDULES[schedule])
    assert caught.value.signal_number == signal.SIGTERM
    assert (
        f"Stopped after step {steps_done}. Go on with:\n  bash train.sh --resume '{folder}'" in capsys.readouterr().out
    )
    assert read_weights(folder / LAST)[1]["progress"]["step"] == steps_done
    assert call("--resume", folder, "-j", 0) == 0
    assert ("Going on after step" in capsys.readouterr().out) == (steps_done > 0)
    assert_same_tensors(folder, expected)
    assert metrics_without_times(folder) == metrics_without_times(expected)


def test_what_a_checkpoint_does_not_know_of_is_done_again(uninterrupted, data, tmp_path, monkeypatch):
    """Here the process died after the fifth step; its checkpoint is of the second."""
    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(trainer.Trainer, "_agree", dies_after_a_step(5))
        with pytest.raises(ZeroDivisionError):
            train_run(folder, data, "--epochs", EPOCHS, "--save-every", 2, *SCHEDULES["sgd"])
    assert [row["step"] for row in read_metrics(folder) if row["kind"] == "training"] == [3, 4]
    # The end of the epoch wrote checkpoints too.
    for lost in (LAST, step_file(folder, 4).name):
        (folder / lost).unlink()
    assert call("--resume", folder, "-j", 0) == 0
    assert_same_tensors(folder, uninterrupted / "sgd")
    assert metrics_without_times(folder) == metrics_without_times(uninterrupted / "sgd")


def dies_after_a_step(step):
    real = trainer.Trainer._agree

    def agree(self, *arguments):
        if self.progress.step == step:
            raise ZeroDivisionError
        return real(self, *arguments)

    return agree


def test_the_average_is_what_is_evaluated_and_kept_as_best(uninterrupted):
    tensors = load_file(uninterrupted / "adamw" / LAST)
    averages = {name.removeprefix("average/"): tensors[name] for name in tensors if name.startswith("average/")}
    assert averages.keys() == {name for name in tensors if not name.startswith(("average/", "optimizer/"))}
    assert any((averages[name] != tensors[name]).any() for name in averages)
    best, header = read_weights(uninterrupted / "adamw" / BEST)
    assert best.keys() == averages.keys()
    assert header["step"] in (STEPS, 2 * STEPS)
    if header["step"] == 2 * STEPS:
        for name, array in best.items():
            np.testing.assert_array_equal(array, averages[name])


def test_more_epochs_later_are_as_good_as_at_once(uninterrupted, finished, capsys):
    """With a schedule that does not depend on the end, as a cosine does."""
    assert call("--resume", finished / LAST, "--epochs", EPOCHS, "-j", 0) == 0
    assert "Going on with --epochs 2 instead of 1." in capsys.readouterr().out
    assert_same_tensors(finished, uninterrupted / "sgd")
    assert metrics_without_times(finished) == metrics_without_times(uninterrupted / "sgd")


def test_options_given_to_resume_hold_for_the_next_one_too(finished, monkeypatch):
    with monkeypatch.context() as patch:
        stop_after(1, patch)
        with pytest.raises(Stopped):
            call("--resume", finished, "--epochs", 2, "--lr", 3e-5, "-j", 0)
    call("--resume", finished, "-j", 0)
    assert [row["step"] for row in read_metrics(finished) if row["kind"] == "evaluation"] == [STEPS, 2 * STEPS]
    rates = [row["lr"] for row in read_metrics(finished) if row["kind"] == "training"]
    assert rates == pytest.approx([1e-4, 1e-4, 3e-6, 3e-6], rel=1e-12)


def test_a_run_without_a_checkpoint_starts_from_the_beginning(uninterrupted, data, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(trainer.Trainer, "_agree", dies_after_a_step(3))
        with pytest.raises(ZeroDivisionError):
            train_run(folder, data, "--epochs", EPOCHS, *SCHEDULES["sgd"])
    for path in folder.glob("*.safetensors"):
        path.unlink()
    assert len(read_metrics(folder)) == 1
    assert call("--resume", folder, "-j", 0) == 0
    assert f"{folder} has no checkpoint yet: starting it from the beginning." in capsys.readouterr().out
    assert_same_tensors(folder, uninterrupted / "sgd")
    assert metrics_without_times(folder) == metrics_without_times(uninterrupted / "sgd")


def test_how_a_step_is_computed_may_change_within_a_report(data, tmp_path, monkeypatch):
    """Several compiled passes do not tell the gradient's norm."""
    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        stop_after(1, patch)
        with pytest.raises(Stopped):
            train_run(folder, data, "-b", 2, "--epochs", 1, *SCHEDULES["sgd"])
    assert call("--resume", folder, "-j", 0, "--no-eager", "--accumulate", 2) == 0
    (row,) = [row for row in read_metrics(folder) if row["kind"] == "training"]
    assert row["step"] == 2 and "gradient_norm" not in row


def damage(path, kind):
    content = bytearray(path.read_bytes())
    if kind == "cut off":
        content = content[: len(content) // 2]
    elif kind == "one bit":
        content[-1000] ^= 16
    else:
        content = bytes(len(content))
    path.write_bytes(content)


def test_a_damaged_checkpoint_is_made_up_for_by_the_one_before(uninterrupted, finished, capsys):
    best = load_file(finished / BEST)
    damage(finished / LAST, "one bit")
    assert call("--resume", finished, "-j", 0) == 0
    output = capsys.readouterr().out
    assert f"{finished / LAST}: damaged (its checksum is another than when it was written)" in output
    assert f"going on from {step_file(finished, 3).name}, the one before." in output
    assert "Going on after step 3." in output
    assert metrics_without_times(finished) == metrics_without_times(uninterrupted / "sgd")[:3]
    for name, array in best.items():
        np.testing.assert_array_equal(load_file(finished / LAST)[name], array)
    damage(finished / LAST, "one bit")
    with pytest.raises(UserError, match=r"last\.safetensors: damaged"):
        call("--resume", finished / LAST, "-j", 0)


def test_a_disk_that_is_full_ends_a_run_which_can_go_on(uninterrupted, data, tmp_path, monkeypatch):
    folder, real = tmp_path / "run", save_weights

    def save(path, *arguments):
        with monkeypatch.context() as patch:
            if path == step_file(folder, 4):
                patch.setattr("ssd300_vgg16.files.os.fsync", fails_with(errno.ENOSPC))
            real(path, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save_weights", save)
        with pytest.raises(
            UserError, match=r"step-000000004\.safetensors could not be written \(No space left on device"
        ):
            train_run(folder, data, "--epochs", EPOCHS, "--save-every", 2, *SCHEDULES["sgd"])
    assert load_checkpoint(folder / LAST).progress.step == 2
    assert call("--resume", folder, "-j", 0) == 0
    assert_same_tensors(folder, uninterrupted / "sgd")
    assert metrics_without_times(folder) == metrics_without_times(uninterrupted / "sgd")


def with_one_more(data, folder, what):
    """A copy of the data with one more object, or one more image with an object, in the training set."""
    copy = shutil.copytree(data, folder / "other")
    path = copy / "annotations" / "instances_train.json"
    content = json.loads(path.read_text())
    annotation = content["annotations"][0] | {"id": 999, "bbox": [1, 2, 30, 40], "area": 1200}
    if what == "image":
        image = content["images"][0] | {"id": 999, "file_name": "999.jpg"}
        shutil.copy(copy / "train" / content["images"][0]["file_name"], copy / "train" / "999.jpg")
        content["images"].append(image)
        annotation["image_id"] = 999
    content["annotations"].append(annotation)
    path.write_text(json.dumps(content))
    return copy


@pytest.mark.parametrize("what", ["object", "image"])
def test_other_data_is_refused(finished, data, tmp_path, what):
    before = (finished / "options.json").read_bytes()
    objects = len(json.loads((data / "annotations" / "instances_train.json").read_text())["annotations"])
    with pytest.raises(UserError) as caught:
        call("--resume", finished, "--data-path", with_one_more(data, tmp_path, what), "--epochs", 2, "-j", 0)
    message = str(caught.value)
    assert f"the training data differs. The run had {STEPS} images with {objects} objects" in message
    assert f"now there are {STEPS + (what == 'image')} with {objects + 1}" in message
    assert f"--load {finished / LAST}" in message
    assert (finished / "options.json").read_bytes() == before


def test_the_same_data_elsewhere_is_taken(finished, data, tmp_path, capsys):
    elsewhere = shutil.copytree(data, tmp_path / "elsewhere")
    assert call("--resume", finished, "--data-path", elsewhere, "-j", 0) == 0
    assert f"Going on with --data-path {elsewhere} instead of {data}." in capsys.readouterr().out


def small(step, **progress):
    """A checkpoint of a single tensor."""
    weights = np.random.default_rng(step).standard_normal(5000, dtype=np.float32)
    return Checkpoint({"weights": weights}, {"step": np.array(step)}, {}, Progress(step=step, **progress))


def newest_step(folder):
    """The step of the newest checkpoint, which has to be whole."""
    _, newest, problems = newest_checkpoint(folder)
    assert problems == []
    return newest.progress.step


def fails_with(number):
    def fail(*_, **__):
        raise OSError(number, os.strerror(number))

    return fail


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_checkpoint_brings_back_all_of_it(tmp_path):
    progress = Progress(9, 4, 0.25, {"names": ["a"], "values": [[1 / 3], [1e30]]}, 123, {"images": 7, "sha256": "ab"})
    weights = model_tensors(build_model(DESCRIPTION))
    momentum = {"step": np.array(9), "backbone.scale_weight-momentum": np.arange(10, dtype=np.float32)}
    save_checkpoint(
        tmp_path, Checkpoint(weights, momentum, {"average": weights["backbone.scale_weight"]}, progress), DESCRIPTION, 2
    )
    loaded = load_checkpoint(tmp_path / LAST)
    assert loaded.progress == progress
    for part, expected in ((loaded.model, weights), (loaded.optimizer, momentum), (loaded.average, ["average"])):
        assert part.keys() == set(expected)
    for name, array in (weights | momentum).items():
        np.testing.assert_array_equal({**loaded.model, **loaded.optimizer}[name], array)
    np.testing.assert_array_equal(loaded.average["average"], weights["backbone.scale_weight"])


@pytest.mark.parametrize("part", ["model", "optimizer", "average"])
def test_a_training_does_not_go_on_from_nan(tmp_path, part):
    for step, number in ((1, 0.0), (2, np.nan)):
        tensors = {"w": np.array([1.0, number], dtype=np.float32)}
        parts = {"model": {"w": np.ones(1)}, "optimizer": {}, "average": {}} | {part: tensors}
        save_checkpoint(tmp_path, Checkpoint(**parts, progress=Progress(step)), DESCRIPTION, 2)
    path, _, problems = newest_checkpoint(tmp_path)
    assert path == step_file(tmp_path, 1)
    assert "w' holds NaN or infinity" in problems[0] and str(tmp_path / LAST) in problems[0]


@pytest.mark.parametrize(
    "changes", [{"step": -1}, {"step": "9"}, {"metrics_length": -5}, {"best_ap": None}, {"new": 1}]
)
def test_a_progress_that_cannot_be_is_refused(tmp_path, changes):
    extra = {"progress": asdict(Progress(9)) | changes}
    save_weights(tmp_path / LAST, {"w": np.ones(1)}, DESCRIPTION, extra)
    with pytest.raises(UserError, match=r"last\.safetensors: a checkpoint of another version"):
        load_checkpoint(tmp_path / LAST)


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_the_last_few_are_kept(tmp_path, keep):
    for step in (2, 10, 11, 1000):
        save_checkpoint(tmp_path, small(step), DESCRIPTION, keep)
        assert load_checkpoint(tmp_path / LAST).progress.step == step
    assert names(tmp_path) == [LAST, *(step_file(tmp_path, step).name for step in (2, 10, 11, 1000)[-keep:])]
    assert (tmp_path / LAST).samefile(step_file(tmp_path, 1000))


@pytest.mark.parametrize("name", ["step-mine.safetensors", "step-9.safetensors", "step-000000009-good.safetensors"])
def test_a_users_own_file_is_neither_removed_nor_gone_on_from(tmp_path, name):
    own = tmp_path / name
    save_checkpoint(tmp_path, small(9), DESCRIPTION, 1)
    step_file(tmp_path, 9).rename(own)
    for step in (1, 2, 3):
        save_checkpoint(tmp_path, small(step), DESCRIPTION, 1)
    assert names(tmp_path) == sorted([LAST, own.name, step_file(tmp_path, 3).name])
    go_back_to(own)
    (tmp_path / LAST).unlink()
    assert newest_checkpoint(tmp_path)[0] == step_file(tmp_path, 3)


def test_the_same_step_is_written_again(tmp_path):
    for best_ap in (0.1, 0.2):
        save_checkpoint(tmp_path, small(3, best_ap=best_ap), DESCRIPTION, 2)
    assert load_checkpoint(tmp_path / LAST).progress.best_ap == 0.2
    assert names(tmp_path) == [LAST, step_file(tmp_path, 3).name]


def test_a_disk_without_hard_links_will_do(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "link", fails_with(errno.EPERM))
    for step in (1, 2, 3):
        save_checkpoint(tmp_path, small(step), DESCRIPTION, 2)
        path, loaded, problems = newest_checkpoint(tmp_path)
        assert (path, loaded.progress.step, problems) == (tmp_path / LAST, step, [])
    assert names(tmp_path) == [LAST, step_file(tmp_path, 2).name, step_file(tmp_path, 3).name]


@pytest.mark.parametrize("kind", ["cut off", "one bit", "zeros"])
def test_the_newest_whole_one_is_found(tmp_path, kind):
    for step in (1, 2, 3):
        save_checkpoint(tmp_path, small(step), DESCRIPTION, 3)
    assert newest_step(tmp_path) == 3
    for step, left in ((3, 2), (2, 1)):
        damage(step_file(tmp_path, step), kind)
        path, loaded, problems = newest_checkpoint(tmp_path)
        assert (path, loaded.progress.step, len(problems)) == (step_file(tmp_path, left), left, 4 - step)
    damage(step_file(tmp_path, 1), kind)
    with pytest.raises(UserError, match="no checkpoint to go on from: ") as caught:
        newest_checkpoint(tmp_path)
    for name in (LAST, step_file(tmp_path, 2).name, step_file(tmp_path, 1).name):
        assert str(caught.value).count(f"{tmp_path / name}: ") == 1
    for name in names(tmp_path):
        (tmp_path / name).unlink()
    assert newest_checkpoint(tmp_path) is None


def test_no_damaged_byte_changes_anything_unnoticed(tmp_path):
    """Neither in the header, which says how far the run has come, nor in the tensors."""
    path = tmp_path / LAST
    tiny = Checkpoint({"weights": np.zeros(3, dtype=np.float32)}, {}, {}, Progress(12, 3, 0.5))
    save_checkpoint(tmp_path, tiny, DESCRIPTION, 1)
    content, unnoticed = path.read_bytes(), []
    for position in range(len(content)):
        damaged = bytearray(content)
        damaged[position] ^= 1
        path.write_bytes(damaged)
        try:
            loaded = load_checkpoint(path)
        except UserError:
            continue
        if loaded.progress != tiny.progress or loaded.model["weights"].any():
            unnoticed.append((position, content[position - 10 : position + 10]))
    assert unnoticed == []


def test_what_a_longer_run_has_left_goes_with_the_next_checkpoint(tmp_path):
    for step in (1, 2, 5, 6):
        save_checkpoint(tmp_path, small(step), DESCRIPTION, 4)
    for step in (5, 6):
        damage(step_file(tmp_path, step), "cut off")
    assert newest_checkpoint(tmp_path)[1].progress.step == 2
    save_checkpoint(tmp_path, small(3), DESCRIPTION, 2)
    assert names(tmp_path) == [LAST, step_file(tmp_path, 2).name, step_file(tmp_path, 3).name]
    assert newest_step(tmp_path) == 3


def test_a_run_goes_back_to_an_earlier_checkpoint_for_good(tmp_path):
    for step in (1, 2, 3):
        save_checkpoint(tmp_path, small(step), DESCRIPTION, 4)
    go_back_to(tmp_path / LAST)
    assert load_checkpoint(tmp_path / LAST).progress.step == 3, "the last one is no earlier one"
    go_back_to(step_file(tmp_path, 2))
    assert names(tmp_path) == [LAST, step_file(tmp_path, 1).name, step_file(tmp_path, 2).name]
    assert load_checkpoint(tmp_path / LAST).progress.step == 2


def test_a_disk_that_is_full_leaves_the_former_whole(tmp_path):
    """Here it is full after 8 KB of a file of 20."""
    save_checkpoint(tmp_path, small(1), DESCRIPTION, 2)
    before = {name: (tmp_path / name).read_bytes() for name in names(tmp_path)}
    refusal = r"step-000000002\.safetensors could not be written \(File too large\)"
    with full_disk(at=8192), pytest.raises(UserError, match=refusal):
        save_checkpoint(tmp_path, small(2), DESCRIPTION, 2)
    assert {name: (tmp_path / name).read_bytes() for name in names(tmp_path)} == before
    assert newest_step(tmp_path) == 1


def test_a_folder_that_is_gone_is_named(tmp_path):
    (tmp_path / "run").touch()
    with pytest.raises(UserError, match=r"run/step-000000001\.safetensors could not be written \(Not a directory\)"):
        save_checkpoint(tmp_path / "run", small(1), DESCRIPTION, 2)


def test_an_optimizers_state_has_another_name_in_oneflow_1():
    """Of which there is no build for the machines that test this."""
    state = {"step": 3}
    assert _slots(SimpleNamespace(_state=state)) is state
    assert _slots(SimpleNamespace(state=state)) is state


@pytest.mark.parametrize(
    ("extra", "problem"),
    [
        ({}, r"last\.safetensors holds weights but no state of training: use --load"),
        (
            {"progress": {"step": 1, "steps_per_epoch": 7}},
            r"last\.safetensors: a checkpoint of another version",
        ),
    ],
)
def test_other_files_are_no_checkpoints(tmp_path, extra, problem):
    save_weights(tmp_path / LAST, small(1).model, DESCRIPTION, extra)
    with pytest.raises(UserError, match=problem):
        load_checkpoint(tmp_path / LAST)
