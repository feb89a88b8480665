"""The command lines on GPUs, as far as a stand-in for them goes: all is done, and nothing that a GPU would refuse."""

import json
import shutil

import pytest
from gpu_stand_in import Gpu, done_on_gpus, of
from small_data import WIDTH

from ssd300_vgg16.training.run_folder import read_metrics

SETTINGS = ("--data-path", "shapes", "--width", WIDTH, "-j", 0, "--print-freq", 1)
TWO_GPUS = {"gpus": 2, "variables": {"NPROC": 2}}


def done(place, module, *arguments, **options):
    return done_on_gpus(["-m", f"ssd300_vgg16.{module}", *arguments], folder=place, **options)


def computes(log):
    """Whether both directions of the network ran."""
    return bool(of(log, "cudnn", "forward") and of(log, "cudnn", "backward-filter"))


@pytest.fixture(scope="module")
def run(place):
    """The folder of a run of two steps, with a moving average."""
    arguments = (*SETTINGS, "-b", 2, "--epochs", 1, "--ema", 0.9, "--output-dir", "run")
    output, log = done(place, "train", *arguments)
    assert "Device: cuda." in output
    assert computes(log)
    return place / "run"


def test_a_run_is_trained(run):
    assert json.loads((run / "coco_metrics.json").read_text())["AP"] == 0  # what comes from the GPU is zero
    rows = [row for row in read_metrics(run) if row["kind"] == "training"]
    assert [row["step"] for row in rows] == [1, 2]
    assert all(row["gpu_memory_mb"] > 0 for row in rows)


def test_one_gpu_goes_on_with_a_run(place, run):
    output, log = done(place, "train", "--resume", run, "--epochs", 2, "-j", 0, "--check")
    assert "everything works; nothing was written" in output
    assert computes(log)


def test_a_dry_run_of_ssd512_with_all_options_of_a_step(place):
    options = ("--model", "ssd512_vgg16", "--amp", "--accumulate", 2, "--optimizer", "adamw", "--ema", 0.9)
    output, log = done(place, "train", *SETTINGS, "-b", 4, *options, "--check")
    assert "everything works; nothing was written" in output
    assert computes(log)


def test_two_gpus_go_on_with_a_run(place, run):
    folder = shutil.copytree(run, place / "run-of-two")
    output, log = done(place, "train", "--resume", folder, "--epochs", 2, "-j", 0, **TWO_GPUS)
    assert "batch 2 over 2 processes" in output and "Going on after step 2." in output
    assert [row["step"] for row in read_metrics(folder) if row["kind"] == "training"] == [1, 2, 3, 4]
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
    output, _ = done(place, "train", *SETTINGS, "-b", 4, "--check", *arguments, **options)
    assert "everything works; nothing was written" in output


def test_the_report_names_each_gpu(place):
    output, _ = done(place, "runtime", gpus=[Gpu(), Gpu("NVIDIA H100", (9, 0), 80)])
    assert "NVIDIA GeForce RTX 3090; NVIDIA H100\n" in output
    assert "cuda:0    this OneFlow has code for it" in output
    assert "no code for NVIDIA H100 (compute capability 9.0)" in output
