"""What happens before OneFlow is imported, which device is used, and the report of what was found."""

import os
import re
import subprocess
import sys

import pytest
from small_data import environment

from ssd300_vgg16 import gpus, machine, runtime
from ssd300_vgg16.errors import UserError
from ssd300_vgg16.gpus import Gpu, GpuDriver
from ssd300_vgg16.runtime import __main__ as runtime_command

AVX512 = {"avx512f", "avx512cd", "avx512bw", "avx512dq", "avx512vl"}


def python(*arguments, **variables):
    process = subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, env={**environment(), **variables}, timeout=300
    )
    assert process.returncode == 0, process.stderr
    return process


def set_before(monkeypatch, name, value):
    """Give an environment variable a value, or none, until the end of the test."""
    monkeypatch.setenv(name, value or "")
    if value is None:
        monkeypatch.delenv(name)


def test_the_report_names_versions_and_hardware():
    lines = dict(line.split(maxsplit=1) for line in runtime_command.report().splitlines())
    assert lines["python"] == "{}.{}.{}".format(*sys.version_info[:3])
    assert lines["oneflow"] == runtime.flow.__version__
    assert re.fullmatch(r".+, [1-9]\d* cores", lines["cpu"])
    rate = re.fullmatch(r"(MKL|OpenBLAS inside OneFlow), (\d+) GFLOP/s in a float32 matrix product", lines["blas"])
    assert int(rate[2]) > 0
    assert lines["device"].startswith("cuda" if runtime.flow.cuda.is_available() else "cpu")
    assert "gpus" in lines


def test_the_report_says_which_gpus_can_be_used(monkeypatch):
    """As on a machine with two GPUs, the second of which is too new."""
    driver = GpuDriver((Gpu("Ampere", (8, 0)), Gpu("Hopper", (9, 0))))
    for module in (runtime, runtime_command, gpus):
        monkeypatch.setattr(module, "gpu_driver", lambda: driver)
    monkeypatch.setattr(gpus, "oneflow_version", lambda: "0.9.0")
    monkeypatch.setattr(runtime.flow.cuda, "is_available", lambda: True)
    monkeypatch.setattr(runtime_command, "matmul_rate", lambda: 100.0)
    report = runtime_command.report()
    assert "gpus      Ampere; Hopper\n" in report
    assert "cuda:0    this OneFlow has code for it\n" in report
    assert "cuda:1    this OneFlow (0.9.0) has no code for Hopper" in report
    assert "device    cuda " in report
    monkeypatch.setattr(runtime.flow.cuda, "is_available", lambda: False)
    report = runtime_command.report()
    assert re.search(r"cuda:0    this OneFlow \(.+\) finds no GPU, though the driver does", report)
    assert "device    cpu " in report


@pytest.mark.parametrize(("version", "loads"), [("0.9.0", True), ("0.9.1.dev20240203+cu121", False), ("1.0.0", False)])
def test_cuda_libraries_are_loaded_for_the_oneflow_they_are_pinned_for(monkeypatch, version, loads):
    loaded = []
    monkeypatch.setattr(runtime, "oneflow_version", lambda: version)
    monkeypatch.setattr(runtime, "_load", lambda paths: loaded.extend(path.name for path in paths))
    runtime._load_cuda_libraries()
    assert ("libcudnn_ops_infer.so.8" in loaded) == ("libnvrtc.so.11.2" in loaded) == loads
    assert bool(loaded) == loads


def test_nvrtc_is_found_by_the_name_that_cudnn_loads_it_by():
    """Its folder is none that cuDNN looks into."""
    code = (
        "import ctypes, sys; from ssd300_vgg16 import runtime as r; print(ctypes.CDLL('libnvrtc.so.11.2')._handle > 0)"
    )
    assert python("-c", code).stdout == "True\n"


def test_oneflow_is_imported_without_a_word_and_ctrl_c_is_still_pythons():
    code = (
        "import os, signal, time\n"
        "from ssd300_vgg16.runtime import flow\n"
        "flow.ones(2).numpy()\n"
        "try:\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    time.sleep(60)\n"
        "except KeyboardInterrupt:\n"
        "    print('interrupted')"
    )
    process = python("-c", code)
    assert (process.stdout, process.stderr) == ("interrupted\n", "")


def test_native_messages_are_shown_if_the_import_fails(capfd):
    with runtime._native_stderr_held_back():
        os.write(2, b"native trouble\n")
    assert capfd.readouterr().err == ""
    with pytest.raises(UserError), runtime._native_stderr_held_back():
        os.write(2, b"native trouble\n")
        raise UserError("import failed")
    assert capfd.readouterr().err == "native trouble\n"


def test_an_oneflow_that_cannot_be_imported_is_explained(monkeypatch):
    def fail(_):
        raise ImportError("libcudnn.so.8: cannot open shared object file")

    monkeypatch.setattr(runtime.importlib, "import_module", fail)
    with pytest.raises(UserError, match=r"OneFlow cannot be imported \(libcudnn.*bash train\.sh --help"):
        runtime._import_oneflow()


@pytest.mark.parametrize(
    ("processes", "has_gpu", "before", "expected"),
    [
        (1, False, None, "0"),
        (1, False, "1", "1"),
        (1, True, None, None),
        (2, False, None, "1"),
        (2, False, "0", "1"),
        (2, True, None, "1"),
    ],
)
def test_which_thread_computes(monkeypatch, processes, has_gpu, before, expected):
    monkeypatch.setenv("WORLD_SIZE", str(processes))
    set_before(monkeypatch, runtime.COMPUTE_ON_WORKER_THREAD, before)
    driver = GpuDriver((Gpu("Ampere", (8, 0)),) if has_gpu else ())
    monkeypatch.setattr(runtime, "gpu_driver", lambda: driver)
    runtime._choose_computing_thread()
    assert os.environ.get(runtime.COMPUTE_ON_WORKER_THREAD) == expected


@pytest.mark.parametrize(
    ("cpuinfo", "before", "kernels"),
    [
        (f"flags\t\t: sse2 avx2 {' '.join(AVX512)}\n\nflags\t\t: sse2\n", None, "SkylakeX"),  # the first's count
        (f"flags\t\t: avx2 {' '.join(AVX512)}\n", "Zen", "Zen"),  # the user's choice
        (f"flags\t\t: avx2 {' '.join(AVX512 - {'avx512vl'})}\n", None, "Haswell"),
        ("processor\t: 0\nflags\t\t: avx2\n", None, "Haswell"),
        ("flags\t\t: sse2 avx\n", None, None),
        ("Features\t: fp asimd\n", None, None),
        ("", None, None),
        (None, None, None),
    ],
    ids=["avx512", "chosen", "avx512 in part", "avx2", "old", "arm", "empty", "no file"],
)
def test_blas_kernels_are_the_widest_of_the_processor(monkeypatch, cpuinfo, before, kernels):
    def read_text(path):
        assert str(path) == "/proc/cpuinfo"
        if cpuinfo is None:
            raise FileNotFoundError
        return cpuinfo

    set_before(monkeypatch, "OPENBLAS_CORETYPE", before)
    monkeypatch.setattr(machine.Path, "read_text", read_text)
    machine.use_widest_kernels()
    assert os.environ.get("OPENBLAS_CORETYPE") == kernels
