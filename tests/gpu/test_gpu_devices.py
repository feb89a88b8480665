"""The GPU that is asked for is the one that OneFlow computes on, and a broken driver leaves the CPU."""

import json

import pytest
from gpu_stand_in import Gpu, done_on_gpus, of, run_on_gpus
from small_data import WIDTH

from ssd300_vgg16.training.run_folder import read_metrics

SMALL, BIG = Gpu("small", (8, 6), 8), Gpu("big", (8, 0), 40)

# A program that has used OneFlow, and then takes a detector to the second GPU.
LATE = """
import sys
from ssd300_vgg16 import Detector, UserError
from ssd300_vgg16.runtime import flow
flow.ones(2, device="cuda").numpy()
for name in ("cuda:1", "cuda:0"):
    try:
        print(Detector.load(sys.argv[1], device=name).device)
    except UserError as error:
        print(error)
"""
# Ranks of one host in the order of a second host, as srun deals them out in turns.
IN_TURNS = """
import os, socket, subprocess, sys
with socket.create_server(("127.0.0.1", 0)) as free:
    port = free.getsockname()[1]
command = [sys.executable, "-m", "ssd300_vgg16.evaluate", *sys.argv[1:]]
common = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
place = lambda rank: {"RANK": str(rank), "LOCAL_RANK": str(1 - rank)}
ranks = [subprocess.Popen(command, env=os.environ | common | place(rank)) for rank in (0, 1)]
sys.exit(max(rank.wait() for rank in ranks))
"""


def test_a_training_is_on_the_gpu_asked_for(place):
    """The second of those that CUDA_VISIBLE_DEVICES names."""
    arguments = ("--data-path", "shapes", "--width", WIDTH, "-j", 0, "-b", 2, "--epochs", 1, "--device", "cuda:1")
    command = ["-m", "ssd300_vgg16.train", *arguments, "--output-dir", "run"]
    visible = {"CUDA_VISIBLE_DEVICES": "2,1"}
    _, log = done_on_gpus(command, [SMALL, BIG, SMALL], folder=place, variables=visible)
    assert of(log, "cudnn", "backward-filter")
    about = json.loads((place / "run" / "environment.json").read_text())
    assert about["gpus"] == "big"
    assert all(row["gpu_memory_mb"] > 0 for row in read_metrics(place / "run") if row["kind"] == "training")


@pytest.mark.parametrize(
    ("module", "arguments"),
    [
        ("evaluate", ("--weights", "untrained", "--data-path", "shapes", "-j", 0)),
        ("infer", ("--weights", "untrained", "shapes/val")),
    ],
)
def test_evaluation_and_detection_are_too(place, module, arguments):
    command = ["-m", f"ssd300_vgg16.{module}", *arguments, "--device", "cuda:1"]
    output, log = done_on_gpus(command, [SMALL, BIG], folder=place)
    assert "9 images" in output and of(log, "cudnn", "forward")


def test_a_program_that_has_used_oneflow_is_told_what_to_do(place):
    refused, first = done_on_gpus(["-c", LATE, "untrained"], [SMALL, BIG], folder=place)[0].splitlines()
    assert "set CUDA_VISIBLE_DEVICES=1 before the program starts, and take the device cuda" in refused
    assert first == "cuda:0"


def test_two_ranks_that_would_meet_on_a_gpu_are_refused(place):
    arguments = ("--weights", "untrained", "--data-path", "shapes", "-j", 0, "-b", 2)
    process, log = run_on_gpus(["-c", IN_TURNS, *arguments], [SMALL, BIG], folder=place)
    assert process.returncode == 2
    assert "process 0 is number 1 on its host and would share GPU 0 with another of the 2 processes" in process.stderr
    assert not of(log, "cudnn")


@pytest.mark.parametrize("error", [803, *(pytest.param(error, marks=pytest.mark.long) for error in (804, 999))])
def test_a_broken_driver_leaves_the_cpu(place, error):
    command = ["-m", "ssd300_vgg16.evaluate", "--weights", "untrained", "--data-path", "shapes", "-j", 0]
    process, log = run_on_gpus([*command, "--engine", "oneflow"], folder=place, count_error=error)
    assert process.returncode == 0, process.stderr
    assert f"computing on the CPU: the GPU driver does not work (CUDA error {error})" in process.stderr
    assert not of(log, "kernel")
    process, _ = run_on_gpus([*command, "--device", "cuda"], folder=place, count_error=error)
    assert process.returncode == 2
    assert f"--device cuda: the GPU driver does not work (CUDA error {error}): " in process.stderr


def test_the_report_names_each_gpu(place):
    output, _ = done_on_gpus(["-m", "ssd300_vgg16.runtime"], [Gpu(), Gpu("NVIDIA H100", (9, 0), 80)], folder=place)
    assert "NVIDIA GeForce RTX 3090; NVIDIA H100\n" in output
    assert "cuda:0    this OneFlow has code for it" in output
    assert "no code for NVIDIA H100 (compute capability 9.0)" in output
