"""A batch whose loss was not finite, kept with the weights it met, to be looked into."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from ssd300_vgg16.data.loader import TrainingBatch
from ssd300_vgg16.errors import UserError
from ssd300_vgg16.network.loss import multibox_loss
from ssd300_vgg16.network.ssd import SSD
from ssd300_vgg16.runtime import flow
from ssd300_vgg16.weights.model import build_model, load_tensors
from ssd300_vgg16.weights.safetensors_file import ModelDescription, read_weights, save_weights

BATCH_PREFIX = "batch/"
ARRAYS = ("images", "offsets", "labels")


def save_replay(
    path: Path, tensors: Mapping[str, np.ndarray], description: ModelDescription, batch: TrainingBatch, step: int
) -> None:
    """Write weights and batch into one file."""
    arrays = {f"{BATCH_PREFIX}{name}": getattr(batch, name) for name in ARRAYS}
    save_weights(path, {**tensors, **arrays}, description, {"replay": {"step": step, "files": batch.files}})


def replay(path: Path, device: str) -> str:
    """A report on the batch in a file: what each image adds to the loss, and what is not finite."""
    tensors, header = read_weights(path)
    if "replay" not in header:
        raise UserError(f"--replay {path}: not a batch kept by a training (those are called replay-step-N.safetensors)")
    model = build_model(ModelDescription.from_json(header["model"]))
    load_tensors(model, {name: array for name, array in tensors.items() if not name.startswith(BATCH_PREFIX)}, path)
    model = model.to(device)
    images, offsets, labels = (tensors[f"{BATCH_PREFIX}{name}"] for name in ARRAYS)
    normaliser = flow.tensor(float(max(1, np.count_nonzero(labels))), device=device)
    rows = [f"step {header['replay']['step']}: what each image adds to the loss, and the positives it has"]
    for number, file in enumerate(header["replay"]["files"]):
        one = slice(number, number + 1)
        targets = flow.from_numpy(offsets[one]).to(device), flow.from_numpy(labels[one]).to(device)
        answers = model(flow.from_numpy(images[one]).to(device))
        losses = multibox_loss(answers[0], answers[1], *targets, normaliser)
        (losses["localization"] + losses["classification"]).backward()
        values = {part: float(loss.numpy()) for part, loss in losses.items()}
        mark = "" if np.isfinite(list(values.values())).all() else "  <- not finite"
        listed = "  ".join(f"{part} {value:>10.4g}" for part, value in values.items())
        rows.append(f"  {listed}  positives {np.count_nonzero(labels[one]):>4}  {file}{mark}")
    return "\n".join([*rows, *_not_finite(model, offsets)])


def _not_finite(model: SSD, offsets: np.ndarray) -> list[str]:
    """Lines about targets, weights and gradients that are not finite, or one that says all are."""
    lines = []
    if not np.isfinite(offsets).all():
        lines.append(f"targets: offsets of images {np.flatnonzero(~np.isfinite(offsets).all(axis=(1, 2))).tolist()}")
    for name, parameter in model.named_parameters():
        for kind, tensor in (("weight", parameter), ("gradient", parameter.grad)):
            if tensor is not None and not np.isfinite(tensor.numpy()).all():
                lines.append(f"{kind}: {name}")
    return ["not finite:", *(f"  {line}" for line in lines)] if lines else ["targets, weights and gradients are finite"]
