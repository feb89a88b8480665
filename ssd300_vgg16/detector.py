"""Detection on photographs from Python: load once, call on images."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ssd300_vgg16.data.images import network_input, read_image
from ssd300_vgg16.deploy.session import AUTO, ONNX_RUNTIME, resolve_engine
from ssd300_vgg16.devices import resolve_device
from ssd300_vgg16.network.postprocess import SCORE_THRESHOLD, postprocess
from ssd300_vgg16.weights.locate import find_weights
from ssd300_vgg16.weights.safetensors_file import ModelDescription

if TYPE_CHECKING:  # OneFlow is imported only where it computes: detecting with ONNX Runtime starts without it
    from ssd300_vgg16.network.ssd import SSD


class Detector:
    """A network with its categories, ready to be called on images.

    A call returns, for one image: "boxes" float32 [N, 4] xyxy in its pixels, "scores" float32 [N] falling, "labels"
    int64 [N] and "names", a list of N category names; at most 200, each scored above the threshold.

    network: what computes offsets and logits of images uint8 [B, 3, S, S] in place of the model, which is None then
    and read from the file of weights should anyone ask for it.
    """

    def __init__(
        self,
        model: "SSD | None",
        description: ModelDescription,
        device: str = "cpu",
        score_threshold: float = SCORE_THRESHOLD,
        network: Callable[[np.ndarray], Sequence] | None = None,
        weights: Path | None = None,
    ):
        self.description = description
        self.device = device
        self.score_threshold = score_threshold
        self._model = model and model.to(device).eval()
        self._weights = weights
        self._network = network or self._by_oneflow
        self._names = description.names()

    @classmethod
    def load(
        cls,
        path: str | os.PathLike,
        device: str | None = None,
        score_threshold: float = SCORE_THRESHOLD,
        engine: str = AUTO,
    ) -> "Detector":
        """A detector from a file of weights or a run's folder; device "cpu", "cuda", "cuda:N", or the best one here.

        engine: "oneflow", or "onnxruntime", which gives the same answers, is faster on the CPU, and runs there only;
        "auto" takes it there. Its model is made once, and kept beside the weights in a hidden file.
        """
        device = resolve_device(device)
        engine = resolve_engine(engine, device)
        weights = find_weights(Path(path))
        if engine == ONNX_RUNTIME:
            from ssd300_vgg16.deploy.cache import onnx_runtime_network

            network, description = onnx_runtime_network(weights)
            return cls(None, description, device, score_threshold, network, weights)
        return cls(*_load_model(weights), device, score_threshold)

    @property
    def model(self) -> "SSD":
        """The network in OneFlow."""
        if self._model is None:
            self._model = _load_model(self._weights)[0].to(self.device).eval()
        return self._model

    @property
    def image_size(self) -> int:
        """Side in pixels of the images that the network takes."""
        return self.description.variant.layout.image_size

    def __call__(self, image: np.ndarray | str | os.PathLike) -> dict:
        """Detections of one image: uint8 [H, W, 3] RGB, or a file, which is taken upright as a viewer shows it."""
        if not isinstance(image, np.ndarray):
            image = read_image(image, upright=True)
        prepared = network_input(image, self.image_size)
        found = self.detect(prepared[None], np.array([image.shape[:2]]))[0]
        return {**found, "names": self.names(found["labels"])}

    def detect(self, images: np.ndarray, sizes_hw: np.ndarray) -> list[dict[str, np.ndarray]]:
        """Detections of prepared images uint8 [B, 3, 300, 300], in pixels of images of sizes_hw [B, 2]."""
        offsets, logits = self._network(images)
        return postprocess(offsets, logits, sizes_hw, self.score_threshold, self.description.variant.layout)

    def _by_oneflow(self, images: np.ndarray) -> Sequence:
        from ssd300_vgg16.runtime import flow

        with flow.no_grad():
            return self.model(flow.from_numpy(images).to(self.device))

    def names(self, labels: np.ndarray) -> list[str]:
        """Category names of labels; a label without a category is named by its number."""
        return [self._names.get(label, f"class {label}") for label in labels.tolist()]


def _load_model(weights: Path) -> "tuple[SSD, ModelDescription]":
    from ssd300_vgg16.weights.model import load_model

    return load_model(weights)
