"""Trainings on GPUs, as far as a stand-in for them goes: what the compiled step does, and memory."""

import sys

import pytest
from gpu_stand_in import Gpu, of, run_on_gpus
from places import REPOSITORY
from small_data import WIDTH, shapes_folder

from ssd300_vgg16.gpu_memory import TRAINING_ADVICE
from ssd300_vgg16.training.run import AMP_ADVICE
from ssd300_vgg16.weights.locate import LAST

SETTINGS = ("--data-path", "shapes", "--width", WIDTH, "--weights-backbone", "none", "-j", 0)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with generated shapes in it, to run commands in."""
    folder = tmp_path_factory.mktemp("gpu")
    shapes_folder(folder, 4, 2)
    return folder


def train(place, *arguments, **options):
    return run_on_gpus(["-m", "ssd300_vgg16.train", *SETTINGS, *arguments], folder=place, **options)


@pytest.fixture(scope="module")
def trained(place):
    """The output and the log of a training of two epochs, and so two evaluations."""
    process, log = train(place, "--optimizer", "sgd", "-b", 2, "--epochs", 2, "--ema", 0.9, "--output-dir", "run")
    assert process.returncode == 0, process.stderr
    assert not of(log, "error")
    return process.stdout, log


def test_memory_of_an_evaluation_is_given_back(trained):
    """Before the second epoch, in which the compiled step has its own."""
    places = {kind: [i for i, event in enumerate(trained[1]) if kind(event)] for kind in (is_free, is_backward)}
    assert places[is_free][0] < places[is_backward][-1]


def is_free(event):
    return (event.kind, event.name) == ("free", "device")


def is_backward(event):
    return (event.kind, event.name) == ("cudnn", "backward-filter")


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
    process, log = train(place, "-b", 64, "--epochs", 1, "--output-dir", folder, kind, gpus=[Gpu(gigabytes=0.1)])
    assert of(log, "refused", "device")
    assert (process.returncode, process.stderr) == (2, f"train.sh: {TRAINING_ADVICE}\n")
    assert "ERROR" not in process.stdout
    assert (place / folder / LAST).exists()


@pytest.mark.long
def test_a_step_is_set_off_while_two_gpus_run_the_former(tmp_path):
    """What the processes tell one another before it does not wait for them."""
    shapes_folder(tmp_path, 12, 2)
    tests = REPOSITORY / "tests"
    command = [tests / "helpers" / "as_two.py", sys.executable, tests / "gpu" / "marked_training.py", *SETTINGS]
    command += ["--optimizer", "sgd", "-b", 2, "--epochs", 1, "--output-dir", "run"]
    process, log = run_on_gpus(command, gpus=2, folder=tmp_path, slow_us=4000)  # far longer than the host takes
    assert process.returncode == 0, process.stderr
    for rank in (0, 1):
        own = [event for event in log if event.rank == rank]
        set_off = [place for place, event in enumerate(own) if event.kind == "mark"]
        updates = [place for place, event in enumerate(own) if "MomentumUpdate" in event.name]
        of_a_step = len(updates) // 6
        assert len(set_off) == 6
        assert all(set_off[step] < updates[of_a_step * step - 1] for step in range(1, 6))
