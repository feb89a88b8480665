"""Does this machine compute what it should, and how fast? A report that can be pasted into an issue.

.venv/bin/python -I -m ssd300_vgg16.runtime --self-test --device cuda

A broken library, driver or kernel shows up as a check that FAILED.
"""

import ctypes
import multiprocessing
import os
import re
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import islice
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np

from ssd300_vgg16 import __version__
from ssd300_vgg16.data.categories import COCO_CATEGORIES
from ssd300_vgg16.detector import Detector
from ssd300_vgg16.devices import resolve_device
from ssd300_vgg16.distributed.world import ALONE
from ssd300_vgg16.errors import UserError
from ssd300_vgg16.network.ssd import COCO_CLASSES
from ssd300_vgg16.network.variants import default_boxes
from ssd300_vgg16.network.vgg import convolutions_in_half
from ssd300_vgg16.runtime import flow
from ssd300_vgg16.self_test import checks, made_up
from ssd300_vgg16.self_test.checks import HALF, Check, Way, float32_of, ways_of
from ssd300_vgg16.signals import end_of
from ssd300_vgg16.training.config import OptimizerConfig, Schedule
from ssd300_vgg16.training.step import make_step
from ssd300_vgg16.weights.safetensors_file import ModelDescription

DRIVER = Path("/proc/driver/nvidia/version")
LONGEST_ERROR = 400
PACKAGE = Path(__file__).resolve().parent.parent
# Images at a time: few enough for a GPU of 8 GB, and for an answer within seconds on the CPU.
CPU_BATCH, GPU_BATCH = 2, 16
SECONDS = 5.0
# Added to the background's logits: a few hundred candidates an image are left, as of a trained network.
BACKGROUND = 9.0
POSITIVE = 0.003  # of the default boxes, as on COCO
PROCESSES = multiprocessing.get_context("spawn")  # OneFlow cannot go on in a fork
HEADER = f"  {'':<18} {'largest':>9} {'allowed':>9}"


@dataclass(frozen=True)
class Speed:
    """What was measured, in words."""

    text: str
    name = "speed"
    ok = True

    def row(self) -> str:
        """A line of the report."""
        return self.text


def self_test(device: str | None) -> int:
    """Check and measure a device, and print a report; returns the exit status: 0, or 1 where a check failed."""
    device = resolve_device(device)
    since = time.perf_counter()
    print(f"\nself-test of {device}\n{_facts(device)}\n\n{HEADER}")
    printed, failed, count = "", [], 0
    for title, check in _found(device):
        if title != printed:
            print(f"\n{title}", flush=True)
            printed = title
        if check:
            print(f"  {check.row()}", flush=True)
            count += 1
            if not check.ok:
                failed.append(f"{title}: {check.name}")
    print(f"\n{_legend(device)}")
    print(f"{count} checks on {device} in {time.perf_counter() - since:.0f} s: ", end="")
    print("\n  ".join(["FAILED", *failed]) if failed else "ok")
    return int(bool(failed))


def _found(device: str) -> Iterator[tuple[str, Check | Speed | None]]:
    """Each group's title as the group begins, with None, and then with each of its checks.

    Another process makes them, as OneFlow may end it on the spot: that is a check that failed, and a further process
    goes on behind the group.
    """
    titles = [title for title, _ in groups(device)]
    place = 0
    while place < len(titles):
        receiving, sending = PROCESSES.Pipe(duplex=False)
        process = PROCESSES.Process(target=_make, args=(sending, device, place))
        process.start()
        sending.close()  # so that the reading ends with the process
        with suppress(EOFError):
            while True:
                place, check = receiving.recv()
                yield titles[place], check
        process.join()
        if not process.exitcode:
            return
        yield titles[place], _failed(f"the process {end_of(process.exitcode)}")
        place += 1


def _make(sending: Connection, device: str, first: int) -> None:
    """Send the groups from a place on: the place with None, and then with each check."""
    os.dup2(1, 2)  # what native code says before it ends the process belongs into the report
    for place, (_, group) in islice(enumerate(groups(device)), first, None):
        sending.send((place, None))
        for check in guarded(group):
            sending.send((place, check))


def groups(device: str) -> Iterator[tuple[str, Callable[[], Iterable[Check | Speed]]]]:
    """All checks of a device in groups, and what is measured, each with its title."""
    yield "post-processing", partial(checks.postprocessing, device)
    yield "network, beside flowvision's on the CPU", partial(checks.beside_flowvision, device)
    if device != "cpu":
        half = Way(device, eager=True, amp=True, tolerance=HALF)
        yield f"network, {half.name}", partial(checks.network, half)
    for way in ways_of(device):
        yield f"network, {way.name}", partial(checks.network, way)
        yield f"loss, {way.name}", partial(checks.loss, way)
        yield f"training, {way.name}", partial(checks.training, way)
    for amp in (False,) if device == "cpu" else (False, True):
        precision = "half (--amp)" if amp else "float32"
        yield f"speed of training at full width, {precision}", partial(_training_speed, device, amp)
        yield f"speed of detection at full width, {precision}", partial(_detection_speed, device, amp)


def guarded(group: Callable[[], Iterable[Check | Speed]]) -> Iterator[Check | Speed]:
    """A group's checks; an error is a check that failed, and leaves out what would come after it in the group."""
    try:
        yield from group()
    except Exception as error:  # whatever it is: the other groups go on
        yield _failed(_said(error))


def _failed(why: str) -> Check:
    return Check("error", float("inf"), 0.0, why)


def _said(error: Exception) -> str:
    """An error in a line, with the place in this package where it came up."""
    text = " ".join(f"{type(error).__name__}: {error}".split())
    if len(text) > LONGEST_ERROR:  # OneFlow's begin with what was called, and end with what is wrong
        text = f"{text[: LONGEST_ERROR // 2]} ... {text[-LONGEST_ERROR // 2 :]}"
    if isinstance(error, UserError):
        return text
    frames = [(Path(frame.filename).resolve(), frame.lineno) for frame in traceback.extract_tb(error.__traceback__)]
    *_, (file, line) = (frame for frame in frames if frame[0].is_relative_to(PACKAGE))
    return f"{text} ({file.relative_to(PACKAGE)}, line {line})"


def _training_speed(device: str, amp: bool) -> list[Speed]:
    """Of steps like those of train.sh, without reading images."""
    count = _batch_size(device)
    model = made_up.model(COCO_CLASSES, 1.0, device)
    # So slow that the weights stay what they are.
    schedule = Schedule("multistep", 1e-9, total_steps=1 << 30, warmup_steps=0)
    step = make_step(model, OptimizerConfig("sgd"), schedule, ALONE, 1, amp, eager=device == "cpu")
    batch = made_up.batch(count, COCO_CLASSES, len(default_boxes()), POSITIVE)
    positives = int(np.count_nonzero(batch.labels))

    def run(times: int) -> None:
        for _ in range(times):
            metrics = step(batch, positives)
        metrics.numpy()
        model.backbone.scale_weight.numpy()  # the update is done, too

    return _rate(run, count)


def _detection_speed(device: str, amp: bool) -> list[Speed]:
    """From images of the network's size in main memory to detections, with post-processing; with OneFlow."""
    count = _batch_size(device)
    model = made_up.model(COCO_CLASSES, 1.0, device)
    for convolution in model.head.classification_head.module_list:
        bias = convolution.bias.numpy().reshape(-1, COCO_CLASSES).copy()
        bias[:, 0] += BACKGROUND
        convolution.bias.data.copy_(flow.from_numpy(bias.reshape(-1)).to(device))
    if amp:
        convolutions_in_half(model)
    detector = Detector(model, ModelDescription(COCO_CLASSES, 1.0, tuple(COCO_CATEGORIES)), device)
    images, sizes = made_up.images(count), np.array([[480, 640]] * count)

    def run(times: int) -> None:
        for _ in range(times):
            detector.detect(images, sizes)

    return _rate(run, count)


def _batch_size(device: str) -> int:
    return CPU_BATCH if device == "cpu" else GPU_BATCH


def _rate(run: Callable[[int], None], count: int) -> list[Speed]:
    """Images per second, of as many runs on so many as take SECONDS; the first of all warms up."""
    run(1)
    since = time.perf_counter()
    run(1)
    times = max(1, round(SECONDS / (time.perf_counter() - since)))
    since = time.perf_counter()
    run(times)
    return [Speed(f"{times * count / (time.perf_counter() - since):.1f} images/s in batches of {count}")]


def _facts(device: str) -> str:
    """What the report of `runtime` lacks, a line each."""
    lines = [f"package   {__version__}"]
    if device != "cpu":
        properties = flow.cuda.get_device_properties(device)
        capability = f"compute capability {properties.major}.{properties.minor}"
        lines.append(f"gpu       {properties.name}, {properties.total_memory / 2**30:.1f} GiB, {capability}")
        lines.append(f"driver    {_driver()}")
    return "\n".join(lines)


def _driver() -> str:
    """NVIDIA's driver, and the newest CUDA that it knows."""
    text = DRIVER.read_text() if DRIVER.is_file() else ""
    version = re.search(r"\d+\.\d+[.\d]*", text)
    cuda = ctypes.c_int()
    ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(cuda))
    major, minor = cuda.value // 1000, cuda.value % 1000 // 10
    return f"{version.group() if version else 'version not known'}, CUDA {major}.{minor}"


def _legend(device: str) -> str:
    tolerances = dict.fromkeys([*(way.tolerance for way in ways_of(device)), float32_of(device), checks.EXACT])
    lines = [f"  {each.name:<12} {each.answers:g}, {each.parameters:g}: {each.reason}" for each in tolerances]
    title = (
        "Differences are parts of the largest value; of gradients, updates and resumed steps, of the norm of the worst "
        "parameter. What is allowed of both:"
    )
    return "\n".join([title, *lines])
