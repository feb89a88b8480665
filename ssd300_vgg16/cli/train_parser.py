"""The parser of train.sh: its options, their types, defaults and help."""

import argparse
from collections.abc import Callable
from typing import Any, NoReturn

from ssd300_vgg16.cli import command_line
from ssd300_vgg16.cli.command_line import (
    Number,
    fraction,
    natural,
    not_negative,
    positive,
    positive_int,
    tile_overlap,
    tile_side,
)
from ssd300_vgg16.data.augment import POLICIES
from ssd300_vgg16.deploy.session import AUTO
from ssd300_vgg16.network.variants import BOX_SIZES, FITTED, MAX_CLASSES, MAX_WIDTH, MODELS, SSD300_VGG16
from ssd300_vgg16.tiles import DEFAULT_OVERLAP
from ssd300_vgg16.training.config import NO_WEIGHTS, VGG_STAGES

# What --pretrained loads, by model; and what VGG16 starts from otherwise.
TRAINED_DETECTOR = {"ssd300_vgg16": "ssd300_vgg16_coco", "ssd512_vgg16": "ssd512_coco_lufficc"}
TRAINING_BACKBONE = "vgg16_amdegroot"

# Biases as in the authors' Caffe model: twice the learning rate, no decay. All of VGG16 learns.
_PAPER = {
    "lr": 1e-3,
    "weights_backbone": "vgg16_reducedfc",
    "trainable_backbone_layers": 5,
    "bias_lr_factor": 2.0,
    "bias_wd": 0.0,
    "background_images": 0.0,
}
_PAPER_COCO = {"iterations": 240_000, "lr_steps": (160_000, 200_000), "eval_every": 5}
_PAPER_VOC = {"dataset": "voc", "iterations": 120_000, "lr_steps": (80_000, 100_000), "eval_every": 10}
_NARROW = {
    "width": 0.125,
    "optimizer": "adamw",
    "lr": 1e-3,
    "batch_size": 4,
    "iterations": 1500,
    "lr_scheduler": "cosine",
    "warmup_steps": 100,
    "clip_norm": 5.0,
    "data_augmentation": "hflip",
    "print_freq": 25,
}

# What each is, and the options that it sets.
PRESETS: dict[str, tuple[str, dict[str, Any]]] = {
    "coco": (
        "the recipe behind 25.1 box AP: 120 epochs, batch 32, SGD, lr 0.002 x batch / 32, steps 80 and 110",
        {},
    ),
    "coco300": (
        "the paper's SSD300 on COCO (section 3.4): 240k iterations, batch 32, lr 1e-3, steps 160k and 200k",
        {**_PAPER, **_PAPER_COCO},
    ),
    "coco512": ("the paper's SSD512 on COCO: the same", {**_PAPER, **_PAPER_COCO, "model": "ssd512_vgg16"}),
    "voc300": (
        "the paper's SSD300 on VOC07+12 (section 3.1): 120k iterations, batch 32, lr 1e-3, steps 80k and 100k",
        {**_PAPER, **_PAPER_VOC},
    ),
    "voc512": ("the paper's SSD512 on VOC07+12: the same", {**_PAPER, **_PAPER_VOC, "model": "ssd512_vgg16"}),
    "narrow": (
        "an eighth of the channels, AdamW, small batches: for small data sets and machines without a GPU",
        _NARROW,
    ),
}

SHORT_HELP = """Train SSD300-VGG16.

  bash train.sh                                    to try it: generated shapes, in minutes
  bash train.sh --data-path DIR --pretrained       your own images, from the published weights
  bash train.sh --data-path DIR --preset narrow    without a GPU: a small network, from nothing
  bash train.sh --data-path /data/coco             COCO, the published recipe

The options that matter first:
  --data-path DIR     the images and their boxes: COCO's JSON, VOC's XML or YOLO's text files
                          --data-path ~/hardhats
  --epochs N          how often the network sees each image
                          --epochs 50
  -b, --batch-size N  images in a step: fewer if memory runs out, and --lr follows by itself
                          --batch-size 16
  --output-dir DIR    where weights, curves and figures go (default: runs/DATE-TIME)
                          --output-dir runs/hardhats
  --resume [RUN]      go on with a run that was stopped, by default the newest
                          --resume runs/hardhats

Is everything in order?  bash train.sh --data-path DIR --check
All options:             bash train.sh --help-all
"""
REFERENCE_EPOCHS = 120
MAX_BATCH = 16_384

EMA_DECAY = 0.9998
NEWEST = ""  # as --resume's RUN


def build_parser() -> argparse.ArgumentParser:
    """The options of train.sh, by the model zoo's names where it has them."""
    presets = "\n".join(["presets:", *(f"  {name:<8} {about}" for name, (about, _) in PRESETS.items())])
    about = {"description": "Train SSD300-VGG16.", "epilog": presets}
    parser = command_line.Parser(prog="train.sh", usage="bash train.sh [options]", add_help=False, **about)
    add = parser.add_argument
    add("-h", "--help", action=_ShortHelp, nargs=0, dest=argparse.SUPPRESS, help="the options that matter first")
    add("--help-all", action="help", help="every option")
    command_line.add_data_options(parser)

    add = parser.add_argument_group("network").add_argument
    add("--preset", choices=tuple(PRESETS), default="coco", help="see below (default: %(default)s)")
    add("--model", choices=MODELS, help=f"(default: that of the weights, else {SSD300_VGG16.model})")
    boxes = (
        f"whose sizes the default boxes have, or {FITTED}: chosen for the objects to train on (default: the weights', "
        "else voc for VOC's data, else coco)"
    )
    add("--default-boxes", choices=(*BOX_SIZES, FITTED), help=boxes)
    width = "channels, as a multiple of the published network's (default: that of the weights, else 1)"
    add("--width", type=_up_to(MAX_WIDTH, positive), metavar="X", help=width)
    outputs = "outputs with background (default: what the data set needs; 91 for COCO)"
    add("--num_classes", "--num-classes", type=_up_to(MAX_CLASSES, int), metavar="N", help=outputs)
    load = (
        "start from these weights: a file of any format, a run's folder, or a published name "
        "(.venv/bin/python -I -m ssd300_vgg16.weights list)"
    )
    add("--load", metavar="W", help=load)
    add("--pretrained", action="store_true", help="start from the published detector: as --load with its name")
    backbone = (
        f"start VGG16 from these weights, the rest from nothing; {NO_WEIGHTS}: all from nothing "
        f"(default: {TRAINING_BACKBONE} at width 1, but for --dataset shapes)"
    )
    add("--weights-backbone", metavar="W", help=backbone)
    stages = "how many of VGG's 5 stages learn, counted from the end (default: 4 from weights, 5 from nothing)"
    add("--trainable-backbone-layers", type=int, choices=range(VGG_STAGES + 1), metavar="N", help=stages)

    add = parser.add_argument_group("schedule").add_argument
    add("--epochs", type=positive_int, help=f"(default: {REFERENCE_EPOCHS})")
    steps = "the length in steps, instead of --epochs; --lr-steps then count steps too"
    add("--iterations", type=positive_int, metavar="N", help=steps)
    images = "images per step, over all processes together (default: %(default)s)"
    add("-b", "--batch-size", type=_up_to(MAX_BATCH, positive_int), default=32, help=images)
    passes = "compute a step in N passes, for less memory; the result is the same (default: 1)"
    add("--accumulate", type=positive_int, default=1, metavar="N", help=passes)
    add("--lr", type=positive, help="learning rate (default: 0.002 x batch size / 32)")
    kinds = "{multistep,cosine}"
    add("--lr-scheduler", type=_scheduler, default="multistep", metavar=kinds, help="(default: %(default)s)")
    milestones = (
        "epochs (with --iterations: steps) after which multistep lowers the rate "
        "(default: 80 and 110 of 120, and as far into other lengths)"
    )
    add("--lr-steps", type=positive_int, nargs="+", metavar="N", help=milestones)
    add("--lr-gamma", type=positive, default=0.1, help="factor of each of them (default: %(default)s)")
    warmup = "steps of linear warm-up from lr / 1000 (default: %(default)s)"
    add("--warmup-steps", type=natural, default=1000, help=warmup)
    add("--data-augmentation", choices=tuple(POLICIES), default="ssd", help="(default: %(default)s)")
    empty = (
        "train on images that nothing is annotated on too, in each epoch as many as this share of the images with "
        "objects: 0.1 is one for every ten, drawn anew where there are more; 0 is none (default: 0.1; for COCO's and "
        "VOC's classes, and in the paper's presets, 0)"
    )
    add("--background-images", type=not_negative, metavar="FRACTION", help=empty)
    tiles = (
        "train on overlapping tiles of larger images, so many pixels of the image long, and evaluate on them: for "
        "objects that are small in it (docs/tiles.md)"
    )
    add("--tiles", type=_tile_side, metavar="SIDE", help=tiles)
    overlap = "part of a tile that the next one shares (default: %(default)s)"
    add("--tile-overlap", type=tile_overlap, default=DEFAULT_OVERLAP, metavar="X", help=overlap)
    add("--seed", type=natural, default=0, help="same seed, same command, same batches (default: 0)")

    add = parser.add_argument_group("update of the weights").add_argument
    shown = "(default: %(default)s)"
    add("--optimizer", choices=("sgd", "adamw"), default="sgd", help=shown)
    add("--momentum", type=fraction, default=0.9, help=shown)
    add("--wd", "--weight-decay", dest="weight_decay", type=not_negative, default=5e-4, help=shown)
    add("--clip-norm", type=positive, metavar="X", help="scale gradients down to this norm (default: no)")
    factor = "biases learn X times as fast; Caffe's SSD: 2 (default: 1)"
    add("--bias-lr-factor", type=positive, default=1.0, metavar="X", help=factor)
    add("--bias-wd", type=not_negative, metavar="X", help="weight decay of biases; Caffe's SSD: 0 (default: --wd)")
    average = f"evaluate and keep a moving average of the weights (DECAY: {EMA_DECAY})"
    add("--ema", type=fraction, nargs="?", const=EMA_DECAY, metavar="DECAY", help=average)

    add = parser.add_argument_group("run").add_argument
    add("--output-dir", type=command_line.folder, metavar="DIR", help="the run's folder (default: runs/DATE-TIME)")
    run = "go on with a run: its folder, or one of its checkpoints (default: the newest in runs/)"
    add("--resume", metavar="RUN", nargs="?", const=NEWEST, help=run)
    add("--test-only", action="store_true", help="evaluate --resume's or --load's weights, and train nothing")
    save = "a checkpoint every N steps, or minutes with an m: 10m (default: %(default)s)"
    add("--save-every", type=_save_every, default="10m", metavar="N", help=save)
    add("--keep", type=positive_int, default=2, metavar="N", help="checkpoints to keep (default: %(default)s)")
    restarts = "how often to replace a process that was killed, or a data worker (default: %(default)s)"
    add("--restarts", type=natural, default=3, metavar="N", help=restarts)
    check = (
        "try two steps and an evaluation batch, estimate memory and time, draw eight images as the network gets them "
        "into a picture in the folder for temporary files, and write nothing else"
    )
    add("--check", action="store_true", help=check)
    # Of earlier versions: commands that have --cache go on working.
    add("--cache", help=argparse.SUPPRESS)
    add("--replay", type=_replay, help=argparse.SUPPRESS)
    reports = "steps between two reports of the losses (default: %(default)s)"
    add("--print-freq", type=positive_int, default=20, metavar="STEPS", help=reports)
    add(
        "--eval-every",
        type=positive_int,
        default=1,
        metavar="EPOCHS",
        help="epochs between two evaluations (default: 1)",
    )

    command_line.add_common_options(parser)
    add = parser.add_argument_group("how a step is computed").add_argument
    eager = "op by op instead of compiled (default: on the CPU, where that is faster)"
    add("--eager", action=argparse.BooleanOptionalAction, help=eager)
    add("--amp", action="store_true", help="products in half precision, with loss scaling; GPUs only")
    return parser


def _up_to(limit: int, read: Callable[[str], Number]) -> Callable[[str], Number]:
    """As `read`, but for larger numbers: no machine holds the network or the batch."""

    def checked(text: str) -> Number:
        number = read(text)
        if number > limit:
            raise argparse.ArgumentTypeError(f"{text} is more than {limit:,}")
        return number

    return checked


def _tile_side(text: str) -> int:
    if text == AUTO:
        raise argparse.ArgumentTypeError("auto is for infer.sh and eval.sh: give pixels (inspect advises a number)")
    return int(tile_side(text))


class _ShortHelp(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        print(SHORT_HELP, end="")
        parser.exit()


def _save_every(text: str) -> str:
    number = text.removesuffix("m")
    if not (number.isascii() and number.isdecimal() and int(number)):
        raise argparse.ArgumentTypeError(f"{text} is neither a number of steps (500) nor of minutes (10m)")
    return text


def _replay(_: str) -> NoReturn:
    raise argparse.ArgumentTypeError("it is gone; a run now leaves not-finite-step-N.jpg in its folder: look there")


def _scheduler(name: str) -> str:
    # The model zoo's name for its cosine schedule goes on working.
    name = {"multisteplr": "multistep", "cosineannealinglr": "cosine"}.get(name, name)
    if name not in ("multistep", "cosine"):
        raise argparse.ArgumentTypeError(f"{name} is neither multistep nor cosine")
    return name
