"""Box arithmetic in numpy: formats, intersection over union, and SSD's offsets.

Boxes are float32 arrays [N, 4], xyxy (x1, y1, x2, y2) in pixels, unless a name says otherwise (`_cxcywh`: centre,
width, height; `_xywh`: top-left corner, width, height, as in COCO's files).
"""

from collections.abc import Sequence

import numpy as np

Columns = np.ndarray | Sequence[np.ndarray]  # x1, y1, x2, y2, one after another

# Variances of the offsets: Liu et al. 2016, released Caffe model ("prior_variance"); section 2.2 gives the encoding.
CENTRE_VARIANCE = 0.1
SIZE_VARIANCE = 0.2
# exp() of a size offset is bounded so that a wild prediction stays finite: 1000 pixels from a stride of 16.
MAX_LOG_RATIO = float(np.log(1000.0 / 16))


def xyxy_to_cxcywh(boxes: np.ndarray) -> np.ndarray:
    """[..., 4] xyxy -> [..., 4] centre x, centre y, width, height."""
    top_left, bottom_right = boxes[..., :2], boxes[..., 2:]
    return np.concatenate(((top_left + bottom_right) / 2, bottom_right - top_left), axis=-1)


def cxcywh_to_xyxy(boxes_cxcywh: np.ndarray) -> np.ndarray:
    """[..., 4] centre x, centre y, width, height -> [..., 4] xyxy."""
    centre, half = boxes_cxcywh[..., :2], boxes_cxcywh[..., 2:] / 2
    return np.concatenate((centre - half, centre + half), axis=-1)


def xywh_to_xyxy(boxes_xywh: np.ndarray) -> np.ndarray:
    """[..., 4] x, y, width, height -> [..., 4] xyxy."""
    return np.concatenate((boxes_xywh[..., :2], boxes_xywh[..., :2] + boxes_xywh[..., 2:]), axis=-1)


def xyxy_to_xywh(boxes: np.ndarray) -> np.ndarray:
    """[..., 4] xyxy -> [..., 4] x, y, width, height."""
    return np.concatenate((boxes[..., :2], boxes[..., 2:] - boxes[..., :2]), axis=-1)


def area(boxes: np.ndarray) -> np.ndarray:
    """Areas [...] of boxes [..., 4]; a box turned inside out has area 0."""
    return np.maximum(boxes[..., 2] - boxes[..., 0], 0) * np.maximum(boxes[..., 3] - boxes[..., 1], 0)


def clip(boxes: np.ndarray, height: float, width: float) -> np.ndarray:
    """A copy of boxes [..., 4] clipped to an image of the given height and width in pixels."""
    return np.clip(boxes, 0, np.array([width, height, width, height], dtype=boxes.dtype))


def intersection(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Areas [N, M] shared by each of a [N, 4] with each of b [M, 4]."""
    return _shared(a.T[..., None], b.T)


def iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Intersection over union [N, M] of a [N, 4] and b [M, 4], in 0..1; 0 where both boxes have no area."""
    return pair_iou(a.T[..., None], b.T, area(a)[:, None], area(b))


def pair_iou(a: Columns, b: Columns, area_a: np.ndarray, area_b: np.ndarray) -> np.ndarray:
    """Intersection over union of boxes given as columns with their areas, of shapes that broadcast."""
    shared = _shared(a, b)
    union = area_a + area_b
    union = np.subtract(union, shared, out=union)
    # Boxes without area share nothing, and 0 over the smallest positive number is 0, where 0 over 0 would warn.
    np.maximum(union, np.finfo(union.dtype).tiny, out=union)
    return np.divide(shared, union, out=shared)


def _shared(a: Columns, b: Columns) -> np.ndarray:
    sides = []
    for axis in (0, 1):
        # In place, which spares matching a large array at each step.
        length = np.minimum(a[axis + 2], b[axis + 2])
        length -= np.maximum(a[axis], b[axis])
        sides.append(np.maximum(length, 0, out=length))
    return np.multiply(sides[0], sides[1], out=sides[0])


def encode(objects: np.ndarray, default_boxes: np.ndarray) -> np.ndarray:
    """Offsets [N, 4] that turn default_boxes [N, 4] into objects [N, 4] (section 2.2, equation 2).

    Every object needs a positive width and height: the logarithm of anything else is not finite.
    """
    objects, default_boxes = xyxy_to_cxcywh(objects), xyxy_to_cxcywh(default_boxes)
    centre = (objects[:, :2] - default_boxes[:, :2]) / default_boxes[:, 2:] / CENTRE_VARIANCE
    size = np.log(objects[:, 2:] / default_boxes[:, 2:]) / SIZE_VARIANCE
    return np.concatenate((centre, size), axis=1).astype(np.float32)


def decode(offsets: np.ndarray, default_boxes: np.ndarray) -> np.ndarray:
    """Boxes [N, 4] that offsets [N, 4] make of default_boxes [N, 4]: the inverse of `encode`."""
    default_boxes = xyxy_to_cxcywh(default_boxes)
    centre = offsets[:, :2] * CENTRE_VARIANCE * default_boxes[:, 2:] + default_boxes[:, :2]
    size = np.exp(np.minimum(offsets[:, 2:] * SIZE_VARIANCE, MAX_LOG_RATIO)) * default_boxes[:, 2:]
    return cxcywh_to_xyxy(np.concatenate((centre, size), axis=1)).astype(np.float32)
