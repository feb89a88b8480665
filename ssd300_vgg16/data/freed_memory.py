"""What becomes of the memory of images that are done with."""

import ctypes

# Of glibc's malloc.h; in bytes, the largest threshold that it takes.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_LARGEST_IN_HEAP = 32 << 20


def keep_freed_memory() -> None:
    """Have this process's malloc keep what is freed, up to 128 MB.

    Else the pages of each image come from the system anew and go back to it, which can take longer than to decode it.
    """
    mallopt = ctypes.CDLL(None).mallopt
    mallopt(_M_MMAP_THRESHOLD, _LARGEST_IN_HEAP)
    mallopt(_M_TRIM_THRESHOLD, 4 * _LARGEST_IN_HEAP)
