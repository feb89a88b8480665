"""Objects from process to process: their arrays come in shared memory, which is used again when nobody can see it."""

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

pytestmark = pytest.mark.usefixtures("no_hang")

LARGE, SMALL = 1_000_000, 100


class Channel:
    """Both ends of a pipe, in one process."""

    def __init__(self):
        self.here, self.there = multiprocessing.Pipe()
        self.sender = messages.Sender(self.here, os.getpid())
        self.receiver = messages.Receiver(self.there)

    def give_back(self):
        self.sender.give_back(self.receiver.done_with())

    def send(self, content):
        """The content as it comes out of the pipe."""
        self.give_back()
        self.header = self.sender.packed(content)
        with ThreadPoolExecutor(1) as thread:  # pipes hold 64 KB only
            sending = thread.submit(self.sender.send, self.header)
            received = self.receiver.receive()
            sending.result()
        return received


@pytest.fixture
def channel():
    channel = Channel()
    with channel.here, channel.there:
        yield channel


@pytest.fixture
def as_worker(channel, monkeypatch):
    """The channel, from which `zeros` takes memory."""
    monkeypatch.setattr(messages, "_sender", None)
    channel.sender.serve_arrays()
    return channel


def open_files():
    gc.collect()
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - a Path for each of them is no use


@pytest.mark.parametrize("dtype", [np.uint8, np.int64, np.float32])
def test_large_arrays_do_not_go_through_the_pipe(channel, dtype):
    first, second = np.arange(LARGE, dtype=dtype).reshape(10, -1), np.arange(LARGE + 1)[:, None]
    one, words, other = channel.send((first, ["kept"], second))
    np.testing.assert_array_equal(one, first)
    np.testing.assert_array_equal(other, second)
    assert words == ["kept"] and (one.dtype, other.dtype) == (first.dtype, second.dtype)
    assert len(channel.header.pickled) < 2000
    assert one.ctypes.data % messages.ALIGNMENT == other.ctypes.data % messages.ALIGNMENT == 0
    one[:] = 0  # as any array
    np.testing.assert_array_equal(other, second)


@pytest.mark.parametrize(
    "array", [np.arange(SMALL), np.empty((0, 4), np.float32), np.arange(LARGE)[::2], np.array([None] * LARGE)]
)
def test_other_arrays_arrive_as_well(channel, array):
    np.testing.assert_array_equal(channel.send(array), array)


def test_memory_is_used_again_once_the_last_array_is_gone(channel):
    received = channel.send([np.zeros(LARGE), np.ones(LARGE)])
    before, address = open_files(), received[0].ctypes.data
    part = received[1][5:9]
    del received
    second = channel.send(np.full(LARGE, 2.0))
    assert part.tolist() == [1, 1, 1, 1]
    del part
    third = channel.send(np.full(LARGE, 3.0))
    assert (third == 3).all() and (second == 2).all()
    assert third.ctypes.data == address
    assert open_files() == before + 2, "a mapping at each end for the second"


def test_what_was_received_never_changes(channel):
    """However long it is kept, and in whatever order it goes."""
    rng = np.random.default_rng(0)
    kept = {}
    for number in range(200):
        array = channel.send({"array": np.full(int(rng.integers(9000, 20000)), number)})["array"]
        kept[number] = array[100:] if number % 3 else array
        for gone in rng.choice(list(kept), len(kept) // 4, replace=False):
            del kept[int(gone)]
        del array
        assert all((part == one).all() for one, part in kept.items())
    assert channel.sender._sent.keys() == channel.receiver._blocks.keys() - {b.number for b in channel.sender._free}


def test_arrays_made_to_be_sent_are_not_copied(as_worker):
    zeros, ones = messages.zeros(((LARGE,), np.float32), ((50, LARGE // 50), np.int64))
    assert not zeros.any() and not ones.any() and ones.shape == (50, LARGE // 50)
    ones[:] = 1
    received = as_worker.send((zeros, {"ones": ones}, np.full(LARGE, 7)))
    zeros[5] = 9  # forbidden, but it shows that it is the same memory
    assert received[0][5] == 9 and (received[1]["ones"] == 1).all() and (received[2] == 7).all()
    received[1]["ones"][:] = 5


def test_arrays_made_in_a_used_block_are_zeros(as_worker):
    for number in (1, 2):
        as_worker.give_back()
        (array,) = messages.zeros(((LARGE,), np.int64))
        assert not array.any()
        array[:] = number
        received = as_worker.send(array[:-9])
        assert (received == number).all()
        del received, array
    assert len(as_worker.receiver._blocks) == 1


def test_arrays_that_were_not_sent_leave_their_memory(as_worker):
    messages.zeros(((LARGE,), np.int64))
    assert as_worker.send("an error") == "an error"
    (array,) = messages.zeros(((LARGE,), np.int64))
    assert (as_worker.send(array) == 0).all()
    assert list(as_worker.receiver._blocks) == [0]


def test_outside_of_workers_they_are_ordinary_arrays(monkeypatch):
    monkeypatch.setattr(messages, "_sender", None)
    images, offsets = messages.zeros(((3, 4), np.uint8), ((2,), np.float32))
    assert (images.shape, images.dtype, offsets.shape, offsets.dtype) == ((3, 4), np.uint8, (2,), np.float32)
    assert images.flags["OWNDATA"] and not images.any() and not offsets.any()


def test_memory_that_nobody_uses_is_given_up(channel):
    before = open_files()
    kept = [channel.send(np.full(LARGE, number)) for number in range(20)]
    assert open_files() == before + 40
    del kept
    channel.send(None)
    assert open_files() == before + 2 * messages.MOST_FREE


def test_a_tensor_keeps_its_memory(channel):
    flow = pytest.importorskip("oneflow")
    tensor = flow.from_numpy(channel.send(np.full(LARGE, 1.0, dtype=np.float32)))
    doubled = tensor * 2
    for number in range(2, 6):
        channel.send(np.full(LARGE, number, dtype=np.float32))
    assert (tensor.numpy() == 1).all() and (doubled.numpy() == 2).all()
    assert 0 not in [block.number for block in channel.sender._free]


def test_a_message_that_cannot_be_sent_leaves_no_memory():
    before = open_files()
    here, there = multiprocessing.Pipe()
    there.close()
    sender = messages.Sender(here, os.getpid())
    header = sender.packed(np.zeros(LARGE))
    with here, pytest.raises(OSError, match="pipe"):
        sender.send(header)
    del sender
    assert open_files() == before + 1, "until the process ends, which it then does"


def test_memory_that_cannot_be_had_is_given_back(channel, monkeypatch):
    def fail(*_):
        raise OSError(28, "No space left on device")

    before = open_files()
    with monkeypatch.context() as patch:
        patch.setattr(os, "posix_fallocate", fail)
        with pytest.raises(OSError, match="No space left"):
            channel.sender.packed(np.zeros(LARGE))
    assert open_files() == before
    assert (channel.send(np.ones(LARGE)) == 1).all()


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
            send = worker.connection._send_bytes
            monkeypatch.setattr(
                worker.connection, "_send_bytes", lambda data, send=send: (sizes.append(len(data)), send(data))[1]
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
