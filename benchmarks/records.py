"""What the suite keeps of each part: its answer, when, where and how it came about."""

import datetime
import importlib.metadata
import json
import os
import subprocess
import sys
from pathlib import Path

from peers import Peers

ROOT = Path(__file__).resolve().parent.parent
OWN_PACKAGES = ("numpy", "numba", "onnxruntime", "flowvision")
_ASK = "import json; from ssd300_vgg16.runtime import environment; print(json.dumps(environment()))"


def machine(peers: Peers) -> dict[str, str]:
    """Hardware and versions, as texts by name."""
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", _ASK], env=env, check=True, stdout=subprocess.PIPE, text=True)
    found = json.loads(done.stdout.splitlines()[-1])
    found["memory"] = f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB"
    return found | {name: importlib.metadata.version(name) for name in OWN_PACKAGES} | peers.versions


def commit() -> str:
    """The commit of this tree, and whether anything differs from it."""

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", "-C", ROOT, *arguments], capture_output=True, text=True)
        return done.stdout.strip()

    changed = git("status", "--porcelain", "--untracked-files=no", "--", "ssd300_vgg16", "benchmarks/*.py")
    return (git("rev-parse", "--short", "HEAD") or "unknown") + (" with changes" if changed else "")


def path_of(folder: Path, name: str, device: str) -> Path:
    """Where a part's record is, on a kind of device."""
    return folder / f"{name}.json" if device == "cpu" else folder / "cuda" / f"{name}.json"


def read(folder: Path, name: str, device: str = "cpu") -> dict:
    """A part's record; empty if it has never been run."""
    path = path_of(folder, name, device)
    return json.loads(path.read_text()) if path.exists() else {}


def write(folder: Path, name: str, device: str, record: dict) -> None:
    """Keep a record, whole or not at all."""
    path = path_of(folder, name, device)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_suffix(".tmp")
    aside.write_text(json.dumps(record, indent=1) + "\n")
    aside.replace(path)


def now() -> str:
    """The date, in UTC."""
    return datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d")
