"""A run's figures while it goes on: step metrics, and a line of metrics.jsonl and points in TensorBoard a report."""

import contextlib
import json
import os
import resource
import secrets
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.summary import scalar

from ssd300_vgg16.errors import UserError
from ssd300_vgg16.files import GrowingFile
from ssd300_vgg16.training.run_folder import METRICS
from ssd300_vgg16.training.step import NotFinite

if TYPE_CHECKING:
    import oneflow as flow
else:
    from ssd300_vgg16.runtime import flow


class StepMetrics:
    """Metrics of steps on their way from the device, and how fast the steps were, since the last report.

    values [N][R]: those already fetched. A checkpoint in the middle of a report keeps them, so that a run that goes on
    from it reports the same.
    """

    def __init__(self, names: tuple[str, ...], values: list[list[float]]):
        self.names = names
        self.values = list(values)
        self._on_the_way: list[tuple[int, flow.Tensor]] = []
        self.start_clock()

    def start_clock(self) -> None:
        """Measure the speed from now on: what came before was no training."""
        self._steps, self._waited, self._since = 0, 0.0, time.perf_counter()

    def add(self, step: int, metrics: flow.Tensor, waited: float = 0.0) -> None:
        """Take the metrics [R] of a step, which had to wait so many seconds for its batch."""
        # Sent at once: the device does things in order, and what is asked for later comes after later steps.
        self._on_the_way.append((step, metrics.to("cpu")))
        self._steps += 1
        self._waited += waited

    def fetch(self, unfinished: int = 0) -> None:
        """Wait for the values of all steps but the last so many; raises NotFinite for the first that is not finite."""
        while len(self._on_the_way) > unfinished:
            step, metrics = self._on_the_way[0]
            row = metrics.numpy()
            if not np.isfinite(row).all():
                raise NotFinite(row, step)
            self.values.append(row.tolist())
            del self._on_the_way[0]

    def take_means(self) -> dict[str, float]:
        """Means since the last time, by name."""
        self.fetch()
        means = dict(zip(self.names, np.mean(self.values, axis=0).tolist(), strict=True))
        self.values = []
        return means

    def take_pace(self, batch_size: int) -> dict[str, float]:
        """Images per second, and the share of the time that was spent waiting for data, since the clock was started."""
        seconds = time.perf_counter() - self._since
        pace = {"images_per_second": self._steps * batch_size / seconds, "data_wait": self._waited / seconds}
        self.start_clock()
        return pace


def memory(device: str) -> dict[str, int]:
    """Memory in MB: this process's maximum so far in main memory, and what all users of the GPU have there now."""
    used = {"memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024}
    if device != "cpu":
        used["gpu_memory_mb"] = round(flow._oneflow_internal.GetCUDAMemoryUsed())
    return used


class RunLog:
    """Adds to the figures of a run's folder; one that goes on drops what its checkpoint does not know of.

    length: bytes of metrics.jsonl that stand, as `sync` gave them when the checkpoint was written; step: its step.
    """

    def __init__(self, folder: Path, length: int = 0, step: int = 0):
        self._path = folder / METRICS
        self._file = GrowingFile(self._path, length)
        # Written by this thread: SummaryWriter's own one dies on a full disk, and whoever waits for it never returns.
        # Under a name that nobody knows before: what has it already would be written to, through links too.
        with self._full_disk_told():
            self._board = EventsWriter(str(folder / "events"), f".{os.getpid()}.{secrets.token_hex(4)}")
            if step:  # TensorBoard forgets what came after
                start = SessionLog(status=SessionLog.START)
                self._board.write_event(Event(wall_time=time.time(), step=step + 1, session_log=start))

    def add(self, kind: str, step: int, **values: float | str | None) -> None:
        """Write one line of figures; numbers go to TensorBoard too. Raises UserError if the disk is full."""
        line = (json.dumps({"kind": kind, "step": step, **values}) + "\n").encode()
        with self._full_disk_told():
            self._file.add(line)
            for name, value in values.items():
                if isinstance(value, int | float):
                    point = scalar(f"{kind}/{name}", value)
                    self._board.write_event(Event(wall_time=time.time(), step=step, summary=point))
            self._board.flush()

    def sync(self) -> int:
        """See that all is on the disk, or raise UserError; returns the length of metrics.jsonl."""
        with self._full_disk_told():
            self._file.sync()
        return self._file.end

    def close(self) -> None:
        """Close the files; what could not be written was said before."""
        with contextlib.suppress(OSError):
            self._file.close()
        with contextlib.suppress(OSError):
            self._board.close()

    @contextlib.contextmanager
    def _full_disk_told(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UserError(
                f"{self._path} could not be written ({error.strerror}): the last checkpoint is whole; go on from it "
                "with --resume when there is room"
            ) from error
