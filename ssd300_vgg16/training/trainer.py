"""The training loop: steps, reports, evaluations, checkpoints, and an end in good order whatever happens."""

import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path

import numpy as np
from tqdm import tqdm

from ssd300_vgg16.data.dataset import Sample
from ssd300_vgg16.data.loader import BatchConfig, TrainingBatch, steps_per_epoch, training_batches
from ssd300_vgg16.data.workers import WorkerPool
from ssd300_vgg16.distributed.world import World
from ssd300_vgg16.errors import Stopped, UserError
from ssd300_vgg16.metrics.evaluation import Evaluation, Interrupted
from ssd300_vgg16.network.ssd import SSD
from ssd300_vgg16.signals import STOP_SIGNALS, StopRequest
from ssd300_vgg16.text import duration
from ssd300_vgg16.training.checkpoint import Checkpoint, Progress, save_checkpoint
from ssd300_vgg16.training.config import Schedule, TrainOptions
from ssd300_vgg16.training.optimizer import MovingAverage
from ssd300_vgg16.training.run_log import RunLog, StepMetrics, memory
from ssd300_vgg16.training.run_page import RunPage
from ssd300_vgg16.training.step import EagerStep, GraphStep, counted_positives
from ssd300_vgg16.weights.locate import BEST
from ssd300_vgg16.weights.model import model_tensors
from ssd300_vgg16.weights.safetensors_file import ModelDescription, save_weights

# From weights by name, and what says whether to stop, to the AP on the validation set; None but in the first process.
# It takes another data set than that as a third argument.
Evaluate = Callable[..., Evaluation | None]

_Taken = tuple[TrainingBatch | None, Exception | None]

# So short that the time left is seen on a terminal of 80 columns.
BAR = "{desc} |{bar:10}| {n_fmt}/{total_fmt}{postfix}"
# Image files of an epoch so far that cannot be read: with more than both, a disk is gone rather than a file bad.
MAX_UNREADABLE, MAX_UNREADABLE_SHARE = 3, 0.05
PROBED_IMAGES = 20
SHOWN_FIGURES = ("AP", "AP50", "VOC_mAP", "VOC07_mAP")


@dataclass
class Trainer:
    """One run in its folder, as one of the processes of a world sees it; the first of them writes and prints.

    log, page: None in the others.
    """

    options: TrainOptions
    folder: Path
    model: SSD
    description: ModelDescription
    step: GraphStep | EagerStep
    average: MovingAverage | None
    schedule: Schedule
    batch: BatchConfig
    samples: Sequence[Sample]
    pool: WorkerPool
    evaluate: Evaluate
    progress: Progress
    world: World
    device: str
    log: RunLog | None = None
    page: RunPage | None = None
    stop: StopRequest = field(default_factory=StopRequest)

    def __post_init__(self) -> None:
        self.steps_per_epoch = steps_per_epoch(self.batch.images_per_epoch(len(self.samples)), self.batch.batch_size)
        self.epochs = math.ceil(self.schedule.total_steps / self.steps_per_epoch)
        # Metrics kept by another kind of step do not fit: a compiled one may have no gradient norm.
        kept = self.progress.readings if self.progress.readings.get("names") == list(self.step.metric_names) else {}
        self.metrics = StepMetrics(self.step.metric_names, kept.get("values", []))
        self._saved_step, self._saved_at = self.progress.step, time.monotonic()
        self._images = self._unreadable = 0  # of the epoch so far
        self._following: _Taken | None = None

    def train(self) -> Evaluation | None:
        """Train to the last step of the schedule, from `progress` on; returns the last evaluation, if there was one.

        A signal ends with a checkpoint of the last whole step and Stopped; so does trouble with the data, mostly as
        UserError; where many images have vanished, the checkpoint is from before. A loss that is not finite raises
        NotFinite and leaves the former checkpoint as it is.
        """
        evaluation = None
        with self.stop:
            if self.progress.step == 0:
                self._save()  # a run that goes on is not given --load again; and a disk that is full is told at once
            for epoch in range(self._first_epoch(), self.epochs):
                self._train_epoch(epoch)
                evaluation = self._end_epoch(epoch) or evaluation
        return evaluation

    def _first_epoch(self) -> int:
        """The epoch to go on in: one that was the last of a shorter run, and so done in part, is not over yet."""
        if self.progress.step >= self.schedule.total_steps:
            return self.progress.epoch
        return min(self.progress.epoch, self.progress.step // self.steps_per_epoch)

    def _train_epoch(self, epoch: int) -> None:
        self.model.train()
        self._images = self._unreadable = 0
        begun = epoch * self.steps_per_epoch
        start = self.progress.step - begun
        # The last epoch may be a part of one.
        steps = min(self.steps_per_epoch, self.schedule.total_steps - begun)
        share = self.world.share(self.batch.batch_size)
        whole = training_batches(self.samples, self.batch, epoch, self.pool, start, share)
        batches = islice(whole, steps - start)
        name = f"epoch {epoch + 1}/{self.epochs}"
        hidden = None if self.world.is_first else True
        self.metrics.start_clock()
        with tqdm(total=steps, initial=start, desc=name, bar_format=BAR, disable=hidden, leave=False) as bar:
            for number in range(start + 1, steps + 1):
                self.train_step(batches)
                bar.update()
                if number % self.options.print_freq == 0 or number == steps:
                    self._report(f"{name} step {number}/{steps}", bar)

    def train_step(self, batches: Iterator[TrainingBatch]) -> None:
        """One step on the next batch; all processes end here together if one of them has to."""
        since = time.perf_counter()
        batch, trouble = self._following or _next(batches) or (None, None)
        waited = time.perf_counter() - since
        for message in dict.fromkeys(batch.unreadable if batch else ()):  # tiles of one file have the same
            tqdm.write(f"skipped: {message}")
        positives = self._agree(batch, trouble)
        assert batch is not None  # without one, _agree has raised what kept it from being made
        # Steps are queued, each with its batch in the device's memory: while one runs, one more may wait.
        self.metrics.fetch(unfinished=1)
        since = time.perf_counter()
        self._following = _next(batches) if self.device != "cpu" else None
        waited += time.perf_counter() - since
        following = self._following[0] if self._following else None
        self.metrics.add(self.progress.step, self.step(batch, positives, following), waited)
        self.progress = replace(self.progress, step=self.progress.step + 1)
        if self.average:
            self.average.update(self.progress.step)

    def _agree(self, batch: TrainingBatch | None, trouble: Exception | None) -> int:
        """The `counted_positives` of all processes' batches; if one of them cannot or must not go on, all end here."""
        asked = [float(self.stop.signal_number == number) for number in STOP_SIGNALS]
        positives = 0 if batch is None else counted_positives(batch.labels, self.step.background_positives)
        since = self.progress.step - self._saved_step, time.monotonic() - self._saved_at
        due = self.log is not None and self.options.save_is_due(*since)  # the first process's clock counts
        unreadable = 0 if batch is None else len(batch.unreadable)
        *stops, troubled, someone_due, total, blank, gone = self.world.sum_at_once(
            *asked, trouble is not None, due, positives, unreadable, unreadable > 0 and self._all_are_gone()
        )
        self._refuse_blank(int(blank), 0 if batch is None else len(batch.files) * self.world.world_size, gone > 0)
        if any(stops) or troubled or someone_due:
            self._save()
        if any(stops) or troubled:
            self.world.last_barrier()  # whoever leaves while another saves would have that one killed
        if trouble is not None:
            raise trouble
        if troubled:
            raise UserError("stopped with the process that had trouble with the data")
        for number, processes in zip(STOP_SIGNALS, stops, strict=True):
            if processes:
                raise Stopped(number)
        return int(total)

    def _all_are_gone(self) -> bool:
        """Whether none of some images from all over the set is there any more."""
        return not any(sample.path.exists() for sample in self.samples[:: -(-len(self.samples) // PROBED_IMAGES)])

    def _refuse_blank(self, blank: int, images: int, gone: bool) -> None:
        """See that no more than a few images of a step about to be done are blank; saves before the first of an epoch.

        In all processes alike. Steps on what is not there would count as done when the run is gone on with.
        """
        if blank and not self._unreadable:
            self._save()
        self._unreadable += blank
        self._images += images
        if not self._unreadable:
            return
        tiles = math.ceil(len(self.samples) / len({sample.path for sample in self.samples}))  # of a file
        few = min(MAX_UNREADABLE * tiles, self.steps_per_epoch * self.batch.batch_size - 1)
        if gone or self._unreadable > max(few, MAX_UNREADABLE_SHARE * self._images):
            self.world.last_barrier()
            raise UserError(
                f"{self._unreadable} of the last {self._images} training images cannot be read: see that their disk or "
                f"folder is there. The checkpoint is that of step {self._saved_step}, from before"
            )

    def _report(self, where: str, bar: tqdm) -> None:
        """Fetch the step metrics from the device, check, show and keep them."""
        means = self.metrics.take_means()  # in all processes, so that all see a loss that is not finite
        if self.log is None:
            return
        rate = self.schedule.learning_rate(self.progress.step - 1)
        pace = self.metrics.take_pace(self.batch.batch_size)
        steps_left = self.schedule.total_steps - self.progress.step
        left = steps_left * self.batch.batch_size / pace["images_per_second"]
        pace = {name: float(f"{value:.4g}") for name, value in pace.items()}
        figures = {**means, "lr": rate, **pace, "seconds_left": round(left), **memory(self.device)}
        self.log.add("training", self.progress.step, **figures)
        if self.page:
            self.page.renew()
        parts = {part: means[part] for part in ("localization", "classification")}
        loss, speed = f"loss {sum(parts.values()):.3f}", f"{pace['images_per_second']:.1f} images/s"
        bar.set_postfix_str(f"{loss}, {speed}, {duration(left)} left")
        if sys.stdout.isatty() and not bar.disable:
            return  # the bar says it; whoever keeps the output in a file gets lines
        listed = ", ".join(f"{part} {value:.3f}" for part, value in parts.items())
        tqdm.write(f"{where}: {loss} ({listed}), lr {rate:.2e}, {speed}, {duration(left)} left")

    def _end_epoch(self, epoch: int) -> Evaluation | None:
        evaluation = None
        if epoch + 1 == self.epochs or (epoch + 1) % self.options.eval_every == 0:
            self._save()  # an evaluation that is interrupted is made up for by the run that goes on
            evaluation = self._evaluate(epoch)
        self.progress = replace(self.progress, epoch=epoch + 1)
        self._save()
        return evaluation

    def _evaluate(self, epoch: int) -> Evaluation | None:
        weights = self.weights()
        try:
            evaluation = self.evaluate(weights, lambda: self.stop.made)
        except Interrupted:
            self._agree(None, None)
            raise
        if evaluation is None or self.log is None:
            return None
        for message in evaluation.unreadable:
            tqdm.write(f"left out: {message}")
        figures = evaluation.figures()
        self.log.add("evaluation", self.progress.step, epoch=epoch + 1, **figures)
        if self.page:
            self.page.add_evaluation(evaluation.results, self.progress.step, epoch + 1)
        told = [f"{name} {figures[name]:.3f}" for name in SHOWN_FIGURES if figures.get(name, -1) >= 0]
        if evaluation.nothing_to_find:
            told.append(f"AP not measured: {evaluation.nothing_to_find}")
        tqdm.write(f"epoch {epoch + 1}/{self.epochs}: {', '.join(told)}")
        if figures["AP"] >= self.progress.best_ap:
            self.progress = replace(self.progress, best_ap=figures["AP"])
            extra = {"step": self.progress.step, "metrics": figures}
            save_weights(self.folder / BEST, weights, self.description, extra)
        return evaluation

    def weights(self) -> dict[str, np.ndarray]:
        """The weights to detect with: the moving average, where there is one."""
        return self.average.tensors() if self.average else model_tensors(self.model)

    def _save(self) -> None:
        """Write the last checkpoint; not before it is known that all losses up to it were finite."""
        self.metrics.fetch()  # in all processes, which end together if it raises NotFinite
        if self.log is None:  # not the first process, or a dry run
            return
        unreported: dict[str, list] = {"names": list(self.metrics.names), "values": self.metrics.values}
        self.progress = replace(self.progress, readings=unreported, metrics_length=self.log.sync())
        average = self.average.tensors() if self.average else {}
        content = Checkpoint(model_tensors(self.model), self.step.state(), average, self.progress)
        save_checkpoint(self.folder, content, self.description, self.options.keep)
        self._saved_step, self._saved_at = self.progress.step, time.monotonic()


def _next(batches: Iterator[TrainingBatch]) -> _Taken | None:
    """The next batch, or what kept it from being made, which all processes have to hear of before this one ends."""
    try:
        return next(batches), None
    except StopIteration:
        return None
    except Exception as error:  # memory may be short, or a file be one too many
        return None, error
