"""The self-test on a GPU, as far as a stand-in goes: a report to its end, which says that nothing is right."""

import pytest
from gpu_stand_in import Gpu, of, run_on_gpus
from places import REPOSITORY

# Networks of a few channels, and so without flowvision's; speeds of a single run; each way once that takes compiling.
SHORT = """
import itertools, sys
from ssd300_vgg16 import self_test
from ssd300_vgg16.runtime import __main__ as runtime_command
from ssd300_vgg16.self_test import checks, made_up
model, speeds, ways_of = made_up.model, self_test.speeds, self_test.ways_of
made_up.model = lambda num_classes, width, device: model(num_classes, 0.02, device)
checks.beside_flowvision = lambda device: []
self_test.speeds = lambda device: itertools.islice(speeds(device), 1, None)
self_test.ways_of = lambda device: ways_of(device)[::2]
self_test.GPU_BATCH, self_test.SECONDS = 1, 0
sys.exit(runtime_command.main(sys.argv[1:]))
"""
WAYS = ("in single operations, TF32", "compiled, half")


def reported(process, log):
    """The report's lines; it has to be whole."""
    assert process.returncode == 1, process.stderr
    assert not of(log, "error")
    lines = process.stdout.splitlines()
    # What is the same on both sides though nothing is computed: what is not on the GPU, and no update twice.
    right = {line.split("  ")[1] for line in lines if " ok" in line}
    assert right <= {"resumed step"}
    assert "Error" not in process.stdout and "images/s" in process.stdout
    assert "checks on cuda in " in process.stdout and "s: FAILED" in process.stdout
    assert "  network, in single operations, half: offsets" in lines
    for way in WAYS:
        assert f"  training, {way}: gradients" in lines
    return lines


def test_a_gpu_that_computes_nothing_differs_in_all():
    process, log = run_on_gpus(["-c", SHORT, "--self-test", "--device", "cuda"], folder=REPOSITORY)
    assert any(line.endswith(" FAILED") or " FAILED " in line for line in reported(process, log))


@pytest.mark.long
def test_of_two_gpus_the_second_is_tested():
    gpus = [Gpu("first", (7, 5), 8), Gpu("second", (8, 6), 24)]
    command = ["-m", "ssd300_vgg16.runtime", "--self-test", "--device", "cuda:1"]
    lines = reported(*run_on_gpus(command, gpus, folder=REPOSITORY))
    assert lines[0] == "cuda:1 alone, by CUDA_VISIBLE_DEVICES=1"
    assert any(line.startswith("gpu       second, 24.0 GiB") for line in lines)
