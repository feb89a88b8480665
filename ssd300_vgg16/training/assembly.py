"""The parts of a training put together: network, step, moving average, evaluation, and the `Trainer` that has them."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ssd300_vgg16.data.dataset import Dataset
from ssd300_vgg16.data.loader import (
    BatchConfig,
    backgrounds_of,
    evaluation_batches,
    samples_with_objects,
    steps_per_epoch,
)
from ssd300_vgg16.data.workers import WorkerPool
from ssd300_vgg16.detector import Detector
from ssd300_vgg16.distributed.world import World
from ssd300_vgg16.errors import UserError
from ssd300_vgg16.metrics.evaluation import Evaluation, evaluate, evaluation_batch_size
from ssd300_vgg16.network.ssd import SSD
from ssd300_vgg16.network.variants import BACKGROUND_POSITIVES, default_boxes
from ssd300_vgg16.runtime import flow
from ssd300_vgg16.training.checkpoint import Checkpoint, Progress, newest_checkpoint
from ssd300_vgg16.training.config import Schedule, TrainOptions
from ssd300_vgg16.training.optimizer import MovingAverage, freeze_backbone, initialise_from_scratch
from ssd300_vgg16.training.step import make_step
from ssd300_vgg16.training.trainer import Trainer
from ssd300_vgg16.weights.model import build_model, load_tensors, model_tensors
from ssd300_vgg16.weights.recognise import Weights, read_as_ssd
from ssd300_vgg16.weights.safetensors_file import ModelDescription
from ssd300_vgg16.weights.transfer import start_from, trunk_of

# Images that a network which starts from nothing is centred on, at most.
INITIALISATION_IMAGES = 32


@dataclass(frozen=True)
class Setup:
    """What all parts of a run are made from; in options, what was left open is settled by data and weights."""

    options: TrainOptions
    train_set: Dataset
    val_set: Dataset
    description: ModelDescription
    world: World
    device: str
    eager: bool


def starting_weights(options: TrainOptions) -> Weights | None:
    """The weights to start from: a whole detector, or the VGG16 of --weights-backbone; None to start from nothing."""
    path = options.find_starting_weights()
    if path is None:
        return None
    weights = read_as_ssd(path)
    return weights if options.load else trunk_of(weights)


def assembled(setup: Setup, folder: Path, weights: Weights | None, pool: WorkerPool) -> Trainer:
    """The trainer of a run, from its checkpoint if it has one, else from the weights or from nothing."""
    options, world = setup.options, setup.world
    labelled = samples_with_objects(setup.train_set.samples)
    empty = backgrounds_of(setup.train_set.samples)
    backgrounds = min(len(empty), round((options.background_images or 0) * len(labelled)))
    samples = [*labelled, *empty] if backgrounds else labelled
    layout = setup.description.variant.layout
    batch = BatchConfig(
        batch_size=options.batch_size,
        augmentation=options.data_augmentation,
        seed=options.seed,
        default_boxes=default_boxes(layout),
        image_size=layout.image_size,
        strict=options.strict_data,
        labelled=len(labelled),
        backgrounds=backgrounds,
    )
    schedule = _schedule(options, steps_per_epoch(batch.images_per_epoch(len(samples)), options.batch_size))
    checkpoint = _checkpoint_to_go_on_from(options, setup.train_set, world) or Checkpoint({}, {}, {}, Progress())
    model = _network(setup, checkpoint, weights, pool).to(setup.device)
    freeze_backbone(model, options.trainable_backbone_layers)
    kind = options.accumulate, options.amp, setup.eager, BACKGROUND_POSITIVES if backgrounds else 0
    step = make_step(model, options.optimizer_config(), schedule, world, *kind)
    step.restore(checkpoint.optimizer)
    average = MovingAverage(model, options.ema) if options.ema is not None and world.is_first else None
    if average and checkpoint.average:
        average.restore(checkpoint.average)
    return Trainer(
        options=options,
        folder=folder,
        model=model,
        description=setup.description,
        step=step,
        average=average,
        schedule=schedule,
        batch=batch,
        samples=samples,
        pool=pool,
        evaluate=_evaluator(setup, pool),
        progress=replace(checkpoint.progress, data=setup.train_set.fingerprint()),
        world=world,
        device=setup.device,
    )


def _schedule(options: TrainOptions, steps: int) -> Schedule:
    """The learning rates of a training with so many steps in an epoch."""
    in_steps = 1 if options.iterations else steps  # what --lr-steps and the length count
    return Schedule(
        kind=options.lr_scheduler,
        base_lr=options.lr,
        total_steps=options.length * in_steps,
        warmup_steps=options.warmup_steps,
        milestones=tuple(milestone * in_steps for milestone in options.lr_steps),
        gamma=options.lr_gamma,
    )


def _checkpoint_to_go_on_from(options: TrainOptions, train_set: Dataset, world: World) -> Checkpoint | None:
    """The checkpoint that --resume means, if there is one and it is of a training on this data."""
    if not options.resume:
        return None
    newest = newest_checkpoint(Path(options.resume))
    if newest is None:
        world.say(f"{options.resume} has no checkpoint yet: starting it from the beginning.")
        return None
    path, checkpoint, problems = newest
    world.say(*(f"{problem}: going on from {path.name}, the one before." for problem in problems))
    before, now = checkpoint.progress.data, train_set.fingerprint()
    if before and before != now:
        raise UserError(
            f"--resume {options.resume}: the training data differs. The run had {before['images']} images with "
            f"{before['objects']} objects (sha256 {before['sha256'][:8]}), now there are {now['images']} with "
            f"{now['objects']} ({str(now['sha256'])[:8]}). Bring it back, or begin a new run with --load {path}"
        )
    return checkpoint


def _network(setup: Setup, checkpoint: Checkpoint, weights: Weights | None, pool: WorkerPool) -> SSD:
    """The network with the weights of the checkpoint, else with those it starts from, else with fresh ones."""
    options = setup.options
    flow.manual_seed(options.seed)
    model = build_model(setup.description)
    if checkpoint.model:
        load_tensors(model, checkpoint.model, Path(options.resume or ""))
    elif weights := weights or starting_weights(options):
        start = start_from(weights, setup.description, model_tensors(model))
        load_tensors(model, start.tensors, weights.path)
        setup.world.say(start.table)
    else:
        samples = samples_with_objects(setup.train_set.samples)
        some = samples[:: -(-len(samples) // INITIALISATION_IMAGES)]  # from all over the set
        batches = evaluation_batches(some, len(some), setup.description.variant.layout.image_size, pool)
        initialise_from_scratch(model, np.concatenate([batch.images for batch in batches]))
        # Another number of threads rounds otherwise, and all processes have to begin with the same weights.
        tensors = {name: setup.world.broadcast(array) for name, array in sorted(model_tensors(model).items())}
        load_tensors(model, tensors, Path("the first process's weights"))
    return model


def _evaluator(setup: Setup, pool: WorkerPool) -> Callable[..., Evaluation | None]:
    """What evaluates weights on the validation set (or its first images), with a network of its own."""
    options, world = setup.options, setup.world
    detector = Detector(build_model(setup.description), setup.description, setup.device)
    size = detector.model.layout.image_size
    batch_size = evaluation_batch_size(options.batch_size, world)

    def evaluate_weights(
        weights: dict[str, np.ndarray], stopping: Callable[[], bool], dataset: Dataset = setup.val_set
    ) -> Evaluation | None:
        # The moving average is the first process's alone.
        shared = {name: world.broadcast(weights[name]) for name in sorted(weights)}
        load_tensors(detector.model, shared, Path("the weights in training"))
        try:
            return evaluate(detector.begin, dataset, size, batch_size, pool, options.strict_data, world, stopping)
        finally:
            if setup.device != "cpu":
                flow.cuda.empty_cache()  # OneFlow keeps freed memory, where the compiled step cannot have it

    return evaluate_weights
