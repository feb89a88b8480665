"""stdout and stderr that may go while the work goes on: `| head`, a terminal that is closed, a log on a full disk."""

import io
import os
import select
import sys
from collections.abc import Callable

_CLOSED = "{name}: stdout is closed ({problem}): the work goes on, and what it prints is lost"


class _Stream(io.RawIOBase):
    """Writes to a descriptor as long as that can be; from then on what is written is dropped."""

    def __init__(self, descriptor: int, gone: Callable[[str], object]):
        self._descriptor, self._gone = descriptor, gone

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._descriptor

    def isatty(self) -> bool:
        return os.isatty(self._descriptor)

    def write(self, content) -> int:
        while True:
            try:
                return os.write(self._descriptor, content)
            except BlockingIOError:  # whoever shares the pipe may have made it so
                select.select([], [self._descriptor], [])
            except OSError as error:
                # For native code and for processes started later too.
                _to_nowhere(self._descriptor)
                self._gone(error.strerror or str(error))
                return len(content)


def outlive_readers(name: str) -> None:
    """For work whose results are files: from now on no print raises OSError.

    When stdout is gone, stderr says so once. When stderr is gone, nothing does.
    """
    # Where one of the three was closed from the start, the next file that is opened would take its number.
    while (unused := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(unused, True)
    os.close(unused)
    if sys.stdout is sys.__stdout__:  # and is not a test's
        sys.stdout = _text(1, lambda problem: print(_CLOSED.format(name=name, problem=problem), file=sys.stderr))
    if sys.stderr is sys.__stderr__:
        sys.stderr = _text(2, lambda _: None)


def _text(descriptor: int, gone: Callable[[str], object]) -> io.TextIOWrapper:
    # File names that are not text are written with escapes.
    buffered = io.BufferedWriter(_Stream(descriptor, gone))
    return io.TextIOWrapper(buffered, errors="backslashreplace", line_buffering=True)


def _to_nowhere(descriptor: int) -> None:
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, descriptor)
    os.close(nowhere)
