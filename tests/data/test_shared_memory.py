"""Arrays from process to process: they come in shared memory, which is used again when nobody can see it."""

import gc
import mmap
import os
from functools import partial

import numpy as np
import pytest
from full_disk import full_disk

from ssd300_vgg16.data.workers import ALIGNMENT, SharedMemory, WorkerPool
from ssd300_vgg16.errors import UserError

pytestmark = pytest.mark.usefixtures("no_hang")

LARGE, SMALL = 1_000_000, 100


class Channel:
    """The views of a worker and of its parent, in one process."""

    def __init__(self):
        self.parent = SharedMemory()
        self.worker = SharedMemory(os.dup(self.parent.descriptor))

    def send(self, content):
        """The content as the parent gets it."""
        self.slot = self.parent.free_slot()
        self.message = self.worker.pack(content, self.slot)
        return self.parent.unpack(self.message, self.slot)

    def close(self):
        self.parent.close()
        self.worker.close()


@pytest.fixture
def channel():
    channel = Channel()
    yield channel
    channel.close()


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
    assert len(channel.message[0]) < 2000
    assert one.ctypes.data % ALIGNMENT == other.ctypes.data % ALIGNMENT == 0
    one[:] = 0  # as any array
    np.testing.assert_array_equal(other, second)


@pytest.mark.parametrize(
    "array", [np.arange(SMALL), np.empty((0, 4), np.float32), np.arange(LARGE)[::2], np.array([None] * LARGE)]
)
def test_other_arrays_arrive_as_well(channel, array):
    for _ in range(3):
        np.testing.assert_array_equal(channel.send(array), array)
    assert channel.slot == 0, "a slot without arrays is free at once"


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
    """However long it is kept, in whatever order it goes, and though a slot may have to grow."""
    rng = np.random.default_rng(0)
    kept, slots = {}, set()
    for number in range(200):
        array = channel.send({"array": np.full(int(rng.integers(9000, 20000)), number)})["array"]
        slots.add(channel.slot)
        kept[number] = array[100:] if number % 3 else array
        for gone in rng.choice(list(kept), len(kept) // 4, replace=False):
            del kept[int(gone)]
        del array
        assert all((part == one).all() for one, part in kept.items())
    assert len(slots) < 20, "slots are not used again"


def test_a_tensor_keeps_its_memory(channel):
    flow = pytest.importorskip("oneflow")
    tensor = flow.from_numpy(channel.send(np.full(LARGE, 1.0, dtype=np.float32)))
    doubled = tensor * 2
    for number in range(2, 6):
        channel.send(np.full(LARGE, number, dtype=np.float32))
    assert (tensor.numpy() == 1).all() and (doubled.numpy() == 2).all()


def test_arrays_outlive_the_channel_and_nothing_else_does():
    before, named = open_files(), sorted(os.listdir("/dev/shm"))  # noqa: PTH208 - names are enough
    channel = Channel()
    array = channel.send(np.arange(LARGE))
    channel.close()
    assert (array == np.arange(LARGE)).all()
    assert sorted(os.listdir("/dev/shm")) == named  # noqa: PTH208
    del array, channel
    assert open_files() == before


def without_memory(large):
    def no_space(*_):
        raise OSError(28, "No space left on device")

    os.posix_fallocate = no_space
    return np.zeros(LARGE if large else 1)


def test_memory_that_is_short_is_an_error_of_the_task():
    with WorkerPool(1) as pool:
        with pytest.raises(MemoryError, match=r"no [\d,]+ bytes for a batch"):
            list(pool.map(without_memory, [True]))
        assert list(pool.map(without_memory, [False])) == [0]


def test_a_limit_on_the_size_of_files_is_no_lack_of_memory():
    memory = SharedMemory()
    with pytest.raises(UserError, match=r"ulimit -f unlimited.*-j 0"), full_disk(at=LARGE // 2):
        memory.pack(np.zeros(LARGE), memory.free_slot())
    memory.close()


def test_memory_that_is_short_here_is_not_taken_for_a_dead_worker(monkeypatch):
    def no_map(*_, **__):
        raise OSError(12, "Cannot allocate memory")

    with WorkerPool(1, restarts=3, notify=pytest.fail) as pool:
        monkeypatch.setattr(mmap, "mmap", no_map)
        with pytest.raises(MemoryError, match=r"no [\d,]+ bytes for a batch"):
            list(pool.map(partial(np.full, LARGE), range(2)))


def test_a_pool_leaves_no_file_open():
    before = open_files()
    with WorkerPool(2) as pool:
        for array in pool.map(partial(np.full, LARGE), range(9)):
            assert array[0] == array[-1]
    del array
    assert open_files() <= before + 1, "but that of Python's own resource tracker"


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
