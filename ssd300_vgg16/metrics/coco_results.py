"""Detections and objects in columns, and detections as COCO's results format has them in a file."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from pathlib import Path

import numpy as np
from tqdm import tqdm

from ssd300_vgg16.boxes import xyxy_to_xywh
from ssd300_vgg16.data.dataset import Category, Dataset, Sample
from ssd300_vgg16.files import open_atomically


@dataclass(frozen=True)
class CocoResults:
    """N detections in the order of a data set's images, and in each image in the detector's order.

    images: int64 [N], index in samples; classes: int64 [N], index in categories, which are in order of id;
    boxes_xywh: float64 [N, 4] in pixels, of three decimals; scores: float64 [N]. Iteration gives COCO's dicts, with
    file names too if named: that is for data sets whose image ids are mere numbers.
    """

    samples: list[Sample]
    categories: list[Category]
    images: np.ndarray
    classes: np.ndarray
    boxes_xywh: np.ndarray
    scores: np.ndarray
    named: bool

    def __len__(self) -> int:
        return len(self.images)

    def __iter__(self) -> Iterator[dict]:
        return chain.from_iterable(self._by_image())

    def _by_image(self) -> Iterator[list[dict]]:
        """Image by image: all at once the dicts would take many times the memory of the arrays."""
        ends = np.searchsorted(self.images, np.arange(len(self.samples) + 1)).tolist()
        for sample, (start, end) in zip(self.samples, pairwise(ends), strict=True):
            about = {"file_name": sample.path.name} if self.named else {}
            columns = (column[start:end].tolist() for column in (self.classes, self.boxes_xywh, self.scores))
            yield [
                {"image_id": sample.id, "category_id": self.categories[number].id, "bbox": box, "score": score, **about}
                for number, box, score in zip(*columns, strict=True)
            ]

    def write(self, path: Path) -> None:
        """Write a JSON list, an image a line, atomically; on a terminal a bar shows how far it is."""
        bar = tqdm(self._by_image(), f"write {path.name}", len(self.samples), unit="image", disable=None, leave=False)
        with open_atomically(path) as file:
            file.write(b"[")
            between = b"\n"
            for rows in filter(None, bar):
                file.write(between + json.dumps(rows)[1:-1].encode())
                between = b",\n"
            file.write(b"\n]\n")


def coco_results(dataset: Dataset, positions: list[int], detections: list[dict[str, np.ndarray]]) -> CocoResults:
    """The detections of the samples at these positions, as `postprocess` makes them, in columns.

    Labels the data set does not have are left out: it has no objects of theirs to be right or wrong about.
    """
    images = np.repeat(np.arange(len(positions)), [len(of_image["scores"]) for of_image in detections])
    boxes, scores, labels = (
        np.concatenate([of_image[name] for of_image in detections]) for name in ("boxes", "scores", "labels")
    )
    categories = sorted(dataset.categories, key=lambda category: category.id)
    classes = class_numbers(categories, labels)
    known = classes >= 0
    return CocoResults(
        [dataset.samples[position] for position in positions],
        categories,
        images[known],
        classes[known],
        # A thousandth of a pixel: finer than any IoU can tell, and in few letters.
        xyxy_to_xywh(boxes[known].astype(np.float64)).round(3),
        scores[known].astype(np.float64),
        named=dataset.kind != "coco",
    )


def object_columns(samples: Sequence[Sample], *names: str) -> tuple[np.ndarray, ...]:
    """The objects of all samples, one after another: the index of each one's sample, int64, and these columns."""
    images = np.repeat(np.arange(len(samples)), [len(sample.labels) for sample in samples])
    return images, *(np.concatenate([getattr(sample, name) for sample in samples]) for name in names)


def class_numbers(categories: list[Category], labels: np.ndarray) -> np.ndarray:
    """For each of labels int64 [N] the index of its category, -1 where none has it: int64 [N]."""
    numbers = np.full(max(category.label for category in categories) + 2, -1)
    numbers[[category.label for category in categories]] = np.arange(len(categories))
    return numbers[np.clip(labels, -1, len(numbers) - 1)]  # the last one is no category's
