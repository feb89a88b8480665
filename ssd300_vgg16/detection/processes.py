"""A detector in several processes, a GPU to each or all on the CPU: batches shared out, results in the order of one."""

import multiprocessing
import os
import signal
from collections.abc import Iterable
from contextlib import closing, suppress
from itertools import chain
from multiprocessing.connection import Connection
from pathlib import Path

from ssd300_vgg16.data.images import ImageError
from ssd300_vgg16.detection.files import ImageFile
from ssd300_vgg16.detection.pipeline import Results, detect_each
from ssd300_vgg16.detector import Detector
from ssd300_vgg16.errors import UserError
from ssd300_vgg16.signals import STOP_SIGNALS


class DetectorProcesses:
    """Like a Detector that `detect_each` is called with, once: none of its processes is left then."""

    def __init__(self, count: int, weights: Path, device: str, score_threshold: float, engine: str, amp: bool = False):
        """device: "cpu", or "cuda" for GPUs 0 to count - 1. Raises what loading the detector raises in one of them."""
        self.device, self.score_threshold = device, score_threshold
        self._workers: list[_Worker] = []
        # For the processes, whose libraries read it when they are loaded.
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)) // count)))
        try:
            for number in range(count):
                own = device if device == "cpu" else f"cuda:{number}"
                load = (weights, own, score_threshold, engine, amp)
                self._workers.append(_Worker(f"process {number + 1} of {count}", load))
                # Before the next is started: the first makes the model that the others take from beside the weights.
                self.description = self._workers[-1].receive()
        except BaseException:
            self._close()
            raise

    def detect_each(self, files: Iterable[ImageFile], max_detections: int, batch_size: int) -> Results:
        """As `pipeline.detect_each`. Raises UserError if a process dies."""
        files = list(files)
        # The same batches as in one process: on a GPU a result could depend on its neighbours in the last bit.
        batches = [files[start : start + batch_size] for start in range(0, len(files), batch_size)]
        count = len(self._workers)
        try:
            for number, worker in enumerate(self._workers):
                worker.send((list(chain(*batches[number::count])), max_detections, batch_size))
            for number, batch in enumerate(batches):
                for _ in batch:
                    yield self._workers[number % count].receive()
            for worker in self._workers:  # pictures are drawn behind the results
                worker.receive()
        finally:
            self._close()

    def _close(self) -> None:
        """Let each finish the pictures of its images, and end."""
        for worker in self._workers:
            worker.connection.close()
        for worker in self._workers:
            worker.process.join()


class _Worker:
    def __init__(self, name: str, load: tuple):
        self._name = name
        context = multiprocessing.get_context("spawn")  # a fork would take over the threads' locks
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_work, args=(theirs, load), daemon=True)
        # Ctrl-C is for the parent alone: a process begins with the signals that its parent has blocked.
        former = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
        try:
            self.process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, former)
            theirs.close()  # so that the pipe ends with the process

    def send(self, message: object) -> None:
        with suppress(BrokenPipeError):  # told by `receive`
            self.connection.send(message)

    def receive(self):
        """The next message; raises the error that it is, if it is one that ended the process."""
        try:
            message = self.connection.recv()
        except (EOFError, ConnectionError) as error:
            self.process.join()
            status = self.process.exitcode or 0
            how = f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"
            raise UserError(f"{self._name} {how}: if memory is short, run again with a smaller NPROC") from error
        if isinstance(message, (UserError, OSError)) and not isinstance(message, ImageError):
            raise message
        return message


def _work(connection: Connection, load: tuple) -> None:
    """The life of a process; the parent's end of the pipe being closed is its end too."""
    try:
        detector = Detector.load(*load)
        connection.send(detector.description)
        files, max_detections, batch_size = connection.recv()
        with closing(detect_each(detector, files, max_detections, batch_size)) as results:
            for result in results:
                connection.send(result)
        connection.send(None)  # all pictures are there
    except (EOFError, ConnectionError):
        pass
    except (UserError, OSError) as error:
        with suppress(ConnectionError):
            connection.send(error)
