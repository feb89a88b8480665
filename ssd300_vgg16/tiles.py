"""Detection on overlapping tiles of a large image, for objects that are too small in the whole of it.

A window is (x1, y1, x2, y2) in pixels of the image: a tile, or the whole image, which is seen too.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice, pairwise

import numpy as np
from tqdm import tqdm

from ssd300_vgg16 import boxes as box_math
from ssd300_vgg16.data.images import network_inputs
from ssd300_vgg16.errors import UserError

Window = tuple[int, int, int, int]
Detected = dict[str, np.ndarray]  # of one image, as `postprocess` returns it
# From images uint8 [B, 3, S, S] and sizes_hw [B, 2] to what waits for, and returns, what `postprocess` does.
Begin = Callable[[np.ndarray, np.ndarray], Callable[[], list[Detected]]]
Tell = Callable[[int, int], object]  # of how many tiles are done, and how many there are

MIN_SIDE, MAX_OVERLAP = 32, 0.9
DEFAULT_OVERLAP = 0.2
SAME = 0.45  # overlap above which two boxes are of one object: the IoU of NMS
NEAR_EDGE = 0.03  # of a tile's side: a box that ends nearer to the edge may be cut off there
WHOLE_ABOVE = 0.75  # of a tile's sides: what is smaller in both is left to the tiles
MIN_RATIO = 9 / 16  # of a tile's sides: a panorama's shape is not that of the images that were trained on
TRUSTED = 0.5  # of the best score of an object: boxes of less do not say where it ends


@dataclass(frozen=True)
class Tiling:
    """Tiles of the image's shape, side pixels long, neighbours of which share the part `overlap` of their sides.

    The network squeezes each image to a square, and knows objects so squeezed: in a square tile of a photograph they
    have another shape. Raises UserError for numbers that make no sense.
    """

    side: int
    overlap: float = DEFAULT_OVERLAP

    def __post_init__(self) -> None:
        if self.side < MIN_SIDE:
            raise UserError(f"tiles of {self.side} pixels: their side is {MIN_SIDE} pixels of the image, or more")
        if not 0 <= self.overlap <= MAX_OVERLAP:
            raise UserError(f"tiles that overlap by {self.overlap}: it is a part of their side, 0 to {MAX_OVERLAP}")

    def __str__(self) -> str:
        return f"tiles of {self.side} pixels that overlap by {self.overlap:g}"

    def windows(self, height: int, width: int) -> list[Window]:
        """The whole image and, if it is larger than a tile, its tiles, row by row."""
        whole = (0, 0, width, height)
        if max(height, width) <= self.side:
            return [whole]
        short = round(self.side * max(MIN_RATIO, min(height, width) / max(height, width)))
        tile = (self.side, short) if height > width else (short, self.side)
        return [whole, *tile_windows((height, width), tile, self.overlap)]


def tile_windows(size_hw: tuple[int, int], tile_hw: tuple[int, int], overlap: float) -> list[Window]:
    """Tiles that cover the image, row by row; the last of a row or column is moved back inside, as SAHI does it."""
    (height, width), (tile_height, tile_width) = size_hw, tile_hw
    rows, columns = (_starts(*sides, overlap) for sides in zip(size_hw, tile_hw, strict=True))
    return [(x, y, min(x + tile_width, width), min(y + tile_height, height)) for y in rows for x in columns]


def _starts(length: int, side: int, overlap: float) -> list[int]:
    last = max(length - side, 0)
    return [*range(0, last, side - int(overlap * side)), last]


def tell_nobody(done: int, count: int) -> None:
    """A Tell for those who do not ask."""


def show_on(bar: tqdm, done: int, count: int) -> None:
    """A Tell, once it has its bar, which needs miniters=0."""
    bar.set_postfix_str(f"tile {done} of {count}", refresh=False)
    bar.update(0)


def begin_on_tiles(
    begin: Begin,
    images: Sequence[np.ndarray],
    image_size: int,
    tiling: Tiling,
    batch_size: int,
    tell: Tell = tell_nobody,
) -> Callable[[], list[Detected]]:
    """As begin, on images uint8 [H, W, 3] of any sizes: their windows are detected on in batches, and joined.

    tell: called after each batch.
    A batch is cut out when its turn comes, a GPU's next one while it computes: memory does not grow with the tiles.
    """
    windows = [tiling.windows(*image.shape[:2]) for image in images]
    todo = iter([(image, window) for image, its in zip(images, windows, strict=True) for window in its])

    def batches() -> Iterator[Callable[[], list[Detected]]]:
        while batch := list(islice(todo, batch_size)):
            views = [image[y1:y2, x1:x2] for image, (x1, y1, x2, y2) in batch]
            sizes_hw = np.array([view.shape[:2] for view in views])
            yield begin(network_inputs(views, image_size), sizes_hw)

    begun = batches()
    first = next(begun)

    def finish() -> list[Detected]:
        found: list[Detected] = []
        for former, _ in pairwise(chain([first], begun, [list])):
            found += former()
            tell(len(found), sum(map(len, windows)))
        of_each = iter(found)
        return [join(list(islice(of_each, len(its))), its) for its in windows]

    return finish


def join(found: Sequence[Detected], windows: Sequence[Window]) -> Detected:
    """The detections of an image from those of its windows, of which the first is the whole image.

    Greedy as SAHI's GREEDYNMM: the best box of a class takes in the others of its object, and has their best score.
    Other than there:
    - What is no larger than most of a tile is left to the tiles: the whole image has it smaller, and size is a part of
      what an object looks like. Three times smaller, a white blood cell is a platelet.
    - A box that ends at a tile's edge within the image is a part. What another tile sees away from its edges is left
      to that tile: the tip of a star may look like a circle.
    - What a window says of itself stays: NMS has decided in it. So objects within objects, and neighbours, stay.
    - Two whole boxes are of one object by IoU, as in NMS. SAHI's share of the smaller takes a small object in a large
      one for a part of it.
    - A part is of the object of another box if the two agree where both windows look.
    - The box of an object is the best whole one. SAHI's, the smallest around all, grows with each that is taken in.
      Only parts that no window sees whole become the box around them.
    There are at most as many as the windows have, each 200.
    """
    if len(windows) == 1:
        return found[0]
    views = np.repeat(np.arange(len(windows)), [len(of_window["scores"]) for of_window in found])
    boxes, scores, labels = (
        np.concatenate([of_window[part] for of_window in found]) for part in ("boxes", "scores", "labels")
    )
    edges = np.array(windows, dtype=boxes.dtype)[views]
    boxes += edges[:, [0, 1, 0, 1]]
    tile = np.subtract(windows[1][2:], windows[1][:2])
    is_cut = (np.abs(boxes - edges) < NEAR_EDGE * np.tile(tile, 2)) & (edges != windows[0])
    left_to_tiles = (views == 0) & (boxes[:, 2:] - boxes[:, :2] <= WHOLE_ABOVE * tile).all(axis=1)
    parts = np.flatnonzero(is_cut.any(axis=1))
    left_to_tiles[parts[_seen_whole(boxes[parts], windows)]] = True
    order = np.argsort(-scores, kind="stable")
    order = order[~left_to_tiles[order]]
    boxes, scores, labels, views, edges, is_cut = (
        column[order] for column in (boxes, scores, labels, views, edges, is_cut)
    )
    # Beyond such an edge an object may go on, where its window does not look.
    limits = np.where(is_cut, edges, np.array([-np.inf, -np.inf, np.inf, np.inf], dtype=boxes.dtype))
    pairs = _pairs_of_one_object(boxes, limits, labels, views)
    members = _members(pairs, scores.tolist(), is_cut.any(axis=1).tolist())
    rows = list(members)
    around = boxes[[these[0] for these in members.values()]]
    for row, these in enumerate(members.values()):
        if len(these) > 1:
            around[row] = (*boxes[these, :2].min(axis=0), *boxes[these, 2:].max(axis=0))
    return {"boxes": around, "scores": scores[rows], "labels": labels[rows]}


def _seen_whole(boxes: np.ndarray, windows: Sequence[Window]) -> np.ndarray:
    """Whether a tile has each box away from its edges, as far as they are not the image's: bool [N]."""
    left, top, right, bottom = np.ascontiguousarray(boxes.T)
    tiles = np.array(windows[1:], dtype=np.float64)
    margins = NEAR_EDGE * np.tile(tiles[0, 2:] - tiles[0, :2], 2) * (1, 1, -1, -1)
    insides = np.where(tiles == windows[0], (-np.inf, -np.inf, np.inf, np.inf), tiles + margins)
    seen = np.zeros(len(boxes), dtype=bool)
    for x1, y1, x2, y2 in insides.tolist():
        seen |= (left >= x1) & (top >= y1) & (right <= x2) & (bottom <= y2)
    return seen


def _pairs_of_one_object(boxes: np.ndarray, limits: np.ndarray, labels: np.ndarray, views: np.ndarray) -> np.ndarray:
    """Pairs int64 [P, 2] of boxes of different windows that are of one object, each seen within its limits."""
    is_part, areas = np.isfinite(limits).any(axis=1), box_math.area(boxes)
    x1, y1, x2, y2 = np.ascontiguousarray(boxes.T)

    def seen_areas(these: np.ndarray, by: np.ndarray) -> np.ndarray:
        """Areas of what the windows of those boxes see of these."""
        seen, parts = areas[these], np.flatnonzero(is_part[by])
        seen[parts] = box_math.area(_clipped(boxes[these[parts]], limits[by[parts]]))
        return seen

    pairs = [np.empty((0, 2), dtype=np.int64)]
    for view in np.unique(views):
        # By window, so that this takes memory for the boxes of one with those that it overlaps.
        ours, others = np.flatnonzero(views == view), np.flatnonzero(views > view)
        left, top, right, bottom = x1[ours].min(), y1[ours].min(), x2[ours].max(), y2[ours].max()
        near = (x1[others] < right) & (x2[others] > left) & (y1[others] < bottom) & (y2[others] > top)
        others = others[near]
        meet = labels[ours, None] == labels[others]
        for start, end in ((x1, x2), (y1, y2)):
            meet &= start[ours, None] < end[others]
            meet &= start[others] < end[ours, None]
        rows, columns = np.divmod(np.flatnonzero(meet), max(1, len(others)))  # as np.nonzero, in a fifth of the time
        a, b = ours[rows], others[columns]
        shared = np.minimum(x2[a], x2[b]) - np.maximum(x1[a], x1[b])
        shared *= np.minimum(y2[a], y2[b]) - np.maximum(y1[a], y1[b])
        same = shared > SAME * (seen_areas(a, b) + seen_areas(b, a) - shared)
        pairs.append(np.column_stack((a[same], b[same])))
    return np.concatenate(pairs)


def _clipped(boxes: np.ndarray, limits: np.ndarray) -> np.ndarray:
    """What of each box is within its limits, which are a box too."""
    return np.concatenate((np.maximum(boxes[:, :2], limits[:, :2]), np.minimum(boxes[:, 2:], limits[:, 2:])), axis=1)


def _members(pairs: np.ndarray, scores: list[float], is_part: list[bool]) -> dict[int, list[int]]:
    """Of boxes in order of falling score, those that are the best of their object, and which say where it is."""
    neighbours: list[list[int]] = [[] for _ in scores]
    for a, b in pairs.tolist():
        neighbours[a].append(b)
        neighbours[b].append(a)
    members, taken = {}, [False] * len(scores)
    for best in range(len(scores)):
        if taken[best]:
            continue
        taken[best] = True
        members[best] = new = [best]
        if not neighbours[best]:
            continue
        while new:
            near = sorted({other for one in new for other in neighbours[one] if not taken[other]})
            for other in near:
                taken[other] = True
            new = []
            if is_part[members[best][0]]:
                trusted = [other for other in near if scores[other] >= TRUSTED * scores[best]]
                if whole := [other for other in trusted if not is_part[other]]:
                    members[best] = new = whole[:1]
                else:
                    members[best], new = members[best] + trusted, trusted
    return members
