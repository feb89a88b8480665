import json
import signal
import subprocess
import sys

import cv2
import numpy as np
import pytest
from pycocotools.coco import COCO
from small_data import environment

from ssd300_vgg16.data import shapes
from ssd300_vgg16.errors import UserError
from ssd300_vgg16.folders import held

TRAIN, VAL = 12, 5


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def annotations(folder, split):
    return json.loads((folder / "annotations" / f"instances_{split}.json").read_text())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shapes") / "set"
    shapes.write_shapes(folder, TRAIN, VAL, seed=0)
    return folder


@pytest.fixture(scope="module")
def drawn():
    return [shapes.draw_image(0, "train", index) for index in range(80)]


@pytest.mark.parametrize(("split", "count"), [("train", TRAIN), ("val", VAL)])
def test_files_are_coco(folder, split, count, capsys):
    coco = COCO(str(folder / "annotations" / f"instances_{split}.json"))
    capsys.readouterr()
    assert len(coco.imgs) == count
    assert sorted(path.name for path in (folder / split).iterdir()) == [i["file_name"] for i in coco.imgs.values()]
    assert {c["name"]: c["id"] for c in coco.cats.values()} == shapes.CATEGORY_IDS
    for info in coco.imgs.values():
        image = cv2.imread(str(folder / split / info["file_name"]))
        assert image.shape == (info["height"], info["width"], 3)
        assert 1 <= len(coco.getAnnIds(imgIds=info["id"])) <= 5


def test_annotations_agree_with_what_is_drawn(folder):
    content = annotations(folder, "val")
    entries = iter(content["annotations"])
    for index, image in enumerate(content["images"]):
        for category, visible in shapes.draw_image(0, "val", index)[1]:
            entry = next(entries)
            rows, columns = np.nonzero(visible)
            x1, y1, x2, y2 = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
            assert entry["bbox"] == [x1, y1, x2 - x1, y2 - y1]
            assert (entry["image_id"], entry["category_id"]) == (image["id"], shapes.CATEGORY_IDS[category])
            assert entry["area"] == visible.sum() and entry["iscrowd"] == 0
    assert next(entries, None) is None


def test_files_hold_what_is_drawn(folder):
    stored = cv2.cvtColor(cv2.imread(str(folder / "train" / "000002.jpg")), cv2.COLOR_BGR2RGB)
    assert np.abs(stored.astype(int) - shapes.draw_image(0, "train", 1)[0]).mean() < 5


def test_category_ids_have_gaps():
    ids = sorted(shapes.CATEGORY_IDS.values())
    assert ids[0] > 1 and min(np.diff(ids)) > 1
    assert shapes.CATEGORY_IDS.keys() == shapes.HUES.keys() == shapes.OUTLINES.keys()


def test_sides_sizes_and_counts_vary(drawn):
    sides = np.array([image.shape[:2] for image, _ in drawn])
    assert sides.min() >= 300 and sides.max() <= 420 and len(np.unique(sides)) > 40
    assert {len(objects) for _, objects in drawn} == {1, 2, 3, 4, 5}
    found = [category for _, objects in drawn for category, _ in objects]
    assert all(found.count(category) > 0.1 * len(found) for category in shapes.CATEGORY_IDS)
    areas = np.array([visible.sum() for _, objects in drawn for _, visible in objects])
    assert 0.02 < (areas < 32**2).mean() < 0.2


def test_visible_pixels_have_the_colour_of_the_class(drawn):
    """So masks, boxes and pictures are of the same shapes; the background is muted."""
    for image, objects in drawn:
        hue, saturation, _ = np.moveaxis(cv2.cvtColor(image.astype(np.float32), cv2.COLOR_RGB2HSV), -1, 0)
        anywhere = np.zeros(image.shape[:2], dtype=np.uint8)
        for category, visible in objects:
            inner = cv2.erode(visible.astype(np.uint8), np.ones((5, 5))).astype(bool)
            off = np.abs((hue[inner] - shapes.HUES[category] + 180) % 360 - 180)
            assert off.size and off.max() <= shapes.HUE_SPREAD + 1
            assert saturation[inner].min() > 0.7
            anywhere |= visible
        outside = cv2.dilate(anywhere, np.ones((5, 5))) == 0
        assert np.median(saturation[outside]) < 0.4


def test_objects_do_not_share_pixels_and_stay_visible(monkeypatch):
    full = []
    place = shapes._place

    def recording(*arguments):
        placed = place(*arguments)
        if placed is not None:
            full.append(np.count_nonzero(placed[0] >= 0.5))
        return placed

    monkeypatch.setattr(shapes, "_place", recording)
    hidden = 0
    for index in range(60):
        full.clear()
        _, objects = shapes.draw_image(1, "train", index)
        masks = np.array([visible for _, visible in objects])
        assert masks.sum(axis=0).max() == 1
        shares = masks.sum(axis=(1, 2)) / full
        assert (shares >= 0.7).all()
        hidden += (shares < 1).sum()
    assert hidden > 10


def test_outlines_differ():
    """How much of its box each shape fills, upright."""
    shares = {name: shapes._shape_patch(name, 100, _Upright()) for name in shapes.OUTLINES}
    for name, share in {"circle": 0.785, "square": 1.0, "triangle": 0.5, "star": 0.39, "ring": 0.548}.items():
        _, _, width, height = cv2.boundingRect((shares[name] >= 0.5).astype(np.uint8))
        assert abs((shares[name] >= 0.5).sum() / (width * height) - share) < 0.03, name
    assert shares["ring"][51, 51] == 0


class _Upright:
    def uniform(self, low, high):
        return (low + high) / 2


def test_same_seed_same_bytes_other_seed_other_images(folder, tmp_path):
    shapes.write_shapes(tmp_path / "same", TRAIN, VAL, seed=0)
    assert contents(tmp_path / "same") == contents(folder)
    shapes.write_shapes(tmp_path / "other", 2, 2, seed=1)
    assert contents(tmp_path / "other")["train/000001.jpg"] != contents(folder)["train/000001.jpg"]
    assert contents(folder)["val/000001.jpg"] != contents(folder)["train/000001.jpg"]


def test_more_images_keep_the_first_ones(folder, tmp_path):
    shapes.write_shapes(tmp_path / "few", 3, 0, seed=0)
    few = {name: data for name, data in contents(tmp_path / "few").items() if name.endswith(".jpg")}
    assert len(few) == 3
    assert few.items() <= contents(folder).items()
    assert annotations(tmp_path / "few", "val")["images"] == []


def test_complete_folder_is_left_alone(folder, monkeypatch):
    before = contents(folder)
    monkeypatch.setattr(shapes, "draw_image", lambda *_: pytest.fail("drawn again"))
    shapes.write_shapes(folder, TRAIN, VAL, seed=0)
    assert contents(folder) == before


@pytest.mark.parametrize("change", ["seed", "count", "lost image", "lost json", "torn json", "foreign", "a file"])
def test_other_content_is_refused_and_stays(tmp_path, change):
    target, counts, seed = tmp_path / "set", (2, 1), 0
    if change == "foreign":
        target.mkdir()
        (target / "holiday.jpg").write_bytes(b"mine")
    elif change == "a file":
        target.write_bytes(b"mine")
    else:
        shapes.write_shapes(target, *counts, seed)
    if change == "seed":
        seed = 1
    elif change == "count":
        counts = (2, 2)
    elif change == "lost image":
        (target / "val" / "000001.jpg").unlink()
    elif change == "lost json":
        (target / "annotations" / "instances_val.json").unlink()
    elif change == "torn json":
        (target / "annotations" / "instances_val.json").write_text('{"info": ')
    before = contents(tmp_path)
    with pytest.raises(UserError, match=r"set holds something other.*remove it or name another folder"):
        shapes.write_shapes(target, *counts, seed)
    assert contents(tmp_path) == before


def test_empty_folder_is_filled_and_parents_are_made(tmp_path):
    (tmp_path / "empty").mkdir()
    shapes.write_shapes(tmp_path / "empty", 1, 0, seed=0)
    shapes.write_shapes(str(tmp_path / "a" / "b"), 1, 0, seed=0)
    assert contents(tmp_path / "empty") == contents(tmp_path / "a" / "b")


def test_interruption_leaves_nothing(tmp_path, monkeypatch):
    def interrupt(seed, split, index):
        if split == "val":
            raise KeyboardInterrupt
        return draw_image(seed, split, index)

    draw_image = shapes.draw_image
    monkeypatch.setattr(shapes, "draw_image", interrupt)
    with pytest.raises(KeyboardInterrupt):
        shapes.write_shapes(tmp_path / "set", 1, 1, seed=0)
    assert list(tmp_path.iterdir()) == []


def test_two_writers_at_once(tmp_path, monkeypatch):
    """Another process finishes the same data set while this one draws."""
    draw_image = shapes.draw_image

    def other_writer_wins(seed, split, index):
        monkeypatch.setattr(shapes, "draw_image", draw_image)
        shapes.write_shapes(tmp_path / "set", 1, 1, seed=0)
        return draw_image(seed, split, index)

    monkeypatch.setattr(shapes, "draw_image", other_writer_wins)
    shapes.write_shapes(tmp_path / "set", 1, 1, seed=0)
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write .*file/set"):
        shapes.write_shapes(tmp_path / "file" / "set", 1, 1, seed=0)


# Is killed in the middle of the data set.
KILLED = """
import os, signal, sys
from ssd300_vgg16.data import shapes
real = shapes.draw_image
def draw_image(seed, split, index):
    if index == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(seed, split, index)
shapes.draw_image = draw_image
shapes.write_shapes(sys.argv[1], 4, 1, 0)
"""


def test_what_a_kill_has_left_is_no_data_set_and_is_removed(tmp_path):
    folder, others = tmp_path / "set", tmp_path / ".set.0123456789abcdef.tmp"
    killed = subprocess.run([sys.executable, "-c", KILLED, folder], env=environment(), check=False)
    assert killed.returncode == -signal.SIGKILL
    assert len(list(tmp_path.iterdir())) == 1 and not folder.exists()
    others.mkdir()
    with held(others, "in use"):  # another process is making it
        shapes.write_shapes(folder, 4, 1, 0)
    assert sorted(tmp_path.iterdir()) == [others, folder]
    assert len(list((folder / "train").iterdir())) == 4
