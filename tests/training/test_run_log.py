"""A run's figures: means and pace of steps, lines that a run which goes on takes back, TensorBoard's events."""

import gc
import json
import struct
import time
from pathlib import Path

import numpy as np
import pytest
from full_disk import full_disk
from tensorboardX.proto.event_pb2 import Event, SessionLog

from ssd300_vgg16.errors import UserError
from ssd300_vgg16.runtime import flow
from ssd300_vgg16.training import run_log, trainer
from ssd300_vgg16.training.run_folder import METRICS, read_metrics
from ssd300_vgg16.training.run_log import RunLog, StepMetrics, memory
from ssd300_vgg16.training.step import NotFinite

NAMES = ("localization", "classification", "gradient_norm")
VALUES = np.random.default_rng(0).random((5, 3), dtype=np.float32)


def filled(values, kept=(), first=0):
    metrics = StepMetrics(NAMES, list(kept))
    for step, row in enumerate(values, start=first):
        metrics.add(step, flow.tensor(row))
    return metrics


def events(folder):
    """All of TensorBoard's events in a folder, read by the format's definition: length, its CRC, data, its CRC."""
    read = []
    for path in sorted(folder.glob("*tfevents*")):
        content = path.read_bytes()
        while content:
            (length,) = struct.unpack_from("<Q", content)
            read.append(Event.FromString(content[12 : 12 + length]))
            assert len(content) >= 16 + length
            content = content[16 + length :]
    return read


def scalars(folder):
    return [
        (event.step, value.tag, pytest.approx(value.simple_value, rel=1e-6))
        for event in events(folder)
        for value in event.summary.value
    ]


def test_a_line_and_points_for_each_row(tmp_path):
    log = RunLog(tmp_path)
    log.add("training", 3, lr=0.5, note="text", nothing=None, count=7)
    assert json.loads((tmp_path / METRICS).read_text()) == {
        **{"kind": "training", "step": 3, "lr": 0.5, "note": "text", "nothing": None, "count": 7}
    }, "it can be read at once"
    log.add("evaluation", 4, AP=0.25)
    log.close()
    assert [row["step"] for row in read_metrics(tmp_path)] == [3, 4]
    assert scalars(tmp_path) == [(3, "training/lr", 0.5), (3, "training/count", 7.0), (4, "evaluation/AP", 0.25)]
    assert not [event for event in events(tmp_path) if event.HasField("session_log")]


@pytest.mark.parametrize("cut", [0, 1, 2, 3])
def test_a_run_that_goes_on_takes_back_what_its_checkpoint_does_not_know(tmp_path, cut):
    log = RunLog(tmp_path)
    lengths = [log.sync()]
    for step in (1, 2, 3):
        log.add("training", step, lr=0.1)
        lengths.append(log.sync())
    log.close()
    assert lengths[-1] == (tmp_path / METRICS).stat().st_size
    with (tmp_path / METRICS).open("a") as file:
        file.write('{"kind": "tra')  # the crash
    log = RunLog(tmp_path, lengths[cut], cut)
    log.add("training", 9, lr=0.9)
    assert log.sync() == (tmp_path / METRICS).stat().st_size
    log.close()
    assert [json.loads(line)["step"] for line in (tmp_path / METRICS).read_text().splitlines()] == [
        *range(1, cut + 1),
        9,
    ]


def test_a_file_that_has_become_shorter_is_not_filled_up(tmp_path):
    log = RunLog(tmp_path, length=1000, step=5)
    log.add("training", 6, lr=0.9)
    log.close()
    assert [row["step"] for row in read_metrics(tmp_path)] == [6]


def test_tensorboard_is_told_which_points_to_forget(tmp_path):
    RunLog(tmp_path, 0, step=7).close()
    (start,) = [event for event in events(tmp_path) if event.HasField("session_log")]
    assert (start.step, start.session_log.status) == (8, SessionLog.START)


# TensorBoard's file cannot be flushed, and so not be closed.
@pytest.mark.filterwarnings("ignore:Exception ignored in. <_io.FileIO:pytest.PytestUnraisableExceptionWarning")
@pytest.mark.usefixtures("no_hang")
def test_a_full_disk_is_an_error_and_not_a_hang(tmp_path):
    log = RunLog(tmp_path)
    with full_disk(at=4096):
        with pytest.raises(UserError, match=r"metrics\.jsonl could not be written \(File too large\): .*--resume"):
            for step in range(200):
                log.add("training", step, a=1.0, b=2.0, c=3.0, d=4.0, e=5.0)
        log.close()
    rows = read_metrics(tmp_path)
    assert [row["step"] for row in rows] == list(range(len(rows))) and len(rows) > 5
    del log
    gc.collect()  # here, where the warning about that file is expected, and not in another test


def test_means_are_of_the_steps_since_the_last_time():
    metrics = filled(VALUES)
    means = metrics.take_means()
    assert tuple(means) == NAMES
    np.testing.assert_allclose(list(means.values()), VALUES.mean(axis=0, dtype=np.float64), rtol=1e-12)
    metrics.add(5, flow.tensor(VALUES[0]))
    assert list(metrics.take_means().values()) == VALUES[0].tolist()


@pytest.mark.parametrize("at", range(6))
def test_a_checkpoint_in_the_middle_changes_no_mean(at):
    before = filled(VALUES[:at])
    before.fetch()
    after = filled(VALUES[at:], kept=before.values, first=at)
    assert after.take_means() == filled(VALUES).take_means()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("column", range(3))
def test_the_first_step_that_is_not_finite_is_named(bad, column):
    values = VALUES.copy()
    values[2, column] = values[4, column] = bad
    metrics = filled(values, first=10)
    for _ in range(2):  # it is not forgotten
        with pytest.raises(NotFinite) as caught:
            metrics.fetch()
        assert caught.value.step == 12
        np.testing.assert_array_equal(caught.value.metrics, values[2])
        assert metrics.values == VALUES[:2].tolist()


def test_steps_that_are_not_finished_are_not_waited_for():
    metrics = filled(VALUES)
    metrics.fetch(unfinished=2)
    assert metrics.values == VALUES[:3].tolist()
    metrics.fetch()
    assert metrics.values == VALUES.tolist()


def test_the_pace_is_that_of_the_steps_since_the_last_time(monkeypatch):
    now = 100.0
    monkeypatch.setattr(run_log.time, "perf_counter", lambda: now)
    metrics = StepMetrics(NAMES, [])
    for steps, seconds, waited, expected in ((3, 6, 0.5, 0.25), (1, 2, 1.0, 0.5)):
        for step in range(steps):
            metrics.add(step, flow.tensor(VALUES[0]), waited)
        now += seconds
        assert metrics.take_pace(batch_size=8) == {"images_per_second": 4.0, "data_wait": expected}


def test_memory_is_in_megabytes():
    (used,) = memory("cpu").values()
    assert 50 < used < 1e6


def test_a_clock_that_is_set_back_changes_no_figure(tmp_path, monkeypatch):
    """By a year a time: what is measured is measured by another clock."""
    clock = iter(range(2_000_000_000, 0, -31_536_000))
    monkeypatch.setattr(time, "time", lambda: next(clock))
    metrics, log = filled(VALUES), RunLog(tmp_path)
    pace = metrics.take_pace(4)
    log.add("training", 5, **metrics.take_means(), **pace)
    log.add("training", 6)
    log.close()
    assert pace["images_per_second"] > 0 and 0 <= pace["data_wait"] <= 1
    assert [row["step"] for row in read_metrics(tmp_path)] == [5, 6]
    assert "time.time()" not in Path(trainer.__file__).read_text(), "when to save, and how much time is left"
