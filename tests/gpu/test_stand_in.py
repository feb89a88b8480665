"""The stand-in is as many GPUs as it should be, and tells what a real one would not let pass."""

import signal

import pytest
from gpu_stand_in import Gpu, of, run_on_gpus

MISTAKES = """
import ctypes
import numpy
from ssd300_vgg16.runtime import flow
cuda, here = ctypes.CDLL(None), ctypes.create_string_buffer(64)
there = ctypes.c_void_p()
assert cuda.stand_in_cudaMalloc(ctypes.byref(there), ctypes.c_size_t(4096)) == 0
assert cuda.stand_in_cudaMalloc(ctypes.byref(ctypes.c_void_p()), ctypes.c_size_t(1 << 40)) == 2
assert cuda.stand_in_cudaMemcpy(there, here, ctypes.c_size_t(64), 2) == 21
assert cuda.stand_in_cudaMemset(there, 0, ctypes.c_size_t(4097)) == 1
assert cuda.stand_in_cudaGraphCreate(None, 0) == 801
assert flow.from_numpy(numpy.arange(3)).to("cuda").numpy().tolist() == [0, 1, 2]
ctypes.string_at(there, 1)
"""


NAMES = """
import ctypes
driver, count, name = ctypes.CDLL("libcuda.so.1"), ctypes.c_int(), ctypes.create_string_buffer(64)
status = driver.cuInit(0)
driver.cuDeviceGetCount(ctypes.byref(count))
for gpu in range(count.value):
    driver.cuDeviceGetName(name, 64, gpu)
    print(gpu, name.value.decode())
print(status)
"""


@pytest.mark.parametrize(
    ("visible", "names"),
    [
        ({}, "0 A\n1 B\n2 C\n0\n"),
        ({"CUDA_VISIBLE_DEVICES": "2,0,7"}, "0 C\n1 A\n0\n"),
        ({"CUDA_VISIBLE_DEVICES": ""}, "100\n"),
    ],
)
def test_gpus_are_those_that_are_visible(tmp_path, visible, names):
    process, _ = run_on_gpus(["-c", NAMES], [Gpu("A"), Gpu("B"), Gpu("C")], variables=visible, folder=tmp_path)
    assert process.stdout == names


def test_mistakes(tmp_path):
    process, log = run_on_gpus(["-c", MISTAKES], zeros=False, folder=tmp_path)
    names = ["direction-of-copy", "fill-of-what-is-no-block", "cudaGraphCreate", "host-touched-device-memory"]
    assert [event.name for event in of(log, "error")] == names, process.stderr
    assert process.returncode == -signal.SIGSEGV
    assert [event.size for event in of(log, "refused", "device")] == [1 << 40]
