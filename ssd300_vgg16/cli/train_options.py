"""What the options of train.sh come to, with presets, and what can be said against them before data is read."""

import argparse
from pathlib import Path

from ssd300_vgg16.cli.train_parser import (
    NEWEST,
    NO_WEIGHTS,
    PRESETS,
    REFERENCE_EPOCHS,
    TRAINED_DETECTOR,
    TRAINING_BACKBONE,
    build_parser,
)
from ssd300_vgg16.data.formats import DEFAULT_COCO, DataSource, split_location
from ssd300_vgg16.errors import UserError
from ssd300_vgg16.network.variants import SSD300_VGG16
from ssd300_vgg16.training.config import VGG_STAGES, SaveEvery
from ssd300_vgg16.training.run_folder import newest_training, read_options, run_of
from ssd300_vgg16.weights.published import PUBLISHED

REFERENCE_LR, REFERENCE_BATCH = 0.002, 32
LARGEST_SEED = 2**63 - 1  # OneFlow's generator takes no larger one
# Options that are not carried over by --resume: how to call this once, and `cache`, which former runs have kept.
NOT_RESUMED = ("resume", "output_dir", "test_only", "load", "pretrained", "workers", "check", "replay", "cache")
# Options that --resume does not let change.
FIXED = (
    "preset",
    "model",
    "default_boxes",
    "width",
    "num_classes",
    "optimizer",
    "batch_size",
    "seed",
    "trainable_backbone_layers",
)


def parse(arguments: list[str]) -> argparse.Namespace:
    """Options, checked as far as they can be without reading data; `notices` has what the user should know of them.

    Raises UserError with all that is wrong with them in one message.
    """
    parser = build_parser()
    first = parser.parse_args(arguments)
    if first.resume == NEWEST:
        arguments = [*arguments, "--resume", str(newest_training())]
        first = parser.parse_args(arguments)
    resumed = _options_of(Path(first.resume)) if first.resume and not first.test_only else {}
    notices = []
    parser.set_defaults(**(resumed or _preset_options(parser, arguments, notices)))
    if not resumed:
        _forget_presets_length(parser, first)
    options = parser.parse_args(arguments)
    if options.lr is None:
        options.lr = REFERENCE_LR * options.batch_size / REFERENCE_BATCH
    if options.lr_steps is None:
        options.lr_steps = _usual_lr_steps(options.iterations or options.epochs or REFERENCE_EPOCHS)
    problems = _problems(options, first.weights_backbone) + _problems_of_resuming(options, resumed, _flags(parser))
    if problems:
        raise UserError("; ".join(problems))
    _fill_in(options, backbone_given=bool(resumed) or first.weights_backbone is not None)
    if vars(options).pop("cache") != "none":
        notices.append("--cache is gone: reading is fast enough without it.")
    options.notices = notices + _milestones_beyond_the_end(options, first) + _changes(options, resumed, _flags(parser))
    return options


def _forget_presets_length(parser: argparse.ArgumentParser, given: argparse.Namespace) -> None:
    """A length on the command line goes before the preset's, with all that the preset counts in its own."""
    if given.iterations:
        parser.set_defaults(epochs=None, lr_steps=None)
    elif given.epochs:
        parser.set_defaults(iterations=None, lr_steps=None)


def _usual_lr_steps(length: int) -> list[int]:
    """Milestones as far into a training of this length (epochs or steps) as 80 and 110 are into 120."""
    first = max(1, length * 80 // 120)
    return [first, max(first + 1, length * 110 // 120)]


def _milestones_beyond_the_end(options: argparse.Namespace, given: argparse.Namespace) -> list[str]:
    length = options.iterations or options.epochs
    beyond = [step for step in options.lr_steps if step >= length]
    if not (beyond and given.lr_steps and options.lr_scheduler == "multistep"):
        return []
    return [f"--lr-steps {' '.join(map(str, beyond))}: not reached within {length}, the rate is not lowered there."]


def _fill_in(options: argparse.Namespace, backbone_given: bool) -> None:
    """Defaults that follow from other options."""
    if options.iterations is None:
        options.epochs = options.epochs or REFERENCE_EPOCHS
    if options.pretrained:
        options.load = TRAINED_DETECTOR[options.model or SSD300_VGG16.model]
    from_nothing = options.load or options.width not in (None, 1) or options.dataset == "shapes"
    if from_nothing and not backbone_given:
        options.weights_backbone = NO_WEIGHTS  # whatever a preset says
    if options.weights_backbone is None:
        options.weights_backbone = TRAINING_BACKBONE
    if options.trainable_backbone_layers is None:
        from_weights = options.load or options.weights_backbone != NO_WEIGHTS
        options.trainable_backbone_layers = VGG_STAGES - 1 if from_weights else VGG_STAGES


def _flags(parser: argparse.ArgumentParser) -> dict[str, str]:
    """The option that sets each of the parsed values."""
    long = {action.dest: [name for name in action.option_strings if name[1] == "-"] for action in parser._actions}
    return {dest: names[0] for dest, names in long.items() if names}


def _without_data(options: argparse.Namespace) -> bool:
    weights = options.load or options.pretrained or options.weights_backbone not in (None, NO_WEIGHTS)
    return source(options).is_absent() and not (options.test_only or weights or options.replay)


def _preset_options(parser: argparse.ArgumentParser, arguments: list[str], notices: list[str]) -> dict:
    """The options of the chosen preset, which without any data is "narrow" on generated shapes."""
    if not _without_data(parser.parse_args(arguments)):
        return PRESETS[parser.parse_args(arguments).preset]["options"]
    parser.set_defaults(preset="narrow", dataset="shapes")
    preset = parser.parse_args(arguments).preset
    notices.append(
        f"No --data-path given and no {DEFAULT_COCO} here: training on generated shapes, with --preset {preset}."
    )
    return PRESETS[preset]["options"]


def _options_of(run: Path) -> dict:
    if not run.exists():
        raise UserError(f"--resume {run}: there is no such file or folder")
    return {name: value for name, value in read_options(run_of(run)).items() if name not in NOT_RESUMED}


def _problems(options: argparse.Namespace, given_backbone: str | None) -> list[str]:
    problems = []
    if options.num_classes is not None and options.num_classes < 2:
        problems.append(f"--num_classes {options.num_classes}: it counts the background, so 2 is the least")
    if sorted(set(options.lr_steps)) != options.lr_steps:
        problems.append(f"--lr-steps {options.lr_steps}: they have to rise")
    problems += _problems_of_weights(options, given_backbone)
    if options.epochs and options.iterations and not options.resume:
        problems.append("--epochs and --iterations exclude each other: a training has one length")
    if options.replay and not Path(options.replay).exists():
        problems.append(f"--replay {options.replay}: there is no such file or folder")
    if options.accumulate > options.batch_size:
        problems.append(f"--accumulate {options.accumulate}: there are only {options.batch_size} images in a step")
    if options.amp and options.eager:
        problems.append("--amp and --eager exclude each other: half precision is for the compiled step")
    if options.seed > LARGEST_SEED:
        problems.append(f"--seed {options.seed}: the largest is {LARGEST_SEED}")
    return problems


def _problems_of_weights(options: argparse.Namespace, given_backbone: str | None) -> list[str]:
    problems = []
    if options.test_only and not (options.load or options.pretrained or options.resume):
        problems.append("--test-only needs weights: give --load W, --pretrained or --resume RUN")
    starts = ("load", "pretrained", "resume")
    given = [f"--{name}" for name in starts if getattr(options, name)]
    if len(given) > 1:
        problems.append(f"{' and '.join(given)} exclude each other: each brings its own weights")
    if given and given_backbone not in (None, NO_WEIGHTS):
        problems.append(f"{given[0]} and --weights-backbone exclude each other: a detector's weights have a backbone")
    if options.pretrained and options.model not in (None, *TRAINED_DETECTOR):
        problems.append(f"--pretrained: there are no published weights of {options.model}")
    if options.resume and not Path(options.resume).exists():
        problems.append(f"--resume {options.resume}: there is no such file or folder")
    for name in ("load", "weights_backbone"):
        weights = getattr(options, name)
        if weights == "":
            problems.append(f"--{name.replace('_', '-')}: it is empty; is a variable unset?")
        none = NO_WEIGHTS if name == "weights_backbone" else None
        if weights and weights not in (none, *PUBLISHED) and not Path(weights).exists():
            problems.append(
                f"--{name.replace('_', '-')} {weights}: there is no such file or folder, and of published weights "
                f"there are {', '.join(PUBLISHED)}"
            )
    return problems


def _problems_of_resuming(options: argparse.Namespace, resumed: dict, flags: dict[str, str]) -> list[str]:
    """What cannot change in a run that goes on: its network, its optimizer's state, the order of its images."""
    problems = [
        f"{flags[name]} {getattr(options, name)}: the run was started with {resumed[name]}"
        for name in FIXED
        if name in resumed and getattr(options, name) != resumed[name]
    ]
    if problems:
        problems[-1] += " (with --load instead of --resume, its weights begin a new run)"
    if resumed and options.epochs and options.iterations:
        counted = "iterations" if resumed.get("iterations") else "epochs"
        problems.append(f"--resume {options.resume}: this run counts {counted}; give its length with --{counted}")
    if resumed and options.output_dir:
        problems.append("--output-dir and --resume exclude each other: a run stays in its folder")
    return problems


def _changes(options: argparse.Namespace, resumed: dict, flags: dict[str, str]) -> list[str]:
    """What changes in a run that goes on."""
    return [
        f"Going on with {flags[name]} {_shown(getattr(options, name))} instead of {_shown(resumed[name])}."
        for name in resumed
        if name in flags and getattr(options, name) != resumed[name]
    ]


def _shown(value: object) -> object:
    return "unset" if value is None else value


def source(options: argparse.Namespace) -> DataSource:
    return DataSource(
        kind=options.dataset,
        path=Path(options.data_path) if options.data_path else None,
        train=split_location("train", options.train_annotations, options.train_images),
        val=split_location("val", options.val_annotations, options.val_images),
        strict=options.strict_data,
    )


def save_every(text: str) -> SaveEvery:
    """What the text of --save-every means."""
    if text.endswith("m"):
        return SaveEvery(seconds=60 * int(text.removesuffix("m")))
    return SaveEvery(steps=int(text))
