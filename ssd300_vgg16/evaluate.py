"""Evaluate weights: COCO's twelve numbers and AP per class; for VOC's data its mAP too.

bash eval.sh --weights runs/RUN                            on the images that the run was evaluated on
bash eval.sh --weights runs/RUN --data-path /data/coco
bash eval.sh --weights runs/RUN --data-path /data/VOCdevkit
"""

# As in train.py, imports that bring OneFlow are made inside functions.
import argparse
import os
from pathlib import Path

from ssd300_vgg16 import start
from ssd300_vgg16.cli import command_line
from ssd300_vgg16.cli.streams import outlive_readers
from ssd300_vgg16.data.formats import TOLD_BY_CONTENT, DataSource, split_location
from ssd300_vgg16.deploy.session import is_exported, resolve_engine
from ssd300_vgg16.devices import local_rank
from ssd300_vgg16.distributed.job import job_from
from ssd300_vgg16.distributed.launcher import supervise
from ssd300_vgg16.training.run_folder import OPTIONS, advice_on_tiles, newest_run, read_options, run_of
from ssd300_vgg16.weights.locate import EVALUATIONS

PROGRAM = "eval.sh"
# The options that name data, as they are where none is named.
DATA = {
    "dataset": TOLD_BY_CONTENT,
    "data_path": None,
    "val_annotations": None,
    "val_images": None,
    "val_fraction": None,
}


def build_parser() -> argparse.ArgumentParser:
    """The options of eval.sh."""
    parser = command_line.Parser(prog=PROGRAM, description=__doc__)
    parser.add_argument(
        "--weights",
        metavar="W",
        help="run folder, file of weights, exported ONNX model, or name of published weights (default: the newest run)",
    )
    parser.add_argument("-b", "--batch-size", type=command_line.positive_int, default=8, help="(default: %(default)s)")
    parser.add_argument(
        "--output-dir",
        type=command_line.folder,
        metavar="DIR",
        help=f"for coco_metrics.json and detections.json (default: beside the weights; for published, {EVALUATIONS}/)",
    )
    parser.add_argument(
        "--verify",
        action="store_true",
        help="compute COCO's numbers with pycocotools as well, and compare; exit status 1 if they differ",
    )
    command_line.add_data_options(parser)
    command_line.add_common_options(parser)
    command_line.add_engine_option(parser)
    command_line.add_tile_options(parser)
    return parser


def main(arguments: list[str]) -> int:
    """Evaluate; returns the exit status: 0, or 1 if images could not be read or numbers differ from pycocotools'."""
    options = build_parser().parse_args(arguments)
    outlive_readers(PROGRAM)
    weights = newest_run() if options.weights is None else Path(options.weights)
    source = _source(options, weights)
    output = Path(options.output_dir) if options.output_dir else None
    advice = advice_on_tiles(weights, options.tiles)
    if advice and local_rank() is None:  # by the process that starts the others
        print(advice)
    job = job_from(os.environ, PROGRAM)
    if job:
        source.locate("val")  # what is missing is said once
        command = [*start.command("ssd300_vgg16.evaluate"), *arguments]
        return supervise(job, command, lambda: command, restarts=0, advice=str, options=arguments)
    # Before OneFlow is imported, which then sees what is chosen.
    resolve_engine(options.engine, options.device, local_rank(), is_exported(weights), options.amp)
    # OneFlow comes in here: --help and wrong options answer at once.
    from ssd300_vgg16.evaluate_weights import evaluate_weights

    return evaluate_weights(
        weights,
        source,
        options.device,
        options.batch_size,
        options.workers,
        output,
        options.engine,
        options.verify,
        options.amp,
        options.tiles,
        options.tile_overlap,
        options.mirror,
    )


def _source(options: argparse.Namespace, weights: Path) -> DataSource:
    """The data that the options name; where they name none, that of the run which the weights are of."""
    data = {name: getattr(options, name) for name in DATA}
    if data == DATA and weights.exists() and (run_of(weights) / OPTIONS).exists():
        data = DATA | {name: value for name, value in read_options(run_of(weights)).items() if name in DATA}
    return DataSource(
        data["dataset"],
        Path(data["data_path"]) if data["data_path"] else None,
        val=split_location("val", data["val_annotations"], data["val_images"]),
        strict=options.strict_data,
        val_fraction=data["val_fraction"],
    )


if __name__ == "__main__":
    command_line.run(main, PROGRAM)
