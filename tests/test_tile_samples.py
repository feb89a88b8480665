"""Training on tiles: which windows are samples, with which objects, how they are read, and in what order."""

import pickle
from collections import Counter
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from batches import assert_same, batch_config
from small_data import colours
from yolo_files import sideways

from ssd300_vgg16.data import loader, sizes
from ssd300_vgg16.data.dataset import Sample
from ssd300_vgg16.data.loader import backgrounds_of, samples_with_objects, tiles_together, training_batches
from ssd300_vgg16.data.sizes import read_as_annotated
from ssd300_vgg16.data.workers import WorkerPool
from ssd300_vgg16.errors import UserError
from ssd300_vgg16.tile_samples import tile_samples
from ssd300_vgg16.tiles import Tiling

HEIGHT, WIDTH = 400, 600
TILING = Tiling(300, 0.2)  # tiles of 300 x 200; columns begin at 0, 240 and 300, rows at 0, 160 and 200


def sample(*boxes, path="image.jpg", size=(HEIGHT, WIDTH), crowd=(), incomplete=False):
    table = np.array(boxes, dtype=np.float64).reshape(-1, 4)
    rows = np.arange(len(table))
    columns = (table, rows + 1, np.isin(rows, crowd), np.zeros(len(rows)), np.zeros(len(rows), bool))
    return Sample(1, Path(path), *size, *columns, incomplete=incomplete)


def by_window(*boxes, **options):
    return {part.tile and part.tile.window: part for part in tile_samples([sample(*boxes, **options)], TILING)}


def test_the_windows_are_those_of_detection():
    parts = tile_samples([sample()], TILING)
    windows = [(0, 0, part.width, part.height) if part.tile is None else part.tile.window for part in parts]
    assert windows == TILING.windows(HEIGHT, WIDTH) and len(windows) == 10
    for part in parts[1:]:
        assert (part.height, part.width) == (200, 300) and part.tile.image.height == HEIGHT
    small = sample(size=(225, 300))
    assert tile_samples([small], TILING)[0] is small


@pytest.mark.parametrize(
    ("box", "learnt"),
    [
        ((10, 20, 40, 60), (10, 20, 40, 60)),
        ((270, 20, 310, 60), (270, 20, 300, 60)),  # three quarters of it are seen
        ((271, 20, 311, 60), None),
        ((270, 170, 310, 210), None),  # nine sixteenths
        ((-60, 20, 40, 60), (0, 20, 40, 60)),  # of what is in the image, all
        ((301, 20, 321, 60), None),
    ],
)
def test_an_object_is_learnt_in_a_tile_where_three_quarters_of_it_are_seen(box, learnt):
    part = by_window(box)[0, 0, 300, 200]
    boxes, labels = part.objects(part.height, part.width)
    assert boxes.tolist() == ([list(learnt)] if learnt else []) and len(labels) == (learnt is not None)
    assert part.incomplete == (learnt is None and box[0] < 300), "a part that is not learnt is no background"


def test_boxes_are_in_pixels_of_the_tile():
    part = by_window((250, 170, 280, 190), (560, 380, 600, 400))[240, 160, 540, 360]
    assert (part.boxes.tolist(), part.labels.tolist()) == ([[10, 10, 40, 30]], [1])
    assert str(part) == "image.jpg (tile of 300 x 200 at 240, 160)"


def test_the_whole_image_has_what_is_larger_than_three_quarters_of_a_tile():
    whole = by_window((0, 0, 225, 150), (0, 0, 226, 10), (0, 0, 10, 151), (0, 0, 600, 400))[None]
    assert whole.labels.tolist() == [2, 3, 4] and whole.incomplete
    assert not by_window((0, 0, 600, 400))[None].incomplete


@pytest.mark.parametrize(
    ("options", "backgrounds"),
    [
        ({}, 10),
        ({"boxes": [(10, 10, 60, 60)]}, 8),
        ({"boxes": [(10, 10, 60, 60)], "crowd": [0]}, 8),
        ({"boxes": [(10, 10, 10, 60)]}, 8),
        ({"boxes": [(290, 10, 310, 190)]}, 3),
        ({"incomplete": True}, 0),
    ],
)
def test_a_background_is_a_window_that_nothing_is_annotated_in(options, backgrounds):
    boxes = options.pop("boxes", [])
    assert len(backgrounds_of(tile_samples([sample(*boxes, **options)], TILING))) == backgrounds


@pytest.fixture
def photograph(tmp_path):
    """A JPEG of 1200 x 800, and a sample of it."""
    cv2.imwrite(str(tmp_path / "large.jpg"), colours(800, 1200), [cv2.IMWRITE_JPEG_QUALITY, 98])
    return sample((100, 100, 160, 180), (900, 500, 1000, 560), path=tmp_path / "large.jpg", size=(800, 1200))


def test_a_tile_is_read_as_that_part_of_its_image(photograph):
    pixels = read_as_annotated(photograph)[0].pixels
    tiles = [part for part in tile_samples([photograph], Tiling(610)) if part.tile]
    for tile in tiles:
        x1, y1, x2, y2 = tile.tile.window
        decoded, annotated = read_as_annotated(tile)
        np.testing.assert_array_equal(decoded.pixels, pixels[y1:y2, x1:x2])
        assert annotated == decoded.size == (tile.height, tile.width)
        # As much smaller as the tile allows, wherever it is.
        reduced, annotated = read_as_annotated(tile, 200)
        assert reduced.factor == 2 and reduced.pixels.shape[:2] == (-(-tile.height // 2), -(-tile.width // 2))
        assert annotated == reduced.size == decoded.size
        enlarged = cv2.resize(reduced.pixels, (tile.width, tile.height)).astype(float)
        assert np.abs(enlarged - decoded.pixels).mean() < 6
    assert len(tiles) == 9


def test_a_tile_of_an_image_of_another_size_than_declared(photograph, tmp_path):
    declared = replace(photograph, height=400, width=600, boxes=photograph.boxes / 2)
    tile = tile_samples([declared], Tiling(300))[2]
    decoded, annotated = read_as_annotated(tile)
    assert (decoded.pixels.shape[:2], annotated) == ((400, 600), (200, 300))
    path = photograph.path.rename(tmp_path / "wrong.jpg")
    wrong = replace(photograph, path=path, height=400, width=600)
    with pytest.raises(UserError, match=r"wrong\.jpg: 1200 x 800 pixels, by the annotations 600 x 400, .* no tiles"):
        read_as_annotated(tile_samples([wrong], Tiling(300))[1])
    sideways(tmp_path / "turned.jpg")
    upright = sample(path=tmp_path / "turned.jpg", size=(100, 50))
    decoded, _ = read_as_annotated(tile_samples([upright], Tiling(40))[1])
    assert decoded.pixels.shape[:2] == (40, 22)


@pytest.fixture
def photographs(photograph):
    """Four photographs and an image that is no larger than a tile."""
    small = photograph.path.with_name("small.jpg")
    cv2.imwrite(str(small), colours(200, 300))
    others = [photograph.path.with_name(f"{number}.jpg") for number in range(4)]
    for path in others:
        path.write_bytes(photograph.path.read_bytes())
    return [sample((10, 10, 60, 60), path=small, size=(200, 300)), *(replace(photograph, path=path) for path in others)]


@pytest.fixture
def drawn(photographs):
    every = tile_samples(photographs, Tiling(400))
    labelled, empty = samples_with_objects(every), backgrounds_of(every)
    counts = {"labelled": len(labelled), "backgrounds": 3}
    return [*labelled, *empty], batch_config(batch_size=4, augmentation="hflip", **counts)


def test_an_epoch_has_each_tile_with_objects_once_and_some_without(drawn):
    samples, config = drawn
    assert config.labelled % 4 == 1 and len(samples) > config.labelled + 3
    with WorkerPool(0) as inline, WorkerPool(1) as single:
        whole = list(training_batches(samples, config, 1, inline))
        assert_same(list(training_batches(samples, config, 1, single, start=2)), whole[2:])
        other = list(training_batches(samples, config, 2, inline))
    files = [file for batch in whole for file in batch.files]
    assert len(files) == len(set(files)) == config.labelled + 3 and set(files) <= set(map(str, samples))
    assert {str(one) for one in samples[: config.labelled]} < set(files)
    assert [batch.files for batch in other] != [batch.files for batch in whole]
    for batch in whole:
        assert not batch.unreadable
        with_objects = [any(str(one) == file for one in samples[: config.labelled]) for file in batch.files]
        assert batch.labels.any(axis=1).tolist() == with_objects


def test_each_photograph_is_decoded_once(drawn, monkeypatch):
    """Where two fit into memory; tiles of two are mixed, and each small image keeps its place."""
    samples, config = drawn
    for module in (sizes, loader):
        monkeypatch.setattr(module, "MAX_BYTES_KEPT", 2 * 3 * 800 * 1200)
    decoded, decode = Counter(), sizes.decode_image
    monkeypatch.setattr(sizes, "decode_image", lambda path, *how: decoded.update([path.name]) or decode(path, *how))
    with WorkerPool(0) as inline:
        batches = list(training_batches(samples, config, 1, inline))
    assert len(decoded) == 5 and set(decoded.values()) == {1}
    files = [Path(file.partition(" (tile")[0]).name for batch in batches for file in batch.files]
    assert len(set(files[:8]) - {"small.jpg"}) == 2 and sum(map(str.__ne__, files, files[1:])) > 7


def test_an_order_without_tiles_stays_as_it_is():
    order = np.random.default_rng(0).permutation(30)
    assert tiles_together(order, [sample()] * 30) is order


def test_a_task_does_not_grow_with_the_tiles(drawn):
    samples, _ = drawn
    tiles = [one for one in samples if one.tile and one.path == samples[-1].path]
    assert len(pickle.dumps(tiles)) < 1500 * len(tiles)
