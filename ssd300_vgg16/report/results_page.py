"""report.html: detections on their images, and with ground truth what is right and wrong about them.

One file that a browser opens from disk. It holds page.css, page.js and the data as JSON; the pictures are links to the
image files, relative to the page.
"""

import base64
import hashlib
import html
import json
import os
import re
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

import numpy as np

from ssd300_vgg16.boxes import xyxy_to_xywh
from ssd300_vgg16.data.dataset import Category, Sample
from ssd300_vgg16.data.images import AS_STORED, LYING, ImageError, exif_orientation
from ssd300_vgg16.detector import Detections
from ssd300_vgg16.files import write_atomically
from ssd300_vgg16.metrics.errors import ERRORS, HIT, IGNORED
from ssd300_vgg16.report.suspicious import Suspicion, as_csv, suspicious

if TYPE_CHECKING:  # it brings OneFlow, which infer.sh may do without
    from ssd300_vgg16.metrics.evaluation import Evaluation

REPORT, SUSPICIOUS = "report.html", "suspicious_labels.csv"
MAX_DETECTIONS = 250_000  # on the page, the best: more would make it slow to open
MAX_SUSPICIONS = 2_000  # on the page; the CSV file has all
_MIRRORED = ((2, 3, 7, 8), (3, 4, 6, 7))  # EXIF orientations that mirror x, and y, before a transposition
SCORE_STEPS = 100_000  # scores are whole numbers on the page


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
            **_files(self._paths, output),
            "detections": _detections(len(self._paths), images, xyxy_to_xywh(boxes), scores, classes),
        }
        write_atomically(output / REPORT, page("Detections", content))
        return output / REPORT


def write_evaluation_page(evaluation: "Evaluation", metrics: dict, heading: str, output: Path) -> None:
    """Write the page and the list of suspicious labels into the folder; metrics: what coco_metrics.json has.

    Raises UserError if they cannot be written.
    """
    results, judgement = evaluation.results, evaluation.judgement
    names = [category.name for category in results.categories]
    found = suspicious(results, judgement)
    paths = [sample.path for sample in results.samples]
    files = _files(paths, output)
    images = len(results.samples)
    as_shown = _Turned(results.samples)
    content = {
        "heading": heading,
        "threshold": metrics["best_f1"]["score_threshold"],
        "classes": names,
        **files,
        "detections": _detections(
            images,
            results.images,
            as_shown.boxes(results.boxes_xywh, results.images),
            results.scores,
            results.classes,
            judgement.kinds,
        ),
        "objects": {
            "ends": np.searchsorted(judgement.images, np.arange(1, images + 1)).tolist(),
            "boxes": as_shown.boxes(judgement.boxes_xywh, judgement.images).round(3).ravel().tolist(),
            "classes": judgement.classes.tolist(),
            "crowd": np.flatnonzero(np.concatenate([sample.crowd for sample in results.samples])).tolist(),
            "ignored": np.flatnonzero(judgement.ignored).tolist(),
        },
        "kinds": {HIT: "hit", IGNORED: "not counted"} | dict(enumerate(list(ERRORS)[:-1], start=IGNORED + 1)),
        "errors": ERRORS,
        "metrics": metrics,
        "suspicions": [_row(one, as_shown) for one in found[:MAX_SUSPICIONS]],
        "all_suspicions": len(found),
        "suspicions_file": SUSPICIOUS,
    }
    write_atomically(output / SUSPICIOUS, as_csv(found, files["files"], names))
    write_atomically(output / REPORT, page("Found and missed", content))


class _Turned:
    """Boxes as browsers show their images: turned upright, where the boxes are those of the image as stored."""

    def __init__(self, samples: Sequence[Sample]) -> None:
        self._orientations = np.array([_orientation(sample) for sample in samples])
        self._sizes = np.array([(sample.width, sample.height) for sample in samples])

    def boxes(self, boxes_xywh: np.ndarray, images: np.ndarray) -> np.ndarray:
        """The boxes [N, 4] of these images [N]."""
        orientations, corners = self._orientations[images], boxes_xywh[:, :2].copy()
        opposite = self._sizes[images] - corners - boxes_xywh[:, 2:]
        for axis, mirrored in enumerate(_MIRRORED):
            there = np.isin(orientations, mirrored)
            corners[there, axis] = opposite[there, axis]
        turned = np.concatenate((corners, boxes_xywh[:, 2:]), axis=1)
        lying = np.isin(orientations, LYING)
        turned[lying] = turned[lying][:, [1, 0, 3, 2]]
        return turned


def _orientation(sample: Sample) -> int:
    try:
        return AS_STORED if sample.upright else exif_orientation(sample.path)
    except ImageError:
        return AS_STORED  # it has gone meanwhile


def _row(one: Suspicion, as_shown: _Turned) -> list:
    (box,) = as_shown.boxes(np.array([one.box_xywh]), np.array([one.image]))
    return [
        one.kind,
        one.image,
        one.label,
        one.detected,
        round(one.score, 3),
        box.round(1).tolist(),
    ]


def _files(paths: Sequence[Path], output: Path) -> dict:
    """Names to show, and links as a browser takes them."""
    places = [os.path.abspath(path) for path in paths]  # noqa: PTH100 - resolve() would follow links
    base = os.path.commonpath([os.path.dirname(place) for place in places]) if places else ""  # noqa: PTH120
    folder = os.path.relpath(base, os.path.abspath(output)) if places else ""  # noqa: PTH100
    files = [os.path.relpath(place, base) for place in places]
    return {
        "files": files,
        "folder": quote(os.fsencode(folder)) + "/",
        "links": [quote(os.fsencode(file)) for file in files],
    }


def _detections(
    count: int,
    images: np.ndarray,
    boxes_xywh: np.ndarray,
    scores: np.ndarray,
    classes: np.ndarray,
    kinds: np.ndarray | None = None,
) -> dict:
    """Columns of the best detections: where each image's end, boxes as x, y, width, height, scores in SCORE_STEPS."""
    kept = np.arange(len(images))
    if len(kept) > MAX_DETECTIONS:
        kept = np.sort(np.argsort(-scores, kind="stable")[:MAX_DETECTIONS])
    columns = {
        "ends": np.searchsorted(images[kept], np.arange(1, count + 1)).tolist(),
        "boxes": boxes_xywh[kept].astype(np.float64).round(3).ravel().tolist(),
        "scores": (scores[kept] * SCORE_STEPS).round().astype(np.int64).tolist(),
        "classes": classes[kept].tolist(),
        "left_out": len(images) - len(kept),
    }
    return columns if kinds is None else columns | {"kinds": kinds[kept].tolist()}


def page(title: str, content: dict) -> str:
    """The whole page; nothing in the content can become markup or script."""
    part = resources.files(__package__).joinpath
    style, script = (part(name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    # The policy lets run and show what is here, and nothing that a name could bring.
    policy = (
        f"default-src 'none'; img-src 'self' file: data:; style-src {_allowed(style)}; script-src {_allowed(script)}"
    )
    parts = {
        "policy": policy,
        "title": html.escape(f"{title}: {content['heading']}"),
        "style": style,
        "script": script,
        "content": json.dumps({"title": title, **content}, separators=(",", ":")).replace("<", "\\u003c"),
    }
    template = part("page.html").read_text(encoding="utf-8")
    # In one pass: what is filled in is not looked at again.
    return re.sub(r"\{\{(\w+)\}\}", lambda place: parts[place[1]], template)


def _allowed(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
