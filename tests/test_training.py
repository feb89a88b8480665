"""Training from the command line: what a run leaves behind, what it prints, and how it takes an interruption."""

import json
import os
import re
import shutil
import signal
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from small_data import WIDTH, run, shapes_folder, start

from ssd300_vgg16 import train
from ssd300_vgg16.errors import UserError
from ssd300_vgg16.metrics.coco_ap import STATISTICS
from ssd300_vgg16.training.run_folder import BEST, LAST, read_metrics
from ssd300_vgg16.weights import load_model, model_tensors

EPOCHS, STEPS = 2, 3
SETTINGS = ("--preset", "narrow", "--width", WIDTH, "-b", 4, "-j", 1, "--print-freq", 2, "--device", "cpu")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with generated shapes in it, to run commands in."""
    folder = tmp_path_factory.mktemp("training")
    shapes_folder(folder, 12, 3)
    return folder


@pytest.fixture(scope="module")
def trained(place):
    """The finished process of a training, and its run's folder."""
    arguments = ("--data-path", "shapes", "--epochs", EPOCHS, "--output-dir", "my run", *SETTINGS)
    return run("train", *arguments, folder=place), place / "my run"


def test_a_training_says_where_everything_is(trained):
    process, _ = trained
    assert process.returncode == 0, process.stderr
    assert process.stderr == ""
    lines = process.stdout.splitlines()
    assert lines[0] == "Run folder: my run. Device: cpu. 12 images with objects, 2 epochs, batch 4, lr 0.001, seed 0."
    assert lines[-2:] == [
        "Curves, metrics and weights are in my run. See it detect:",
        "  bash infer.sh --weights 'my run'",
    ]


def test_a_training_reports_its_progress(trained):
    reports = [line for line in trained[0].stdout.splitlines() if " step " in line]
    number = r"\d+\.\d+"
    expected = re.compile(
        rf"epoch \d/2 step \d/3: loss {number} \(localization {number}, classification {number}\), "
        rf"lr \d\.\d\de-\d\d, {number} images/s, \d+:\d\d left"
    )
    assert len(reports) == 4
    assert all(expected.fullmatch(line) for line in reports)
    assert [line.split(":")[0] for line in reports] == [
        f"epoch {epoch}/2 step {step}/3" for epoch in (1, 2) for step in (2, 3)
    ]


def test_a_training_ends_with_cocos_table(trained):
    process, folder = trained
    numbers = json.loads((folder / "coco_metrics.json").read_text())
    for name, iou, area, most in STATISTICS:
        assert re.search(rf"^{name} +{iou} +{area} +{most} +{numbers[name]:.3f}$", process.stdout, re.MULTILINE)
    for name, values in numbers["per_class"].items():
        assert re.search(
            rf"^{name} +{values['objects']} +{values['AP']:.3f} +{values['AP50']:.3f}$", process.stdout, re.M
        )
    assert set(numbers["per_class"]) == {"circle", "square", "triangle", "star", "ring"}


def test_a_run_leaves_its_files(trained):
    folder = trained[1]
    assert sorted(path.name for path in folder.iterdir()) == [
        "best.safetensors",
        "coco_metrics.json",
        "curves.png",
        "environment.json",
        "last.safetensors",
        "metrics.jsonl",
        "options.json",
    ]
    assert cv2.imread(str(folder / "curves.png")).shape == (400, 1200, 3)
    for name in (BEST, LAST):
        _, description = load_model(folder / name)
        assert (description.num_classes, description.width) == (6, WIDTH)
        assert [category.name for category in description.categories][:2] == ["circle", "square"]


def test_options_and_environment_of_a_run_are_kept(trained, place):
    options = json.loads((trained[1] / "options.json").read_text())
    assert (options["width"], options["batch_size"], options["optimizer"], options["lr"]) == (WIDTH, 4, "adamw", 1e-3)
    assert options["val_images_folder"] == str(place / "shapes" / "val")
    assert "--output-dir 'my run'" in options["command"]
    environment = json.loads((trained[1] / "environment.json").read_text())
    assert {"python", "oneflow", "cpu", "blas", "gpus", "git_commit"} <= environment.keys()
    counts = environment["data"]["counts"]
    assert (counts["train"]["images"], counts["val"]["images"]) == (12, 3)


def test_metrics_hold_every_reading(trained):
    rows = read_metrics(trained[1])
    training = [row for row in rows if row["kind"] == "training"]
    evaluations = [row for row in rows if row["kind"] == "evaluation"]
    assert [row["step"] for row in training] == [2, 3, 5, 6]
    assert [(row["step"], row["epoch"]) for row in evaluations] == [(3, 1), (6, 2)]
    for row in training:
        assert {"localization", "classification", "lr", "images_per_second", "seconds_left"} <= row.keys()
    for row in evaluations:
        assert {name for name, *_ in STATISTICS} <= row.keys()
    assert training[-1]["lr"] == pytest.approx(1e-3), "the warm-up is shortened to the length of the run"


def test_a_folder_with_a_run_is_refused(trained, place):
    arguments = ["--data-path", str(place / "shapes"), "--output-dir", str(trained[1]), *map(str, SETTINGS)]
    with pytest.raises(UserError, match="already holds a run"):
        train.main(arguments)


@pytest.mark.parametrize("option", ["--load", "--resume"])
def test_test_only_gives_the_numbers_of_the_training(trained, place, tmp_path, capsys, option):
    folder = shutil.copytree(trained[1], tmp_path / "run")
    expected = json.loads((folder / "coco_metrics.json").read_text())
    (folder / "coco_metrics.json").unlink()
    # The numbers at the end of a training are those of its last weights, not of its best.
    arguments = ["--test-only", option, str(folder / LAST), "--data-path", str(place / "shapes"), "-j", "0"]
    assert train.main([*arguments, "--device", "cpu"]) == 0
    assert json.loads((folder / "coco_metrics.json").read_text()) == expected
    assert "class     objects      AP    AP50" in capsys.readouterr().out


def test_load_starts_from_the_weights_of_a_run(trained, place, tmp_path):
    """With a learning rate of next to nothing, they stay."""
    shapes = place / "shapes"
    few = ["--train-annotations", shapes / "annotations" / "instances_val.json", "--train-images", shapes / "val"]
    settings = [*SETTINGS, "-b", 3, "-j", 0, "--epochs", 1, "--optimizer", "sgd", "--lr", 1e-30]
    arguments = ["--load", trained[1], "--data-path", shapes, "--output-dir", tmp_path / "new", *few, *settings]
    assert train.main([str(argument) for argument in arguments]) == 0
    before, after = (model_tensors(load_model(folder / BEST)[0]) for folder in (trained[1], tmp_path / "new"))
    for name, array in before.items():
        np.testing.assert_allclose(after[name], array, atol=1e-25)


def test_weights_that_do_not_fit_do_not_use_up_the_folder(trained, place, tmp_path):
    for _ in range(2):
        arguments = ["--load", trained[1] / LAST, "--data-path", place / "shapes", "--output-dir", tmp_path / "new"]
        with pytest.raises(UserError, match=r"last\.safetensors does not fit this network"):
            train.main([str(argument) for argument in (*arguments, "--width", 0.05, "-j", 0, "--device", "cpu")])


def test_too_few_classes_are_refused(place):
    with pytest.raises(UserError, match=r"--num_classes 5: .*instances_train\.json needs at least 6"):
        train.main(["--data-path", str(place / "shapes"), "--num_classes", "5", "--device", "cpu"])


def test_data_that_is_not_there_is_named(tmp_path):
    with pytest.raises(UserError, match="no train annotations: looked for"):
        train.main(["--data-path", str(tmp_path), "--device", "cpu"])
    assert list(tmp_path.iterdir()) == []


def test_images_that_cannot_be_read_are_named_and_do_not_stop_a_training(tmp_path, capsys):
    data = shapes_folder(tmp_path, 3, 2)
    broken = [data / "train" / "000002.jpg", data / "val" / "000001.jpg"]
    for path in broken:
        path.write_bytes(b"no image")
    arguments = ["--data-path", data, "--output-dir", tmp_path / "run", *SETTINGS, "-j", 0, "-b", 3, "--epochs", 1]
    assert train.main([str(argument) for argument in arguments]) == 0
    output = capsys.readouterr().out
    assert f"skipped: {broken[0]}: not an image" in output
    assert f"left out: {broken[1]}: not an image" in output
    with pytest.raises(UserError, match=r"(000002|000001)\.jpg: not an image"):
        train.main([str(a) for a in (*arguments, "--output-dir", tmp_path / "strict", "--strict-data")])


@pytest.fixture
def endless(place, tmp_path):
    """A training that has reported its first steps, and its run's folder; it has a process group of its own."""
    arguments = ("--data-path", place / "shapes", "--epochs", 999, "--output-dir", tmp_path / "run", *SETTINGS)
    process = start("train", *arguments, folder=tmp_path, start_new_session=True)
    for line in process.stdout:
        if " step " in line:
            break
    yield process, tmp_path / "run"
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def wait_until_gone(group):
    """Fails when processes of the group are left after a while."""
    for _ in range(1000):
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return
        time.sleep(0.01)
    pytest.fail("processes are left")


@pytest.mark.parametrize("impatient", [False, True])
def test_ctrl_c_keeps_what_was_learned(endless, impatient):
    process, folder = endless
    os.killpg(process.pid, signal.SIGINT)
    if impatient:
        os.killpg(process.pid, signal.SIGINT)
        for line in process.stdout:
            if "--resume" in line:
                process.send_signal(signal.SIGINT)
                break
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 130
    assert errors == "train.sh: interrupted\n"
    if not impatient:
        stopped, command = output.splitlines()[-2:]
        assert re.fullmatch(r"Stopped after step \d+\. Go on with:", stopped)
        assert command == f"  bash train.sh --resume {folder}"
        assert load_model(folder / LAST)[1].width == WIDTH
        assert int(stopped.split()[3].rstrip(".")) >= read_metrics(folder)[-1]["step"] > 0
    wait_until_gone(process.pid)
    assert not list(folder.glob(".*"))


def test_a_killed_worker_stops_the_training_with_a_word(endless):
    process, _ = endless
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    (worker,) = [pid for pid in children if b"multiprocessing-fork" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    os.kill(int(worker), signal.SIGKILL)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 2
    assert errors.startswith("train.sh: a data loading process died") and "-j 1" in errors
    wait_until_gone(process.pid)
