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
from contextlib import closing, suppress
from pathlib import Path

# First: it chooses the kernels of numpy's BLAS, which must be done before numpy is loaded.
from ssd300_vgg16.cli import command_line

# isort: split
from tqdm import tqdm

from ssd300_vgg16.boxes import xyxy_to_xywh
from ssd300_vgg16.data.image_files import find_images
from ssd300_vgg16.data.images import ImageError
from ssd300_vgg16.data.videos import VIDEO_SUFFIXES, find_videos
from ssd300_vgg16.deploy.session import is_exported, resolve_engine
from ssd300_vgg16.detection.files import LABELS, ImageFile, JsonList, detect_each, image_files
from ssd300_vgg16.detection.formats import refuse_others_labels, write_names, write_table
from ssd300_vgg16.detection.image_ids import ImageId, image_ids
from ssd300_vgg16.detection.interrupted import SETTINGS, Progress, progress_of, settings_of
from ssd300_vgg16.detection.processes import DetectorProcesses
from ssd300_vgg16.detection.video import detect_on_videos, result_places
from ssd300_vgg16.detector import BATCH_ON_GPU, Detections, Detector
from ssd300_vgg16.distributed.job import job_from
from ssd300_vgg16.errors import Stopped, UserError
from ssd300_vgg16.files import refuse_unwritable, write_json
from ssd300_vgg16.report.results_page import DetectionsPage
from ssd300_vgg16.signals import StopRequest
from ssd300_vgg16.text import listed
from ssd300_vgg16.training.run_folder import newest_run, read_options, run_of
from ssd300_vgg16.weights.locate import EVALUATIONS, is_published_name, refuse_run

SAMPLES_WITHOUT_PATHS = 12
DETECTIONS, TABLE = "detections.json", "detections.csv"
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
        "--image-ids",
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
    output = Path(options.output_dir)
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
    ids = _image_ids(options.image_ids, images)
    files = image_files(list(ids), output, options.save_txt, options.save_crop)
    threshold = _best_threshold(weights) if options.score_threshold == BEST else options.score_threshold
    refuse_unwritable(output)
    if options.save_txt:
        refuse_others_labels(output, output / LABELS)
    # Before the detector, whose loading takes seconds.
    settings = settings_of(
        weights,
        ids,
        score_threshold=threshold,
        max_detections=options.max_detections,
        save_txt=options.save_txt,
        save_crop=options.save_crop,
    )
    progress = progress_of(output / DETECTIONS, files, settings) if options.resume else Progress()
    detector, batch_size = _ready(weights, threshold, options)
    output.mkdir(parents=True, exist_ok=True)
    if options.save_txt:
        write_names(output, detector.description.categories)
    if not progress.end:
        part = JsonList.part_of(output / DETECTIONS)
        if options.resume or part.exists():
            print(f"nothing of {part} is gone on with: begins with the first image")
        part.unlink(missing_ok=True)
        write_json(output / SETTINGS, settings)
    status = _detect_all(detector, weights, files, ids, output, options.max_detections, batch_size, progress)
    if options.save_csv:
        write_table(output / TABLE, (row for row, _ in JsonList.rows(output / DETECTIONS)))
    (output / SETTINGS).unlink(missing_ok=True)
    return status


def _on_videos(videos: list[str], options: argparse.Namespace, output: Path) -> int:
    for name in ("resume", "image_ids", "save_txt", "save_csv", "save_crop"):
        if vars(options)[name]:
            raise UserError(f"--{name.replace('_', '-')}: it is for images, not for videos")
    if job_from(os.environ):
        raise UserError("NPROC: one process does all frames of a video: leave NPROC out")
    places = result_places(videos, output)
    weights = newest_run() if options.weights is None else Path(options.weights)
    threshold = _best_threshold(weights) if options.score_threshold == BEST else options.score_threshold
    refuse_unwritable(output)
    detector, batch_size = _ready(weights, threshold, options)
    assert isinstance(detector, Detector)  # without NPROC
    return detect_on_videos(detector, videos, places, options.max_detections, batch_size)


def _ready(weights: Path, threshold: float, options: argparse.Namespace) -> tuple[Detector | DetectorProcesses, int]:
    """The detector, and how many images it takes at a time."""
    detector = _load(weights, options.device, threshold, options.engine, options.amp)
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


def _load(
    weights: Path, device: str | None, score_threshold: float, engine: str, amp: bool
) -> Detector | DetectorProcesses:
    """A detector; with NPROC in the environment, as many."""
    job = job_from(os.environ)
    if job is None:
        return Detector.load(weights, device, score_threshold, engine, amp)
    if job.hosts > 1:
        raise UserError(f"NNODES={job.hosts}: infer.sh is for one machine; give each its own images, without NNODES")
    engine, device = resolve_engine(engine, device, exported=is_exported(weights), amp=amp)
    if device not in ("cpu", "cuda"):
        raise UserError(f"--device {device}: several processes take GPUs 0, 1, ... in turn: write cuda")
    return DetectorProcesses(job.processes, weights, device, score_threshold, engine, amp)


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


def _image_ids(annotations: str | None, images: list[Path]) -> dict[Path, ImageId]:
    """The ids of those images that the annotations name, the others are told; without any the images' numbers."""
    if annotations is None:
        return {image: number for number, image in enumerate(images, start=1)}
    ids = image_ids(Path(annotations), images)
    if others := [str(image) for image in images if image not in ids]:
        print(f"not named by {annotations}, and left out: {len(others)} of {len(images)} images: {listed(others, 1)}")
    return {image: ids[image] for image in images if image in ids}


def _detect_all(
    detector: Detector | DetectorProcesses,
    weights: Path,
    files: list[ImageFile],
    ids: dict[Path, ImageId],
    output: Path,
    max_detections: int,
    batch_size: int,
    progress: Progress,
) -> int:
    broken, page, done = [], DetectionsPage(detector.description.categories), len(progress.rows)
    for path, earlier in progress.detections():
        page.add(path, earlier)
    left = [file for file in files if file not in progress.rows]
    if progress.end:
        print(f"{done} of {len(files)} images are done")
    elif (output / DETECTIONS).exists():
        print(f"{output} holds an earlier call's detections: {DETECTIONS} and pictures of the same names are replaced")
    results = JsonList(output / DETECTIONS, progress.end, sum(map(len, progress.rows.values())))
    with StopRequest() as stop, suppress(Stopped), results:
        if isinstance(detector, Detector):
            detections_of_each = detect_each(detector, left, max_detections, batch_size)
        else:
            detections_of_each = detector.detect_each(left, max_detections, batch_size)
        with closing(detections_of_each), tqdm(total=len(files), initial=done, unit="image", disable=None) as bar:
            for file, detections in detections_of_each:
                if isinstance(detections, ImageError):
                    broken.append(str(detections))
                else:
                    results.add(_as_json(detections, ids[file.path], str(file.path), detector))
                    page.add(file.path, detections)
                done += 1
                bar.update()
                if stop.signal_number is not None and done < len(files):
                    raise Stopped(stop.signal_number)  # so that the list does not look complete
    detected = done - len(broken)
    where = DETECTIONS if done == len(files) else JsonList.part_of(Path(DETECTIONS))
    print(f"{detected} images, {results.count} detections: pictures and {where} are in {output}")
    if detected:
        print(f"look at them: open {page.write(output, str(weights), detector.score_threshold)} in a browser")
    for message in broken:
        print(f"not read: {message}", file=sys.stderr)
    if stop.signal_number is not None and done < len(files):
        print(f"Stopped after {done} of {len(files)} images. Go on with: the same, and --resume")
        raise Stopped(stop.signal_number)
    return 1 if broken else 0


def _as_json(
    detections: Detections, image_id: ImageId, file_name: str, detector: Detector | DetectorProcesses
) -> list[dict]:
    """Detections of one image in COCO's results format, with file and category names added."""
    ids = {category.label: category.id for category in detector.description.categories}
    boxes = xyxy_to_xywh(detections.boxes).tolist()
    scores, labels = detections.scores.tolist(), detections.labels.tolist()
    return [
        {
            "image_id": image_id,
            "file_name": file_name,
            "category_id": ids.get(label, label),
            "category_name": name,
            "bbox": [round(value, 2) for value in box],
            "score": round(score, 5),
        }
        for box, score, label, name in zip(boxes, scores, labels, detections.names, strict=True)
    ]


if __name__ == "__main__":
    command_line.run(main, "infer.sh")
