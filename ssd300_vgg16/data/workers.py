"""Worker processes that prepare data: ordered, a bounded number of tasks ahead, and never silent about a death."""

import multiprocessing
import os
import pickle
import signal
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from contextlib import suppress
from itertools import islice
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.reduction import ForkingPickler, recv_handle, send_handle
from typing import Any, Generic, TypeVar

import cv2
from tqdm import tqdm

from ssd300_vgg16.data.dataset import Notes
from ssd300_vgg16.data.shared_memory import Message, SharedMemory
from ssd300_vgg16.errors import UserError
from ssd300_vgg16.machine import keep_freed_memory

Task = TypeVar("Task")
Result = TypeVar("Result")

TASKS_AHEAD_PER_WORKER = 2
MAX_BYTES_AHEAD = 1 << 16  # of a task; a pipe holds some more
# What asks for an end is for the parent alone; a worker ends when its parent does.
PARENTS_SIGNALS = {signal.SIGINT, signal.SIGTERM, signal.SIGUSR1}
DEATH_SECONDS = 5.0  # for a process whose pipe has closed to be gone


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
        self.restarts = restarts
        self._restarts_left = restarts
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
                result = self._result_of(jobs.popleft())
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

    def _result_of(self, job: "_Job[Result]") -> Result:
        self._receive_answers(timeout=0)  # whoever has sent one gets something new to do
        while not job.future.done():
            self._receive_answers(timeout=None)
        return job.future.result()

    def _receive_answers(self, timeout: float | None) -> None:
        """Take what workers have sent; with None as timeout, wait until one has."""
        busy = [worker for worker in self._workers if worker.jobs]
        ready = wait([worker.connection for worker in busy], timeout)
        for worker in busy:
            if worker.connection not in ready:
                continue
            try:
                worker.receive_answer()
            except (EOFError, OSError):
                self._replace(worker)
        self._hand_out()

    def _replace(self, dead: "_Worker") -> None:
        """Start a process in a dead one's place; if there have been enough of them, its jobs end with UserError."""
        story = f"a data loading process {dead.end()} while it prepared {dead.jobs[0].task}"
        if not self._restarts_left:
            error = UserError(f"{story}: if memory is short, run again with fewer of them (such as -j 1)")
            while dead.jobs:
                dead.jobs.popleft().future.set_exception(error)
            return
        self._restarts_left -= 1
        dead.kill()
        self._workers[self._workers.index(dead)] = _Worker()
        self._waiting.extendleft(reversed(dead.jobs))
        self._notify(f"{story}; another takes its place ({self.restarts - self._restarts_left} of {self.restarts})")

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
        self.pickled = bytes(ForkingPickler.dumps(task))
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
        # A process inherits what is blocked, so that it is from the first moment on.
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, PARENTS_SIGNALS)
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
        if code is None:
            return "closed its pipe"
        return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with status {code}"

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
    try:
        memory = SharedMemory(recv_handle(connection))
        while True:
            new_function, task, slot = connection.recv()
            if new_function is not None:
                function = new_function
            connection.send(_answer(function, task, slot, memory))
    except (EOFError, OSError):
        return


def _answer(function: Callable, pickled_task: bytes, slot: int, memory: SharedMemory) -> Message:
    """What is to be sent: the result, the error, and where it came from."""
    try:
        return memory.pack((function(pickle.loads(pickled_task)), None, ""), slot)
    except Exception as error:
        return memory.pack((None, error, traceback.format_exc()), slot)
