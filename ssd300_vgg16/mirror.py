"""Detection on an image and on its mirror image: the mean of what is found in both."""

from collections.abc import Callable

import numpy as np

from ssd300_vgg16 import boxes as box_math
from ssd300_vgg16.network.postprocess import DETECTIONS_PER_IMAGE, NMS_IOU, nms
from ssd300_vgg16.tiles import Begin, Detected

SAME = 0.5  # IoU from which on two boxes of a class are of one object


def begin_on_both(
    begin: Begin, images: np.ndarray, sizes_hw: np.ndarray, score_threshold: float
) -> Callable[[], list[Detected]]:
    """As begin, on images and on their mirror images; joined, of scores above the threshold.

    begin has to give lower scores too, which may be halves of a higher mean.
    """
    views = [begin(view, sizes_hw) for view in (images, np.ascontiguousarray(images[..., ::-1]))]

    def finish() -> list[Detected]:
        found = zip(*(view() for view in views), sizes_hw, strict=True)
        return [_above(join(plain, mirrored, width), score_threshold) for plain, mirrored, (_, width) in found]

    return finish


def _above(found: Detected, score_threshold: float) -> Detected:
    keep = found["scores"] > score_threshold
    return {name: column[keep] for name, column in found.items()}


def join(plain: Detected, mirrored: Detected, width: float) -> Detected:
    """Detections of an image, so many pixels wide, and of its mirror image as one.

    A box and its score become the mean with those of the box of its class that it overlaps most in the other view, the
    box weighed by the scores. If it overlaps none by half, its score is halved. NMS leaves one of each two.
    """
    mirrored = {**mirrored, "boxes": _mirrored(mirrored["boxes"], width)}
    same = (plain["labels"][:, None] == mirrored["labels"]) * box_math.iou(plain["boxes"], mirrored["boxes"])
    means = _means(plain, mirrored, same), _means(mirrored, plain, same.T)
    boxes, scores = (np.concatenate(column) for column in zip(*means, strict=True))
    labels = np.concatenate((plain["labels"], mirrored["labels"]))
    kept = nms(boxes, scores, labels, NMS_IOU, DETECTIONS_PER_IMAGE)
    return {"boxes": boxes[kept], "scores": scores[kept], "labels": labels[kept]}


def _mirrored(boxes: np.ndarray, width: float) -> np.ndarray:
    mirrored = boxes.copy()
    mirrored[:, [0, 2]] = np.float32(width) - boxes[:, [2, 0]]
    return mirrored


def _means(own: Detected, other: Detected, overlap: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Boxes [N, 4] and scores [N] of one view, with what they meet in the other; overlap is their IoU [N, M]."""
    # The last is met by those that meet no other: it has no score.
    met = np.pad(overlap, ((0, 0), (0, 1)), constant_values=SAME).argmax(axis=1)
    theirs = np.append(other["boxes"], np.zeros((1, 4), dtype=np.float32), axis=0)[met]
    shares = np.stack((own["scores"], np.append(other["scores"], np.float32(0))[met]))[..., None]
    boxes = (own["boxes"] * shares[0] + theirs * shares[1]) / shares.sum(axis=0)
    return boxes, shares.mean(axis=0)[:, 0]
