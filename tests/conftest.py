"""What several test files share."""

# First of all, so that numpy's BLAS gets the kernels the package chooses for it.
import ssd300_vgg16.cli  # noqa: F401

# isort: split
import signal

import numpy as np
import pytest
from places import GOLDEN, REPOSITORY

# What runs in the background of a shell is started deaf to Ctrl-C, and tests send it to themselves and to others.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


# Begun first, and those that take longest first of all: at the end there are short ones for whichever process is free.
LONG_FILES = (
    "distributed/test_processes.py",
    "training/test_step.py",
    "training/test_training.py",
    "gpu/test_gpu_training.py",
    "test_self_test.py",
    "training/test_checkpoint.py",
    "training/test_kill.py",
    "gpu/test_gpu_self_test.py",
    "gpu/test_gpu_devices.py",
    "gpu/test_gpu_steps.py",
    "gpu/test_gpu_detection.py",
    "network/cpu/test_narrow.py",
    "distributed/test_two_hosts.py",
    "detection/test_detection_in_processes.py",
    "network/test_network.py",
    "data/test_workers.py",
    "test_strangers_files.py",
    "report/test_in_browser.py",
    "test_tiles.py",
    "distributed/test_launcher.py",
    "deploy/test_cache.py",
    "cli/test_streams.py",
    "test_setup.py",
    "test_variant_commands.py",
    "test_signals.py",
    "test_names.py",
)


def pytest_collection_modifyitems(items):
    place = {REPOSITORY / "tests" / name: number for number, name in enumerate(LONG_FILES)}
    items.sort(key=lambda item: place.get(item.path, len(place)))


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory):
    """What is kept for the next time is kept for the tests alone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SSD_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def kept_models(tmp_path, monkeypatch):
    """A list of the files in a cache of ONNX models that is the test's own, and empty as yet."""
    monkeypatch.setenv("SSD_CACHE", str(tmp_path / "cache"))
    return lambda: sorted((tmp_path / "cache" / "onnx").glob("*"))


@pytest.fixture
def no_hang():
    """A wait that would never end becomes a failure, which no `except Exception` takes for one of its own."""
    former = signal.signal(signal.SIGALRM, lambda *_: pytest.fail("still waiting after a minute"))
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, former)


@pytest.fixture(scope="session")
def golden():
    """A reader of the reference figures: golden("loss") holds the arrays of golden/loss.npz by name."""

    def read(name):
        with np.load(GOLDEN / f"{name}.npz") as file:
            return {key: file[key] for key in file}

    return read


@pytest.fixture(scope="session")
def greedy_nms():
    """NMS as the paper's code does it: box by box, with the arguments and the answer of `nms`."""

    def suppress(boxes, scores, labels, iou_threshold, max_boxes):
        kept = []
        for candidate in sorted(range(len(scores)), key=lambda i: (-scores[i], i)):
            same = [better for better in kept if labels[better] == labels[candidate]]
            if all(_iou(boxes[better], boxes[candidate]) <= iou_threshold for better in same):
                kept.append(candidate)
            if len(kept) == max_boxes:
                break
        return kept

    return suppress


def _iou(a, b):
    a, b = map(float, a), map(float, b)
    (ax1, ay1, ax2, ay2), (bx1, by1, bx2, by2) = a, b
    shared = max(min(ax2, bx2) - max(ax1, bx1), 0) * max(min(ay2, by2) - max(ay1, by1), 0)
    union = (ax2 - ax1) * (ay2 - ay1) + (bx2 - bx1) * (by2 - by1) - shared
    return shared / union if union > 0 else 0.0
