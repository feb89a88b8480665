"""What infer.sh does with its options: on images with what is left of an earlier call, or on videos."""

import os
import sys
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tqdm import tqdm

from ssd300_vgg16.boxes import xyxy_to_xywh
from ssd300_vgg16.data.images import ImageError
from ssd300_vgg16.deploy.session import is_exported, resolve_engine
from ssd300_vgg16.detection.files import LABELS, ImageFile, ImageId, image_files, image_ids
from ssd300_vgg16.detection.pipeline import DetectorProcesses, detect_each
from ssd300_vgg16.detection.results import (
    SETTINGS,
    JsonList,
    Progress,
    progress_of,
    refuse_others_labels,
    settings_of,
    write_names,
    write_table,
)
from ssd300_vgg16.detection.video import detect_on_videos, result_places
from ssd300_vgg16.detector import BATCH_ON_CPU, BATCH_ON_GPU, Detections, Detector
from ssd300_vgg16.distributed.job import job_from
from ssd300_vgg16.errors import Stopped, UserError
from ssd300_vgg16.files import write_json
from ssd300_vgg16.folders import held, make_folder, refuse_unwritable
from ssd300_vgg16.fonts import missing_font
from ssd300_vgg16.report.results_page import DetectionsPage
from ssd300_vgg16.signals import StopRequest
from ssd300_vgg16.text import listed
from ssd300_vgg16.tiles import show_on
from ssd300_vgg16.weights.locate import refuse_run

DETECTIONS, TABLE = "detections.json", "detections.csv"


@dataclass(frozen=True)
class DetectionOptions:
    """What infer.sh is asked for. device, engine, amp, tiles, mirror: as of `Detector.load`."""

    images: list[Path]
    videos: list[str]  # or cameras; where there are some, there are no images
    weights: Path
    score_threshold: float
    output_dir: Path
    max_detections: int | None  # per image or frame; None: all
    image_ids: Path | None  # COCO annotations
    save_txt: bool
    save_csv: bool
    save_crop: bool
    resume: bool
    device: str | None
    batch_size: int | None  # None: what suits the device
    engine: str
    amp: bool
    tiles: int | str | None
    tile_overlap: float
    mirror: bool


def detect(options: DetectionOptions) -> int:
    """Detect; returns the exit status: 0, or 1 if an image or video could not be read, or not to its end."""
    refuse_run(options.output_dir)
    return _on_videos(options) if options.videos else _on_images(options)


def _on_videos(options: DetectionOptions) -> int:
    for name in ("resume", "image_ids", "save_txt", "save_csv", "save_crop"):
        if getattr(options, name):
            raise UserError(f"--{name.replace('_', '-')}: it is for images, not for videos")
    if job_from(os.environ):
        raise UserError("NPROC: one process does all frames of a video: leave NPROC out")
    places = result_places(options.videos, options.output_dir)
    refuse_unwritable(options.output_dir)
    detector, batch_size = _load(options)
    assert isinstance(detector, Detector)  # without NPROC
    return detect_on_videos(detector, options.videos, places, options.max_detections, batch_size)


def _on_images(options: DetectionOptions) -> int:
    output = options.output_dir
    files = image_files(_ids(options), output, options.save_txt, options.save_crop)
    refuse_unwritable(output)
    busy = f"{output}: another infer.sh or eval.sh is at work there: wait for its end, or name another --output-dir"
    there = output.is_dir()  # a new folder is not made before the detector is known to be good
    with ExitStack() as stack:
        if there:
            stack.enter_context(held(output, busy))
        if options.save_txt:
            refuse_others_labels(output, output / LABELS)
        # Before the detector, whose loading takes seconds.
        settings = settings_of(
            options.weights,
            files,
            score_threshold=options.score_threshold,
            max_detections=options.max_detections,
            save_txt=options.save_txt,
            save_crop=options.save_crop,
            **({"tiles": options.tiles, "tile_overlap": options.tile_overlap} if options.tiles else {}),
            **({"mirror": True} if options.mirror else {}),
        )
        progress = progress_of(output / DETECTIONS, files, settings) if options.resume else Progress()
        detector, batch_size = _load(options)
        make_folder(output, output)
        if not there:
            stack.enter_context(held(output, busy))
        if options.save_txt:
            write_names(output, detector.description.categories)
        if not progress.end:
            part = JsonList.part_of(output / DETECTIONS)
            if options.resume or part.exists():
                print(f"nothing of {part} is gone on with: begins with the first image")
            part.unlink(missing_ok=True)
            write_json(output / SETTINGS, settings)
        status = _detect_on(files, progress, detector, batch_size, options)
        if options.save_csv:
            write_table(output / TABLE, (row for row, _ in JsonList.rows(output / DETECTIONS)))
        (output / SETTINGS).unlink(missing_ok=True)
        return status


def _ids(options: DetectionOptions) -> dict[Path, ImageId]:
    """The ids of those images that the annotations name, the others are told; without any the images' numbers."""
    images, annotations = options.images, options.image_ids
    if annotations is None:
        return {image: number for number, image in enumerate(images, start=1)}
    ids = image_ids(annotations, images)
    if others := [str(image) for image in images if image not in ids]:
        print(f"not named by {annotations}, and left out: {len(others)} of {len(images)} images: {listed(others, 1)}")
    return ids


def _load(options: DetectionOptions) -> tuple[Detector | DetectorProcesses, int]:
    """A detector; with NPROC in the environment, as many. And how many images it takes at a time."""
    weights, device, engine, amp = options.weights, options.device, options.engine, options.amp
    seen = options.tiles, options.tile_overlap, options.mirror
    detector: Detector | DetectorProcesses
    job = job_from(os.environ)
    if job is None:
        detector = Detector.load(weights, device, options.score_threshold, engine, amp, *seen)
    else:
        if job.hosts > 1:
            raise UserError(f"NNODES={job.hosts}: infer.sh is for one machine; give each its own images")
        engine, device = resolve_engine(engine, device, exported=is_exported(weights), amp=amp)
        if device not in ("cpu", "cuda"):
            raise UserError(f"--device {device}: several processes take GPUs 0, 1, ... in turn: write cuda")
        detector = DetectorProcesses(job.processes, weights, device, options.score_threshold, engine, amp, *seen)
    for note in detector.description.notes:
        print(note)
    _tell_of_missing_font([category.name for category in detector.description.categories])
    return detector, options.batch_size or (BATCH_ON_CPU if detector.device == "cpu" else BATCH_ON_GPU)


def _tell_of_missing_font(names: list[str]) -> None:
    if notice := missing_font(names):
        print(notice)


def _detect_on(
    files: list[ImageFile],
    progress: Progress,
    detector: Detector | DetectorProcesses,
    batch_size: int,
    options: DetectionOptions,
) -> int:
    output = options.output_dir
    broken, page, done = [], DetectionsPage(detector.description.categories), len(progress.rows)
    for path, earlier in progress.detections():
        page.add(path, earlier)
    if progress.end:
        print(f"{done} of {len(files)} images are done")
    elif (output / DETECTIONS).exists():
        print(f"{output} holds an earlier call's detections: {DETECTIONS} and pictures of the same names are replaced")
    left = [file for file in files if file not in progress.rows]
    each = detector.detect_each if isinstance(detector, DetectorProcesses) else partial(detect_each, detector)
    results = JsonList(output / DETECTIONS, progress.end, sum(map(len, progress.rows.values())))
    bar = tqdm(total=len(files), initial=done, unit="image", miniters=0, disable=None)

    def after_tiles(tiles: int, count: int) -> None:
        show_on(bar, tiles, count)
        if stop.signal_number is not None and tiles < count:
            raise Stopped(stop.signal_number)

    with (
        StopRequest() as stop,
        suppress(Stopped),
        results,
        closing(each(left, options.max_detections, batch_size, after_tiles)) as detections_of_each,
        bar,
    ):
        for file, detections in detections_of_each:
            if isinstance(detections, ImageError):
                broken.append(str(detections))
            else:
                results.add(_as_json(detections, file))
                page.add(file.path, detections)
            done += 1
            bar.update()
            if stop.signal_number is not None and done < len(files):
                raise Stopped(stop.signal_number)  # so that the list does not look complete
    where = DETECTIONS if done == len(files) else JsonList.part_of(Path(DETECTIONS))
    print(f"{done - len(broken)} images, {results.count} detections: pictures and {where} are in {output}")
    if done > len(broken):
        place = page.write(output, str(options.weights), options.score_threshold)
        print(f"look at them: open {place} in a browser")
    for message in broken:
        print(f"not read: {message}", file=sys.stderr)
    if stop.signal_number is not None and done < len(files):
        print(f"Stopped after {done} of {len(files)} images. Go on with: the same, and --resume")
        raise Stopped(stop.signal_number)
    return 1 if broken else 0


def _as_json(detections: Detections, file: ImageFile) -> list[dict]:
    """Detections of one image in COCO's results format, with file and category names added."""
    assert detections.category_ids is not None  # a detector knows them
    boxes, scores = xyxy_to_xywh(detections.boxes).tolist(), detections.scores.tolist()
    return [
        {
            "image_id": file.image_id,
            "file_name": str(file.path),
            "category_id": category_id,
            "category_name": name,
            "bbox": [round(value, 2) for value in box],
            "score": round(score, 5),
        }
        for box, score, category_id, name in zip(
            boxes, scores, detections.category_ids.tolist(), detections.names, strict=True
        )
    ]
