"""Functions compiled by numba when their module is loaded, and kept on disk for the next process."""

from collections.abc import Callable

import numba


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
