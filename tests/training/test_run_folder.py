"""A run's folder: where it is, what may be written into it, and what is found there again."""

import json
import os
import time
from pathlib import Path

import pytest

from ssd300_vgg16.errors import UserError
from ssd300_vgg16.files import temporary, write_json
from ssd300_vgg16.training.run_folder import (
    ENVIRONMENT,
    METRICS,
    OPTIONS,
    clear_leftovers,
    describe_run,
    folder_of,
    newest_run,
    read_metrics,
    read_options,
    run_of,
)
from ssd300_vgg16.weights.locate import BEST, LAST, find_weights


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_chosen_folder_is_made_unless_it_is_there(tmp_path):
    folder = tmp_path / "deep" / "run"
    for _ in range(2):
        assert folder_of(None, str(folder)) == folder
        assert read_metrics(folder) == []
        (folder / "notes.txt").touch()


def test_runs_without_a_name_are_called_by_their_time(here, monkeypatch):
    monkeypatch.setattr(time, "strftime", lambda _: "20300102-030405")
    folders = [folder_of(None, None) for _ in range(3)]
    assert [folder.name for folder in folders] == ["20300102-030405", "20300102-030405-2", "20300102-030405-3"]
    assert {folder.absolute().parent for folder in folders} == {here / "runs"}


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"--output-dir .*file/run: cannot be written \(Not a directory\)"):
        folder_of(None, str(tmp_path / "file" / "run"))
    with pytest.raises(UserError, match=r"--output-dir .*file: cannot be written"):
        folder_of(None, str(tmp_path / "file"))


def test_a_run_is_meant_by_its_folder_or_by_a_checkpoint_in_it(tmp_path):
    (tmp_path / LAST).touch()
    assert run_of(tmp_path) == tmp_path
    assert run_of(tmp_path / LAST) == tmp_path


@pytest.mark.parametrize(("files", "chosen"), [([LAST], LAST), ([BEST], BEST), ([LAST, BEST], BEST)])
def test_the_best_weights_of_a_run_are_taken(tmp_path, files, chosen):
    for name in files:
        (tmp_path / name).touch()
    assert find_weights(tmp_path) == tmp_path / chosen
    assert find_weights(tmp_path / LAST) == tmp_path / LAST


def test_a_folder_without_weights_is_named(tmp_path):
    with pytest.raises(UserError, match=r"neither best\.safetensors nor last\.safetensors") as caught:
        find_weights(tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_the_newest_run_is_the_one_whose_weights_were_written_last(here):
    for age, (name, file) in enumerate([("b", BEST), ("c", LAST), ("a", BEST)]):
        path = here / "runs" / name / file
        path.parent.mkdir(parents=True)
        path.touch()
        os.utime(path, (1000 - age, 1000 - age))
    (here / "runs" / "z").mkdir()
    assert newest_run().absolute() == here / "runs" / "b"


def test_without_any_run_the_way_to_one_is_told(here):
    with pytest.raises(
        UserError, match=r"no run with weights in .*/runs: train first \(bash train\.sh\), or .*--weights"
    ):
        newest_run()


def test_a_run_is_described(tmp_path, monkeypatch):
    for git in (True, False):
        describe_run(tmp_path, {"data_path": "Bücher/日本"}, {"cpu": "fast"})
        assert read_options(tmp_path) == {"data_path": "Bücher/日本"}
        described = json.loads((tmp_path / ENVIRONMENT).read_text())
        assert described.keys() == {"cpu", "git_commit"} and described["cpu"] == "fast"
        assert described["git_commit"] is None or (git and len(described["git_commit"]) == 40)
        monkeypatch.setenv("PATH", str(tmp_path))  # where there is no git


@pytest.mark.parametrize("content", [None, "", '{"epochs": '])
def test_a_run_without_its_options_is_named(tmp_path, content):
    if content is not None:
        (tmp_path / OPTIONS).write_text(content)
    with pytest.raises(UserError, match=r"options\.json is missing or damaged") as caught:
        read_options(tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_json_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "file.json"
    write_json(path, [1, 2])
    with pytest.raises(TypeError):
        write_json(path, [object()])
    assert json.loads(path.read_text()) == [1, 2]
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.usefixtures("here")
def test_a_published_name_that_is_nearly_right_is_guessed():
    with pytest.raises(UserError, match=r"^ssd300_vgg16-coco: .* did you mean the published ssd300_vgg16_coco\?$"):
        find_weights(Path("ssd300_vgg16-coco"))
    assert find_weights(Path("weights.pth")) == Path("weights.pth")


def test_half_written_files_are_cleared_and_a_users_own_are_left(tmp_path):
    theirs = {LAST, METRICS, ".hidden", "notes.tmp", ".notes.json.tmp", f".{LAST}.5.tmp", f".{LAST}.ssd300-tmp"}
    for path in (*(tmp_path / name for name in theirs), temporary(tmp_path / LAST), temporary(tmp_path / "run.html")):
        path.touch()
    clear_leftovers(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == theirs


def test_a_line_of_metrics_cut_off_by_a_crash_is_left_out(tmp_path):
    (tmp_path / METRICS).write_text('{"kind": "training", "step": 1}\n{"kind": "evaluation", "step": 2}\n{"kind": "tra')
    assert [(row["kind"], row["step"]) for row in read_metrics(tmp_path)] == [("training", 1), ("evaluation", 2)]
