"""A dry run: two steps and an evaluation batch, and what they say of memory and time. Nothing is written."""

import time
from itertools import chain, count, islice

from ssd300_vgg16.data.dataset import Dataset
from ssd300_vgg16.data.loader import training_batches
from ssd300_vgg16.errors import UserError
from ssd300_vgg16.training.step import NotFinite
from ssd300_vgg16.training.step_metrics import memory
from ssd300_vgg16.training.trainer import NOT_FINITE_ADVICE, Trainer
from ssd300_vgg16.weights.model import model_tensors


def dry_run(trainer: Trainer, few: Dataset, validation_images: int) -> list[str]:
    """Lines with what was measured: on two steps (the first one warms up), and detecting on a few images.

    None in processes other than the first.
    """
    step_seconds = _seconds_per_step(trainer)
    since = time.perf_counter()
    trainer.evaluate(trainer.weights(), lambda: False, few)
    if not trainer.world.is_first:
        return []  # what follows is the first process's to tell, and so is the state of a compiled step
    image_seconds = (time.perf_counter() - since) / len(few.samples)
    config = trainer.config
    evaluations = -(-config.epochs // config.evaluate_every)
    training, evaluating = step_seconds * config.schedule.total_steps, image_seconds * validation_images * evaluations
    return [
        f"step: {step_seconds:.2f} s, {config.batch.batch_size / step_seconds:.1f} images/s",
        f"evaluation: {image_seconds:.3f} s an image",
        f"memory: {', '.join(f'{value} MB ({name})' for name, value in memory(trainer.device).items())}",
        f"checkpoints: {config.keep} of {_checkpoint_bytes(trainer) / 1e6:.0f} MB",
        f"in all, about: {_hours(training)} of training and {_hours(evaluating)} of evaluation",
        "everything works; nothing was written",
    ]


def _seconds_per_step(trainer: Trainer) -> float:
    share = trainer.world.share(trainer.config.batch.batch_size)
    epochs = (training_batches(trainer.samples, trainer.config.batch, n, trainer.pool, share=share) for n in count())
    batches = islice(chain.from_iterable(epochs), 2)  # an epoch may be a single step
    seconds = 0.0
    for _ in range(2):
        since = time.perf_counter()
        try:
            trainer.train_step(batches)
            trainer.metrics.fetch()
        except NotFinite as error:
            raise UserError(f"{error}. {NOT_FINITE_ADVICE}") from error
        seconds = time.perf_counter() - since
    return seconds


def _checkpoint_bytes(trainer: Trainer) -> int:
    parts = [model_tensors(trainer.model), trainer.step.state()]
    if trainer.average:
        parts.append(trainer.average.tensors())
    return sum(array.nbytes for part in parts for array in part.values())


def _hours(seconds: float) -> str:
    return f"{seconds / 3600:.1f} h" if seconds >= 3600 else f"{seconds / 60:.0f} min"
