"""An ONNX model that this package has exported, read back to detect with: of either kind of outputs, in 8 bits too."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ssd300_vgg16.data.dataset import Category
from ssd300_vgg16.deploy.session import BATCH_INDEX, BOXES, LABELS, LOGITS, OFFSETS, SCORES, OnnxRuntimeNetwork
from ssd300_vgg16.errors import UserError
from ssd300_vgg16.network.postprocess import SCORE_THRESHOLD
from ssd300_vgg16.network.variants import VARIANTS
from ssd300_vgg16.weights.safetensors_file import ModelDescription

SUFFIX = ".onnx"
_RAW, _DETECTIONS = (OFFSETS, LOGITS), (BOXES, SCORES, LABELS, BATCH_INDEX)


def is_exported(weights: Path) -> bool:
    """Whether a path names an ONNX model."""
    return weights.suffix == SUFFIX


def exported_network(path: Path, device: str) -> tuple[OnnxRuntimeNetwork, ModelDescription, bool]:
    """The model in ONNX Runtime, its description, and whether it gives detections, for `split_detections`, or raw ones.

    Raises UserError for a file that is missing, no ONNX model, or not one of this package's.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}") from error
    try:
        network = OnnxRuntimeNetwork(content)
    except Exception as error:  # those of ONNX Runtime share no base class
        raise UserError(f"{path}: not a whole ONNX model; was its copying interrupted?") from error
    description, outputs = _description(path, network.metadata), network.output_names
    if description is None or outputs not in (_RAW, _DETECTIONS):
        raise UserError(
            f"{path}: not a model that this package has exported: its categories and its outputs are not known; "
            "name a run, or a model made by python -m ssd300_vgg16.export"
        )
    return OnnxRuntimeNetwork(content, device=device, outputs=outputs), description, outputs == _DETECTIONS


def _description(path: Path, about: dict[str, str]) -> ModelDescription | None:
    if about.get("package") != "ssd300_vgg16":
        return None
    try:
        categories = tuple(Category(**category) for category in json.loads(about["categories"]))
        threshold = float(about["score_threshold"])
        note = f"{path} holds detections scored above {threshold:g}: those below are not measured"
        return ModelDescription(
            int(about["num_classes"]),
            float(about["width"]),
            categories,
            VARIANTS[about["variant"]],
            (note,) if threshold > SCORE_THRESHOLD else (),
        )
    except (KeyError, TypeError, ValueError, RecursionError):
        return None


def split_detections(
    outputs: Sequence[np.ndarray], sizes_hw: np.ndarray, score_threshold: float
) -> list[dict[str, np.ndarray]]:
    """As `postprocess` returns them: detections of each image, boxes in its pixels, from a model that gives them."""
    boxes, scores, labels, batch_index = outputs
    found = []
    for image, (height, width) in enumerate(np.asarray(sizes_hw, dtype=np.float32)):
        rows = (batch_index == image) & (scores > score_threshold)
        # Exported models answer in shares of the image: they do not know its size.
        in_pixels = boxes[rows] * np.array([width, height, width, height])
        found.append({"boxes": in_pixels, "scores": scores[rows], "labels": labels[rows]})
    return found
