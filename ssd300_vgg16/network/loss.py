"""The multibox loss: smooth L1 on offsets, cross-entropy with hard negative mining on classes (section 2.2)."""

from ssd300_vgg16.network.cpu import ops
from ssd300_vgg16.network.variants import NEGATIVES_PER_POSITIVE
from ssd300_vgg16.network.vgg import in_float32
from ssd300_vgg16.runtime import flow


def multibox_loss(
    offsets, logits, target_offsets, target_labels, normaliser=None, background_positives: int = 0
) -> dict:
    """Both parts of SSD's loss, each summed over the batch and divided by max(1, positives in the batch).

    offsets [B, D, 4] and logits [B, D, C] are the network's answers; target_offsets float32 [B, D, 4] and
    target_labels int64 [B, D] what they should be (label 0 is background). Returns scalars "localization" and
    "classification". Where fewer negatives exist than are asked for, all count.
    background_positives: an image without positives counts as one with so many, which cost nothing themselves: they
    bring its hardest negatives, and are in the number that is divided by. With 0 such an image adds nothing.
    normaliser: a float32 scalar to divide by instead, where this is but a part of a batch.
    """
    if normaliser is None:
        counted = _positives(target_labels > 0, background_positives)
        normaliser = counted.sum().to(flow.float32).clamp(min=1.0)
    if not (logits.is_cuda or logits.is_lazy):
        sums = ops.multibox_losses(offsets, logits, target_offsets, target_labels, background_positives)
        localization, classification = sums / normaliser
        return {"localization": localization, "classification": classification}
    offsets, logits = in_float32(offsets), in_float32(logits)
    positive = target_labels > 0
    positives = _positives(positive, background_positives)
    distance = flow._C.smooth_l1_loss(offsets, target_offsets, beta=1.0, reduction="none").sum(dim=2)
    cross_entropy = _cross_entropy(logits, target_labels)
    counted = flow.logical_or(positive, _hard_negatives(cross_entropy, positive, positives))
    return {
        "localization": (distance * positive.to(flow.float32)).sum() / normaliser,
        "classification": (cross_entropy * counted.to(flow.float32)).sum() / normaliser,
    }


def _positives(positive, background_positives: int):
    """How many positives each image counts as having, [B, 1], of which are positive, [B, D]."""
    positives = positive.sum(dim=1, keepdim=True)
    if not background_positives:
        return positives
    return positives + background_positives * (positives == 0).to(positives.dtype)


def _cross_entropy(logits, labels):
    """[B, D] from logits [B, D, C] and labels [B, D]."""
    rows = flow._C.sparse_softmax_cross_entropy(logits.reshape(-1, logits.shape[2]), labels.reshape(-1))
    return rows.reshape(labels.shape[0], labels.shape[1])


def _hard_negatives(cross_entropy, positive, positives):
    """Which default boxes [B, D] are among the background boxes of highest loss of their image, three per positive."""
    # The ranks must not carry gradients, and positives come last: a loss is never below zero.
    ranked = cross_entropy.detach().masked_fill(positive, -1.0)
    order = flow.argsort(ranked, dim=1, descending=True)
    rank = flow.argsort(order, dim=1)
    return flow.logical_and(rank < NEGATIVES_PER_POSITIVE * positives, flow.logical_not(positive))
