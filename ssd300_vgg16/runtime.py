"""What has to happen before ``import oneflow``, and a report of what was found.

Importing this module makes OneFlow importable and imports it as `flow`. The report:

    .venv/bin/python -I -m ssd300_vgg16.runtime
"""

import argparse
import contextlib
import ctypes
import importlib
import os
import platform
import re
import signal
import socket
import sys
import sysconfig
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

from ssd300_vgg16.errors import UserError
from ssd300_vgg16.machine import has_gpu_driver, use_widest_kernels

# OneFlow 0.9.0 links against these, on the CPU too, and its wheel does not bring them. In the order of their needs.
CUDA_LIBRARIES = (
    "cublas/lib/libcublasLt.so.11",
    "cublas/lib/libcublas.so.11",
    "cudnn/lib/libcudnn_ops_infer.so.8",
    "cudnn/lib/libcudnn_ops_train.so.8",
    "cudnn/lib/libcudnn_cnn_infer.so.8",
    "cudnn/lib/libcudnn_cnn_train.so.8",
)
MKL_LIBRARIES = ("libiomp5.so", "libmkl_rt.so.2")
# Compute capabilities that the wheel of OneFlow 0.9.0 on PyPI holds code for; it holds no PTX for later ones.
WHEEL_VERSION = "0.9.0"
WHEEL_CAPABILITIES = ((6, 0), (6, 1), (7, 0), (7, 5), (8, 0), (8, 6))
COMPUTE_ON_WORKER_THREAD = "ONEFLOW_VM_COMPUTE_ON_WORKER_THREAD"
FIRST_PROCESS_SECONDS = 300.0  # then OneFlow's own import waits, and says what it waits for
NO_CODE_FOR_GPU = (
    "this OneFlow ({version}) has no code for {name} (compute capability {major}.{minor}): install a OneFlow build for "
    "a newer CUDA from https://github.com/siliconflow/oneflow_releases/releases (assets for CUDA 11.8 to 12.2), or run "
    "with --device cpu"
)


def _load(paths: list[Path]) -> bool:
    """Load shared libraries; False if one is not there."""
    # Global, so that OneFlow's own symbols resolve to them.
    if not all(path.is_file() for path in paths):
        return False
    for path in paths:
        ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
    return True


def _put_mkl_before_bundled_blas() -> bool:
    """MKL is faster than the BLAS inside OneFlow's wheel. Without MKL, `machine` has chosen that one's kernels."""
    # By default MKL's threads keep spinning for 200 ms after a product, on cores that others compute on.
    os.environ.setdefault("KMP_BLOCKTIME", "1")
    return _load([Path(sys.prefix) / "lib" / name for name in MKL_LIBRARIES])


def _load_cuda_libraries() -> None:
    # Where the wheels are not installed the system's own libraries may serve; if not, the import says what is missing.
    _load([Path(sysconfig.get_path("purelib")) / "nvidia" / name for name in CUDA_LIBRARIES])


@contextmanager
def _native_stderr_held_back() -> Iterator[None]:
    """Keep what native code writes to stderr to itself, unless the block fails: then show it."""
    sys.stderr.flush()
    saved = os.dup(2)
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            yield
        except BaseException:
            held.seek(0)
            os.write(saved, held.read())
            raise
        finally:
            os.dup2(saved, 2)
            os.close(saved)


@contextmanager
def _interrupt_handler_kept() -> Iterator[None]:
    """OneFlow's import makes Ctrl-C end the process on the spot; Python's handler lets a training save first."""
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    finally:
        if handler is not None and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, handler)


@contextmanager
def _environment_kept() -> Iterator[None]:
    """OneFlow's import sets RANK, MASTER_PORT and others, which would mislead processes started from this one."""
    before = set(os.environ)
    try:
        yield
    finally:
        for name in set(os.environ) - before:
            del os.environ[name]


def _choose_computing_thread() -> None:
    """On the CPU, have OneFlow's scheduling thread compute as well.

    Otherwise two more threads wait by polling. On two cores the one with work to do then waits for their time slices,
    4 ms at a time.
    """
    if _is_one_of_several():
        # A process cannot end while its scheduling thread waits for another process.
        os.environ[COMPUTE_ON_WORKER_THREAD] = "1"
    elif not has_gpu_driver():
        os.environ.setdefault(COMPUTE_ON_WORKER_THREAD, "0")


def _is_one_of_several() -> bool:
    return int(os.environ.get("WORLD_SIZE", 1)) > 1


def _wait_for_first_process() -> None:
    """Wait until the first of several processes answers at MASTER_PORT: OneFlow would sleep for ten seconds."""
    if not _is_one_of_several() or os.environ.get("RANK") == "0":
        return
    address = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    deadline = time.monotonic() + FIRST_PROCESS_SECONDS
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError), socket.create_connection(address, timeout=1):
            return
        time.sleep(0.05)


def _import_oneflow() -> ModuleType:
    _wait_for_first_process()
    os.environ.setdefault("GLOG_minloglevel", "3")
    _choose_computing_thread()
    with _native_stderr_held_back(), _interrupt_handler_kept(), _environment_kept():
        try:
            return importlib.import_module("oneflow")
        except ImportError as error:
            raise UserError(
                f"OneFlow cannot be imported ({error}). `bash train.sh --help` sets everything up in .venv; to use "
                "another environment, install requirements.txt into a CPython 3.10."
            ) from error


use_widest_kernels()
MKL_IN_USE = "oneflow" not in sys.modules and _put_mkl_before_bundled_blas()
_load_cuda_libraries()
flow = _import_oneflow()


def default_device() -> str:
    """ "cuda" where a GPU is found that this OneFlow has code for, else "cpu"."""
    return "cuda" if flow.cuda.is_available() and not gpu_problem(0) else "cpu"


def usable_device(name: str | None, local_rank: int | None = None) -> str:
    """`devices.resolve_device` where OneFlow has to be asked."""
    if name is None:
        name = default_device()
    if local_rank is not None and name != "cpu":
        if name != "cuda":
            raise UserError(f"--device {name}: several processes take GPUs 0, 1, ... in turn: write cuda")
        if local_rank >= flow.cuda.device_count():
            raise UserError(
                f"process {local_rank} of this machine, counted from 0, has no GPU of its own: it shows "
                f"{flow.cuda.device_count()}, and NPROC may not be more"
            )
        name = f"cuda:{local_rank}"
    if not re.fullmatch("cpu|cuda(:[0-9]+)?", name):
        raise UserError(f"--device {name}: write cpu, cuda or cuda:N")
    if name != "cpu":
        _check_cuda(name, int(name.partition(":")[2] or 0))
    return name


def _check_cuda(name: str, index: int) -> None:
    if not flow.cuda.is_available():
        raise UserError(f"--device {name}: no GPU with a working CUDA driver was found; use --device cpu")
    if index >= flow.cuda.device_count():
        raise UserError(f"--device {name}: this machine has GPUs 0 to {flow.cuda.device_count() - 1}")
    problem = gpu_problem(index)
    if problem:
        raise UserError(f"--device {name}: {problem}")


def gpu_problem(index: int) -> str | None:
    """Why this OneFlow cannot use a GPU, and what to do about it; None if it can."""
    name, (major, minor) = _gpu_name(index), _compute_capability(index)
    return capability_problem(flow.__version__, name, major, minor)


def capability_problem(oneflow_version: str, name: str, major: int, minor: int) -> str | None:
    """Why a OneFlow of this version has no code for a GPU of this compute capability; None if it has.

    Code for X.y runs on X.z with z >= y (binary compatibility). Of builds other than PyPI's nothing is known, so they
    are taken to fit the machine they were installed on.
    """
    if oneflow_version != WHEEL_VERSION or any(major == x and minor >= y for x, y in WHEEL_CAPABILITIES):
        return None
    return NO_CODE_FOR_GPU.format(version=oneflow_version, name=name, major=major, minor=minor)


# CUDA driver API: cuDeviceGetAttribute(CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, _MINOR).
_CAPABILITY_MAJOR, _CAPABILITY_MINOR = 75, 76


def _driver() -> ctypes.CDLL:
    driver = ctypes.CDLL("libcuda.so.1")
    driver.cuInit(0)
    return driver


def _compute_capability(index: int) -> tuple[int, int]:
    driver, values = _driver(), []
    for attribute in (_CAPABILITY_MAJOR, _CAPABILITY_MINOR):
        value = ctypes.c_int()
        driver.cuDeviceGetAttribute(ctypes.byref(value), attribute, ctypes.c_int(index))
        values.append(value.value)
    return values[0], values[1]


def _gpu_name(index: int) -> str:
    name = ctypes.create_string_buffer(256)
    _driver().cuDeviceGetName(name, len(name), ctypes.c_int(index))
    return name.value.decode(errors="replace")


def matmul_rate(side: int = 1536, runs: int = 5) -> float:
    """Measured rate of a float32 matrix product on the CPU, the best of some runs, in GFLOP/s."""
    a, b = flow.randn(side, side), flow.randn(side, side)
    flow.matmul(a, b).numpy()
    times = []
    for _ in range(runs):
        start = time.perf_counter()
        flow.matmul(a, b).numpy()
        times.append(time.perf_counter() - start)
    return 2 * side**3 / min(times) / 1e9


def cpu_name() -> str:
    """The processor's model name as Linux gives it, else the architecture."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def environment() -> dict[str, str]:
    """Versions and hardware that a run depends on, to be kept with its results."""
    blas = "MKL" if MKL_IN_USE else "OpenBLAS inside OneFlow"
    gpus = range(flow.cuda.device_count() if flow.cuda.is_available() else 0)
    return {
        "python": platform.python_version(),
        "oneflow": flow.__version__,
        "platform": platform.platform(),
        "cpu": f"{cpu_name()}, {len(os.sched_getaffinity(0))} cores",
        "blas": blas,
        "gpus": "; ".join(_gpu_name(index) for index in gpus) or "none",
    }


def report() -> str:
    """What was found, a line each: versions, CPU and BLAS with a measured rate, GPUs and whether they can be used."""
    facts = environment()
    facts["blas"] += f", {matmul_rate():.0f} GFLOP/s in a float32 matrix product"
    lines = [f"{name:<9} {value}" for name, value in facts.items()]
    for index in range(flow.cuda.device_count() if flow.cuda.is_available() else 0):
        lines.append(f"cuda:{index}    {gpu_problem(index) or 'this OneFlow has code for it'}")
    lines.append(f"device    {default_device()} (the default of --device here)")
    return "\n".join(lines)


def main(arguments: list[str]) -> int:
    """The report; with --self-test what `self_test` finds too. Returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -I -m ssd300_vgg16.runtime", description="What was found here.")
    parser.add_argument("--self-test", action="store_true", help="check and measure a device")
    parser.add_argument("--device", help="of the self-test: cpu, cuda or cuda:N (default: cuda where it works)")
    options = parser.parse_args(arguments)
    try:
        print(report())
        if not options.self_test:
            return 0
        # Here, because it imports this module, as all do that compute.
        from ssd300_vgg16.self_test import self_test

        return self_test(usable_device(options.device))
    except UserError as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
