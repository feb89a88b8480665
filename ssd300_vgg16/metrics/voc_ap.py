"""PASCAL VOC's average precision at IoU 0.5, as its development kit defines it, in both versions."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ssd300_vgg16 import boxes as box_math
from ssd300_vgg16.data.dataset import Dataset

MIN_IOU = 0.5
UNKNOWN = -1.0  # as in COCO's tool


@dataclass(frozen=True)
class VocMetrics:
    """Values in 0..1; -1 for classes without objects, which are left out of the means.

    per_class: category name to (AP as the area under the curve, which VOC uses since 2010; AP as the mean at 11
    recalls, which it used up to 2007; objects that are not difficult).
    """

    per_class: dict[str, tuple[float, float, int]]

    @property
    def mean_ap(self) -> float:
        """Mean over the classes of the area under the curve."""
        return _mean([area for area, _, objects in self.per_class.values() if objects])

    @property
    def mean_ap_07(self) -> float:
        """Mean over the classes of the AP at 11 recalls."""
        return _mean([eleven for _, eleven, objects in self.per_class.values() if objects])

    def columns(self) -> dict[str, dict[str, float]]:
        """For a table: AP of each class, by heading."""
        return {
            heading: {name: values[column] for name, values in self.per_class.items()}
            for column, heading in enumerate(("VOC AP", "VOC07 AP"))
        }

    def table(self) -> str:
        """The two means."""
        return (
            f"VOC mAP at IoU 0.5, area under the curve (2010 on): {self.mean_ap:.3f}\n"
            f"VOC mAP at IoU 0.5, 11 points (2007): {self.mean_ap_07:.3f}"
        )

    def as_json(self) -> dict:
        """The same as a JSON-able mapping."""
        names = ("AP", "AP_07", "objects")
        per_class = {name: dict(zip(names, values, strict=True)) for name, values in self.per_class.items()}
        return {"mAP": self.mean_ap, "mAP_07": self.mean_ap_07, "per_class": per_class}


def voc_ap(dataset: Dataset, positions: list[int], detections: list[dict[str, np.ndarray]]) -> VocMetrics:
    """VOC's AP of detections (as `postprocess` makes them) on the samples at these positions.

    A class's detections, by falling score, each take the object of their image with the highest IoU. Below IoU 0.5
    they are false; a difficult object makes them count for nothing; an object that was taken before makes them false.
    """
    columns = [np.concatenate(column) for column in zip(*_claims(dataset, positions, detections), strict=True)]
    scores, labels, claimed, difficult = columns
    samples = [dataset.samples[position] for position in positions]
    counted = np.concatenate([sample.labels[~sample.difficult] for sample in samples])
    per_class = {}
    for category in dataset.categories:
        rows = np.flatnonzero(labels == category.label)
        # Stable, so that equal scores count in the order of the images on every machine.
        rows = rows[np.argsort(-scores[rows], kind="stable")]
        # VOC counts a detection of a difficult object neither for nor against.
        rows = rows[~difficult[rows]]
        objects = int((counted == category.label).sum())
        true = _first_claims(claimed[rows])
        per_class[category.name] = (_area_ap(true, objects), _eleven_point_ap(true, objects), objects)
    return VocMetrics(per_class)


def _claims(
    dataset: Dataset, positions: list[int], detections: list[dict[str, np.ndarray]]
) -> Iterator[tuple[np.ndarray, ...]]:
    """Per image, arrays [D] of its detections: score, label, claimed object, whether that is difficult.

    Objects are numbered through the data set; -1 is a detection that claims none.
    """
    objects = 0
    for position, of_image in zip(positions, detections, strict=True):
        sample = dataset.samples[position]
        best, overlap = _best_object(of_image, sample.boxes, sample.labels)
        claims = overlap >= MIN_IOU
        difficult = np.zeros(len(best), dtype=bool)
        difficult[claims] = sample.difficult[best[claims]]
        yield of_image["scores"], of_image["labels"], np.where(claims, best + objects, -1), difficult
        objects += len(sample.labels)


def _best_object(
    of_image: dict[str, np.ndarray], boxes: np.ndarray, labels: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """For each detection the object of its class with the highest IoU, the first of equals, and that IoU."""
    count = len(of_image["scores"])
    if not (count and len(labels)):
        return np.zeros(count, dtype=np.int64), np.full(count, -1.0)
    ious = box_math.iou(of_image["boxes"].astype(np.float64), boxes)
    ious[of_image["labels"][:, None] != labels[None, :]] = -1
    best = ious.argmax(axis=1)
    return best, ious[np.arange(count), best]


def _first_claims(claimed: np.ndarray) -> np.ndarray:
    """Whether each detection of a class, in order of score, is the first to claim its object: bool [D]."""
    true = np.zeros(len(claimed), dtype=bool)
    # np.unique gives the first place of each, which is that of the best score.
    true[np.unique(claimed, return_index=True)[1]] = True
    return true & (claimed >= 0)


def _area_ap(true: np.ndarray, objects: int) -> float:
    """Area under the curve of precision, made to fall: at each recall the highest precision there or further on.

    true: bool [D], by falling score.
    """
    if not objects:
        return UNKNOWN
    envelope = np.maximum.accumulate(_precision(true)[::-1])[::-1]
    return float(envelope[true].sum() / objects)  # each true positive adds 1 / objects of recall


def _eleven_point_ap(true: np.ndarray, objects: int) -> float:
    """Mean over the recalls 0, 0.1, ... 1 of the highest precision there or further on."""
    if not objects:
        return UNKNOWN
    precision, hits = _precision(true), true.cumsum()
    # In whole numbers: 0.1 three times is not 0.3.
    best = [precision[10 * hits >= tenths * objects].max(initial=0) for tenths in range(11)]
    return float(np.mean(best))


def _precision(true: np.ndarray) -> np.ndarray:
    return true.cumsum() / np.arange(1, len(true) + 1)


def _mean(values: list[float]) -> float:
    return float(np.mean(values)) if values else UNKNOWN
