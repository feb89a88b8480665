"""A run's figures while it goes on: a line of metrics.jsonl and points in TensorBoard for each reading."""

import json
import os
from pathlib import Path

from tensorboardX import SummaryWriter

from ssd300_vgg16.training.run_folder import METRICS


class RunLog:
    """Adds to the figures of a run's folder; one that goes on drops what its checkpoint does not know of.

    length: bytes of metrics.jsonl that stand, as `sync` gave them when the checkpoint was written; step: its step.
    """

    def __init__(self, folder: Path, length: int = 0, step: int = 0):
        self._path = folder / METRICS
        self._file = self._path.open("ab")
        self._file.truncate(min(length, self._path.stat().st_size))
        self._board = SummaryWriter(str(folder), purge_step=step + 1 if step else None)

    def add(self, kind: str, step: int, **values: float | str | None) -> None:
        """Write one reading; numbers go to TensorBoard too."""
        self._file.write((json.dumps({"kind": kind, "step": step, **values}) + "\n").encode())
        self._file.flush()
        for name, value in values.items():
            if isinstance(value, int | float):
                self._board.add_scalar(f"{kind}/{name}", value, step)

    def sync(self) -> int:
        """See that all is on the disk; returns the length of metrics.jsonl."""
        os.fsync(self._file.fileno())
        return self._file.seek(0, os.SEEK_END)

    def close(self) -> None:
        self._file.close()
        self._board.close()
