"""Threads for numpy work that releases Python's lock, one for each core this process may use."""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import pairwise

import numpy as np


@cache
def thread_count() -> int:
    """OMP_NUM_THREADS, as for the libraries below; otherwise the cores this process may use."""
    return int(os.environ.get("OMP_NUM_THREADS") or len(os.sched_getaffinity(0)))


@cache
def _executor() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(thread_count())


def share_out(items: Sequence) -> list[Sequence]:
    """A fixed share of the items for each thread, neighbours to different threads."""
    return [items[start :: thread_count()] for start in range(thread_count())]


def ranges_of(count: int) -> list[tuple[int, int]]:
    """(first, last) of a share of so many neighbours for each thread."""
    return list(pairwise(count * number // thread_count() for number in range(thread_count() + 1)))


def run_in_threads(work: Callable[[Sequence], object], items: Sequence) -> list:
    """What work returns for each thread's share of the items; one call a thread, because each call costs."""

    def quietly(share: Sequence) -> object:
        # Numbers that grow without bound are the trainer's to report, once and with the images they came from.
        with np.errstate(over="ignore", invalid="ignore"):
            return work(share)

    shares = share_out(items)
    if len(shares) == 1:
        return [quietly(shares[0])]
    return list(_executor().map(quietly, shares))
