"""A training from its options: data, network, step and `Trainer`, put together and run.

Importing this brings OneFlow; the command line does so once its options are known to be good.
"""

import json
import math
import shlex
import sys
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ssd300_vgg16.data.dataset import Dataset, Sample, shared_images
from ssd300_vgg16.data.loader import BatchConfig, evaluation_batches, samples_with_objects, steps_per_epoch
from ssd300_vgg16.data.workers import WorkerPool, workers_for
from ssd300_vgg16.detector import Detector
from ssd300_vgg16.devices import resolve_device
from ssd300_vgg16.distributed.world import World, this_world
from ssd300_vgg16.errors import Stopped, UserError
from ssd300_vgg16.evaluate_weights import evaluate_weights
from ssd300_vgg16.files import write_json
from ssd300_vgg16.gpu_memory import TRAINING_ADVICE, advice_when_out_of_memory
from ssd300_vgg16.metrics.evaluation import Evaluation, evaluate, evaluation_batch_size
from ssd300_vgg16.network.ssd import SSD
from ssd300_vgg16.network.variants import SSD300_VGG16, DefaultBoxLayout, default_boxes, variant_of
from ssd300_vgg16.runtime import environment, flow
from ssd300_vgg16.training import run_folder
from ssd300_vgg16.training.checkpoint import Checkpoint, Progress, go_back_to, newest_checkpoint
from ssd300_vgg16.training.config import Schedule, TrainingConfig, refuse_compiled
from ssd300_vgg16.training.dry_run import dry_run
from ssd300_vgg16.training.optimizer import MovingAverage, freeze_backbone, initialise_from_scratch
from ssd300_vgg16.training.options import TrainOptions
from ssd300_vgg16.training.replay import replay
from ssd300_vgg16.training.run_log import RunLog
from ssd300_vgg16.training.run_page import PAGE, RunPage
from ssd300_vgg16.training.step import make_step
from ssd300_vgg16.training.trainer import Trainer
from ssd300_vgg16.weights.model import build_model, load_tensors, model_tensors
from ssd300_vgg16.weights.recognise import Weights, read_as_ssd
from ssd300_vgg16.weights.safetensors_file import ModelDescription, checksum
from ssd300_vgg16.weights.transfer import start_from, trunk_of

# Images that a network which starts from nothing is centred on, at most.
INITIALISATION_IMAGES = 32
# The compute capability from which on GPUs have them.
TENSOR_CORES = (7, 0)
AMP_ADVICE = "This GPU has tensor cores: --amp trains in half precision, faster and in less memory."


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


def run(options: TrainOptions) -> int:
    """Train, or what --replay or --test-only ask for instead; returns the exit status."""
    if options.replay:
        print(replay(Path(options.replay), resolve_device(options.device)))
        return 0
    if options.test_only:
        weights = Path(options.load or options.resume or "")  # the command line refuses --test-only without either
        batch_size = evaluation_batch_size(options.batch_size, this_world())
        source = options.source()
        return evaluate_weights(weights, source, options.device, batch_size, options.workers, amp=options.amp)
    return train(options)


def train(options: TrainOptions) -> int:
    """Train as the options say, or make a dry run of it (--check); returns the exit status.

    Every process of a training calls this; the first one prints and writes. Raises UserError for what the user can
    mend, and Stopped after a signal, when all is saved.
    """
    world = this_world()
    device, eager = _device_and_step(options, world)
    world = world.connected()  # once ranks are known to be right: OneFlow aborts where they are not
    if options.output_dir and not options.resume:
        run_folder.refuse_second_run(Path(options.output_dir))  # before anything is read or downloaded
    if _could_use_tensor_cores(options, device, eager):
        world.say(AMP_ADVICE)
    world.say(*options.notices)
    train_set, val_set = _load_data(options, world)  # first: what is wrong there is said before a download
    weights = None if options.resume else _starting_weights(options)
    description = _description(options, train_set, weights)
    # options.json keeps what was settled: a run that goes on must not ask the data or the weights again.
    options = replace(
        options,
        num_classes=description.num_classes,
        model=description.variant.model,
        default_boxes=description.variant.boxes,
        width=description.width,
    )
    setup = Setup(options, train_set, val_set, description, world, device, eager)
    on_gpu = nullcontext() if device == "cpu" else advice_when_out_of_memory(TRAINING_ADVICE, "train.sh")
    with on_gpu, WorkerPool(workers_for(device, options.workers), options.restarts) as pool:
        folder = Path(options.resume or "")
        if world.is_first and not options.check:
            folder = run_folder.folder_of(options.resume, options.output_dir)
        trainer = _trainer(setup, folder, weights, pool)
        weights = None  # they are in the network now, and take memory
        _refuse_unlike(world, trainer, setup)
        cut_short = trainer.config.schedule.notices(options.warmup_steps)
        if options.check:
            world.say(_summary(trainer, options), *cut_short)
            return _dry_run(trainer, setup)
        if world.is_first:
            _begin(trainer, setup, pool)
        world.say(f"Run folder: {folder}. Device: {device}. {_summary(trainer, options)}", *cut_short)
        world.say(f"Watch it: open {folder / PAGE} in a browser.")
        evaluation = _run(trainer, world)
    if world.is_first:
        _finish(trainer, evaluation, len(val_set.samples))
    world.last_barrier()
    return 0


def _device_and_step(options: TrainOptions, world: World) -> tuple[str, bool]:
    """The device, and whether steps are eager. UserError for what does not go together."""
    device = resolve_device(options.device, world.local_rank if world.world_size > 1 else None)
    world.refuse_shared_gpu(device)
    eager = device == "cpu" if options.eager is None else options.eager
    if options.amp and (eager or device == "cpu"):
        raise UserError("--amp: half precision is for the compiled step on a GPU")
    if not eager:
        refuse_compiled(options.optimizer_config(), options.accumulate, options.batch_size, world.world_size)
    return device, eager


def _could_use_tensor_cores(options: TrainOptions, device: str, eager: bool) -> bool:
    """Whether a new training's products would be faster in half precision, which it was not told to use."""
    if device == "cpu" or eager or options.amp or options.resume:
        return False
    return flow.cuda.get_device_capability(device) >= TENSOR_CORES


def _load_data(options: TrainOptions, world: World) -> tuple[Dataset, Dataset]:
    source = options.source()
    train_set = source.load("train")
    val_set = source.load("val", train_set.categories)
    # Of one file that both come from, all is said once.
    world.say(*dict.fromkeys(dataset.problems.message() for dataset in (train_set, val_set) if dataset.problems))
    if shared := shared_images(train_set, val_set):
        world.say(shared)
    if options.num_classes and options.num_classes < train_set.num_classes:
        raise UserError(f"--num_classes {options.num_classes}: {train_set.name} needs at least {train_set.num_classes}")
    return train_set, val_set


def _starting_weights(options: TrainOptions) -> Weights | None:
    """The weights to start from: a whole detector, or the VGG16 of --weights-backbone; None to start from nothing."""
    path = options.find_starting_weights()
    if path is None:
        return None
    weights = read_as_ssd(path)
    return weights if options.whole_detector() else trunk_of(weights)


def _description(options: TrainOptions, train_set: Dataset, weights: Weights | None) -> ModelDescription:
    """The network to train: as the options say, else as in the weights that it starts from, else as the data needs."""
    theirs = weights.description if weights else None
    if theirs:
        model, boxes, width = theirs.variant.model, theirs.variant.boxes, theirs.width
    else:
        model, boxes, width = SSD300_VGG16.model, "voc" if train_set.kind == "voc" else "coco", 1.0
    return ModelDescription(
        options.num_classes or train_set.num_classes,
        width if options.width is None else options.width,
        train_set.categories,
        variant_of(options.model or model, options.default_boxes or boxes),
    )


def _trainer(setup: Setup, folder: Path, weights: Weights | None, pool: WorkerPool) -> Trainer:
    options, world = setup.options, setup.world
    samples = samples_with_objects(setup.train_set.samples)
    config = _training_config(options, samples, setup.description.variant.layout)
    checkpoint = _checkpoint_to_go_on_from(options, setup.train_set, world) or Checkpoint({}, {}, {}, Progress())
    model = _network(setup, checkpoint, weights, pool).to(setup.device)
    freeze_backbone(model, options.trainable_backbone_layers)
    step = make_step(
        model, options.optimizer_config(), config.schedule, world, options.accumulate, options.amp, setup.eager
    )
    step.restore(checkpoint.optimizer)
    average = MovingAverage(model, options.ema) if options.ema is not None and world.is_first else None
    if average and checkpoint.average:
        average.restore(checkpoint.average)
    return Trainer(
        folder=folder,
        model=model,
        description=setup.description,
        step=step,
        average=average,
        config=config,
        samples=samples,
        pool=pool,
        evaluate=_evaluator(setup, pool),
        progress=replace(checkpoint.progress, data=setup.train_set.fingerprint()),
        world=world,
        device=setup.device,
    )


def _training_config(options: TrainOptions, samples: list[Sample], layout: DefaultBoxLayout) -> TrainingConfig:
    steps = steps_per_epoch(len(samples), options.batch_size)
    in_steps = 1 if options.iterations else steps  # what --lr-steps and the length count
    schedule = Schedule(
        kind=options.lr_scheduler,
        base_lr=options.lr,
        total_steps=options.length * in_steps,
        warmup_steps=options.warmup_steps,
        milestones=tuple(milestone * in_steps for milestone in options.lr_steps),
        gamma=options.lr_gamma,
    )
    batch = BatchConfig(
        batch_size=options.batch_size,
        augmentation=options.data_augmentation,
        seed=options.seed,
        default_boxes=default_boxes(layout),
        image_size=layout.image_size,
        strict=options.strict_data,
    )
    return TrainingConfig(
        epochs=math.ceil(schedule.total_steps / steps),
        schedule=schedule,
        batch=batch,
        print_every=options.print_freq,
        evaluate_every=options.eval_every,
        save_every=options.save_interval(),
        keep=options.keep,
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
    elif weights := weights or _starting_weights(options):
        start = start_from(weights, setup.description, model_tensors(model))
        load_tensors(model, start.tensors, weights.path)
        setup.world.say(start.table)
    else:
        initialise_from_scratch(model, _some_images(setup, pool))
        # Another number of threads rounds otherwise, and all processes have to begin with the same weights.
        tensors = {name: setup.world.broadcast(array) for name, array in sorted(model_tensors(model).items())}
        load_tensors(model, tensors, Path("the first process's weights"))
    return model


def _some_images(setup: Setup, pool: WorkerPool) -> np.ndarray:
    """Training images from all over the set, as the network takes them: uint8 [B, 3, S, S]."""
    samples = samples_with_objects(setup.train_set.samples)
    some = samples[:: -(-len(samples) // INITIALISATION_IMAGES)]
    size = setup.description.variant.layout.image_size
    return np.concatenate([batch.images for batch in evaluation_batches(some, len(some), size, pool)])


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


def _refuse_unlike(world: World, trainer: Trainer, setup: Setup) -> None:
    """See that all processes are about to do the same; those of other hosts have their own files and GPUs."""
    mine = {
        "kind of device": trainer.device.partition(":")[0],
        "kind of step": "eager" if setup.eager else "compiled",
        "checkpoint (its step)": trainer.progress.step,
        "checksum of the weights": checksum(model_tensors(trainer.model)),
        "training data": setup.train_set.fingerprint(),
        "validation data": setup.val_set.fingerprint(),
    }
    everyones = [json.loads(message) for message in world.all_gather(json.dumps(mine).encode())]
    for rank, theirs in enumerate(everyones):
        for name, value in everyones[0].items():
            if theirs[name] != value:
                raise UserError(f"process {rank} has another {name} than process 0: {theirs[name]} instead of {value}")


def _begin(trainer: Trainer, setup: Setup, pool: WorkerPool) -> None:
    """Write what the run is into its folder, and open its log and its page.

    Not before all else is known to be good: weights that do not fit must neither use up the folder nor change what
    --resume reads.
    """
    run_folder.clear_leftovers(trainer.folder)
    if setup.options.resume:
        go_back_to(Path(setup.options.resume))
    saved = _saved_options(setup, trainer.folder, trainer.progress.step)
    run_folder.describe_run(trainer.folder, saved, environment() | _about_run(trainer, setup))
    trainer.log = RunLog(trainer.folder, trainer.progress.metrics_length, trainer.progress.step)
    trainer.page = RunPage(trainer.folder)
    trainer.page.begin(setup.description.categories, trainer.samples, trainer.config.batch, pool)


def _saved_options(setup: Setup, folder: Path, step: int) -> dict:
    """What goes into options.json: the options, and the commands that the run was begun and gone on with."""
    former = run_folder.read_options(folder) if setup.options.resume else {}
    options = setup.options.as_json()
    return {
        **options,
        "load": options["load"] or former.get("load"),
        "commands": [*former.get("commands", []), {"step": step, "command": shlex.join(sys.argv)}],
        "val_images_folder": str(setup.val_set.samples[0].path.parent.absolute()),
    }


def _about_run(trainer: Trainer, setup: Setup) -> dict:
    sets = {"train": setup.train_set, "val": setup.val_set}
    about = {split: {"name": dataset.name, **dataset.fingerprint()} for split, dataset in sets.items()}
    steps = trainer.config.schedule.total_steps
    return {"data": about, "processes": setup.world.world_size, "device": setup.device, "steps": steps}


def _summary(trainer: Trainer, options: TrainOptions) -> str:
    batch = f"batch {options.batch_size}"
    if trainer.world.world_size > 1:
        batch += f" over {trainer.world.world_size} processes"
    if options.accumulate > 1:
        batch += f" in {options.accumulate} passes"
    length = f"{options.iterations} iterations" if options.iterations else f"{options.epochs} epochs"
    going_on = f" Going on after step {trainer.progress.step}." if trainer.progress.step else ""
    empty = trainer.progress.data["images"] - len(trainer.samples)
    # Without a positive there is no hard negative: the loss of such an image is 0, whatever is detected on it.
    without = f" ({empty} without are left out: the loss is zero there)" if empty else ""
    return (
        f"{len(trainer.samples)} images with objects{without}, {length}, {batch}, lr {options.lr:g}, "
        f"seed {options.seed}.{going_on}"
    )


def _run(trainer: Trainer, world: World) -> Evaluation | None:
    try:
        return trainer.train()
    except Stopped:
        command = run_folder.resume_command(trainer.folder)
        world.say(f"Stopped after step {trainer.progress.step}. Go on with:\n  {command}")
        _end_page(trainer, f"stopped after step {trainer.progress.step:,}; go on with {command}")
        raise
    except Exception as error:
        _end_page(trainer, f"ended by an error: {error}")
        raise
    finally:
        if trainer.log:
            trainer.log.close()


def _end_page(trainer: Trainer, state: str) -> None:
    if trainer.page:
        trainer.page.end(state)


def _dry_run(trainer: Trainer, setup: Setup) -> int:
    samples = setup.val_set.samples
    batch_size = evaluation_batch_size(setup.options.batch_size, setup.world)
    few = replace(setup.val_set, samples=samples[: batch_size * setup.world.world_size])
    setup.world.say(*dry_run(trainer, setup.train_set, setup.val_set, few))
    setup.world.last_barrier()
    return 0


def _finish(trainer: Trainer, evaluation: Evaluation | None, images: int) -> None:
    folder = trainer.folder
    if evaluation is not None:
        write_json(folder / "coco_metrics.json", evaluation.as_json())
    _end_page(trainer, "finished")
    if evaluation is None:
        print("This run is at its end; --epochs (or --iterations) with a higher number goes on with it.")
    else:
        print(f"\nOn {images:,} images that it was not trained on:\n{evaluation.summary()}")
    weights = shlex.quote(str(folder))
    print(f"\nCurves and weights are in {folder}. See what it detects, and its figures for each class:")
    print(f"  bash infer.sh --weights {weights}\n  bash eval.sh --weights {weights}")
