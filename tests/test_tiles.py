"""Tiles: every object of a large image is found exactly once, wherever the seams are."""

import json
import os
import shutil
import signal
from contextlib import closing

import cv2
import numpy as np
import pytest
from small_data import colours, shapes_folder, untrained_run
from small_data import run as run_command
from tqdm import tqdm

from ssd300_vgg16 import Detector, evaluate, export, infer
from ssd300_vgg16.boxes import iou, xywh_to_xyxy
from ssd300_vgg16.data.images import decode_image, read_image
from ssd300_vgg16.detection import pipeline
from ssd300_vgg16.detection.files import image_files
from ssd300_vgg16.errors import Stopped, UserError
from ssd300_vgg16.metrics.evaluation import _on_tiles
from ssd300_vgg16.tiles import Tiling, begin_on_tiles, join, tile_windows

SIDE = 300


@pytest.mark.parametrize("overlap", [0, 0.2, 0.9])
@pytest.mark.parametrize(
    ("size", "tile"),
    [((301, 300), (300, 299)), ((1000, 777), (300, 233)), ((200, 900), (169, 300)), ((33, 1201), (169, 300))],
)
def test_tiles_cover_each_pixel_and_neighbours_share_the_overlap(size, tile, overlap):
    whole, *windows = Tiling(SIDE, overlap).windows(*size)
    assert whole == (0, 0, *size[::-1])
    seen = np.zeros(size, dtype=int)
    for x1, y1, x2, y2 in windows:
        assert x1 >= 0 and y1 >= 0 and (y2 - y1, x2 - x1) == tuple(np.minimum(size, tile))
        seen[y1:y2, x1:x2] += 1
    assert seen.all() and len(set(windows)) == len(windows)
    starts = np.unique([x1 for x1, _, _, _ in windows])
    assert (np.diff(starts) <= tile[1] - int(overlap * tile[1])).all()


def blind_detector(rng, min_side):
    """Sees bright patches of the network's input that are large enough there; knows nothing of tiles or objects."""

    def begin(images, sizes_hw):
        def detections():
            for image, (height, width) in zip(images, sizes_hw, strict=True):
                _, _, patches, _ = cv2.connectedComponentsWithStats((image[0] > 127).astype(np.uint8))
                patches = patches[1:]
                patches = patches[(patches[:, 2:4] >= min_side).all(axis=1)]
                boxes = np.concatenate((patches[:, :2], patches[:, :2] + patches[:, 2:4]), axis=1)
                scale = np.array([width, height, width, height]) / SIDE
                scores = np.sort(rng.uniform(0.5, 1, len(boxes)).astype(np.float32))[::-1]
                labels = np.ones(len(boxes), dtype=np.int64)
                yield {"boxes": (boxes * scale).astype(np.float32), "scores": scores, "labels": labels}

        return lambda: list(detections())

    return begin


def scene(rng, height, width, sides):
    """An image with bright boxes of these sides, apart from each other, and the boxes."""
    image, boxes = np.zeros((height, width, 3), dtype=np.uint8), []
    for _ in range(400):
        w, h = rng.integers(*sides, 2)
        x, y = rng.integers(0, (width - w, height - h))
        apart = 16
        if not image[max(0, y - apart) : y + h + apart, max(0, x - apart) : x + w + apart].any():
            image[y : y + h, x : x + w] = 255
            boxes.append((x, y, x + w, y + h))
    return image, np.array(boxes, dtype=np.float32)


# In the whole image, a fifth as large, none of the first is seen. Of the second all are, and tiles see parts of them.
# The third are too large for the overlap, and too small for the whole: most are seen in parts alone.
@pytest.mark.parametrize(("sides", "min_side"), [((12, 36), 8), ((45, 400), 8), ((60, 130), 30)])
@pytest.mark.parametrize("seed", range(4))
def test_each_object_is_found_once_with_its_box(seed, sides, min_side):
    rng = np.random.default_rng(seed)
    image, boxes = scene(rng, 1100, 1500, sides)
    small, _ = scene(rng, 280, 200, (20, 40))
    images = [image, small, image]
    begin = blind_detector(rng, min_side)
    found = begin_on_tiles(begin, images, SIDE, Tiling(SIDE), batch_size=7)()
    assert len(boxes) > 10
    for each in (found[0], found[2]):
        overlaps = iou(boxes, each["boxes"])
        assert len(each["boxes"]) == len(boxes)
        assert (overlaps.max(axis=1) > 0.8).all()
        assert (np.diff(each["scores"]) <= 0).all()


def test_an_evaluation_has_boxes_in_pixels_as_annotated():
    image, _ = scene(np.random.default_rng(1), 500, 700, (30, 60))
    tiling, sizes_hw = Tiling(SIDE), np.array([[1000, 2100]])
    (expected,) = begin_on_tiles(blind_detector(np.random.default_rng(0), 8), [image], SIDE, tiling, 4)()
    (found,) = _on_tiles(blind_detector(np.random.default_rng(0), 8), SIDE, 4, tiling)(image[None], sizes_hw)()
    np.testing.assert_allclose(found["boxes"], expected["boxes"] * np.array([3, 2, 3, 2]), rtol=1e-6)


def detections(*rows):
    """Of a window: rows x1, y1, x2, y2, score of one class."""
    table = np.array(rows, dtype=np.float32).reshape(-1, 5)
    return {"boxes": table[:, :4], "scores": table[:, 4], "labels": np.ones(len(table), dtype=np.int64)}


WINDOWS = [(0, 0, 180, 100), (0, 0, 100, 100), (80, 0, 180, 100)]  # the whole, and two tiles that share 80 to 100


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        # Neighbours in a tile, and a small one in a large one that another window sees.
        ([[], [(10, 10, 50, 50, 0.9), (30, 10, 70, 50, 0.8)], []], [(10, 10, 50, 50, 0.9), (30, 10, 70, 50, 0.8)]),
        ([[(5, 5, 95, 95, 0.9)], [(20, 20, 40, 40, 0.8)], []], [(5, 5, 95, 95, 0.9), (20, 20, 40, 40, 0.8)]),
        # A tile sees a part of something behind a whole one: it can tell them apart.
        (
            [[], [(40, 10, 90, 50, 0.9), (70, 20, 100, 40, 0.8)], []],
            [(40, 10, 90, 50, 0.9), (70, 20, 100, 40, 0.8)],
        ),
        # The same object in two tiles: the better box. The whole image has no say on one so small.
        ([[], [(84, 10, 96, 50, 0.7)], [(4, 11, 16, 51, 0.9)]], [(84, 11, 96, 51, 0.9)]),
        ([[(12, 10, 52, 50, 0.9)], [(10, 10, 50, 50, 0.7)], []], [(10, 10, 50, 50, 0.7)]),
        # A part with the better score does not outlive the whole object, nor does a second one of the same tile.
        ([[(60, 10, 170, 90, 0.6)], [(60, 10, 100, 90, 0.9), (62, 12, 100, 84, 0.5)], []], [(60, 10, 170, 90, 0.9)]),
        # What the other tile sees well inside is left to it, whatever the score; of the image's edge it need not be.
        ([[], [(70, 10, 95, 50, 0.6)], [(0, 10, 16, 50, 0.9), (0, 0, 9, 30, 0.8)]], [(70, 10, 95, 50, 0.6)]),
        # Nor what a box of hardly any score says of it.
        ([[(60, 5, 150, 55, 0.05)], [], [(0, 10, 60, 50, 0.9)]], [(80, 10, 140, 50, 0.9)]),
        # Seen whole by no window; as whole by the tiles as they can tell.
        ([[], [(50, 10, 100, 50, 0.6)], [(0, 11, 60, 50, 0.7)]], [(50, 10, 140, 50, 0.7)]),
        # Two neighbours that both reach into what the tiles share are no parts of one.
        ([[], [(40, 10, 96, 50, 0.9)], [(4, 10, 60, 50, 0.8)]], [(40, 10, 96, 50, 0.9), (84, 10, 140, 50, 0.8)]),
        # At the image's own edge nothing is cut.
        ([[], [(0, 10, 30, 50, 0.9), (0, 10, 12, 50, 0.8)], []], [(0, 10, 30, 50, 0.9), (0, 10, 12, 50, 0.8)]),
    ],
)
def test_boxes_are_joined_if_they_are_of_one_object(found, expected):
    joined = join([detections(*rows) for rows in found], WINDOWS)
    np.testing.assert_allclose(np.column_stack((joined["boxes"], joined["scores"])), np.array(expected, np.float32))


def test_objects_of_other_classes_are_not_joined():
    other = detections((3, 10, 16, 50, 0.9))
    other["labels"] += 1
    joined = join([detections(), detections((83, 10, 96, 50, 0.8)), other], WINDOWS)
    assert joined["labels"].tolist() == [2, 1]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return untrained_run(tmp_path_factory.mktemp("tiles") / "run", tile_side=200)


def test_a_detector_sees_a_large_image_in_tiles_and_a_small_one_as_ever(run):
    plain, tiled = Detector.load(run, "cpu", 0.1), Detector.load(run, "cpu", 0.1, tiles=128, tile_overlap=0.25)
    small, large = colours(100, 128), colours(200, 330)
    for one, other in zip(plain([small, small]), tiled([small, small]), strict=True):
        assert all(np.array_equal(one[key], other[key]) for key in ("boxes", "scores", "labels"))
    windows = [(0, 0, 330, 200), *tile_windows((200, 330), (78, 128), 0.25)]
    views = [large[y1:y2, x1:x2] for x1, y1, x2, y2 in windows]
    of_each = [{key: each[key] for key in ("boxes", "scores", "labels")} for each in plain(views)]
    expected = join(of_each, windows)
    found = tiled(large)
    assert len(found) > 20
    np.testing.assert_array_equal(found.boxes, expected["boxes"])
    np.testing.assert_array_equal(found.scores, expected["scores"])


@pytest.mark.parametrize("numbers", [(31, 0.2), (-5, 0.2), (300, 1), (300, -0.1), (300, float("nan"))])
def test_tiles_that_make_no_sense_are_refused(run, numbers):
    with pytest.raises(UserError, match="tiles"):
        Detector.load(run, "cpu", tiles=numbers[0], tile_overlap=numbers[1])


def test_auto_is_refused_for_weights_that_do_not_say_what_they_were_trained_on(tmp_path):
    with pytest.raises(UserError, match=r"--tiles auto: these weights do not say .* as in --tiles 640"):
        Detector.load(untrained_run(tmp_path / "run"), "cpu", tiles="auto")


@pytest.fixture(scope="module")
def place(run):
    """A folder with the run, its exported model, and shapes: images of 300 to 420 pixels, one of which is broken."""
    folder = run.parent
    shapes_folder(folder, 1, 4)
    (folder / "shapes" / "val" / "000002.jpg").write_bytes(b"no image")
    assert export.main([str(run), "--to", str(folder / "whole.onnx")]) == 0
    return folder


TILES = ("--tiles", "200", "--tile-overlap", "0.1", "--device", "cpu", "-b", "3")


def test_infer_and_eval_detect_on_tiles_in_one_process_and_in_two(place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    detector = Detector.load(place / "run", "cpu", 0.1, tiles=200, tile_overlap=0.1)
    expected = [detector(place / "shapes" / "val" / f"{number:06}.jpg") for number in (1, 3, 4)]
    assert max(map(len, expected)) > 200, "the limit is for each tile"
    told = []
    monkeypatch.setattr(tqdm, "set_postfix_str", lambda bar, text, refresh: told.append(text))
    options = (*TILES, "--weights", "run", "--score-threshold", "0.1", "shapes/val")
    assert infer.main([*options, "--output-dir", "found1"]) == 1
    counts = [len(detector.tiling.windows(*read_image(detections.source).shape[:2])) for detections in expected]
    progress = [f"tile {min(done + 3, count)} of {count}" for count in counts for done in range(0, count, 3)]
    assert told == progress
    told.clear()
    auto = ("--tiles", "auto", "--output-dir", "found2")
    done = run_command("infer", *options, *auto, folder=place, variables={"NPROC": 2})
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "--tiles auto: tiles of 200 pixels" in done.stdout
    files = [(place / f"found{count}" / "detections.json").read_bytes() for count in (1, 2)]
    rows = json.loads(files[0])
    assert files[1] == files[0]
    for image_id, each in zip((1, 3, 4), expected, strict=True):
        of_image = [row for row in rows if row["image_id"] == image_id]
        np.testing.assert_allclose([row["score"] for row in of_image], each.scores, atol=1e-4)
        boxes = xywh_to_xyxy(np.array([row["bbox"] for row in of_image]))
        np.testing.assert_allclose(boxes, each.boxes, atol=0.1)
    options = (*TILES, "--weights", "run", "--data-path", "shapes")
    assert evaluate.main([*options, "-j", "0", "--output-dir", "measured1"]) == 1
    assert told == progress
    output = capsys.readouterr().out
    assert "on tiles of 200 pixels that overlap by 0.1 too" in output and "000002.jpg" in output
    assert "on tiles of 200 pixels that overlap by 0.1" in (place / "measured1" / "report.html").read_text()
    measured2 = ("-j", 1, "--output-dir", "measured2", "--tiles", "auto")
    done = run_command("evaluate", *options, *measured2, folder=place, variables={"NPROC": 2})
    assert done.returncode == 1 and done.stdout.count("--tiles auto: tiles of 200 pixels") == 1
    names = ("detections.json", "coco_metrics.json")
    files = [[(place / f"measured{count}" / name).read_bytes() for name in names] for count in (1, 2)]
    assert files[1] == files[0]
    assert json.loads(files[0][1])["tiles"] == {"side": 200, "overlap": 0.1}
    for image_id, each in zip((1, 3, 4), expected, strict=True):
        scores = [row["score"] for row in json.loads(files[0][0]) if row["image_id"] == image_id]
        shared = [score for score in scores if score > 0.11]
        np.testing.assert_allclose(shared, each.scores[each.scores > 0.11], atol=1e-4)


def test_a_stop_between_the_tiles_of_an_image_is_heeded(place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    tiles = []

    def stop(bar, done, count):
        tiles.append(done)
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr("ssd300_vgg16.detection.run.show_on", stop)
    with pytest.raises(Stopped):
        infer.main([*TILES, "--weights", "run", "shapes/val/000001.jpg", "--output-dir", "stopped"])
    assert tiles == [3]
    assert "Stopped after 0 of 1 images. Go on with: the same, and --resume" in capsys.readouterr().out


def test_few_large_images_are_in_memory(place, monkeypatch):
    """Whatever the batch, of which one image's tiles are more than enough, and the cores."""
    paths = [place / "many" / f"{number}.jpg" for number in range(12)]
    paths[0].parent.mkdir()
    for path in paths:
        shutil.copy(place / "shapes" / "val" / "000001.jpg", path)
    read = []
    monkeypatch.setattr(
        pipeline, "decode_image", lambda path, upright: read.append(path) or decode_image(path, upright)
    )
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(8))
    files = image_files({path: number for number, path in enumerate(paths)}, place / "drawn", False, False)
    detector = Detector.load(place / "run", "cpu", tiles=200)
    with closing(pipeline.detect_each(detector, files, None, batch_size=4)) as results:
        for number, (_, found) in zip(range(3), results, strict=False):
            assert len(found) and len(read) <= number + 4


def test_an_exported_model_that_holds_its_post_processing_takes_tiles_too(place):
    image = place / "shapes" / "val" / "000001.jpg"
    tiles = {"run": 200, "whole.onnx": "auto"}
    expected, found = (Detector.load(place / name, "cpu", 0.2, tiles=tiles[name])(image) for name in tiles)
    np.testing.assert_allclose(found.scores, expected.scores, rtol=1e-4)
    # Of scores that differ in the last bit, two may change places.
    assert np.isclose(found.boxes, expected.boxes, atol=0.02).all(axis=1).mean() > 0.99
