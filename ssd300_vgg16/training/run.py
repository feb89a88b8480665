"""A training from its options: data, weights and `Trainer`, begun, run and told of.

Importing this brings OneFlow; the command line does so once its options are known to be good.
"""

import json
import os
import shlex
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path

from ssd300_vgg16.data.categories import COCO_CATEGORIES, VOC_CATEGORIES
from ssd300_vgg16.data.dataset import Dataset, shared_images
from ssd300_vgg16.data.workers import WorkerPool, workers_for
from ssd300_vgg16.devices import resolve_device
from ssd300_vgg16.distributed.world import World, this_world
from ssd300_vgg16.errors import Stopped, UserError
from ssd300_vgg16.evaluate_weights import evaluate_weights
from ssd300_vgg16.files import write_json
from ssd300_vgg16.gpu_memory import TRAINING_ADVICE, advice_when_out_of_memory
from ssd300_vgg16.metrics.evaluation import Evaluation, evaluation_batch_size
from ssd300_vgg16.network.variants import FITTED, default_boxes
from ssd300_vgg16.runtime import environment, flow
from ssd300_vgg16.tiles import DEFAULT_OVERLAP
from ssd300_vgg16.training import run_folder
from ssd300_vgg16.training.assembly import Setup, assembled, checkpoint_to_go_on_from, starting_weights
from ssd300_vgg16.training.checkpoint import go_back_to
from ssd300_vgg16.training.config import TrainOptions, refuse_compiled
from ssd300_vgg16.training.description import description_of
from ssd300_vgg16.training.dry_run import dry_run
from ssd300_vgg16.training.not_finite import draw_step
from ssd300_vgg16.training.run_log import RunLog
from ssd300_vgg16.training.run_page import PAGE, RunPage
from ssd300_vgg16.training.step import NotFinite
from ssd300_vgg16.training.trainer import Trainer
from ssd300_vgg16.weights.model import model_tensors
from ssd300_vgg16.weights.safetensors_file import checksum

# Of own data, if nothing is said: measured in benchmarks/backgrounds.py.
BACKGROUND_IMAGES = 0.1
# The compute capability from which on GPUs have them.
TENSOR_CORES = (7, 0)
AMP_ADVICE = "This GPU has tensor cores: --amp trains in half precision, faster and in less memory."
NOT_FINITE_ADVICE = (
    "The usual cause is a learning rate that is too high: lower --lr, lengthen --warmup-steps, or set --clip-norm."
)


def run(options: TrainOptions) -> int:
    """Train, or evaluate if --test-only asks for that instead; returns the exit status."""
    if options.test_only:
        weights = Path(options.load or options.resume or "")  # the command line refuses --test-only without either
        batch_size = evaluation_batch_size(options.batch_size, this_world())
        source = options.source()
        return evaluate_weights(
            weights,
            source,
            options.device,
            batch_size,
            options.workers,
            amp=options.amp,
            tiles=options.tiles,
            tile_overlap=options.tile_overlap,
        )
    return train(options)


def train(options: TrainOptions) -> int:
    """Train as the options say, or make a dry run of it (--check); returns the exit status.

    Every process of a training calls this; the first one prints and writes. Raises UserError for what the user can
    mend, and Stopped after a signal, when all is saved.
    """
    world = this_world()
    device, eager = _device_and_step(options, world)
    world = world.connected()  # once ranks are known to be right: OneFlow aborts where they are not
    if _could_use_tensor_cores(options, device, eager):
        world.say(AMP_ADVICE)
    world.say(*options.notices)
    train_set, val_set = _load_data(options, world)  # first: what is wrong there is said before a download
    weights = None if options.resume else starting_weights(options)
    on_gpu = nullcontext() if device == "cpu" else advice_when_out_of_memory(TRAINING_ADVICE, "train.sh")
    with ExitStack() as alone, on_gpu, WorkerPool(workers_for(device, options.workers), options.restarts) as pool:
        folder = Path(options.resume or "")
        if world.is_first and not options.check:
            folder = run_folder.folder_of(options.resume, options.output_dir)
            alone.enter_context(run_folder.held(folder))
        checkpoint = checkpoint_to_go_on_from(options, train_set, world)
        if options.resume and not checkpoint:
            weights = starting_weights(options)
        description = description_of(options, train_set, weights, checkpoint, world)
        boxes = description.variant.boxes
        # options.json keeps what was settled: a run that goes on must not ask the data or the weights again.
        options = replace(
            options,
            num_classes=description.num_classes,
            model=description.variant.model,
            default_boxes=options.default_boxes if boxes == FITTED else boxes,  # those of the weights have no name
            width=description.width,
            background_images=_background_images(options, train_set),
        )
        setup = Setup(options, train_set, val_set, description, world, device, eager)
        trainer = assembled(setup, folder, checkpoint, weights, pool)
        checkpoint = weights = None  # they are in the network now, and take memory
        _refuse_unlike(world, trainer, setup)
        cut_short = trainer.schedule.notices(options.warmup_steps)
        if options.check:
            world.say(_summary(trainer), *cut_short)
            with _not_finite_told(trainer):
                world.say(*dry_run(trainer, train_set, val_set))
            world.last_barrier()
            return 0
        if world.is_first:
            _begin(trainer, setup)
            alone.close()
            alone.enter_context(run_folder.held(folder))  # its log may be a new file by now
        world.say(f"Run folder: {folder}. Device: {device}. {_summary(trainer)}", *cut_short)
        world.say(f"Watch it: open {folder / PAGE} in a browser.")
        evaluation = _run(trainer)
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


def _background_images(options: TrainOptions, train_set: Dataset) -> float:
    """The share of images without objects: as the options say, else none of COCO or VOC, as in what is published."""
    if options.background_images is not None:
        return options.background_images
    names = {category.name for category in train_set.categories}
    published = ({category.name for category in known} for known in (COCO_CATEGORIES, VOC_CATEGORIES))
    return 0.0 if names in published else BACKGROUND_IMAGES


def _refuse_unlike(world: World, trainer: Trainer, setup: Setup) -> None:
    """See that all processes are about to do the same; those of other hosts have their own files and GPUs."""
    mine = {
        "kind of device": trainer.device.partition(":")[0],
        "kind of step": "eager" if setup.eager else "compiled",
        "checkpoint (its step)": trainer.progress.step,
        "checksum of the weights": checksum(model_tensors(trainer.model)),
        "checksum of the default boxes": checksum({"": default_boxes(trainer.model.layout)}),
        "training data": setup.train_set.fingerprint(),
        "validation data": setup.val_set.fingerprint(),
    }
    everyones = [json.loads(message) for message in world.all_gather(json.dumps(mine).encode())]
    for rank, theirs in enumerate(everyones):
        for name, value in everyones[0].items():
            if theirs[name] != value:
                raise UserError(f"process {rank} has another {name} than process 0: {theirs[name]} instead of {value}")


def _begin(trainer: Trainer, setup: Setup) -> None:
    """Write what the run is into its folder, and open its log and its page.

    Not before all else is known to be good: weights that do not fit must neither use up the folder nor change what
    --resume reads.
    """
    folder, progress, resume = trainer.folder, trainer.progress, setup.options.resume
    run_folder.clear_leftovers(folder)
    if resume:
        go_back_to(Path(resume))
    former = run_folder.read_options(folder).get("commands", []) if resume else []
    options = {
        **setup.options.as_json(),
        "commands": [*former, {"step": progress.step, "command": shlex.join(sys.argv)}],
        "val_images_folder": str(setup.val_set.samples[0].path.parent.absolute()),
    }
    sets = {"train": setup.train_set, "val": setup.val_set}
    about = {
        **environment(),
        "data": {split: {"name": dataset.name, **dataset.fingerprint()} for split, dataset in sets.items()},
        "processes": setup.world.world_size,
        "device": setup.device,
        "steps": trainer.schedule.total_steps,
    }
    run_folder.describe_run(folder, options, about)
    trainer.log = RunLog(folder, progress.metrics_length, progress.step)
    trainer.page = RunPage(folder)
    trainer.page.begin(setup.description.categories, trainer.samples, trainer.batch, trainer.pool)


def _summary(trainer: Trainer) -> str:
    options = trainer.options
    batch = f"batch {options.batch_size}"
    if trainer.world.world_size > 1:
        batch += f" over {trainer.world.world_size} processes"
    if options.accumulate > 1:
        batch += f" in {options.accumulate} passes"
    length = f"{options.iterations} iterations" if options.iterations else f"{options.epochs} epochs"
    going_on = f" Going on after step {trainer.progress.step}." if trainer.progress.step else ""
    labelled, backgrounds = trainer.batch.labelled, trainer.batch.backgrounds
    what, every = "images", trainer.progress.data["images"]
    if options.tiles:
        what, every = f"tiles of {options.tiles} pixels and whole images", len(trainer.samples)
    without = ""
    if empty := every - labelled:
        without = f", {empty} {what} without objects, {backgrounds} of them trained on in an epoch"
    return (
        f"{labelled} {what} with objects{without}, {length}, {batch}, lr {options.lr:g}, seed {options.seed}.{going_on}"
    )


def _run(trainer: Trainer) -> Evaluation | None:
    """Train to the end, or have the page say how it ended before that."""
    try:
        with _not_finite_told(trainer):
            return trainer.train()
    except Stopped:
        trainer.world.say(f"Stopped after step {trainer.progress.step}. {run_folder.how_to_go_on(trainer.folder)}")
        command = run_folder.resume_command(trainer.folder)
        _end_page(trainer, f"stopped after step {trainer.progress.step:,}; go on with {command}")
        raise
    except Exception as error:
        if (trainer.folder / run_folder.OPTIONS).exists():  # and was not removed meanwhile
            trainer.world.say(f"Ended after step {trainer.progress.step}. {run_folder.how_to_go_on(trainer.folder)}")
        _end_page(trainer, f"ended by an error: {error}")
        raise
    finally:
        if trainer.log:
            trainer.log.close()


@contextmanager
def _not_finite_told(trainer: Trainer) -> Iterator[None]:
    """Have a loss that is not finite end the training with a UserError, and leave a picture of its step's images."""
    try:
        yield
    except NotFinite as error:
        drawn = ""
        try:
            if trainer.log:
                drawn = f" {draw_step(trainer, error.step)} The last checkpoint is from before it."
        except Exception as other:  # of any kind: what matters is the loss
            drawn = f" Its images could not be drawn ({other}). The last checkpoint is from before it."
        finally:
            # All say the same, and none ends while the first writes: that one would be killed.
            drawn = os.fsdecode(trainer.world.all_gather(os.fsencode(drawn))[0])
            trainer.world.last_barrier()
        raise UserError(f"{error}. {NOT_FINITE_ADVICE}{drawn}") from error


def _end_page(trainer: Trainer, state: str) -> None:
    if trainer.page:
        trainer.page.end(state)


def _finish(trainer: Trainer, evaluation: Evaluation | None, images: int) -> None:
    folder = trainer.folder
    if evaluation is not None:
        write_json(folder / "coco_metrics.json", evaluation.as_json())
    _end_page(trainer, "finished")
    if evaluation is None:
        print("This run is at its end; --epochs (or --iterations) with a higher number goes on with it.")
    else:
        print(f"\nOn {images:,} images that it was not trained on:\n{evaluation.summary()}")
    weights, options = shlex.quote(str(folder)), trainer.options
    if options.tiles:
        weights += f" --tiles {options.tiles}"
        weights += f" --tile-overlap {options.tile_overlap:g}" if options.tile_overlap != DEFAULT_OVERLAP else ""
    print(f"\nCurves and weights are in {folder}. See what it detects, and its figures for each class:")
    print(f"  bash infer.sh --weights {weights}\n  bash eval.sh --weights {weights}")
