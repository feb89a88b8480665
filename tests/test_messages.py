"""Objects from process to process: their arrays come in shared memory, and nothing of it is left."""

import gc
import multiprocessing
import os
import signal
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from ssd300_vgg16.data import messages
from ssd300_vgg16.data.workers import WorkerPool
from ssd300_vgg16.errors import UserError

LARGE, SMALL = 1_000_000, 100


def sent(content):
    """The content as it comes out of a pipe, and how many bytes of it went through that."""
    here, there = multiprocessing.Pipe()
    message = messages.Message(content)
    with here, there, ThreadPoolExecutor(1) as thread:  # pipes hold 64 KB only
        sending = thread.submit(message.send, here, os.getpid())
        received = messages.receive(there)
        sending.result()
    return received, len(message._pickled)


@pytest.fixture(autouse=True)
def no_hang():
    """A wait that would never end becomes a failure."""
    former = signal.signal(signal.SIGALRM, signal.default_int_handler)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, former)


def open_files():
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - a Path for each of them is no use


@pytest.mark.parametrize("dtype", [np.uint8, np.int64, np.float32])
def test_large_arrays_do_not_go_through_the_pipe(dtype):
    first, second = np.arange(LARGE, dtype=dtype).reshape(10, -1), np.arange(LARGE + 1)[:, None]
    (one, words, other), size = sent((first, ["kept"], second))
    np.testing.assert_array_equal(one, first)
    np.testing.assert_array_equal(other, second)
    assert words == ["kept"] and (one.dtype, other.dtype) == (first.dtype, second.dtype)
    assert size < 2000
    assert one.ctypes.data % messages.ALIGNMENT == other.ctypes.data % messages.ALIGNMENT == 0
    one[:] = 0  # as any array
    np.testing.assert_array_equal(other, second)


@pytest.mark.parametrize(
    "array", [np.arange(SMALL), np.empty((0, 4), np.float32), np.arange(LARGE)[::2], np.array([None] * LARGE)]
)
def test_other_arrays_arrive_as_well(array):
    np.testing.assert_array_equal(sent(array)[0], array)


def test_memory_goes_with_the_last_array():
    before = open_files()
    received, _ = sent([np.zeros(LARGE), np.ones(LARGE)])
    part = received[1][5:9]
    del received
    gc.collect()
    assert open_files() == before + 1
    assert part.tolist() == [1, 1, 1, 1]
    del part
    assert open_files() == before


def test_a_message_that_cannot_be_sent_leaves_no_memory():
    before = open_files()
    here, there = multiprocessing.Pipe()
    there.close()
    message = messages.Message(np.zeros(LARGE))
    with here, pytest.raises(OSError, match="pipe"):
        message.send(here, os.getpid())
    assert open_files() == before


def test_memory_that_cannot_be_filled_is_given_back(monkeypatch):
    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwrite", fail)
    before = open_files()
    with pytest.raises(OSError, match="No space left"):
        messages.Message(np.zeros(LARGE))
    assert open_files() == before


def killed_before_the_memory_is_sent(number):
    if number == 1:
        messages.send_handle = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
    return np.full(LARGE, number)


def test_a_death_between_a_message_and_its_memory_is_noticed():
    notices = []
    with WorkerPool(1, restarts=1, notify=notices.append) as pool:
        results = pool.map(killed_before_the_memory_is_sent, range(2))
        assert next(results)[0] == 0
        with pytest.raises(UserError, match="was killed by SIGKILL while it prepared 1: "):
            next(results)
    assert len(notices) == 1


def without_memory(_):
    def fail(_):
        raise OSError(28, "No space left on device")

    os.memfd_create = fail
    return np.zeros(LARGE)


def test_memory_that_is_short_is_an_error_of_the_task():
    with WorkerPool(1) as pool, pytest.raises(OSError, match="No space left"):
        list(pool.map(without_memory, [0]))


def added(table, number):
    return table[0] + number, os.getpid()


def test_what_is_bound_to_a_function_is_sent_once_to_each_process(monkeypatch):
    sizes = []
    with WorkerPool(2, restarts=1, notify=str) as pool:
        for worker in pool._workers:
            send = worker._connection._send_bytes
            monkeypatch.setattr(
                worker._connection, "_send_bytes", lambda data, send=send: (sizes.append(len(data)), send(data))[1]
            )
        results = list(pool.map(partial(added, np.full(LARGE, 5)), range(40)))
    assert [total for total, _ in results] == list(range(5, 45))
    assert sum(size > LARGE for size in sizes) == len({process for _, process in results})
    assert sum(size for size in sizes if size <= LARGE) < 40 * 200


def test_a_process_that_takes_anothers_place_gets_the_function_too(tmp_path):
    with WorkerPool(1, restarts=1, notify=str) as pool:
        assert list(pool.map(partial(added_but_killed_once, tmp_path / "mark", 5), range(4))) == [5, 6, 7, 8]


def added_but_killed_once(mark: Path, offset, number):
    if number == 2 and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return offset + number
