"""The samples of a training on tiles: what detection will look at, with the objects that are to be learnt there."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from ssd300_vgg16 import boxes as box_math
from ssd300_vgg16.data.dataset import Sample, Tile
from ssd300_vgg16.tiles import WHOLE_ABOVE, Tiling, Window

KEPT_ABOVE = 0.75  # of an object's area: docs/tiles.md has what others give


def tile_samples(samples: Sequence[Sample], tiling: Tiling | None) -> Sequence[Sample]:
    """Of each image its windows, as `Tiling.windows` gives them; an image that is no larger than a tile as it is.

    A tile has the objects of which at least three quarters of the area are seen in it, clipped to it. The whole image
    has those that detection takes from it: larger than most of a tile, in width or height. The others would be like
    specks there. A window that has lost an object is incomplete, so that without objects it is no background.
    """
    return [part for sample in samples for part in _parts(sample, tiling)] if tiling else samples


def _parts(sample: Sample, tiling: Tiling) -> list[Sample]:
    _, *tiles = tiling.windows(sample.height, sample.width)
    if not tiles:
        return [sample]
    boxes = box_math.clip(sample.boxes, sample.height, sample.width)
    most_of_tile = WHOLE_ABOVE * np.subtract(tiles[0][2:], tiles[0][:2])
    is_large = (boxes[:, 2:] - boxes[:, :2] > most_of_tile).any(axis=1)
    whole = _with_objects(sample, sample.boxes, is_large, ~is_large)
    return [whole, *(_tile(sample, boxes, window) for window in tiles)]


def _tile(sample: Sample, boxes: np.ndarray, window: Window) -> Sample:
    """boxes: the sample's, clipped to the image."""
    corner, end = np.split(np.array(window), 2)
    seen = np.clip(boxes, [*corner, *corner], [*end, *end])
    area = box_math.area(seen)
    is_kept = (area > 0) & (area >= KEPT_ABOVE * box_math.area(boxes))
    is_cut = ((boxes[:, :2] < end) & (boxes[:, 2:] > corner)).all(axis=1) & ~is_kept
    width, height = (end - corner).tolist()
    tile = replace(sample, height=height, width=width, tile=Tile(window, sample))
    return _with_objects(tile, seen - [*corner, *corner], is_kept, is_cut)


def _with_objects(sample: Sample, boxes: np.ndarray, is_kept: np.ndarray, is_lost: np.ndarray) -> Sample:
    return replace(
        sample,
        boxes=boxes[is_kept],
        labels=sample.labels[is_kept],
        crowd=sample.crowd[is_kept],
        areas=sample.areas[is_kept],
        difficult=sample.difficult[is_kept],
        incomplete=sample.incomplete or bool(is_lost.any()),
    )
