"""Weights on the validation split of a data set: tables printed, metrics and detections written."""

from contextlib import nullcontext
from pathlib import Path

from ssd300_vgg16.data.dataset import Dataset
from ssd300_vgg16.data.formats import DataSource
from ssd300_vgg16.data.workers import WorkerPool, workers_for
from ssd300_vgg16.deploy.session import AUTO, is_exported, resolve_engine
from ssd300_vgg16.detector import Detector
from ssd300_vgg16.distributed.world import this_world
from ssd300_vgg16.files import write_json
from ssd300_vgg16.folders import held, make_folder, refuse_unwritable
from ssd300_vgg16.metrics.evaluation import Evaluation, evaluate
from ssd300_vgg16.metrics.verification import verification_of
from ssd300_vgg16.network.postprocess import SCORE_THRESHOLD
from ssd300_vgg16.report.results_page import REPORT, write_evaluation_page
from ssd300_vgg16.report.run_page import Environment
from ssd300_vgg16.schema import read_json_as
from ssd300_vgg16.tiles import DEFAULT_OVERLAP
from ssd300_vgg16.weights.locate import EVALUATIONS, find_weights, is_published_name, refuse_run

TILED_IMAGES_READ = 2  # by so many workers: more are no faster than what detects on their tiles, and take memory


def evaluate_weights(
    weights: Path,
    source: DataSource,
    device: str | None,
    batch_size: int,
    workers: int | None,
    output: Path | None = None,
    engine: str = AUTO,
    verify: bool = False,
    amp: bool = False,
    tiles: int | str | None = None,
    tile_overlap: float = DEFAULT_OVERLAP,
    mirror: bool = False,
) -> int:
    """Evaluate on the val split; the first process prints the tables, and writes them and the detections as JSON.

    engine, amp, tiles, mirror: as of `Detector.load`. verify: compare with pycocotools too.

    Returns the exit status: 1 if images were left out, or numbers differ.
    """
    world = this_world()
    beside = EVALUATIONS / weights if is_published_name(weights) else None
    folder = weights if weights.is_dir() else weights.parent
    if output and output.resolve() != folder.resolve():
        refuse_run(output)
    refuse_unwritable(output or beside or folder)  # before minutes of work, or a download
    weights = find_weights(weights)
    local_rank = world.local_rank if world.world_size > 1 else None
    engine, device = resolve_engine(engine, device, local_rank, is_exported(weights), amp)
    world.refuse_shared_gpu(device)
    world = world.connected()
    detector = Detector.load(weights, device, SCORE_THRESHOLD, engine, amp, tiles, tile_overlap, mirror)
    world.say(*detector.description.notes)
    dataset = source.load("val", detector.description.categories)
    if dataset.problems and world.is_first:
        print(dataset.problems.message())
    named = output or beside or weights.parent
    output = output or beside or _beside(weights, dataset)
    make_folder(output, named)
    busy = f"{output}: another eval.sh or infer.sh is at work there: wait for its end, or name another --output-dir"
    with held(output, busy) if world.is_first else nullcontext():
        count = workers_for(device, workers)
        if detector.tiling and workers is None:
            count = min(count, TILED_IMAGES_READ)
        with WorkerPool(count) as pool:
            size = detector.image_size
            evaluation = evaluate(
                detector.begin, dataset, size, batch_size, pool, source.strict, world, tiling=detector.tiling
            )
        complete = True
        if evaluation is not None:  # in the first process
            _report(evaluation, weights, dataset, output, mirror)
            complete = not evaluation.unreadable
            if verify:
                verification = verification_of(evaluation.metrics, evaluation.results, dataset)
                print(f"\n{verification.table()}")
                complete &= verification.problem() is None
    world.last_barrier()
    return 0 if complete else 1


def _beside(weights: Path, dataset: Dataset) -> Path:
    """Where the figures go: with the weights; those of a run on other data than its own into a folder of theirs."""
    folder = weights.parent
    try:
        own = read_json_as(folder / "environment.json", Environment)["data"]["val"]["sha256"]
    except (OSError, ValueError, KeyError):
        return folder  # no run, or one that says nothing of its data
    sha256 = str(dataset.fingerprint()["sha256"])
    return folder if own == sha256 else folder / EVALUATIONS / sha256[:8]


def _report(evaluation: Evaluation, weights: Path, dataset: Dataset, output: Path, mirror: bool) -> None:
    about = f"{weights} on {dataset.name}, {len(dataset.samples) - len(evaluation.unreadable)} images"
    about += f", on {evaluation.tiling} too" if evaluation.tiling else ""
    about += ", mirrored too" if mirror else ""
    print(f"{about}\n{evaluation.table()}")
    metrics = evaluation.as_json() | ({"mirror": True} if mirror else {})
    if not evaluation.nothing_to_find:
        best = metrics["best_f1"]
        print(
            f"\nF1 is best, {best['f1']:.3f}, for detections scored above {best['score_threshold']:.2f}: "
            f"precision {best['precision']:.3f}, recall {best['recall']:.3f}"
        )
    make_folder(output, output)  # it may have been removed meanwhile
    write_json(output / "coco_metrics.json", metrics)
    evaluation.results.write(output / "detections.json")
    write_evaluation_page(evaluation, metrics, about, output)
    for message in evaluation.unreadable:
        print(f"left out: {message}")
    print(f"written: {output / 'coco_metrics.json'}, {output / 'detections.json'}")
    print(f"see what is found and missed: open {output / REPORT} in a browser")
