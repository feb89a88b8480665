"""The self-test on a GPU, as far as a stand-in goes: a report to its end, which says that nothing is right."""

import pytest
from gpu_stand_in import Gpu, of, run_on_gpus
from places import REPOSITORY

SHORT = REPOSITORY / "tests" / "gpu" / "short_checks.py"
WAYS = ("in single operations, TF32", "compiled, half")


def reported(process, log):
    """The report's lines; it has to be whole."""
    assert process.returncode == 1, process.stderr
    assert not of(log, "error")
    lines = process.stdout.splitlines()
    # What is the same on both sides though nothing is computed: what is not on the GPU, and no update twice.
    right = {line.split("  ")[1] for line in lines if " ok" in line}
    assert right <= {"resumed step"}
    assert "images/s" in process.stdout
    assert "checks on cuda in " in process.stdout and "s: FAILED" in process.stdout
    assert "  network, in single operations, half: offsets" in lines
    for way in WAYS:
        assert f"  training, {way}: gradients" in lines
    return lines


def test_a_gpu_that_computes_nothing_differs_in_all():
    process, log = run_on_gpus([SHORT, "--self-test", "--device", "cuda"], folder=REPOSITORY)
    lines = reported(process, log)
    assert "  too large: error" in lines
    assert any(line.endswith("FAILED  the process was killed by SIGABRT") for line in lines)


@pytest.mark.long
def test_of_two_gpus_the_second_is_tested():
    gpus = [Gpu("first", (7, 5), 8), Gpu("second", (8, 6), 24)]
    command = ["-m", "ssd300_vgg16.runtime", "--self-test", "--device", "cuda:1"]
    lines = reported(*run_on_gpus(command, gpus, folder=REPOSITORY))
    assert lines[0] == "cuda:1 alone, by CUDA_VISIBLE_DEVICES=1"
    assert any(line.startswith("gpu       second, 24.0 GiB") for line in lines)
