"""Which of OpenBLAS's kernels numpy and OneFlow use; to be settled before either is imported."""

import os
from pathlib import Path

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
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return set()
    rows = [line.partition(":")[2].split() for line in lines if line.startswith("flags")]
    flags = set(rows[0]) if rows else set()
    return flags if "avx2" in flags else set()
