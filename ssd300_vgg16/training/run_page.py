"""A run's page, run.html, kept up to date while the run goes on; and what a run's folder says, read for a page.

All that the page shows is in the folder: metrics.jsonl, options.json, environment.json, coco_metrics.json, and
run_page.json, which holds the state and the pictures.
"""

import base64
import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from ssd300_vgg16.boxes import xyxy_to_xywh
from ssd300_vgg16.data.dataset import Category, Sample
from ssd300_vgg16.data.loader import BatchConfig, training_batches
from ssd300_vgg16.data.matching import objects_of
from ssd300_vgg16.data.sizes import read_as_annotated
from ssd300_vgg16.data.workers import WorkerPool
from ssd300_vgg16.errors import UserError
from ssd300_vgg16.files import write_atomically
from ssd300_vgg16.metrics.coco_results import CocoResults
from ssd300_vgg16.report.run_page import RUNNING, SHOWN_SCORE, Album, Environment, Metrics, Run, run_page
from ssd300_vgg16.schema import read_json_as
from ssd300_vgg16.text import printable
from ssd300_vgg16.training.run_folder import ENVIRONMENT, METRICS, read_metrics, read_options

PAGE, ALBUM = "run.html", "run_page.json"
TRAINING_PICTURES, VALIDATION_PICTURES, EVALUATIONS = 8, 6, 5
SIDE = 256  # pixels of a validation picture, at most
JPEG_QUALITY = 80
MAX_MARKS = 30  # on a picture
# The page is written this many seconds after the last time, or this many times the seconds that it took.
MIN_WAIT, MIN_WAIT_SHARE = 5, 500


def read_run(folder: Path) -> Run:
    """What the folder holds of a run. Raises UserError if it holds none, or a file is damaged."""
    options = read_options(folder)
    rows = read_metrics(folder) if (folder / METRICS).exists() else []
    environment, metrics = _read(folder / ENVIRONMENT, Environment), _read(folder / "coco_metrics.json", Metrics)
    album = _read(folder / ALBUM, Album)
    return Run(printable(str(folder)), options, environment, rows, metrics, album)


def _read(path: Path, kind: type) -> dict:
    try:
        return read_json_as(path, kind)
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is damaged ({getattr(error, 'strerror', None) or error}): remove it") from error


def write_run_page(folder: Path) -> Path:
    """Write the page of the run in this folder; returns its path. Raises UserError if it cannot be written."""
    write_atomically(folder / PAGE, run_page(read_run(folder), time.time()))
    return folder / PAGE


class RunPage:
    """The page of a run at work. Whatever goes wrong with it is told once, and the run goes on."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._album: dict = {}
        self._due, self._told = 0.0, False

    def begin(
        self, categories: Sequence[Category], samples: Sequence[Sample], config: BatchConfig, pool: WorkerPool
    ) -> None:
        """The run begins or goes on; training pictures are made by its pool, unless they are there."""
        with self._harmless():
            self._album = _read(self._folder / ALBUM, Album)
            names = {category.label: category.name for category in categories}
            if "samples" not in self._album:
                self._album["samples"] = _training_pictures(samples, config, pool, names)
            self._album |= {"state": RUNNING, "classes": list(names.values())}
            self._save_album()
            self._write()

    def renew(self) -> None:
        """Write the page anew, if that takes far less time than has gone by."""
        with self._harmless():
            if time.monotonic() >= self._due:
                self._write()

    def add_evaluation(self, results: CocoResults, step: int, epoch: int) -> None:
        """Show the detections of an evaluation."""
        with self._harmless():
            if "validation" not in self._album:
                self._album["validation"] = _validation_pictures(results)
            images = [_detections(results, picture) for picture in self._album["validation"]]
            kept = [one for one in self._album.get("detections", []) if one["step"] < step]
            kept.append({"step": step, "epoch": epoch, "images": images})
            if len(kept) > EVALUATIONS:  # the first and the last stay, and of the others those that are far apart
                del kept[min(range(1, len(kept) - 1), key=lambda at: kept[at + 1]["step"] - kept[at - 1]["step"])]
            self._album["detections"] = kept
            self._save_album()
        self.renew()

    def end(self, state: str) -> None:
        """The run is over: how, in words."""
        with self._harmless():
            self._album["state"] = state
            self._save_album()
            self._write()

    @contextmanager
    def _harmless(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # of any kind: no page is worth a training
            if not self._told:
                tqdm.write(f"warning: {self._folder / PAGE} is not kept up to date ({error}); the run goes on")
            self._told = True

    def _save_album(self) -> None:
        write_atomically(self._folder / ALBUM, json.dumps(self._album))

    def _write(self) -> None:
        since = time.monotonic()
        try:
            write_run_page(self._folder)
        finally:
            now = time.monotonic()
            self._due = now + max(MIN_WAIT, MIN_WAIT_SHARE * (now - since))


def _training_pictures(
    samples: Sequence[Sample], config: BatchConfig, pool: WorkerPool, names: dict[int, str]
) -> list[dict]:
    """The first training images with what they are matched to, which depends on the seed alone."""
    few = replace(config, batch_size=min(TRAINING_PICTURES, config.images_per_epoch(len(samples))))
    batch = next(training_batches(samples, few, 0, pool))
    pictures = []
    for file, image, offsets, labels in zip(batch.files, batch.images, batch.offsets, batch.labels, strict=True):
        if not labels.any():
            continue  # it holds no object, or cannot be read, as the training will tell
        boxes, of_box = objects_of(offsets, labels, config.default_boxes)
        marks = _marks([names[label] for label in of_box.tolist()], xyxy_to_xywh(boxes))
        pictures.append(_picture(Path(file), image.transpose(1, 2, 0), marks))
    return pictures


def _validation_pictures(results: CocoResults) -> list[dict]:
    """Images with objects from all over the set, with their labels; scale: from pixels of the annotation to theirs."""
    names = {category.label: category.name for category in results.categories}
    filled = [sample for sample in results.samples if len(sample.labels)]
    places = np.unique(np.linspace(0, len(filled) - 1, min(VALIDATION_PICTURES, len(filled))).astype(int))
    pictures = []
    for sample in (filled[place] for place in places):
        decoded, (height, width) = read_as_annotated(sample)
        shrink = min(1, SIDE / max(decoded.size))
        size = max(1, round(decoded.size[1] * shrink)), max(1, round(decoded.size[0] * shrink))
        scale = [size[0] / width, size[1] / height]
        marks = _marks([names[label] for label in sample.labels.tolist()], xyxy_to_xywh(sample.boxes) * (scale * 2))
        pixels = cv2.resize(decoded.pixels, size, interpolation=cv2.INTER_AREA)
        pictures.append(_picture(sample.path, pixels, marks) | {"path": str(sample.path), "scale": scale})
    return pictures


def _detections(results: CocoResults, picture: dict) -> list[list]:
    """The marks of what was detected on a validation picture."""
    image = next((at for at, sample in enumerate(results.samples) if str(sample.path) == picture["path"]), -1)
    rows = np.flatnonzero((results.images == image) & (results.scores >= SHOWN_SCORE))
    names = [results.categories[number].name for number in results.classes[rows].tolist()]
    return _marks(names, results.boxes_xywh[rows] * (picture["scale"] * 2), results.scores[rows].tolist())


def _marks(names: list[str], boxes_xywh: np.ndarray, scores: list[float] | None = None) -> list[list]:
    """Rows of name, x, y, width, height and score, which is None for labels."""
    boxes = boxes_xywh.astype(np.float64).round(1).tolist()
    given: list = scores or [None] * len(names)
    marks = [[name, *box, score and round(score, 3)] for name, box, score in zip(names, boxes, given, strict=True)]
    return marks[:MAX_MARKS]


def _picture(path: Path, pixels: np.ndarray, marks: list[list]) -> dict:
    """Pixels uint8 [H, W, 3] RGB as JPEG in base64, with their marks."""
    _, jpeg = cv2.imencode(".jpg", pixels[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    content = base64.b64encode(jpeg.tobytes()).decode()
    return {"file": path.name, "jpeg": content, "size": [pixels.shape[1], pixels.shape[0]], "marks": marks}
