"""The training loop: steps, readings, evaluations, checkpoints."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from tqdm import tqdm

from ssd300_vgg16.data.dataset import Sample
from ssd300_vgg16.data.loader import TrainingBatch, TrainingRecipe, steps_per_epoch, training_batches
from ssd300_vgg16.data.workers import WorkerPool
from ssd300_vgg16.errors import UserError
from ssd300_vgg16.metrics.evaluation import Evaluation
from ssd300_vgg16.network.ssd import SSD300
from ssd300_vgg16.runtime import flow
from ssd300_vgg16.training.checkpoint import Progress, save_checkpoint
from ssd300_vgg16.training.curves import draw_curves
from ssd300_vgg16.training.run_folder import BEST, LAST, append_metrics
from ssd300_vgg16.training.schedule import Schedule
from ssd300_vgg16.training.step import LOSS_PARTS, EagerStep, GraphStep, to_device
from ssd300_vgg16.weights import ModelDescription, model_tensors, save_weights


@dataclass(frozen=True)
class Plan:
    """How long to train, and how often to look: print_every counts steps, evaluate_every epochs."""

    epochs: int
    schedule: Schedule
    recipe: TrainingRecipe
    print_every: int
    evaluate_every: int


@dataclass
class Trainer:
    """One run in its folder. `train` does it all; what it needs is put together by the command line."""

    folder: Path
    model: SSD300
    description: ModelDescription
    step: GraphStep | EagerStep
    device: str
    plan: Plan
    samples: Sequence[Sample]
    pool: WorkerPool
    evaluate: Callable[[], Evaluation]
    progress: Progress

    def train(self) -> Evaluation | None:
        """Train to the end of the plan, from `progress` on; returns the last evaluation, if there was one.

        Ctrl-C ends with a checkpoint of the last whole step and KeyboardInterrupt. A loss that is not finite raises
        UserError and leaves the former checkpoint as it is.
        """
        evaluation = None
        steps = self._steps_per_epoch()
        if self.progress.steps_per_epoch not in (0, steps):
            raise UserError(
                f"{self.folder}: the run had {self.progress.steps_per_epoch} steps an epoch, now it is {steps}: go on "
                "with the --batch-size and the training images that it was started with"
            )
        self.progress = replace(self.progress, steps_per_epoch=steps)
        for epoch in range(self.progress.epoch, self.plan.epochs):
            self._train_epoch(epoch, start=self.progress.step - epoch * steps)
            last = epoch + 1 == self.plan.epochs
            if last or (epoch + 1) % self.plan.evaluate_every == 0:
                self._save_last()  # an evaluation that is interrupted is made up for by the run that goes on
                evaluation = self._evaluate(epoch)
            self.progress = replace(self.progress, epoch=epoch + 1)
            self._save_last()
            draw_curves(self.folder)
        return evaluation

    def _steps_per_epoch(self) -> int:
        return steps_per_epoch(len(self.samples), self.plan.recipe.batch_size)

    def _train_epoch(self, epoch: int, start: int) -> None:
        self.model.train()
        steps = self._steps_per_epoch()
        readings = _Readings(self.plan.recipe.batch_size)
        batches = training_batches(self.samples, self.plan.recipe, epoch, self.pool, start)
        name = f"epoch {epoch + 1}/{self.plan.epochs}"
        with tqdm(total=steps, initial=start, desc=name, unit="step", disable=None, leave=False) as bar:
            try:
                for number, batch in enumerate(batches, start=start + 1):
                    self._train_step(batch, readings)
                    bar.update()
                    if number % self.plan.print_every == 0 or number == steps:
                        self._report(readings, f"{name} step {number}/{steps}")
            except KeyboardInterrupt:
                self._report(readings, f"{name} interrupted")
                self._save_last()
                raise

    def _train_step(self, batch: TrainingBatch, readings: "_Readings") -> None:
        for message in batch.unreadable:
            tqdm.write(f"skipped: {message}")
        losses = self.step(*to_device(batch, self.device))
        readings.add(self.progress.step, losses, batch.files)
        self.progress = replace(self.progress, step=self.progress.step + 1)

    def _report(self, readings: "_Readings", where: str) -> None:
        """Read the losses back from the device, check, print and keep them."""
        if not readings.steps:
            return
        losses, rate = readings.read()
        lr = self.plan.schedule.learning_rate(self.progress.step - 1)
        left = (self.plan.schedule.total_steps - self.progress.step) * self.plan.recipe.batch_size / rate
        values = {"lr": lr, "images_per_second": round(rate, 2), "seconds_left": round(left)}
        append_metrics(self.folder, kind="training", step=self.progress.step, **losses, **values)
        parts = ", ".join(f"{part} {value:.3f}" for part, value in losses.items())
        total = sum(losses.values())
        tqdm.write(f"{where}: loss {total:.3f} ({parts}), lr {lr:.2e}, {rate:.1f} images/s, {_duration(left)} left")

    def _evaluate(self, epoch: int) -> Evaluation:
        self.model.eval()
        evaluation = self.evaluate()
        for message in evaluation.unreadable:
            tqdm.write(f"left out: {message}")
        statistics = evaluation.metrics.statistics
        append_metrics(self.folder, kind="evaluation", step=self.progress.step, epoch=epoch + 1, **statistics)
        tqdm.write(f"epoch {epoch + 1}/{self.plan.epochs}: AP {statistics['AP']:.3f}, AP50 {statistics['AP50']:.3f}")
        if statistics["AP"] >= self.progress.best_ap:
            self.progress = replace(self.progress, best_ap=statistics["AP"])
            extra = {"step": self.progress.step, "metrics": statistics}
            save_weights(self.folder / BEST, model_tensors(self.model), self.description, extra)
        return evaluation

    def _save_last(self) -> None:
        save_checkpoint(self.folder / LAST, self.model, self.description, self.step.state(), self.progress)


class _Readings:
    """Losses still on the device, with what it takes to say which images a bad one came from."""

    def __init__(self, batch_size: int):
        self.batch_size = batch_size
        self._clear()

    def _clear(self) -> None:
        self.steps, self.losses, self.files = [], [], []
        self.since = time.perf_counter()

    def add(self, step: int, losses, files: list[str]) -> None:
        self.steps.append(step)
        self.losses.append(losses)
        self.files.append(files)

    def read(self) -> tuple[dict[str, float], float]:
        """Mean loss parts and images per second since the last reading; UserError if a loss is not finite."""
        values = flow.stack(self.losses).numpy()
        for step, files, parts in zip(self.steps, self.files, values, strict=True):
            if not np.isfinite(parts).all():
                raise UserError(_not_finite(step, parts, files))
        rate = len(values) * self.batch_size / (time.perf_counter() - self.since)
        self._clear()
        return dict(zip(LOSS_PARTS, values.mean(axis=0).tolist(), strict=True)), rate


def _not_finite(step: int, values: np.ndarray, files: list[str]) -> str:
    parts = ", ".join(f"{part} is {value}" for part, value in zip(LOSS_PARTS, values.tolist(), strict=True))
    return (
        f"the loss of step {step} is not finite: {parts}. Its images were: {', '.join(files)}. The usual cause is a "
        "learning rate that is too high: lower --lr or lengthen --warmup-steps. The checkpoint before it is whole."
    )


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
