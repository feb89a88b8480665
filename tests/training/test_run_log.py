"""A run's figures: lines that a run which goes on takes back, and TensorBoard's events."""

import json
import struct

import pytest
from full_disk import full_disk
from tensorboardX.proto.event_pb2 import Event, SessionLog

from ssd300_vgg16.errors import UserError
from ssd300_vgg16.training.run_folder import METRICS, read_metrics
from ssd300_vgg16.training.run_log import RunLog


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
