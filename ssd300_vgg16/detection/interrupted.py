"""A detection that was interrupted: whether another call may go on with it, and what of it is done."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ssd300_vgg16.boxes import xywh_to_xyxy
from ssd300_vgg16.detection.files import ImageFile, JsonList
from ssd300_vgg16.detector import Detections
from ssd300_vgg16.errors import UserError
from ssd300_vgg16.files import sha256_of
from ssd300_vgg16.weights.locate import find_weights

# There until a detection is complete: what decides about its results, by what a user calls it.
SETTINGS = "detections.json.settings"


@dataclass(frozen=True)
class Progress:
    """What an interrupted detection has done: the rows of each image, and how much of its list holds them."""

    rows: dict[ImageFile, list[dict]] = field(default_factory=dict)
    end: int = 0

    def detections(self) -> Iterable[tuple[Path, Detections]]:
        """As they were before they became rows, but for the labels, of which names are left."""
        for file, rows in self.rows.items():
            boxes = xywh_to_xyxy(np.array([row["bbox"] for row in rows], dtype=np.float64).reshape(-1, 4))
            scores = np.array([row["score"] for row in rows])
            names = [row["category_name"] for row in rows]
            yield file.path, Detections(boxes=boxes, scores=scores, labels=np.zeros(len(rows), np.int64), names=names)


def settings_of(weights: Path, images: dict[Path, int | str], **options: object) -> dict[str, object]:
    """What makes the results of two calls differ. Downloads published weights."""
    weights = find_weights(weights)
    parts = [weights] if weights.is_file() else sorted(path for path in weights.rglob("*") if path.is_file())
    listed = json.dumps([(str(path), str(path.absolute()), id_) for path, id_ in images.items()])
    return {
        "weights": [sha256_of(part) for part in parts],
        "images": hashlib.sha256(listed.encode()).hexdigest(),
        **{f"--{name.replace('_', '-')}": value for name, value in options.items()},
    }


def progress_of(results: Path, files: Sequence[ImageFile], settings: dict[str, object]) -> Progress:
    """What was done of a detection with these settings whose results were to be in this file.

    Nothing, if none was begun. Raises UserError if there were others, or if it is complete.
    """
    part, settings_file = JsonList.part_of(results), results.with_name(SETTINGS)
    if not part.exists() or not settings_file.exists():
        if results.exists():
            raise UserError(f"--resume: {results} is complete; without --resume it is made anew")
        return Progress()
    former = json.loads(settings_file.read_bytes())
    if other := [name for name in settings if former.get(name) != settings[name]]:
        raise UserError(
            f"--resume: {part} was begun with other {', '.join(other)}: give the same, or leave --resume out to begin "
            "anew"
        )
    by_path = {str(file.path): file for file in files}
    rows: dict[ImageFile, list[tuple[dict, int]]] = {}
    for row, end in JsonList.rows(part):
        rows.setdefault(by_path[row["file_name"]], []).append((row, end))
    # Rows of the last may be missing. Pictures are drawn behind the rows: what a kill has prevented is made up for.
    begun = settings_file.stat().st_mtime_ns
    kept: dict[ImageFile, list[dict]] = {}
    end = 0
    for file in list(rows)[:-1]:
        if not _is_newer(file.picture, begun):
            break
        kept[file] = [row for row, _ in rows[file]]
        end = rows[file][-1][1]
    last = max((file.number for file in kept), default=0)
    # Images on which nothing was found. Those that could not be read have no picture, and are tried again.
    empty = [file for file in files if file.number < last and file not in rows and _is_newer(file.picture, begun)]
    return Progress(kept | {file: [] for file in empty}, end)


def _is_newer(path: Path, time_ns: int) -> bool:
    return path.exists() and path.stat().st_mtime_ns >= time_ns
