"""What the benchmarks share: what one is, its options, processes of their own, and the peers' environment.

Nothing here or at the top of a benchmark's file imports the package, OneFlow or PyTorch: each side of a benchmark runs
in a fresh process (`in_fresh_process`), so that neither its libraries nor its memory are in the other's way.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.tables import Claim, Figures

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ROOT = Path(__file__).resolve().parent.parent
DEFAULT_PEER_PYTHON = ROOT / "benchmarks" / ".peers" / "bin" / "python"
MAKE_PEERS = (
    ".venv/bin/python -m venv benchmarks/.peers",
    "benchmarks/.peers/bin/pip install -r benchmarks/peers.txt",
    # Without the OpenCV that it names, whose files would be mixed with those of the one there.
    "benchmarks/.peers/bin/pip install --no-deps sahi==0.12.8",
)
PEER_PACKAGES = ("torch", "torchvision", "pycocotools", "faster-coco-eval", "sahi")
TORCHVISION = "torchvision"


@dataclass(frozen=True)
class Peers:
    """The Python of the peers' environment, and the versions of those of PEER_PACKAGES that it has."""

    python: Path
    versions: dict[str, str]

    def __contains__(self, package: str) -> bool:
        return package in self.versions

    def name(self, package: str) -> str:
        """With its version: "torchvision 0.26.0"."""
        return f"{package} {self.versions[package]}"


def find_peers(python: Path) -> Peers:
    """What is installed there; nothing if there is no such Python, or it does not start."""
    ask = (
        "import importlib.metadata as m, json\n"
        "print(json.dumps({d.metadata['Name'].lower().replace('_', '-'): d.version for d in m.distributions()}))"
    )
    try:
        done = subprocess.run([python, "-I", "-c", ask], capture_output=True, text=True, timeout=120)
        installed = json.loads(done.stdout)
    except (OSError, ValueError, subprocess.TimeoutExpired):
        installed = {}
    return Peers(python, {package: installed[package] for package in PEER_PACKAGES if package in installed})


@dataclass(frozen=True)
class Options:
    """rounds: how often all sides take their turn. data: images in VOC's layout. weights: None means made-up ones."""

    rounds: int
    quick: bool
    device: str
    data: Path
    data_given: bool
    weights: Path | None
    peers: Peers


def _no_claims(_: Figures) -> Iterator[Claim]:
    return iter(())


@dataclass(frozen=True)
class Benchmark:
    """One of the benchmarks: the object BENCHMARK of a file in this folder, whose name is in `__main__.NAMES`.

    measure: returns the figures, which are all that is recorded. table, claims, draw: Markdown, lines of the summary
    and a picture from recorded figures. needs: packages of the peers' environment. quick, on_gpu: whether there is a
    dry run of seconds, and whether it says something of a GPU. own_data: it is no part of `all`, as it needs --data.
    """

    title: str
    measure: Callable[[Options], Figures]
    table: Callable[[Figures], str]
    claims: Callable[[Figures], Iterator[Claim]] = _no_claims
    draw: "Callable[[Figure, Figures], None] | None" = None
    needs: tuple[str, ...] = ()
    rounds: int = 3
    quick: bool = True
    on_gpu: bool = False
    own_data: bool = False


class ProcessFailed(Exception):
    """A fresh process that did not answer; the message is its last words."""


_CALL = (
    "import importlib, json, sys\n"
    "if sys.argv[4:]: import ssd300_vgg16.cli\n"
    "call = getattr(importlib.import_module(sys.argv[1]), sys.argv[2])\n"
    "answer = call(*json.loads(sys.argv[3]))\n"
    "print('\\n' + json.dumps(answer), flush=True)"
)


def in_fresh_process(
    call: Callable,
    *arguments: object,
    python: Path | str = sys.executable,
    env: dict[str, str] | None = None,
    package: bool = True,
) -> Any:
    """call(*arguments) by this or another Python; arguments and answer go as JSON, paths as texts.

    `call` is a function at the top of a file of this folder. package: whether this Python has the package's command
    lines loaded before numpy, whose BLAS chooses its kernels when it is loaded.
    """
    command = [str(python), "-c", _CALL, call.__module__, call.__name__, json.dumps(arguments, default=str)]
    command += ["package"] if package and str(python) == sys.executable else []
    done = subprocess.run(command, env=env or environment(), capture_output=True, text=True)
    if done.returncode:
        last_words = " ".join(done.stderr.strip().splitlines()[-3:])
        raise ProcessFailed(last_words or f"{call.__name__} ended with status {done.returncode}")
    return json.loads(done.stdout.splitlines()[-1])


def in_turn(rounds: int, sides: Mapping[str, Callable[[], Any]]) -> dict[str, list]:
    """What each side answers in each round; all of a round before the next, so that none has a better hour."""
    answers: dict[str, list] = {name: [] for name in sides}
    for number in range(rounds):
        for name, side in sides.items():
            since = time.monotonic()
            answers[name].append(side())
            print(f"round {number + 1}, {name}: {time.monotonic() - since:.0f} s", flush=True)
    return answers


def environment(**more: str) -> dict[str, str]:
    """That of a fresh process: this tree's package, and BLAS kernels that it chooses itself."""
    kept = {name: value for name, value in os.environ.items() if name != "OPENBLAS_CORETYPE"}
    return kept | {"PYTHONPATH": str(ROOT), "GLOG_minloglevel": "3"} | more


def trained(folder: Path, *arguments: object, command: Sequence[str] | None = None) -> dict[str, Any]:
    """A run of train.sh in this folder, unless it is there already: its seconds, and the rows of its evaluations.

    command: what stands for `bash train.sh`.
    """
    # The last two are of trainings of hours that an earlier version of a benchmark has kept.
    records = [folder / name for name in ("benchmark.json", "learning.json", "schedules.json")]
    record = next((path for path in records if path.exists()), records[0])
    if not record.exists():
        since = time.monotonic()
        start = command or ("bash", ROOT / "train.sh")
        subprocess.run(
            [*start, "--output-dir", folder, *map(str, arguments)], check=True, env=environment() if command else None
        )
        record.write_text(json.dumps({"seconds": time.monotonic() - since}))
    rows = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    seconds = json.loads(record.read_text()).get("seconds")
    return {"seconds": seconds, "evaluations": [row for row in rows if row["kind"] == "evaluation"]}


def package_environment() -> dict[str, str]:
    """What the package says of this machine; for a fresh process."""
    from ssd300_vgg16.runtime import environment

    return environment()
