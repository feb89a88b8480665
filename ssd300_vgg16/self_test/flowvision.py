"""SSD300 here beside flowvision's own, with the same weights, stage by stage from an image to the answers."""

import warnings
from collections.abc import Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING
from unittest.mock import patch

import numpy as np

from ssd300_vgg16.network.ssd import COCO_CLASSES
from ssd300_vgg16.network.variants import SSD300_COCO, default_boxes
from ssd300_vgg16.self_test import made_up
from ssd300_vgg16.self_test.checks import Check, difference, float32_of

if TYPE_CHECKING:
    import oneflow as flow
    from oneflow import Tensor, nn
else:
    from ssd300_vgg16.runtime import flow

RANDOM = ("kaiming_uniform_", "kaiming_normal_", "xavier_uniform_", "normal_", "uniform_")
Stages = dict[str, np.ndarray]


def beside_flowvision(device: str) -> Iterator[Check]:
    """This package's network on a device, flowvision's on the CPU."""
    image = made_up.images(1)
    model = made_up.model(COCO_CLASSES, 1.0, "cpu")
    # Before they go to the device, which may be broken: what comes back from it is no reference.
    theirs = _flowvision_stages({name: tensor.numpy() for name, tensor in model.state_dict().items()}, image)
    ours = _our_stages(model.to(device), image, device)
    tolerance = float32_of(device)
    for stage, array in ours.items():
        shape = " x ".join(map(str, array.shape))
        yield Check(stage, difference(array, theirs[stage]), tolerance.answers, shape)


def _our_stages(model: "nn.Module", image: np.ndarray, device: str) -> Stages:
    with flow.no_grad():
        images = flow.from_numpy(image).to(device).to(flow.float32) - model.pixel_mean
        maps = model.backbone(images)
        offsets, logits = model.head(maps)
    return _stages(images, maps, offsets, logits, default_boxes(SSD300_COCO))


def _flowvision_stages(weights: Stages, image: np.ndarray) -> Stages:
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
        # By name: a parameter that only one of the two has would be refused.
        model.load_state_dict({name: flow.tensor(array) for name, array in weights.items()})
        with flow.no_grad():
            images, _ = model.transform([flow.from_numpy(image[0].astype(np.float32) / 255)])
            maps = list(model.backbone(images.tensors).values())
            answers = model.head(maps)
            boxes = model.anchor_generator(images, maps)[0]
    return _stages(images.tensors, maps, answers["bbox_regression"], answers["cls_logits"], boxes.numpy())


def _stages(images: "Tensor", maps: list["Tensor"], offsets: "Tensor", logits: "Tensor", boxes: np.ndarray) -> Stages:
    names = ("conv4_3", "fc7", "conv8_2", "conv9_2", "conv10_2", "conv11_2")
    return {
        "image": images.numpy(),
        **{name: feature_map.numpy() for name, feature_map in zip(names, maps, strict=True)},
        "offsets": offsets.numpy(),
        "class logits": logits.numpy(),
        "default boxes": boxes,
    }
