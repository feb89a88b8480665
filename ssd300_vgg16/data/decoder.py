"""OpenCV's decoder, with what the libraries under it print about a damaged image.

They print it to C's `stderr`, without the file's name, and OpenCV has no place for it. While images are decoded that
stream is another; Python's own and file descriptor 2, which progress bars and crashes are written to, stay as they are.
"""

import ctypes
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import cv2
import numpy as np

_UNBUFFERED = 2  # glibc's _IONBF
_DECODERS_LINES = ("Corrupt JPEG", "Premature end of JPEG", "Inconsistent progression", "Invalid SOS", "libpng ")


def decode(data: bytes, flags: int) -> tuple[np.ndarray | None, list[str]]:
    """What cv2.imdecode gives, BGR or grey, and the lines that its libraries printed. Raises cv2.error."""
    content = np.frombuffer(data, dtype=np.uint8)
    with _stderr.caught() as lines:
        image = cv2.imdecode(content, flags)
    if lines:
        # Several threads decode at a time, and the lines may be of another's image. Few images are damaged.
        with _stderr.caught(alone=True) as lines:
            image = cv2.imdecode(content, flags)
    return image, lines


class _Stderr:
    """C's `stderr`, which is a file in memory while any thread decodes."""

    def __init__(self) -> None:
        libc = ctypes.CDLL(None)
        libc.fdopen.restype = ctypes.c_void_p
        libc.setvbuf.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
        self._variable = ctypes.c_void_p.in_dll(libc, "stderr")
        self._own = self._variable.value
        self._descriptor = os.memfd_create("stderr")
        self._memory = libc.fdopen(self._descriptor, b"a")
        libc.setvbuf(self._memory, None, _UNBUFFERED, 0)
        self._turn = threading.Condition()
        self._decoding = 0
        self._waiting = 0  # to be alone

    @contextmanager
    def caught(self, alone: bool = False) -> Iterator[list[str]]:
        """A list of what decoders print within the block, filled at its end; alone: no other thread is in one."""
        lines: list[str] = []
        with self._turn:
            self._waiting += alone
            self._turn.wait_for(lambda: not (self._decoding if alone else self._waiting))
            self._decoding += 1
            self._variable.value = self._memory
            start = self._size()
        try:
            yield lines
        finally:
            with self._turn:
                if self._size() > start:
                    lines += [line for line in self._text(start).splitlines() if line.startswith(_DECODERS_LINES)]
                self._waiting -= alone
                self._decoding -= 1
                if not self._decoding:
                    self._give_back()

    def _give_back(self) -> None:
        self._variable.value = self._own
        self._turn.notify_all()
        # What others printed meanwhile, such as OneFlow, is theirs to be seen.
        others = [line for line in self._text(0).splitlines() if not line.startswith(_DECODERS_LINES)]
        os.ftruncate(self._descriptor, 0)
        if others:
            os.write(2, ("\n".join(others) + "\n").encode())

    def _size(self) -> int:
        return os.fstat(self._descriptor).st_size

    def _text(self, start: int) -> str:
        return os.pread(self._descriptor, self._size() - start, start).decode(errors="replace")


_stderr = _Stderr()
