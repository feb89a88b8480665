"""The command lines on GPUs, as far as a stand-in for them goes: all is done, and nothing that a GPU would refuse."""

import pytest
from gpu_stand_in import of, run_on_gpus
from small_data import WIDTH, shapes_folder

SETTINGS = ("--width", WIDTH, "-b", 2, "-j", 0, "--print-freq", 1)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with generated shapes in it, to run commands in."""
    folder = tmp_path_factory.mktemp("gpu")
    shapes_folder(folder, 4, 2)
    return folder


def done(place, module, *arguments, **options):
    """The output and the log of a command that has to end well."""
    process, log = run_on_gpus(["-m", f"ssd300_vgg16.{module}", *arguments], folder=place, **options)
    assert process.returncode == 0, process.stderr
    assert not of(log, "error")
    return process.stdout, log


def test_training(place):
    output, log = done(place, "train", "--data-path", "shapes", *SETTINGS, "--epochs", 1, "--output-dir", "run")
    assert "Device: cuda." in output
    assert of(log, "cudnn", "backward-filter")
