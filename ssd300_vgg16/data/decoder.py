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
    start = _stderr.begin()
    try:
        image = cv2.imdecode(content, flags)
    finally:
        printed = _stderr.end(start)
    if not printed:
        return image, []
    # Several threads decode at a time, and the lines may be of another's image. Few images are damaged.
    with _stderr.alone():
        start = _stderr.size()
        image = cv2.imdecode(content, flags)
        return image, _stderr.lines_since(start)


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

    def begin(self) -> int:
        """Begin to decode; returns where the lines will start."""
        with self._turn:
            self._turn.wait_for(lambda: not self._waiting)
            self._decoding += 1
            self._variable.value = self._memory
            return self.size()

    def end(self, start: int) -> bool:
        """End it; returns whether anything was printed by a decoder meanwhile, whosever image it was."""
        with self._turn:
            printed = self.size() > start and bool(self.lines_since(start))
            self._decoding -= 1
            if not self._decoding:
                self._give_back()
            return printed

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Within it no other thread decodes."""
        with self._turn:
            self._waiting += 1
            self._turn.wait_for(lambda: not self._decoding)
            self._variable.value = self._memory
            try:
                yield
            finally:
                self._waiting -= 1
                self._give_back()

    def size(self) -> int:
        """Bytes printed so far."""
        return os.fstat(self._descriptor).st_size

    def lines_since(self, start: int) -> list[str]:
        """The decoders' lines from there on."""
        return [line for line in self._text(start).splitlines() if line.startswith(_DECODERS_LINES)]

    def _text(self, start: int) -> str:
        return os.pread(self._descriptor, self.size() - start, start).decode(errors="replace")

    def _give_back(self) -> None:
        self._variable.value = self._own
        self._turn.notify_all()
        if not self.size():
            return
        # What others printed meanwhile, such as OneFlow, is theirs to be seen.
        others = [line for line in self._text(0).splitlines() if not line.startswith(_DECODERS_LINES)]
        os.ftruncate(self._descriptor, 0)
        if others:
            os.write(2, ("\n".join(others) + "\n").encode())


_stderr = _Stderr()
