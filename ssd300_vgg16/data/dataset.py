"""What every format of annotations becomes: categories, samples, and what was wrong with them."""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ssd300_vgg16 import boxes as box_math
from ssd300_vgg16.errors import UserError
from ssd300_vgg16.text import printable

BACKGROUND = 0  # the label
EXAMPLES_KEPT = 3
MAX_EXAMPLE_LETTERS = 400
MAX_NAME_LETTERS = 1000  # of a category
MAX_NAMED = 10  # images with one kind of note
# COCO's boxes are rounded to hundredths and other tools' to whole pixels: less than this is not a mistake.
PIXELS_BEYOND_IMAGE = 1.0
UNKNOWN_CATEGORY = "category that the model does not know"


@dataclass(frozen=True)
class Category:
    """One class of objects: the network's output ``label`` (0 is BACKGROUND) stands for the data set's ``id``."""

    label: int
    id: int
    name: str


class Tile(NamedTuple):
    """A part of an image: its window, xyxy in whole pixels of the image as declared."""

    window: tuple[int, int, int, int]
    image: "Sample"


@dataclass(frozen=True)
class Sample:
    """One image and its annotations as the file gives them, crowds and all.

    boxes: float64 [N, 4] xyxy in pixels of the image as stored, or of that which EXIF turns upright; labels: int64 [N];
    crowd: bool [N]; areas: float64 [N] in square pixels (COCO's own, used to sort objects into small, medium, large);
    difficult: bool [N], VOC's mark of objects that are trained on but do not count in an evaluation.
    Double precision, so that an evaluation sees the numbers of the file.
    height, width: as declared by the annotation file, in pixels.
    upright: whether boxes and size are those of the upright image, and `read_image` is to give it so.
    incomplete: whether more was annotated on it, and left out.
    tile: of what this is a part, if it is one; then boxes and size are those of the part, and the path is the image's.
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
    incomplete: bool = False
    tile: Tile | None = None

    def __str__(self) -> str:
        if self.tile is None:
            return str(self.path)
        left, top, _, _ = self.tile.window
        return f"{self.path} (tile of {self.width} x {self.height} at {left}, {top})"

    def objects(self, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
        """Boxes float32 [M, 4] and labels [M] to train on: no crowds, clipped to the image, none without area."""
        # After clipping, since a box that lies outside of the image has no area within it.
        clipped = box_math.clip(self.boxes, height, width).astype(np.float32)
        keep = ~self.crowd & (box_math.area(clipped) > 0)
        return clipped[keep], self.labels[keep]


class Fate(Enum):
    """What became of things that something is wrong with: which things, and what."""

    OBJECT_LEFT_OUT = ("objects", "left out")
    OBJECT_UNTRAINED = ("objects", "not trained on, but counted in an evaluation")
    OBJECT_CLIPPED = ("objects", "clipped to their images in training")
    IMAGE_LEFT_OUT = ("images", "left out, with their objects")
    IMAGE_SKIPPED = ("image files looked at", "that are left out when they are read")
    LABELS_LEFT_OUT = ("label files", "left out")
    CATEGORY_LEFT_OUT = ("categories", "left out, with their objects")
    READ_ALL_THE_SAME = ("entries", "read all the same")


@dataclass
class Problems:
    """Counts and first examples of what was wrong, by kind, so that one message can tell all of it.

    fates: of each kind. totals: how many there are of a fate's things, as far as it is known. notes: what is not
    wrong, and to be known all the same. incomplete: indices of images that have lost an annotation.
    """

    source: str
    notes: list[str] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)
    fates: dict[str, Fate] = field(default_factory=dict)
    totals: dict[str, int] = field(default_factory=dict)
    incomplete: set[int] = field(default_factory=set)

    def add(self, kind: str, example: str, fate: Fate, image_index: int | None = None) -> None:
        """Count one problem of this kind ("box of no area"), with an example that locates it ("annotation 17").

        image_index: of the image that has lost an annotation by it, if that is known.
        """
        if image_index is not None:
            self.incomplete.add(image_index)
        self.counts[kind] += 1
        self.fates[kind] = fate
        examples = self.examples.setdefault(kind, [])
        if len(examples) < EXAMPLES_KEPT:
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
        for fate in dict.fromkeys(self.fates.values()):
            things, became = fate.value
            count, total = self.count(fate), self.totals.get(things)
            of_total = f"{things} {became}: {count:,}" if total is None else f"{count:,} of {total:,} {things} {became}"
            lines.append(f"{self.source}: {of_total}")
            lines += [self._line(kind) for kind in self.counts if self.fates[kind] == fate]
        return "\n".join(lines) or f"{self.source}:"

    def _line(self, kind: str) -> str:
        # Examples quote the file, and so may hold anything; a path and what is wrong there are to fit.
        examples = [printable(example, MAX_EXAMPLE_LETTERS) for example in self.examples[kind]]
        more = ["..."] if self.counts[kind] > len(examples) else []
        return f"  {self.counts[kind]:,} x {kind}: {', '.join(examples + more)}"


class Note(NamedTuple):
    """What is odd about an image that is read all the same: a kind of fault, and more about this file.

    harmful: whether pixels may be wrong.
    """

    path: str
    what: str
    detail: str = ""
    harmful: bool = False

    def __str__(self) -> str:
        detail = f" ({self.detail})" if self.detail else ""
        return f"{self.path}: {self.what}{detail}"


class Notes:
    """Tells each note once, and of a kind the first MAX_NAMED; that there are more of it, once too."""

    def __init__(self, tell: Callable[[str], object]):
        self._tell = tell
        self._named: dict[str, set[str]] = {}

    def add(self, notes: Iterable[Note]) -> None:
        """Tell what of these was not told yet."""
        for note in notes:
            named = self._named.setdefault(note.what, set())
            if note.path in named or len(named) > MAX_NAMED:
                continue
            named.add(note.path)
            self._tell(str(note) if len(named) <= MAX_NAMED else f"and more images: {note.what}")


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
            digest.update(
                f"{sample.id} {sample.path.name} {sample.height} {sample.width}".encode("utf-8", "surrogatepass")
            )
            for column in (sample.boxes, sample.labels, sample.crowd):
                digest.update(np.ascontiguousarray(column).data)
            if sample.difficult.any():
                digest.update(b"difficult" + np.ascontiguousarray(sample.difficult).tobytes())
        objects = sum(len(sample.labels) for sample in self.samples)
        return {"images": len(self.samples), "objects": objects, "sha256": digest.hexdigest()}


def usual_side(samples: Sequence[Sample]) -> int | None:
    """The longer side in pixels of the image that an object to train on is in: the median of them; None: no objects."""
    counts = [len(sample.objects(sample.height, sample.width)[1]) for sample in samples]
    sides = np.repeat([max(sample.height, sample.width) for sample in samples], counts)
    return int(np.median(sides)) if len(sides) else None


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
        f"{len(shared)} of the {len(val.samples)} validation images are training images too, such as "
        f"{printable(str(shared[0]), 500)}: "
        "what is measured on them says little about others"
    )


def _is_same(one: Path, other: Path) -> bool:
    try:
        return one == other or one.stat().st_size == other.stat().st_size
    except OSError:
        return False
