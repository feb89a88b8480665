"""What is known of the machine and the process without OneFlow: BLAS, cores, memory; gpus.py has the GPUs."""

import ctypes
import errno
import os
import re
import resource
from contextlib import suppress
from functools import cache
from pathlib import Path

from ssd300_vgg16.errors import UserError

# What OpenBLAS's "SkylakeX" kernels need of a processor. OpenBLAS finds that out by itself for the processors it has
# heard of; for those newer than it (AMD's with AVX-512, say) it falls back to kernels half as fast.
AVX512 = {"avx512f", "avx512cd", "avx512bw", "avx512dq", "avx512vl"}


def use_widest_kernels() -> None:
    """Name OpenBLAS's widest kernels that this processor has, unless the user has chosen (OPENBLAS_CORETYPE)."""
    flags = processor_flags()
    if flags:
        os.environ.setdefault("OPENBLAS_CORETYPE", "SkylakeX" if flags >= AVX512 else "Haswell")


def processor_flags() -> set[str]:
    """The instructions that this processor has, as Linux calls them; none if it lacks AVX2 or does not say."""
    flags = set(cpuinfo("flags").split())
    return flags if "avx2" in flags else set()


def cpuinfo(field: str) -> str:
    """What Linux says of the first processor; empty if it does not."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(field)), "")


def is_one_of_several() -> bool:
    """Whether this process is one of several that train or evaluate together."""
    return int(os.environ.get("WORLD_SIZE", 1)) > 1


# Native code aborts where Python has an exception: too little for the libraries alone is told before they are loaded.
# Address space in kB, as `ulimit -v` has it: OneFlow, CUDA's libraries and MKL take 4.9 million before there is data.
MIN_FOR_ONEFLOW, MIN_WITHOUT = 6_000_000, 1_000_000
MIN_OPEN_FILES = 64
SHARED_MEMORY = "/dev/shm"


def refuse_tight_limits() -> None:
    """Raise UserError if this process may not have the memory and the open files that it takes to load OneFlow."""
    files, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if files < MIN_OPEN_FILES <= most:  # what `ulimit -Sn` has set, any process may raise
        with suppress(OSError, ValueError):  # but in a sandbox
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    if most < MIN_OPEN_FILES:
        raise UserError(
            f"only {most} files may be open at a time (ulimit -n), and the libraries and their processes take "
            f"{MIN_OPEN_FILES}: raise the limit, as with ulimit -n 1024"
        )
    refuse_little_memory(MIN_FOR_ONEFLOW)
    with suppress(OSError):
        shared = os.statvfs(SHARED_MEMORY)
        if shared.f_blocks and not shared.f_bavail:  # OpenMP takes a page without asking for it
            raise UserError(
                f"{SHARED_MEMORY} is full, and the libraries take a page of it: remove what was left there, or give it "
                "more (with Docker, --shm-size)"
            )


def refuse_little_memory(kilobytes: int) -> None:
    """Raise UserError if the limit on this process's address space is lower."""
    memory, _ = resource.getrlimit(resource.RLIMIT_AS)
    if 0 <= memory < 1024 * kilobytes:  # -1 is none
        raise UserError(
            f"only {memory // 1024} kB of memory may be used (ulimit -v), and it takes at least {kilobytes}: raise the "
            "limit, or lift it with ulimit -v unlimited"
        )


# How those say it that have no MemoryError: the linker, Python's threads, OpenCV, ONNX Runtime, C++, Pillow's fonts.
_SHORT = re.compile(
    "failed to map segment|can't start new thread|(cannot|failed to) allocate|insufficient memory|bad_?alloc|^raqm_",
    re.IGNORECASE,
)


def refuse_shortage(error: BaseException) -> None:
    """Raise what the error of an image comes from, if that is a lack of memory or open files: not the image's fault."""
    cause = error.__context__
    if cause and (is_short_of_memory(cause) or getattr(cause, "errno", None) in (errno.EMFILE, errno.ENFILE)):
        raise cause


def is_short_of_memory(error: BaseException) -> bool:
    """Whether this is what becomes of a lack of main memory, in any of the libraries."""
    return isinstance(error, MemoryError) or _SHORT.search(str(error)) is not None


def memory_is_short(error: BaseException) -> str:
    """It in a sentence."""
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    limited = f", of which ulimit -v allows {limit // 1024} kB" if limit >= 0 else ""
    reason = " ".join(str(error).split()) or "MemoryError"
    return (
        f"memory is short{limited} ({reason}): take fewer images at a time (--batch-size, and "
        "--workers where there are some), run it alone, or allow more"
    )


@cache
def thread_count() -> int:
    """OMP_NUM_THREADS, as for the libraries that compute; otherwise the cores this process may use."""
    return int(os.environ.get("OMP_NUM_THREADS") or len(os.sched_getaffinity(0)))


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
