"""Memory and matrix products for the threads of `threads`."""

import threading
from contextlib import AbstractContextManager
from functools import cache

import numpy as np
from threadpoolctl import ThreadpoolController

_buffers = threading.local()


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
