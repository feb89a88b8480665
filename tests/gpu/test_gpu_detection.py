"""Detection and evaluation on a GPU, as far as a stand-in goes: memory, half precision, and what a batch costs."""

import json
import re
import shutil

import pytest
from gpu_stand_in import Gpu, done_on_gpus, of, run_on_gpus, types_of_convolutions

from ssd300_vgg16.gpu_memory import DETECTION_ADVICE

DATA = ("--data-path", "shapes", "-j", 0)
COMMANDS = {
    "infer": ("-m", "ssd300_vgg16.infer", "--weights", "untrained", "shapes/val", "-b", 8),
    "evaluate": ("-m", "ssd300_vgg16.evaluate", "--weights", "untrained", *DATA),
    "test-only": ("-m", "ssd300_vgg16.train", "--test-only", "--load", "untrained", *DATA, "-b", 8),
}
TOO_SMALL = [Gpu(gigabytes=0.1)]  # for eight images at a time; one takes half of it
# Eight images at a time by a program of its own.
IN_PYTHON = """
import numpy as np
from ssd300_vgg16 import Detector
detector = Detector.load("untrained", "cuda")
detector.detect(np.zeros((8, 3, 300, 300), np.uint8), np.full((8, 2), 300))
"""

# Of a batch of eight with the published network: kernels, calls of cuDNN, copies on the GPU, bytes to the host, and
# copies there, each of which is waited for.
COSTS = {"float32": (107, 35, 11, 3421696, 3), "half": (113, 35, 11, 3421696, 3)}
MARKED = """
import ctypes, sys, time
import numpy as np
from ssd300_vgg16.detector import Detector
from ssd300_vgg16.network.ssd import SSD300
from ssd300_vgg16.network.vgg import convolutions_in_half, parameters_left_empty
from ssd300_vgg16.weights.safetensors_file import ModelDescription
mark = ctypes.CDLL(None).gpu_stand_in_mark
with parameters_left_empty():
    model = SSD300()
batch = np.zeros((8, 3, 300, 300), np.uint8), np.full((8, 2), 300)
for half in (False, True):
    if half:
        convolutions_in_half(model)
    detector = Detector(model, ModelDescription(91, 1.0, ()), "cuda")
    detector.detect(*batch)
    mark(b"begin")
    first, second = (detector.begin(*batch) for _ in range(2))
    mark(b"begun")
    first()
    second()
    mark(b"end")
"""
# What half precision is used for besides cuDNN: casts, biases (0), ReLU (3), pooling, and what lies in another order.
HALF = re.compile(r"CastFunctor|\(BinaryOp\)0,|\(UnaryOp\)3,|MaxPool2d|ToContiguous|CopyNd")


@pytest.fixture(scope="module")
def marked(tmp_path_factory):
    """By precision: the log until two batches are begun, neither of them read, and that of the rest."""
    _, log = done_on_gpus(["-c", MARKED], folder=tmp_path_factory.mktemp("marked"), slow_us=10000)
    marks = [place for place, event in enumerate(log) if event.kind == "mark"]
    return {
        kind: (log[begin:begun], log[begun:end])
        for kind, (begin, begun, end) in zip(COSTS, (marks[:3], marks[3:]), strict=True)
    }


@pytest.mark.parametrize("kind", COSTS)
def test_what_a_batch_costs(marked, kind):
    log = [*marked[kind][0], *marked[kind][1]]
    to_host = of(log, "copy", "to-host")
    totals = (
        len(of(log, "kernel")),
        len(of(log, "cudnn")),
        len(of(log, "copy", "on-device")),
        sum(event.size for event in to_host),
        len(to_host),
    )
    assert tuple(total / 2 for total in totals) == COSTS[kind]
    assert not of(log, "wait")


@pytest.mark.parametrize("kind", COSTS)
def test_the_next_batch_is_begun_before_the_former_is_read(marked, kind):
    """Else the GPU has nothing to do while the host chooses boxes. What is read is copied before the next network."""
    before, after = marked[kind]
    assert not of(before, "copy", "to-host")
    copies = [place for place, event in enumerate(after) if (event.kind, event.name) == ("copy", "to-host")]
    convolutions = [place for place, event in enumerate(after) if event.kind == "cudnn"]
    assert copies[2] < convolutions[-COSTS[kind][1]] < copies[3]


def test_half_precision_is_for_convolutions(marked):
    log = [*marked["half"][0], *marked["half"][1]]
    assert types_of_convolutions(log) == {"half"}
    names = {event.name for event in of(log, "kernel")}
    assert [name for name in names if "half" in name and not HALF.search(name)] == []
    for part in ("SoftmaxWarpImpl<softmax::DirectLoad<float, float>", "RadixSortPolicy<float", "NdarrayReduceGpu"):
        assert any(part in name for name in names), part


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_commands_compute_in_half(place, command):
    output, log = done_on_gpus([*command, "--amp"], folder=place)
    assert "9 images" in output
    assert types_of_convolutions(log) == {"half"} and not of(log, "cudnn", "backward-filter")


@pytest.mark.parametrize("command", [*COMMANDS.values(), ("-c", IN_PYTHON)], ids=[*COMMANDS, "python"])
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
