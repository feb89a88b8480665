"""A training killed at any moment and gone on with is, bit for bit, the training that was left alone."""

import random
import signal
import time

import numpy as np
import pytest
from safetensors.numpy import load_file
from small_data import WIDTH, metrics_without_times, run, shapes_folder, start

from ssd300_vgg16.weights.locate import BEST, LAST

# Every step is saved, so that a good part of the time is spent in saving. AdamW and the average have most to remember.
SETTINGS = ("--preset", "narrow", "--width", WIDTH, "-b", 2, "-j", 0, "--print-freq", 3, "--device", "cpu")
SETTINGS += ("--epochs", 5, "--save-every", 1, "--ema", 0.9, "--data-path", "shapes", "--eval-every", 2)
ONE_THREAD = {"OMP_NUM_THREADS": 1}
SECONDS_OF_TRAINING = 6.0  # about what there is to kill it in, on a machine that has nothing else to do


@pytest.fixture(scope="module")
def left_alone(tmp_path_factory):
    """The folder in which a training was left alone; its run is called `whole`."""
    folder = tmp_path_factory.mktemp("kill")
    shapes_folder(folder, 16, 2)
    process = run("train", *SETTINGS, "--output-dir", "whole", folder=folder, variables=ONE_THREAD)
    assert process.returncode == 0, process.stderr
    return folder


def kill_in_mid_training(folder, arguments, moment):
    """Kill it that many seconds after its first words; False if it was at its end by then."""
    process = start("train", *arguments, folder=folder, variables=ONE_THREAD)
    for line in process.stdout:
        if line.startswith("Run folder"):
            break
    time.sleep(moment)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    return process.returncode == -signal.SIGKILL


@pytest.mark.parametrize("kills", [3, pytest.param(20, marks=pytest.mark.long)])
def test_a_training_killed_again_and_again_ends_as_one_left_alone(left_alone, kills):
    seed = random.randrange(1 << 32)
    print(f"moments of death: seed {seed}")
    moments = random.Random(seed)
    name = f"killed-{kills}"
    begin, go_on = [*SETTINGS, "--output-dir", name], ["--resume", name, "-j", 0, "--device", "cpu"]
    arguments = begin
    for _ in range(kills):
        if not kill_in_mid_training(left_alone, arguments, moments.uniform(0, SECONDS_OF_TRAINING / kills * 1.5)):
            break
        arguments = go_on
    process = run("train", *go_on, folder=left_alone, variables=ONE_THREAD)
    assert process.returncode == 0, process.stderr
    assert metrics_without_times(left_alone / name) == metrics_without_times(left_alone / "whole")
    for file in (LAST, BEST):
        resumed, expected = (load_file(left_alone / run_name / file) for run_name in (name, "whole"))
        assert resumed.keys() == expected.keys()
        for tensor, array in expected.items():
            np.testing.assert_array_equal(resumed[tensor], array, err_msg=f"{file} {tensor}")
    left = [path.name for path in (left_alone / name).iterdir() if path.name.startswith(".")]
    assert left == [], "what a save was killed at is not left behind"
