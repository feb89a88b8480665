"""What has to happen before ``import oneflow``: importing this module makes it importable and imports it as `flow`."""

import contextlib
import ctypes
import importlib
import os
import platform
import signal
import socket
import sys
import sysconfig
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from types import ModuleType

from ssd300_vgg16.errors import UserError
from ssd300_vgg16.gpus import NONE_VISIBLE, VISIBLE, WHEEL_VERSION, ask_driver, gpu_driver, oneflow_version
from ssd300_vgg16.machine import cpuinfo, is_one_of_several, refuse_tight_limits, use_widest_kernels
from ssd300_vgg16.ports import LOOPBACK, kept_on_loopback

# OneFlow 0.9.0 links against these, on the CPU too, and its wheel does not bring them. In the order of their needs.
CUDA_LIBRARIES = (
    "cublas/lib/libcublasLt.so.11",
    "cublas/lib/libcublas.so.11",
    "cudnn/lib/libcudnn_ops_infer.so.8",
    "cudnn/lib/libcudnn_ops_train.so.8",
    "cudnn/lib/libcudnn_cnn_infer.so.8",
    "cudnn/lib/libcudnn_cnn_train.so.8",
)
# cuDNN loads it by name when it compiles kernels for a GPU, and looks for it in a folder of another wheel's layout.
NVRTC_LIBRARIES = ("cuda_nvrtc/lib/libnvrtc.so.11.2",)
MKL_LIBRARIES = ("libiomp5.so", "libmkl_rt.so.2")
COMPUTE_ON_WORKER_THREAD = "ONEFLOW_VM_COMPUTE_ON_WORKER_THREAD"
FIRST_PROCESS_SECONDS = 300.0  # then OneFlow's own import waits, and says what it waits for


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
    """For the OneFlow of requirements.txt; other builds are for other versions of CUDA, and find theirs themselves."""
    if oneflow_version() != WHEEL_VERSION:
        return
    # Where the wheels are not installed the system's own libraries may serve; if not, the import says what is missing.
    for libraries in (CUDA_LIBRARIES, NVRTC_LIBRARIES):
        _load([Path(sysconfig.get_path("purelib")) / "nvidia" / name for name in libraries])


def _hide_broken_gpus() -> None:
    """Where the driver does not work, OneFlow's import would end the process, whatever the device."""
    problem = gpu_driver().problem
    if problem is None:
        return
    os.environ[VISIBLE] = NONE_VISIBLE
    if ask_driver().problem:
        raise UserError(f"{problem}. OneFlow cannot start beside it, for the CPU neither")


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
def _process_kept() -> Iterator[None]:
    """Undo what else OneFlow's import does to the process."""
    before, handler = set(os.environ), signal.getsignal(signal.SIGINT)
    try:
        yield
    finally:
        # It sets RANK, MASTER_PORT and others, which would mislead processes started from this one.
        for name in set(os.environ) - before:
            del os.environ[name]
        # It makes Ctrl-C end the process on the spot; Python's handler lets a training save first.
        if handler is not None and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, handler)


def _choose_computing_thread() -> None:
    """On the CPU, have OneFlow's scheduling thread compute as well.

    Otherwise two more threads wait by polling. On two cores the one with work to do then waits for their time slices,
    4 ms at a time.
    """
    if is_one_of_several():
        # A process cannot end while its scheduling thread waits for another process.
        os.environ[COMPUTE_ON_WORKER_THREAD] = "1"
    elif not gpu_driver().gpus:
        os.environ.setdefault(COMPUTE_ON_WORKER_THREAD, "0")


def _is_all_on_one_host() -> bool:
    """Whether this is one of several processes, and all of them are on this machine, as they meet at its loopback."""
    return is_one_of_several() and os.environ.get("MASTER_ADDR") in (LOOPBACK, "localhost")


def _ports_kept() -> AbstractContextManager[None]:
    """Of several processes on one machine; the first of them listens at MASTER_PORT while OneFlow is imported."""
    if not _is_all_on_one_host():
        return nullcontext()
    port = os.environ.get("MASTER_PORT", "")
    return kept_on_loopback(int(port) if os.environ.get("RANK") == "0" and port.isdecimal() else None)


def _wait_for_first_process() -> None:
    """Wait until the first of several processes answers at MASTER_PORT: OneFlow would sleep for ten seconds."""
    if not is_one_of_several() or os.environ.get("RANK") == "0":
        return
    address = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    timeout = 0.1 if _is_all_on_one_host() else 1  # there the port is silent, and not closed, until OneFlow listens
    deadline = time.monotonic() + FIRST_PROCESS_SECONDS
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError), socket.create_connection(address, timeout=timeout):
            return
        time.sleep(0.05)


def _import_oneflow() -> ModuleType:
    _wait_for_first_process()
    os.environ.setdefault("GLOG_minloglevel", "3")
    _choose_computing_thread()
    with _native_stderr_held_back(), _process_kept(), _ports_kept():
        try:
            return importlib.import_module("oneflow")
        except ImportError as error:
            raise UserError(
                f"OneFlow cannot be imported ({error}). `bash train.sh --help` sets everything up in .venv; to use "
                "another environment, install requirements.txt into a CPython 3.10."
            ) from error


use_widest_kernels()
refuse_tight_limits()
if "oneflow" not in sys.modules:
    _hide_broken_gpus()
MKL_IN_USE = "oneflow" not in sys.modules and _put_mkl_before_bundled_blas()
_load_cuda_libraries()
flow = _import_oneflow()


def cuda_problem() -> str | None:
    """Why OneFlow has no GPU where the driver has one; None if it has."""
    if flow.cuda.is_available():
        return None
    return (
        f"this OneFlow ({flow.__version__}) finds no GPU, though the driver does: it is for a newer driver, or for the "
        "CPU only; update the driver, install another OneFlow, or use --device cpu"
    )


def environment() -> dict[str, str]:
    """Versions and hardware that a run depends on, to be kept with its results."""
    gpus = gpu_driver().gpus if flow.cuda.is_available() else ()
    return {
        "python": platform.python_version(),
        "oneflow": flow.__version__,
        "platform": platform.platform(),
        "cpu": f"{cpuinfo('model name') or platform.machine()}, {len(os.sched_getaffinity(0))} cores",
        "blas": "MKL" if MKL_IN_USE else "OpenBLAS inside OneFlow",
        "gpus": "; ".join(gpu.name for gpu in gpus) or "none",
    }
