"""A run's figures while it goes on: a line of metrics.jsonl and points in TensorBoard for each report."""

import contextlib
import io
import json
import os
import time
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.summary import scalar

from ssd300_vgg16.errors import UserError
from ssd300_vgg16.files import write_atomically
from ssd300_vgg16.training.run_folder import METRICS, read_metrics

CURVES = "curves.png"


def draw_curves(folder: Path) -> None:
    """Draw folder/curves.png from folder/metrics.jsonl."""
    rows = read_metrics(folder)
    training = [row for row in rows if row["kind"] == "training"]
    evaluations = [row for row in rows if row["kind"] == "evaluation"]
    figure = Figure(figsize=(12, 4), layout="constrained")
    FigureCanvasAgg(figure)
    loss_axes, rate_axes, ap_axes = figure.subplots(1, 3)
    _plot(loss_axes, training, ("localization", "classification"), "loss")
    _plot(rate_axes, training, ("lr",), "learning rate")
    _plot(ap_axes, evaluations, ("AP50", "AP"), "box AP", marker="o")
    ap_axes.set_ylim(0, 1)
    if training:
        loss_axes.set_yscale("log")
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=100)
    write_atomically(folder / CURVES, content.getvalue())


def _plot(axes: Axes, rows: list[dict], names: tuple[str, ...], title: str, marker: str | None = None) -> None:
    for name in names:
        axes.plot([row["step"] for row in rows], [row[name] for row in rows], label=name, marker=marker)
    axes.set(title=title, xlabel="step")
    axes.grid(alpha=0.3)
    if len(names) > 1 and rows:
        axes.legend()


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
