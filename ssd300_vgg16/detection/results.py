"""What infer.sh writes: detections.json as it grows, and going on with it; YOLO's text, a table, objects cut out."""

import csv
import hashlib
import io
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path
from typing import Any, TypedDict

import cv2
import numpy as np
import yaml

from ssd300_vgg16 import reading
from ssd300_vgg16.boxes import xywh_to_xyxy, xyxy_to_cxcywh
from ssd300_vgg16.data.dataset import Category
from ssd300_vgg16.detection.files import ImageFile
from ssd300_vgg16.detector import Detections
from ssd300_vgg16.errors import UserError, told
from ssd300_vgg16.files import GrowingFile, write_atomically
from ssd300_vgg16.reading import sha256_of
from ssd300_vgg16.schema import loads_as, read_json_as
from ssd300_vgg16.text import spreadsheet_cell
from ssd300_vgg16.weights.locate import find_weights
from ssd300_vgg16.weights.oneflow_reader import parts_on_disk

# There until a detection is complete: what decides about its results, by what a user calls it.
SETTINGS = "detections.json.settings"
_CLOSED = b"\n]\n"
COLUMNS = ("file", "x1", "y1", "x2", "y2", "score", "category_id", "name")
NAMES = "data.yaml"
FIRST_LINE = "# Classes of what infer.sh found: labels/*.txt\n"
MAX_FOLDER_NAME = 60  # letters, which are up to 240 bytes of the 255 that a file system takes


class _Row(TypedDict):
    """Of a row of detections.json, what is read again."""

    file_name: str
    bbox: tuple[float, float, float, float]
    score: float
    category_id: int
    category_name: str


class JsonList:
    """A JSON file of a list that is written as it grows: `PATH.part` until the block ends, whole at any time.

    After an error it stays `PATH.part`: it must not look complete. end: of the rows that are there and stay, their
    number is `count`.
    """

    def __init__(self, path: Path, end: int = 0, count: int = 0) -> None:
        self.count = count
        self._path = path
        self._part = self.part_of(path)
        self._end = end  # of the rows, behind which the list is closed

    @staticmethod
    def part_of(path: Path) -> Path:
        """What the list is called while it grows."""
        return path.with_name(f"{path.name}.part")

    @staticmethod
    def rows(path: Path) -> Iterator[tuple[dict, int]]:
        """The rows in the file, one at a time, and where in it each ends; those before a line that is cut off."""
        place = 0
        for line in reading.lines_of(path):
            row = line.rstrip(b",\n")
            if row.startswith(b"{"):
                try:
                    yield loads_as(row, _Row), place + len(row)
                except ValueError:
                    return
            place += len(line)

    def __enter__(self) -> "JsonList":
        self._file = GrowingFile(self._part, self._end, _CLOSED)
        self._write("" if self._end else "[")
        return self

    def __exit__(self, kind: type[BaseException] | None, *exception: object) -> None:
        self._file.close()
        if kind is None:
            self._file.refuse_removed()
            self._part.replace(self._path)

    def add(self, rows: list) -> None:
        """Add the rows, a line each. Raises UserError if they cannot be written; those before are then whole."""
        self._file.refuse_removed()
        if rows:
            self._write((",\n" if self.count else "\n") + ",\n".join(map(json.dumps, rows)))
            self.count += len(rows)

    def _write(self, text: str) -> None:
        try:
            self._file.add(text.encode())
        except OSError as error:
            raise UserError(f"{told(error)}; it holds the {self.count} detections so far") from error


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


def settings_of(weights: Path, files: Sequence[ImageFile], **options: object) -> dict[str, object]:
    """What makes the results of two calls differ. Downloads published weights."""
    parts = parts_on_disk(find_weights(weights))
    images = json.dumps([(str(file.path), str(file.path.absolute()), file.image_id) for file in files])
    return {
        "weights": [sha256_of(part) for part in parts],
        "images": hashlib.sha256(images.encode()).hexdigest(),
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
    try:
        former = read_json_as(settings_file, dict[str, Any])
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"--resume: {settings_file} is damaged ({reason}): leave --resume out to begin anew") from error
    if other := [name for name in {**settings, **former} if former.get(name) != settings.get(name)]:
        raise UserError(
            f"--resume: {part} was begun with other {', '.join(other)}: give the same, or leave --resume out to begin "
            "anew"
        )
    by_path = {str(file.path): file for file in files}
    rows: dict[ImageFile, list[tuple[dict, int]]] = {}
    for row, end in JsonList.rows(part):
        if row["file_name"] not in by_path:
            break  # no row of this detection: what follows is made anew
        rows.setdefault(by_path[row["file_name"]], []).append((row, end))
    # Rows of the last may be missing. Pictures are drawn behind the rows: what a kill has prevented is made up for.
    begun = settings_file.stat().st_mtime_ns
    drawn = {file for file in files if file.picture.exists() and file.picture.stat().st_mtime_ns >= begun}
    kept = list(takewhile(drawn.__contains__, list(rows)[:-1]))
    if not kept:
        return Progress()
    # Images on which nothing was found. Those that could not be read have no picture, and are tried again.
    places = {file: place for place, file in enumerate(files)}
    last = max(places[file] for file in kept)
    empty = [file for file in files[:last] if file not in rows and file in drawn]
    done = {file: [row for row, _ in rows[file]] for file in kept} | {file: [] for file in empty}
    return Progress(done, end=rows[kept[-1]][-1][1])


def refuse_others_labels(output: Path, labels: Path) -> None:
    """Raises UserError if labels, or a data.yaml, are there that `write_names` has not put there: a data set's own."""
    yaml_file = output / NAMES
    ours = yaml_file.is_file() and _begins_as_ours(yaml_file)
    if not ours and (there := [path for path in (yaml_file, labels) if path.exists()]):
        raise UserError(f"--save-txt: {there[0]} is there and not of infer.sh's making; name another --output-dir")


def _begins_as_ours(path: Path) -> bool:
    with reading.opened(path) as file:
        return file.read(len(FIRST_LINE)) == FIRST_LINE.encode()


def write_names(output: Path, categories: Sequence[Category]) -> None:
    """YOLO's data.yaml, which says what the classes 0, 1, ... of the text files are."""
    names = {number: category.name for number, category in enumerate(categories)}
    write_atomically(output / NAMES, FIRST_LINE + yaml.safe_dump({"names": names}, allow_unicode=True, sort_keys=False))


def write_labels(
    file: ImageFile, detections: Detections, shape: tuple[int, ...], categories: Sequence[Category]
) -> None:
    """YOLO's text of an image, a line an object: class, centre x, centre y, width, height in 0..1, score."""
    numbers = {category.label: number for number, category in enumerate(categories)}
    height, width = shape[:2]
    boxes = xyxy_to_cxcywh(detections.boxes.astype(np.float64)) / [width, height, width, height]
    rows = zip(detections.labels.tolist(), boxes.tolist(), detections.scores.tolist(), strict=True)
    # A label without a category, one that COCO has left out, has no class there.
    lines = (
        f"{numbers[label]} {x:.6f} {y:.6f} {w:.6f} {h:.6f} {score:.6f}\n"
        for label, (x, y, w, h), score in rows
        if label in numbers
    )
    assert file.labels is not None
    _write(file.labels, "".join(lines).encode(), file.output)


def write_picture(path: Path, image: np.ndarray, output: Path) -> None:
    """A JPEG file of an image, uint8 [H, W, 3] RGB, below output, in a folder that is made if need be."""
    _write(path, cv2.imencode(".jpg", image[..., ::-1])[1].tobytes(), output)


def write_crops(folder: Path, name: Path, image: np.ndarray, detections: Detections) -> None:
    """The objects cut out of the image, uint8 [H, W, 3] RGB, as folder/CLASS/NAME-001.jpg, the best first."""
    height, width = image.shape[:2]
    corners = np.concatenate((np.floor(detections.boxes[:, :2]), np.ceil(detections.boxes[:, 2:])), axis=1)
    corners = np.clip(corners, 0, [width, height, width, height]).astype(int)
    # The number is the image's, not the class's: classes whose folders have one name do not meet.
    for number, ((x1, y1, x2, y2), class_name) in enumerate(zip(corners, detections.names, strict=True), start=1):
        if x1 < x2 and y1 < y2:
            place = folder / folder_name(class_name) / name.with_name(f"{name.name}-{number:03d}.jpg")
            write_picture(place, image[y1:y2, x1:x2], folder.parent)


def folder_name(class_name: str) -> str:
    """A class's name for a folder: never a path, never hidden."""
    return re.sub(r"[^\w ()+.-]", "_", class_name)[:MAX_FOLDER_NAME].strip(" .") or "_"


def write_table(path: Path, rows: Iterable[dict]) -> None:
    """A CSV file of detections in COCO's format with names added."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(COLUMNS)
    for row in rows:
        box = xywh_to_xyxy(np.array(row["bbox"])).round(2).tolist()
        file, name = spreadsheet_cell(row["file_name"]), spreadsheet_cell(row["category_name"])
        table.writerow([file, *box, row["score"], row["category_id"], name])
    # File names need not be UTF-8, nor class names text at all.
    write_atomically(path, text.getvalue().encode(errors="backslashreplace"))


def _write(path: Path, content: bytes, output: Path) -> None:
    write_atomically(path, content, sync=False, inside=output)  # what is there is whole
