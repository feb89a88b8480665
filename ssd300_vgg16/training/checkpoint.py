"""Checkpoints of a run: the network, and what it takes to go on training it."""

from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from ssd300_vgg16.errors import UserError
from ssd300_vgg16.network.ssd import SSD300
from ssd300_vgg16.weights import ModelDescription, describe, load_tensors, model_tensors, read_weights, save_weights

# A checkpoint is a file of weights whose other tensors, the optimizer's, have names that begin so.
OPTIMIZER_PREFIX = "optimizer/"


@dataclass(frozen=True)
class Progress:
    """How far a run has come: steps done, epochs done (evaluation and all), and the best AP so far (-1: none yet).

    steps_per_epoch is kept to tell whether a run that goes on has the images and the batch size it was begun with.
    """

    step: int = 0
    epoch: int = 0
    best_ap: float = -1.0
    steps_per_epoch: int = 0


def save_checkpoint(
    path: Path,
    model: SSD300,
    description: ModelDescription,
    optimizer_state: dict[str, np.ndarray],
    progress: Progress,
) -> None:
    """Write everything that `load_checkpoint` needs into one file, atomically."""
    optimizer = {f"{OPTIMIZER_PREFIX}{name}": array for name, array in optimizer_state.items()}
    save_weights(path, {**model_tensors(model), **optimizer}, description, {"progress": asdict(progress)})


def load_checkpoint(path: Path, model: SSD300) -> tuple[dict[str, np.ndarray], Progress]:
    """Put a checkpoint's weights into the model; returns the optimizer's state and the progress.

    Raises UserError for a file that is no checkpoint, or one of another network.
    """
    tensors, header = read_weights(path)
    if "progress" not in header:
        raise UserError(f"{path} holds weights but no state of training: use --load to start from it")
    load_tensors(model, tensors, path)
    optimizer = {
        name.removeprefix(OPTIMIZER_PREFIX): array
        for name, array in tensors.items()
        if name.startswith(OPTIMIZER_PREFIX)
    }
    return optimizer, Progress(**header["progress"])


def checkpoint_description(path: Path) -> ModelDescription:
    """What network a checkpoint is of."""
    return describe(*read_weights(path), path)
