"""Detect objects on images: writes them with boxes drawn in, and detections.json.

bash infer.sh                                  the newest run, on images of its validation set
bash infer.sh PATH...                          images, folders (searched through) or globs
bash infer.sh clip.mp4                         videos, or a camera by its number, as 0: docs/video.md
bash infer.sh --weights runs/RUN --score-threshold 0.5 photos/
NPROC=2 bash infer.sh photos/                  on two GPUs, or in two processes on the CPU
bash infer.sh --weights ssd300_vgg16_coco photos/                  the published detector, downloaded
"""

import argparse
import json
import os
import sys
from collections import Counter
from contextlib import closing
from itertools import islice
from pathlib import Path

# First: it chooses the kernels of numpy's BLAS, which must be done before numpy is loaded.
from ssd300_vgg16.cli import command_line

# isort: split
from tqdm import tqdm

from ssd300_vgg16.boxes import xyxy_to_xywh
from ssd300_vgg16.data.images import ImageError, find_images
from ssd300_vgg16.data.videos import VIDEO_SUFFIXES, find_videos
from ssd300_vgg16.deploy.exported import is_exported
from ssd300_vgg16.deploy.session import resolve_engine
from ssd300_vgg16.detect_files import ImageFile, JsonList, detect_each
from ssd300_vgg16.detect_in_processes import DetectorProcesses
from ssd300_vgg16.detect_video import detect_on_videos, result_places
from ssd300_vgg16.detector import Detections, Detector
from ssd300_vgg16.distributed.job import job_from
from ssd300_vgg16.errors import Stopped, UserError
from ssd300_vgg16.files import refuse_unwritable
from ssd300_vgg16.report.results_page import DetectionsPage
from ssd300_vgg16.signals import StopRequest
from ssd300_vgg16.text import listed
from ssd300_vgg16.training.run_folder import newest_run, read_options, run_of
from ssd300_vgg16.weights.locate import EVALUATIONS, is_published_name, refuse_run

SAMPLES_WITHOUT_PATHS = 12
BATCH_ON_GPU = 8
DETECTIONS = "detections.json"
METRICS = "coco_metrics.json"
BEST = "best"
MAX_DETECTIONS = 200  # network.postprocess's, which would bring OneFlow before the options are known to be good


def build_parser() -> argparse.ArgumentParser:
    """The options of infer.sh."""
    parser = command_line.Parser(prog="infer.sh", description=__doc__)
    parser.add_argument(
        "paths", nargs="*", metavar="PATH", help="images, folders, globs; or videos, or a camera's number"
    )
    parser.add_argument(
        "--weights",
        metavar="W",
        help="run folder, file of weights, exported ONNX model, or name of published weights (default: the newest run)",
    )
    parser.add_argument(
        "--output-dir", type=command_line.folder, metavar="DIR", default="detections", help="(default: %(default)s)"
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
        type=_max_detections,
        default=100,
        metavar="N",
        help="per image, the best ones (default: %(default)s)",
    )
    parser.add_argument(
        "--skip",
        type=command_line.natural,
        default=0,
        metavar="N",
        help="leave out the first N images: to go on where another call was stopped",
    )
    parser.add_argument("--device", help="cpu, cuda or cuda:N (default: cuda where it works, else cpu)")
    parser.add_argument(
        "-b",
        "--batch-size",
        type=command_line.positive_int,
        metavar="N",
        help=f"images at a time (default: 1 on the CPU, which larger ones make no faster, {BATCH_ON_GPU} on a GPU)",
    )
    command_line.add_engine_option(parser)
    return parser


def _max_detections(text: str) -> int:
    count = command_line.positive_int(text)
    if count > MAX_DETECTIONS:
        raise argparse.ArgumentTypeError(f"the detector gives {MAX_DETECTIONS} for each image at most")
    return count


def main(arguments: list[str]) -> int:
    """Detect; returns the exit status: 0, or 1 if an image could not be read."""
    options = build_parser().parse_args(arguments)
    output, skip = Path(options.output_dir), options.skip
    refuse_run(output)
    if videos := find_videos(options.paths):
        return _on_videos(videos, options, output)
    others: Counter[str] = Counter()
    # Before weights: a wrong path is told at once.
    images = find_images(options.paths, leave_out=output, others=others) if options.paths else None
    if others:
        advice = " (videos have to be named themselves)" if VIDEO_SUFFIXES.intersection(others) else ""
        left_out = listed([f"{n} {suffix}" for suffix, n in others.items()])
        print(f"no image by their names, and left out: {left_out}{advice}")
    weights = newest_run() if options.weights is None else Path(options.weights)
    images = images or _samples_of(weights)
    # Before the detector, whose loading takes seconds.
    if skip >= len(images):
        raise UserError(f"--skip {skip}: there are {len(images)} images, of which none would be left")
    if skip and (output / DETECTIONS).exists():
        raise UserError(f"--skip {skip}: {output / DETECTIONS} would be overwritten; name another --output-dir")
    detector, batch_size = _ready(weights, options, output)
    return _detect_all(detector, weights, images, output, options.max_detections, batch_size, skip)


def _on_videos(videos: list[str], options: argparse.Namespace, output: Path) -> int:
    if options.skip:
        raise UserError(f"--skip {options.skip}: it is for images, not for videos")
    if job_from(os.environ):
        raise UserError("NPROC: one process does all frames of a video: leave NPROC out")
    places = result_places(videos, output)
    weights = newest_run() if options.weights is None else Path(options.weights)
    detector, batch_size = _ready(weights, options, output)
    assert isinstance(detector, Detector)  # without NPROC
    return detect_on_videos(detector, videos, places, options.max_detections, batch_size)


def _ready(weights: Path, options: argparse.Namespace, output: Path) -> tuple[Detector | DetectorProcesses, int]:
    """The detector, and how many images it takes at a time."""
    threshold = _best_threshold(weights) if options.score_threshold == BEST else options.score_threshold
    refuse_unwritable(output)
    detector = _load(weights, options.device, threshold, options.engine)
    for note in detector.description.notes:
        print(note)
    _tell_of_missing_font([category.name for category in detector.description.categories])
    return detector, options.batch_size or (1 if detector.device == "cpu" else BATCH_ON_GPU)


def _fraction_or_best(text: str) -> float | str:
    return text if text == BEST else command_line.fraction(text)


def _best_threshold(weights: Path) -> float:
    """The score threshold of the best F1 in the last evaluation of these weights."""
    beside = weights if weights.is_dir() else weights.parent
    metrics = (EVALUATIONS / weights if is_published_name(weights) else beside) / METRICS
    try:
        return command_line.fraction(json.loads(metrics.read_bytes())["best_f1"]["score_threshold"])
    except (OSError, ValueError, LookupError, TypeError, argparse.ArgumentTypeError) as error:
        raise UserError(
            f"--score-threshold {BEST}: {metrics} is not there or has no threshold; "
            f"bash eval.sh --weights {weights} writes it"
        ) from error


def _load(weights: Path, device: str | None, score_threshold: float, engine: str) -> Detector | DetectorProcesses:
    """A detector; with NPROC in the environment, as many."""
    job = job_from(os.environ)
    if job is None:
        return Detector.load(weights, device, score_threshold, engine)
    if job.hosts > 1:
        raise UserError(f"NNODES={job.hosts}: infer.sh is for one machine; give each its own images, without NNODES")
    engine, device = resolve_engine(engine, device, exported=is_exported(weights))
    if device not in ("cpu", "cuda"):
        raise UserError(f"--device {device}: several processes take GPUs 0, 1, ... in turn: write cuda")
    return DetectorProcesses(job.processes, weights, device, score_threshold, engine)


def _tell_of_missing_font(names: list[str]) -> None:
    if not "".join(names).isascii():
        from ssd300_vgg16.fonts import missing_font  # here, as matplotlib takes its time

        if notice := missing_font(names):
            print(notice)


def _samples_of(weights: Path) -> list[Path]:
    """Some images of the validation set that a run was evaluated on."""
    if is_published_name(weights):
        raise UserError(f"--weights {weights}: name images or folders to detect on")
    if not weights.exists():
        raise UserError(f"--weights {weights}: there is no such file or folder")
    try:
        images = read_options(run_of(weights))["val_images_folder"]
    except (UserError, KeyError) as error:
        raise UserError(
            "no PATH given, and the weights do not come from a run whose images could be shown: name images or folders"
        ) from error
    return find_images([images])[:SAMPLES_WITHOUT_PATHS]


def _detect_all(
    detector: Detector | DetectorProcesses,
    weights: Path,
    images: list[Path],
    output: Path,
    max_detections: int,
    batch_size: int,
    skip: int,
) -> int:
    output.mkdir(parents=True, exist_ok=True)
    numbered = map(ImageFile, range(1, len(images) + 1), images, _picture_places(images, output))
    broken, done, page = [], skip, DetectionsPage(detector.description.categories)
    if (output / DETECTIONS).exists():
        print(f"{output} holds an earlier call's detections: {DETECTIONS} and pictures of the same names are replaced")
    with StopRequest() as stop, JsonList(output / DETECTIONS) as results:
        files = islice(numbered, skip, None)
        if isinstance(detector, Detector):
            detections_of_each = detect_each(detector, files, max_detections, batch_size)
        else:
            detections_of_each = detector.detect_each(files, max_detections, batch_size)
        with closing(detections_of_each), tqdm(total=len(images), initial=skip, unit="image", disable=None) as bar:
            for file, detections in detections_of_each:
                if isinstance(detections, ImageError):
                    broken.append(str(detections))
                else:
                    results.add(_as_json(detections, file.number, str(file.path), detector))
                    page.add(file.path, detections)
                done = file.number
                bar.update()
                if stop.made:
                    break
    detected = done - skip - len(broken)
    print(f"{detected} images, {results.count} detections: pictures and {DETECTIONS} are in {output}")
    if detected:
        print(f"look at them: open {page.write(output, str(weights), detector.score_threshold)} in a browser")
    for message in broken:
        print(f"not read: {message}", file=sys.stderr)
    if stop.signal_number is not None and done < len(images):
        print(
            f"Stopped after {done} of {len(images)} images. Go on with: the same, --skip {done}, another --output-dir"
        )
        raise Stopped(stop.signal_number)
    return 1 if broken else 0


def _picture_places(images: list[Path], output: Path) -> list[Path]:
    """Where each image's picture goes: below output, as the images lie below the folder that they share.

    Raises UserError if a picture would overwrite an image.
    """
    places = [Path(os.path.abspath(image)) for image in images]  # noqa: PTH100 - resolve() would follow links
    base = os.path.commonpath([place.parent for place in places])
    # Other formats keep their suffix, as a.jpg and a.png may lie side by side; and so may a.png and a.png.jpg.
    taken = {place for place in places if place.suffix == ".jpg"}
    names = {}
    for place in places:
        name = place
        while place.suffix != ".jpg" and (name == place or name in taken):
            name = name.with_name(f"{name.name}.jpg")
        taken.add(name)
        names[place] = name
    pictures = [output / names[place].relative_to(base) for place in places]
    lost = set(map(os.path.realpath, pictures)) & set(map(os.path.realpath, places))
    if lost:
        raise UserError(f"--output-dir {output}: a picture would overwrite the image {min(lost)}; name another folder")
    return pictures


def _as_json(detections: Detections, number: int, file_name: str, detector: Detector | DetectorProcesses) -> list[dict]:
    """Detections of one image in COCO's results format, with file and category names added."""
    ids = {category.label: category.id for category in detector.description.categories}
    boxes = xyxy_to_xywh(detections["boxes"]).tolist()
    scores, labels = detections["scores"].tolist(), detections["labels"].tolist()
    return [
        {
            "image_id": number,
            "file_name": file_name,
            "category_id": ids.get(label, label),
            "category_name": name,
            "bbox": [round(value, 2) for value in box],
            "score": round(score, 5),
        }
        for box, score, label, name in zip(boxes, scores, labels, detections["names"], strict=True)
    ]


if __name__ == "__main__":
    command_line.run(main, "infer.sh")
