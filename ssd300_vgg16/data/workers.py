"""Worker processes that prepare data: ordered, a bounded number of tasks ahead, and never silent about a death."""

import multiprocessing
import signal
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

from ssd300_vgg16.errors import UserError

Task = TypeVar("Task")
Result = TypeVar("Result")

TASKS_AHEAD_PER_WORKER = 2


class WorkerPool:
    """Applies functions to tasks in `workers` processes; with 0 workers, in this process.

    The processes are started fresh rather than forked, so they hold neither OneFlow's threads nor a GPU's context, and
    are kept from one `map` to the next. Functions and tasks travel by pickle.
    """

    def __init__(self, workers: int):
        self.workers = workers
        self._workers = [_Worker() for _ in range(workers)]
        self._idle = SimpleQueue()
        for worker in self._workers:
            self._idle.put(worker)
        # A thread for each process, to wait for it.
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix="worker") if workers else None

    def map(self, function: Callable[[Task], Result], tasks: Iterable[Task]) -> Iterator[Result]:
        """Results in the order of the tasks, at most TASKS_AHEAD_PER_WORKER x workers of them prepared ahead.

        Raises UserError if a worker process dies; what the function raises is raised here.
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
            return worker.apply(function, task)
        finally:
            self._idle.put(worker)

    def close(self) -> None:
        """Stop the processes; tasks that are not finished are dropped."""
        for worker in self._workers:
            worker.kill()
        if self._threads is not None:
            self._threads.shutdown(cancel_futures=True)

    def __enter__(self):
        return self

    def __exit__(self, *exception) -> None:
        self.close()


class _Worker:
    """A process that applies functions to tasks, one at a time.

    It has a pipe of its own, so its death is noticed whenever it comes. Processes that share queues, as those of
    concurrent.futures do, can leave the others waiting for ever when one is killed in the middle of a message.
    """

    def __init__(self):
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs,), daemon=True)
        resource_tracker.ensure_running()  # starting it would unblock the signal
        # A process inherits what is blocked: Ctrl-C is for its parent alone, from the first moment on.
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            self._process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        theirs.close()

    def apply(self, function: Callable[[Task], Result], task: Task) -> Result:
        try:
            self._connection.send((function, task))
            result, error, trace = self._connection.recv()
        except (EOFError, OSError) as gone:
            raise UserError(
                "a data loading process died (killed, or out of memory?): run again with fewer of them, such as -j 1"
            ) from gone
        if error is not None:
            raise error from RuntimeError(trace)
        return result

    def kill(self) -> None:
        self._process.kill()
        self._process.join()


def _serve(connection: Connection) -> None:
    """A worker's life, on one core; it ends when its parent closes the pipe, however that comes about."""
    cv2.setNumThreads(1)
    try:
        while True:
            function, task = connection.recv()
            connection.send(_outcome(function, task))
    except (EOFError, OSError):
        return


def _outcome(function: Callable[[Task], Result], task: Task) -> tuple[Result | None, Exception | None, str]:
    try:
        return function(task), None, ""
    except Exception as error:
        return None, error, traceback.format_exc()
