"""A run's figures while it goes on: a line of metrics.jsonl and points in TensorBoard for each report."""

import contextlib
import json
import os
import time
from pathlib import Path

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.summary import scalar

from ssd300_vgg16.errors import UserError
from ssd300_vgg16.training.run_folder import METRICS


class RunLog:
    """Adds to the figures of a run's folder; one that goes on drops what its checkpoint does not know of.

    length: bytes of metrics.jsonl that stand, as `sync` gave them when the checkpoint was written; step: its step.
    """

    def __init__(self, folder: Path, length: int = 0, step: int = 0):
        self._path = folder / METRICS
        self._file = self._path.open("ab", buffering=0)
        self._file.truncate(min(length, self._path.stat().st_size))
        # Written by this thread: SummaryWriter's own one dies on a full disk, and whoever waits for it never returns.
        self._board = EventsWriter(str(folder / "events"), f".{os.getpid()}")
        if step:
            # TensorBoard forgets what came after.
            self._board.write_event(
                Event(wall_time=time.time(), step=step + 1, session_log=SessionLog(status=SessionLog.START))
            )

    def add(self, kind: str, step: int, **values: float | str | None) -> None:
        """Write one line of figures; numbers go to TensorBoard too. Raises UserError if the disk is full."""
        try:
            self._write((json.dumps({"kind": kind, "step": step, **values}) + "\n").encode())
            for name, value in values.items():
                if isinstance(value, int | float):
                    point = scalar(f"{kind}/{name}", value)
                    self._board.write_event(Event(wall_time=time.time(), step=step, summary=point))
            self._board.flush()
        except OSError as error:
            raise UserError(
                f"{self._path} could not be written ({error.strerror}): the last checkpoint is whole; go on from it "
                "with --resume when there is room"
            ) from error

    def _write(self, line: bytes) -> None:
        while line:  # on a disk that gets full, the first part of it is written without an error
            line = line[self._file.write(line) :]

    def sync(self) -> int:
        """See that all is on the disk; returns the length of metrics.jsonl."""
        os.fsync(self._file.fileno())
        return self._file.seek(0, os.SEEK_END)

    def close(self) -> None:
        """Close the files; what could not be written was said before."""
        self._file.close()
        with contextlib.suppress(OSError):
            self._board.close()
