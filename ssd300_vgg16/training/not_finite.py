"""What is left of a step whose loss is not finite: a picture of its images, and which they are."""

import io
from dataclasses import replace
from pathlib import Path

import numpy as np

from ssd300_vgg16.data.loader import TrainingBatch, training_batches
from ssd300_vgg16.data.workers import WorkerPool
from ssd300_vgg16.files import write_atomically
from ssd300_vgg16.network.loss import multibox_loss
from ssd300_vgg16.runtime import flow
from ssd300_vgg16.training.dry_run import draw_batch
from ssd300_vgg16.training.trainer import Trainer
from ssd300_vgg16.weights.model import build_model, load_tensors, model_tensors

MAX_DRAWN = 24


def draw_step(trainer: Trainer, step: int) -> str:
    """Draw the images of a step, counted from 0, into the run's folder; returns a sentence that says where."""
    epoch, number = divmod(step, trainer.steps_per_epoch)
    batch = next(training_batches(trainer.samples, trainer.batch, epoch, WorkerPool(0), number))
    losses = np.nan_to_num(_image_losses(trainer, batch), nan=np.inf)
    worst = np.argsort(-losses, kind="stable")[:MAX_DRAWN]
    files = [batch.files[image] for image in worst]
    few = replace(
        batch, images=batch.images[worst], offsets=batch.offsets[worst], labels=batch.labels[worst], files=files
    )
    jpeg = io.BytesIO()
    draw_batch(few, trainer.batch.default_boxes, trainer.description.names()).save(jpeg, "jpeg", quality=90)
    path = trainer.folder / f"not-finite-step-{step + 1}.jpg"
    write_atomically(path, jpeg.getvalue())
    which = "Its images" if len(files) == len(batch.files) else f"Those {len(files)} of its images that lose most"
    return f"{which}, as the network got them, are in {path}: {', '.join(files)}."


def _image_losses(trainer: Trainer, batch: TrainingBatch) -> np.ndarray:
    """What each image adds to the loss, float64 [B], up to a factor that all share."""
    # A network of its own: in the one of a compiled step, all processes would have to take part.
    model = build_model(trainer.description)
    load_tensors(model, model_tensors(trainer.model), Path("the weights in training"))
    model = model.to(trainer.device)
    normaliser, background_positives = flow.tensor(1.0, device=trainer.device), trainer.step.background_positives
    losses = []
    with flow.no_grad():
        for image in range(len(batch.files)):
            arrays = (array[image : image + 1] for array in (batch.images, batch.offsets, batch.labels))
            pixels, target_offsets, target_labels = (flow.from_numpy(array).to(trainer.device) for array in arrays)
            offsets, logits = model(pixels)
            parts = multibox_loss(offsets, logits, target_offsets, target_labels, normaliser, background_positives)
            losses.append(sum(float(part.numpy()) for part in parts.values()))
    return np.array(losses)
