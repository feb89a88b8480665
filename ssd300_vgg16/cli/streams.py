"""stdout and stderr: no name of a stranger's file rules the terminal, and both may go while the work goes on.

They go by `| head`, a terminal that is closed, a log on a full disk.
"""

import io
import os
import re
import select
import sys
from collections.abc import Callable

_CLOSED = "{name}: stdout is closed ({problem}): the work goes on, and what it prints is lost"


# Control characters but tab and the ends of lines, and what turns the direction of writing.
_UNSEEN = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")


class _Text(io.TextIOWrapper):
    """Prints `?` for what a terminal would obey; file names that are no text are printed with escapes."""

    def __init__(self, buffer, encoding: str | None = None):
        super().__init__(buffer, encoding, errors="backslashreplace", line_buffering=True)

    def write(self, text: str) -> int:
        moves_of_tqdm = not text.strip("\n\x1b[A")
        return super().write(text if moves_of_tqdm else _UNSEEN.sub("?", text))


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


def print_plainly() -> None:
    """From now on what is printed can be seen, and appears line by line in a pipe too."""
    stdout, stderr = sys.__stdout__, sys.__stderr__
    if stdout and sys.stdout is stdout:  # and is not a test's
        sys.stdout = _Text(stdout.buffer, stdout.encoding)
    if stderr and sys.stderr is stderr:
        sys.stderr = _Text(stderr.buffer, stderr.encoding)


def outlive_readers(name: str) -> None:
    """For work whose results are files: from now on no print raises OSError.

    When stdout is gone, stderr says so once. When stderr is gone, nothing does.
    """
    # Where one of the three was closed from the start, the next file that is opened would take its number.
    while (unused := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(unused, True)
    os.close(unused)
    if sys.stdout is sys.__stdout__ or isinstance(sys.stdout, _Text):
        sys.stdout = _text(1, lambda problem: print(_CLOSED.format(name=name, problem=problem), file=sys.stderr))
    if sys.stderr is sys.__stderr__ or isinstance(sys.stderr, _Text):
        sys.stderr = _text(2, lambda _: None)


def _text(descriptor: int, gone: Callable[[str], object]) -> io.TextIOWrapper:
    return _Text(io.BufferedWriter(_Stream(descriptor, gone)))


def _to_nowhere(descriptor: int) -> None:
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, descriptor)
    os.close(nowhere)
