"""The multibox loss on the CPU, with its gradients in the same pass over the default boxes."""

import numpy as np
from numba import float32, float64, int64, types

from ssd300_vgg16.network.cpu.threads import compiled, reused, run_in_threads
from ssd300_vgg16.network.variants import NEGATIVES_PER_POSITIVE

_ROWS = types.Array(float32, 2, "C", readonly=True)
_LABELS = types.Array(int64, 1, "C", readonly=True)
_MADE = types.Array(float32, 2, "C")
_LINE = types.Array(float32, 1, "C")


def multibox_loss(
    offsets: np.ndarray,
    logits: np.ndarray,
    target_offsets: np.ndarray,
    target_labels: np.ndarray,
    background_positives: int = 0,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Sums of both losses, float64 [2], and the gradients of each: of offsets [B, D, 4] and logits [B, D, C].

    background_positives: as of `network.loss.multibox_loss`.
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
                offsets[image], logits[image], target_offsets[image], target_labels[image], background_positives,
                largest, exponentials, offsets_gradient[image], logits_gradient[image],
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


@compiled(types.UniTuple(float64, 2)(_ROWS, _ROWS, _ROWS, _LABELS, int64, _LINE, _MADE, _MADE, _MADE))
def _loss_of_image(
    offsets, logits, target_offsets, labels, background_positives,
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
            for side in range(4):
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
