"""A dry run: two steps and an evaluation batch, and what they say of memory and time; a picture of what is learnt.

Nothing else is written, and the picture goes to the system's folder for temporary files.
"""

import math
import os
import tempfile
import time
from dataclasses import replace
from itertools import chain, count, islice

import numpy as np
from PIL import Image

from ssd300_vgg16.data.dataset import Dataset
from ssd300_vgg16.data.loader import TrainingBatch, epoch_order, tiles_together, training_batches
from ssd300_vgg16.data.matching import objects_of
from ssd300_vgg16.data.sizes import looked_at
from ssd300_vgg16.draw import draw_detections
from ssd300_vgg16.files import temporary_files_told
from ssd300_vgg16.metrics.evaluation import evaluation_batch_size
from ssd300_vgg16.text import printable
from ssd300_vgg16.training.run_log import memory
from ssd300_vgg16.training.trainer import Trainer
from ssd300_vgg16.weights.model import model_tensors

PICTURES, COLUMNS = 8, 4
MEMORIES = {"memory_mb": "of main memory", "gpu_memory_mb": "on the GPU"}


def dry_run(trainer: Trainer, train_set: Dataset, val_set: Dataset) -> list[str]:
    """Lines with what was measured: on two steps (the first one warms up), and detecting on a few of val_set's images.

    None in processes other than the first.
    """
    options, world = trainer.options, trainer.world
    step_seconds = _seconds_per_step(trainer)
    each = 1 if options.tiles else evaluation_batch_size(options.batch_size, world)  # one may have dozens of tiles
    few = val_set.samples[: each * world.world_size]
    since = time.perf_counter()
    trainer.evaluate(trainer.weights(), lambda: False, replace(val_set, samples=few))
    if not world.is_first:
        return []  # what follows is the first process's to tell, and so is the state of a compiled step
    image_seconds = (time.perf_counter() - since) / len(few)
    training = step_seconds * trainer.schedule.total_steps
    evaluating = image_seconds * len(val_set.samples) * math.ceil(trainer.epochs / options.eval_every)
    return [
        f"step: {step_seconds:.2f} s, {options.batch_size / step_seconds:.1f} images/s",
        f"evaluation: {image_seconds:.3f} s an image",
        f"memory: {', '.join(f'{value:,} MB {MEMORIES[name]}' for name, value in memory(trainer.device).items())}",
        f"checkpoints: {options.keep} of {_checkpoint_bytes(trainer) / 1e6:.0f} MB",
        f"in all, about: {_hours(training)} of training and {_hours(evaluating)} of evaluation",
        f"the first images as the network gets them, with their objects: {_picture(trainer)}",
        _not_checked(trainer, train_set, len(val_set.samples) - len(few)),
        "everything works; nothing was written but that picture",
    ]


def _picture(trainer: Trainer) -> str:
    """The path of a new picture of the images that the training begins with."""
    few = replace(trainer.batch, batch_size=min(PICTURES, trainer.batch.images_per_epoch(len(trainer.samples))))
    batch = next(training_batches(trainer.samples, few, 0, trainer.pool))
    drawn = draw_batch(batch, trainer.batch.default_boxes, trainer.description.names())
    with temporary_files_told():
        handle, path = tempfile.mkstemp(prefix="ssd300_check_", suffix=".jpg")
        with os.fdopen(handle, "wb") as file:
            drawn.save(file, "jpeg", quality=90)
    return path


def draw_batch(batch: TrainingBatch, default_boxes: np.ndarray, names: dict[int, str]) -> Image.Image:
    """The images of a batch side by side, each with the objects that its default boxes are matched to."""
    size, images = batch.images.shape[-1], len(batch.images)
    sheet = Image.new("RGB", (size * min(COLUMNS, images), size * math.ceil(images / COLUMNS)))
    for place, (pixels, offsets, labels) in enumerate(zip(batch.images, batch.offsets, batch.labels, strict=True)):
        boxes, of_box = objects_of(offsets, labels, default_boxes)
        tags = [printable(names[label]) for label in of_box.tolist()]
        cell = draw_detections(np.ascontiguousarray(pixels.transpose(1, 2, 0)), boxes, None, tags, of_box)
        sheet.paste(Image.fromarray(cell), (place % COLUMNS * size, place // COLUMNS * size))
    return sheet


def _not_checked(trainer: Trainer, train_set: Dataset, other_validation: int) -> str:
    batch, samples = trainer.batch, trainer.samples
    order = epoch_order(len(samples), 1, batch.seed, 0, batch.labelled, batch.backgrounds).ravel()
    seen = tiles_together(order, samples)[: max(PICTURES, 2 * batch.batch_size)]  # of two steps, or for the picture
    other_training = len({sample.path for sample in samples} - {samples[index].path for index in seen})
    parts = [f"the pixels of {other_training:,} training and {other_validation:,} validation images"]
    if train_set.kind != "yolo":  # which declares no sizes
        sizes = len(train_set.samples) - len(looked_at(train_set.samples))
        parts.append(f"the declared sizes of {sizes:,} training images")
    return f"not checked: {', '.join(parts)} (inspect --read-all does so), and whether the network learns"


def _seconds_per_step(trainer: Trainer) -> float:
    share = trainer.world.share(trainer.batch.batch_size)
    epochs = (training_batches(trainer.samples, trainer.batch, n, trainer.pool, share=share) for n in count())
    batches = islice(chain.from_iterable(epochs), 2)  # an epoch may be a single step
    for _ in range(2):
        since = time.perf_counter()
        trainer.train_step(batches)
        trainer.metrics.fetch()
    return time.perf_counter() - since


def _checkpoint_bytes(trainer: Trainer) -> int:
    parts = [model_tensors(trainer.model), trainer.step.state()]
    if trainer.average:
        parts.append(trainer.average.tensors())
    return sum(array.nbytes for part in parts for array in part.values())


def _hours(seconds: float) -> str:
    return f"{seconds / 3600:.1f} h" if seconds >= 3600 else f"{seconds / 60:.0f} min"
