"""What is found, in other formats than COCO's: YOLO's text files, a table, and the objects cut out."""

import csv
import io
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import cv2
import numpy as np
import yaml

from ssd300_vgg16.boxes import xywh_to_xyxy, xyxy_to_cxcywh
from ssd300_vgg16.data.dataset import Category
from ssd300_vgg16.detector import Detections
from ssd300_vgg16.errors import UserError
from ssd300_vgg16.files import open_atomically, write_atomically
from ssd300_vgg16.text import spreadsheet_cell

COLUMNS = ("file", "x1", "y1", "x2", "y2", "score", "category_id", "name")
NAMES = "data.yaml"
FIRST_LINE = "# Classes of what infer.sh found: labels/*.txt\n"
MAX_FOLDER_NAME = 60  # letters, which are up to 240 bytes of the 255 that a file system takes


def refuse_others_labels(output: Path, labels: Path) -> None:
    """Raises UserError if labels, or a data.yaml, are there that `write_names` has not put there: a data set's own."""
    yaml_file = output / NAMES
    ours = yaml_file.is_file() and yaml_file.read_bytes().startswith(FIRST_LINE.encode())
    if not ours and (there := [path for path in (yaml_file, labels) if path.exists()]):
        raise UserError(f"--save-txt: {there[0]} is there and not of infer.sh's making; name another --output-dir")


def write_names(output: Path, categories: Sequence[Category]) -> None:
    """YOLO's data.yaml, which says what the classes 0, 1, ... of the text files are."""
    names = {number: category.name for number, category in enumerate(categories)}
    write_atomically(output / NAMES, FIRST_LINE + yaml.safe_dump({"names": names}, allow_unicode=True, sort_keys=False))


def write_labels(path: Path, detections: Detections, shape: tuple[int, ...], categories: Sequence[Category]) -> None:
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
    _write(path, "".join(lines).encode())


def write_picture(path: Path, image: np.ndarray) -> None:
    """A JPEG file of an image, uint8 [H, W, 3] RGB, in a folder that is made if need be."""
    _write(path, cv2.imencode(".jpg", image[..., ::-1])[1].tobytes())


def write_crops(folder: Path, name: Path, image: np.ndarray, detections: Detections) -> None:
    """The objects cut out of the image, uint8 [H, W, 3] RGB, as folder/CLASS/NAME-001.jpg, the best first."""
    height, width = image.shape[:2]
    corners = np.concatenate((np.floor(detections.boxes[:, :2]), np.ceil(detections.boxes[:, 2:])), axis=1)
    corners = np.clip(corners, 0, [width, height, width, height]).astype(int)
    # The number is the image's, not the class's: classes whose folders have one name do not meet.
    for number, ((x1, y1, x2, y2), class_name) in enumerate(zip(corners, detections.names, strict=True), start=1):
        if x1 < x2 and y1 < y2:
            place = folder / folder_name(class_name) / name.with_name(f"{name.name}-{number:03d}.jpg")
            write_picture(place, image[y1:y2, x1:x2])


def folder_name(class_name: str) -> str:
    """A class's name for a folder: never a path, never hidden."""
    return re.sub(r"[^\w ()+.-]", "_", class_name)[:MAX_FOLDER_NAME].strip(" .") or "_"


def write_table(path: Path, rows: Iterable[dict]) -> None:
    """A CSV file of detections in COCO's format with names added."""
    with open_atomically(path) as file:
        # File names need not be UTF-8, nor class names text at all.
        text = io.TextIOWrapper(file, "utf-8", errors="backslashreplace", newline="")
        table = csv.writer(text, lineterminator="\n")
        table.writerow(COLUMNS)
        for row in rows:
            box = xywh_to_xyxy(np.array(row["bbox"])).round(2).tolist()
            named = spreadsheet_cell(row["file_name"]), spreadsheet_cell(row["category_name"])
            table.writerow([named[0], *box, row["score"], row["category_id"], named[1]])
        text.detach()  # flushed, and left open for what is to come


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open_atomically(path, sync=False) as file:  # what is there is whole
        file.write(content)
