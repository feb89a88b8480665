"""Detection and evaluation on a GPU, as far as a stand-in goes: memory, half precision, and what a batch costs."""

import json
import shutil

import pytest
from gpu_stand_in import Gpu, of, run_on_gpus
from small_data import shapes_folder, untrained_run

from ssd300_vgg16.gpu_memory import DETECTION_ADVICE

TOO_SMALL = [Gpu(gigabytes=0.1)]  # for eight images at a time; one takes half of it
# Eight images at a time by a program of its own.
IN_PYTHON = """
import numpy as np
from ssd300_vgg16 import Detector
detector = Detector.load("untrained", "cuda")
detector.detect(np.zeros((8, 3, 300, 300), np.uint8), np.full((8, 2), 300))
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with shapes and the run of an untrained network in it."""
    folder = tmp_path_factory.mktemp("detection")
    shapes_folder(folder, 4, 9)
    untrained_run(folder / "untrained", width=0.25)
    return folder


@pytest.mark.parametrize(
    "command",
    [
        ("-m", "ssd300_vgg16.infer", "--weights", "untrained", "shapes/val", "-b", 8),
        ("-m", "ssd300_vgg16.evaluate", "--weights", "untrained", "--data-path", "shapes", "-j", 0),
        ("-m", "ssd300_vgg16.train", "--test-only", "--load", "untrained", "--data-path", "shapes", "-j", 0, "-b", 8),
        ("-c", IN_PYTHON),
    ],
    ids=["infer", "evaluate", "test-only", "python"],
)
def test_a_gpu_that_runs_out_of_memory_ends_with_a_sentence(place, command):
    process, log = run_on_gpus(command, TOO_SMALL, folder=place)
    assert of(log, "refused", "device")
    assert (process.returncode, process.stderr) == (2, f"{DETECTION_ADVICE}\n")


def test_what_was_detected_before_is_whole(place):
    """The first batch has a single image that can be read, and fits."""
    photos = place / "photos"
    shutil.copytree(place / "shapes" / "val", photos)
    for number in range(7):
        (photos / f"0000000{number}.jpg").write_text("no image")
    former = place / "detections" / "detections.json"
    former.parent.mkdir(exist_ok=True)
    former.write_text("[1]")
    command = ["-m", "ssd300_vgg16.infer", "--weights", "untrained", photos, "-b", 8, "--device", "cuda"]
    process, log = run_on_gpus(command, TOO_SMALL, folder=place)
    assert (process.returncode, process.stderr) == (2, f"{DETECTION_ADVICE}\n")
    assert of(log, "cudnn", "forward") and of(log, "copy", "to-host")
    assert former.read_text() == "[1]"
    assert json.loads(former.with_name("detections.json.part").read_text()) == []
