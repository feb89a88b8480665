"""Default boxes whose shapes are chosen for the objects of a data set, instead of the published ones.

Each feature map keeps its number of default boxes, so that any weights can be loaded.
"""

from collections.abc import Sequence
from itertools import permutations

import numpy as np

from ssd300_vgg16 import boxes as box_math
from ssd300_vgg16.data.augment import draw_view, seen_boxes
from ssd300_vgg16.data.dataset import Sample
from ssd300_vgg16.network.variants import (
    MIN_SIDE,
    DefaultBoxLayout,
    Variant,
    fitted_variant,
    shapes_in_cell,
    variant_of,
)

OBJECTS = 2000  # that are fitted to, drawn from all images
MAX_ROUNDS = 10  # through a small data set, for other views of its images
# Sides to choose from: so many for each doubling, down to the least.
SIDES_OF_DOUBLING = 4
# Of a map, in units of the next one's size: the largest default box (as a square), and its longest side. Every object
# would have its best default box on the finest map, whose cells are nearest, and which sees too little of it.
LARGEST, LONGEST = 1.0, 3.0
SMALLEST = 0.5  # in steps of the map: most objects as small lie between its cells
# The weight of the published default boxes, as of objects: maps that no object is for keep theirs.
PUBLISHED_WEIGHT = 0.01
MAX_PASSES = 4


def objects_seen(samples: Sequence[Sample], image_size: int, policy: str, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Objects in views that one of augment's POLICIES draws: boxes float32 [N, 4] xyxy in pixels of the network's
    input, and labels int64 [N]; about OBJECTS of them, of images drawn at random."""
    rng = np.random.default_rng(seed)
    seen, seen_labels = [np.empty((0, 4), np.float32)], [np.empty(0, np.int64)]
    count = 0
    for index in np.concatenate([rng.permutation(len(samples)) for _ in range(MAX_ROUNDS)]).tolist():
        size_hw = samples[index].height, samples[index].width
        boxes, labels = samples[index].objects(*size_hw)
        if len(boxes):
            view, boxes, labels = draw_view(size_hw, boxes, labels, rng, policy)
            seen.append(seen_boxes(boxes, view, size_hw, image_size))
            seen_labels.append(labels)
            count += len(boxes)
        if count >= OBJECTS:
            break
    boxes, labels = np.concatenate(seen), np.concatenate(seen_labels)
    keep = box_math.area(boxes) > 0
    return boxes[keep], labels[keep]


def fit(objects: np.ndarray, labels: np.ndarray, model: str) -> Variant:
    """The model with default boxes for objects [N, 4] xyxy in pixels of its input, with their labels [N].

    They are chosen for the mean of the objects' highest IoUs, in which each class weighs as much, as it does in AP; one
    after another, each the best beside those before it; then each anew beside all the others.
    """
    layout = variant_of(model, "coco").layout
    maps = range(len(layout.feature_maps))
    some = np.random.default_rng(0).permutation(len(objects))[:OBJECTS]
    objects, labels = objects[some], labels[some]
    published = [np.minimum(shapes_in_cell(layout, index), 1) * layout.image_size for index in maps]
    candidates = [np.concatenate((published[index], _candidates(layout, index))) for index in maps]
    map_of = np.concatenate([np.full(len(of_map), index) for index, of_map in enumerate(candidates)])
    # Those of the published default boxes that stand around a cell in the middle, as of objects.
    middles = [(cells // 2 + 0.5) * step for cells, step in zip(layout.feature_maps, layout.steps, strict=True)]
    stand_ins = [(middle + of[..., None] * [-0.5, 0.5]) for middle, of in zip(middles, published, strict=True)]
    boxes = np.concatenate((objects, *(np.moveaxis(each, 2, 1).reshape(-1, 4) for each in stand_ins)), dtype=np.float32)
    _, classes, counts = np.unique(labels, return_inverse=True, return_counts=True)
    weights = np.full(len(boxes), PUBLISHED_WEIGHT / (len(boxes) - len(objects)), dtype=np.float32)
    weights[: len(objects)] = 1 / (len(counts) * counts)[classes]
    ious = np.concatenate([_ious(boxes, of, layout, index) for index, of in enumerate(candidates)])
    chosen = _chosen(ious, weights, map_of, layout.boxes_per_cell)
    shapes = np.concatenate(candidates)[chosen].round(2)
    return fitted_variant(model, tuple(_in_order(shapes[map_of[chosen] == index], published[index]) for index in maps))


def _candidates(layout: DefaultBoxLayout, index: int) -> np.ndarray:
    """Widths and heights [C, 2] that a map may have."""
    doublings = np.log2(layout.image_size / MIN_SIDE)
    sides = layout.image_size / 2 ** (np.arange(int(doublings * SIDES_OF_DOUBLING) + 1) / SIDES_OF_DOUBLING)
    shapes = np.stack(np.meshgrid(sides, sides), axis=-1).reshape(-1, 2)
    square, limit = np.sqrt(shapes.prod(axis=1)), layout.sizes[index + 1]
    fits = (square >= SMALLEST * layout.steps[index]) & (square <= LARGEST * limit)
    return shapes[fits & (shapes.max(axis=1) <= LONGEST * limit)]


def _ious(objects: np.ndarray, shapes: np.ndarray, layout: DefaultBoxLayout, index: int) -> np.ndarray:
    """float32 [C, N]: IoU of objects [N, 4] with default boxes of shapes [C, 2] around the map's nearest cells."""
    centres, step = box_math.xyxy_to_cxcywh(objects)[:, :2], layout.steps[index]
    cells = np.clip(np.rint(centres / step - 0.5), 0, layout.feature_maps[index] - 1)
    middles, halves = ((cells + 0.5) * step)[None], shapes[:, None] / 2
    default_boxes = np.concatenate((middles - halves, middles + halves), axis=-1).astype(np.float32)
    columns = tuple(objects.T[:, None]), tuple(np.moveaxis(default_boxes, -1, 0))
    return box_math.pair_iou(*columns, box_math.area(objects), box_math.area(default_boxes))


def _chosen(ious: np.ndarray, weights: np.ndarray, map_of: np.ndarray, per_map: Sequence[int]) -> np.ndarray:
    """Rows of ious [C, N], so many of each map, int64 [K]."""
    chosen: list[int] = []
    left = np.array(per_map)
    while left.any():
        gains = np.where(left[map_of] > 0, _gains(ious, chosen, weights), -1)
        chosen.append(int(gains.argmax()))
        left[map_of[chosen[-1]]] -= 1
    for _ in range(MAX_PASSES):
        before = list(chosen)
        for place, row in enumerate(before):
            others = chosen[:place] + chosen[place + 1 :]
            gains = np.where(map_of == map_of[row], _gains(ious, others, weights), -1)
            chosen[place] = int(gains.argmax())
        if chosen == before:
            break
    return np.array(chosen)


def _gains(ious: np.ndarray, chosen: Sequence[int], weights: np.ndarray) -> np.ndarray:
    """What each row would add to the weighted mean of the highest of the chosen ones."""
    return np.maximum(ious - ious[list(chosen)].max(axis=0, initial=0), 0) @ weights


def _in_order(shapes: np.ndarray, published: np.ndarray) -> tuple[tuple[float, float], ...]:
    """A map's shapes, each in the place of a published one that is like it: heads that learnt those start near."""
    logs, theirs = np.log(shapes), np.log(published)
    best = min(permutations(range(len(shapes))), key=lambda order: np.abs(logs[list(order)] - theirs).sum())
    return tuple((width, height) for width, height in shapes[list(best)].tolist())
