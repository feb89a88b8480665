"""Small data sets, small networks and the command lines, for the tests that train, evaluate and detect."""

import json
import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
from places import REPOSITORY

from ssd300_vgg16.data.coco import load_coco
from ssd300_vgg16.data.coco_layout import find_coco_splits
from ssd300_vgg16.data.shapes import CATEGORY_IDS, write_shapes

# Channels of the smallest network that is still one of SSD's: the first layer has a single one.
WIDTH = 0.02
# Fitted default boxes of SSD300, of all ratios and sizes.
FITTED_SHAPES = tuple(
    tuple((10.0 + 13 * level + 2 * box, 9.0 * (box + 1) * (level + 1) / 2) for box in range(boxes))
    for level, boxes in enumerate((4, 6, 6, 6, 4, 4))
)


def shapes_folder(folder: Path, train_images: int = 4, val_images: int = 2) -> Path:
    """Generated shapes in COCO's layout, in a new folder below this one."""
    write_shapes(folder / "shapes", train_images, val_images, seed=0)
    return folder / "shapes"


def emptied(folder: Path, images: int) -> Path:
    """A `shapes_folder` of which the first so many training images have lost their objects."""
    path = folder / "annotations" / "instances_train.json"
    content = json.loads(path.read_text())
    content["annotations"] = [entry for entry in content["annotations"] if entry["image_id"] > images]
    path.write_text(json.dumps(content))
    return folder


def colours(height: int = 60, width: int = 90, seed: int = 3) -> np.ndarray:
    """Blocks of colour, RGB, so that a JPEG keeps them and each corner differs."""
    blocks = np.random.default_rng(seed).integers(0, 256, (6, 9, 3), dtype=np.uint8)
    return cv2.resize(blocks, (width, height))


def shapes(folder: Path, split: str):
    """The data set of one split of a `shapes_folder`."""
    return load_coco(*find_coco_splits(folder)[split])


def untrained_run(folder: Path, seed: int = 0, width: float = WIDTH, tile_side: int | None = None) -> Path:
    """A run's folder with the weights of a small untrained network for the shapes, which sees objects everywhere."""
    from ssd300_vgg16.data.dataset import Category
    from ssd300_vgg16.runtime import flow
    from ssd300_vgg16.weights.locate import BEST
    from ssd300_vgg16.weights.model import build_model, model_tensors
    from ssd300_vgg16.weights.safetensors_file import ModelDescription, save_weights

    names = enumerate(CATEGORY_IDS.items(), start=1)
    categories = tuple(Category(label, id_, name) for label, (name, id_) in names)
    description = ModelDescription(len(categories) + 1, width, categories, tile_side=tile_side)
    flow.manual_seed(seed)
    tensors = model_tensors(build_model(description))
    for name in tensors:
        if name.startswith("head.classification_head"):
            tensors[name] = tensors[name] * np.float32(0.05)  # or its scores would all be 1
    folder.mkdir(parents=True, exist_ok=True)
    save_weights(folder / BEST, tensors, description)
    return folder


def environment() -> dict[str, str]:
    """An environment in which the package is found from any directory, and output is buffered as it usually is."""
    return {**os.environ, "PYTHONPATH": str(REPOSITORY), "PYTHONUNBUFFERED": ""}


def start(module: str, *arguments, folder: Path, variables: dict | None = None, **options) -> subprocess.Popen:
    """A command line of the package as a process in a folder, with pipes for its output, and environment variables."""
    command = [sys.executable, "-m", f"ssd300_vgg16.{module}", *map(str, arguments)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    variables = {name: str(value) for name, value in (variables or {}).items()}
    return subprocess.Popen(command, cwd=folder, env=environment() | variables, **pipes, **options)


def run(module: str, *arguments, folder: Path, variables: dict | None = None) -> subprocess.CompletedProcess:
    """The same, run to its end."""
    process = start(module, *arguments, folder=folder, variables=variables)
    try:
        output, errors = process.communicate(timeout=300)
    finally:
        process.kill()
    return subprocess.CompletedProcess(process.args, process.returncode, output, errors)


# What of a run's metrics is measured, and so differs from one run to the next.
MEASURED = ("images_per_second", "data_wait", "seconds_left", "memory_mb")


def metrics_without_times(run_folder: Path) -> list[dict]:
    """The rows of metrics.jsonl, without what was measured by a clock or the like."""
    from ssd300_vgg16.training.run_folder import read_metrics

    return [{name: row[name] for name in row if name not in MEASURED} for row in read_metrics(run_folder)]


def slowed(x):
    """A tensor of a graph as it is, after a millisecond of other work.

    OneFlow 0.9.0 crashes now and then when a graph is done before the thread that set it off has made a note of it.
    """
    from ssd300_vgg16.runtime import flow

    ballast = flow._C.constant([512, 512], 1.0, dtype=flow.float32, device=flow.device("cpu"))
    return x + 0 * flow.matmul(ballast, ballast).mean()
