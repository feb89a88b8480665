"""Checkpoints of a run: the network, and all that it takes to go on training as if nothing had happened."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ssd300_vgg16.errors import UserError
from ssd300_vgg16.files import name_also
from ssd300_vgg16.network.variants import Variant
from ssd300_vgg16.schema import check
from ssd300_vgg16.weights.locate import LAST
from ssd300_vgg16.weights.safetensors_file import ModelDescription, read_weights, save_weights
from ssd300_vgg16.weights.tensors import refuse_not_finite

# A checkpoint is a file of weights whose other tensors have names that begin so.
OPTIMIZER_PREFIX = "optimizer/"
AVERAGE_PREFIX = "average/"
FORMER = "step-{step:09d}.safetensors"
FORMER_NAME = re.compile(r"step-\d{9}\.safetensors")


@dataclass(frozen=True)
class Progress:
    """How far a run has come: steps done, epochs done (evaluation and all), and the best AP so far (-1: none yet).

    readings: step metrics not reported yet, and their names; metrics_length: bytes of metrics.jsonl that go with
    this checkpoint; data: what `fingerprint` said of the training set.
    """

    step: int = 0
    epoch: int = 0
    best_ap: float = -1.0
    # The fields' names are keys in checkpoints: another name for this one would make older files unreadable.
    readings: dict[str, list[Any]] = field(default_factory=dict)
    metrics_length: int = 0
    data: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Checkpoint:
    """Names to arrays, of the network, the optimizer and the moving average (if there is one); and the progress.

    variant: the network's.
    """

    model: Mapping[str, np.ndarray]
    optimizer: Mapping[str, np.ndarray]
    average: Mapping[str, np.ndarray]
    progress: Progress
    variant: Variant | None = None


def save_checkpoint(folder: Path, checkpoint: Checkpoint, description: ModelDescription, keep: int) -> None:
    """Write a run's last checkpoint, atomically and synced; the keep - 1 before it stay, named by their steps.

    Raises UserError if it cannot be written; the former one is then still there, whole.
    """
    tensors = {
        **checkpoint.model,
        **{f"{OPTIMIZER_PREFIX}{name}": array for name, array in checkpoint.optimizer.items()},
        **{f"{AVERAGE_PREFIX}{name}": array for name, array in checkpoint.average.items()},
    }
    last = folder / LAST
    aside = folder / FORMER.format(step=checkpoint.progress.step)
    # First under the name it will have when it is no longer the last, so that at no time there is but one of them.
    save_weights(aside, tensors, description, {"progress": asdict(checkpoint.progress)})
    name_also(aside, last)
    _forget_later(aside)
    for superfluous in _newest_first(folder)[keep:]:
        superfluous.unlink(missing_ok=True)


def _newest_first(folder: Path) -> list[Path]:
    """The checkpoints named by their steps; a user's own file, like step-mine.safetensors, is none of them."""
    return sorted((path for path in folder.iterdir() if FORMER_NAME.fullmatch(path.name)), reverse=True)


def _forget_later(checkpoint: Path) -> None:
    """Remove the checkpoints of later steps: the run has gone back to this one."""
    for path in _newest_first(checkpoint.parent):
        if path > checkpoint:
            path.unlink(missing_ok=True)


def go_back_to(path: Path) -> None:
    """Make an earlier checkpoint of a run its last one, if `path` is one, before anything else goes back with it."""
    if FORMER_NAME.fullmatch(path.name):
        name_also(path, path.with_name(LAST))
        _forget_later(path)


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint; raises UserError for a file that is none, or is damaged."""
    tensors, header = read_weights(path)
    if "progress" not in header:
        raise UserError(f"{path} holds weights but no state of training: use --load to start from it")
    # The empty prefix comes last: every name begins with it.
    parts: dict[str, dict[str, np.ndarray]] = {OPTIMIZER_PREFIX: {}, AVERAGE_PREFIX: {}, "": {}}
    for name, array in tensors.items():
        prefix = next(prefix for prefix in parts if name.startswith(prefix))
        parts[prefix][name.removeprefix(prefix)] = array
    try:
        check(header["progress"], Progress)
        progress = Progress(**header["progress"])
        if min(progress.step, progress.epoch, progress.metrics_length) < 0:
            raise ValueError("a count below 0")
        refuse_not_finite(tensors)
        variant = ModelDescription.from_json(header["model"]).variant if "model" in header else None
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{path}: a checkpoint of another version of this program: use --load to start from it"
        ) from error
    return Checkpoint(parts[""], parts[OPTIMIZER_PREFIX], parts[AVERAGE_PREFIX], progress, variant)


def newest_checkpoint(run: Path) -> tuple[Path, Checkpoint, list[str]] | None:
    """The checkpoint to go on from: the file itself if `run` is one, else the newest whole one in the run's folder.

    Returns its path, its content, and what was wrong with newer ones; None if the run has not written any yet. Raises
    UserError if there are some and none is whole.
    """
    problems: list[str] = []
    for path in _candidates(run):
        try:
            return path, load_checkpoint(path), problems
        except UserError as error:
            problems.append(str(error))
    if problems:
        raise UserError("no checkpoint to go on from: " + "; ".join(problems))
    return None


def _candidates(run: Path) -> Iterator[Path]:
    if not run.is_dir():
        yield run
        return
    last = run / LAST
    if last.exists():
        yield last
    for former in _newest_first(run):
        if not (last.exists() and former.samefile(last)):
            yield former
