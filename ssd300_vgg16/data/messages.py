"""Objects sent from one process to another over a pipe, their arrays in shared memory rather than through it.

The memory is in blocks that have no name and are used again and again, since new memory costs more than what is put
into it. A block is the receiver's until the last array in it is gone, wherever that array is kept; then the receiver
gives it back and the sender may write to it anew. Nothing is left behind in /dev/shm, and its size is no limit.
"""

import mmap
import os
import pickle
import weakref
from collections import deque
from collections.abc import Sequence
from itertools import count
from math import prod
from multiprocessing.connection import Connection
from multiprocessing.reduction import recv_handle, send_handle
from typing import NamedTuple

import numpy as np

ALIGNMENT = 64  # bytes; that of a cache line
# What is less goes through the pipe: it holds 64 KB at once, and a block of its own is a waste.
LEAST_SHARED = 1 << 15
# More blocks than this that nobody uses are given up: a receiver that once kept many arrays may not do so again.
MOST_FREE = 4

_sender: "Sender | None" = None  # that of this process, if it is a worker


def zeros(*kinds: tuple[tuple[int, ...], type]) -> list[np.ndarray]:
    """Arrays of zeros, by their shapes and dtypes; in a worker those are sent without being copied.

    They are the task's result or nothing: once it has been sent, its arrays are the receiver's.
    """
    if _sender is None:
        return [np.zeros(shape, dtype) for shape, dtype in kinds]
    sizes = [prod(shape) * np.dtype(dtype).itemsize for shape, dtype in kinds]
    block, places = _sender.take(sizes)
    parts = zip(kinds, sizes, places, strict=False)
    arrays = [block.bytes[at : at + size].view(dtype).reshape(shape) for (shape, dtype), size, at in parts]
    for array in arrays:
        array.fill(0)
    return arrays


class _Place(NamedTuple):
    """Where a buffer is: so many bytes, from `start` on, of the block of that number."""

    block: int
    start: int
    size: int


class Header(NamedTuple):
    """What goes through the pipe of a message; the descriptors of its new blocks come after it, in their order.

    new: numbers and sizes of blocks that the receiver does not know yet; given_up: numbers of those it can forget.
    """

    pickled: bytes
    places: list[_Place]
    new: list[tuple[int, int]]
    given_up: list[int]


class _Block:
    """Memory that other processes can map: `bytes` is all of it, uint8 [size]."""

    def __init__(self, number: int, size: int):
        self.number = number
        self.descriptor = os.memfd_create("batch")
        try:
            os.posix_fallocate(self.descriptor, 0, size)  # so that a lack of memory is an error, and not a SIGBUS
            self.bytes = np.frombuffer(mmap.mmap(self.descriptor, size), dtype=np.uint8)
        except BaseException:
            self.close()
            raise
        self.start = self.bytes.ctypes.data

    def place_of(self, buffer: np.ndarray) -> _Place | None:
        """Where the buffer, uint8 [n], is in this block; None if it is not in it."""
        start = buffer.ctypes.data - self.start
        return _Place(self.number, start, buffer.size) if 0 <= start < self.bytes.size else None

    def close(self) -> None:
        """The receiver has it, or never will: what keeps it is its mapping."""
        if self.descriptor is not None:
            os.close(self.descriptor)
            self.descriptor = None


class Sender:
    """Sends objects to the process of this id; of arrays from `zeros`, made since the last one, no copy is made."""

    def __init__(self, connection: Connection, receiver: int):
        self._connection = connection
        self._receiver = receiver
        self._numbers = count()
        self._free: list[_Block] = []  # the one given back last is the last
        self._taken: list[_Block] = []  # for the next message
        self._sent: dict[int, _Block] = {}

    def serve_arrays(self) -> None:
        """Have `zeros` take this one's memory from now on."""
        global _sender
        _sender = self

    def take(self, sizes: Sequence[int]) -> tuple[_Block, list[int]]:
        """A block for buffers of these sizes in bytes, and where they begin. Raises OSError if there is no memory."""
        places = _places(sizes)
        size = max(places[-1], 1)
        large_enough = [block for block in self._free if block.bytes.size >= size]
        if large_enough:
            self._free.remove(large_enough[-1])
        block = large_enough[-1] if large_enough else _Block(next(self._numbers), size)
        self._taken.append(block)
        return block, places

    def give_back(self, numbers: Sequence[int]) -> None:
        """The receiver has no array in these blocks any more."""
        self._free += [self._sent.pop(number) for number in numbers]

    def packed(self, content: object) -> Header:
        """An object made ready to be sent. Raises what pickle or the system's memory does."""
        buffers: list[np.ndarray] = []
        pickled = pickle.dumps(content, protocol=5, buffer_callback=lambda buffer: _keep(buffer, buffers))
        places = self._placed(buffers)
        used = {place.block for place in places}
        self._free += [block for block in self._taken if block.number not in used]
        self._taken = [block for block in self._taken if block.number in used]
        new = [(block.number, block.bytes.size) for block in self._taken if block.descriptor is not None]
        given_up, self._free = self._free[:-MOST_FREE], self._free[-MOST_FREE:]
        return Header(pickled, places, new, [block.number for block in given_up if block.descriptor is None])

    def _placed(self, buffers: Sequence[np.ndarray]) -> list[_Place]:
        """Where the buffers are; those that are in no block are copied into one."""
        found = [next(filter(None, (block.place_of(buffer) for block in self._taken)), None) for buffer in buffers]
        others = [buffer for buffer, place in zip(buffers, found, strict=True) if place is None]
        if not others:
            return found
        block, starts = self.take([buffer.size for buffer in others])
        for buffer, start in zip(others, starts, strict=False):
            block.bytes[start : start + buffer.size] = buffer
        copies = iter([_Place(block.number, start, buffer.size) for buffer, start in zip(others, starts, strict=False)])
        return [place or next(copies) for place in found]

    def send(self, header: Header) -> None:
        """Send what was packed last. Raises OSError when the other end is closed."""
        self._connection.send_bytes(pickle.dumps(header))
        for block in self._taken:
            if block.descriptor is not None:
                send_handle(self._connection, block.descriptor, self._receiver)
                block.close()
        self._sent |= {block.number: block for block in self._taken}
        self._taken = []


class Receiver:
    """Receives what a `Sender` at the other end of the pipe sends."""

    def __init__(self, connection: Connection):
        self._connection = connection
        self._blocks: dict[int, mmap.mmap] = {}
        self._done: deque[int] = deque()  # arrays end in any thread

    def receive(self) -> object:
        """The object of the next message. Raises EOFError or OSError when the other end is closed."""
        header = pickle.loads(self._connection.recv_bytes())
        for number in header.given_up:
            del self._blocks[number]
        for number, size in header.new:
            descriptor = recv_handle(self._connection)
            try:
                self._blocks[number] = mmap.mmap(descriptor, size)
            finally:
                os.close(descriptor)
        wholes = {number: self._whole(number) for number in {place.block for place in header.places}}
        buffers = [wholes[place.block][place.start : place.start + place.size] for place in header.places]
        return pickle.loads(header.pickled, buffers=buffers)

    def done_with(self) -> list[int]:
        """Numbers of the blocks that can be given back, each once: the last array in them is gone."""
        return [self._done.popleft() for _ in range(len(self._done))]

    def _whole(self, number: int) -> np.ndarray:
        """The block uint8 [size]: every array in it has this one as its base, and it goes with the last of them."""
        whole = np.frombuffer(self._blocks[number], dtype=np.uint8)
        weakref.finalize(whole, self._done.append, number).atexit = False
        return whole


def _keep(buffer: pickle.PickleBuffer, buffers: list[np.ndarray]) -> bool:
    """Whether to pickle it with the rest; else it is added to those that are shared."""
    raw = buffer.raw()
    if raw.nbytes < LEAST_SHARED:
        return True
    buffers.append(np.frombuffer(raw, dtype=np.uint8))
    return False


def _places(sizes: Sequence[int]) -> list[int]:
    """Where the buffers begin, and the end of the last one."""
    places = [0]
    for size in sizes:
        places.append(places[-1] + -(-size // ALIGNMENT) * ALIGNMENT)
    return places
