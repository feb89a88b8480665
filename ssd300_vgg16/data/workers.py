"""Worker processes that prepare data: ordered, a bounded number of tasks ahead, and never silent about a death."""

import ctypes
import multiprocessing
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from typing import TypeVar

import cv2

from ssd300_vgg16.errors import UserError

Task = TypeVar("Task")
Result = TypeVar("Result")

TASKS_AHEAD_PER_WORKER = 2
_PR_SET_PDEATHSIG = 1


def _start_worker() -> None:
    """A worker uses one core, leaves Ctrl-C to its parent, and does not outlive it, however that ends."""
    cv2.setNumThreads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


class WorkerPool:
    """Applies functions to tasks in `workers` processes; with 0 workers, in this process.

    The processes are started fresh rather than forked, so they hold neither OneFlow's threads nor a GPU's context, and
    are kept from one `map` to the next. Functions and tasks travel by pickle.
    """

    def __init__(self, workers: int):
        self.workers = workers
        self._executor = None
        if workers:
            context = multiprocessing.get_context("spawn")
            self._executor = ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker)

    def map(self, function: Callable[[Task], Result], tasks: Iterable[Task]) -> Iterator[Result]:
        """Results in the order of the tasks, at most TASKS_AHEAD_PER_WORKER x workers of them prepared ahead.

        Raises UserError if a worker process dies; what the function raises is raised here.
        """
        if self._executor is None:
            yield from map(function, tasks)
            return
        tasks = iter(tasks)
        pending = deque()
        try:
            for task in islice(tasks, TASKS_AHEAD_PER_WORKER * self.workers):
                pending.append(self._executor.submit(function, task))
            while pending:
                result = pending.popleft().result()
                for task in islice(tasks, 1):
                    pending.append(self._executor.submit(function, task))
                yield result
        except BrokenProcessPool as error:
            raise UserError(
                "a data loading process died (killed, or out of memory?): run again with fewer of them, such as -j 1"
            ) from error
        finally:
            for future in pending:
                future.cancel()

    def close(self) -> None:
        """Stop the processes; tasks not yet begun are dropped."""
        if self._executor is not None:
            self._executor.shutdown(wait=True, cancel_futures=True)

    def __enter__(self):
        return self

    def __exit__(self, *exception) -> None:
        self.close()
