"""Folders that another process is at work in, and folders that go while they are written to or read from."""

import errno
import fcntl
import json
import shutil
import subprocess
import sys

import pytest
from small_data import WIDTH, environment, shapes_folder, untrained_run

from ssd300_vgg16 import evaluate, evaluate_weights, infer, train
from ssd300_vgg16.detection.results import JsonList
from ssd300_vgg16.errors import UserError
from ssd300_vgg16.files import open_atomically
from ssd300_vgg16.folders import held
from ssd300_vgg16.training import run_folder
from ssd300_vgg16.training.checkpoint import load_checkpoint
from ssd300_vgg16.training.run_folder import read_metrics
from ssd300_vgg16.training.trainer import Trainer
from ssd300_vgg16.weights.locate import LAST

HOLDER = """
import sys, time
from pathlib import Path
from ssd300_vgg16.folders import held
with held(Path(sys.argv[1]), "in use"):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_a_lock_goes_with_its_process(tmp_path, kind):
    place = tmp_path if kind == "folder" else tmp_path / "metrics.jsonl"
    command = [sys.executable, "-c", HOLDER, place]
    with subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        before = sorted(tmp_path.iterdir())
        with pytest.raises(UserError, match="it is taken"), held(place, "it is taken"):
            pass
        process.kill()
    with held(place, "it is taken") as locked:
        assert locked and sorted(tmp_path.iterdir()) == before, "nothing is left behind"


def test_a_drive_without_locks_goes_without(tmp_path, monkeypatch):
    def flock(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    with held(tmp_path, "it is taken") as locked:
        assert not locked


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("folders")
    shapes_folder(folder, 6, 2)
    untrained_run(folder / "untrained")
    return folder


@pytest.fixture
def place(data, tmp_path, monkeypatch):
    """The current folder, with a data set and weights of the test's own."""
    shutil.copytree(data, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


TRAIN = ["--preset", "narrow", "--width", str(WIDTH), "-b", "2", "-j", "0", "--print-freq", "1", "--device", "cpu"]
TRAIN += ["--data-path", "shapes", "--epochs", "2", "--output-dir", "run"]
INFER = ["--weights", "untrained", "--device", "cpu", "--output-dir", "out", "shapes/val"]
EVALUATE = ["--weights", "untrained", "--data-path", "shapes", "-j", "0", "--device", "cpu", "--output-dir", "out"]


@pytest.mark.parametrize(
    ("main", "arguments", "taken", "told", "processes"),
    [
        (train.main, TRAIN, "run/metrics.jsonl", "run: another train.sh is at work there: wait for its end", ""),
        (train.main, TRAIN, "run/metrics.jsonl", "run: another train.sh is at work there: wait for its end", "2"),
        (infer.main, INFER, "out", "out: another infer.sh or eval.sh is at work there: wait", ""),
        (evaluate.main, EVALUATE, "out", "out: another eval.sh or infer.sh is at work there: wait", ""),
    ],
)
def test_the_second_of_two_at_a_time_is_told(place, monkeypatch, main, arguments, taken, told, processes):
    monkeypatch.setenv("NPROC", processes)
    (place / taken).parent.mkdir(exist_ok=True)
    (place / taken).touch() if taken.endswith("jsonl") else (place / taken).mkdir()
    before = sorted((place / "out").rglob("*")), sorted((place / "run").rglob("*"))
    with held(place / taken, ""), pytest.raises(UserError, match=told):
        main(arguments)
    assert (sorted((place / "out").rglob("*")), sorted((place / "run").rglob("*"))) == before


def test_an_evaluation_may_look_into_a_training(place):
    shutil.copytree("untrained", "run")
    with run_folder.held(place / "run"):
        assert evaluate.main([*EVALUATE[:1], "run", *EVALUATE[2:-2]]) == 0
    assert (place / "run" / "coco_metrics.json").exists()


def in_step(monkeypatch, number, do):
    """Has it done before that step of a training."""
    real, steps = Trainer.train_step, iter(range(1, 1000))

    def train_step(self, batches):
        if next(steps) == number:
            do()
        real(self, batches)

    monkeypatch.setattr(Trainer, "train_step", train_step)


@pytest.mark.parametrize("log", ["new", "of a run that goes on"])
def test_a_training_keeps_others_out_as_long_as_it_runs(place, monkeypatch, log):
    looked = []

    def look():
        with pytest.raises(UserError, match="another train"), run_folder.held(place / "run"):
            pass
        looked.append(True)

    if log != "new":
        train.main([*TRAIN, "--epochs", "1"])
    in_step(monkeypatch, 2, look)
    train.main(TRAIN if log == "new" else ["--resume", "run", "--epochs", "2", "--device", "cpu", "-j", "0"])
    assert looked
    with run_folder.held(place / "run"):
        pass


def test_a_training_whose_folder_goes_ends_with_a_sentence(place, monkeypatch, capsys):
    in_step(monkeypatch, 2, lambda: shutil.rmtree(place / "run"))
    with pytest.raises(UserError, match=r"run/step-.*safetensors could not be written: its folder is not there, or"):
        train.main(TRAIN)
    assert "Go on with" not in capsys.readouterr().out, "there is nothing to go on with"


def test_images_that_are_gone_before_the_last_steps_stop_a_training(place, monkeypatch, capsys):
    """Too few to be counted as many; but nothing is there to learn from."""
    in_step(monkeypatch, 6, lambda: shutil.rmtree(place / "shapes" / "train"))
    with pytest.raises(UserError, match=r"2 of the last 6 training images cannot be read: see that their disk"):
        train.main(TRAIN)
    assert load_checkpoint(place / "run" / LAST).progress.step == read_metrics(place / "run")[-1]["step"] == 5
    assert "Ended after step 5. Go on with:\n  bash train.sh --resume run\n" in capsys.readouterr().out


def test_an_evaluation_whose_folder_goes_is_written_all_the_same(place, monkeypatch):
    real = evaluate_weights.evaluate

    def evaluation(*arguments, **options):
        shutil.rmtree(place / "out")
        return real(*arguments, **options)

    monkeypatch.setattr(evaluate_weights, "evaluate", evaluation)
    assert evaluate.main(EVALUATE) == 0
    assert json.loads((place / "out" / "detections.json").read_text())
    assert (place / "out" / "coco_metrics.json").exists()


@pytest.mark.parametrize("go", [shutil.rmtree, lambda folder: folder.rename("elsewhere")], ids=["removed", "moved"])
def test_a_detection_whose_folder_goes_ends_at_once(place, monkeypatch, go):
    real, calls = JsonList.add, []

    def add(self, rows):
        real(self, rows)
        calls.append(rows)
        if len(calls) == 1:
            go(place / "out")

    monkeypatch.setattr(JsonList, "add", add)
    with pytest.raises(UserError, match=r"out/detections\.json\.part was removed or moved while it was written"):
        infer.main(INFER)
    assert len(calls) == 1
    assert not (place / "out" / "detections.json").exists()


def test_a_file_whose_folder_goes_is_no_former_version(tmp_path):
    folder = tmp_path / "gone"
    folder.mkdir()
    with pytest.raises(UserError, match="its folder is not there"), open_atomically(folder / "file") as file:
        file.write(b"x")
        shutil.rmtree(folder)
