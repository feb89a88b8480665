"""From the network's outputs to detections: softmax, thresholds, per-class NMS, pixels of the image (section 2.2)."""

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ssd300_vgg16 import boxes as box_math
from ssd300_vgg16.network.variants import SSD300_COCO, DefaultBoxLayout, default_boxes

if TYPE_CHECKING:  # outputs are tensors of OneFlow, or arrays of ONNX Runtime: then OneFlow is not loaded
    import oneflow as flow

# Liu et al. 2016, section 2.2 and the end of section 3.1; 400 candidates for each class as in the published COCO model.
SCORE_THRESHOLD = 0.01
CANDIDATES_PER_CLASS = 400
NMS_IOU = 0.45
DETECTIONS_PER_IMAGE = 200
# Where there are many candidates, about so many of the best are tried first: NMS mostly leaves 200 of them.
ENOUGH = 2100
# What score those have is estimated from each 7th default box. 7 is no multiple of 4 or 6, a cell's default boxes, so
# that boxes of every shape are in the sample.
SAMPLED = 7
# Boxes that NMS looks at together: large enough to amortise numpy's calls, small enough to stop early.
BLOCK = 1024

Candidates = tuple[np.ndarray, np.ndarray, np.ndarray]  # [N] each: scores, which default boxes, labels


class Best(NamedTuple):
    """Each class's best scores, falling, of a batch: [B, C - 1, N], and the default boxes that they belong to."""

    scores: "flow.Tensor"
    rows: "flow.Tensor"


def nms(boxes: np.ndarray, scores: np.ndarray, labels: np.ndarray, iou_threshold: float, max_boxes: int) -> np.ndarray:
    """Indices int64 of the boxes that greedy per-class NMS keeps, in order of falling score, at most max_boxes.

    boxes [N, 4] xyxy, scores [N], labels [N]. A box is dropped if its IoU with a better kept box of the same label is
    above iou_threshold (strictly). Of equal scores the earlier box is the better one.
    """
    order = np.argsort(-scores, kind="stable")
    kept = np.empty(0, dtype=np.int64)
    for start in range(0, len(order), BLOCK):
        block = order[start : start + BLOCK]
        block = block[~_suppressed_by(kept, block, boxes, labels, iou_threshold)]
        kept = np.concatenate((kept, block[_keep_within(boxes[block], labels[block], iou_threshold)]))
        if len(kept) >= max_boxes:
            break
    return kept[:max_boxes]


def _suppressed_by(
    kept: np.ndarray, block: np.ndarray, boxes: np.ndarray, labels: np.ndarray, iou_threshold: float
) -> np.ndarray:
    """Which of a block's boxes overlap a kept box of their label: bool [len(block)]."""
    better, candidate = np.nonzero(labels[kept][:, None] == labels[block][None, :])
    overlapping = _overlap(boxes[kept[better]], boxes[block[candidate]], iou_threshold)
    suppressed = np.zeros(len(block), dtype=bool)
    suppressed[candidate[overlapping]] = True
    return suppressed


def _keep_within(boxes: np.ndarray, labels: np.ndarray, iou_threshold: float) -> np.ndarray:
    """What greedy NMS keeps of boxes sorted by falling score: bool [N].

    A box is kept if no better box that is kept suppresses it. Box after box would be slow in numpy: the rule is applied
    to all at once until nothing changes. After round r, the r best boxes of each chain of overlaps are settled, so it
    ends, and with the greedy answer.
    """
    better, worse = _pairs_of_same_label(labels)
    overlapping = _overlap(boxes[better], boxes[worse], iou_threshold)
    better, worse = better[overlapping], worse[overlapping]
    keep = np.ones(len(boxes), dtype=bool)
    while True:
        updated = np.ones(len(boxes), dtype=bool)
        updated[worse[keep[better]]] = False
        if np.array_equal(updated, keep):
            return keep
        keep = updated


def _pairs_of_same_label(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """All pairs (i, j), i < j, of positions with equal labels."""
    # In order of label, the partners of a position are those from behind it to the end of its label's run. All pairs of
    # positions would be 90 times as many on COCO.
    by_label = np.argsort(labels, kind="stable")
    sizes = np.unique(labels, return_counts=True)[1]
    ends = np.repeat(np.cumsum(sizes), sizes)
    positions = np.arange(len(labels))
    partners = ends - 1 - positions
    first = np.repeat(positions, partners)
    run_starts = np.repeat(np.cumsum(partners) - partners, partners)
    second = np.arange(len(first)) - run_starts + first + 1
    return by_label[first], by_label[second]


def _overlap(a: np.ndarray, b: np.ndarray, iou_threshold: float) -> np.ndarray:
    """Whether IoU is above the threshold for each pair of rows of a [P, 4] and b [P, 4]: bool [P]."""
    width = np.minimum(a[:, 2], b[:, 2]) - np.maximum(a[:, 0], b[:, 0])
    height = np.minimum(a[:, 3], b[:, 3]) - np.maximum(a[:, 1], b[:, 1])
    shared = np.maximum(width, 0) * np.maximum(height, 0)
    # Without a division, so that boxes without area need no care.
    return shared > iou_threshold * (box_math.area(a) + box_math.area(b) - shared)


def postprocess(
    offsets: "np.ndarray | flow.Tensor",
    logits: "np.ndarray | flow.Tensor | Best",
    sizes_hw: Sequence[Sequence[float]] | np.ndarray,
    score_threshold: float = SCORE_THRESHOLD,
    layout: DefaultBoxLayout = SSD300_COCO,
) -> list[dict[str, np.ndarray]]:
    """Detections of a batch, in numpy, an entry per image.

    offsets [B, D, 4] and logits [B, D, C] are tensors as the network gives them, `best_to_host` of them, or arrays, for
    the layout's D default boxes; sizes_hw [B, 2] are heights and widths of the images in pixels. Each entry holds
    "boxes" float32 [N, 4] xyxy in pixels, inside the image; "scores" float32 [N] in 0..1, falling; "labels" int64 [N]
    from 1 up. N is at most 200.
    A class keeps its 400 best scores strictly above score_threshold, of which NMS at IoU 0.45 leaves some.
    """
    if getattr(logits, "is_cuda", False):
        offsets, logits = best_to_host(offsets, logits)
    if not isinstance(offsets, np.ndarray):
        offsets = offsets.detach().numpy()
    tries: Iterable[Iterable[Candidates]]
    if isinstance(logits, Best):
        images = zip(logits.scores.numpy(), logits.rows.numpy(), strict=True)
        tries = ([_candidates_of_best(scores, rows, score_threshold)] for scores, rows in images)
    else:
        logits = logits if isinstance(logits, np.ndarray) else logits.detach().numpy()
        tries = (_candidates_on_cpu(of_image, score_threshold) for of_image in logits)
    return [_detections(*each, layout) for each in zip(offsets, tries, sizes_hw, strict=True)]


def _detections(
    offsets: np.ndarray, tries: Iterable[Candidates], size_hw: Sequence[float], layout: DefaultBoxLayout
) -> dict[str, np.ndarray]:
    # What NMS keeps of the highest scores, it keeps whatever comes below them: once it keeps enough, we are done.
    for scores, rows, labels in tries:
        boxes = _decoded(offsets, rows, layout)
        kept = nms(boxes, scores, labels, NMS_IOU, DETECTIONS_PER_IMAGE)
        if len(kept) == DETECTIONS_PER_IMAGE:
            break
    height, width = (np.float32(side) / np.float32(layout.image_size) for side in size_hw)
    in_pixels = boxes[kept] * np.array([width, height, width, height], dtype=np.float32)
    return {"boxes": in_pixels, "scores": scores[kept], "labels": labels[kept]}


def _decoded(offsets: np.ndarray, rows: np.ndarray, layout: DefaultBoxLayout) -> np.ndarray:
    """Boxes [N, 4] of these default boxes (a row may come often), in pixels of the network's input, inside it."""
    defaults = default_boxes(layout)
    few = len(rows) < len(defaults)  # else it is less work to decode each default box once, and choose then
    boxes = box_math.decode(offsets[rows], defaults[rows]) if few else box_math.decode(offsets, defaults)
    boxes = box_math.clip(boxes, layout.image_size, layout.image_size)
    return boxes if few else boxes[rows]


def _candidates_on_cpu(logits: np.ndarray, threshold: float) -> Iterator[Candidates]:
    """Each class's best candidates above the threshold, of logits [D, C]; if they are many, first the highest."""
    scores = _softmax(logits)
    scores[:, 0] = 0
    sample = scores[::SAMPLED]
    sample = sample[sample > threshold]
    if len(sample) * SAMPLED > 2 * ENOUGH:
        yield _best_above(scores, np.partition(sample, -ENOUGH // SAMPLED)[-ENOUGH // SAMPLED])
    yield _best_above(scores, threshold)


def _best_above(scores: np.ndarray, threshold: float) -> Candidates:
    """Of scores [D, C], each class's best above the threshold."""
    passing = scores > threshold
    crowded = np.flatnonzero(np.count_nonzero(passing, axis=0) > CANDIDATES_PER_CLASS)
    if len(crowded):
        passing[:, crowded] &= _best_of_class(np.ascontiguousarray(scores[:, crowded].T)).T
    rows, labels = np.divmod(np.flatnonzero(passing), passing.shape[1])  # as np.nonzero, in a fifth of the time
    return scores[rows, labels], rows, labels


def _softmax(logits: np.ndarray) -> np.ndarray:
    """Scores [D, C] in 0..1, each row's sum 1."""
    exponents = logits - logits.max(axis=1, keepdims=True)
    np.exp(exponents, out=exponents)
    return np.divide(exponents, exponents.sum(axis=1, keepdims=True), out=exponents)


def _best_of_class(scores: np.ndarray) -> np.ndarray:
    """Which are among the CANDIDATES_PER_CLASS highest of their row: bool like scores [classes, D]."""
    best = np.argpartition(-scores, CANDIDATES_PER_CLASS - 1, axis=1)[:, :CANDIDATES_PER_CLASS]
    chosen = np.zeros(scores.shape, dtype=bool)
    np.put_along_axis(chosen, best, True, axis=1)
    return chosen


def best_to_host(offsets: "flow.Tensor", logits: "flow.Tensor") -> "tuple[flow.Tensor, Best]":
    """What `postprocess` takes in place of a GPU's answers: chosen there, and sent to the host without a wait."""
    by_class = logits.detach().softmax(dim=-1)[:, :, 1:].transpose(1, 2).contiguous()
    # OneFlow's topk copies row after row: 90 copies for each image.
    scores, rows = by_class.sort(dim=2, descending=True)
    best = (part[:, :, :CANDIDATES_PER_CLASS].to("cpu") for part in (scores, rows))
    return offsets.detach().to("cpu"), Best(*best)


def _candidates_of_best(scores: np.ndarray, rows: np.ndarray, threshold: float) -> Candidates:
    """As the last of `_candidates_on_cpu`, of an image's Best."""
    columns, ranks = np.nonzero(scores > threshold)
    return scores[columns, ranks], rows[columns, ranks], columns + 1
