"""Detections in columns, and as COCO's results format has them in a file."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import numpy as np
from tqdm import tqdm

from ssd300_vgg16.boxes import xyxy_to_xywh
from ssd300_vgg16.data.dataset import Category, Dataset, Sample

ROWS_AT_A_TIME = 10_000


@dataclass(frozen=True)
class CocoResults:
    """N detections in the order of a data set's images, and in each image as they were found.

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
        # Some at a time, since lists of them take many times the memory of the arrays.
        for start in range(0, len(self), ROWS_AT_A_TIME):
            part = slice(start, start + ROWS_AT_A_TIME)
            columns = (self.images, self.classes, self.boxes_xywh, self.scores)
            for image, class_, box, score in zip(*(column[part].tolist() for column in columns), strict=True):
                sample = self.samples[image]
                row = {"image_id": sample.id, "category_id": self.categories[class_].id, "bbox": box, "score": score}
                yield {**row, "file_name": sample.path.name} if self.named else row

    def write(self, path: Path) -> None:
        """Write a JSON list, a detection a line, atomically; on a terminal a bar shows how far it is."""
        aside = path.with_name(f".{path.name}.tmp")
        with aside.open("w") as file:
            self._write_rows(file, path.name)
        aside.replace(path)

    def _write_rows(self, file: TextIO, name: str) -> None:
        encode, before = json.JSONEncoder().encode, "[\n"
        for row in tqdm(self, desc=f"write {name}", unit="detection", disable=None, leave=False):
            file.write(before + encode(row))
            before = ",\n"
        file.write("\n]\n" if len(self) else "[]\n")


def coco_results(dataset: Dataset, positions: list[int], detections: list[dict[str, np.ndarray]]) -> CocoResults:
    """The detections of the samples at these positions, as `postprocess` makes them, in columns.

    Labels the data set does not have are left out: it has no objects of theirs to be right or wrong about.
    """
    images = np.repeat(np.arange(len(positions)), [len(found["scores"]) for found in detections])
    boxes, scores, labels = (
        np.concatenate([found[name] for found in detections]) for name in ("boxes", "scores", "labels")
    )
    categories = sorted(dataset.categories, key=lambda category: category.id)
    classes = class_numbers(categories, labels)
    known = classes >= 0
    return CocoResults(
        [dataset.samples[position] for position in positions],
        categories,
        images[known],
        classes[known],
        xyxy_to_xywh(boxes[known].astype(np.float64)).round(3),
        scores[known].astype(np.float64),
        named=dataset.kind != "coco",
    )


def class_numbers(categories: list[Category], labels: np.ndarray) -> np.ndarray:
    """For each of labels int64 [N] the index of its category, -1 where none has it: int64 [N]."""
    numbers = np.full(max(category.label for category in categories) + 2, -1)
    numbers[[category.label for category in categories]] = np.arange(len(categories))
    return numbers[np.clip(labels, -1, len(numbers) - 1)]  # the last one is no category's
