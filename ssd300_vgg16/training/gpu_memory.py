"""A GPU without enough memory for a training: one sentence, where OneFlow has a traceback or aborts the process."""

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from ssd300_vgg16.errors import UserError

ADVICE = (
    "the GPU has too little memory for this training: lower --batch-size, take the batch in several passes with "
    "--accumulate, or halve what the maps take with --amp. The last checkpoint is as it was."
)
# What the CUDA runtime and OneFlow call it.
OUT_OF_MEMORY = "out of memory"
# C++'s own names of std::set_terminate and std::current_exception.
SET_TERMINATE, CURRENT_EXCEPTION = "_ZSt13set_terminatePFvvE", "_ZSt17current_exceptionv"
WHAT = 2  # the place of std::exception::what in the table of its virtual functions, after two destructors

_TerminateHandler = ctypes.CFUNCTYPE(None)
_What = ctypes.CFUNCTYPE(ctypes.c_char_p, ctypes.c_void_p)


@contextmanager
def advice_when_out_of_memory() -> Iterator[None]:
    """Have the block, if the GPU's memory gives out in it, end with ADVICE and status 2: mostly as a UserError.

    Single operations run on a thread of OneFlow's. What it throws there, nobody can catch: the process ends at once.
    """
    library = ctypes.CDLL("libstdc++.so.6")
    set_terminate = library[SET_TERMINATE]
    set_terminate.argtypes, set_terminate.restype = [ctypes.c_void_p], ctypes.c_void_p

    def terminate() -> None:
        if OUT_OF_MEMORY in _current_message(library).lower():
            newline = "\n" if sys.stderr.isatty() else ""  # after the progress bar
            print(f"{newline}train.sh: {ADVICE}", file=sys.stderr, flush=True)
            os._exit(2)
        _TerminateHandler(former)()

    handler = _TerminateHandler(terminate)
    former = set_terminate(ctypes.cast(handler, ctypes.c_void_p))
    try:
        yield
    except RuntimeError as error:
        if OUT_OF_MEMORY not in str(error).lower():
            raise
        raise UserError(ADVICE) from error
    finally:
        set_terminate(former)


def _current_message(library: ctypes.CDLL) -> str:
    """What the C++ exception says that this thread is about to end the process with."""
    exception = ctypes.c_void_p()
    library[CURRENT_EXCEPTION](ctypes.byref(exception))
    if not exception.value:
        return ""
    virtual_functions = ctypes.cast(exception, ctypes.POINTER(ctypes.POINTER(ctypes.c_void_p)))[0]
    return _What(virtual_functions[WHAT])(exception.value).decode(errors="replace")
