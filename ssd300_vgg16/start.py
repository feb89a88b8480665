"""Runs a module as `python -m` does, without ever looking in the current folder for modules.

A signal.py or queue.py that a user has there would be run in place of Python's own. Leaving the folder out of sys.path
is not enough: data workers begin as `python -c`, which searches it before it is told where to look. So this file is run
by its path with `python -I`, an option that multiprocessing hands on. -I ignores Python's environment variables, of
which PYTHONPATH is read here.
"""

import os
import runpy
import site
import sys
from pathlib import Path

HERE = str(Path(__file__).absolute())


def command(module: str) -> list[str]:
    """The command that runs a module so, to which its arguments are to be added."""
    return [sys.executable, "-I", HERE, module]


def train() -> None:
    """The installed ssd300-train."""
    _become("ssd300_vgg16.train")


def infer() -> None:
    """The installed ssd300-infer."""
    _become("ssd300_vgg16.infer")


def evaluate() -> None:
    """The installed ssd300-eval."""
    _become("ssd300_vgg16.evaluate")


def export() -> None:
    """The installed ssd300-export."""
    _become("ssd300_vgg16.export")


def _become(module: str) -> None:
    os.execv(sys.executable, [*command(module), *sys.argv[1:]])


def _search_path() -> list[str]:
    """This package's folder, unless it is installed where Python looks anyway, then what PYTHONPATH names.

    An empty part of PYTHONPATH would be the current folder; mostly it is there by mistake, as in $PYTHONPATH:/more.
    """
    root = str(Path(HERE).parent.parent)
    ours = [] if root in site.getsitepackages() else [root]
    named = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
    return list(dict.fromkeys([*ours, *map(os.path.abspath, named)]))


if __name__ == "__main__":
    sys.path[:0] = _search_path()
    del sys.argv[0]
    try:
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
    except KeyboardInterrupt:  # while modules are imported: from then on the command line says it
        sys.exit(130)
