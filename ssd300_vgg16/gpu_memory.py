"""A GPU without enough memory: one sentence, where OneFlow has a traceback or aborts the process."""

import ctypes
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache

from ssd300_vgg16.errors import UserError, is_said

TRAINING_ADVICE = (
    "the GPU has too little memory for this training: lower --batch-size, take the batch in several passes with "
    "--accumulate, or halve what the maps take with --amp. The last checkpoint is as it was."
)
DETECTION_ADVICE = (
    "the GPU has too little memory to detect on so many images at a time: lower --batch-size, or use --device cpu. "
    "What was written is whole."
)
# What the CUDA runtime and OneFlow call it.
OUT_OF_MEMORY = "out of memory"
# C++'s own names of std::set_terminate and std::current_exception.
SET_TERMINATE, CURRENT_EXCEPTION = "_ZSt13set_terminatePFvvE", "_ZSt17current_exceptionv"
WHAT = 2  # the place of std::exception::what in the table of its virtual functions, after two destructors

_TerminateHandler = ctypes.CFUNCTYPE(None)
_What = ctypes.CFUNCTYPE(ctypes.c_char_p, ctypes.c_void_p)


@contextmanager
def advice_when_out_of_memory(advice: str, program: str) -> Iterator[None]:
    """Have the block, if the GPU's memory gives out in it, end with this advice and status 2: mostly as a UserError."""
    end_when_out_of_memory(f"{program}: {advice}")
    try:
        yield
    except RuntimeError as error:
        if OUT_OF_MEMORY not in str(error).lower():
            raise
        raise UserError(advice) from error


@cache
def _standard_library() -> ctypes.CDLL:
    return ctypes.CDLL("libstdc++.so.6")


_handlers: list[Callable] = []  # C++ keeps no reference


def end_when_out_of_memory(message: str) -> None:
    """From now on end the process with this and status 2 if the GPU's memory gives out; the first message counts.

    Single operations run on a thread of OneFlow's. What it throws there, nobody can catch: the process ends at once.
    """
    if _handlers:
        return
    set_terminate = _standard_library()[SET_TERMINATE]
    set_terminate.argtypes, set_terminate.restype = [ctypes.c_void_p], ctypes.c_void_p

    def terminate() -> None:
        if OUT_OF_MEMORY in _current_message().lower():
            newline = "\n" if sys.stderr.isatty() else ""  # after the progress bar
            if not is_said(message):
                print(f"{newline}{message}", file=sys.stderr, flush=True)
            os._exit(2)
        _TerminateHandler(former)()

    handler = _TerminateHandler(terminate)
    _handlers.append(handler)
    former = set_terminate(ctypes.cast(handler, ctypes.c_void_p))


def _current_message() -> str:
    """What the C++ exception says that this thread is about to end the process with."""
    exception = ctypes.c_void_p()
    _standard_library()[CURRENT_EXCEPTION](ctypes.byref(exception))
    if not exception.value:
        return ""
    virtual_functions = ctypes.cast(exception, ctypes.POINTER(ctypes.POINTER(ctypes.c_void_p)))[0]
    return _What(virtual_functions[WHAT])(exception.value).decode(errors="replace")
