"""Trainings on GPUs, as far as a stand-in for them goes: what the compiled step does, and memory."""

import sys

import pytest
from gpu_stand_in import Gpu, done_on_gpus, of, run_on_gpus
from places import REPOSITORY
from small_data import WIDTH, shapes_folder

from ssd300_vgg16.gpu_memory import TRAINING_ADVICE
from ssd300_vgg16.training.run import AMP_ADVICE
from ssd300_vgg16.weights.locate import LAST

# The training command, with a mark in the log where the host sets off each compiled step.
MARKED = """
import ctypes
from ssd300_vgg16 import train
from ssd300_vgg16.cli import command_line
from ssd300_vgg16.training.step import GraphStep
set_off = GraphStep.__call__
def marked(*arguments):
    ctypes.CDLL(None).gpu_stand_in_mark(b"step")
    return set_off(*arguments)
GraphStep.__call__ = marked
command_line.run(train.main, "train.sh")
"""
SETTINGS = ("--data-path", "shapes", "--width", WIDTH, "--weights-backbone", "none", "-j", 0)
TRAIN = ("-m", "ssd300_vgg16.train", *SETTINGS)


@pytest.fixture(scope="module")
def trained(place):
    """The output and the log of a training of two epochs, and so two evaluations."""
    options = ("--optimizer", "sgd", "-b", 2, "--epochs", 2, "--ema", 0.9, "--output-dir", "run")
    return done_on_gpus([*TRAIN, *options], folder=place)


def test_memory_of_an_evaluation_is_given_back(trained):
    """Before the second epoch, in which the compiled step has its own."""
    names = [(event.kind, event.name) for event in trained[1]]
    assert ("cudnn", "backward-filter") in names[names.index(("free", "device")) :]


def test_the_update_decays_the_weights_itself(trained):
    names = {event.name for event in of(trained[1], "kernel")}
    assert any("SGDUpdate" in name or "MomentumUpdate" in name for name in names)
    assert not any("L1L2RegularizeGradient" in name for name in names)


def test_the_moving_average_takes_three_kernels_a_step(trained):
    assert sum("MultiTensorYoloModelEmaUpdate" in event.name for event in of(trained[1], "kernel")) == 4 * 3


def test_half_precision_is_advised_in_the_first_line(trained):
    assert trained[0].splitlines()[0] == AMP_ADVICE


@pytest.mark.parametrize("kind", ["--no-eager", "--eager"])
def test_a_gpu_that_runs_out_of_memory_ends_with_a_sentence(place, kind):
    folder = f"out{kind}"
    command = [*TRAIN, "-b", 64, "--epochs", 1, "--output-dir", folder, kind]
    process, log = run_on_gpus(command, [Gpu(gigabytes=0.1)], folder=place)
    assert of(log, "refused", "device")
    assert (process.returncode, process.stderr) == (2, f"train.sh: {TRAINING_ADVICE}\n")
    assert "ERROR" not in process.stdout
    assert (place / folder / LAST).exists()


@pytest.mark.long
def test_a_step_is_set_off_while_two_gpus_run_the_former(tmp_path):
    """What the processes tell one another before it does not wait for them."""
    shapes_folder(tmp_path, 12, 2)
    command = [REPOSITORY / "tests" / "helpers" / "as_two.py", sys.executable, "-c", MARKED, *SETTINGS]
    command += ["--optimizer", "sgd", "-b", 2, "--epochs", 1, "--output-dir", "run"]
    _, log = done_on_gpus(command, 2, folder=tmp_path, slow_us=4000)  # far longer than the host takes
    for rank in (0, 1):
        own = [event for event in log if event.rank == rank]
        set_off = [place for place, event in enumerate(own) if event.kind == "mark"]
        updates = [place for place, event in enumerate(own) if "MomentumUpdate" in event.name]
        of_a_step = len(updates) // 6
        assert len(set_off) == 6
        assert all(set_off[step] < updates[of_a_step * step - 1] for step in range(1, 6))
