"""From the command line of train.sh to `TrainOptions`: presets, resumed runs, and all that can be refused early.

What is given goes first, then the run that is resumed or else the preset, then the parser's defaults.
"""

import argparse
from dataclasses import fields, replace
from pathlib import Path

from ssd300_vgg16.cli.train_parser import (
    NEWEST,
    PRESETS,
    REFERENCE_EPOCHS,
    TRAINED_DETECTOR,
    TRAINING_BACKBONE,
    build_parser,
)
from ssd300_vgg16.data.formats import DEFAULT_COCO
from ssd300_vgg16.errors import UserError
from ssd300_vgg16.network.variants import SSD300_VGG16
from ssd300_vgg16.tiles import DEFAULT_OVERLAP
from ssd300_vgg16.training.config import NO_WEIGHTS, VGG_STAGES, TrainOptions, with_absolute_paths
from ssd300_vgg16.training.run_folder import OPTIONS, newest_training, read_options, run_of
from ssd300_vgg16.weights.published import PUBLISHED

REFERENCE_LR, REFERENCE_BATCH = 0.002, 32
LARGEST_SEED = 2**63 - 1  # OneFlow's generator takes no larger one
# Options that describe how to call this once, and are not carried over by --resume.
NOT_RESUMED = ("resume", "output_dir", "test_only", "pretrained", "workers", "check")
# Options that --resume does not let change: the network, its optimizer's state, the order of its images.
FIXED = (
    *("preset", "model", "default_boxes", "width", "num_classes"),
    *("optimizer", "batch_size", "seed", "trainable_backbone_layers", "background_images"),
    *("tiles", "tile_overlap"),
)
_NOT_GIVEN = object()


def parse(arguments: list[str]) -> TrainOptions:
    """The options, checked as far as they can be without reading data.

    Raises UserError with all that is wrong with them in one message.
    """
    parser = build_parser()
    defaults, given = _parsed(parser, arguments)
    # Of each value, the first long name of the option that sets it.
    flags = {
        action.dest: name for action in parser._actions for name in reversed(action.option_strings) if name[1] == "-"
    }
    if given.get("resume") == NEWEST:
        given["resume"] = str(newest_training())
    if (resume := given.get("resume")) and not Path(resume).exists():
        raise UserError(f"--resume {resume}: there is no such file or folder")
    resumed = _options_of(Path(resume), parser) if resume and not given.get("test_only") else {}
    if resumed:
        given = with_absolute_paths(given)  # as they are in options.json, which they are compared with
    base, notices = (resumed, list[str]()) if resumed else _preset_options(defaults, given)
    backbone_given = bool(resumed) or given.get("weights_backbone") is not None
    options = _filled_in(TrainOptions(**{**defaults, **base, **given}), backbone_given)
    problems = [*_problems(options, given), *_problems_of_weights(options, given)]
    if resumed:
        problems += _problems_of_resuming(options, resumed, flags)
    if problems:
        raise UserError("; ".join(problems))
    notices += _notices(options, given, resumed, flags)
    return replace(options, notices=tuple(notices))


def _parsed(parser: argparse.ArgumentParser, arguments: list[str]) -> tuple[dict, dict]:
    """The defaults of all options, and what was given of them."""
    names = {field.name for field in fields(TrainOptions)}
    defaults = {action.dest: action.default for action in parser._actions if action.dest in names}
    # argparse fills in a default only where the name is not there yet.
    values = vars(parser.parse_args(arguments, argparse.Namespace(**dict.fromkeys(defaults, _NOT_GIVEN))))
    return defaults, _with_tuples({name: values[name] for name in defaults if values[name] is not _NOT_GIVEN})


def _with_tuples(values: dict) -> dict:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}


def _options_of(run: Path, parser: argparse.ArgumentParser) -> dict:
    """The options that a run was begun with, by an earlier version too, which may have had others.

    Raises UserError for a value that the command line would refuse.
    """
    known = {field.name for field in fields(TrainOptions)} - {*NOT_RESUMED, "notices"}
    former = {"background_images": 0.0, "tiles": None, "tile_overlap": DEFAULT_OVERLAP}
    options = former | read_options(run_of(run))
    options = {name: value for name, value in options.items() if name in known}
    for action in parser._actions:
        value = options.get(action.dest)
        try:
            for one in value if isinstance(value, list) else [value]:
                if not (one is None or isinstance(one, bool)):
                    parser._get_value(action, str(one))
                    parser._check_value(action, one)
        except (argparse.ArgumentTypeError, argparse.ArgumentError) as error:
            raise UserError(f"{run_of(run) / OPTIONS}: {error}") from error
    return _with_tuples(options)


def _preset_options(defaults: dict, given: dict) -> tuple[dict, list[str]]:
    """The options of the chosen preset, which without any data is "narrow" on generated shapes; and notices."""
    asked = TrainOptions(**{**defaults, **given})
    chosen: dict = {}
    notices: list[str] = []
    weights = asked.load or asked.pretrained or asked.weights_backbone not in (None, NO_WEIGHTS)
    if asked.source().is_absent() and not (asked.test_only or weights):
        chosen = {"preset": given.get("preset", "narrow"), "dataset": given.get("dataset", "shapes")}
        notices.append(
            f"No --data-path given and no {DEFAULT_COCO} here: training on generated shapes, "
            f"with --preset {chosen['preset']}."
        )
    preset = {**chosen, **PRESETS[chosen.get("preset", asked.preset)][1]}
    # A length on the command line goes before the preset's, with all that the preset counts in its own.
    if asked.iterations:
        preset |= {"epochs": None, "lr_steps": None}
    elif asked.epochs:
        preset |= {"iterations": None, "lr_steps": None}
    return preset, notices


def _filled_in(options: TrainOptions, backbone_given: bool) -> TrainOptions:
    """The options with what follows from others where it is not given."""
    epochs, lr, lr_steps, load = options.epochs, options.lr, options.lr_steps, options.load
    backbone, trainable = options.weights_backbone, options.trainable_backbone_layers
    if options.iterations is None:
        epochs = epochs or REFERENCE_EPOCHS
    if lr is None:
        lr = REFERENCE_LR * options.batch_size / REFERENCE_BATCH
    if lr_steps is None:
        # As far into the training as 80 and 110 are into 120 epochs; at least one unit apart, in the shortest too.
        length = options.iterations or epochs
        first = max(1, length * 80 // 120)
        lr_steps = first, max(first + 1, length * 110 // 120)
    if options.pretrained:
        load = TRAINED_DETECTOR.get(options.model or SSD300_VGG16.model)
    if (load or options.width not in (None, 1) or options.dataset == "shapes") and not backbone_given:
        backbone = NO_WEIGHTS  # whatever a preset says
    if backbone is None:
        backbone = TRAINING_BACKBONE
    if trainable is None:
        trainable = VGG_STAGES - 1 if load or backbone != NO_WEIGHTS else VGG_STAGES
    return replace(
        options,
        epochs=epochs,
        lr=lr,
        lr_steps=lr_steps,
        load=load,
        weights_backbone=backbone,
        trainable_backbone_layers=trainable,
    )


def _problems(options: TrainOptions, given: dict) -> list[str]:
    problems = []
    if options.num_classes is not None and options.num_classes < 2:
        problems.append(f"--num_classes {options.num_classes}: it counts the background, so 2 is the least")
    if tuple(sorted(set(options.lr_steps))) != options.lr_steps:
        problems.append(f"--lr-steps {list(options.lr_steps)}: they have to rise")
    # Each part of a step needs an image.
    if options.accumulate > options.batch_size:
        problems.append(f"--accumulate {options.accumulate}: there are only {options.batch_size} images in a step")
    if options.amp and options.eager:
        problems.append("--amp and --eager exclude each other: half precision is for the compiled step")
    if options.amp and options.device == "cpu":
        problems.append("--amp and --device cpu exclude each other: half precision is for GPUs")
    if options.seed > LARGEST_SEED:
        problems.append(f"--seed {options.seed}: the largest is {LARGEST_SEED}")
    if options.epochs and options.iterations and not options.resume:
        problems.append("--epochs and --iterations exclude each other: a training has one length")
    # A default, or a preset's, is cut to the length; what was asked for is not. Steps in an epoch are not known yet.
    warmup, steps = given.get("warmup_steps"), options.iterations
    if warmup and steps and warmup >= steps and not options.test_only:
        problems.append(
            f"--warmup-steps {warmup}: the training has {steps} steps in all, and would end in its warm-up; "
            "lower it, or raise --iterations"
        )
    output = options.output_dir
    if output and options.resume and not options.test_only:
        problems.append("--output-dir and --resume exclude each other: a run stays in its folder")
    elif output and (Path(output) / OPTIONS).exists() and not options.test_only:
        problems.append(
            f"--output-dir {output} already holds a run: go on with it (--resume {output}), or name another folder"
        )
    return problems


def _problems_of_weights(options: TrainOptions, given: dict) -> list[str]:
    problems = []
    starts = [f"--{name}" for name in ("load", "pretrained", "resume") if given.get(name)]
    if options.test_only and not starts:
        problems.append("--test-only needs weights: give --load W, --pretrained or --resume RUN")
    if len(starts) > 1:
        problems.append(f"{' and '.join(starts)} exclude each other: each brings its own weights")
    if starts and given.get("weights_backbone") not in (None, NO_WEIGHTS):
        problems.append(f"{starts[0]} and --weights-backbone exclude each other: a detector's weights have a backbone")
    if options.pretrained and options.model not in (None, *TRAINED_DETECTOR):
        problems.append(f"--pretrained: there are no published weights of {options.model}")
    for name, none in (("load", None), ("weights_backbone", NO_WEIGHTS)):
        flag, weights = f"--{name.replace('_', '-')}", given.get(name)
        if weights == "":
            problems.append(f"{flag}: it is empty; is a variable unset?")
        elif weights and weights not in (none, *PUBLISHED) and not Path(weights).exists():
            problems.append(
                f"{flag} {weights}: there is no such file or folder, and of published weights "
                f"there are {', '.join(PUBLISHED)}"
            )
    return problems


def _problems_of_resuming(options: TrainOptions, resumed: dict, flags: dict[str, str]) -> list[str]:
    """What cannot change in a run that goes on."""
    problems = [
        f"{flags[name]} {getattr(options, name)}: the run was started with {resumed[name]}"
        for name in FIXED
        if name in resumed and getattr(options, name) != resumed[name]
    ]
    if problems:
        # Once, behind the last of them.
        problems[-1] += " (with --load instead of --resume, its weights begin a new run)"
    if options.epochs and options.iterations:
        counted = "iterations" if resumed.get("iterations") else "epochs"
        problems.append(f"--resume {options.resume}: this run counts {counted}; give its length with --{counted}")
    return problems


def _notices(options: TrainOptions, given: dict, resumed: dict, flags: dict[str, str]) -> list[str]:
    """Milestones that are not reached, and what changes in a run that goes on."""

    def shown(value: object) -> object:
        return "unset" if value is None else list(value) if isinstance(value, tuple) else value

    notices = []
    beyond = [step for step in options.lr_steps if step >= options.length]
    if beyond and given.get("lr_steps") and options.lr_scheduler == "multistep":
        late = " ".join(map(str, beyond))
        notices.append(f"--lr-steps {late}: not reached within {options.length}, the rate is not lowered there.")
    return notices + [
        f"Going on with {flags[name]} {shown(getattr(options, name))} instead of {shown(resumed[name])}."
        for name in resumed
        if name in flags and getattr(options, name) != resumed[name]
    ]
