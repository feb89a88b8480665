"""The multibox loss on the CPU, with its gradients in the same pass over the default boxes."""

import math

import numpy as np
from numba import boolean, float32, float64, int64, types

from ssd300_vgg16.boxes import CENTRE_VARIANCE, MAX_LOG_RATIO, SIZE_VARIANCE
from ssd300_vgg16.network.cpu.threads import compiled, reused, run_in_threads
from ssd300_vgg16.network.variants import GIOU_WEIGHT, NEGATIVES_PER_POSITIVE

_ROWS = types.Array(float32, 2, "C", readonly=True)
_LABELS = types.Array(int64, 1, "C", readonly=True)
_MADE = types.Array(float32, 2, "C")
_LINE = types.Array(float32, 1, "C")
_OFFSETS = types.Array(float32, 1, "C", readonly=True)


def multibox_loss(
    offsets: np.ndarray,
    logits: np.ndarray,
    target_offsets: np.ndarray,
    target_labels: np.ndarray,
    background_positives: int = 0,
    by_giou: bool = False,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Sums of both losses, float64 [2], and the gradients of each: of offsets [B, D, 4] and logits [B, D, C].

    background_positives, by_giou: as of `network.loss.multibox_loss`.
    Raises ValueError for shapes that do not go together, and for labels that no logit is of.
    """
    boxes = offsets.shape[:2]
    if (*boxes, 4) != offsets.shape or not boxes == logits.shape[:2] == target_labels.shape == target_offsets.shape[:2]:
        shapes = ", ".join(str(each.shape) for each in (offsets, logits, target_offsets, target_labels))
        raise ValueError(f"offsets, logits, target offsets and labels of shapes {shapes}: they are of other boxes")
    # What is compiled looks at no bounds.
    if target_labels.size and not 0 <= target_labels.min() <= target_labels.max() < logits.shape[2]:
        raise ValueError(f"labels from {target_labels.min()} to {target_labels.max()}, and {logits.shape[2]} classes")
    arrays = offsets, logits, target_offsets, target_labels
    offsets, logits, target_offsets, target_labels = map(np.ascontiguousarray, arrays)
    offsets_gradient, logits_gradient = reused(offsets.shape), reused(logits.shape)
    sums = np.zeros((len(offsets), 2))

    def work(images: range) -> None:
        largest, exponentials = np.empty(boxes[1], dtype=np.float32), reused(logits.shape[1:])
        for image in images:
            _subtract_largest(logits[image], largest, exponentials)
            np.exp(exponentials, out=exponentials)  # by numpy: numba's takes one at a time
            sums[image] = _loss_of_image(
                offsets[image], logits[image], target_offsets[image], target_labels[image],
                background_positives, by_giou, largest, exponentials, offsets_gradient[image], logits_gradient[image],
            )  # fmt: skip

    run_in_threads(work, range(len(offsets)))
    return sums.sum(axis=0), offsets_gradient, logits_gradient


@compiled(types.void(_ROWS, _LINE, _MADE))
def _subtract_largest(logits, largest, shifted):
    boxes, classes = logits.shape
    for box in range(boxes):
        row = logits[box]
        maximum = row[0]
        for value in row:  # numba's own maximum takes longer: it asks of each number whether it is one
            maximum = max(maximum, value)
        largest[box] = maximum
        for number in range(classes):
            shifted[box, number] = row[number] - maximum


@compiled(types.UniTuple(float64, 6)(float64, float64, float64, float64))
def _along_axis(centre, side, target_centre, target_side):
    """What two boxes share along an axis and what both span, and the gradients of each by the centre and the side."""
    start, stop = centre - side / 2, centre + side / 2
    target_start, target_stop = target_centre - target_side / 2, target_centre + target_side / 2
    shared = min(stop, target_stop) - max(start, target_start)
    by_start, by_stop = -float64(start > target_start), float64(stop < target_stop)
    if shared <= 0:
        shared, by_start, by_stop = 0.0, 0.0, 0.0
    span = max(stop, target_stop) - min(start, target_start)
    span_by_start, span_by_stop = -float64(start < target_start), float64(stop > target_stop)
    return (
        shared, by_start + by_stop, (by_stop - by_start) / 2,
        span, span_by_start + span_by_stop, (span_by_stop - span_by_start) / 2,
    )  # fmt: skip


@compiled(float64(float64))
def _side(offset):
    return math.exp(min(SIZE_VARIANCE * offset, MAX_LOG_RATIO))


@compiled(float64(_OFFSETS, _OFFSETS, _LINE))
def _giou_loss(offsets, target_offsets, gradient):
    """GIOU_WEIGHT times 1 - GIoU of the boxes of both offsets; writes its gradient by the former."""
    x, target_x = CENTRE_VARIANCE * offsets[0], CENTRE_VARIANCE * target_offsets[0]
    y, target_y = CENTRE_VARIANCE * offsets[1], CENTRE_VARIANCE * target_offsets[1]
    # In units of the default box's sides, on which GIoU does not depend.
    width, target_width = _side(offsets[2]), _side(target_offsets[2])
    height, target_height = _side(offsets[3]), _side(target_offsets[3])
    across, across_by_x, across_by_width, wide, wide_by_x, wide_by_width = _along_axis(x, width, target_x, target_width)
    down, down_by_y, down_by_height, high, high_by_y, high_by_height = _along_axis(y, height, target_y, target_height)
    shared, around = across * down, wide * high
    union = width * height + target_width * target_height - shared
    # The loss is 2 - shared / union - union / around.
    by_shared, by_union, by_around = -1 / union, shared / union**2 - 1 / around, union / around**2
    by_shared -= by_union
    by_across, by_wide = by_shared * down, by_around * high
    by_down, by_high = by_shared * across, by_around * wide
    gradient[0] = GIOU_WEIGHT * CENTRE_VARIANCE * (by_across * across_by_x + by_wide * wide_by_x)
    gradient[1] = GIOU_WEIGHT * CENTRE_VARIANCE * (by_down * down_by_y + by_high * high_by_y)
    by_width = by_across * across_by_width + by_wide * wide_by_width + by_union * height
    by_height = by_down * down_by_height + by_high * high_by_height + by_union * width
    gradient[2] = GIOU_WEIGHT * SIZE_VARIANCE * by_width * width
    gradient[3] = GIOU_WEIGHT * SIZE_VARIANCE * by_height * height
    return GIOU_WEIGHT * (2 - shared / union - union / around)


@compiled(types.UniTuple(float64, 2)(_ROWS, _ROWS, _ROWS, _LABELS, int64, boolean, _LINE, _MADE, _MADE, _MADE))
def _loss_of_image(
    offsets, logits, target_offsets, labels, background_positives, by_giou,
    largest, exponentials, offsets_gradient, logits_gradient,
):  # fmt: skip
    """exponentials: of the logits less the largest of each row."""
    boxes, classes = logits.shape
    offsets_gradient[:] = 0
    logits_gradient[:] = 0
    totals = np.empty(boxes, dtype=np.float32)
    losses = np.empty(boxes, dtype=np.float32)
    of_background = np.empty(boxes, dtype=np.float32)
    positives, localization, classification = 0, 0.0, 0.0
    for box in range(boxes):
        totals[box] = 0
        for value in exponentials[box]:
            totals[box] += value
        losses[box] = np.log(totals[box]) + (largest[box] - logits[box, labels[box]])
        if labels[box] > 0:
            positives += 1
            if by_giou:
                localization += _giou_loss(offsets[box], target_offsets[box], offsets_gradient[box])
            for side in range(0 if by_giou else 4):
                difference = offsets[box, side] - target_offsets[box, side]
                size = abs(difference)
                localization += 0.5 * difference * difference if size < 1 else size - 0.5
                offsets_gradient[box, side] = difference if size < 1 else np.sign(difference)
        else:
            of_background[box - positives] = losses[box]
        if not np.isfinite(losses[box]):
            classification += losses[box]  # whether it would be counted or not: the trainer has to see it
    # Losses are sorted faster than places. So the hard negatives are those above the last one's loss, and of those
    # equal to it the first, as a stable sort of places has them.
    counted = positives if positives > 0 else background_positives
    hard = min(NEGATIVES_PER_POSITIVE * counted, boxes - positives)
    last, equal = float32(np.inf), 0
    if hard > 0:
        ranked = np.sort(of_background[: boxes - positives])[::-1]
        last = ranked[hard - 1]
        equal = hard - np.count_nonzero(ranked > last)
    for box in range(boxes):
        if labels[box] == 0:
            if losses[box] == last and equal > 0:
                equal -= 1
            elif not losses[box] > last:
                continue
        classification += losses[box]
        for number in range(classes):
            logits_gradient[box, number] = exponentials[box, number] / totals[box]
        logits_gradient[box, labels[box]] -= float32(1)
    return localization, classification
