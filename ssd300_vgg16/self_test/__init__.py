"""Does this machine compute what it should, and how fast? A report that can be pasted into an issue.

.venv/bin/python -I -m ssd300_vgg16.runtime --self-test --device cuda

A broken library, driver or kernel shows up as a check that FAILED, the first of them nearest to the fault.
"""

import ctypes
import re
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path

from ssd300_vgg16 import __version__
from ssd300_vgg16.devices import resolve_device
from ssd300_vgg16.errors import UserError
from ssd300_vgg16.runtime import flow
from ssd300_vgg16.self_test import checks, speed
from ssd300_vgg16.self_test.checks import HALF, Check, Way, float32_of, ways_of
from ssd300_vgg16.self_test.flowvision import beside_flowvision

DRIVER = Path("/proc/driver/nvidia/version")
LONGEST_ERROR = 400
PACKAGE = Path(__file__).resolve().parent.parent
HEADER = f"  {'':<18} {'largest':>9} {'allowed':>9}"


def self_test(device: str | None) -> int:
    """Check and measure a device, and print a report; returns the exit status: 0, or 1 where a check failed."""
    device = resolve_device(device)
    since = time.perf_counter()
    print(f"\nself-test of {device}\n{_facts(device)}")
    failed, count = [], 0
    for title, group in groups(device):
        # Before it begins: if it ends the process on the spot, the last title says what did.
        print(f"\n{title}\n{HEADER}", flush=True)
        for check in guarded(group):
            print(f"  {check.row()}", flush=True)
            count += 1
            if not check.ok:
                failed.append(f"{title}: {check.name}")
    print("\nspeed at full width")
    for title, measure in speeds(device):
        try:
            print(f"  {title:<40} {measure()}", flush=True)
        except Exception as error:  # as in `guarded`
            print(f"  {title:<40} FAILED  {_said(error)}", flush=True)
            failed.append(f"speed: {title}")
    print(f"\n{_legend(device)}")
    print(f"{count} checks on {device} in {time.perf_counter() - since:.0f} s: ", end="")
    print("\n  ".join(["FAILED", *failed]) if failed else "ok")
    return int(bool(failed))


def groups(device: str) -> Iterator[tuple[str, Callable[[], Iterable[Check]]]]:
    """All checks of a device in groups, each with its title."""
    yield "network at full width, beside flowvision's on the CPU", partial(beside_flowvision, device)
    yield "post-processing", partial(checks.postprocessing, device)
    if device != "cpu":
        half = Way(device, eager=True, amp=True, tolerance=HALF)
        yield f"network, {half.name}", partial(checks.network, half)
    for way in ways_of(device):
        yield f"network, {way.name}", partial(checks.network, way)
        yield f"loss, {way.name}", partial(checks.loss, way)
        yield f"training, {way.name}", partial(checks.training, way)


def speeds(device: str) -> Iterator[tuple[str, Callable[[], str]]]:
    """What is measured, each with its title."""
    yield "training, float32", partial(speed.training, device, False)
    if device != "cpu":
        yield "training, half (--amp)", partial(speed.training, device, True)
    yield "detection, with post-processing", partial(speed.detection, device, False)
    if device != "cpu":
        yield "detection, half (--amp)", partial(speed.detection, device, True)


def guarded(group: Callable[[], Iterable[Check]]) -> Iterator[Check]:
    """A group's checks; an error is a check that failed, and leaves out what would come after it in the group."""
    try:
        yield from group()
    except Exception as error:  # whatever it is: the other groups go on
        yield Check("error", float("inf"), 0.0, _said(error))


def _said(error: Exception) -> str:
    """An error in a line, with the place in this package where it came up."""
    text = " ".join(f"{type(error).__name__}: {error}".split())
    if len(text) > LONGEST_ERROR:  # OneFlow's begin with what was called, and end with what is wrong
        text = f"{text[: LONGEST_ERROR // 2]} ... {text[-LONGEST_ERROR // 2 :]}"
    places, trace = [], error.__traceback__
    while trace:
        file = Path(trace.tb_frame.f_code.co_filename)
        if file.is_relative_to(PACKAGE):
            places.append(f"{file.relative_to(PACKAGE)}, line {trace.tb_lineno}")
        trace = trace.tb_next
    return text if isinstance(error, UserError) else f"{text} ({places[-1]})"


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
    return f"{version.group() if version else 'version not known'}, CUDA {_newest_cuda()}"


def _newest_cuda() -> str:
    number = ctypes.c_int()
    ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(number))
    return f"{number.value // 1000}.{number.value % 1000 // 10}"


def _legend(device: str) -> str:
    tolerances = dict.fromkeys([*(way.tolerance for way in ways_of(device)), float32_of(device), checks.EXACT])
    lines = [f"  {each.name:<12} {each.answers:g}, {each.parameters:g}: {each.reason}" for each in tolerances]
    title = (
        "Differences are parts of the largest value; of gradients, updates and resumed steps, of the norm of the worst "
        "parameter. What is allowed of both:"
    )
    return "\n".join([title, *lines])
