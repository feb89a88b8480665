"""Images per second of training and of detection, at full width."""

import time
from collections.abc import Callable

import numpy as np

from ssd300_vgg16.data.categories import COCO_CATEGORIES
from ssd300_vgg16.detector import Detector
from ssd300_vgg16.distributed.world import ALONE
from ssd300_vgg16.network.ssd import COCO_CLASSES
from ssd300_vgg16.network.variants import default_boxes
from ssd300_vgg16.network.vgg import convolutions_in_half
from ssd300_vgg16.runtime import flow
from ssd300_vgg16.self_test import made_up
from ssd300_vgg16.training.config import OptimizerConfig, Schedule
from ssd300_vgg16.training.step import make_step
from ssd300_vgg16.weights.safetensors_file import ModelDescription

# Images at a time: few enough for a GPU of 8 GB, and for an answer within seconds on the CPU.
TRAINING_BATCH, DETECTION_BATCH = {"cpu": 2, "cuda": 16}, {"cpu": 2, "cuda": 16}
SECONDS = 5.0
# Added to the background's logits: a few hundred candidates an image are left, as of a trained network.
BACKGROUND = 9.0
POSITIVE = 0.003  # of the default boxes, as on COCO


def training(device: str, amp: bool) -> str:
    """Of steps like those of train.sh, without reading images."""
    count = TRAINING_BATCH[_kind(device)]
    model = made_up.model(COCO_CLASSES, 1.0, device)
    # So slow that the weights stay what they are.
    schedule = Schedule("multistep", 1e-9, total_steps=1 << 30, warmup_steps=0)
    step = make_step(model, OptimizerConfig("sgd"), schedule, ALONE, 1, amp, eager=device == "cpu")
    batch = made_up.batch(count, COCO_CLASSES, len(default_boxes()), POSITIVE)
    positives = int(np.count_nonzero(batch.labels))

    def run(times: int) -> None:
        for _ in range(times):
            metrics = step(batch, positives)
        metrics.numpy()
        model.backbone.scale_weight.numpy()  # the update is done, too

    return f"{_rate(run, count):.1f} images/s in batches of {count}"


def detection(device: str, amp: bool) -> str:
    """From images of the network's size in main memory to detections; with OneFlow."""
    count = DETECTION_BATCH[_kind(device)]
    model = made_up.model(COCO_CLASSES, 1.0, device)
    for convolution in model.head.classification_head.module_list:
        bias = convolution.bias.numpy().reshape(-1, COCO_CLASSES).copy()
        bias[:, 0] += BACKGROUND
        convolution.bias.data.copy_(flow.from_numpy(bias.reshape(-1)).to(device))
    if amp:
        convolutions_in_half(model)
    detector = Detector(model, ModelDescription(COCO_CLASSES, 1.0, tuple(COCO_CATEGORIES)), device)
    images, sizes = made_up.images(count), np.array([[480, 640]] * count)

    def run(times: int) -> None:
        for _ in range(times):
            detector.detect(images, sizes)

    return f"{_rate(run, count):.1f} images/s in batches of {count}"


def _kind(device: str) -> str:
    return device.partition(":")[0]


def _rate(run: Callable[[int], None], images: int) -> float:
    """Images per second, of as many runs as take SECONDS; the first of all warms up."""
    run(1)
    since = time.perf_counter()
    run(1)
    times = max(1, round(SECONDS / (time.perf_counter() - since)))
    since = time.perf_counter()
    run(times)
    return times * images / (time.perf_counter() - since)
