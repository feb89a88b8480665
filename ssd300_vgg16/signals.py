"""Signals that ask a training to stop when its step is done, and those that end a process."""

import signal
import time
from types import FrameType
from typing import Any

# Ctrl-C; what `kill`, Docker and SLURM send before the end; what SLURM can be asked to send some time before that; the
# terminal's end.
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)
REPEAT_SECONDS = 0.5  # `timeout` and some schedulers send a signal twice at a time: that is one request


def end_of(status: int) -> str:
    """How a process of ours ended, in words: "was killed by SIGKILL", "ended with status 1"."""
    if status >= 0:
        return f"ended with status {status}"
    names = {each.value: each.name for each in signal.Signals}  # without most real-time signals
    return f"was killed by {names.get(-status, f'signal {-status}')}"


def heeded() -> list[signal.Signals]:
    """STOP_SIGNALS, but for the terminal's end where this process was begun to outlive it, as by `nohup`."""
    deaf = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    return [number for number in STOP_SIGNALS if not (deaf and number == signal.SIGHUP)]


class StopRequest:
    """While entered, the first of the `heeded` is noted as `signal_number`, and the next one ends the process at once.

    At once means by the operating system's own handling, which does not wait for a long operation to return.
    """

    def __init__(self) -> None:
        self.signal_number: int | None = None
        self._handlers: dict[int, Any] = {}

    @property
    def made(self) -> bool:
        """Whether a signal has come."""
        return self.signal_number is not None

    def __enter__(self) -> "StopRequest":
        self._handlers = {number: signal.signal(number, self._note) for number in heeded()}
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.made:
            return  # within the wait below
        self.signal_number = number
        # The handler stays in place for a while: a repetition comes in here and is ignored.
        time.sleep(REPEAT_SECONDS)
        for each in self._handlers:
            signal.signal(each, signal.SIG_DFL)
