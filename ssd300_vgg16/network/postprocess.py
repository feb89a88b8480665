"""From the network's answers to detections: softmax, thresholds, per-class NMS, pixels of the image (section 2.2)."""

import numpy as np

from ssd300_vgg16 import boxes as box_math
from ssd300_vgg16.network.default_boxes import SSD300_COCO, DefaultBoxLayout, default_boxes
from ssd300_vgg16.network.nms import nms

# Liu et al. 2016, section 2.2 and the end of section 3.1; 400 candidates for each class as the published COCO model.
SCORE_THRESHOLD = 0.01
CANDIDATES_PER_CLASS = 400
NMS_IOU = 0.45
DETECTIONS_PER_IMAGE = 200


def postprocess(
    offsets,
    logits,
    sizes_hw,
    score_threshold: float = SCORE_THRESHOLD,
    layout: DefaultBoxLayout = SSD300_COCO,
) -> list[dict[str, np.ndarray]]:
    """Detections of a batch, in numpy, an entry per image.

    offsets [B, D, 4] and logits [B, D, C] are tensors as the network gives them, or arrays, D the layout's default
    boxes; sizes_hw is [B, 2], the height and width in pixels that the boxes are to be in. Each entry holds "boxes"
    float32 [N, 4] xyxy in pixels, inside the image; "scores" float32 [N] in 0..1, falling; "labels" int64 [N] from 1
    up. N is at most 200. A class keeps its 400 best scores strictly above score_threshold, then NMS at IoU 0.45 thins
    them out.
    """
    if not isinstance(offsets, np.ndarray):
        offsets, logits = offsets.detach().numpy(), logits.detach()
    select = _select_on_gpu if getattr(logits, "is_cuda", False) else _select_on_cpu
    found = []
    for image in range(len(offsets)):
        candidates = select(logits[image], score_threshold)
        found.append(_detections(offsets[image], candidates, sizes_hw[image], layout))
    return found


def _detections(offsets: np.ndarray, candidates: tuple, size_hw, layout: DefaultBoxLayout) -> dict[str, np.ndarray]:
    scores, rows, labels = candidates
    defaults = default_boxes(layout)
    if len(rows) < len(defaults):  # else it is less work to decode each once and then choose
        offsets, defaults, rows = offsets[rows], defaults[rows], slice(None)
    boxes = box_math.clip(box_math.decode(offsets, defaults), layout.image_size, layout.image_size)[rows]
    kept = nms(boxes, scores, labels, NMS_IOU, DETECTIONS_PER_IMAGE)
    height, width = (np.float32(side) / np.float32(layout.image_size) for side in size_hw)
    in_pixels = boxes[kept] * np.array([width, height, width, height], dtype=np.float32)
    return {"boxes": in_pixels, "scores": scores[kept], "labels": labels[kept]}


def _select_on_cpu(logits, threshold: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores, default boxes and labels of each class's best candidates above the threshold: three arrays [N].

    logits is a tensor or array [D, C], the background first.
    """
    scores = _softmax(logits if isinstance(logits, np.ndarray) else logits.numpy())
    passing = scores > threshold
    passing[:, 0] = False
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


def _select_on_gpu(logits, threshold: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """As `_select_on_cpu`, moving only each class's best candidates to the host."""
    from ssd300_vgg16.runtime import flow

    by_class = flow.softmax(logits, dim=-1)[:, 1:].transpose(0, 1).contiguous()
    values, rows = flow.topk(by_class, min(CANDIDATES_PER_CLASS, by_class.shape[1]), dim=1)
    values, rows = values.numpy(), rows.numpy()
    columns, ranks = np.nonzero(values > threshold)
    return values[columns, ranks], rows[columns, ranks], columns + 1
