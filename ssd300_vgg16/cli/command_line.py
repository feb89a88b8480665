"""What the command lines share: how they end, and options that mean the same in each."""

import argparse
import os
import signal
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from ssd300_vgg16.cli.streams import print_plainly
from ssd300_vgg16.data.formats import KINDS, TOLD_BY_CONTENT, VAL_FRACTION
from ssd300_vgg16.deploy.session import AUTO, ENGINES
from ssd300_vgg16.errors import Stopped, UserError, is_said, told
from ssd300_vgg16.machine import is_short_of_memory, memory_is_short
from ssd300_vgg16.tiles import DEFAULT_OVERLAP, MAX_OVERLAP, MIN_SIDE

FAILURE_STATUS = 1
USAGE_STATUS = 2
SIGNAL_STATUS = 128  # and the signal's number
BUG = "a fault of this program, and none of yours. Please report it where you have the program from, with these lines:"


def run(main: Callable[[list[str]], int], name: str) -> None:
    """Call main with the arguments and exit with its status; errors meant for the user come without a traceback."""
    print_plainly()
    status = _status(main, name)
    if _is_rank():
        # Of several processes, OneFlow's own way out waits for the others, who may have gone, for ever.
        with suppress(OSError):
            sys.stdout.flush()
        os._exit(status)
    sys.exit(status)


def _status(main: Callable[[list[str]], int], name: str) -> int:
    """What main returns, or how it ended otherwise, which is said."""
    try:
        return main(sys.argv[1:])
    except SystemExit as end:  # of argparse
        return int(end.code or 0)
    except UserError as error:
        _say(f"{name}: {error}")
        return USAGE_STATUS
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # one more would interrupt the clearing up, with a traceback
        _say(f"{name}: interrupted")
        return SIGNAL_STATUS + signal.SIGINT
    except Stopped as stop:
        _say(f"{name}: stopped by {signal.Signals(stop.signal_number).name}")
        return SIGNAL_STATUS + stop.signal_number
    except BrokenPipeError:
        # The reader of our output has gone (`| head`); nothing is left to be said, not even at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILURE_STATUS
    except Exception as error:
        return _fail(error, name)


def _fail(error: Exception, name: str) -> int:
    """Say what nobody has foreseen, and return the status."""
    if is_short_of_memory(error):
        _say(f"{name}: {memory_is_short(error)}")
    elif isinstance(error, OSError):
        # A full disk, a folder that cannot be written to: the message names the file.
        _say(f"{name}: {told(error)}")
        # Not the end of all ranks, who would be given time for theirs.
        return FAILURE_STATUS if _is_rank() else USAGE_STATUS
    else:
        _say(f"{name}: {BUG}\n{''.join(traceback.format_exception(error)).rstrip()}")
    return FAILURE_STATUS


def _is_rank() -> bool:
    """Whether this is one of the processes of a job, which must not wait for the others at its end."""
    return {"RANK", "WORLD_SIZE"} <= os.environ.keys()


def _say(message: str) -> None:
    """What several processes of this machine have to say alike, the first of them says."""
    if not is_said(message):
        print(message, file=sys.stderr)


class Parser(argparse.ArgumentParser):
    """An ArgumentParser without abbreviations, whose help keeps its line breaks.

    Help and messages call an option by its letter and its first long name; its other names are read all the same.
    """

    def __init__(self, **settings: Any):
        super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False, **settings)

    def parse_known_args(self, args=None, namespace=None):
        """As argparse does."""
        for action in self._actions:
            long = [name for name in action.option_strings if name.startswith("--")]
            if not isinstance(action, argparse.BooleanOptionalAction):  # --this and --no-this
                action.option_strings = [name for name in action.option_strings if name not in long[1:]]
        return super().parse_known_args(args, namespace)


Number = TypeVar("Number", int, float)


def _number(convert: Callable[[str], Number], allows: Callable[[Number], bool], what: str) -> Callable[[str], Number]:
    """For `type=`: what reads such a number, and says what it should be."""

    def read(text: str) -> Number:
        try:
            value = convert(text)
        except ValueError:
            value = None
        if value is None or not allows(value):
            raise argparse.ArgumentTypeError(f"{text} is not {what}")
        return value

    return read


INFINITY = float("inf")
positive_int = _number(int, lambda value: value >= 1, "a whole number from 1 up")
natural = _number(int, lambda value: value >= 0, "a whole number from 0 up")
positive = _number(float, lambda value: 0 < value < INFINITY, "a number above 0")
not_negative = _number(float, lambda value: 0 <= value < INFINITY, "a number from 0 up")
fraction = _number(float, lambda value: 0 <= value < 1, "a number from 0 up to, but not including, 1")
tile_side = _number(int, lambda value: value >= MIN_SIDE, f"a whole number of pixels from {MIN_SIDE} up")
tile_overlap = _number(float, lambda value: 0 <= value <= MAX_OVERLAP, f"a number from 0 to {MAX_OVERLAP}")


def tile_side_or_auto(text: str) -> int | str:
    """For `type=`: the side of a tile, or that it follows from the model."""
    return text if text == AUTO else tile_side(text)


share = _number(float, lambda value: 0 < value <= 1, "a number above 0, up to 1")


def folder(text: str) -> str:
    """For `type=`: the name of a folder, which is not empty, as that of a shell's unset variable is."""
    if not text.strip():
        raise argparse.ArgumentTypeError("it is empty: name a folder (. is the current one)")
    return text


def refuse_as_target(path: Path, suffix: str, kind: str) -> None:
    """Raises UserError if a new file of this kind cannot be written there: nothing is overwritten."""
    if path.suffix != suffix:
        raise UserError(f"{path}: the new file is {kind}, and its name has to end so: {suffix}")
    if path.exists():
        raise UserError(f"{path}: there is such a file already; remove it, or name another")
    if not path.absolute().parent.is_dir():
        raise UserError(f"{path.parent}: there is no such folder to write to")


def add_data_options(parser: argparse.ArgumentParser) -> None:
    """Where the data is, and what to do about its faults."""
    group = parser.add_argument_group("data")
    group.add_argument(
        "--data-path",
        metavar="DIR",
        help="folder of the data set, or the file that describes it (default: data/coco)",
    )
    group.add_argument(
        "--dataset",
        choices=KINDS,
        default=TOLD_BY_CONTENT,
        help="auto: told by the content; coco: COCO-style JSON and images; voc: VOCdevkit, a folder like VOC2007, or "
        "images and XML files; yolo: data.yaml, obj.data or a list of class names, and text files; shapes: generated "
        "pictures, to try things (default: %(default)s)",
    )
    group.add_argument(
        "--val-fraction",
        type=share,
        metavar="X",
        help="part of the images that is for validation, if the data set has no split: told by their names, so that it "
        f"is the same in each command (default: {VAL_FRACTION})",
    )
    for split in ("train", "val"):
        group.add_argument(
            f"--{split}-annotations",
            metavar="PATH",
            help=f"COCO-style JSON, VOC image set (ImageSets/Main/x.txt) or folder of XML files of the {split} split, "
            "instead of the layout's",
        )
        group.add_argument(
            f"--{split}-images", metavar="DIR", help=f"folder of the {split} images, instead of the layout's"
        )
    group.add_argument(
        "--strict-data", action="store_true", help="stop at bad boxes and images (default: drop and name them)"
    )


def add_engine_option(parser: argparse._ActionsContainer) -> None:
    """What computes the network of a detector."""
    parser.add_argument(
        "--engine",
        choices=ENGINES,
        default=AUTO,
        help="what computes the network; auto: ONNX Runtime on the CPU, OneFlow on a GPU; "
        "onnxruntime on a GPU needs onnxruntime-gpu (default: %(default)s)",
    )
    parser.add_argument("--amp", action="store_true", help="convolutions in half precision, with OneFlow on a GPU")


def add_tile_options(parser: argparse._ActionsContainer) -> None:
    """What a detector sees of an image besides the whole of it."""
    parser.add_argument(
        "--tiles",
        type=tile_side_or_auto,
        metavar="SIDE",
        help="detect on overlapping tiles too, so many pixels of the image long: for objects that are small in it; "
        "auto: as long as the images that the model was trained on",
    )
    parser.add_argument(
        "--tile-overlap",
        type=tile_overlap,
        default=DEFAULT_OVERLAP,
        metavar="X",
        help="part of a tile that the next one shares; small objects should fit in (default: %(default)s)",
    )
    parser.add_argument(
        "--mirror", action="store_true", help="detect on mirror images too: better boxes, in twice the time"
    )


def add_common_options(parser: argparse.ArgumentParser) -> None:
    """Device, batch and workers."""
    group = parser.add_argument_group("machine")
    group.add_argument("--device", help="cpu, cuda or cuda:N (default: cuda where it works, else cpu)")
    group.add_argument(
        "-j",
        "--workers",
        type=natural,
        help="data loading processes, for each training process; 0: none (default: cores less one, at most 8)",
    )
