"""Train SSD300-VGG16: `bash train.sh --help`.

Imports that bring OneFlow are made inside functions: --help and wrong options answer at once, and the data workers,
which import the module they were started from, stay free of it.
"""

import argparse
import shlex
import sys
from pathlib import Path

from ssd300_vgg16 import command_line, train_options
from ssd300_vgg16.errors import UserError


def main(arguments: list[str]) -> int:
    """Train, or with --test-only evaluate; returns the exit status."""
    options = train_options.parse(arguments)
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


def _train(options: argparse.Namespace) -> int:
    from ssd300_vgg16.data.workers import WorkerPool
    from ssd300_vgg16.runtime import environment, resolve_device
    from ssd300_vgg16.training import run_folder

    device = resolve_device(options.device)
    train_set, val_set, description = _load_data(options)
    if options.resume:
        folder = run_folder.run_of(Path(options.resume))
    else:
        folder = run_folder.new_run_folder(Path(options.output_dir) if options.output_dir else None)
    with WorkerPool(options.workers) as pool:
        trainer = _trainer(options, folder, train_set, val_set, description, device, pool)
        # Not before: weights that do not fit must neither use up the folder nor change what the next --resume reads.
        run_folder.describe_run(folder, _saved_options(options, val_set), environment() | _data(train_set, val_set))
        print(f"Run folder: {folder}. Device: {device}. {_summary(trainer)}")
        try:
            evaluation = trainer.train()
        except KeyboardInterrupt:
            print(
                f"Stopped after step {trainer.progress.step}. Go on with:\n  bash train.sh --resume {_quoted(folder)}"
            )
            raise
    return _finish(folder, evaluation)


def _saved_options(options: argparse.Namespace, val_set) -> dict:
    images = val_set.samples[0].path.parent.absolute()
    return {**vars(options), "command": shlex.join(sys.argv), "val_images_folder": str(images)}


def _data(train_set, val_set) -> dict:
    counts = {"train": _counts(train_set), "val": _counts(val_set)}
    return {"data": {"train": train_set.name, "val": val_set.name, "counts": counts}}


def _counts(dataset) -> dict[str, int]:
    return {"images": len(dataset.samples), "objects": sum(len(sample.labels) for sample in dataset.samples)}


def _load_data(options: argparse.Namespace) -> tuple:
    """Training set, validation set, and the description of the network for them."""
    from ssd300_vgg16.weights import ModelDescription

    source = train_options.source(options)
    train_set = source.load("train")
    val_set = source.load("val", train_set.categories)
    for dataset in (train_set, val_set):
        if dataset.problems:
            print(dataset.problems.message())
    num_classes = options.num_classes or train_set.num_classes
    if num_classes < train_set.num_classes:
        raise UserError(f"--num_classes {num_classes}: {train_set.name} needs at least {train_set.num_classes}")
    return train_set, val_set, ModelDescription(num_classes, options.width, train_set.categories)


def _trainer(options: argparse.Namespace, folder: Path, train_set, val_set, description, device: str, pool):
    from ssd300_vgg16.data.loader import TrainingRecipe, samples_with_objects, steps_per_epoch
    from ssd300_vgg16.detector import Detector
    from ssd300_vgg16.metrics.evaluation import evaluate
    from ssd300_vgg16.network.default_boxes import default_boxes
    from ssd300_vgg16.runtime import flow
    from ssd300_vgg16.training.checkpoint import load_checkpoint
    from ssd300_vgg16.training.fresh_weights import initialise_from_nothing
    from ssd300_vgg16.training.run_folder import LAST, find_weights
    from ssd300_vgg16.training.schedule import Schedule
    from ssd300_vgg16.training.step import make_optimizer, make_step
    from ssd300_vgg16.training.trainer import Plan, Progress, Trainer
    from ssd300_vgg16.weights import build_model, load_tensors, read_weights

    flow.manual_seed(options.seed)
    model = build_model(description)
    state, progress = {}, Progress()
    if options.load:
        weights = find_weights(Path(options.load))
        load_tensors(model, read_weights(weights)[0], weights)
    else:
        initialise_from_nothing(model)
    if options.resume:
        state, progress = load_checkpoint(folder / LAST, model)
    model = model.to(device)
    samples = samples_with_objects(train_set.samples)
    steps = steps_per_epoch(len(samples), options.batch_size)
    schedule = Schedule(
        kind=options.lr_scheduler,
        base_lr=options.lr,
        total_steps=options.epochs * steps,
        warmup_steps=options.warmup_steps,
        milestones=tuple(epoch * steps for epoch in options.lr_steps),
        gamma=options.lr_gamma,
    )
    optimizer = make_optimizer(options.optimizer, model, options.lr, options.momentum, options.weight_decay)
    step = make_step(model, optimizer, schedule, device)
    step.restore(state)
    size = model.layout.image_size
    recipe = TrainingRecipe(
        options.batch_size, options.data_augmentation, options.seed, default_boxes(), size, options.strict_data
    )
    plan = Plan(options.epochs, schedule, recipe, options.print_freq, options.eval_every)
    detector = Detector(model, description, device)

    def evaluate_now():
        return evaluate(detector.detect, val_set, size, options.batch_size, pool, options.strict_data)

    return Trainer(folder, model, description, step, device, plan, samples, pool, evaluate_now, progress)


def _summary(trainer) -> str:
    plan = trainer.plan
    return (
        f"{len(trainer.samples)} images with objects, {plan.epochs} epochs, batch {plan.recipe.batch_size}, "
        f"lr {plan.schedule.base_lr:g}, seed {plan.recipe.seed}."
    )


def _quoted(path: Path) -> str:
    return shlex.quote(str(path))


def _finish(folder: Path, evaluation) -> int:
    from ssd300_vgg16.training.run_folder import write_json

    if evaluation is not None:
        print(evaluation.metrics.table())
        write_json(folder / "coco_metrics.json", evaluation.metrics.as_json())
    print(f"Curves, metrics and weights are in {folder}. See it detect:\n  bash infer.sh --weights {_quoted(folder)}")
    return 0


if __name__ == "__main__":
    command_line.run(main, "train.sh")
