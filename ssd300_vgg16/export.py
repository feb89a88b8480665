"""Write a detector as an ONNX model, which runs without this package: see docs/onnx.md.

python -I -m ssd300_vgg16.export runs/RUN --to model.onnx                              images to detections
python -I -m ssd300_vgg16.export ssd300_vgg16_coco --to model.onnx --outputs raw       to offsets and logits
python -I -m ssd300_vgg16.export runs/RUN --to small.onnx --int8 --calibrate photos/   in 8 bits: smaller, faster

The input is uint8 [batch, 3, S, S], RGB, S 300 or 512.
"""

import argparse
from pathlib import Path

from ssd300_vgg16.cli import command_line
from ssd300_vgg16.cli.streams import outlive_readers
from ssd300_vgg16.data.image_files import find_images
from ssd300_vgg16.errors import UserError
from ssd300_vgg16.network.postprocess import SCORE_THRESHOLD
from ssd300_vgg16.weights.locate import find_weights

PROGRAM = "python -I -m ssd300_vgg16.export"
CALIBRATION_IMAGES = 200


def build_parser() -> argparse.ArgumentParser:
    """The options of python -I -m ssd300_vgg16.export."""
    parser = command_line.Parser(prog=PROGRAM, description=__doc__)
    parser.add_argument(
        "weights", metavar="WEIGHTS", help="run folder, file of weights of any format, or name of published ones"
    )
    parser.add_argument("--to", metavar="FILE", type=Path, required=True, help="the new file, *.onnx")
    parser.add_argument(
        "--outputs",
        choices=("detections", "raw"),
        default="detections",
        help="detections: boxes, scores, labels and batch_index, after NMS; raw: offsets and logits of the default "
        "boxes (default: %(default)s)",
    )
    parser.add_argument(
        "--score-threshold",
        type=command_line.fraction,
        metavar="S",
        help=f"detections scored above (default: {SCORE_THRESHOLD}, as in evaluation)",
    )
    parser.add_argument(
        "--batch",
        type=command_line.positive_int,
        metavar="N",
        help="batches of this size alone, for programs that need to know it (default: of any size)",
    )
    parser.add_argument("--int8", action="store_true", help="convolutions in 8 bits; needs --calibrate")
    parser.add_argument(
        "--calibrate",
        metavar="FOLDER",
        help=f"images like those to come, from which ranges are measured ({CALIBRATION_IMAGES} of them at most)",
    )
    return parser


def main(arguments: list[str]) -> int:
    """Export; returns the exit status."""
    options = build_parser().parse_args(arguments)
    outlive_readers(PROGRAM)
    _refuse_contradictions(options)
    command_line.refuse_as_target(options.to, ".onnx", "an ONNX file")
    images = _spread(find_images([options.calibrate])) if options.int8 else []
    weights = find_weights(Path(options.weights))
    threshold = SCORE_THRESHOLD if options.score_threshold is None else options.score_threshold
    # Here, as it brings OneFlow and onnx, which would hold up --help and refusals by seconds.
    from ssd300_vgg16.deploy.model import export

    export(weights, options.to, options.outputs, threshold, options.batch, images)
    return 0


def _refuse_contradictions(options: argparse.Namespace) -> None:
    problems = []  # all of them are told at once
    if options.int8 and options.calibrate is None:
        problems.append("--int8 needs --calibrate FOLDER, images like those to come")
    if options.calibrate is not None and not options.int8:
        problems.append("--calibrate is for --int8, which is not given")
    if options.score_threshold is not None and options.outputs == "raw":
        problems.append("--score-threshold is for detections, and --outputs raw has none")
    if problems:
        raise UserError("; ".join(problems))


def _spread(images: list[Path]) -> list[Path]:
    """All images, or CALIBRATION_IMAGES of them, evenly from the whole list."""
    step = max(1, len(images) / CALIBRATION_IMAGES)
    return [images[int(number * step)] for number in range(min(len(images), CALIBRATION_IMAGES))]


if __name__ == "__main__":
    command_line.run(main, PROGRAM)
