"""The stand-in tells what a real GPU would not let pass."""

import signal

from gpu_stand_in import of, run_on_gpus

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


def test_mistakes(tmp_path):
    process, log = run_on_gpus(["-c", MISTAKES], zeros=False, folder=tmp_path)
    names = ["direction-of-copy", "fill-of-what-is-no-block", "cudaGraphCreate", "host-touched-device-memory"]
    assert [event.name for event in of(log, "error")] == names, process.stderr
    assert process.returncode == -signal.SIGSEGV
    assert [event.size for event in of(log, "refused", "device")] == [1 << 40]
