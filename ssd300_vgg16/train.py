"""Train SSD300-VGG16: `bash train.sh --help`.

Imports that bring OneFlow are made inside functions: --help and wrong options answer at once, and the data workers,
which import the module they were started from, stay free of it.
"""

import argparse
import json
import math
import os
import shlex
import sys
from dataclasses import dataclass, replace
from pathlib import Path

from ssd300_vgg16.cli import command_line, train_options
from ssd300_vgg16.data.dataset import Dataset
from ssd300_vgg16.distributed.job import Job, job_from
from ssd300_vgg16.distributed.launcher import supervise
from ssd300_vgg16.errors import Stopped, UserError
from ssd300_vgg16.training import run, run_folder
from ssd300_vgg16.training.config import Plan, Schedule, UpdateRule, refuse_compiled


def main(arguments: list[str]) -> int:
    """Train, or what --check, --replay or --test-only ask for instead; returns the exit status."""
    options = train_options.parse(arguments)
    if options.replay:
        return _replay(options)
    job = job_from(os.environ)
    if job:
        return _supervise(job, options, arguments)
    if options.test_only:
        from ssd300_vgg16 import evaluate

        return evaluate.evaluate_weights(
            Path(options.load or options.resume),
            train_options.source(options),
            options.device,
            options.batch_size,
            options.workers,
        )
    return _train(options)


def _replay(options: argparse.Namespace) -> int:
    from ssd300_vgg16.machine import resolve_device
    from ssd300_vgg16.training.replay import replay

    print(replay(Path(options.replay), resolve_device(options.device)))
    return 0


def _supervise(job: Job, options: argparse.Namespace, arguments: list[str]) -> int:
    """Start this command line once for each process of the job, and see them to their end."""
    if options.batch_size < job.hosts * job.processes:
        raise UserError(f"--batch-size {options.batch_size}: less than one image for each of the processes")
    for split in ("val",) if options.test_only else ("train", "val"):
        train_options.source(options).locate(split)  # what is missing is said once; what is generated, generated once
    run.download_weights(options)
    module = [sys.executable, "-m", "ssd300_vgg16.train"]
    if options.test_only or options.check:
        return supervise(job, [*module, *arguments], lambda: [*module, *arguments], restarts=0, advice="")
    folder = _run_folder(options) if job.host_rank == 0 else Path(options.resume or "RUN")
    begin = [*module, *arguments]
    if job.host_rank == 0 and not options.resume:
        begin += ["--output-dir", str(folder)]
    workers = [] if options.workers is None else ["--workers", str(options.workers)]
    go_on = [*module, "--resume", str(folder), *workers]

    def again() -> list[str]:
        return go_on if (folder / run_folder.OPTIONS).exists() else begin

    return supervise(job, begin, again, options.restarts, f"Go on with:\n  {_resume_command(folder)}", arguments)


def _run_folder(options: argparse.Namespace) -> Path:
    if options.resume:
        return run_folder.run_of(Path(options.resume))
    return run_folder.new_run_folder(Path(options.output_dir) if options.output_dir else None)


def _resume_command(folder: Path) -> str:
    names = ("NNODES", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT", "NPROC") if os.environ.get("NNODES") else ("NPROC",)
    variables = "".join(f"{name}={os.environ[name]} " for name in names if os.environ.get(name))
    return f"{variables}bash train.sh --resume {_quoted(folder)}"


def _train(options: argparse.Namespace) -> int:
    from ssd300_vgg16.data.workers import WorkerPool
    from ssd300_vgg16.distributed.world import this_world
    from ssd300_vgg16.machine import resolve_device
    from ssd300_vgg16.runtime import environment
    from ssd300_vgg16.training.checkpoint import go_back_to

    world = this_world()
    device = resolve_device(options.device, world.local_rank if world.size > 1 else None)
    eager = device == "cpu" if options.eager is None else options.eager
    if options.amp and (eager or device == "cpu"):
        raise UserError("--amp: half precision is for the compiled step on a GPU")
    if not eager:
        refuse_compiled(_update_rule(options), options.accumulate, options.batch_size, world.size)
    world.say(*options.notices)
    train_set, val_set = _load_data(options, world)  # first: what is wrong there is said before a download
    weights = None if options.resume else run.starting_weights(options)
    run.settle_network(options, weights)
    data = _Data(train_set, val_set, run.describe_network(options, train_set))
    with WorkerPool(command_line.workers_for(device, options.workers), options.restarts) as pool:
        if options.check:
            trainer = _trainer(options, Path(), data, weights, device, eager, pool, world)
            _refuse_unlike(world, trainer, data, eager)
            return _check(trainer, options, data, world)
        folder = _run_folder(options) if world.is_first else Path(options.resume or "")
        trainer = _trainer(options, folder, data, weights, device, eager, pool, world)
        weights = None  # they are in the network now, and take memory
        _refuse_unlike(world, trainer, data, eager)
        if world.is_first:
            # Not before: weights that do not fit must neither use up the folder nor change what --resume reads.
            run_folder.clear_leftovers(folder)
            if options.resume:
                go_back_to(Path(options.resume))
            saved = _saved_options(options, folder, data, trainer.progress.step)
            run_folder.describe_run(folder, saved, environment() | _about(data, world))
            trainer.log = _open_log(folder, trainer.progress)
        world.say(f"Run folder: {folder}. Device: {device}. {_summary(options, trainer)}")
        try:
            evaluation = trainer.train()
        except Stopped:
            world.say(f"Stopped after step {trainer.progress.step}. Go on with:\n  {_resume_command(folder)}")
            raise
        finally:
            if trainer.log:
                trainer.log.close()
    if world.is_first:
        _finish(folder, evaluation)
    world.wait_for_all()
    return 0


@dataclass(frozen=True)
class _Data:
    """Both splits, and the description of a network for them."""

    train: Dataset
    val: Dataset
    description: "ModelDescription"  # noqa: F821 (its module brings OneFlow)


def _load_data(options: argparse.Namespace, world) -> tuple[Dataset, Dataset]:
    source = train_options.source(options)
    train_set = source.load("train")
    val_set = source.load("val", train_set.categories)
    world.say(*(dataset.problems.message() for dataset in (train_set, val_set) if dataset.problems))
    options.num_classes = options.num_classes or train_set.num_classes
    if options.num_classes < train_set.num_classes:
        raise UserError(f"--num_classes {options.num_classes}: {train_set.name} needs at least {train_set.num_classes}")
    return train_set, val_set


def _refuse_unlike(world, trainer, data: _Data, eager: bool) -> None:
    """See that all processes are about to do the same; those of other hosts have their own files and GPUs."""
    from ssd300_vgg16.weights.model import model_tensors
    from ssd300_vgg16.weights.safetensors_file import checksum

    mine = {
        "kind of device": trainer.device.partition(":")[0],
        "kind of step": "eager" if eager else "compiled",
        "checkpoint (its step)": trainer.progress.step,
        "checksum of the weights": checksum(model_tensors(trainer.model)),
        "training data": data.train.fingerprint(),
        "validation data": data.val.fingerprint(),
    }
    everyones = [json.loads(message) for message in world.gathered(json.dumps(mine).encode())]
    for rank, theirs in enumerate(everyones):
        for name, value in everyones[0].items():
            if theirs[name] != value:
                raise UserError(f"process {rank} has another {name} than process 0: {theirs[name]} instead of {value}")


def _about(data: _Data, world) -> dict:
    sets = {"train": data.train, "val": data.val}
    about = {split: {"name": dataset.name, **dataset.fingerprint()} for split, dataset in sets.items()}
    return {"data": about, "processes": world.size}


def _saved_options(options: argparse.Namespace, folder: Path, data: _Data, step: int) -> dict:
    """What goes into options.json: the options, and the commands that the run was begun and gone on with."""
    former = run_folder.read_options(folder) if options.resume else {}
    kept = {name: value for name, value in vars(options).items() if name != "notices"}
    return {
        **kept,
        "load": options.load or former.get("load"),
        "commands": [*former.get("commands", []), {"step": step, "command": shlex.join(sys.argv)}],
        "val_images_folder": str(data.val.samples[0].path.parent.absolute()),
    }


def _trainer(options: argparse.Namespace, folder: Path, data: _Data, weights, device: str, eager: bool, pool, world):
    from ssd300_vgg16.data.loader import samples_with_objects
    from ssd300_vgg16.training.checkpoint import Checkpoint, Progress
    from ssd300_vgg16.training.optimizer import MovingAverage, freeze_backbone
    from ssd300_vgg16.training.step import make_step
    from ssd300_vgg16.training.trainer import Trainer

    samples = samples_with_objects(data.train.samples)
    plan = _plan(options, samples, data.description.variant.layout, world)
    checkpoint = run.checkpoint_to_go_on_from(options, data.train, world) or Checkpoint({}, {}, {}, Progress())
    model = run.make_network(options, data.description, checkpoint, weights, world).to(device)
    freeze_backbone(model, options.trainable_backbone_layers)
    step = make_step(model, _update_rule(options), plan.schedule, world, options.accumulate, options.amp, eager)
    step.restore(checkpoint.optimizer)
    average = MovingAverage(model, options.ema) if options.ema is not None and world.is_first else None
    if average and checkpoint.average:
        average.restore(checkpoint.average)
    return Trainer(
        folder=folder,
        model=model,
        description=data.description,
        step=step,
        average=average,
        plan=plan,
        samples=samples,
        pool=pool,
        evaluate=_evaluator(options, data, device, pool, world),
        progress=replace(checkpoint.progress, data=data.train.fingerprint()),
        world=world,
        device=device,
    )


def _plan(options: argparse.Namespace, samples, layout, world) -> Plan:
    from ssd300_vgg16.data.loader import TrainingRecipe, steps_per_epoch
    from ssd300_vgg16.network.variants import default_boxes

    steps = steps_per_epoch(len(samples), options.batch_size)
    in_steps = 1 if options.iterations else steps  # what --lr-steps count
    schedule = Schedule(
        kind=options.lr_scheduler,
        base_lr=options.lr,
        total_steps=options.iterations or options.epochs * steps,
        warmup_steps=options.warmup_steps,
        milestones=tuple(milestone * in_steps for milestone in options.lr_steps),
        gamma=options.lr_gamma,
    )
    recipe = TrainingRecipe(
        batch_size=options.batch_size,
        augmentation=options.data_augmentation,
        seed=options.seed,
        default_boxes=default_boxes(layout),
        image_size=layout.image_size,
        strict=options.strict_data,
    )
    recipe = replace(recipe, cache=run.image_cache(options, samples, recipe.least_side, world))
    return Plan(
        epochs=math.ceil(schedule.total_steps / steps),
        schedule=schedule,
        recipe=recipe,
        print_every=options.print_freq,
        evaluate_every=options.eval_every,
        save_every=train_options.save_every(options.save_every),
        keep=options.keep,
    )


def _update_rule(options: argparse.Namespace) -> UpdateRule:
    return UpdateRule(
        kind=options.optimizer,
        momentum=options.momentum,
        weight_decay=options.weight_decay,
        bias_lr_factor=options.bias_lr_factor,
        bias_weight_decay=options.bias_wd,
        clip_norm=options.clip_norm,
    )


def _evaluator(options: argparse.Namespace, data: _Data, device: str, pool, world):
    """What evaluates weights on the validation set (or its first images), with a network of its own."""
    from ssd300_vgg16.detector import Detector
    from ssd300_vgg16.metrics.evaluation import evaluate
    from ssd300_vgg16.weights.model import build_model, load_tensors

    detector = Detector(build_model(data.description), data.description, device)
    size = detector.model.layout.image_size

    def evaluate_weights(weights, stopping, dataset=data.val):
        # The moving average is the first process's alone.
        shared = {name: world.from_first(weights[name]) for name in sorted(weights)}
        load_tensors(detector.model, shared, Path("the weights in training"))
        return evaluate(detector.detect, dataset, size, options.batch_size, pool, options.strict_data, world, stopping)

    return evaluate_weights


def _open_log(folder: Path, progress):
    from ssd300_vgg16.training.run_log import RunLog

    return RunLog(folder, progress.metrics_length, progress.step)


def _summary(options: argparse.Namespace, trainer) -> str:
    batch = f"batch {options.batch_size}"
    if trainer.world.size > 1:
        batch += f" over {trainer.world.size} processes"
    if options.accumulate > 1:
        batch += f" in {options.accumulate} passes"
    length = f"{options.iterations} iterations" if options.iterations else f"{options.epochs} epochs"
    going_on = f" Going on after step {trainer.progress.step}." if trainer.progress.step else ""
    return (
        f"{len(trainer.samples)} images with objects, {length}, {batch}, lr {options.lr:g}, "
        f"seed {options.seed}.{going_on}"
    )


def _check(trainer, options: argparse.Namespace, data: _Data, world) -> int:
    from ssd300_vgg16.training.dry_run import rehearse

    few = replace(data.val, samples=data.val.samples[: options.batch_size * world.size])
    world.say(*rehearse(trainer, few, len(data.val.samples)))
    world.wait_for_all()
    return 0


def _finish(folder: Path, evaluation) -> None:
    if evaluation is not None:
        print(evaluation.table())
        run_folder.write_json(folder / "coco_metrics.json", evaluation.as_json())
    else:
        print("This run is at its end; --epochs (or --iterations) with a higher number goes on with it.")
    print(f"Curves, metrics and weights are in {folder}. See it detect:\n  bash infer.sh --weights {_quoted(folder)}")


def _quoted(path: Path) -> str:
    return shlex.quote(str(path))


if __name__ == "__main__":
    command_line.run(main, "train.sh")
