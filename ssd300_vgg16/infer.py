"""Detect objects on images: writes them with boxes drawn in, and detections.json.

bash infer.sh                                  the newest run, on images of its validation set
bash infer.sh PATH...                          images, folders (searched through) or globs
bash infer.sh clip.mp4                         videos, or a camera by its number, as 0: docs/video.md
bash infer.sh --weights runs/RUN --score-threshold 0.5 photos/
bash infer.sh --tiles 640 photos/              small objects in large images: docs/tiles.md
NPROC=2 bash infer.sh photos/                  on two GPUs, or in two processes on the CPU
bash infer.sh --weights ssd300_vgg16_coco photos/                  the published detector, downloaded
"""

import argparse
from collections import Counter
from dataclasses import replace
from pathlib import Path

# First: it chooses the kernels of numpy's BLAS, which must be done before numpy is loaded.
from ssd300_vgg16.cli import command_line
from ssd300_vgg16.cli.streams import outlive_readers

# isort: split
from ssd300_vgg16.data.image_files import find_images
from ssd300_vgg16.data.videos import VIDEO_SUFFIXES, find_videos
from ssd300_vgg16.deploy.session import AUTO
from ssd300_vgg16.detection.run import TABLE, DetectionOptions, detect
from ssd300_vgg16.detector import BATCH_ON_CPU, BATCH_ON_GPU
from ssd300_vgg16.errors import UserError
from ssd300_vgg16.network.postprocess import DETECTIONS_PER_IMAGE
from ssd300_vgg16.report.run_page import Metrics
from ssd300_vgg16.schema import read_json_as
from ssd300_vgg16.text import listed
from ssd300_vgg16.tiles import Tiling
from ssd300_vgg16.training.run_folder import advice_on_tiles, newest_run, read_options, run_of
from ssd300_vgg16.weights.locate import EVALUATIONS, is_published_name

SAMPLES_WITHOUT_PATHS = 12
MAX_DETECTIONS = 100
BEST = "best"


def build_parser() -> argparse.ArgumentParser:
    """The options of infer.sh."""
    parser = command_line.Parser(prog="infer.sh", description=__doc__)
    parser.add_argument(
        "paths", nargs="*", metavar="PATH", help="images, folders, globs; or videos, or a camera's number"
    )
    parser.add_argument(
        "--weights",
        type=Path,
        metavar="W",
        help="run folder, file of weights, exported ONNX model, or name of published weights (default: the newest run)",
    )
    parser.add_argument(
        "--output-dir", type=_folder, metavar="DIR", default="detections", help="(default: %(default)s)"
    )
    parser.add_argument(
        "--score-threshold",
        type=_fraction_or_best,
        default=0.25,
        metavar="S",
        help="show and write detections scored above; best: where eval.sh found the best F1 (default: %(default)s)",
    )
    parser.add_argument(
        "--max-detections",
        type=command_line.positive_int,
        metavar="N",
        help=f"per image, the best ones (default: {MAX_DETECTIONS}; with --tiles all)",
    )
    parser.add_argument(
        "--image-ids",
        type=Path,
        metavar="FILE",
        help="COCO annotations: image_id in detections.json are those of its images of the same file names, and images "
        "that it does not name are left out (default: images are numbered)",
    )
    parser.add_argument(
        "--save-txt", action="store_true", help="also write labels/ and data.yaml: YOLO's text files, with scores"
    )
    parser.add_argument("--save-csv", action="store_true", help=f"also write {TABLE}, boxes as x1, y1, x2, y2")
    parser.add_argument("--save-crop", action="store_true", help="also write crops/CLASS/: the objects cut out")
    parser.add_argument(
        "--resume", action="store_true", help="go on where a call with the same options was stopped or killed"
    )
    parser.add_argument("--device", help="cpu, cuda or cuda:N (default: cuda where it works, else cpu)")
    parser.add_argument(
        "-b",
        "--batch-size",
        type=command_line.positive_int,
        metavar="N",
        help=f"images at a time (default: {BATCH_ON_GPU} on a GPU, {BATCH_ON_CPU} on the CPU: more are no faster)",
    )
    command_line.add_engine_option(parser)
    command_line.add_tile_options(parser)
    return parser


def main(arguments: list[str]) -> int:
    """Detect; returns the exit status: 0, or 1 if an image or video could not be read, or not to its end."""
    parser = build_parser()
    given = vars(parser.parse_args(arguments))
    outlive_readers("infer.sh")
    paths, weights, threshold = (given.pop(name) for name in ("paths", "weights", "score_threshold"))
    if given["tiles"] is None:
        given["max_detections"] = given["max_detections"] or MAX_DETECTIONS
        if given["max_detections"] > DETECTIONS_PER_IMAGE:
            limit = f"the detector gives {DETECTIONS_PER_IMAGE} for each image at most, or for each of its --tiles"
            parser.error(f"argument --max-detections: {limit}")
    # Before weights: a wrong path is told at once.
    videos = find_videos(paths)
    images = [] if videos or not paths else _images(paths, given["output_dir"])
    weights = weights or newest_run()
    if advice := advice_on_tiles(weights, given["tiles"]):
        print(advice)
    if not paths:
        images = samples_of(weights)
    if threshold == BEST:
        threshold = _best_threshold(weights, given["tiles"], given["tile_overlap"], given["mirror"])
    return detect(DetectionOptions(images, videos, weights, threshold, **given))


def _images(paths: list[str], output: Path) -> list[Path]:
    """The images that the paths stand for; what they hold besides is told."""
    others: Counter[str] = Counter()
    images = find_images(paths, leave_out=output, others=others)
    if others:
        advice = " (videos have to be named themselves)" if VIDEO_SUFFIXES.intersection(others) else ""
        left_out = listed([f"{n} {suffix}" for suffix, n in others.items()])
        print(f"no image by their names, and left out: {left_out}{advice}")
    return images


def samples_of(weights: Path) -> list[Path]:
    """Some images of the validation set that a run was evaluated on."""
    if not weights.exists() and not is_published_name(weights):
        raise UserError(f"--weights {weights}: there is no such file or folder")
    try:
        images = read_options(run_of(weights))["val_images_folder"]
    except (UserError, KeyError) as error:
        raise UserError(
            f"--weights {weights}: name images or folders, as no run with images goes with these weights"
        ) from error
    return find_images([images])[:SAMPLES_WITHOUT_PATHS]


def _best_threshold(weights: Path, tiles: int | str | None, overlap: float, mirror: bool) -> float:
    """The score threshold of the best F1 in the last evaluation of these weights, and what is to be said of it."""
    beside = weights if weights.is_dir() else weights.parent
    metrics = (EVALUATIONS / weights if is_published_name(weights) else beside) / "coco_metrics.json"
    try:
        found = read_json_as(metrics, Metrics)
        threshold = command_line.fraction(str(found["best_f1"]["score_threshold"]))
        found_on = Tiling(found["tiles"]["side"], found["tiles"]["overlap"]) if "tiles" in found else None
    except (OSError, ValueError, KeyError, argparse.ArgumentTypeError, UserError) as error:
        raise UserError(
            f"--score-threshold {BEST}: {metrics} is not there or has no threshold; "
            f"bash eval.sh --weights {weights} writes it"
        ) from error
    mirrored = bool(found.get("mirror"))
    how = (f"on {found_on}" if found_on else "without tiles") + ", mirrored too" * mirrored
    print(f"--score-threshold {BEST}: {threshold:g}, found {how}")
    # Of auto's side a line of its own tells, once the model is known.
    auto = found_on and replace(found_on, overlap=overlap)
    asked = auto if tiles == AUTO else tiles and Tiling(int(tiles), overlap)
    if asked != found_on or (tiles and not found_on) or mirror != mirrored:
        same = (f" --tiles {tiles} --tile-overlap {overlap:g}" if tiles else "") + " --mirror" * mirror
        print(f"  which need not be the best here; bash eval.sh --weights {weights}{same} finds that one")
    return threshold


def _fraction_or_best(text: str) -> float | str:
    return text if text == BEST else command_line.fraction(text)


def _folder(text: str) -> Path:
    return Path(command_line.folder(text))


if __name__ == "__main__":
    command_line.run(main, "infer.sh")
