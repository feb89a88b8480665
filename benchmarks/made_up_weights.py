"""Weights that were not trained, but whose scores are spread as a trained network's are: for measuring times.

Each output of the heads is shifted and scaled to mean 0 and a given deviation over the photographs; then the background
is given so much that as many scores as asked for are above 0.01. On its own: python benchmarks/made_up_weights.py TO.
"""

import sys
from pathlib import Path

import ssd300_vgg16.cli  # noqa: F401 - before numpy, as in train.sh

# isort: split
import numpy as np

from ssd300_vgg16.data.categories import COCO_CATEGORIES
from ssd300_vgg16.data.images import find_images, network_input, read_image
from ssd300_vgg16.network.postprocess import SCORE_THRESHOLD
from ssd300_vgg16.network.ssd import SSD300, ScoringHead
from ssd300_vgg16.runtime import flow
from ssd300_vgg16.weights.model import model_tensors
from ssd300_vgg16.weights.safetensors_file import ModelDescription, save_weights

CLASSES = 91
LOGITS_DEVIATION, OFFSETS_DEVIATION = 2.0, 1.0
CANDIDATES = 1000  # above the threshold, per photograph
LEAST_DEVIATION = 1e-3


def save_made_up(path: Path, photographs: list[Path], width: float = 1.0, seed: int = 0) -> None:
    """Write weights of an SSD300 with COCO's classes, made up for these photographs (a dozen will do)."""
    flow.manual_seed(seed)
    model = SSD300(CLASSES, width).eval()
    prepared = np.stack([network_input(read_image(photograph, upright=True), 300) for photograph in photographs])
    with flow.no_grad():
        maps = model.backbone(flow.from_numpy(prepared).to(flow.float32) - model.pixel_mean)
        _standardise(model.head.regression_head, maps, OFFSETS_DEVIATION)
        _standardise(model.head.classification_head, maps, LOGITS_DEVIATION)
        logits = model.head.classification_head(maps).numpy()
    shift = _background_for(logits, CANDIDATES * len(photographs))
    for convolution in model.head.classification_head.module_list:
        convolution.bias.data.copy_(flow.from_numpy(_raised(convolution.bias.numpy(), shift)))
    save_weights(path, model_tensors(model), ModelDescription(CLASSES, width, tuple(COCO_CATEGORIES)))


def _standardise(head: ScoringHead, maps: list, deviation: float) -> None:
    for convolution, feature_map in zip(head.module_list, maps, strict=True):
        values = convolution(feature_map).numpy()
        scale = (deviation / np.maximum(values.std(axis=(0, 2, 3)), LEAST_DEVIATION)).astype(np.float32)
        weight = convolution.weight.numpy() * scale[:, None, None, None]
        bias = (convolution.bias.numpy() - values.mean(axis=(0, 2, 3))) * scale
        convolution.weight.data.copy_(flow.from_numpy(weight))
        convolution.bias.data.copy_(flow.from_numpy(bias.astype(np.float32)))


def _background_for(logits: np.ndarray, candidates: int) -> float:
    """What has to be added to the background's logits so that this many scores are above the threshold."""
    exponents = np.exp(logits)
    others = exponents[..., 1:]
    low, high = -20.0, 30.0
    for _ in range(30):
        middle = (low + high) / 2
        total = exponents[..., :1] * np.exp(middle) + others.sum(axis=-1, keepdims=True)
        many = np.count_nonzero(others > SCORE_THRESHOLD * total) > candidates
        low, high = (middle, high) if many else (low, middle)
    return high


def _raised(bias: np.ndarray, shift: float) -> np.ndarray:
    by_class = bias.reshape(-1, CLASSES).copy()
    by_class[:, 0] += np.float32(shift)
    return by_class.reshape(-1)


if __name__ == "__main__":
    save_made_up(Path(sys.argv[1]), find_images(sys.argv[2:])[:12])
