"""The options of train.sh: their names, defaults and presets, and what can be said against them before data is read."""

import argparse
from pathlib import Path

from ssd300_vgg16 import command_line
from ssd300_vgg16.data.augment import POLICIES
from ssd300_vgg16.data.source import DEFAULT_COCO, DataSource, split_location
from ssd300_vgg16.errors import UserError
from ssd300_vgg16.presets import PRESETS
from ssd300_vgg16.training.run_folder import read_options, run_of

DESCRIPTION = """Train SSD300-VGG16.

    bash train.sh                                  learns generated shapes on any machine, in minutes
    bash train.sh --data-path /data/coco           the published recipe on COCO
    bash train.sh --data-path DIR --preset narrow  your own COCO-style data, a small network
"""
REFERENCE_LR, REFERENCE_BATCH = 0.002, 32
LARGEST_SEED = 2**63 - 1  # OneFlow's generator takes no larger one
# Options that describe how to call this once, and are not carried over by --resume.
NOT_RESUMED = ("resume", "output_dir", "test_only", "load", "device", "workers")


def build_parser() -> argparse.ArgumentParser:
    """The options of train.sh, by the model zoo's names where it has them."""
    parser = command_line.Parser(prog="train.sh", description=DESCRIPTION, epilog=_preset_help())
    command_line.add_data_options(parser)
    _add_network_options(parser)
    _add_schedule_options(parser)
    _add_run_options(parser)
    command_line.add_common_options(parser)
    return parser


def _preset_help() -> str:
    rows = [f"  {name:<8} {preset['help']}" for name, preset in PRESETS.items()]
    return "\n".join(["presets:", *rows])


def _add_network_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("network")
    group.add_argument("--preset", choices=tuple(PRESETS), default="coco", help="see below (default: coco)")
    group.add_argument("--model", choices=("ssd300_vgg16",), default="ssd300_vgg16", help="(default: %(default)s)")
    group.add_argument(
        "--width",
        type=command_line.positive,
        default=1.0,
        metavar="X",
        help="channels, as a multiple of the published network's (default: 1)",
    )
    group.add_argument(
        "--num_classes",
        "--num-classes",
        type=int,
        metavar="N",
        help="outputs with background (default: what the data set needs; 91 for COCO)",
    )
    group.add_argument("--load", metavar="FILE", help="start from these weights")
    group.add_argument("--pretrained", action="store_true", help="not yet: name a file of weights with --load")


def _add_schedule_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("schedule")
    group.add_argument("--epochs", type=command_line.positive_int, default=120, help="(default: %(default)s)")
    group.add_argument(
        "-b", "--batch-size", type=command_line.positive_int, default=32, help="images per step (default: %(default)s)"
    )
    group.add_argument("--optimizer", choices=("sgd", "adamw"), default="sgd", help="(default: %(default)s)")
    group.add_argument("--lr", type=command_line.positive, help="learning rate (default: 0.002 x batch size / 32)")
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
        metavar="EPOCH",
        help="epochs after which multistep lowers the rate (default: 80 110)",
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


def _add_run_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("run")
    group.add_argument("--output-dir", metavar="DIR", help="the run's folder (default: runs/DATE-TIME)")
    group.add_argument("--resume", metavar="RUN", help="go on with a run: its folder or its last.safetensors")
    group.add_argument(
        "--test-only", action="store_true", help="evaluate --resume's or --load's weights, and train nothing"
    )
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


def _scheduler(name: str) -> str:
    # The model zoo's name for its cosine schedule goes on working.
    name = {"multisteplr": "multistep", "cosineannealinglr": "cosine"}.get(name, name)
    if name not in ("multistep", "cosine"):
        raise argparse.ArgumentTypeError(f"{name} is neither multistep nor cosine")
    return name


def parse(arguments: list[str]) -> argparse.Namespace:
    """Options, checked as far as they can be without reading data.

    Raises UserError with all that is wrong with them in one message.
    """
    parser = build_parser()
    first = parser.parse_args(arguments)
    resumed = _options_of(Path(first.resume)) if first.resume and not first.test_only else {}
    parser.set_defaults(**(resumed or _preset_options(parser, arguments)))
    options = parser.parse_args(arguments)
    if options.lr is None:
        options.lr = REFERENCE_LR * options.batch_size / REFERENCE_BATCH
    problems = _problems(options) + _problems_of_resuming(options, resumed)
    if problems:
        raise UserError("; ".join(problems))
    return options


def _without_data(options: argparse.Namespace) -> bool:
    return source(options).is_absent() and not options.test_only and not options.load


def _preset_options(parser: argparse.ArgumentParser, arguments: list[str]) -> dict:
    """The options of the chosen preset, which without any data is "narrow" on generated shapes."""
    if not _without_data(parser.parse_args(arguments)):
        return PRESETS[parser.parse_args(arguments).preset]["options"]
    parser.set_defaults(preset="narrow", dataset="shapes")
    preset = parser.parse_args(arguments).preset
    print(f"No --data-path given and no {DEFAULT_COCO} here: training on generated shapes, with --preset {preset}.")
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
    if options.test_only and not (options.load or options.resume):
        problems.append("--test-only needs weights: give --load FILE or --resume RUN")
    if options.load and options.resume:
        problems.append("--load and --resume exclude each other: --resume brings its own weights")
    if options.pretrained:
        problems.append(
            "--pretrained: weights are not downloaded yet; give a safetensors file of them with --load FILE"
        )
    for name in ("load", "resume"):
        path = getattr(options, name)
        if path and not Path(path).exists():
            problems.append(f"--{name} {path}: there is no such file or folder")
    if options.seed > LARGEST_SEED:
        problems.append(f"--seed {options.seed}: the largest is {LARGEST_SEED}")
    return problems


def _problems_of_resuming(options: argparse.Namespace, resumed: dict) -> list[str]:
    """What cannot change in a run that goes on: the order of its images, and where it is."""
    problems = []
    if options.batch_size != resumed.get("batch_size", options.batch_size):
        problems.append(f"--batch-size {options.batch_size}: the run was started with {resumed['batch_size']}")
    if resumed and options.output_dir:
        problems.append("--output-dir and --resume exclude each other: a run stays in its folder")
    return problems


def source(options: argparse.Namespace) -> DataSource:
    return DataSource(
        kind=options.dataset,
        path=Path(options.data_path) if options.data_path else None,
        train=split_location("train", options.train_annotations, options.train_images),
        val=split_location("val", options.val_annotations, options.val_images),
        strict=options.strict_data,
    )
