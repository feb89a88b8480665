"""Memory that is used again, and matrix products, for the threads of `threads`."""

import threading
import weakref
from collections import defaultdict
from contextlib import AbstractContextManager
from functools import cache
from itertools import count
from math import prod

import numpy as np
from threadpoolctl import ThreadpoolController

# Numbers in an array; less is malloc's own business, which keeps it.
LEAST_REUSED = 1 << 18

_buffers = threading.local()
_numbers = count()
_used: dict[int, int] = {}  # sizes of the arrays from `reused` that somebody holds
_free: dict[int, list[memoryview]] = defaultdict(list)  # by size, what nobody holds


@cache
def _numpy_blas() -> ThreadpoolController:
    return ThreadpoolController().select(internal_api="openblas")


def one_blas_thread() -> AbstractContextManager:
    """The threads here share out the work; the BLAS below them must not do it again."""
    return _numpy_blas().limit(limits=1)


def buffer(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """This thread's memory of that name: asking the system for it anew each time costs more than filling it."""
    size = int(np.prod(shape))
    memory = getattr(_buffers, name, None)
    if memory is None or memory.size < size:
        memory = np.empty(size, dtype=np.float32)
        setattr(_buffers, name, memory)
    return memory[:size].reshape(shape)


def reused(shape: tuple[int, ...]) -> np.ndarray:
    """An array float32 of any contents, for as long as anyone holds it or a part of it; then its memory is used again.

    Large arrays otherwise go back to the system, and each step of a training waits for it to hand out, and clear, as
    much memory anew.
    """
    size = prod(shape)
    if size < LEAST_REUSED:
        return np.empty(shape, dtype=np.float32)
    # No lock: what is done here and when an array goes, in whichever thread, are single operations of lists and dicts.
    try:
        memory = _free[size].pop()
    except IndexError:
        _give_up_what_others_left()
        memory = memoryview(np.empty(size, dtype=np.float32))
    whole = np.frombuffer(memory, dtype=np.float32)  # every part of it has this one as its base
    number = next(_numbers)
    _used[number] = size
    weakref.finalize(whole, _take_back, number, memory).atexit = False
    return whole.reshape(shape)


def _take_back(number: int, memory: memoryview) -> None:
    _free[_used.pop(number)].append(memory)


def _give_up_what_others_left() -> None:
    """Free memory is what the last step needed; if sizes are no longer what they were, it may never be used again."""
    # Of copies: an array may go in the middle of this.
    free = sum(size * len(blocks) for size, blocks in dict(_free).items())
    if free > sum(dict(_used).values()):
        _free.clear()
