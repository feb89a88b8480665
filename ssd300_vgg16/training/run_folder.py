"""A run's folder: its options and environment, its metrics, its checkpoints."""

import os
import shlex
import subprocess
import time
from contextlib import AbstractContextManager, suppress
from itertools import chain, count
from pathlib import Path
from typing import TypedDict, get_type_hints

from ssd300_vgg16 import folders, reading
from ssd300_vgg16.errors import UserError
from ssd300_vgg16.files import is_temporary, write_atomically, write_json
from ssd300_vgg16.schema import check, loads_as, read_json_as
from ssd300_vgg16.training.config import TrainOptions
from ssd300_vgg16.weights.locate import BEST, LAST, OPTIONS, find_weights

ENVIRONMENT = "environment.json"
METRICS = "metrics.jsonl"
RUNS = Path("runs")


class _Command(TypedDict, total=False):
    step: int
    command: str


class _Kept(TypedDict, total=False):
    """What options.json has beside `TrainOptions`."""

    commands: list[_Command]
    val_images_folder: str


class _Row(TypedDict):
    """A line of metrics.jsonl; the others of its fields are numbers or texts."""

    kind: str
    step: int


def folder_of(resume: str | None, output_dir: str | None) -> Path:
    """The folder of a run: that of --resume, or a new one (--output-dir, or runs/DATE-TIME), which is made."""
    if resume:
        return run_of(Path(resume))
    folder = Path(output_dir) if output_dir else _unused(RUNS / time.strftime("%Y%m%d-%H%M%S"))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.path.lexists(folder / METRICS):
            write_atomically(folder / METRICS, b"")
    except OSError as error:
        raise UserError(f"--output-dir {folder}: cannot be written ({error.strerror})") from error
    return folder


def held(folder: Path) -> AbstractContextManager[bool]:
    """Keep other trainings out of a run's folder, but not evaluations; UserError if there is one."""
    busy = f"{folder}: another train.sh is at work there: wait for its end, or name another folder (--output-dir)"
    return folders.held(folder / METRICS, busy)


def resume_command(folder: Path) -> str:
    """What to type to go on with a run, with the variables for several processes before it."""
    names = ("NNODES", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT", "NPROC") if os.environ.get("NNODES") else ("NPROC",)
    variables = "".join(f"{name}={os.environ[name]} " for name in names if os.environ.get(name))
    return f"{variables}bash train.sh --resume {shlex.quote(str(folder))}"


def how_to_go_on(folder: Path) -> str:
    """The same in words."""
    return f"Go on with:\n  {resume_command(folder)}"


def clear_leftovers(folder: Path) -> None:
    """Remove the half-written files of a run that was killed while it saved."""
    for path in folder.iterdir():
        if is_temporary(path):
            path.unlink(missing_ok=True)


def _unused(folder: Path) -> Path:
    """The folder, with a number behind its name if other runs began in the same second."""
    numbered = (folder.with_name(f"{folder.name}-{number}") for number in count(2))
    return next(candidate for candidate in chain([folder], numbered) if not candidate.exists())


def run_of(path: Path) -> Path:
    """The run's folder that a path means: itself, or the folder of the checkpoint it is."""
    return path if path.is_dir() else path.parent


def newest_run() -> Path:
    """The run's folder below runs/ whose weights were written last; UserError if there is none."""
    folders = {file.parent for name in (BEST, LAST) for file in RUNS.glob(f"*/{name}")}
    if not folders:
        raise UserError(
            f"no run with weights in {RUNS.absolute()}: train first (bash train.sh), or give --weights, "
            "which also takes names of published ones (.venv/bin/python -I -m ssd300_vgg16.weights list)"
        )
    return max(folders, key=lambda folder: find_weights(folder).stat().st_mtime)


def advice_on_tiles(weights: Path, tiles: object) -> str | None:
    """What to tell who uses the weights of a run on tiles without tiles."""
    if tiles is not None or not (weights.exists() and (run_of(weights) / OPTIONS).exists()):
        return None
    side = read_options(run_of(weights)).get("tiles")
    return side and f"These weights were trained on tiles: --tiles {side} detects on such."


def newest_training() -> Path:
    """The run's folder below runs/ that was trained in last, with or without weights; UserError if there is none."""
    folders = [file.parent for file in RUNS.glob(f"*/{OPTIONS}")]
    if not folders:
        raise UserError(f"no run in {RUNS.absolute()} to go on with: name its folder after --resume")
    return max(folders, key=lambda folder: (folder / METRICS).stat().st_mtime)


def describe_run(folder: Path, options: dict, environment: dict) -> None:
    """Write what it takes to repeat the run: its options, and what it ran on; the git commit is added."""
    write_json(folder / OPTIONS, options)
    write_json(folder / ENVIRONMENT, {**environment, "git_commit": _git_commit()})


def _git_commit() -> str | None:
    here = Path(__file__).parent
    try:
        asked = subprocess.run(
            ["git", "-C", here, "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return asked.stdout.strip() or None


def read_options(folder: Path) -> dict:
    """The options a run was started with; UserError if the folder holds no run, or they are of other types."""
    try:
        return read_json_as(folder / OPTIONS, {**get_type_hints(TrainOptions), **get_type_hints(_Kept)})
    except (OSError, ValueError) as error:
        reason = "" if isinstance(error, FileNotFoundError) else f": {getattr(error, 'strerror', None) or error}"
        raise UserError(f"{folder}: no run ({OPTIONS} is missing or damaged{reason})") from error


def read_metrics(folder: Path) -> list[dict]:
    """All whole lines of metrics.jsonl; a last line cut off by a crash is left out, as is what is no line of figures.

    Raises UserError if the file cannot be read.
    """
    rows = []
    try:
        for line in reading.lines_of(folder / METRICS, reading.METRICS_BYTES):
            with suppress(ValueError):
                row = loads_as(line, _Row)
                check(row, dict[str, float | str | None])
                rows.append(row)
    except OSError as error:
        raise UserError(f"{folder / METRICS} could not be read ({error.strerror})") from error
    return rows
