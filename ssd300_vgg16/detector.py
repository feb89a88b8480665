"""Detection on images from Python: load once, call on images."""

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

# First: its package chooses the kernels of numpy's BLAS, which must be done before numpy is loaded.
from ssd300_vgg16.network.postprocess import SCORE_THRESHOLD, best_to_host, postprocess

# isort: split
import numpy as np
from PIL import Image

from ssd300_vgg16.data.images import ImageLike, network_inputs, rgb
from ssd300_vgg16.deploy.cache import onnx_runtime_network
from ssd300_vgg16.deploy.session import AUTO, ONEFLOW, exported_network, is_exported, resolve_engine, split_detections
from ssd300_vgg16.detections import Detections
from ssd300_vgg16.errors import UserError
from ssd300_vgg16.gpu_memory import DETECTION_ADVICE, end_when_out_of_memory
from ssd300_vgg16.mirror import begin_on_both
from ssd300_vgg16.tiles import DEFAULT_OVERLAP, MIN_SIDE, Tell, Tiling, begin_on_tiles, tell_nobody
from ssd300_vgg16.weights.locate import find_weights
from ssd300_vgg16.weights.safetensors_file import ModelDescription

if TYPE_CHECKING:  # OneFlow is imported only where it computes: detecting with ONNX Runtime starts without it
    from ssd300_vgg16.network.ssd import SSD


BATCH_ON_CPU, BATCH_ON_GPU = 1, 8


class Detector:
    """A network with its categories, ready to be called on images."""

    def __init__(
        self,
        model: "SSD | Path",
        description: ModelDescription,
        device: str = "cpu",
        score_threshold: float = SCORE_THRESHOLD,
        network: Callable[[np.ndarray], Sequence] | None = None,
        tiling: Tiling | None = None,
        mirror: bool = False,
    ):
        """model: the network in OneFlow, or the file to read it from if it is asked for, where `network` computes.

        network: offsets [B, D, 4] and logits [B, D, C] of images uint8 [B, 3, S, S] (default: the model's), or what
        `split_detections` takes, as of an exported model.

        tiling: the tiles in which larger images are seen too. mirror: see the mirror image of each too.
        """
        self.tiling = tiling
        self.mirror = mirror
        self.description = description
        self.device = device
        self.score_threshold = score_threshold
        if device != "cpu" and network is None:
            end_when_out_of_memory(DETECTION_ADVICE)
        self._model = model if isinstance(model, Path) else model.to(device).eval()
        self._network = network or (lambda images: self.model.answers(images))
        self._begins = device != "cpu" and network is None  # OneFlow queues what a GPU has to do
        self._names = description.names()
        self._ids = {category.label: category.id for category in description.categories}

    @classmethod
    def load(
        cls,
        path: str | os.PathLike,
        device: str | None = None,
        score_threshold: float = SCORE_THRESHOLD,
        engine: str = AUTO,
        amp: bool = False,
        tiles: int | str | None = None,
        tile_overlap: float = DEFAULT_OVERLAP,
        mirror: bool = False,
    ) -> "Detector":
        """A detector from a file of weights, a run's folder or an exported ONNX model.

        device: "cpu", "cuda", "cuda:N", or the best one here.

        engine: "oneflow", or "onnxruntime", which gives the same answers, is faster on the CPU, and runs on a GPU where
        onnxruntime-gpu is installed; "auto" takes it on the CPU. Its model is made once, and kept in the user's cache
        folder.

        amp: convolutions in half precision, by OneFlow on a GPU. Raises UserError elsewhere.

        tiles: the longer side in pixels of overlapping tiles, in which an image that is larger is seen besides as a
        whole: for objects that are too small there; "auto": that of the images that the model was trained on, for
        objects as large in pixels as there. tile_overlap: the part that neighbours share, 0 to 0.9.

        mirror: detect on the mirror image of each image too, and take the mean: better boxes, in twice the time.
        """
        exported = is_exported(Path(path))
        engine, device = resolve_engine(engine, device, exported=exported, amp=amp)
        weights = find_weights(Path(path))
        model: SSD | Path = weights
        network: Callable | None = None
        if engine == ONEFLOW:
            model, description = _load_model(weights, in_half=amp)
        else:
            network, description = (exported_network if exported else onnx_runtime_network)(weights, device)
        if isinstance(tiles, str):
            if tiles != AUTO:
                raise UserError(f'tiles={tiles!r}: they are a number of pixels, or "{AUTO}"')
            tiles, description = _auto_side(description)
        tiling = None if tiles is None else Tiling(tiles, tile_overlap)
        return cls(model, description, device, score_threshold, network, tiling, mirror)

    @property
    def model(self) -> "SSD":
        """The network in OneFlow."""
        if isinstance(self._model, Path):
            self._model = _load_model(self._model)[0].to(self.device).eval()
        return self._model

    @property
    def _batch_size(self) -> int:
        return BATCH_ON_CPU if self.device == "cpu" else BATCH_ON_GPU

    @property
    def image_size(self) -> int:
        """Side in pixels of the images that the network takes."""
        return self.description.variant.layout.image_size

    @overload
    def __call__(self, image: ImageLike, keep_image: bool = True) -> Detections: ...  # type: ignore[overload-overlap]

    @overload
    def __call__(self, image: Iterable[ImageLike], keep_image: bool = True) -> list[Detections]: ...

    def __call__(
        self, image: ImageLike | Iterable[ImageLike], keep_image: bool = True
    ) -> Detections | list[Detections]:
        """Detections of one image; of several, a list of them.

        image: a file, which is taken upright as a viewer shows it; a Pillow image, whose EXIF orientation is applied
        too; or an array [H, W, 3] RGB (not OpenCV's BGR), [H, W, 4] RGBA, whose transparency is dropped, or [H, W]
        grey, in uint8 (0..255) or floats (0..1). Or several, of any sizes: a list, a generator, an array [B, H, W, 3].

        keep_image: the result refers to what it was given, so that it can be shown. This keeps arrays and Pillow images
        in memory; of files the paths alone.

        Raises ImageError for a file that cannot be read, UserError for an array or object that is no such image.
        """
        several = _several(image)
        if several is None:
            return self._of_batch({"the image": image}, keep_image)[0]
        named = ((f"images[{number}]", one) for number, one in enumerate(several))
        results: list[Detections] = []
        at_a_time = 1 if self.tiling else self._batch_size  # large ones are batches of tiles by themselves
        while batch := dict(islice(named, at_a_time)):
            results += self._of_batch(batch, keep_image)
        return results

    def detect(self, images: np.ndarray, sizes_hw: np.ndarray) -> list[dict[str, np.ndarray]]:
        """What `postprocess` returns for prepared images uint8 [B, 3, S, S], in pixels of images of sizes_hw [B, 2]."""
        return self.begin(images, sizes_hw)()

    def begin(self, images: np.ndarray, sizes_hw: np.ndarray) -> Callable[[], list[dict[str, np.ndarray]]]:
        """Set a GPU to work on what `detect` returns; what this returns waits for it, or elsewhere does all of it.

        Called for the next batch before that, it has the GPU compute while the host chooses the boxes.
        """
        if self.mirror:
            return begin_on_both(self._begin, images, sizes_hw, self.score_threshold)
        return self._begin(images, sizes_hw)

    def _begin(self, images: np.ndarray, sizes_hw: np.ndarray) -> Callable[[], list[dict[str, np.ndarray]]]:
        if not self._begins:
            return lambda: self._chosen(self._network(images), sizes_hw)
        return partial(self._chosen, best_to_host(*self._network(images)), sizes_hw)

    def begin_on(
        self, images: Sequence[np.ndarray], batch_size: int, tell: Tell = tell_nobody
    ) -> Callable[[], list[dict[str, np.ndarray]]]:
        """As `begin`, on images uint8 [H, W, 3] of any sizes, in tiles if the detector has some.

        batch_size: of tiles; without them the images are one batch. tell: of the tiles that are done.
        """
        if self.tiling:
            return begin_on_tiles(self.begin, images, self.image_size, self.tiling, batch_size, tell)
        return self.begin(network_inputs(images, self.image_size), np.array([image.shape[:2] for image in images]))

    def _chosen(self, answers: Sequence, sizes_hw: np.ndarray) -> list[dict[str, np.ndarray]]:
        threshold = min(self.score_threshold, SCORE_THRESHOLD) if self.mirror else self.score_threshold
        if len(answers) > 2:
            return split_detections(answers, sizes_hw, threshold)
        offsets, logits = answers
        for answer in (offsets,) if self._begins else (offsets, logits):  # a GPU's logits stay there
            if not np.isfinite(answer if isinstance(answer, np.ndarray) else answer.numpy()).all():
                raise UserError("the network's answers are not finite: leave --amp out, or look at the weights")
        return postprocess(offsets, logits, sizes_hw, threshold, self.description.variant.layout)

    def named(
        self, detections: dict[str, np.ndarray], max_detections: int | None = None, source: ImageLike | None = None
    ) -> Detections:
        """The best detections of one image of `detect`, with category names."""
        boxes, scores, labels = (detections[part][:max_detections] for part in ("boxes", "scores", "labels"))
        ids = np.array([self._ids.get(label, label) for label in labels.tolist()], dtype=np.int64)
        return Detections(boxes, scores, labels, self.names(labels), ids, source)

    def names(self, labels: np.ndarray) -> list[str]:
        """Category names of labels; a label without a category is named by its number."""
        return [self._names.get(label, f"class {label}") for label in labels.tolist()]

    def _of_batch(self, images: dict[str, Any], keep_image: bool) -> list[Detections]:
        pixels = [rgb(image, name) for name, image in images.items()]
        of_each = self.begin_on(pixels, self._batch_size)()
        sources = images.values() if keep_image else [None] * len(pixels)
        return [self.named(one, source=source) for one, source in zip(of_each, sources, strict=True)]


def _auto_side(description: ModelDescription) -> tuple[int, ModelDescription]:
    """The side of tiles that suits the model, and its description with a note of it."""
    side = description.tile_side
    if side is None:
        raise UserError(
            f"--tiles {AUTO}: these weights do not say how large the images were that they were trained on: give the "
            "longer side of those in pixels, as in --tiles 640"
        )
    side = max(side, MIN_SIDE)
    note = f"--tiles {AUTO}: tiles of {side} pixels, the size of the images in which this model learned its objects"
    return side, replace(description, notes=(*description.notes, note))


def _several(image: ImageLike | Iterable[ImageLike]) -> Iterable[ImageLike] | None:
    """The images of a list or the like; None for one alone, or what can be none."""
    if isinstance(image, np.ndarray) and image.ndim != 4:
        return None
    return image if isinstance(image, Iterable) and not isinstance(image, str | bytes | Image.Image) else None


def _load_model(weights: Path, in_half: bool = False) -> "tuple[SSD, ModelDescription]":
    from ssd300_vgg16.weights.model import load_model  # here, as it brings OneFlow

    return load_model(weights, in_half)
