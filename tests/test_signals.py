"""Signals end a training in good order; a second one ends it at once. No process is left either way."""

import os
import re
import signal
import subprocess
import sys
import time

import pytest
from small_data import WIDTH, environment, shapes_folder, start

from ssd300_vgg16.signals import REPEAT_SECONDS, STOP_SIGNALS, StopRequest
from ssd300_vgg16.training.checkpoint import load_checkpoint
from ssd300_vgg16.training.run_folder import read_metrics
from ssd300_vgg16.weights.locate import LAST
from ssd300_vgg16.weights.model import load_model

SETTINGS = ("--preset", "narrow", "--width", WIDTH, "-b", 2, "-j", 1, "--print-freq", 2, "--device", "cpu")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stopping")
    shapes_folder(folder, 6, 1)
    return folder


@pytest.fixture
def endless(place, tmp_path):
    """A training that has reported its first steps, and its run's folder; it has a process group of its own."""
    arguments = ("--data-path", place / "shapes", "--epochs", 999, "--eval-every", 999)
    arguments += ("--output-dir", tmp_path / "run")
    process = start("train", *arguments, *SETTINGS, folder=tmp_path, start_new_session=True)
    for line in process.stdout:
        if " step " in line:
            break
    yield process, tmp_path / "run"
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def assert_gone(group):
    """No process of the group is left after a while."""
    for _ in range(1000):
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return
        time.sleep(0.01)
    pytest.fail("processes are left")


# Of the others it is shown below that they are noted alike, and in test_workers.py that workers leave them alone.
@pytest.mark.parametrize(
    "signal_number",
    [
        pytest.param(number, marks=[pytest.mark.long] if number not in (signal.SIGINT, signal.SIGTERM) else [])
        for number in STOP_SIGNALS
    ],
)
def test_what_was_learned_is_kept(endless, signal_number):
    """Ctrl-C and SLURM reach all processes of the group."""
    process, folder = endless
    os.killpg(process.pid, signal_number)
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 128 + signal_number
    assert errors == f"train.sh: stopped by {signal_number.name}\n"
    stopped, command = output.splitlines()[-2:]
    assert re.fullmatch(r"Stopped after step \d+\. Go on with:", stopped)
    assert command == f"  bash train.sh --resume {folder}"
    step = int(stopped.split()[3].rstrip("."))
    assert load_checkpoint(folder / LAST).progress.step == step >= read_metrics(folder)[-1]["step"] > 0
    assert load_model(folder / LAST)[1].width == WIDTH
    assert_gone(process.pid)
    assert not list(folder.glob(".*"))


def test_a_second_signal_does_not_wait(place, tmp_path):
    """Here the training never comes to the end of its step, and has written a checkpoint before."""
    script = tmp_path / "stuck.py"
    script.write_text(
        "import sys, time\n"
        "from ssd300_vgg16 import train\n"
        "from ssd300_vgg16.training.step import EagerStep\n"
        "real = EagerStep.__call__\n"
        "def stuck(step, *batch):\n"
        "    if step.steps == 1:\n"
        "        print('stuck', flush=True)\n"
        "        while True:\n"
        "            time.sleep(0.01)\n"
        "    return real(step, *batch)\n"
        "if __name__ == '__main__':\n"
        "    EagerStep.__call__ = stuck\n"
        "    train.main(sys.argv[1:])\n"
    )
    arguments = ("--data-path", place / "shapes", "--output-dir", tmp_path / "run", "--save-every", 1, *SETTINGS)
    command = [sys.executable, script, *map(str, arguments)]
    process = subprocess.Popen(
        command, cwd=tmp_path, env=environment(), stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        for line in process.stdout:
            if line == "stuck\n":
                break
        process.send_signal(signal.SIGINT)
        process.send_signal(signal.SIGINT)  # too soon after the first to be another
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(timeout=2 * REPEAT_SECONDS)
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == -signal.SIGTERM
    assert load_checkpoint(tmp_path / "run" / LAST).progress.step == 1
    assert_gone(process.pid)


@pytest.mark.parametrize("signal_number", STOP_SIGNALS)
def test_a_request_is_noted_and_the_next_one_is_the_systems(signal_number):
    former = [signal.getsignal(number) for number in STOP_SIGNALS]
    stop = StopRequest()
    assert not stop.made
    with stop:
        os.kill(os.getpid(), signal_number)
        assert stop.made and stop.signal_number == signal_number
        assert {signal.getsignal(number) for number in STOP_SIGNALS} == {signal.SIG_DFL}
    assert [signal.getsignal(number) for number in STOP_SIGNALS] == former


def test_what_was_begun_to_outlive_its_terminal_does():
    """With nohup."""
    former = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopRequest() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not stop.made
            os.kill(os.getpid(), signal.SIGTERM)
            assert stop.signal_number == signal.SIGTERM
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, former)
