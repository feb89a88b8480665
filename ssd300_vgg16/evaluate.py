"""Evaluate weights: COCO's twelve numbers and AP per class; for VOC's data its mAP too.

bash eval.sh --weights runs/RUN --data-path /data/coco
bash eval.sh --weights runs/RUN --dataset voc --data-path /data/VOCdevkit
"""

# As in train.py, imports that bring OneFlow are made inside functions.
import argparse
import os
import sys
from pathlib import Path

from ssd300_vgg16.cli import command_line
from ssd300_vgg16.data.formats import DataSource, split_location
from ssd300_vgg16.deploy.session import AUTO
from ssd300_vgg16.distributed.job import job_from
from ssd300_vgg16.distributed.launcher import supervise
from ssd300_vgg16.files import write_json
from ssd300_vgg16.training.run_folder import find_weights, is_published_name, newest_run

EVALUATIONS = Path("evaluations")


def build_parser() -> argparse.ArgumentParser:
    """The options of eval.sh."""
    parser = command_line.Parser(prog="eval.sh", description=__doc__)
    parser.add_argument(
        "--weights",
        metavar="W",
        help="run folder, file of weights, or name of published ones (default: the newest run)",
    )
    parser.add_argument("-b", "--batch-size", type=command_line.positive_int, default=8, help="(default: %(default)s)")
    parser.add_argument(
        "--output-dir",
        metavar="DIR",
        help=f"for coco_metrics.json and detections.json (default: beside the weights; for published, {EVALUATIONS}/)",
    )
    command_line.add_data_options(parser)
    command_line.add_common_options(parser)
    command_line.add_engine_option(parser)
    return parser


def main(arguments: list[str]) -> int:
    """Evaluate; returns the exit status: 0, or 1 if images could not be read."""
    options = build_parser().parse_args(arguments)
    weights = newest_run() if options.weights is None else Path(options.weights)
    source = DataSource(
        options.dataset,
        Path(options.data_path) if options.data_path else None,
        val=split_location("val", options.val_annotations, options.val_images),
        strict=options.strict_data,
    )
    output = Path(options.output_dir) if options.output_dir else None
    job = job_from(os.environ)
    if job:
        source.locate("val")  # what is missing is said once
        command = [sys.executable, "-m", "ssd300_vgg16.evaluate", *arguments]
        return supervise(job, command, lambda: command, restarts=0, advice="")
    return evaluate_weights(
        weights, source, options.device, options.batch_size, options.workers, output, options.engine
    )


def evaluate_weights(
    weights: Path,
    source: DataSource,
    device: str | None,
    batch_size: int,
    workers: int | None,
    output: Path | None = None,
    engine: str = AUTO,
) -> int:
    """Evaluate on the val split; the first process prints the tables, and writes them and the detections as JSON."""
    from ssd300_vgg16.data.workers import WorkerPool
    from ssd300_vgg16.detector import Detector
    from ssd300_vgg16.distributed.world import this_world
    from ssd300_vgg16.metrics.evaluation import evaluate
    from ssd300_vgg16.runtime import resolve_device

    world = this_world()
    beside = EVALUATIONS / weights if is_published_name(weights) else None  # and not in the folder of downloads
    weights = find_weights(weights)
    output = output or beside or weights.parent
    device = resolve_device(device, world.local_rank if world.size > 1 else None)
    detector = Detector.load(weights, device, engine=engine)
    world.say(*detector.description.notes)
    dataset = source.load("val", detector.description.categories)
    if dataset.problems and world.is_first:
        print(dataset.problems.message())
    output.mkdir(parents=True, exist_ok=True)
    with WorkerPool(command_line.workers_for(device, workers)) as pool:
        size = detector.image_size
        evaluation = evaluate(detector.detect, dataset, size, batch_size, pool, source.strict, world)
    if world.is_first:
        _report(evaluation, weights, dataset, output)
    world.wait_for_all()
    return 1 if evaluation and evaluation.unreadable else 0


def _report(evaluation, weights: Path, dataset, output: Path) -> None:
    print(f"{weights} on {dataset.name}, {len(dataset.samples) - len(evaluation.unreadable)} images")
    print(evaluation.table())
    write_json(output / "coco_metrics.json", evaluation.as_json())
    evaluation.results.write(output / "detections.json")
    for message in evaluation.unreadable:
        print(f"left out: {message}")
    print(f"written: {output / 'coco_metrics.json'}, {output / 'detections.json'}")


if __name__ == "__main__":
    command_line.run(main, "eval.sh")
