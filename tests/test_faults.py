"""Whatever fails to be written while a command works: it ends in one sentence, and no file looks whole that is not.

Each write, sync, close, renaming and link of a command fails in turn: the command is run once to count them. After
every second one the disk stays full.
"""

import errno
import io
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import tensorboardX.record_writer
from full_disk import full_disk
from PIL import Image
from small_data import WIDTH, metrics_without_times, shapes_folder, untrained_run

from ssd300_vgg16 import evaluate, export, files, infer, train
from ssd300_vgg16.errors import UserError, told
from ssd300_vgg16.weights.locate import LAST, OPTIONS
from ssd300_vgg16.weights.safetensors_file import read_weights

TRAIN = ("--preset", "narrow", "--width", WIDTH, "-b", 2, "-j", 0, "--print-freq", 1, "--epochs", 1, "--save-every", 1)


class Faults:
    """Counts what is asked of the system, and has the one of that number fail: each with the error that it can have."""

    def __init__(self, monkeypatch):
        self.count, self.failing, self.lasting = 0, None, False
        for owner, name in ((os, "fsync"), (os, "pwrite"), (os, "link"), (os, "replace"), (Path, "replace")):
            monkeypatch.setattr(owner, name, self._failing(getattr(owner, name)))
        faults = self

        class File(io.FileIO):
            def write(self, content):
                faults.next()
                return super().write(content)

            def close(self):
                was_open = not self.closed
                super().close()
                if was_open and self.writable_:
                    faults.next()

            def __init__(self, path, mode="r", **how):
                self.writable_ = mode != "r"
                super().__init__(path, mode, **how)

        monkeypatch.setattr(files, "FileIO", File)
        monkeypatch.setattr(tensorboardX.record_writer, "open_file", lambda path: io.BufferedWriter(File(path, "w")))

    def next(self, *path):
        self.count += 1
        if self.count == self.failing or (self.lasting and self.failing and self.count > self.failing):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), *path)

    def _failing(self, real):
        def call(*arguments, **how):
            self.next(*(str(path) for path in arguments[:1] if isinstance(path, Path)))  # as the system names it
            return real(*arguments, **how)

        return call


# TensorBoard's file, which nobody closes after an error: what it still holds fails once more, unseen.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
EACH = pytest.param(None, id="each", marks=pytest.mark.long)


@pytest.fixture
def faults(monkeypatch):
    return Faults(monkeypatch)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with generated shapes, and the runs of two networks."""
    folder = tmp_path_factory.mktemp("faults")
    shapes_folder(folder, 4, 2)
    for seed in (1, 2):
        untrained_run(folder / f"run{seed}", seed)
    return folder


def call(command, *arguments):
    """The exit status, and what was said if it ended by an error: one sentence of the package's own."""
    try:
        return command.main([str(argument) for argument in arguments]), ""
    except UserError as error:
        return 2, str(error)
    except OSError as error:  # the command line says it so
        return 2, told(error)


def each_fault(faults, folder, work, enough):
    """Do work in a new folder again and again, each time with another fault; yields the folder and the exit status."""
    faults.count, faults.failing = 0, None
    assert work(folder / "counted") == (0, "")
    total = faults.count
    numbers = range(1, total + 1) if enough is None else np.linspace(1, total, enough + 2)[1:-1].astype(int)
    for number in numbers:
        faults.count, faults.failing, faults.lasting = 0, number, number % 2 == 0
        status, message = work(folder / str(number))
        faults.failing = None
        print(f"{number} of {total}: {status} {message}")
        if status:
            assert str(folder / str(number)) in message, "the file is named"
            assert "make room" in message or "when there is room" in message, "and what to do"
        assert_whole(folder / str(number))
        yield folder / str(number), status


def assert_whole(folder):
    """That all files below the folder are whole, by what their names promise."""
    for path in folder.rglob("*"):
        assert not path.name.startswith("."), f"{path} is left"
        if path.suffix == ".json":
            json.loads(path.read_bytes())
        elif path.suffix == ".jsonl":
            assert [json.loads(line) for line in path.read_text().splitlines()] or not path.read_bytes()
        elif path.suffix == ".html":
            assert path.read_text().rstrip().endswith("</html>")
        elif path.suffix == ".safetensors":
            read_weights(path)
        elif path.suffix == ".jpg":
            Image.open(path).load()


@pytest.mark.parametrize("enough", [pytest.param(2, id="two"), EACH])
def test_training(place, tmp_path, faults, enough):
    data = ("--data-path", place / "shapes", "--device", "cpu")

    def work(folder):
        return call(train, *TRAIN, *data, "--output-dir", folder)

    for folder, status in each_fault(faults, tmp_path, work, enough):
        if status:
            begun = (folder / OPTIONS).exists()
            going_on = ("--resume", folder, "-j", 0, "--device", "cpu")
            assert call(train, *(going_on if begun else (*TRAIN, *data, "--output-dir", folder))) == (0, "")
        assert metrics_without_times(folder) == metrics_without_times(tmp_path / "counted")
        ours, expected = (read_weights(one / LAST)[0] for one in (folder, tmp_path / "counted"))
        for name, array in expected.items():
            np.testing.assert_allclose(ours[name], array, rtol=1e-3, atol=1e-6, err_msg=name)


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("enough", [pytest.param(4, id="four"), EACH])
def test_evaluation(place, tmp_path, faults, enough):
    def evaluated(number, folder):
        data = ("--data-path", place / "shapes", "--device", "cpu", "-j", 0)
        return call(evaluate, "--weights", place / f"run{number}", *data, "--output-dir", folder)

    assert evaluated(1, tmp_path / "former") == (0, "")
    former = contents(tmp_path / "former")

    def work(folder):
        shutil.copytree(tmp_path / "former", folder)
        return evaluated(2, folder)

    for folder, status in each_fault(faults, tmp_path, work, enough):
        expected = contents(tmp_path / "counted")
        for name, content in contents(folder).items():
            assert content == expected[name] or (status and content == former[name]), name
        assert contents(folder).keys() == expected.keys()


@pytest.mark.parametrize("enough", [pytest.param(4, id="four"), EACH])
def test_detection(place, tmp_path, faults, enough):
    images = place / "shapes" / "val"
    more = ("--device", "cpu", "--max-detections", 2, "--save-txt", "--save-csv", "--save-crop")

    def work(folder, *going_on):
        return call(infer, images, "--weights", place / "run1", *more, *going_on, "--output-dir", folder)

    assert work(tmp_path / "first") == (0, ""), "its model is kept from now on"
    for folder, status in each_fault(faults, tmp_path, work, enough):
        expected = contents(tmp_path / "counted")
        if "detections.json" in contents(folder):  # then all that belongs to it is there
            pictures = {name for name in expected if name.endswith((".jpg", ".txt"))}
            assert pictures | {"detections.json"} <= contents(folder).keys()
            assert contents(folder)["detections.json"] == expected["detections.json"]
        elif status:
            assert work(folder, "--resume") == (0, "")
        assert status or contents(folder).keys() == expected.keys()


@pytest.mark.parametrize("options", [["--outputs", "raw"], ["--int8"]])
def test_export(place, tmp_path, faults, options):
    if "--int8" in options:
        options = [*options, "--calibrate", place / "shapes" / "val"]

    def work(folder):
        folder.mkdir()
        return call(export, place / "run1", "--to", folder / "model.onnx", *options)

    for folder, status in each_fault(faults, tmp_path, work, None):
        assert contents(folder) == ({} if status else contents(tmp_path / "counted"))


def test_a_calibration_whose_temporary_files_find_no_room(place, tmp_path):
    calibrating = ("--int8", "--calibrate", place / "shapes" / "val")
    with full_disk(at=20_000):
        status, message = call(export, place / "run1", "--to", tmp_path / "model.onnx", *calibrating)
    assert status == 2 and list(tmp_path.iterdir()) == []
    assert "temporary files in /" in message and "make room there, or set TMPDIR to a folder with room" in message


def test_links_in_a_strangers_folders_lead_nowhere(place, tmp_path):
    home, run, output = (tmp_path / name for name in ("home", "run", "output"))
    shutil.copytree(place / "run1", run)
    (run / "environment.json").write_text('{"data": {"val": {"sha256": "of other data"}}}')
    for link in (run / "evaluations", run / "detections", output / "crops"):
        link.parent.mkdir(exist_ok=True)
        link.symlink_to(home)
    home.mkdir()
    common = ("--weights", run, "--device", "cpu")
    evaluating = (evaluate, *common, "-j", 0, "--data-path", place / "shapes")
    detecting = (infer, place / "shapes" / "val", *common, "--save-crop", "--output-dir")
    said = [call(*evaluating), call(*detecting, output)]
    (run / OPTIONS).write_text("{}")
    said.append(call(*detecting, run / "detections"))
    for (status, message), link in zip(said, ("evaluations", "crops", "detections"), strict=True):
        assert status == 2 and f"{link} is a link" in message
    assert list(home.iterdir()) == []
