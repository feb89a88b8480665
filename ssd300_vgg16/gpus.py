"""What NVIDIA's driver says of the GPUs, without OneFlow, and which of them OneFlow can use.

CUDA reads CUDA_VISIBLE_DEVICES once in a process, when the driver is first asked. So another process asks: this file,
run by its path. It imports nothing of the package, and this process can still choose what CUDA is to see.
"""

import ctypes
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from importlib import metadata

VISIBLE = "CUDA_VISIBLE_DEVICES"
NONE_VISIBLE = "-1"
DRIVER_SECONDS = 120.0  # machines with many GPUs that have gone to sleep take half a minute
# Compute capabilities that the wheel of OneFlow 0.9.0 on PyPI holds code for; it holds no PTX for later ones.
WHEEL_VERSION = "0.9.0"
WHEEL_CAPABILITIES = ((6, 0), (6, 1), (7, 0), (7, 5), (8, 0), (8, 6))

# Of cuda.h. OneFlow takes the first for "no GPU"; any other makes its import abort the process.
_NO_DEVICE = 100
_CURES = {
    802: "a service that it needs is not running: on a machine with NVSwitch, start nvidia-fabricmanager",
    803: "its kernel module and its library libcuda are of different versions: reboot, or reinstall the driver",
    804: "its library libcuda is that of a newer driver (package cuda-compat), which this GPU cannot use: take it out "
    "of LD_LIBRARY_PATH, or update the driver",
}
_ANY_CURE = "see what `nvidia-smi` and `dmesg` say; often a reboot helps, or else reinstalling the driver"
_CAPABILITY_MAJOR, _CAPABILITY_MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_...


@dataclass(frozen=True)
class Gpu:
    """A GPU as the driver describes it."""

    name: str
    capability: tuple[int, int]


@dataclass(frozen=True)
class GpuDriver:
    """The GPUs that the driver shows to this process, or what is wrong with it; neither if there is no driver."""

    gpus: tuple[Gpu, ...] = ()
    problem: str | None = None


@cache
def gpu_driver() -> GpuDriver:
    """What the driver answered when it was first asked, or since its cache was cleared."""
    return ask_driver()


def ask_driver() -> GpuDriver:
    """What the driver answers under the present CUDA_VISIBLE_DEVICES."""
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return GpuDriver()
    try:
        # -S: nothing but the standard library is needed, and .pth files could take long.
        asked = subprocess.run(
            [sys.executable, "-I", "-S", __file__],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=DRIVER_SECONDS,
        )
    except subprocess.TimeoutExpired:
        return GpuDriver(problem=f"the GPU driver has not answered for {DRIVER_SECONDS:g} s: {_ANY_CURE}")
    try:
        answer = json.loads(asked.stdout)
    except ValueError:
        return GpuDriver(problem=f"the GPU driver ended the process that asked it ({asked.returncode}): {_ANY_CURE}")
    if answer["status"] not in (0, _NO_DEVICE):
        cure = _CURES.get(answer["status"], _ANY_CURE)
        return GpuDriver(problem=f"the GPU driver does not work (CUDA error {answer['status']}): {cure}")
    return GpuDriver(tuple(Gpu(name, (major, minor)) for name, major, minor in answer["gpus"]))


def cuda_in_use() -> bool:
    """Whether CUDA runs in this process already, and so has chosen what it sees."""
    return ctypes.CDLL("libcuda.so.1").cuDeviceGetCount(ctypes.byref(ctypes.c_int())) == 0


def visible_name(index: int) -> str:
    """What to set CUDA_VISIBLE_DEVICES to so that this one of the visible GPUs is the only one."""
    visible = os.environ.get(VISIBLE)
    return visible.split(",")[index].strip() if visible else str(index)


def gpu_problem(index: int) -> str | None:
    """Why OneFlow cannot use a GPU, and what to do about it; None if it can, as far as the driver knows."""
    driver = gpu_driver()
    if driver.problem or not driver.gpus:
        return driver.problem or "no GPU with a working CUDA driver was found; use --device cpu"
    if index >= len(driver.gpus):
        return f"this machine has GPUs 0 to {len(driver.gpus) - 1}"
    return capability_problem(oneflow_version(), driver.gpus[index])


def capability_problem(version: str | None, gpu: Gpu) -> str | None:
    """Why a OneFlow of this version has no code for a GPU; None if it has.

    Code for X.y runs on X.z with z >= y (binary compatibility). Of builds other than PyPI's nothing is known, so they
    are taken to fit the machine they were installed on.
    """
    major, minor = gpu.capability
    if version != WHEEL_VERSION or any(major == x and minor >= y for x, y in WHEEL_CAPABILITIES):
        return None
    return (
        f"this OneFlow ({version}) has no code for {gpu.name} (compute capability {major}.{minor}): install a OneFlow "
        "build for a newer CUDA from https://github.com/siliconflow/oneflow_releases/releases (assets for CUDA 11.8 to "
        "12.2; docs/troubleshooting.md says how), or run with --device cpu"
    )


def oneflow_version() -> str | None:
    """The version of the OneFlow that is installed, None if none is; its import would take seconds."""
    try:
        return metadata.version("oneflow")
    except metadata.PackageNotFoundError:
        return None


def _ask_driver() -> dict:
    driver, count = ctypes.CDLL("libcuda.so.1"), ctypes.c_int()
    status = driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count))
    device, major, minor = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    name, gpus = ctypes.create_string_buffer(256), []
    for index in range(count.value):
        driver.cuDeviceGet(ctypes.byref(device), index)
        driver.cuDeviceGetName(name, len(name), device)
        driver.cuDeviceGetAttribute(ctypes.byref(major), _CAPABILITY_MAJOR, device)
        driver.cuDeviceGetAttribute(ctypes.byref(minor), _CAPABILITY_MINOR, device)
        gpus.append((name.value.decode(errors="replace"), major.value, minor.value))
    return {"status": status, "gpus": gpus}


if __name__ == "__main__":
    print(json.dumps(_ask_driver()))
