"""Does this machine compute what it should? SSD300 here beside flowvision's own, with the same weights and image.

.venv/bin/python -I -m ssd300_vgg16.runtime --self-test --device cpu

A broken library, driver or processor kernel shows up as a stage that differs, the first of them nearest to the fault.
"""

import warnings
import zlib
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING
from unittest.mock import patch

import numpy as np

from ssd300_vgg16.devices import resolve_device
from ssd300_vgg16.network.ssd import SSD300
from ssd300_vgg16.network.variants import SSD300_COCO, default_boxes
from ssd300_vgg16.network.vgg import parameters_left_empty
from ssd300_vgg16.runtime import flow

if TYPE_CHECKING:
    from oneflow import Tensor, nn

# Of a stage's largest value. The two add up thousands of float32 products in another order: 1e-6 is usual.
TOLERANCE = 1e-4
RANDOM = ("kaiming_uniform_", "kaiming_normal_", "xavier_uniform_", "normal_", "uniform_")

Stages = dict[str, np.ndarray]


@dataclass(frozen=True)
class Comparison:
    """One stage of the network: the largest absolute value and difference of its arrays, and the difference allowed."""

    stage: str
    shape: tuple[int, ...]
    largest_value: float
    difference: float

    @property
    def tolerance(self) -> float:
        """What the difference may be."""
        return TOLERANCE * self.largest_value

    @property
    def agrees(self) -> bool:
        """Whether it is not more. NaN never agrees."""
        return self.difference <= self.tolerance


def self_test(device: str | None) -> int:
    """Compare on a device and print a table; returns the exit status: 0, or 1 where something differs."""
    device = resolve_device(device)
    comparisons = compare(device)
    print(table(comparisons))
    different = [each.stage for each in comparisons if not each.agrees]
    if different:
        print(f"self-test on {device}: DIFFERENT from flowvision: {', '.join(different)}")
        return 1
    print(f"self-test on {device}: equal to flowvision")
    return 0


def compare(device: str) -> list[Comparison]:
    """Both networks, stage by stage from the image to the answers."""
    image = np.random.default_rng(0).integers(0, 256, (1, 3, 300, 300), dtype=np.uint8)
    with parameters_left_empty():
        model = SSD300()
    weights = made_up_weights({name: tuple(tensor.shape) for name, tensor in model.state_dict().items()})
    ours, theirs = _our_stages(model, weights, image, device), _flowvision_stages(weights, image, device)
    return [_comparison(stage, array, theirs[stage]) for stage, array in ours.items()]


def table(comparisons: list[Comparison]) -> str:
    """A row for each stage."""
    rows = [f"{'stage':<16} {'shape':<16} {'largest':>9} {'difference':>10} {'tolerance':>9}"]
    for each in comparisons:
        shape = " x ".join(map(str, each.shape))
        numbers = f"{each.largest_value:>9.3g} {each.difference:>10.1e} {each.tolerance:>9.1e}"
        rows.append(f"{each.stage:<16} {shape:<16} {numbers}{'' if each.agrees else '  DIFFERENT'}")
    return "\n".join(rows)


def made_up_weights(shapes: Mapping[str, tuple[int, ...]]) -> Stages:
    """Weights under which no layer's values vanish or explode, from the name of each alone."""
    weights = {}
    for name, shape in shapes.items():
        values = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape, dtype=np.float32)
        if name.endswith("scale_weight"):
            weights[name] = 20 + values
        elif len(shape) > 1:
            # Kaiming's deviation keeps the variance through the ReLUs.
            weights[name] = values * np.float32(np.sqrt(2 / prod(shape[1:])))
        else:
            weights[name] = values * np.float32(0.01)
    return weights


def _our_stages(model: "nn.Module", weights: Stages, image: np.ndarray, device: str) -> Stages:
    _set(model, weights, device)
    with flow.no_grad():
        images = flow.from_numpy(image).to(device).to(flow.float32) - model.pixel_mean
        maps = model.backbone(images)
        offsets, logits = model.head(maps)
    return _stages(images, maps, offsets, logits, default_boxes(SSD300_COCO))


def _flowvision_stages(weights: Stages, image: np.ndarray, device: str) -> Stages:
    """Its own normalisation, layers, heads and default boxes; its NMS does not exist on the CPU in OneFlow 0.9.0."""
    with warnings.catch_warnings():  # of what flowvision has deprecated itself
        warnings.simplefilter("ignore")
        # Here, because flowvision's import takes seconds and only this needs it.
        from flowvision.models.detection import ssd300_vgg16

        # Random numbers for its 35 million weights take seconds, and these are about to be replaced.
        with ExitStack() as stack:
            for name in RANDOM:
                stack.enter_context(patch.object(flow.nn.init, name, lambda weight, *_, **__: weight))
            model = ssd300_vgg16(pretrained=False, pretrained_backbone=False).eval()
        _set(model, weights, device)
        with flow.no_grad():
            scaled = flow.from_numpy(image[0].astype(np.float32) / 255).to(device)
            images, _ = model.transform([scaled])
            maps = list(model.backbone(images.tensors).values())
            answers = model.head(maps)
            boxes = model.anchor_generator(images, maps)[0]
    return _stages(images.tensors, maps, answers["bbox_regression"], answers["cls_logits"], boxes.numpy())


def _set(model: "nn.Module", weights: Stages, device: str) -> None:
    # By name: a parameter that only one of the two has would be refused.
    model.load_state_dict({name: flow.tensor(array) for name, array in weights.items()})
    model.to(device)


def _stages(images: "Tensor", maps: list["Tensor"], offsets: "Tensor", logits: "Tensor", boxes: np.ndarray) -> Stages:
    names = ("conv4_3", "fc7", "conv8_2", "conv9_2", "conv10_2", "conv11_2")
    return {
        "image": images.numpy(),
        **{name: feature_map.numpy() for name, feature_map in zip(names, maps, strict=True)},
        "offsets": offsets.numpy(),
        "class logits": logits.numpy(),
        "default boxes": boxes,
    }


def _comparison(stage: str, ours: np.ndarray, theirs: np.ndarray) -> Comparison:
    if ours.shape != theirs.shape:
        return Comparison(stage, ours.shape, float(np.abs(ours).max()), float("inf"))
    return Comparison(stage, ours.shape, float(np.abs(theirs).max()), float(np.abs(ours - theirs).max()))
