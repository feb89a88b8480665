"""Threads, memory that is used again, and compiled functions, for the kernels here."""

import threading
import weakref
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from functools import cache, reduce
from itertools import count, pairwise
from math import prod
from typing import Any, TypeVar

import numba
import numpy as np
from threadpoolctl import ThreadpoolController

from ssd300_vgg16 import machine

Result = TypeVar("Result")


def compiled(signature, **options) -> Callable:
    """A decorator: the function for arguments of this signature, run without Python's lock.

    Division by zero gives infinity, as in numpy, not an error. Without a place to keep what was compiled (a read-only
    or full disk) it is compiled in each process.
    """
    settings = {"nogil": True, "error_model": "numpy", **options}

    def compile_it(function: Callable) -> Callable:
        try:
            return numba.njit(signature, cache=True, **settings)(function)
        except (RuntimeError, OSError):
            return numba.njit(signature, **settings)(function)

    return compile_it


_this_thread = threading.local()


def thread_count() -> int:
    """How many threads share out work; 1 in one of those threads, which does its share alone."""
    return 1 if getattr(_this_thread, "shares", False) else machine.thread_count()


@cache
def _executor() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(machine.thread_count())


def ranges_of(count: int) -> list[tuple[int, int]]:
    """(first, last) of a share of so many neighbours for each thread."""
    return list(pairwise(count * number // thread_count() for number in range(thread_count() + 1)))


def run_in_threads(work: Callable[[Any], Result], items: Sequence) -> list[Result]:
    """What work returns for each thread's share of the items; one call a thread, because each call costs.

    Shares are fixed, and neighbours go to different threads.
    """

    def quietly(share: Sequence) -> Result:
        # Numbers that grow without bound are the trainer's to report, once and with the images they came from.
        with np.errstate(over="ignore", invalid="ignore"):
            return work(share)

    def alone(share: Sequence) -> Result:
        _this_thread.shares = True
        return quietly(share)

    threads = thread_count()
    if threads == 1:
        return [quietly(items)]
    return list(_executor().map(alone, [items[start::threads] for start in range(threads)]))


def sum_of(shares: Iterable[np.ndarray]) -> np.ndarray:
    """The sum of the threads' shares, always in the same order."""
    return reduce(np.add, shares)


# Numbers in an array; less is malloc's own business, which keeps it.
LEAST_REUSED = 1 << 18

_buffers = threading.local()
_numbers = count()
_used: dict[int, int] = {}  # sizes of the arrays from `reused` that somebody holds
_free: dict[int, list[memoryview]] = defaultdict(list)  # by size, what nobody holds
_missed = False  # whether the last array from `reused` needed new memory


@cache
def _numpy_blas() -> ThreadpoolController:
    return ThreadpoolController().select(internal_api="openblas")


def one_blas_thread() -> AbstractContextManager:
    """The threads here share out the work; the BLAS below them must not do it again."""
    if getattr(_this_thread, "shares", False):
        return nullcontext()  # who shared it out has seen to it
    return _numpy_blas().limit(limits=1)


def buffer(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """This thread's memory of that name: asking the system for it anew each time costs more than filling it."""
    size = prod(shape)
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
    global _missed
    try:
        memory = _free[size].pop()
        _missed = False
    except IndexError:
        # One may be missing because threads happened to meet; two in a row, because sizes are no longer what they were.
        if _missed:
            _give_up_what_others_left()
        _missed = True
        memory = np.empty(size, dtype=np.float32).data
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
