"""Worker processes that prepare data: ordered, a bounded number of tasks ahead, and never silent about a death."""

import ctypes
import multiprocessing
import os
import signal
import threading
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from queue import SimpleQueue
from typing import TypeVar

import cv2

from ssd300_vgg16.data import messages
from ssd300_vgg16.errors import UserError

Task = TypeVar("Task")
Result = TypeVar("Result")

TASKS_AHEAD_PER_WORKER = 2
# What asks for an end is for the parent alone; a worker ends when its parent does.
PARENTS_SIGNALS = {signal.SIGINT, signal.SIGTERM, signal.SIGUSR1}
# Of glibc's malloc.h; in bytes, the largest threshold that it takes.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_LARGEST_IN_HEAP = 32 << 20
DEATH_SECONDS = 5.0  # for a process whose pipe has closed to be gone


class WorkerPool:
    """Applies functions to tasks in `workers` processes; with 0 workers, in this process.

    The processes are started fresh rather than forked, so they hold neither OneFlow's threads nor a GPU's context, and
    are kept from one `map` to the next. Functions and tasks travel by pickle, a function once to each process, so what
    all tasks have in common is best bound to it; arrays in results come in shared memory. A process that dies is
    replaced and its task done again, `restarts` times in all; `notify` is told each time.
    """

    def __init__(self, workers: int, restarts: int = 0, notify: Callable[[str], object] = print):
        self.workers = workers
        self.restarts = restarts
        self._restarts_left = restarts
        self._notify = notify
        self._closing = False
        self._lock = threading.Lock()
        self._workers = [_Worker() for _ in range(workers)]
        self._idle = SimpleQueue()
        for worker in self._workers:
            self._idle.put(worker)
        # A thread for each process, to wait for it.
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix="worker") if workers else None

    def map(self, function: Callable[[Task], Result], tasks: Iterable[Task]) -> Iterator[Result]:
        """Results in the order of the tasks, at most TASKS_AHEAD_PER_WORKER x workers of them prepared ahead.

        Raises UserError if a worker process dies and may not be replaced; what the function raises is raised here.
        """
        if self._threads is None:
            yield from map(function, tasks)
            return
        tasks = iter(tasks)
        pending: deque[Future] = deque()
        try:
            for task in islice(tasks, TASKS_AHEAD_PER_WORKER * self.workers):
                pending.append(self._threads.submit(self._apply, function, task))
            while pending:
                result = pending.popleft().result()
                for task in islice(tasks, 1):
                    pending.append(self._threads.submit(self._apply, function, task))
                yield result
        finally:
            for future in pending:
                future.cancel()

    def _apply(self, function: Callable[[Task], Result], task: Task) -> Result:
        worker = self._idle.get()
        try:
            while True:
                try:
                    return worker.apply(function, task)
                except _WorkerDied:
                    worker = self._replacement(worker, task)
        finally:
            self._idle.put(worker)

    def _replacement(self, dead: "_Worker", task: Task) -> "_Worker":
        """A new process in a dead one's place; UserError if there have been enough of them."""
        story = f"a data loading process {dead.end()} while it prepared {task}"
        with self._lock:
            if self._closing or not self._restarts_left:
                raise UserError(f"{story}: if memory is short, run again with fewer of them (such as -j 1)")
            self._restarts_left -= 1
            worker = _Worker()
            self._workers[self._workers.index(dead)] = worker
        self._notify(f"{story}; another takes its place ({self.restarts - self._restarts_left} of {self.restarts})")
        return worker

    def close(self) -> None:
        """Stop the processes; tasks that are not finished are dropped."""
        with self._lock:
            self._closing = True
            for worker in self._workers:
                worker.kill()
        if self._threads is not None:
            self._threads.shutdown(cancel_futures=True)

    def __enter__(self):
        return self

    def __exit__(self, *exception) -> None:
        self.close()


class _WorkerDied(Exception):
    """The process that was to do a task is gone."""


class _Worker:
    """A process that applies functions to tasks, one at a time.

    It has a pipe of its own, so its death is noticed whenever it comes. Processes that share queues, as those of
    concurrent.futures do, can leave the others waiting for ever when one is killed in the middle of a message.
    """

    def __init__(self):
        self._function: Callable | None = None  # the one it was sent last
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._receiver = messages.Receiver(self._connection)
        self._process = context.Process(target=_serve, args=(theirs,), daemon=True)
        resource_tracker.ensure_running()  # starting it would unblock the signal
        # A process inherits what is blocked, so that it is from the first moment on.
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, PARENTS_SIGNALS)
        try:
            self._process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        theirs.close()

    def apply(self, function: Callable[[Task], Result], task: Task) -> Result:
        try:
            new_function = None if function is self._function else function
            self._connection.send((new_function, task, self._receiver.done_with()))
            self._function = function
            result, error, trace = self._receiver.receive()
        except (EOFError, OSError) as gone:
            raise _WorkerDied from gone
        if error is not None:
            raise error from RuntimeError(trace)
        return result

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


def _serve(connection: Connection) -> None:
    """A worker's life, on one core; it ends when its parent closes the pipe, however that comes about."""
    cv2.setNumThreads(1)
    _keep_freed_memory()
    function = None
    sender = messages.Sender(connection, os.getppid())
    sender.serve_arrays()
    try:
        while True:
            new_function, task, done_with = connection.recv()
            function = new_function or function
            sender.give_back(done_with)
            sender.send(_outcome(function, task, sender))
    except (EOFError, OSError):
        return


def _keep_freed_memory() -> None:
    """Have malloc keep what is freed: taking the pages of each image from the system anew costs a third of the time."""
    mallopt = ctypes.CDLL(None).mallopt
    mallopt(_M_MMAP_THRESHOLD, _LARGEST_IN_HEAP)
    mallopt(_M_TRIM_THRESHOLD, 4 * _LARGEST_IN_HEAP)


def _outcome(function: Callable[[Task], Result], task: Task, sender: messages.Sender) -> messages.Header:
    """What is to be sent: the result, the error, and where it came from."""
    try:
        return sender.packed((function(task), None, ""))
    except Exception as error:
        return sender.packed((None, error, traceback.format_exc()))
