"""The options of train.sh: their names, defaults and presets, and what can be said against them before data is read."""

import argparse
from pathlib import Path

from ssd300_vgg16 import command_line
from ssd300_vgg16.data.augment import POLICIES
from ssd300_vgg16.data.source import DEFAULT_COCO, DataSource, split_location
from ssd300_vgg16.errors import UserError
from ssd300_vgg16.network.variants import BOX_SIZES, MODELS, SSD300_VGG16
from ssd300_vgg16.presets import PRESETS, TRAINED_DETECTOR, TRAINING_BACKBONE
from ssd300_vgg16.training.plan import VGG_STAGES, SaveEvery
from ssd300_vgg16.training.run_folder import newest_training, read_options, run_of
from ssd300_vgg16.weights.published import PUBLISHED

DESCRIPTION = """Train SSD300-VGG16.

    bash train.sh                                  learns generated shapes on any machine, in minutes
    bash train.sh --data-path /data/coco           the published recipe on COCO
    bash train.sh --data-path DIR --preset narrow  your own COCO-style data, a small network
    bash train.sh --data-path VOCdevkit --preset voc300     the paper's run on VOC07+12
    bash train.sh --pretrained --data-path DIR --epochs 20  your own data, from the published weights
"""
REFERENCE_LR, REFERENCE_BATCH, REFERENCE_EPOCHS = 0.002, 32, 120
NO_WEIGHTS = "none"
LARGEST_SEED = 2**63 - 1  # OneFlow's generator takes no larger one
EMA_DECAY = 0.9998
NEWEST = ""  # as --resume's RUN
# Options that describe how to call this once, and are not carried over by --resume.
NOT_RESUMED = ("resume", "output_dir", "test_only", "load", "pretrained", "workers", "check", "replay")
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


def build_parser() -> argparse.ArgumentParser:
    """The options of train.sh, by the model zoo's names where it has them."""
    parser = command_line.Parser(prog="train.sh", description=DESCRIPTION, epilog=_preset_help())
    command_line.add_data_options(parser)
    _add_network_options(parser)
    _add_schedule_options(parser)
    _add_update_options(parser)
    _add_run_options(parser)
    command_line.add_common_options(parser)
    _add_step_options(parser)
    return parser


def _preset_help() -> str:
    rows = [f"  {name:<8} {preset['help']}" for name, preset in PRESETS.items()]
    return "\n".join(["presets:", *rows])


def _add_network_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("network")
    group.add_argument("--preset", choices=tuple(PRESETS), default="coco", help="see below (default: coco)")
    group.add_argument("--model", choices=MODELS, help=f"(default: that of the weights, else {SSD300_VGG16.model})")
    group.add_argument(
        "--default-boxes",
        choices=BOX_SIZES,
        help="whose sizes the default boxes have (default: the weights', else voc for --dataset voc, else coco)",
    )
    group.add_argument(
        "--width",
        type=command_line.positive,
        metavar="X",
        help="channels, as a multiple of the published network's (default: that of the weights, else 1)",
    )
    group.add_argument(
        "--num_classes",
        "--num-classes",
        type=int,
        metavar="N",
        help="outputs with background (default: what the data set needs; 91 for COCO)",
    )
    group.add_argument(
        "--load",
        metavar="W",
        help="start from these weights: a file of any format, a run's folder, or a published name "
        "(python -m ssd300_vgg16.weights list)",
    )
    group.add_argument(
        "--pretrained", action="store_true", help="start from the published detector: as --load with its name"
    )
    group.add_argument(
        "--weights-backbone",
        metavar="W",
        help=f"start VGG16 from these weights, the rest from nothing; {NO_WEIGHTS}: all from nothing "
        f"(default: {TRAINING_BACKBONE} at width 1, but for --dataset shapes)",
    )
    group.add_argument(
        "--trainable-backbone-layers",
        type=int,
        choices=range(VGG_STAGES + 1),
        metavar="N",
        help="how many of VGG's 5 stages learn, counted from the end (default: 4 from weights, 5 from nothing)",
    )


def _add_schedule_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("schedule")
    group.add_argument("--epochs", type=command_line.positive_int, help=f"(default: {REFERENCE_EPOCHS})")
    group.add_argument(
        "--iterations",
        type=command_line.positive_int,
        metavar="N",
        help="the length in steps, instead of --epochs; --lr-steps then count steps too",
    )
    group.add_argument(
        "-b",
        "--batch-size",
        type=command_line.positive_int,
        default=32,
        help="images per step, over all processes together (default: %(default)s)",
    )
    group.add_argument(
        "--accumulate",
        type=command_line.positive_int,
        default=1,
        metavar="N",
        help="compute a step in N passes, for less memory; the result is the same (default: 1)",
    )
    group.add_argument("--lr", type=command_line.positive, help="learning rate (default: 0.002 x batch size / 32)")
    group.add_argument(
        "--lr-scheduler",
        type=_scheduler,
        default="multistep",
        metavar="{multistep,cosine}",
        help="(default: %(default)s)",
    )
    group.add_argument(
        "--lr-steps",
        type=command_line.positive_int,
        nargs="+",
        default=[80, 110],
        metavar="N",
        help="epochs (with --iterations: steps) after which multistep lowers the rate (default: 80 110)",
    )
    group.add_argument(
        "--lr-gamma", type=command_line.positive, default=0.1, help="factor of each of them (default: %(default)s)"
    )
    group.add_argument(
        "--warmup-steps",
        type=command_line.natural,
        default=1000,
        help="steps of linear warm-up from lr / 1000 (default: %(default)s)",
    )
    group.add_argument("--data-augmentation", choices=tuple(POLICIES), default="ssd", help="(default: %(default)s)")
    group.add_argument(
        "--seed", type=command_line.natural, default=0, help="same seed, same command, same batches (default: 0)"
    )


def _add_update_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("update of the weights")
    group.add_argument("--optimizer", choices=("sgd", "adamw"), default="sgd", help="(default: %(default)s)")
    group.add_argument("--momentum", type=command_line.fraction, default=0.9, help="(default: %(default)s)")
    group.add_argument(
        "--wd",
        "--weight-decay",
        dest="weight_decay",
        type=command_line.not_negative,
        default=5e-4,
        help="(default: %(default)s)",
    )
    group.add_argument(
        "--clip-norm",
        type=command_line.positive,
        metavar="X",
        help="scale gradients down to this norm (default: no)",
    )
    group.add_argument(
        "--bias-lr-factor",
        type=command_line.positive,
        default=1.0,
        metavar="X",
        help="biases learn X times as fast; Caffe's SSD: 2 (default: 1)",
    )
    group.add_argument(
        "--bias-wd",
        type=command_line.not_negative,
        metavar="X",
        help="weight decay of biases; Caffe's SSD: 0 (default: --wd)",
    )
    group.add_argument(
        "--ema",
        type=command_line.fraction,
        nargs="?",
        const=EMA_DECAY,
        metavar="DECAY",
        help=f"evaluate and keep a moving average of the weights (DECAY: {EMA_DECAY})",
    )


def _add_run_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("run")
    group.add_argument("--output-dir", metavar="DIR", help="the run's folder (default: runs/DATE-TIME)")
    group.add_argument(
        "--resume",
        metavar="RUN",
        nargs="?",
        const=NEWEST,
        help="go on with a run: its folder, or one of its checkpoints (default: the newest in runs/)",
    )
    group.add_argument(
        "--test-only", action="store_true", help="evaluate --resume's or --load's weights, and train nothing"
    )
    group.add_argument(
        "--save-every",
        type=_save_every,
        default="10m",
        metavar="N",
        help="a checkpoint every N steps, or minutes with an m: 10m (default: %(default)s)",
    )
    group.add_argument(
        "--keep",
        type=command_line.positive_int,
        default=2,
        metavar="N",
        help="checkpoints to keep (default: %(default)s)",
    )
    group.add_argument(
        "--restarts",
        type=command_line.natural,
        default=3,
        metavar="N",
        help="how often to replace a process that was killed, or a data worker (default: %(default)s)",
    )
    group.add_argument(
        "--check",
        action="store_true",
        help="try two steps and an evaluation batch, estimate memory and time, write nothing",
    )
    group.add_argument("--replay", metavar="FILE", help="look into a batch whose loss was not finite")
    group.add_argument(
        "--print-freq",
        type=command_line.positive_int,
        default=20,
        metavar="STEPS",
        help="steps between two readings of the losses (default: %(default)s)",
    )
    group.add_argument(
        "--eval-every",
        type=command_line.positive_int,
        default=1,
        metavar="EPOCHS",
        help="epochs between two evaluations (default: 1)",
    )


def _add_step_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("how a step is computed")
    group.add_argument(
        "--eager",
        action=argparse.BooleanOptionalAction,
        help="op by op instead of compiled (default: on the CPU, where that is faster)",
    )
    group.add_argument("--amp", action="store_true", help="products in half precision, with loss scaling; GPUs only")


def _save_every(text: str) -> str:
    number = text.removesuffix("m")
    if not (number.isascii() and number.isdecimal() and int(number)):
        raise argparse.ArgumentTypeError(f"{text} is neither a number of steps (500) nor of minutes (10m)")
    return text


def save_every(text: str) -> SaveEvery:
    """What the text of --save-every means."""
    if text.endswith("m"):
        return SaveEvery(seconds=60 * int(text.removesuffix("m")))
    return SaveEvery(steps=int(text))


def _scheduler(name: str) -> str:
    # The model zoo's name for its cosine schedule goes on working.
    name = {"multisteplr": "multistep", "cosineannealinglr": "cosine"}.get(name, name)
    if name not in ("multistep", "cosine"):
        raise argparse.ArgumentTypeError(f"{name} is neither multistep nor cosine")
    return name


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
    options = parser.parse_args(arguments)
    if options.lr is None:
        options.lr = REFERENCE_LR * options.batch_size / REFERENCE_BATCH
    problems = _problems(options) + _problems_of_resuming(options, resumed, _flags(parser))
    if problems:
        raise UserError("; ".join(problems))
    _fill_in(options)
    options.notices = notices + _changes(options, resumed, _flags(parser))
    return options


def _fill_in(options: argparse.Namespace) -> None:
    """Defaults that follow from other options."""
    if options.iterations is None:
        options.epochs = options.epochs or REFERENCE_EPOCHS
    if options.pretrained:
        options.load = TRAINED_DETECTOR[options.model or SSD300_VGG16.model]
    if options.weights_backbone is None:
        from_nothing = options.load or options.width not in (None, 1) or options.dataset == "shapes"
        options.weights_backbone = NO_WEIGHTS if from_nothing else TRAINING_BACKBONE
    if options.trainable_backbone_layers is None:
        from_weights = options.load or options.weights_backbone != NO_WEIGHTS
        options.trainable_backbone_layers = VGG_STAGES - 1 if from_weights else VGG_STAGES


def _flags(parser: argparse.ArgumentParser) -> dict[str, str]:
    """The option that sets each of the parsed values."""
    long = {action.dest: [name for name in action.option_strings if name[1] == "-"] for action in parser._actions}
    return {dest: names[0] for dest, names in long.items() if names}


def _without_data(options: argparse.Namespace) -> bool:
    weights = options.load or options.pretrained or options.weights_backbone
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


def _problems(options: argparse.Namespace) -> list[str]:
    problems = []
    if options.num_classes is not None and options.num_classes < 2:
        problems.append(f"--num_classes {options.num_classes}: it counts the background, so 2 is the least")
    if sorted(set(options.lr_steps)) != options.lr_steps:
        problems.append(f"--lr-steps {options.lr_steps}: they have to rise")
    problems += _problems_of_weights(options)
    if options.epochs and options.iterations:
        problems.append(
            f"--epochs {options.epochs}: this schedule counts iterations, with --iterations {options.iterations} and "
            f"--lr-steps {' '.join(map(str, options.lr_steps))}; change those"
        )
    if options.replay and not Path(options.replay).exists():
        problems.append(f"--replay {options.replay}: there is no such file or folder")
    if options.accumulate > options.batch_size:
        problems.append(f"--accumulate {options.accumulate}: there are only {options.batch_size} images in a step")
    if options.amp and options.eager:
        problems.append("--amp and --eager exclude each other: half precision is for the compiled step")
    if options.seed > LARGEST_SEED:
        problems.append(f"--seed {options.seed}: the largest is {LARGEST_SEED}")
    return problems


def _problems_of_weights(options: argparse.Namespace) -> list[str]:
    problems = []
    if options.test_only and not (options.load or options.pretrained or options.resume):
        problems.append("--test-only needs weights: give --load W, --pretrained or --resume RUN")
    starts = ("load", "pretrained", "resume")
    given = [f"--{name}" for name in starts if getattr(options, name)]
    if len(given) > 1:
        problems.append(f"{' and '.join(given)} exclude each other: each brings its own weights")
    if options.pretrained and options.model not in (None, *TRAINED_DETECTOR):
        problems.append(f"--pretrained: there are no published weights of {options.model}")
    if options.resume and not Path(options.resume).exists():
        problems.append(f"--resume {options.resume}: there is no such file or folder")
    for name in ("load", "weights_backbone"):
        weights = getattr(options, name)
        if weights and weights not in (NO_WEIGHTS, *PUBLISHED) and not Path(weights).exists():
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
