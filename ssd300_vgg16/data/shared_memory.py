"""The arrays of a worker's answers in shared memory: a pipe would copy each of them twice.

Worker and parent map one anonymous file, cut into numbered slots. The parent names a free slot with each task, the
worker writes the arrays of the answer into it, and the slot is free again when the last array in it is gone, wherever
that one is kept. The file has no name, so nothing is left behind by a kill, and the size of /dev/shm is no limit.
"""

import mmap
import os
import pickle
import weakref
from collections.abc import Sequence
from itertools import count
from typing import Any, NamedTuple

import numpy as np

ALIGNMENT = 64  # bytes; that of a cache line
MIN_SHARED = 1 << 15  # bytes; less goes through the pipe, which holds 64 KB, and a slot of its own would be a waste
# Slots are far apart, so that each can grow. The file is sparse: what was never written takes no memory.
SLOT_DISTANCE = 1 << 36


class Message(NamedTuple):
    """What goes through the pipe: the pickled object, and the sizes in bytes of its arrays in the slot, in order."""

    pickled: bytes
    sizes: list[int]


class SharedMemory:
    """One process's view of the file; `descriptor` is given to the process that has the other view."""

    def __init__(self, descriptor: int | None = None):
        self.descriptor = os.memfd_create("batches") if descriptor is None else descriptor
        self._maps: dict[int, mmap.mmap] = {}
        self._free: list[int] = []
        self._new = count()

    def free_slot(self) -> int:
        """A slot for an answer. There is always one: a new slot costs nothing until it is written to."""
        # The one freed last comes first: its pages are warm, and new pages cost more than what is put into them.
        return self._free.pop() if self._free else next(self._new)

    def pack(self, content: object, slot: int) -> Message:
        """Pickle an object, its large arrays into the slot. Raises what pickle does, and OSError if memory is short."""
        arrays: list[np.ndarray] = []

        def stays_in_pickle(buffer: pickle.PickleBuffer) -> bool:
            raw = buffer.raw()
            if raw.nbytes >= MIN_SHARED:
                arrays.append(np.frombuffer(raw, dtype=np.uint8))
            return raw.nbytes < MIN_SHARED

        pickled = pickle.dumps(content, protocol=5, buffer_callback=stays_in_pickle)
        sizes = [array.size for array in arrays]
        for array, part in zip(arrays, self._parts(slot, sizes), strict=True):
            part[:] = array
        return Message(pickled, sizes)

    def unpack(self, message: Message, slot: int) -> Any:
        """The object. Its arrays are the slot's memory itself, which is free again when the last of them is gone."""
        parts = self._parts(slot, message.sizes)
        if parts:
            # Whatever is made of a part has the same base, which goes with the last of them. That may be in any
            # thread: list.append is atomic.
            weakref.finalize(parts[0].base, self._free.append, slot).atexit = False
        else:
            self._free.append(slot)
        return pickle.loads(message.pickled, buffers=parts)

    def _parts(self, slot: int, sizes: Sequence[int]) -> list[np.ndarray]:
        """Arrays uint8 [size] in the slot, one after the other."""
        if not sizes:
            return []
        starts = [0]
        for size in sizes:
            starts.append(starts[-1] + -(-size // ALIGNMENT) * ALIGNMENT)
        whole = np.frombuffer(self._mapped(slot, starts[-1]), dtype=np.uint8)
        return [whole[start : start + size] for start, size in zip(starts, sizes, strict=False)]

    def _mapped(self, slot: int, size: int) -> mmap.mmap:
        if slot not in self._maps or len(self._maps[slot]) < size:
            start = slot * SLOT_DISTANCE
            os.posix_fallocate(self.descriptor, start, size)  # so that a lack of memory is an error, and not a SIGBUS
            # An older, smaller mapping stays valid for the arrays in it.
            self._maps[slot] = mmap.mmap(self.descriptor, size, offset=start)
        return self._maps[slot]

    def close(self) -> None:
        """Forget the file; the memory itself lasts as long as an array in it."""
        os.close(self.descriptor)
        self._maps.clear()
