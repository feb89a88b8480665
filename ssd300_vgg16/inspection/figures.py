"""Figures about a data set: what it holds, and how its objects fit a network's default boxes."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ssd300_vgg16 import boxes as box_math
from ssd300_vgg16.data.annotations import faulty_boxes
from ssd300_vgg16.data.categories import same_name
from ssd300_vgg16.data.dataset import Dataset
from ssd300_vgg16.data.matching import UNMATCHED, match
from ssd300_vgg16.metrics.coco_results import object_columns

OBJECTS_AT_ONCE = 16  # whose overlaps with all default boxes stay in the processor's cache


@dataclass(frozen=True)
class InputObjects:
    """What training learns from, as columns; row i of each belongs together.

    images: int64 [N], indices into the data set's samples, ascending; labels: int64 [N]; boxes: float32 [N, 4] xyxy in
    pixels of the network's input, each of positive size.
    """

    images: np.ndarray
    labels: np.ndarray
    boxes: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def widths(self) -> np.ndarray:
        return self.boxes[:, 2] - self.boxes[:, 0]

    @property
    def heights(self) -> np.ndarray:
        return self.boxes[:, 3] - self.boxes[:, 1]

    @property
    def sides(self) -> np.ndarray:
        """Square roots of the areas, float32 [N] in pixels of the network's input."""
        return np.sqrt(box_math.area(self.boxes))

    @property
    def ratios(self) -> np.ndarray:
        """Width over height at the network's input, float32 [N]."""
        return self.widths / self.heights

    def of_images(self, images: np.ndarray) -> "InputObjects":
        """The objects of these images (int64, indices into the samples)."""
        rows = np.isin(self.images, images)
        return InputObjects(self.images[rows], self.labels[rows], self.boxes[rows])


@dataclass(frozen=True, eq=False)
class Candidate:
    """Default boxes that objects are held against: their --model and --default-boxes, the side of the model's input
    in pixels, and the boxes, float32 [D, 4] xyxy in its pixels."""

    model: str
    box_sizes: str
    image_size: int
    default_boxes: np.ndarray


@dataclass(frozen=True)
class Contents:
    """Counts of a data set. objects: those that training uses; crowds and flat (boxes of no area) are not among them.
    difficult: objects that are trained on but do not count in an evaluation.

    sizes: (width, height) of the images and how many have it, the most frequent first.
    """

    images: int
    images_without_objects: int
    objects: int
    difficult: int
    crowds: int
    flat: int
    sizes: list[tuple[tuple[int, int], int]]
    median_per_image: float
    max_per_image: int


@dataclass(frozen=True)
class ClassCount:
    """How many objects a class has, and in how many images."""

    label: int
    name: str
    objects: int
    images: int


class Marked(NamedTuple):
    """Objects of one image that something is wrong with: its index, boxes [N, 4] xyxy in its pixels, labels [N]."""

    image: int
    boxes: np.ndarray
    labels: np.ndarray


def objects_at_input(dataset: Dataset, image_size: int) -> InputObjects:
    """All objects that `Sample.objects` gives, resized to the network's input of image_size x image_size pixels."""
    samples = dataset.samples
    images, labels, crowd, boxes = object_columns(samples, "labels", "crowd", "boxes")
    limits = np.array([(sample.width, sample.height) * 2 for sample in samples], dtype=np.float64)[images]
    # As Sample.objects does it, but for all samples at once: COCO has 118,000.
    clipped = np.clip(boxes, 0, limits).astype(np.float32)
    scaled = clipped * (image_size / limits).astype(np.float32)
    keep = ~crowd & (box_math.area(clipped) > 0)
    return InputObjects(images[keep], labels[keep], scaled[keep])


def contents(dataset: Dataset, objects: InputObjects) -> Contents:
    """What the data set holds; objects are all of its `objects_at_input`."""
    samples = dataset.samples
    _, crowd, difficult = object_columns(samples, "crowd", "difficult")
    crowds = int(crowd.sum())
    per_image = np.bincount(objects.images, minlength=len(samples))
    return Contents(
        images=len(samples),
        images_without_objects=int((per_image == 0).sum()),
        objects=len(objects),
        difficult=int(difficult.sum()),
        crowds=crowds,
        flat=len(crowd) - crowds - len(objects),
        sizes=Counter((sample.width, sample.height) for sample in samples).most_common(),
        median_per_image=float(np.median(per_image)),
        max_per_image=int(per_image.max()),
    )


def class_counts(dataset: Dataset, objects: InputObjects) -> list[ClassCount]:
    """Every class of the data set, the most frequent first."""
    pairs = np.unique(np.stack((objects.images, objects.labels)), axis=1)
    object_counts = np.bincount(objects.labels, minlength=dataset.num_classes).tolist()
    image_counts = np.bincount(pairs[1], minlength=dataset.num_classes).tolist()
    rows = [
        ClassCount(category.label, category.name, object_counts[category.label], image_counts[category.label])
        for category in dataset.categories
    ]
    return sorted(rows, key=lambda row: -row.objects)


def unseen_classes(train: Iterable[ClassCount], val: Iterable[ClassCount]) -> list[str]:
    """Names of the classes that val has objects of and train has none of."""
    seen = {same_name(row.name) for row in train if row.objects}
    return [row.name for row in val if row.objects and same_name(row.name) not in seen]


def some_images(objects: InputObjects, max_objects: int, seed: int) -> InputObjects:
    """All objects, if they are not more than `max_objects`; else about that many, of images drawn at random."""
    if len(objects) <= max_objects:
        return objects
    images, counts = np.unique(objects.images, return_counts=True)
    order = np.random.default_rng(seed).permutation(len(images))
    # Whole images, since an object is lost to others of its image.
    needed = np.searchsorted(np.cumsum(counts[order]), max_objects) + 1
    return objects.of_images(images[order[:needed]])


def best_iou(boxes: np.ndarray, default_boxes: np.ndarray) -> np.ndarray:
    """float32 [N]: the highest IoU of each of boxes [N, 4] with any of default_boxes [D, 4], both xyxy in pixels."""
    parts = (boxes[start : start + OBJECTS_AT_ONCE] for start in range(0, len(boxes), OBJECTS_AT_ONCE))
    return np.concatenate([np.empty(0, np.float32), *(box_math.iou(part, default_boxes).max(axis=1) for part in parts)])


def lost_objects(objects: InputObjects, default_boxes: np.ndarray) -> np.ndarray:
    """bool [N]: the objects that are matched to no default box, since others have all of theirs."""
    lost = np.zeros(len(objects), dtype=bool)
    first_of_images = np.flatnonzero(np.diff(objects.images)) + 1
    for rows in np.split(np.arange(len(objects)), first_of_images):
        if len(rows) > 1:  # one that is alone has its best default box
            matched = match(objects.boxes[rows], default_boxes)
            lost[rows] = np.bincount(matched[matched != UNMATCHED], minlength=len(rows)) == 0
    return lost


def marked_faults(dataset: Dataset) -> dict[str, list[Marked]]:
    """The boxes that are wrong for their images, by what is wrong with them."""
    images, boxes, labels = object_columns(dataset.samples, "boxes", "labels")
    height, width = np.array([(sample.height, sample.width) for sample in dataset.samples])[images].T
    faults = faulty_boxes(boxes, height, width)
    return {kind: _by_image(images[rows], boxes[rows], labels[rows]) for (kind, _), rows in faults.items()}


def marked_lost(dataset: Dataset, objects: InputObjects, lost: np.ndarray, image_size: int) -> list[Marked]:
    """The `lost_objects`, bool [N], of the images, those with the most first."""
    sizes = np.array([(sample.width, sample.height) * 2 for sample in dataset.samples])[objects.images]
    boxes = objects.boxes * sizes / image_size
    found = _by_image(objects.images[lost], boxes[lost], objects.labels[lost])
    return sorted(found, key=lambda marked: -len(marked.labels))


def _by_image(images: np.ndarray, boxes: np.ndarray, labels: np.ndarray) -> list[Marked]:
    """images: ascending."""
    numbers, starts = np.unique(images, return_index=True)
    parts = np.split(np.arange(len(images)), starts[1:])  # one that is empty, if there are no images
    return [Marked(image, boxes[rows], labels[rows]) for image, rows in zip(numbers.tolist(), parts, strict=False)]
