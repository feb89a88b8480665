"""Labels to look at again: what a detector is sure of and the labels deny, and what it sees no trace of."""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ssd300_vgg16.metrics.coco_results import CocoResults
from ssd300_vgg16.metrics.errors import BACKGROUND, CLASS, Judgement
from ssd300_vgg16.text import spreadsheet_cell

SURE = 0.5  # a detection is, from this score on
TRACE = 0.1  # the least score of a detection that counts as one
UNLABELLED, OTHER_CLASS, UNSEEN = "no label", "other class", "unseen label"
COLUMNS = ("suspicion", "file", "label", "detected", "score", "x", "y", "width", "height", "decision")


@dataclass(frozen=True)
class Suspicion:
    """kind: UNLABELLED, OTHER_CLASS or UNSEEN; image: index in samples; label, detected: numbers of classes, or -1.

    box_xywh: of the detection if there is one, else of the label.
    """

    kind: str
    image: int
    label: int
    detected: int
    score: float
    box_xywh: tuple[float, ...]


def suspicious(results: CocoResults, judgement: Judgement) -> list[Suspicion]:
    """First sure detections where nothing is labelled, then where another class is, then labels nothing comes near.

    Detections are in order of falling score, unseen labels of falling area: the small ones are often just hard to see.
    """
    sure = results.scores >= SURE
    found = []
    for kind, error in ((UNLABELLED, BACKGROUND), (OTHER_CLASS, CLASS)):
        rows = np.flatnonzero((judgement.kinds == error) & sure)
        if kind == OTHER_CLASS:  # of a label that is found as what it is nothing is suspected
            rows = rows[~judgement.hit[judgement.objects[rows]]]
        for row in rows[np.argsort(-results.scores[rows], kind="stable")]:
            label = int(judgement.classes[judgement.objects[row]]) if kind == OTHER_CLASS else -1
            box = tuple(results.boxes_xywh[row].tolist())
            image, detected = int(results.images[row]), int(results.classes[row])
            found.append(Suspicion(kind, image, label, detected, float(results.scores[row]), box))
    unseen = np.flatnonzero(~judgement.ignored & (judgement.near_scores < TRACE))
    areas = judgement.boxes_xywh[unseen, 2] * judgement.boxes_xywh[unseen, 3]
    for row in unseen[np.argsort(-areas, kind="stable")]:
        box = tuple(judgement.boxes_xywh[row].tolist())
        found.append(Suspicion(UNSEEN, int(judgement.images[row]), int(judgement.classes[row]), -1, 0.0, box))
    return found


def as_csv(suspicions: Sequence[Suspicion], files: Sequence[str], names: Sequence[str]) -> bytes:
    """A table to work through, with an empty column for what was decided; files: of the images; names: of classes."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(COLUMNS)
    for one in suspicions:
        label, detected = (
            "" if number < 0 else spreadsheet_cell(names[number]) for number in (one.label, one.detected)
        )
        score = f"{one.score:.3f}" if one.detected >= 0 else ""
        box = [f"{value:.1f}" for value in one.box_xywh]
        table.writerow([one.kind, spreadsheet_cell(files[one.image]), label, detected, score, *box, ""])
    return text.getvalue().encode("utf-8", "surrogateescape")  # file names need not be UTF-8
