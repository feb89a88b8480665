"""Commands on a machine that seems to have GPUs: OneFlow 0.9.0's own CUDA code, without what it would compute.

    output, log = done_on_gpus(["-m", "ssd300_vgg16.train", "--data-path", "shapes"], gpus=2, folder=tmp_path)

The CUDA runtime inside OneFlow's wheel is replaced as it is loaded (gpu/stand_in/patch.c), and cuDNN, cuBLAS, cuRAND
and NCCL before they are. Device memory cannot be touched by the host: a stray access ends the process, and is told.
Copies are checked for direction and bounds, launches for size; NCCL does move data between processes. Kernels are
logged and not computed, so this proves which work is done where, in which types and how much of it, and no numbers.

The log is a list of `Event`, in order within a thread; "mark" comes from tests, by `gpu_stand_in_mark` of the library.

| kind     | name                                      | size   | text                             |
|----------|-------------------------------------------|--------|----------------------------------|
| kernel   | its C++ name with types                   |        | grid, block, shared, stream      |
| copy     | to-device, to-host, on-device             | bytes  | async or waits, pinned or not    |
| fill     | async or waits                            | bytes  |                                  |
| wait     | stream, event, device                     |        | the host waits for it            |
| allocate | device, pinned (free: the same)           | bytes  | refused: where there is no more  |
| cudnn    | forward, backward-data, pool, ...         |        | types and shapes                 |
| cublas   | gemm                                      |        | shape and types                  |
| nccl     | all-reduce, broadcast, ...                | bytes  | type                             |
| error    | what no GPU would have let pass           |        |                                  |
"""

import atexit
import functools
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from places import REPOSITORY
from small_data import environment

SOURCE = REPOSITORY / "tests" / "gpu" / "stand_in"
WHEEL = Path(sysconfig.get_path("purelib"))
# The libraries of OneFlow 0.9.0's wheel that hold a CUDA runtime, and kernels.
LIBRARIES = ("liboneflow-6f2d67ec.so", "libcutlass-57d380ab.so")
# Of its functions, those that need no GPU.
KEPT = re.compile("__cudaRegister.*|__cudaUnregisterFatBinary|__cudaInitModule|cudaGetError(String|Name)")


class Gpu(NamedTuple):
    """What a GPU says of itself."""

    name: str = "NVIDIA GeForce RTX 3090"
    capability: tuple[int, int] = (8, 6)
    gigabytes: float = 24


class Event(NamedTuple):
    """A line of the log."""

    rank: int
    thread: int
    kind: str
    name: str
    size: int
    text: str


def run_on_gpus(
    arguments: Iterable,
    gpus: int | Sequence[Gpu] = 1,
    *,
    folder: Path,
    count_error: int = 0,
    slow_us: int = 0,
    zeros: bool = True,
    variables: dict | None = None,
    timeout: float = 300,
) -> tuple[subprocess.CompletedProcess, list[Event]]:
    """Run Python with these arguments in a folder, on so many GPUs or these; its end, and the log of all its processes.

    count_error: what cudaGetDeviceCount and cuInit give (803, 804 or 999: a broken driver). slow_us: what a convolution
    takes, in microseconds. zeros: what is copied to the host is zero; else what was last copied or filled there, which
    for a result that a kernel should have computed is anything. variables: of the environment. The test is skipped
    where the stand-in cannot be built.
    """
    gpus = [Gpu()] * gpus if isinstance(gpus, int) else gpus
    built = _built()
    with tempfile.TemporaryDirectory() as logs:
        settings = {
            "LD_PRELOAD": built / "libstand_in.so",
            "LD_LIBRARY_PATH": built,  # of libcuda.so.1
            "GPU_STAND_IN_GPUS": ";".join(f"{name}|{x}.{y}|{memory}" for name, (x, y), memory in gpus),
            "GPU_STAND_IN_ERROR": count_error,
            "GPU_STAND_IN_SLOW_US": slow_us,
            "GPU_STAND_IN_ZEROS": int(zeros),
            "GPU_STAND_IN_LOG": Path(logs) / "log",
            **(variables or {}),
        }
        inherited = {name: value for name, value in environment().items() if name != "CUDA_VISIBLE_DEVICES"}
        process = subprocess.run(
            [sys.executable, *map(str, arguments)],
            cwd=folder,
            env=inherited | {name: str(value) for name, value in settings.items()},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
        )
        files = sorted(Path(logs).iterdir(), key=lambda path: int(path.suffix[1:]))
        events = [_event(int(path.suffix[1:]), line) for path in files for line in path.read_text().splitlines()]
    return process, _named(events)


def done_on_gpus(arguments: Iterable, *gpus, **options) -> tuple[str, list[Event]]:
    """The output and the log of a command that has to end well, and to do nothing that no GPU would let pass."""
    process, log = run_on_gpus(arguments, *gpus, **options)
    assert process.returncode == 0, process.stderr
    assert not of(log, "error")
    return process.stdout, log


def of(log: list[Event], kind: str, name: str | None = None) -> list[Event]:
    """The events of a kind, and of a name."""
    return [event for event in log if event.kind == kind and name in (None, event.name)]


def types_of_convolutions(log: list[Event]) -> set[str]:
    """In which types cuDNN's arguments are, all of them."""
    return {name for event in of(log, "cudnn") for name in re.findall(r"(\w+)\[", event.text)}


def _event(rank: int, line: str) -> Event:
    thread, kind, name, size, text = line.split(" ", 4)
    return Event(rank, int(thread), kind, name, int(size), text)


@functools.cache
def _built() -> Path:
    """The folder with the libraries, made once for a session of tests."""
    missing = [name for name in LIBRARIES if not (WHEEL / "oneflow.libs" / name).is_file()]
    if missing:
        pytest.skip(f"the GPU stand-in is made for the wheel of OneFlow 0.9.0, and {missing[0]} is not here")
    for tool in ("gcc", "c++filt"):
        if shutil.which(tool) is None:
            pytest.skip(f"the GPU stand-in needs {tool}")
    folder = Path(tempfile.mkdtemp(prefix="gpu-stand-in-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    (folder / "symbols.inc").write_text(_symbols_as_c())
    shared = [SOURCE / name for name in ("log", "memory", "runtime", "libraries", "nccl", "patch", "settings")]
    _compile(folder / "libstand_in.so", [path.with_suffix(".c") for path in shared])
    _compile(folder / "libcuda.so.1", [SOURCE / "driver.c", SOURCE / "settings.c"])
    return folder


def _compile(library: Path, sources: list[Path]) -> None:
    options = ["-O2", "-D_GNU_SOURCE", "-fPIC", "-shared", "-Wall", f"-I{library.parent}"]
    made = subprocess.run(["gcc", *options, *sources, "-o", library], capture_output=True, text=True)
    assert made.returncode == 0, made.stderr


class _Symbols:
    """The functions of an ELF library: offsets in it, rising, and names."""

    _SECTIONS = np.dtype("u4, u4, u8, u8, u8, u8, u4, u4, u8, u8")  # name, type, ..., offset [4], size [5], link [6]
    _SYMBOLS = np.dtype(
        [("name", "u4"), ("info", "u1"), ("other", "u1"), ("section", "u2"), ("value", "u8"), ("size", "u8")]
    )
    _SYMBOL_TABLE, _FUNCTION = 2, 2

    def __init__(self, path: Path):
        self._file = np.memmap(path, mode="r")
        start, (count,) = int(self._file[0x28:0x30].view("u8")[0]), self._file[0x3C:0x3E].view("u2")
        sections = self._file[start : start + int(count) * self._SECTIONS.itemsize].view(self._SECTIONS)
        (table,) = sections[sections["f1"] == self._SYMBOL_TABLE]
        symbols = self._content(table).view(self._SYMBOLS)
        self._names = self._content(sections[table["f6"]])
        symbols = symbols[(symbols["info"] & 15 == self._FUNCTION) & (symbols["section"] > 0)]
        self._symbols = symbols[np.argsort(symbols["value"], kind="stable")]

    def _content(self, section: np.void) -> np.ndarray:
        return self._file[int(section["f4"]) : int(section["f4"] + section["f5"])]

    def _name(self, symbol: np.void) -> str:
        start = int(symbol["name"])
        return bytes(self._names[start : start + 8192]).partition(b"\0")[0].decode()

    def cuda_functions(self) -> dict[str, int]:
        """The CUDA runtime's functions, and their offsets."""
        first = self._symbols["name"].astype(np.int64)
        letters = [self._names[np.minimum(first + i, len(self._names) - 1)] for i in range(6)]
        starts = [np.all([letters[i] == ord(c) for i, c in enumerate(word)], axis=0) for word in ("cuda", "__cuda")]
        candidates = self._symbols[starts[0] | starts[1]]
        named = {self._name(symbol): int(symbol["value"]) for symbol in candidates}
        functions = {name: value for name, value in named.items() if re.fullmatch(r"(__)?cuda[A-Z]\w*", name)}
        return {name: value for name, value in functions.items() if not KEPT.fullmatch(name)}

    def name_at(self, offset: int) -> str:
        """The function that begins there."""
        place = np.searchsorted(self._symbols["value"], offset)
        return self._name(self._symbols[place]) if self._symbols["value"][place] == offset else hex(offset)


@functools.cache
def _symbols(library: str) -> _Symbols:
    return _Symbols(WHEEL / "oneflow.libs" / library)


def _symbols_as_c() -> str:
    functions = {library: _symbols(library).cuda_functions() for library in LIBRARIES}
    lines = [f'LIBRARY("{library}")' for library in LIBRARIES]
    lines += [f"FUNCTION({name})" for name in sorted(set().union(*functions.values()))]
    for number, library in enumerate(LIBRARIES):
        lines += [f"PLACE({number}, {name}, {offset})" for name, offset in functions[library].items()]
    return "\n".join(lines)


def _named(events: list[Event]) -> list[Event]:
    """The log with names of kernels in place of where their code is."""
    places = {(event.name, event.size) for event in of(events, "kernel")}
    mangled = {place: _symbols(place[0]).name_at(place[1]) for place in sorted(places)}
    text = subprocess.run(["c++filt"], input="\n".join(mangled.values()), capture_output=True, text=True).stdout
    names = dict(zip(mangled, map(_short, text.splitlines()), strict=True))
    return [
        event._replace(name=names[event.name, event.size], size=0) if event.kind == "kernel" else event
        for event in events
    ]


def _short(name: str) -> str:
    """A kernel's name and template arguments, without namespaces and parameters."""
    name = re.sub(r"\(anonymous namespace\)::|\b(?:oneflow|user_op|cuda|elementwise|std|ep|primitive)::", "", name)
    name = name.removeprefix("void ")
    depth = 0
    for place, letter in enumerate(name):
        depth += (letter == "<") - (letter == ">")
        if letter == "(" and depth == 0:
            return name[:place]
    return name
