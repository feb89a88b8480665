"""report.html: detections on their images, and with ground truth what is right and wrong about them.

One file that a browser opens from disk. The pictures are links to the image files, relative to the page. Beside it
stands suspicious_labels.csv, the labels to look at again: what a detector is sure of and the labels deny, and what it
sees no trace of.
"""

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ssd300_vgg16.boxes import xyxy_to_xywh
from ssd300_vgg16.data.dataset import Category
from ssd300_vgg16.detector import Detections
from ssd300_vgg16.files import write_atomically
from ssd300_vgg16.metrics.coco_results import CocoResults, object_columns
from ssd300_vgg16.metrics.errors import BACKGROUND, CLASS, ERRORS, HIT, IGNORED, Judgement
from ssd300_vgg16.report.html_page import html_page
from ssd300_vgg16.report.pictures import AsShown, pictures_of
from ssd300_vgg16.text import spreadsheet_cell

if TYPE_CHECKING:  # it brings OneFlow, which infer.sh may do without
    from ssd300_vgg16.metrics.evaluation import Evaluation

REPORT, SUSPICIOUS = "report.html", "suspicious_labels.csv"
MAX_DETECTIONS = 250_000  # on the page, the best: more would make it slow to open
MAX_SUSPICIONS = 2_000  # on the page; the CSV file has all
SCORE_STEPS = 100_000  # scores are whole numbers on the page
SURE = 0.5  # a detection is, from this score on
TRACE = 0.1  # the least score of a detection that counts as one
UNLABELLED, OTHER_CLASS, UNSEEN = "no label", "other class", "unseen label"
COLUMNS = ("suspicion", "file", "label", "detected", "score", "x", "y", "width", "height", "decision")


class DetectionsPage:
    """Detections image by image, and at the end the page about them."""

    def __init__(self, categories: Sequence[Category]) -> None:
        self._names = [category.name for category in sorted(categories, key=lambda category: category.id)]
        self._paths: list[Path] = []
        self._detections: list[Detections] = []

    def add(self, path: Path, detections: Detections) -> None:
        """The next image, and what is on it."""
        self._paths.append(path)
        self._detections.append(detections)

    def write(self, output: Path, heading: str, score_threshold: float) -> Path:
        """Write the page into the folder; returns its path. Raises UserError if it cannot be written."""
        names = list(dict.fromkeys([*self._names, *(name for each in self._detections for name in each["names"])]))
        numbers = {name: number for number, name in enumerate(names)}
        images = np.repeat(np.arange(len(self._paths)), [len(each["names"]) for each in self._detections])
        boxes = np.concatenate([np.empty((0, 4)), *(each["boxes"] for each in self._detections)])
        scores = np.concatenate([np.empty(0), *(each["scores"] for each in self._detections)])
        classes = np.array([numbers[name] for each in self._detections for name in each["names"]], dtype=np.int64)
        content = {
            "heading": heading,
            "threshold": score_threshold,
            "classes": names,
            **pictures_of(self._paths, output),
            "detections": _detections(len(self._paths), images, xyxy_to_xywh(boxes), scores, classes),
        }
        write_atomically(output / REPORT, html_page("page", "Detections", content))
        return output / REPORT


def write_evaluation_page(evaluation: "Evaluation", metrics: dict, heading: str, output: Path) -> None:
    """Write the page and the list of suspicious labels into the folder; metrics: what coco_metrics.json has.

    Raises UserError if they cannot be written.
    """
    results, judgement = evaluation.results, evaluation.judgement
    names = [category.name for category in results.categories]
    found = suspicious(results, judgement)
    pictures = pictures_of([sample.path for sample in results.samples], output)
    images = len(results.samples)
    as_shown = AsShown(results.samples)
    boxes = as_shown.boxes(results.boxes_xywh, results.images)
    on_page = []
    for one in found[:MAX_SUSPICIONS]:
        (box,) = as_shown.boxes(np.array([one.box_xywh]), [one.image]).round(1).tolist()
        on_page.append((one.kind, one.image, one.label, one.detected, round(one.score, 3), box))
    content = {
        "heading": heading,
        "threshold": metrics["best_f1"]["score_threshold"],
        "classes": names,
        **pictures,
        "sizes": pictures["sizes"] | as_shown.sizes,
        "detections": _detections(images, results.images, boxes, results.scores, results.classes, judgement.kinds),
        "objects": {
            "ends": np.searchsorted(judgement.images, np.arange(1, images + 1)).tolist(),
            "boxes": as_shown.boxes(judgement.boxes_xywh, judgement.images).round(3).ravel().tolist(),
            "classes": judgement.classes.tolist(),
            "crowd": np.flatnonzero(object_columns(results.samples, "crowd")[1]).tolist(),
            "ignored": np.flatnonzero(judgement.ignored).tolist(),
        },
        "kinds": {HIT: "hit", IGNORED: "not counted"} | dict(enumerate(list(ERRORS)[:-1], start=IGNORED + 1)),
        "errors": ERRORS,
        "metrics": metrics,
        "suspicions": on_page,
        "all_suspicions": len(found),
        "suspicions_file": SUSPICIOUS,
    }
    write_atomically(output / SUSPICIOUS, as_csv(found, pictures["files"], names))
    write_atomically(output / REPORT, html_page("page", "Found and missed", content))


def _detections(
    count: int,
    images: np.ndarray,
    boxes_xywh: np.ndarray,
    scores: np.ndarray,
    classes: np.ndarray,
    kinds: np.ndarray | None = None,
) -> dict:
    """Columns of the best detections: where each image's end, boxes as x, y, width, height, scores in SCORE_STEPS."""
    # The best, in the order of the images.
    kept = np.sort(np.argsort(-scores, kind="stable")[:MAX_DETECTIONS])
    columns = {
        "ends": np.searchsorted(images[kept], np.arange(1, count + 1)).tolist(),
        "boxes": boxes_xywh[kept].astype(np.float64).round(3).ravel().tolist(),
        "scores": (scores[kept] * SCORE_STEPS).round().astype(np.int64).tolist(),
        "classes": classes[kept].tolist(),
        "left_out": len(images) - len(kept),
    }
    return columns if kinds is None else columns | {"kinds": kinds[kept].tolist()}


class Suspicion(NamedTuple):
    """kind: UNLABELLED, OTHER_CLASS or UNSEEN; image: index in samples; label, detected: numbers of classes, or -1.

    box_xywh: of the detection if there is one, else of the label.
    """

    kind: str
    image: int
    label: int
    detected: int
    score: float
    box_xywh: tuple[float, ...]


def suspicious(results: CocoResults, judgement: Judgement) -> list[Suspicion]:
    """First sure detections where nothing is labelled, then where another class is, then labels nothing comes near.

    Detections are in order of falling score, unseen labels of falling area: the small ones are often just hard to see.
    """
    # The one appended is the label of detections that have none, -1.
    labels = np.append(judgement.classes, -1)[judgement.objects]
    # Of a label that is found as what it is nothing is suspected.
    sure = (results.scores >= SURE) & ~np.append(judgement.hit, False)[judgement.objects]
    found = []
    for kind, error in ((UNLABELLED, BACKGROUND), (OTHER_CLASS, CLASS)):
        for row in _by_falling(results.scores, (judgement.kinds == error) & sure):
            label, detected = int(labels[row]), int(results.classes[row])
            box = tuple(results.boxes_xywh[row].tolist())
            found.append(Suspicion(kind, int(results.images[row]), label, detected, float(results.scores[row]), box))
    unseen = ~judgement.ignored & (judgement.near_scores < TRACE)
    for row in _by_falling(judgement.boxes_xywh[:, 2:].prod(axis=1), unseen):
        box = tuple(judgement.boxes_xywh[row].tolist())
        found.append(Suspicion(UNSEEN, int(judgement.images[row]), int(judgement.classes[row]), -1, 0.0, box))
    return found


def _by_falling(values: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """Indices of the chosen, bool [N], the highest of the values [N] first."""
    rows = np.flatnonzero(chosen)
    return rows[np.argsort(-values[rows], kind="stable")]


def as_csv(suspicions: Sequence[Suspicion], files: Sequence[str], names: Sequence[str]) -> bytes:
    """A table to work through, with an empty column for what was decided; files: of the images; names: of classes."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(COLUMNS)
    for one in suspicions:
        seen = (spreadsheet_cell(names[number]) if number >= 0 else "" for number in (one.label, one.detected))
        score = f"{one.score:.3f}" if one.detected >= 0 else ""
        box = [f"{value:.1f}" for value in one.box_xywh]
        table.writerow([one.kind, spreadsheet_cell(files[one.image]), *seen, score, *box, ""])
    return text.getvalue().encode("utf-8", "surrogateescape")  # file names need not be UTF-8
