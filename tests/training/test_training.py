"""Training from the command line: what a run leaves behind, what it prints, and how it takes an interruption."""

import json
import os
import re
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file
from small_data import WIDTH, emptied, metrics_without_times, run, shapes, shapes_folder, start

from ssd300_vgg16 import train
from ssd300_vgg16.errors import UserError
from ssd300_vgg16.metrics.coco_ap import STATISTICS
from ssd300_vgg16.training.run_folder import read_metrics
from ssd300_vgg16.weights.locate import BEST, LAST
from ssd300_vgg16.weights.model import load_model
from ssd300_vgg16.weights.safetensors_file import read_weights

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
    assert lines[1] == "The warm-up takes 5 of the training's 6 steps: --warmup-steps 100 is too long for it."
    assert lines[-3].startswith("Curves and weights are in my run. ")
    assert lines[-2:] == [
        "  bash infer.sh --weights 'my run'",
        "  bash eval.sh --weights 'my run'",
    ]


def test_a_training_makes_one_folder_of_its_own_and_names_it(place, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    train.main(["--data-path", str(place / "shapes"), "--iterations", "1", *map(str, SETTINGS), "-j", "0"])
    (folder,) = (tmp_path / "runs").iterdir()
    output = capsys.readouterr().out
    assert output.startswith(f"Run folder: runs/{folder.name}. ")
    assert f"bash infer.sh --weights runs/{folder.name}\n" in output
    assert (folder / LAST).exists()


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


def test_a_training_ends_with_three_numbers_and_what_they_mean(trained):
    process, folder = trained
    numbers = json.loads((folder / "coco_metrics.json").read_text())
    assert "\nOn 3 images that it was not trained on:\n" in process.stdout
    for name in ("AP50", "AP", "AR_100"):
        assert re.search(rf"^  {name} +{numbers[name]:.3f}  \w", process.stdout, re.MULTILINE)
    assert all(name in numbers for name, *_ in STATISTICS)
    assert set(numbers["per_class"]) == {"circle", "square", "triangle", "star", "ring"}


def test_a_run_leaves_its_files(trained):
    folder = trained[1]
    (events,) = folder.glob("events.out.tfevents.*")
    pages = {"run.html", "run_page.json"}
    figures = {"coco_metrics.json", "environment.json", "metrics.jsonl", "options.json", events.name}
    checkpoints = {BEST, LAST, "step-000000003.safetensors", "step-000000006.safetensors"}
    assert {path.name for path in folder.iterdir()} == pages | figures | checkpoints
    assert (folder / LAST).samefile(folder / "step-000000006.safetensors")
    for name in (BEST, LAST):
        _, description = load_model(folder / name)
        assert (description.num_classes, description.width) == (6, WIDTH)
        assert description.tile_side == 397
        assert [category.name for category in description.categories][:2] == ["circle", "square"]


def test_options_and_environment_of_a_run_are_kept(trained, place):
    options = json.loads((trained[1] / "options.json").read_text())
    assert (options["width"], options["batch_size"], options["optimizer"], options["lr"]) == (WIDTH, 4, "adamw", 1e-3)
    assert options["val_images_folder"] == str(place / "shapes" / "val")
    (begun,) = options["commands"]
    assert begun["step"] == 0
    assert "--output-dir 'my run'" in begun["command"]
    environment = json.loads((trained[1] / "environment.json").read_text())
    assert {"python", "oneflow", "cpu", "blas", "gpus", "git_commit"} <= environment.keys()
    for split, images in (("train", 12), ("val", 3)):
        dataset = shapes(place / "shapes", split)
        name = f"shapes/annotations/instances_{split}.json"
        assert environment["data"][split] == {"name": name, **dataset.fingerprint()}
        assert environment["data"][split]["images"] == images
    assert environment["processes"] == 1


def test_metrics_hold_every_reading(trained):
    rows = read_metrics(trained[1])
    training = [row for row in rows if row["kind"] == "training"]
    evaluations = [row for row in rows if row["kind"] == "evaluation"]
    assert [row["step"] for row in training] == [2, 3, 5, 6]
    assert [(row["step"], row["epoch"]) for row in evaluations] == [(3, 1), (6, 2)]
    for row in training:
        assert row.keys() == {
            *("kind", "step", "localization", "classification", "gradient_norm", "lr"),
            *("images_per_second", "data_wait", "seconds_left", "memory_mb"),
        }
        assert row["gradient_norm"] > 0 and 0 <= row["data_wait"] <= 1 and row["memory_mb"] > 50
    for row in evaluations:
        assert {name for name, *_ in STATISTICS} <= row.keys()
    assert training[-1]["lr"] == pytest.approx(1e-3), "the warm-up is shortened to the length of the run"


@pytest.mark.long
def test_images_without_objects_are_trained_on_and_a_resumed_run_draws_the_same(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    emptied(shapes_folder(tmp_path, 9, 1), 3)
    given = [*map(str, SETTINGS), "--data-path", "shapes", "-j", "0", "--lr-scheduler", "multistep", "-b", "2"]
    given += ["--warmup-steps", "0"]

    def trained(folder, *arguments):
        assert train.main([*arguments, "--output-dir", folder, *given]) == 0
        return load_file(f"{folder}/{LAST}")

    whole = trained("whole", "--epochs", "2", "--background-images", "0.34")
    said = "6 images with objects, 3 images without objects, 2 of them trained on in an epoch, 2 epochs, "
    assert said in capsys.readouterr().out
    assert json.loads(Path("whole/options.json").read_text())["background_images"] == 0.34
    trained("parts", "--epochs", "1", "--background-images", "0.34")
    assert train.main(["--resume", "parts", "--epochs", "2", "-j", "0"]) == 0
    parts, without = load_file(f"parts/{LAST}"), trained("without", "--iterations", "8")
    for name, array in whole.items():
        np.testing.assert_array_equal(parts[name], array, err_msg=name)
    assert any((without[name] != array).any() for name, array in whole.items() if not name.startswith("optimizer/"))


@pytest.mark.long
def test_a_training_on_tiles_is_evaluated_on_them_and_goes_on_with_them(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    shapes_folder(tmp_path, 3, 1)
    given = [*map(str, SETTINGS), "--data-path", "shapes", "-j", "0", "--warmup-steps", "0", "--tiles", "240"]
    assert train.main([*given, "--lr-scheduler", "multistep", "--epochs", "2", "--output-dir", "whole"]) == 0
    output = capsys.readouterr().out
    assert " tiles of 240 pixels and whole images with objects" in output
    assert output.endswith("  bash eval.sh --weights whole --tiles 240\n")
    assert train.main([*given, "--lr-scheduler", "multistep", "--epochs", "1", "--output-dir", "parts"]) == 0
    assert train.main(["--resume", "parts", "--epochs", "2", "-j", "0"]) == 0
    whole, parts = (load_file(f"{folder}/{LAST}") for folder in ("whole", "parts"))
    for name, array in whole.items():
        np.testing.assert_array_equal(parts[name], array, err_msg=name)
    numbers = Path("whole/coco_metrics.json").read_text()
    assert numbers == Path("parts/coco_metrics.json").read_text()
    again = ["--test-only", "--load", f"whole/{LAST}", "--data-path", "shapes", "-j", "0", "--device", "cpu"]
    assert train.main([*again, "--tiles", "240"]) == 0 and Path("whole/coco_metrics.json").read_text() == numbers
    assert train.main(again) == 0 and Path("whole/coco_metrics.json").read_text() != numbers


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


@pytest.mark.parametrize(
    ("folder", "classes", "problem"),
    [
        ("shapes", 5, r"--num_classes 5: .*instances_train\.json needs at least 6"),
        ("empty", 9, "no COCO-style, VOC or YOLO data set found: looked for"),
    ],
)
def test_data_that_does_not_do_is_named(place, tmp_path, monkeypatch, folder, classes, problem):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "shapes").symlink_to(place / "shapes")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=problem):
        train.main(["--data-path", folder, "--num_classes", str(classes), "--device", "cpu"])
    assert {path.name for path in tmp_path.iterdir()} == {"shapes", "empty"}, "nothing was written"


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


def test_images_that_vanish_stop_a_training_before_steps_without_them(trained, place, tmp_path):
    shutil.copytree(place, tmp_path, dirs_exist_ok=True)
    for image in sorted((tmp_path / "shapes" / "train").iterdir())[1:]:
        image.write_bytes(b"")
    process = run("train", "--resume", "my run", "--data-path", "shapes", "--epochs", EPOCHS + 2, folder=tmp_path)
    assert process.returncode == 2
    done = EPOCHS * STEPS
    assert re.search(
        r"train\.sh: (4 of the last 4|[4-8] of the last 8) training images cannot be read: .* "
        rf"that of step {done}, from before\n",
        process.stderr,
    )
    assert process.stdout.endswith("Go on with:\n  bash train.sh --resume 'my run'\n")
    _, header = read_weights(tmp_path / "my run" / LAST)
    assert header["progress"]["step"] == done
    assert "Traceback" not in process.stderr


@pytest.mark.parametrize(
    ("options", "lines"),
    [
        (("-b", 6, "--ema"), ["checkpoints: 2 of "]),
        (("-b", 12, "--keep", 5, "--no-eager"), ["checkpoints: 5 of "]),
    ],
    ids=["eager", "compiled, with one step an epoch"],
)
def test_a_check_measures_and_writes_a_picture_alone(place, tmp_path, monkeypatch, capsys, options, lines):
    monkeypatch.chdir(tmp_path)
    (temporary := tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    arguments = ("--check", "--data-path", place / "shapes", "--output-dir", "run", *SETTINGS, "-j", 0, *options)
    assert train.main([str(argument) for argument in arguments]) == 0
    output = capsys.readouterr().out
    number = r"\d+\.\d+"
    expected = [
        r"12 images with objects, .*",
        rf"step: {number} s, {number} images/s",
        rf"evaluation: {number} s an image",
        r"memory: [\d,]+ MB of main memory",
        *(rf"{line}.* MB" for line in lines),
        r"in all, about: \S+ (h|min) of training and \S+ (h|min) of evaluation",
        r"the first images as the network gets them, with their objects: (\S+\.jpg)",
        r"not checked: the pixels of 0 training and 0 validation images, the declared sizes of 0 training images .*",
        "everything works; nothing was written but that picture",
    ]
    assert len(output.splitlines()) == len(expected)
    for line, pattern in zip(output.splitlines(), expected, strict=True):
        assert re.fullmatch(pattern, line)
    assert list(tmp_path.iterdir()) == [temporary]
    (picture,) = temporary.iterdir()
    assert str(picture) in output
    with Image.open(picture) as sheet:
        assert sheet.width == 4 * 300


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (("--strict-data",), r"000001\.jpg: not an image"),
        (
            ("--optimizer", "sgd", "--lr", 1e30, "--warmup-steps", 0),
            r"^step 2 is not finite: localization is nan.*--lr",
        ),
    ],
    ids=["bad image", "wild rate"],
)
@pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")  # numpy's, about the numbers it multiplies
def test_a_check_that_fails_says_why_and_writes_nothing(tmp_path, monkeypatch, options, problem):
    data = shapes_folder(tmp_path / "data", 3, 1)
    (data / "train" / "000001.jpg").write_bytes(b"no image")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(UserError, match=problem):
        train.main([str(a) for a in ("--check", "--data-path", data, *SETTINGS, "-j", 0, "-b", 3, *options)])
    assert list((tmp_path / "here").iterdir()) == []


def kill_worker(process):
    """Kill the data worker of a training that has reported its first steps."""
    for line in process.stdout:
        if " step " in line:
            break
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    (worker,) = [pid for pid in children if b"multiprocessing-fork" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    os.kill(int(worker), signal.SIGKILL)


@pytest.fixture
def with_a_worker(place, tmp_path):
    """What starts a training with the options of `trained`, but for the folder and the options given."""
    processes = []

    def begin(*options):
        arguments = ("--data-path", place / "shapes", "--output-dir", tmp_path / "run", *SETTINGS, *options)
        processes.append(start("train", *arguments, folder=tmp_path))
        return processes[-1], tmp_path / "run"

    yield begin
    for process in processes:
        process.kill()
        process.communicate()


def test_a_killed_worker_is_replaced(trained, with_a_worker):
    process, folder = with_a_worker("--epochs", EPOCHS)
    kill_worker(process)
    output, errors = process.communicate(timeout=120)
    assert (process.returncode, errors) == (0, "")
    story = r"a data loading process was killed by SIGKILL while it prepared (\S+\.jpg, )+\S+\.jpg; "
    assert re.search(rf"^{story}another takes its place \(1 of 3\)$", output, re.MULTILINE)
    expected, actual = load_file(trained[1] / LAST), load_file(folder / LAST)
    assert actual.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(actual[name], array, err_msg=name)
    assert metrics_without_times(folder) == metrics_without_times(trained[1])


def test_a_killed_worker_that_is_not_replaced_ends_the_training_with_a_word(with_a_worker):
    process, folder = with_a_worker("--epochs", 999, "--eval-every", 999, "--restarts", 0)
    kill_worker(process)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 2
    assert errors.startswith("train.sh: a data loading process was killed by SIGKILL while it prepared ")
    assert "000" in errors and ".jpg" in errors and "-j 1" in errors and "Traceback" not in errors
    # What was trained until then is kept.
    assert read_weights(folder / LAST)[1]["progress"]["step"] >= read_metrics(folder)[-1]["step"] > 0


def test_a_run_is_evaluated_on_its_own_data_where_none_is_named(trained, tmp_path):
    _, folder = trained
    # The command that the training ends with, in a folder that has no data.
    evaluated = run("evaluate", "--weights", folder, "--output-dir", "again", "-j", 0, folder=tmp_path)
    assert evaluated.returncode == 0, evaluated.stderr
    assert "3 images" in evaluated.stdout
    ours, theirs = (json.loads((at / "coco_metrics.json").read_text()) for at in (tmp_path / "again", folder))
    assert ours["AP"] == pytest.approx(theirs["AP"], abs=1e-4)


def test_a_runs_own_figures_stay_when_it_is_evaluated_on_other_data(trained, place, tmp_path):
    shutil.copytree(place, tmp_path, dirs_exist_ok=True)
    figures = (tmp_path / "my run" / "coco_metrics.json").read_bytes()
    shapes_folder(tmp_path / "other", 1, 2)
    evaluated = run("evaluate", "--weights", "my run", "--data-path", "other/shapes", "-j", 0, folder=tmp_path)
    assert evaluated.returncode == 0, evaluated.stderr
    assert (tmp_path / "my run" / "coco_metrics.json").read_bytes() == figures
    assert re.search(r"^written: my run/evaluations/[0-9a-f]{8}/coco_metrics\.json, ", evaluated.stdout, re.MULTILINE)
    shutil.copytree(tmp_path / "my run", tmp_path / "another")
    refused = run("evaluate", "--weights", "my run", "--output-dir", "another", folder=tmp_path)
    assert refused.returncode == 2 and "--output-dir another holds a run" in refused.stderr
