"""Which errors a detector makes, and the AP that mending each kind would bring.

The definition is TIDE's (Bolya et al., "TIDE: A General Toolbox for Identifying Object Detection Errors", 2020), at
IoU 0.5. An error is mended as its authors do it: a wrong class is set right and a bad box moved onto its object, unless
a better detection claims the object; duplicates and detections on background are taken away; a missed object is no
longer asked for.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from ssd300_vgg16.boxes import xyxy_to_xywh
from ssd300_vgg16.metrics.coco_matching import iou_xywh
from ssd300_vgg16.metrics.coco_results import CocoResults, class_numbers

FOUND_IOU, BACKGROUND_IOU = 0.5, 0.1
MAX_DETECTIONS = 100  # per image, the best
RECALLS = np.arange(101) / 100
# What a detection is: a hit, one that does not count, or an error.
HIT, IGNORED, CLASS, LOCALISATION, BOTH, DUPLICATE, BACKGROUND = range(7)
ERRORS = {
    "class": "the box is right and the class is wrong",
    "localisation": "the class is right and the box is not",
    "both": "box and class are wrong",
    "duplicate": "the object has been found by a better detection",
    "background": "there is no object",
    "missed": "an object that no detection comes near",
}
MISSED = "missed"


@dataclass(frozen=True)
class Judgement:
    """N detections of a CocoResults and the M objects of its samples, in order of the samples.

    kinds: int64 [N], HIT to BACKGROUND. objects: int64 [N], the object that a detection hits, or that it would hit if
    it were mended; -1 for others. order: int64 [P], the detections that were looked at, by image and falling score.
    ignored: bool [M], crowds and difficult objects. hit: bool [M]. claims: int64 [M], the best detection that would
    find the object if it were mended; -1 where there is none. near_scores: float64 [M], the best score of a detection
    of any class that comes near the object; 0 where none does. images, classes: int64 [M]. boxes_xywh: float64 [M, 4].
    """

    kinds: np.ndarray
    objects: np.ndarray
    order: np.ndarray
    ignored: np.ndarray
    hit: np.ndarray
    claims: np.ndarray
    near_scores: np.ndarray
    images: np.ndarray
    classes: np.ndarray
    boxes_xywh: np.ndarray

    @property
    def missed(self) -> np.ndarray:
        """The objects that neither a detection nor a mended one finds: bool [M]."""
        return ~self.ignored & ~self.hit & (self.claims < 0)


@dataclass(frozen=True)
class ErrorFigures:
    """ap50: as TIDE computes it, over all classes that have objects or detections. By kind of error: counts, and gains
    in ap50 if all of the kind were mended. without_false_alarms, without_misses: gains if there were none at all."""

    ap50: float
    counts: dict[str, int]
    gains: dict[str, float]
    without_false_alarms: float
    without_misses: float

    def as_json(self) -> dict:
        """The figures by name."""
        kinds = {name: {"count": self.counts[name], "AP50_gain": self.gains[name]} for name in ERRORS}
        alarms, misses = self.without_false_alarms, self.without_misses
        return {"AP50": self.ap50, **kinds, "without_false_alarms": alarms, "without_misses": misses}


def judge(results: CocoResults) -> Judgement:
    """What each detection is, and which objects are found."""
    samples = results.samples
    counts = [len(sample.labels) for sample in samples]
    labels, boxes, crowd, difficult = (
        np.concatenate([getattr(sample, name) for sample in samples])
        for name in ("labels", "boxes", "crowd", "difficult")
    )
    classes, boxes_xywh, ignored = class_numbers(results.categories, labels), xyxy_to_xywh(boxes), crowd | difficult
    kinds = np.full(len(results), IGNORED)
    objects, order = np.full(len(results), -1), [np.empty(0, dtype=np.int64)]
    hit, claims, near = np.zeros(len(labels), dtype=bool), np.full(len(labels), -1), np.zeros(len(labels))
    ends = np.searchsorted(results.images, np.arange(len(samples) + 1))
    for (first, last), (start, end) in zip(pairwise(ends), pairwise(np.cumsum([0, *counts])), strict=True):
        rows = first + np.argsort(-results.scores[first:last], kind="stable")[:MAX_DETECTIONS]
        order.append(rows)
        asked = start + np.flatnonzero(~ignored[start:end])
        # Crowds and difficult objects excuse a detection; they are not asked for.
        regions = start + np.flatnonzero(ignored[start:end])
        shared = _ious(results.boxes_xywh[rows], boxes_xywh[regions], crowd[regions]) > FOUND_IOU
        excused = (shared & (results.classes[rows][:, None] == classes[regions])).any(axis=1)
        iou = _ious(results.boxes_xywh[rows], boxes_xywh[asked], crowd[asked])
        same = results.classes[rows][:, None] == classes[asked]
        near[asked] = np.where(iou > BACKGROUND_IOU, results.scores[rows][:, None], 0).max(axis=0, initial=0)
        kinds[rows], places = _judge_image(iou, same, excused)
        touched = places >= 0
        objects[rows[touched]] = asked[places[touched]]
        hit[objects[rows[kinds[rows] == HIT]]] = True
        for row in rows[np.isin(kinds[rows], (CLASS, LOCALISATION))]:  # the best first
            if not hit[objects[row]] and claims[objects[row]] < 0:
                claims[objects[row]] = row
    images = np.repeat(np.arange(len(samples)), counts)
    return Judgement(kinds, objects, np.concatenate(order), ignored, hit, claims, near, images, classes, boxes_xywh)


def _ious(detections: np.ndarray, objects: np.ndarray, crowd: np.ndarray) -> np.ndarray:
    """IoU [D, G] of boxes xywh."""
    pairs = np.repeat(detections, len(objects), axis=0), np.tile(objects, (len(detections), 1))
    return iou_xywh(*pairs, np.tile(crowd, len(detections))).reshape(len(detections), len(objects))


def _judge_image(iou: np.ndarray, same: np.ndarray, excused: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The kinds [D] of an image's detections, by falling score, and each one's object or -1.

    iou: [D, G]; same: bool [D, G], whether the class is the object's; excused: bool [D], for misses only.
    """
    if not iou.size:
        return np.where(excused, IGNORED, BACKGROUND), np.full(len(iou), -1)
    same_iou, other_iou = np.where(same, iou, 0), np.where(same, 0, iou)
    free, taken = same_iou.copy(), np.zeros(iou.shape[1], dtype=bool)
    hits, places = np.zeros(len(iou), dtype=bool), np.full(len(iou), -1)
    for row in np.flatnonzero((same_iou >= FOUND_IOU).any(axis=1)):
        place = int(free[row].argmax())
        if free[row, place] >= FOUND_IOU:
            hits[row], taken[place], places[row] = True, True, place
            free[:, place] = 0
    # From here on in TIDE's order: the first kind that fits is the one.
    nearest = same_iou.max(axis=1)
    wide_of_it = (nearest >= BACKGROUND_IOU) & (nearest <= FOUND_IOU)
    wrong_class = other_iou.max(axis=1) >= FOUND_IOU
    again = np.where(taken, same_iou, 0).max(axis=1) >= FOUND_IOU
    on_background = iou.max(axis=1) <= BACKGROUND_IOU
    kinds = np.select(
        [hits, excused, wide_of_it, wrong_class, again, on_background],
        [HIT, IGNORED, LOCALISATION, CLASS, DUPLICATE, BACKGROUND],
        BOTH,
    )
    places = np.where(kinds == LOCALISATION, same_iou.argmax(axis=1), places)
    return kinds, np.where(kinds == CLASS, other_iou.argmax(axis=1), places)


def error_figures(results: CocoResults, judgement: Judgement) -> ErrorFigures:
    """How many errors of each kind there are, and what they cost."""
    points = _Points.of(results, judgement)
    ap50 = points.mean_ap()
    kinds = dict(zip(ERRORS, (CLASS, LOCALISATION, BOTH, DUPLICATE, BACKGROUND), strict=False))
    counts = {name: int((judgement.kinds == kind).sum()) for name, kind in kinds.items()}
    mended = {name: points.mended(kind, judgement) for name, kind in kinds.items()}
    mended[MISSED] = points.asking(~judgement.missed, judgement)
    # Below 0 only by the steps in which recall is counted: TIDE says 0 then.
    gains = {name: max(of_kind.mean_ap() - ap50, 0.0) for name, of_kind in mended.items()}
    counts[MISSED] = int(judgement.missed.sum())
    without_misses = points.asking(judgement.hit, judgement).mean_ap() - ap50
    return ErrorFigures(ap50, counts, gains, points.sorted_out().mean_ap() - ap50, without_misses)


@dataclass(frozen=True)
class _Points:
    """What AP is computed of. rows: int64 [P], the detections; classes, scores, true: [P]; asked: objects of each
    class, int64 [K]."""

    rows: np.ndarray
    classes: np.ndarray
    scores: np.ndarray
    true: np.ndarray
    asked: np.ndarray

    @classmethod
    def of(cls, results: CocoResults, judgement: Judgement) -> "_Points":
        rows = judgement.order[judgement.kinds[judgement.order] != IGNORED]
        asked = np.bincount(judgement.classes[~judgement.ignored], minlength=len(results.categories))
        return cls(rows, results.classes[rows], results.scores[rows], judgement.kinds[rows] == HIT, asked)

    def mended(self, kind: int, judgement: Judgement) -> "_Points":
        """The same with all errors of the kind mended: those that claim an object find it, the others go."""
        wrong = judgement.kinds[self.rows] == kind
        objects = judgement.objects[self.rows]
        right = wrong & (objects >= 0)
        right[right] = judgement.claims[objects[right]] == self.rows[right]
        classes = np.where(right, judgement.classes[objects], self.classes) if len(judgement.classes) else self.classes
        # TIDE lists the errors first: of equal scores they count before the hits.
        order = np.argsort(self.true, kind="stable")
        order = order[(~wrong | right)[order]]
        return _Points(self.rows[order], classes[order], self.scores[order], (self.true | right)[order], self.asked)

    def asking(self, objects: np.ndarray, judgement: Judgement) -> "_Points":
        """The same where only these objects, bool [M], are asked for."""
        asked = np.bincount(judgement.classes[objects & ~judgement.ignored], minlength=len(self.asked))
        order = np.argsort(self.true, kind="stable")
        return _Points(self.rows[order], self.classes[order], self.scores[order], self.true[order], asked)

    def sorted_out(self) -> "_Points":
        """The same with all hits scored 1 and all errors 0."""
        return _Points(self.rows, self.classes, self.true.astype(np.float64), self.true, self.asked)

    def mean_ap(self) -> float:
        """The mean over the classes that have objects or detections; one that has no objects counts as 0."""
        aps = list(self._aps())
        return float(np.mean(aps)) if aps else 0.0

    def _aps(self) -> Iterator[float]:
        order = np.lexsort((-self.scores, self.classes))
        true = self.true[order]
        ends = np.searchsorted(self.classes[order], np.arange(len(self.asked) + 1))
        for (first, last), asked in zip(pairwise(ends), self.asked, strict=True):
            if asked or first < last:
                yield _ap(true[first:last], int(asked))


def _ap(true: np.ndarray, asked: int) -> float:
    """AP of detections by falling score, whether each is true, where so many objects are asked for."""
    if not asked:
        return 0.0
    hits = true.cumsum()
    precision = np.maximum.accumulate((hits / np.arange(1, len(hits) + 1))[::-1])[::-1]
    reached = np.searchsorted(hits / asked, RECALLS)
    return float(precision[reached[reached < len(hits)]].sum() / len(RECALLS))
