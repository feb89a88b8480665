"""stdout and stderr whose readers go: the work goes on to its end, and says so where it can."""

import fcntl
import os
import signal
import struct
import subprocess
import sys
import termios

import pytest
from small_data import WIDTH, environment, shapes_folder, untrained_run

from ssd300_vgg16.training.checkpoint import load_checkpoint
from ssd300_vgg16.training.run_folder import read_metrics
from ssd300_vgg16.weights.locate import LAST

# Prints more than a pipe holds, as do a process of its own and native code; then leaves a file, and another's number.
WORK = """
import os, sys
from ssd300_vgg16.cli import command_line
from ssd300_vgg16.cli.streams import outlive_readers
def main(arguments):
    outlive_readers("work.sh")
    for number in range(3):
        print("x" * 100_000)
        print("y", file=sys.stderr)
    for descriptor in (1, 2):
        os.write(descriptor, b"z")
    with open(arguments[0], "w") as file:
        file.write(str(file.fileno() > 2))
    return 7
command_line.run(main, "work.sh")
"""
CLOSED = "work.sh: stdout is closed ({}): the work goes on, and what it prints is lost\n"


@pytest.fixture
def broken_pipe():
    """The end of a pipe that nobody reads."""
    read_end, write_end = os.pipe()
    os.close(read_end)
    yield write_end
    os.close(write_end)


def shell(redirection, folder, **options):
    command = ["bash", "-c", f'exec "$@" {redirection}', "bash", sys.executable, "-c", WORK, folder / "file"]
    done = subprocess.run(command, env=environment(), stdin=subprocess.DEVNULL, timeout=60, **options)
    assert (done.returncode, (folder / "file").read_text()) == (7, "True")
    return done


def test_without_a_reader_of_stdout(tmp_path, broken_pipe):
    done = shell("", tmp_path, stdout=broken_pipe, stderr=subprocess.PIPE, text=True)
    lines = done.stderr.splitlines(keepends=True)
    assert [*sorted(lines[:-1]), lines[-1]] == [CLOSED.format("Broken pipe"), "y\n", "y\n", "y\n", "z"]


def test_a_slow_reader_of_a_pipe_that_does_not_wait_gets_all(tmp_path):
    read_end, write_end = os.pipe()
    os.set_blocking(write_end, False)
    command = [sys.executable, "-c", WORK, tmp_path / "file"]
    with subprocess.Popen(command, env=environment(), stdout=write_end, stderr=subprocess.DEVNULL) as process:
        os.close(write_end)
        with open(read_end, "rb") as reader:  # noqa: PTH123 - a number is no path
            content = reader.read()
    assert (process.returncode, len(content)) == (7, 3 * 100_001 + 1)


@pytest.mark.parametrize("redirection", [">/dev/full", "2>&1", ">&- 2>&-", "<&- >&- 2>&-"])
def test_whatever_else_is_gone(tmp_path, broken_pipe, redirection):
    assert shell(redirection, tmp_path, stdout=broken_pipe, stderr=subprocess.DEVNULL).returncode == 7


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("streams")
    shapes_folder(folder, 4, 2)
    untrained_run(folder / "untrained")
    return folder


TRAINING = ("--preset", "narrow", "--width", WIDTH, "-b", 2, "-j", 1, "--print-freq", 1, "--data-path", "shapes")


@pytest.mark.parametrize(
    ("module", "arguments", "result"),
    [
        pytest.param(
            *("train", (*TRAINING, "--iterations", 3, "--output-dir", "run"), "run/coco_metrics.json"),
            marks=pytest.mark.long,  # that with a terminal is a training too
        ),
        ("infer", ("--weights", "untrained", "--output-dir", "out", "shapes/val"), "out/report.html"),
        ("evaluate", ("--weights", "untrained", "--data-path", "shapes", "-j", 0), "untrained/report.html"),
    ],
)
def test_a_command_line_does_its_work_without_a_reader(place, broken_pipe, module, arguments, result):
    command = [sys.executable, "-m", f"ssd300_vgg16.{module}", *map(str, arguments), "--device", "cpu"]
    done = subprocess.run(command, cwd=place, env=environment(), stdout=broken_pipe, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr.count("stdout is closed (Broken pipe)")) == (0, 1), done.stderr
    assert (place / result).exists()


@pytest.mark.usefixtures("no_hang")
def test_a_terminal_that_goes_leaves_a_checkpoint(place):
    """It sends SIGHUP to all that were started from it, and takes no more output."""
    ours, terminal = os.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))  # or no bar is shown
    arguments = (*TRAINING, "--epochs", 999, "--eval-every", 999, "--save-every", 1, "--device", "cpu")
    command = [sys.executable, "-m", "ssd300_vgg16.train", *map(str, arguments), "--output-dir", "terminal"]
    # The terminal of a session of its own, as in a window.
    opened = "import os, sys, fcntl, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execv(sys.argv[1], sys.argv[1:])"
    process = subprocess.Popen(
        [sys.executable, "-c", opened, *command],
        cwd=place,
        env=environment(),
        start_new_session=True,
        **dict.fromkeys(("stdin", "stdout", "stderr"), terminal),
    )
    os.close(terminal)
    try:
        seen = b""
        while b"epoch 2/" not in seen:
            seen += os.read(ours, 1000)
        os.close(ours)
        assert process.wait(60) == 128 + signal.SIGHUP
    finally:
        process.kill()
        process.wait()
    step = load_checkpoint(place / "terminal" / LAST).progress.step
    assert step >= read_metrics(place / "terminal")[-1]["step"] > 0
