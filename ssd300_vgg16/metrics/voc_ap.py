"""PASCAL VOC's average precision at IoU 0.5, as its development kit defines it, in both versions."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ssd300_vgg16 import boxes as box_math
from ssd300_vgg16.data.dataset import Dataset
from ssd300_vgg16.metrics.coco_ap import UNKNOWN, mean_of_known

MIN_IOU = 0.5


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
        return mean_of_known(np.array([area for area, _, _ in self.per_class.values()]))

    @property
    def mean_ap_07(self) -> float:
        """Mean over the classes of the AP at 11 recalls."""
        return mean_of_known(np.array([eleven for _, eleven, _ in self.per_class.values()]))

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
        per_class = {
            name: {"AP": area, "AP_07": eleven, "objects": objects}
            for name, (area, eleven, objects) in self.per_class.items()
        }
        return {"mAP": self.mean_ap, "mAP_07": self.mean_ap_07, "per_class": per_class}


def voc_ap(dataset: Dataset, positions: list[int], detections: list[dict[str, np.ndarray]]) -> VocMetrics:
    """VOC's AP of detections (as `postprocess` makes them) on the samples at these positions.

    A class's detections, by falling score, each take the object of their image with the highest IoU. Below IoU 0.5
    they are false; a difficult object makes them count for nothing; an object that was taken before makes them false.
    """
    columns = zip(*_claims(dataset, positions, detections), strict=True)
    scores, labels, claimed, difficult = (np.concatenate(column) for column in columns)
    samples = [dataset.samples[position] for position in positions]
    counted = np.concatenate([sample.labels[~sample.difficult] for sample in samples])
    per_class = {}
    for category in dataset.categories:
        # VOC counts a detection of a difficult object neither for nor against.
        rows = np.flatnonzero((labels == category.label) & ~difficult)
        # Stable, so that equal scores count in the order of the images on every machine.
        rows = rows[np.argsort(-scores[rows], kind="stable")]
        true = np.zeros(len(rows), dtype=bool)
        # The first to claim an object, which has the best score, finds it.
        true[np.unique(claimed[rows], return_index=True)[1]] = True
        objects = int((counted == category.label).sum())
        per_class[category.name] = (*_aps(true & (claimed[rows] >= 0), objects), objects)
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
        ious = box_math.iou(of_image["boxes"].astype(np.float64), sample.boxes)
        ious[of_image["labels"][:, None] != sample.labels] = -1
        # A last column that is no object, so that there is a highest one in any image.
        ious = np.pad(ious, ((0, 0), (0, 1)), constant_values=-1)
        best = ious.argmax(axis=1)
        claims = ious.max(axis=1) >= MIN_IOU
        difficult = claims & np.append(sample.difficult, False)[best]
        yield of_image["scores"], of_image["labels"], np.where(claims, best + objects, -1), difficult
        objects += len(sample.labels)


def _aps(true: np.ndarray, objects: int) -> tuple[float, float]:
    """The area under the curve, and the mean at 11 recalls; true: bool [D], by falling score."""
    if not objects:
        return UNKNOWN, UNKNOWN
    hits = true.cumsum()
    precision = hits / np.arange(1, len(true) + 1)
    # Made to fall: at each recall the highest precision there or further on.
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    area = envelope[true].sum() / objects  # each true positive adds 1 / objects of recall
    # In whole numbers: 0.1 three times is not 0.3.
    best = [precision[10 * hits >= tenths * objects].max(initial=0) for tenths in range(11)]
    return float(area), float(np.mean(best))
