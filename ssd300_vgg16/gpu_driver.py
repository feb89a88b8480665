"""Whether there can be a GPU at all, found out without OneFlow, whose import takes the longest of all."""

import ctypes


def has_gpu_driver() -> bool:
    """Whether NVIDIA's driver library can be loaded."""
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return True
