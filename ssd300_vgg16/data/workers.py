"""Worker processes that prepare data: ordered, a bounded number of tasks ahead, and never silent about a death."""

import errno
import mmap
import multiprocessing
import os
import pickle
import signal
import traceback
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from contextlib import suppress
from itertools import count, islice
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.reduction import recv_handle, send_handle
from typing import Any, Generic, TypeVar

import cv2
import numpy as np
from tqdm import tqdm

from ssd300_vgg16.data.dataset import Notes
from ssd300_vgg16.errors import UserError
from ssd300_vgg16.machine import keep_freed_memory
from ssd300_vgg16.signals import STOP_SIGNALS, end_of

Task = TypeVar("Task")
Result = TypeVar("Result")

TASKS_AHEAD_PER_WORKER = 2
MAX_BYTES_AHEAD = 1 << 16  # of a task; a pipe holds some more
DEATH_SECONDS = 5.0  # for a process whose pipe has closed to be gone
ALIGNMENT = 64  # bytes; that of a cache line
MIN_SHARED = 1 << 15  # bytes of an array; less goes through the pipe: kept for long, it would hold on to a whole slot
# Slots are far apart, so that each can grow. The file is sparse: what was never written takes no memory.
SLOT_DISTANCE = 1 << 36

Message = tuple[bytes, list[int]]  # a pickled object, and the sizes in bytes of its arrays in shared memory, in order


def workers_for(device: str, chosen: int | None) -> int:
    """Data workers: those chosen with -j, else one less than this process's share of the cores, 8 at the most.

    With a GPU there is one at least, because the process itself waits for most of its time; on the CPU a worker on the
    same core would only be in the way.
    """
    if chosen is not None:
        return chosen
    cores = len(os.sched_getaffinity(0)) // int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    return max(0 if device == "cpu" else 1, min(8, cores - 1))


class WorkerPool:
    """Applies functions to tasks in `workers` processes; with 0 workers, in this process.

    The processes are kept from one `map` to the next. Functions and tasks travel by pickle, a function once to each
    process, so what all tasks have in common is best bound to it; arrays in results come in shared memory. A process
    that dies is replaced and its tasks done again, `restarts` times in all; `notify` is told each time. notes: what was
    told of images, which is told once in the life of a pool.
    """

    def __init__(self, workers: int, restarts: int = 0, notify: Callable[[str], object] = print):
        self.workers = workers
        self._restarts = restarts
        self._replaced = 0
        self._notify = notify
        self.notes = Notes(tqdm.write)  # which keeps clear of a progress bar
        self._workers = [_Worker() for _ in range(workers)]
        self._waiting: deque[_Job[Any]] = deque()  # for a worker
        if not workers:
            keep_freed_memory()

    def map(self, function: Callable[[Task], Result], tasks: Iterable[Task]) -> Iterator[Result]:
        """Results in the order of the tasks, at most TASKS_AHEAD_PER_WORKER x workers of them prepared ahead.

        Raises UserError if a worker process dies and may not be replaced; what the function raises is raised here.
        """
        if not self.workers:
            yield from map(function, tasks)
            return
        tasks = iter(tasks)
        jobs: deque[_Job[Result]] = deque()
        try:
            for task in islice(tasks, TASKS_AHEAD_PER_WORKER * self.workers):
                jobs.append(self._begin(function, task))
            while jobs:
                self._receive_answers(timeout=0)  # whoever has sent one gets something new to do
                while not jobs[0].future.done():
                    self._receive_answers(timeout=None)
                result = jobs.popleft().future.result()
                # Before the result is handed out: no worker is to wait while the training step is made.
                for task in islice(tasks, 1):
                    jobs.append(self._begin(function, task))
                yield result
        finally:
            for job in jobs:  # those that a worker has are done, and nobody looks at their results
                if job in self._waiting:
                    self._waiting.remove(job)

    def _begin(self, function: Callable[[Task], Result], task: Task) -> "_Job[Result]":
        job = _Job(function, task)
        self._waiting.append(job)
        self._hand_out()
        return job

    def _hand_out(self) -> None:
        while self._waiting:
            worker = min(self._workers, key=lambda worker: len(worker.jobs))
            if not worker.can_take(self._waiting[0]):
                return
            worker.give(self._waiting.popleft())

    def _receive_answers(self, timeout: float | None) -> None:
        """Take what workers have sent; with None as timeout, wait until one has."""
        busy: dict[Any, _Worker] = {worker.connection: worker for worker in self._workers if worker.jobs}
        for connection in wait(list(busy), timeout):
            try:
                busy[connection].receive_answer()
            except (EOFError, OSError):
                self._replace(busy[connection])
        self._hand_out()

    def _replace(self, dead: "_Worker") -> None:
        """Start a process in a dead one's place; if there have been enough of them, its jobs end with UserError."""
        story = f"a data loading process {dead.end()} while it prepared {dead.jobs[0].task}"
        if self._replaced == self._restarts:
            error = UserError(f"{story}: if memory is short, run again with fewer of them (such as -j 1)")
            while dead.jobs:
                dead.jobs.popleft().future.set_exception(error)
            return
        self._replaced += 1
        dead.kill()
        self._workers[self._workers.index(dead)] = _Worker()
        self._waiting.extendleft(reversed(dead.jobs))
        self._notify(f"{story}; another takes its place ({self._replaced} of {self._restarts})")

    def close(self) -> None:
        """Stop the processes; tasks that are not finished are dropped."""
        for worker in self._workers:
            worker.kill()
        self._workers = []

    def __enter__(self) -> "WorkerPool":
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()


class _Job(Generic[Result]):
    """A task, and in the end what became of it."""

    def __init__(self, function: Callable[[Task], Result], task: Task):
        self.function = function
        self.task = task
        self.pickled = pickle.dumps(task)
        self.slot = -1  # of the worker's shared memory, for the answer: none yet
        self.future: Future[Result] = Future()


class _Worker:
    """A process that applies functions to tasks, one after the other: `jobs` are those that it has.

    It has a pipe of its own, so its death is noticed whenever it comes. Processes that share queues, as those of
    concurrent.futures do, can leave the others waiting for ever when one is killed in the middle of a message.
    """

    def __init__(self) -> None:
        self.jobs: deque[_Job[Any]] = deque()
        self._function: Callable | None = None  # the one it was sent last
        self._memory = SharedMemory()
        # Started fresh rather than forked: a copy of this process would hold OneFlow's threads and a GPU's context.
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs,), daemon=True)
        resource_tracker.ensure_running()  # starting it would unblock the signal
        # What asks for an end is for the parent alone; a worker ends when its parent does. A process inherits what is
        # blocked, so that it is from the first moment on.
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
        try:
            self._process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        theirs.close()
        with suppress(OSError):  # it is dead, which is dealt with when its answer is waited for
            send_handle(self.connection, self._memory.descriptor, self._process.pid)

    def can_take(self, job: _Job[Any]) -> bool:
        """Whether it has nothing to do, or only one task, and this one finds room in the pipe."""
        if not self.jobs:
            return True
        # A process that is at work does not read: both would wait for ever if its answer found no room either.
        return len(self.jobs) == 1 and job.function is self._function and len(job.pickled) <= MAX_BYTES_AHEAD

    def give(self, job: _Job[Any]) -> None:
        self.jobs.append(job)
        job.slot = self._memory.free_slot()
        new_function = None if job.function is self._function else job.function
        try:
            self.connection.send((new_function, job.pickled, job.slot))
        except OSError:
            return  # it is dead, which is dealt with when its answer is waited for
        self._function = job.function

    def receive_answer(self) -> None:
        """Receive the answer to the first of the jobs. Raises EOFError or OSError if the process is gone."""
        result, error, trace = self._memory.unpack(self.connection.recv(), self.jobs[0].slot)
        future = self.jobs.popleft().future
        if error is None:
            future.set_result(result)
        else:
            error.__cause__ = RuntimeError(trace)  # where it came from in the worker
            future.set_exception(error)

    def end(self) -> str:
        """How it ended, in words: "was killed by SIGKILL"."""
        self._process.join(DEATH_SECONDS)
        code = self._process.exitcode
        return "closed its pipe" if code is None else end_of(code)

    def kill(self) -> None:
        self._process.kill()
        self._process.join()
        self.connection.close()
        self._memory.close()


def _serve(connection: Connection) -> None:
    """A worker's life, on one core; it ends when its parent closes the pipe, however that comes about."""
    cv2.setNumThreads(1)
    keep_freed_memory()
    function: Callable
    with suppress(EOFError, OSError):
        memory = SharedMemory(recv_handle(connection))
        while True:
            new_function, task, slot = connection.recv()
            if new_function is not None:
                function = new_function
            connection.send(_answer(function, task, slot, memory))


def _answer(function: Callable, pickled_task: bytes, slot: int, memory: "SharedMemory") -> Message:
    """What is to be sent: the result, the error, and where it came from."""
    try:
        return memory.pack((function(pickle.loads(pickled_task)), None, ""), slot)
    except Exception as error:
        return memory.pack((None, error, traceback.format_exc()), slot)


class SharedMemory:
    """One process's view of an anonymous file for the arrays of a worker's answers: a pipe would copy each twice.

    The file is cut into numbered slots. The parent names a free slot with each task, the worker writes the arrays of
    the answer into it, and the slot is free again when the last array in it is gone, wherever that one is kept. The
    file has no name, so nothing is left behind by a kill, and the size of /dev/shm is no limit.
    """

    def __init__(self, descriptor: int | None = None):
        self.descriptor = os.memfd_create("batches") if descriptor is None else descriptor  # the other view's
        self._maps: dict[int, mmap.mmap] = {}
        self._free: list[int] = []
        self._new = count()

    def free_slot(self) -> int:
        """A slot for an answer. There is always one: a new slot costs nothing until it is written to."""
        # The one freed last comes first: its pages are warm, and new pages cost more than what is put into them.
        return self._free.pop() if self._free else next(self._new)

    def pack(self, content: object, slot: int) -> Message:
        """Pickle an object, its large arrays into the slot. Raises what pickle does, and MemoryError."""
        arrays: list[np.ndarray] = []

        def stays_in_pickle(buffer: pickle.PickleBuffer) -> bool:
            raw = buffer.raw()
            if raw.nbytes >= MIN_SHARED:
                arrays.append(np.frombuffer(raw, dtype=np.uint8))
            return raw.nbytes < MIN_SHARED

        pickled = pickle.dumps(content, protocol=5, buffer_callback=stays_in_pickle)
        sizes = [array.size for array in arrays]
        for array, part in zip(arrays, self._parts(slot, sizes), strict=True):
            part[:] = array
        return pickled, sizes

    def unpack(self, message: Message, slot: int) -> Any:
        """The object. Its arrays are the slot's memory itself, which is free again when the last of them is gone."""
        pickled, sizes = message
        parts = self._parts(slot, sizes)
        if parts:
            # Whatever is made of a part has the same base, which goes with the last of them. That may be in any
            # thread: list.append is atomic.
            weakref.finalize(parts[0].base, self._free.append, slot).atexit = False
        else:
            self._free.append(slot)
        return pickle.loads(pickled, buffers=parts)

    def _parts(self, slot: int, sizes: list[int]) -> list[np.ndarray]:
        """Arrays uint8 [size] in the slot, one after the other."""
        if not sizes:
            return []
        *starts, total = np.cumsum([0, *(-(-size // ALIGNMENT) * ALIGNMENT for size in sizes)]).tolist()
        if slot not in self._maps or len(self._maps[slot]) < total:
            start = slot * SLOT_DISTANCE
            try:
                os.posix_fallocate(self.descriptor, start, total)  # so that a lack of memory is an error and no SIGBUS
                # An older, smaller mapping stays valid for the arrays in it.
                self._maps[slot] = mmap.mmap(self.descriptor, total, offset=start)
            except OSError as error:  # which would look like a pipe's, or a disk's
                if error.errno == errno.EFBIG:
                    raise UserError(
                        "data workers share a file, in memory, that is longer than ulimit -f allows: lift that with "
                        "ulimit -f unlimited, or take no workers (-j 0)"
                    ) from error
                raise MemoryError(f"no {total:,} bytes for a batch") from error
        whole = np.frombuffer(self._maps[slot], dtype=np.uint8)
        return [whole[start : start + size] for start, size in zip(starts, sizes, strict=True)]

    def close(self) -> None:
        """Forget the file; the memory itself lasts as long as an array in it."""
        os.close(self.descriptor)
        self._maps.clear()
