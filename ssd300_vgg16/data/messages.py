"""Objects sent from one process to another over a pipe, their arrays in shared memory rather than through it.

Arrays are written once, into memory that has no name, and the receiver's arrays are that memory: it goes with the last
of them, whichever process ends how. Nothing is left behind in /dev/shm, and its size is no limit.
"""

import mmap
import os
import pickle
from collections.abc import Sequence
from multiprocessing.connection import Connection
from multiprocessing.reduction import recv_handle, send_handle

ALIGNMENT = 64  # bytes; that of a cache line
# What is less goes through the pipe: it holds 64 KB at once, and memory of its own costs calls of the system.
LEAST_SHARED = 1 << 15


class Message:
    """An object made ready to be sent; `send` sends it. Raises what pickle or the system's memory does."""

    def __init__(self, content: object):
        buffers: list[memoryview] = []
        self._pickled = pickle.dumps(content, protocol=5, buffer_callback=lambda buffer: _keep(buffer, buffers))
        self._sizes = [buffer.nbytes for buffer in buffers]
        self._memory = _filled(buffers) if buffers else None

    def send(self, connection: Connection, receiver: int) -> None:
        """Send it once, to the process of this id. Raises OSError when the other end is closed."""
        try:
            connection.send_bytes(pickle.dumps((self._pickled, self._sizes)))
            if self._memory is not None:
                send_handle(connection, self._memory, receiver)
        finally:
            self._close()

    def _close(self) -> None:
        if self._memory is not None:
            os.close(self._memory)
            self._memory = None


def receive(connection: Connection) -> object:
    """The object of the next `Message`. Raises EOFError or OSError when the other end is closed."""
    pickled, sizes = pickle.loads(connection.recv_bytes())
    if not sizes:
        return pickle.loads(pickled)
    places = _places(sizes)
    memory = recv_handle(connection)
    try:
        view = memoryview(mmap.mmap(memory, places[-1]))
    finally:
        os.close(memory)
    return pickle.loads(pickled, buffers=[view[at : at + size] for at, size in zip(places, sizes, strict=False)])


def _keep(buffer: pickle.PickleBuffer, buffers: list[memoryview]) -> bool:
    """Whether to pickle it with the rest; else it is added to those that are shared."""
    raw = buffer.raw()
    if raw.nbytes < LEAST_SHARED:
        return True
    buffers.append(raw)
    return False


def _places(sizes: Sequence[int]) -> list[int]:
    """Where the buffers begin, and the end of the last one."""
    places = [0]
    for size in sizes:
        places.append(places[-1] + -(-size // ALIGNMENT) * ALIGNMENT)
    return places


def _filled(buffers: Sequence[memoryview]) -> int:
    """The descriptor of new memory that holds the buffers."""
    memory = os.memfd_create("batch")
    try:
        places = _places([buffer.nbytes for buffer in buffers])
        for place, buffer in zip(places, buffers, strict=False):
            _write(memory, buffer, place)
        os.ftruncate(memory, places[-1])
    except BaseException:
        os.close(memory)
        raise
    return memory


def _write(memory: int, buffer: memoryview, place: int) -> None:
    # By calls rather than through a mapping: it is faster, and where memory runs out it is an error and not a SIGBUS.
    while buffer.nbytes:
        written = os.pwrite(memory, buffer, place)
        buffer, place = buffer[written:], place + written
