"""Trainings on GPUs, as far as a stand-in goes: all is done, and nothing that a GPU would refuse; memory and advice."""

import json
import shutil
import sys

import pytest
from gpu_stand_in import Gpu, done_on_gpus, of, run_on_gpus
from places import REPOSITORY
from small_data import WIDTH, shapes_folder

from ssd300_vgg16.gpu_memory import TRAINING_ADVICE
from ssd300_vgg16.training.run import AMP_ADVICE
from ssd300_vgg16.training.run_folder import read_metrics
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
TRAIN = ("-m", "ssd300_vgg16.train")
TWO_GPUS = {"gpus": 2, "variables": {"NPROC": 2}}


def computes(log):
    """Whether both directions of the network ran."""
    return bool(of(log, "cudnn", "forward") and of(log, "cudnn", "backward-filter"))


@pytest.fixture(scope="module")
def trained(place):
    """The output and the log of a training of two epochs, and so two evaluations, with a moving average."""
    options = ("--optimizer", "sgd", "-b", 2, "--epochs", 2, "--ema", 0.9, "--print-freq", 1, "--output-dir", "run")
    return done_on_gpus([*TRAIN, *SETTINGS, *options], folder=place)


@pytest.fixture(scope="module")
def run(trained, place):
    """Its folder."""
    return place / "run"


def test_a_run_is_trained(trained, run):
    assert "Device: cuda." in trained[0]
    assert computes(trained[1])
    assert json.loads((run / "coco_metrics.json").read_text())["AP"] == 0  # what comes from the GPU is zero
    rows = [row for row in read_metrics(run) if row["kind"] == "training"]
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert all(row["gpu_memory_mb"] > 0 for row in rows)


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


def test_one_gpu_goes_on_with_a_run(place, run):
    output, log = done_on_gpus([*TRAIN, "--resume", run, "--epochs", 3, "-j", 0, "--check"], folder=place)
    assert "everything works; nothing was written" in output
    assert computes(log)


def test_a_dry_run_of_ssd512_with_all_options_of_a_step(place):
    options = ("--model", "ssd512_vgg16", "--amp", "--accumulate", 2, "--optimizer", "adamw", "--ema", 0.9)
    output, log = done_on_gpus([*TRAIN, *SETTINGS, "-b", 4, *options, "--check"], folder=place)
    assert "everything works; nothing was written" in output
    assert computes(log)


def test_two_gpus_go_on_with_a_run(place, run):
    folder = shutil.copytree(run, place / "run-of-two")
    output, log = done_on_gpus([*TRAIN, "--resume", folder, "--epochs", 3, "-j", 0], folder=place, **TWO_GPUS)
    assert "batch 2 over 2 processes" in output and "Going on after step 4." in output
    assert [row["step"] for row in read_metrics(folder) if row["kind"] == "training"] == [1, 2, 3, 4, 5, 6]
    ranks = [[event for event in log if event.rank == rank] for rank in (0, 1)]
    sums = []
    for rank, own in enumerate(ranks):
        assert computes(own)
        assert {event.text for event in of(own, "allocate", "device")} == {f"gpu {rank}"}
        sums.append([event.size for event in of(own, "nccl", "all-reduce")])
    assert sums[0] == sums[1] != []


@pytest.mark.long
@pytest.mark.parametrize(
    ("arguments", "options"), [((), TWO_GPUS), (("--device", "cuda:1"), {"gpus": 2})], ids=["both", "the second"]
)
def test_a_dry_run_where_there_are_two_gpus(place, arguments, options):
    output, _ = done_on_gpus([*TRAIN, *SETTINGS, "-b", 4, "--check", *arguments], folder=place, **options)
    assert "everything works; nothing was written" in output


@pytest.mark.parametrize("kind", ["--no-eager", "--eager"])
def test_a_gpu_that_runs_out_of_memory_ends_with_a_sentence(place, kind):
    folder = f"out{kind}"
    command = [*TRAIN, *SETTINGS, "-b", 64, "--epochs", 1, "--output-dir", folder, kind]
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
