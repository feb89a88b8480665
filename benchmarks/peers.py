"""The peers' environment: where it is, what is installed in it, and how it is made (peers.txt)."""

import argparse
import json
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import part

HERE = Path(__file__).resolve().parent
DEFAULT_PYTHON = HERE / ".peers" / "bin" / "python"
MAKE = (
    ".venv/bin/python -m venv benchmarks/.peers",
    "benchmarks/.peers/bin/pip install -r benchmarks/peers.txt",
)
PACKAGES = ("torch", "torchvision", "pycocotools", "faster-coco-eval")
_ASK = (
    "import importlib.metadata as m, json\n"
    "print(json.dumps({d.metadata['Name'].lower().replace('_', '-'): d.version for d in m.distributions()}))"
)


@dataclass(frozen=True)
class Peers:
    """The Python of the peers' environment, and versions of those of PACKAGES that it has."""

    python: Path
    versions: dict[str, str]

    def __contains__(self, package: str) -> bool:
        return package in self.versions

    def name(self, package: str) -> str:
        """With its version: "torchvision 0.26.0"."""
        return f"{package} {self.versions[package]}"

    def left_out(self, *packages: str) -> list[str]:
        """A sentence for a table about those that are not installed; none if all are."""
        missing = [package for package in packages if package not in self]
        if not missing:
            return []
        made = " and ".join(f"`{command}`" for command in MAKE)
        return [f"Left out, as not installed: {', '.join(missing)}. {made} installs the peers."]


def find_peers(python: Path) -> Peers:
    """What is installed there; nothing if there is no such Python, or it does not start."""
    try:
        done = subprocess.run([python, "-I", "-c", _ASK], capture_output=True, text=True, timeout=120)
        installed = json.loads(done.stdout)
    except (OSError, ValueError, subprocess.TimeoutExpired):
        installed = {}
    return Peers(python, {package: installed[package] for package in PACKAGES if package in installed})


def options_of(parser: argparse.ArgumentParser, quick: str, arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse, with --device, --quick, of which `quick` is the help, and --peer-python added."""
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N (default: cpu)")
    parser.add_argument("--quick", action="store_true", help=quick)
    add_option(parser)
    options = parser.parse_args(arguments)
    options.device = part.checked_device(options.device)
    return options


def add_option(parser: argparse.ArgumentParser) -> None:
    """--peer-python."""
    parser.add_argument(
        "--peer-python",
        type=Path,
        default=DEFAULT_PYTHON,
        help="the Python of the peers' environment; what is not in it is left out (default: benchmarks/.peers)",
    )
