"""Limits of memory and of open files: one sentence that names what is short and what to do."""

import os
import resource
import subprocess
import sys
from contextlib import contextmanager

import cv2
import numpy as np
import pytest
from small_data import environment, shapes, shapes_folder, start, untrained_run

from ssd300_vgg16 import machine, train
from ssd300_vgg16.data import loader
from ssd300_vgg16.data.images import ImageError
from ssd300_vgg16.data.loader import evaluation_batches
from ssd300_vgg16.data.workers import WorkerPool
from ssd300_vgg16.detection import pipeline
from ssd300_vgg16.errors import UserError, told
from ssd300_vgg16.machine import is_short_of_memory, memory_is_short, refuse_tight_limits
from ssd300_vgg16.training.checkpoint import load_checkpoint
from ssd300_vgg16.weights.locate import LAST


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("limits")
    shapes_folder(folder, 4, 1)
    untrained_run(folder / "untrained")
    return folder


FILES = r"only {} files may be open at a time \(ulimit -n\), and .* take 64: raise the limit, as with ulimit -n 1024"
MEMORY = r"only {} kB of memory may be used \(ulimit -v\), and it takes at least 6000000: raise the limit, or lift it"


@pytest.mark.parametrize(
    ("kind", "limit", "told"),
    [
        *((resource.RLIMIT_NOFILE, limit, FILES.format(limit)) for limit in (12, 20, 32)),
        *((resource.RLIMIT_AS, kb * 1024, MEMORY.format(kb)) for kb in (2_000_000, 4_000_000, 5_000_000)),
        (resource.RLIMIT_NOFILE, 64, None),
        (resource.RLIMIT_AS, resource.RLIM_INFINITY, None),
    ],
)
def test_tight_limits_are_told_before_libraries_are_loaded(monkeypatch, kind, limit, told):
    real = resource.getrlimit
    monkeypatch.setattr(machine.resource, "getrlimit", lambda which: (limit, limit) if which == kind else real(which))
    if told is None:
        refuse_tight_limits()
    else:
        with pytest.raises(UserError, match=told):
            refuse_tight_limits()


def test_a_soft_limit_of_open_files_is_raised():
    former = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (63, former[1]))
    try:
        refuse_tight_limits()
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (former[1], former[1])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, former)


@pytest.mark.parametrize(
    ("module", "processes", "kind", "limit", "told"),
    [
        ("train", "", resource.RLIMIT_NOFILE, 12, "only 12 files may be open"),
        ("train", "2", resource.RLIMIT_NOFILE, 20, "only 20 files may be open"),
        ("evaluate", "", resource.RLIMIT_AS, 4 << 30, "of memory may be used"),
        ("evaluate", "", resource.RLIMIT_AS, 300 << 20, "only 307200 kB of memory may be used"),
    ],
)
def test_a_command_line_ends_with_the_sentence_alone(place, module, processes, kind, limit, told):
    data = ("--data-path", "shapes", "--device", "cpu", "-j", 1)
    arguments = (
        (*data, "--width", 0.02) if module == "train" else (*data, "--weights", "untrained", "--engine", "oneflow")
    )
    process = start(
        module,
        *arguments,
        folder=place,
        variables={"NPROC": processes},
        preexec_fn=lambda: resource.setrlimit(kind, (limit, limit)),
    )
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors.count("\n")) == (2, 1), errors
    assert told in errors


@pytest.mark.skipif(subprocess.run(["unshare", "-m", "true"], check=False).returncode != 0, reason="needs root")
@pytest.mark.parametrize(("room", "told"), [(1, "/dev/shm is full, and the libraries take a page of it"), (2, "")])
def test_a_full_dev_shm_is_no_bus_error(room, told):
    code = (
        "import sys\nfrom ssd300_vgg16.cli import command_line\ndef main(_):\n    import ssd300_vgg16.runtime\n"
        "    return 0\ncommand_line.run(main, 'test')"
    )
    script = f'mount -t tmpfs -o size={4 * room}k tmpfs /dev/shm; head -c 4096 /dev/zero >/dev/shm/fill; exec "$@"'
    command = ["unshare", "-m", "bash", "-c", script, "bash", sys.executable, "-c", code]
    process = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=60)
    assert process.returncode == (2 if told else 0), process.stderr
    assert process.stderr.startswith(f"test: {told}" if told else ""), process.stderr
    assert process.stderr.count("\n") == bool(told)


@contextmanager
def no_more_files():
    """Within it no file can be opened."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.open(os.devnull, os.O_RDONLY)
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def no_memory(*_):
    raise cv2.error("OpenCV(4.11.0) alloc.cpp:73: error: (-4:Insufficient memory) Failed to allocate 270000 bytes")


def test_an_image_is_not_left_out_for_what_the_machine_lacks(place, monkeypatch):
    dataset = shapes(place / "shapes", "val")

    def read():
        return list(evaluation_batches(dataset.samples, 1, 300, WorkerPool(0)))

    path = dataset.samples[0].path
    assert len(read()[0].positions) == 1
    for reads in (read, lambda: pipeline._read(path, 300)):
        with no_more_files(), pytest.raises(OSError, match="Too many open files"):
            reads()
    monkeypatch.setattr(cv2, "imdecode", no_memory)
    for reads in (read, lambda: pipeline._read(path, 300)):
        with pytest.raises(cv2.error, match="Insufficient memory"):
            reads()
    monkeypatch.undo()
    path.write_bytes(b"no image")
    assert len(read()[0].unreadable) == 1 and isinstance(pipeline._read(path, 300), ImageError)


def test_memory_that_is_short_while_data_is_read_costs_no_step(place, monkeypatch, tmp_path, capsys):
    real, calls = loader._training_batch, iter(range(1, 100))

    def short(*arguments):
        # The first is for the page of the run.
        if next(calls) == 4:
            raise MemoryError
        return real(*arguments)

    monkeypatch.setattr(loader, "_training_batch", short)
    arguments = ("--data-path", place / "shapes", "--output-dir", tmp_path / "run", "--width", 0.02, "-b", 1, "-j", 0)
    with pytest.raises(MemoryError):
        train.main([*map(str, arguments), "--preset", "narrow", "--epochs", "1", "--device", "cpu"])
    assert load_checkpoint(tmp_path / "run" / LAST).progress.step == 2
    assert f"Ended after step 2. Go on with:\n  bash train.sh --resume {tmp_path / 'run'}" in capsys.readouterr().out


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        np.core._exceptions._ArrayMemoryError((1 << 50,), np.dtype("uint8")),
        OSError(12, "Cannot allocate memory"),
        ImportError("libmkl_core.so.2: failed to map segment from shared object"),
        RuntimeError("can't start new thread"),
        RuntimeError("std::bad_alloc"),
        ValueError("raqm_get_glyphs() failed."),
        RuntimeError("[ONNXRuntimeError] : 6 :\nRUNTIME_EXCEPTION : Failed to allocate memory for requested buffer"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_each_librarys_way_to_say_that_memory_is_short(error):
    assert is_short_of_memory(error)
    told = memory_is_short(error)
    assert told.startswith("memory is short (") and "\n" not in told


def test_what_is_no_lack_of_memory():
    assert not any(map(is_short_of_memory, (OSError(28, "No space left on device"), ValueError("memory"))))


@pytest.mark.parametrize(
    ("number", "advice"), [(24, "ulimit -n"), (23, "ulimit -n"), (11, "ulimit -u"), (28, "make room")]
)
def test_a_shortage_is_told_with_what_helps(number, advice):
    assert told(OSError(number, "Short")).startswith("Short: ") and advice in told(OSError(number, "Short"))
    assert told(OSError(2, "No such file", "here")) == "here: No such file"
