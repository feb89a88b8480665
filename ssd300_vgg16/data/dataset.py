"""The objects of a whole data set as columns, on the way from any format's files to samples."""

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ssd300_vgg16 import boxes as box_math
from ssd300_vgg16.errors import UserError
from ssd300_vgg16.text import printable

BACKGROUND = 0  # the label
MAX_EXAMPLE_LETTERS = 400


@dataclass(frozen=True)
class Category:
    """One class of objects: the network's output ``label`` (0 is BACKGROUND) stands for the data set's ``id``."""

    label: int
    id: int
    name: str


@dataclass(frozen=True)
class Sample:
    """One image and its annotations as the file gives them, crowds and all.

    boxes: float64 [N, 4] xyxy in pixels of the image as stored, or of that which EXIF turns upright; labels: int64 [N];
    crowd: bool [N]; areas: float64 [N] in square pixels (COCO's own, used to sort objects into small, medium, large);
    difficult: bool [N], VOC's mark of objects that are trained on but do not count in an evaluation.
    Double precision, so that an evaluation sees the numbers of the file.
    height, width: as declared by the annotation file, in pixels.
    upright: whether boxes and size are those of the upright image, and `read_image` is to give it so.
    """

    id: int
    path: Path
    height: int
    width: int
    boxes: np.ndarray
    labels: np.ndarray
    crowd: np.ndarray
    areas: np.ndarray
    difficult: np.ndarray
    upright: bool = False

    def objects(self, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
        """Boxes float32 [M, 4] and labels [M] to train on: no crowds, clipped to the image, none without area."""
        # After clipping, since a box that lies outside of the image has no area within it.
        clipped = box_math.clip(self.boxes, height, width).astype(np.float32)
        keep = ~self.crowd & (box_math.area(clipped) > 0)
        return clipped[keep], self.labels[keep]


class Fate(NamedTuple):
    """What became of things that something is wrong with: "objects", "left out"."""

    things: str
    what: str


OBJECT_LEFT_OUT = Fate("objects", "left out")
OBJECT_UNTRAINED = Fate("objects", "not trained on, but counted in an evaluation")
OBJECT_CLIPPED = Fate("objects", "clipped to their images in training")
IMAGE_LEFT_OUT = Fate("images", "left out, with their objects")
LABELS_LEFT_OUT = Fate("label files", "left out")
CATEGORY_LEFT_OUT = Fate("categories", "left out, with their objects")
READ_ALL_THE_SAME = Fate("entries", "read all the same")


@dataclass
class Problems:
    """Counts and first examples of what was wrong, by kind, so that one message can tell all of it.

    fates: of each kind. totals: how many there are of a fate's things, as far as it is known. notes: what is not
    wrong, and to be known all the same.
    """

    source: str
    examples_kept: int = 3
    counts: dict[str, int] = field(default_factory=dict)
    examples: dict[str, list[str]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    fates: dict[str, Fate] = field(default_factory=dict)
    totals: dict[str, int] = field(default_factory=dict)

    def add(self, kind: str, example: str, fate: Fate) -> None:
        """Count one problem of this kind ("box of no area"), with an example that locates it ("annotation 17")."""
        self.counts[kind] = self.counts.get(kind, 0) + 1
        self.fates[kind] = fate
        examples = self.examples.setdefault(kind, [])
        if len(examples) < self.examples_kept:
            examples.append(example)

    def __bool__(self) -> bool:
        return bool(self.counts or self.notes)

    def count(self, fate: Fate) -> int:
        """How many had this fate."""
        return sum(count for kind, count in self.counts.items() if self.fates[kind] == fate)

    def refuse(self) -> None:
        """Raise UserError if there is any problem, for data that is to be read strictly."""
        if self.counts:
            raise UserError(f"{self.message()}\nCorrect the file, or load it without strict to leave these out.")

    def message(self) -> str:
        """All notes and problems in one text: for each fate what became of how many, then a line a kind."""
        lines = [printable(note, MAX_EXAMPLE_LETTERS) for note in self.notes]
        if not self.counts and not lines:
            return f"{self.source}:"
        for fate in dict.fromkeys(self.fates.values()):
            kinds = [kind for kind in self.counts if self.fates[kind] == fate]
            lines.append(f"{self.source}: {self._became(fate)}")
            lines += map(self._line, kinds)
        return "\n".join(lines)

    def _became(self, fate: Fate) -> str:
        count, total = self.count(fate), self.totals.get(fate.things)
        return f"{fate.things} {fate.what}: {count:,}" if total is None else f"{count:,} of {total:,} {' '.join(fate)}"

    def _line(self, kind: str) -> str:
        # Examples quote the file, and so may hold anything; a path and what is wrong there are to fit.
        examples = [printable(example, MAX_EXAMPLE_LETTERS) for example in self.examples[kind]]
        more = ["..."] if self.counts[kind] > len(examples) else []
        return f"  {self.counts[kind]:,} x {kind}: {', '.join(examples + more)}"


@dataclass(frozen=True)
class Dataset:
    """Samples with their categories; ``name`` says where they come from.

    kind: the format of the annotations, "coco", "voc" or "yolo". VOC's also gets VOC's own AP in an evaluation; only
    COCO's has ids of images that mean something outside of this package.
    """

    name: str
    categories: tuple[Category, ...]
    samples: tuple[Sample, ...]
    problems: Problems
    kind: str = "coco"

    @property
    def num_classes(self) -> int:
        """Outputs of a network for these categories: the highest label, and background."""
        return max(category.label for category in self.categories) + 1

    def fingerprint(self) -> dict[str, int | str]:
        """Counts, and a hash of all that a training takes from the annotations: names, boxes, labels, in their order.

        The folder that the images are in is not part of it.
        """
        digest = hashlib.sha256(repr(self.categories).encode())
        for sample in self.samples:
            digest.update(f"{sample.id} {sample.path.name} {sample.height} {sample.width}".encode())
            for column in (sample.boxes, sample.labels, sample.crowd):
                digest.update(np.ascontiguousarray(column).data)
            if sample.difficult.any():
                digest.update(b"difficult" + np.ascontiguousarray(sample.difficult).tobytes())
        objects = sum(len(sample.labels) for sample in self.samples)
        return {"images": len(self.samples), "objects": objects, "sha256": digest.hexdigest()}


def shared_images(train: Dataset, val: Dataset) -> str | None:
    """A sentence on images that are in both: the same files, or files of the same name and size in bytes."""
    in_train: dict[str, list[Path]] = {}
    for sample in train.samples:
        in_train.setdefault(sample.path.name, []).append(sample.path)
    shared = [
        sample.path
        for sample in val.samples
        if any(_is_same(sample.path, path) for path in in_train.get(sample.path.name, ()))
    ]
    if not shared:
        return None
    return (
        f"{len(shared)} of the {len(val.samples)} validation images are training images too, such as {shared[0]}: "
        "what is measured on them says little about others"
    )


def _is_same(one: Path, other: Path) -> bool:
    try:
        return one == other or one.stat().st_size == other.stat().st_size
    except OSError:
        return False


# COCO's boxes are rounded to hundredths and other tools' to whole pixels: less than this is not a mistake.
PIXELS_BEYOND_IMAGE = 1.0
# Coordinates must fit float32, the sum of two included.
MAX_COORDINATE = 1e38
UNKNOWN_CATEGORY = "category that the model does not know"


class ImageRow(NamedTuple):
    """One image; sizes in pixels."""

    id: int
    path: Path
    height: int
    width: int

    def __str__(self) -> str:
        return f"{self.path.name}, {self.width} x {self.height}"


class ObjectTable(NamedTuple):
    """Columns of N objects; image_index counts in a list of images."""

    image_index: np.ndarray  # int64 [N]
    boxes: np.ndarray  # float64 [N, 4] xyxy
    labels: np.ndarray  # int64 [N]
    crowd: np.ndarray  # bool [N]
    areas: np.ndarray  # float64 [N]
    difficult: np.ndarray  # bool [N]


def samples_of(images: list[ImageRow], table: ObjectTable, upright: bool = False) -> tuple[Sample, ...]:
    """A sample for each image, its objects in the table's order; upright: sizes and boxes are of upright images."""
    # Sorted once, then cut: to look for the rows of each image alone is quadratic.
    order = np.argsort(table.image_index, kind="stable")
    starts = np.searchsorted(table.image_index[order], np.arange(len(images) + 1)).tolist()
    _, boxes, labels, crowd, areas, difficult = (column[order] for column in table)
    return tuple(
        Sample(
            *image,
            boxes=boxes[first:last],
            labels=labels[first:last],
            crowd=crowd[first:last],
            areas=areas[first:last],
            difficult=difficult[first:last],
            upright=upright,
        )
        for image, (first, last) in zip(images, pairwise(starts), strict=True)
    )


def without_repeated(table: ObjectTable, described: Callable[[int], str], problems: Problems) -> ObjectTable:
    """Each object once; those that are there again, with the same box and label, are counted. Boxes of no area stay."""
    rows = np.column_stack((table.image_index, table.labels, table.crowd, table.difficult, table.boxes))
    _, first = np.unique(rows, axis=0, return_index=True)
    keep = (box_math.area(table.boxes) <= 0) | np.isin(np.arange(len(rows)), first)
    for row in np.flatnonzero(~keep).tolist():
        problems.add("object that is there twice, with the same box: counted once", described(row), OBJECT_LEFT_OUT)
    return ObjectTable(*(column[keep] for column in table))


def report_boxes(
    images: list[ImageRow], table: ObjectTable, described: Callable[[int], str], problems: Problems
) -> None:
    """Count the boxes that are well-formed and yet wrong for their image.

    described: the object of this row, with its place in the file.
    """
    height, width = np.array([image[2:] for image in images], dtype=np.float64)[table.image_index].T
    for (kind, fate), rows in faulty_boxes(table.boxes, height, width).items():
        for row in np.flatnonzero(rows).tolist():
            problems.add(kind, described(row), fate)


def faulty_boxes(boxes: np.ndarray, height: np.ndarray, width: np.ndarray) -> dict[tuple[str, Fate], np.ndarray]:
    """Which of the boxes [N, 4] xyxy are wrong for their images of this height and width [N]: bool [N] for each kind.

    Each is under the worst that is true of it.
    """
    x1, y1, x2, y2 = boxes.T
    empty = (x2 <= x1) | (y2 <= y1)
    outside = (x1 >= width) | (y1 >= height) | (x2 <= 0) | (y2 <= 0)
    far = PIXELS_BEYOND_IMAGE
    beyond = (x1 < -far) | (y1 < -far) | (x2 > width + far) | (y2 > height + far)
    return {
        ("box of no area", OBJECT_UNTRAINED): empty,
        ("box outside the image", OBJECT_UNTRAINED): outside & ~empty,
        ("box beyond the image", OBJECT_CLIPPED): beyond & ~outside & ~empty,
    }


def file_names(folder: Path) -> frozenset[str]:
    """The files in a folder; none if it cannot be read."""
    try:
        with os.scandir(folder) as entries:
            return frozenset(entry.name for entry in entries if entry.is_file())
    except (OSError, ValueError):
        return frozenset()
