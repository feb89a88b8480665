"""A training killed at any moment and gone on with is, bit for bit, the training that was left alone."""

import os
import random
import signal
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file
from small_data import WIDTH, metrics_without_times, run, shapes_folder, start

from ssd300_vgg16.weights.locate import BEST, LAST

# Every step is saved, so that a good part of the time is spent in saving. AdamW and the average have most to remember.
SETTINGS = ("--preset", "narrow", "--width", WIDTH, "-b", 2, "-j", 0, "--print-freq", 3, "--device", "cpu")
SETTINGS += ("--epochs", 5, "--save-every", 1, "--ema", 0.9, "--data-path", "shapes", "--eval-every", 2)
ONE_THREAD = {"OMP_NUM_THREADS": 1}


@pytest.fixture(scope="module")
def left_alone(tmp_path_factory):
    """A folder in which a training of so many processes was left alone, and how many seconds there were to kill it in.

    Its run is called `whole`.
    """
    made = {}

    def folder_of(processes):
        if processes not in made:
            folder = tmp_path_factory.mktemp("kill")
            shapes_folder(folder, 16, 2)
            variables = {**ONE_THREAD, "NPROC": processes}
            process = start("train", *SETTINGS, "--output-dir", "whole", folder=folder, variables=variables)
            first_words(process)
            since = time.monotonic()
            _, errors = process.communicate(timeout=300)
            assert process.returncode == 0, errors
            made[processes] = folder, time.monotonic() - since
        return made[processes]

    return folder_of


def first_words(process):
    for line in process.stdout:
        if line.startswith("Run folder"):
            break


def kill_in_mid_training(folder, arguments, variables, moment, choose):
    """Kill it, or one of its ranks, that many seconds after its first words; False if it had ended by then."""
    process = start("train", *arguments, "--restarts", 0, folder=folder, variables=variables)
    first_words(process)
    time.sleep(moment)
    ranks = []
    if variables["NPROC"] > 1:  # the children of a process alone are no ranks
        with suppress(FileNotFoundError):
            ranks = list(map(int, Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()))
    with suppress(ProcessLookupError):
        os.kill(choose([process.pid, *ranks]), signal.SIGKILL)
    process.communicate()
    return process.returncode != 0


@pytest.mark.parametrize(
    ("kills", "processes"), [(2, 1), *(pytest.param(20, count, marks=pytest.mark.long) for count in (1, 2))]
)
def test_a_training_killed_again_and_again_ends_as_one_left_alone(left_alone, kills, processes):
    seed = random.randrange(1 << 32)
    print(f"moments of death: seed {seed}")
    moments = random.Random(seed)
    (folder, seconds), variables = left_alone(processes), {**ONE_THREAD, "NPROC": processes}
    name = f"killed-{kills}"
    begin, go_on = [*SETTINGS, "--output-dir", name], ["--resume", name, "-j", 0, "--device", "cpu"]
    arguments = begin
    for _ in range(kills):
        moment = moments.uniform(0, seconds / kills * 1.5)
        if not kill_in_mid_training(folder, arguments, variables, moment, moments.choice):
            break
        arguments = go_on
    process = run("train", *go_on, folder=folder, variables=variables)
    assert process.returncode == 0, process.stderr
    assert metrics_without_times(folder / name) == metrics_without_times(folder / "whole")
    for file in (LAST, BEST):
        resumed, expected = (load_file(folder / run_name / file) for run_name in (name, "whole"))
        assert resumed.keys() == expected.keys()
        for tensor, array in expected.items():
            np.testing.assert_array_equal(resumed[tensor], array, err_msg=f"{file} {tensor}")
    left = [path.name for path in (folder / name).iterdir() if path.name.startswith(".")]
    assert left == [], "what a save was killed at is not left behind"
