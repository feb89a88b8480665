"""Which errors a detector makes, and the AP that mending each kind would bring.

The definition is TIDE's (Bolya et al., "TIDE: A General Toolbox for Identifying Object Detection Errors", 2020), at
IoU 0.5. An error is mended as its authors do it: a wrong class is set right and a bad box moved onto its object, unless
a better detection claims the object; duplicates and detections on background are taken away; a missed object is no
longer asked for.
"""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from ssd300_vgg16.boxes import xyxy_to_xywh
from ssd300_vgg16.metrics.coco_ap import iou_xywh
from ssd300_vgg16.metrics.coco_results import CocoResults, class_numbers, object_columns

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


def judge(results: CocoResults) -> Judgement:
    """What each detection is, and which objects are found."""
    samples = results.samples
    images, labels, boxes, crowd, difficult = object_columns(samples, "labels", "boxes", "crowd", "difficult")
    classes, boxes_xywh, ignored = class_numbers(results.categories, labels), xyxy_to_xywh(boxes), crowd | difficult
    kinds = np.full(len(results), IGNORED)
    objects, order = np.full(len(results), -1), [np.empty(0, dtype=np.int64)]
    hit, claims, near = np.zeros(len(labels), dtype=bool), np.full(len(labels), -1), np.zeros(len(labels))
    edges = np.arange(len(samples) + 1)
    ends, object_ends = np.searchsorted(results.images, edges), np.searchsorted(images, edges)
    for (first, last), (start, end) in zip(pairwise(ends), pairwise(object_ends), strict=True):
        rows = first + np.argsort(-results.scores[first:last], kind="stable")[:MAX_DETECTIONS]
        order.append(rows)
        asked = start + np.flatnonzero(~ignored[start:end])
        # Crowds and difficult objects excuse a detection; they are not asked for.
        regions = start + np.flatnonzero(ignored[start:end])
        shared = iou_xywh(results.boxes_xywh[rows][:, None], boxes_xywh[regions], crowd[regions]) > FOUND_IOU
        excused = (shared & (results.classes[rows][:, None] == classes[regions])).any(axis=1)
        iou = iou_xywh(results.boxes_xywh[rows][:, None], boxes_xywh[asked], crowd[asked])
        same = results.classes[rows][:, None] == classes[asked]
        near[asked] = np.where(iou > BACKGROUND_IOU, results.scores[rows][:, None], 0).max(axis=0, initial=0)
        kinds[rows], places = _judge_image(iou, same, excused)
        touched = places >= 0
        objects[rows[touched]] = asked[places[touched]]
        hit[objects[rows[kinds[rows] == HIT]]] = True
        for row in rows[np.isin(kinds[rows], (CLASS, LOCALISATION))]:  # the best first
            if not hit[objects[row]] and claims[objects[row]] < 0:
                claims[objects[row]] = row
    return Judgement(kinds, objects, np.concatenate(order), ignored, hit, claims, near, images, classes, boxes_xywh)


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


def error_figures(results: CocoResults, judgement: Judgement) -> dict:
    """What errors cost. AP50: as TIDE computes it, over all classes that have objects or detections.

    By kind of error: count, and AP50_gain if all of the kind were mended. without_false_alarms, without_misses: gains
    if there were none at all.
    """
    rows = judgement.order[judgement.kinds[judgement.order] != IGNORED]
    kinds, classes, scores = judgement.kinds[rows], results.classes[rows], results.scores[rows]
    true = kinds == HIT
    # The class and the claim of a detection's object; the one appended is that of those without an object, -1.
    class_of_object = np.append(judgement.classes, -1)[judgement.objects[rows]]
    claims_it = np.append(judgement.claims, -1)[judgement.objects[rows]] == rows
    # TIDE lists the errors first: of equal scores they count before the hits.
    errors_first = np.argsort(true, kind="stable")

    def asked(objects: np.ndarray) -> np.ndarray:
        return np.bincount(judgement.classes[objects & ~judgement.ignored], minlength=len(results.categories))

    def mended(kind: int) -> float:
        wrong = kinds == kind
        right = wrong & claims_it
        kept = errors_first[(~wrong | right)[errors_first]]
        of_class = np.where(right, class_of_object, classes)
        return _mean_ap(of_class[kept], scores[kept], (true | right)[kept], asked(~judgement.ignored))

    def asking(objects: np.ndarray) -> float:
        return _mean_ap(classes[errors_first], scores[errors_first], true[errors_first], asked(objects))

    ap50 = _mean_ap(classes, scores, true, asked(~judgement.ignored))
    costs = {name: (judgement.kinds == kind, mended(kind)) for kind, name in enumerate(list(ERRORS)[:-1], start=CLASS)}
    costs["missed"] = judgement.missed, asking(~judgement.missed)
    # Below 0 only by the steps in which recall is counted: TIDE says 0 then.
    by_kind = {
        name: {"count": int(which.sum()), "AP50_gain": max(ap - ap50, 0.0)} for name, (which, ap) in costs.items()
    }
    without_false_alarms = _mean_ap(classes, true.astype(np.float64), true, asked(~judgement.ignored)) - ap50
    without_misses = asking(judgement.hit) - ap50
    return {"AP50": ap50, **by_kind, "without_false_alarms": without_false_alarms, "without_misses": without_misses}


def _mean_ap(classes: np.ndarray, scores: np.ndarray, true: np.ndarray, asked: np.ndarray) -> float:
    """The mean over the classes that have detections or objects, of which so many are asked for, int64 [K].

    A class that has no objects counts as 0.
    """
    order = np.lexsort((-scores, classes))
    ends = np.searchsorted(classes[order], np.arange(len(asked) + 1))
    aps = [
        _ap(true[order[first:last]], objects)
        for (first, last), objects in zip(pairwise(ends), asked.tolist(), strict=True)
        if objects or first < last
    ]
    return float(np.mean(aps)) if aps else 0.0


def _ap(true: np.ndarray, asked: int) -> float:
    """AP of detections by falling score, whether each is true, where so many objects are asked for."""
    if not asked:
        return 0.0
    hits = true.cumsum()
    precision = np.maximum.accumulate((hits / np.arange(1, len(hits) + 1))[::-1])[::-1]
    reached = np.searchsorted(hits / asked, RECALLS)
    return float(precision[reached[reached < len(hits)]].sum() / len(RECALLS))
