"""What --check shows and says of the data."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from batches import batch_config
from small_data import shapes, shapes_folder

from ssd300_vgg16.cli.train_options import parse
from ssd300_vgg16.data.categories import COCO_CATEGORIES, VOC_CATEGORIES
from ssd300_vgg16.data.dataset import Fate
from ssd300_vgg16.data.loader import TrainingBatch
from ssd300_vgg16.data.matching import training_targets
from ssd300_vgg16.distributed.world import ALONE
from ssd300_vgg16.draw import label_colour
from ssd300_vgg16.network.variants import SSD300_COCO, default_boxes
from ssd300_vgg16.training import run
from ssd300_vgg16.training.dry_run import _not_checked, draw_batch

BOXES = default_boxes(SSD300_COCO)


def test_objects_are_drawn_where_the_network_learns_them():
    objects = np.array([[30, 60, 150, 240], [200, 20, 280, 90]], np.float32), np.array([2, 1])
    targets = training_targets(*objects, BOXES), training_targets(np.empty((0, 4), np.float32), np.empty(0, int), BOXES)
    offsets, labels = (np.stack(columns) for columns in zip(*targets, strict=True))
    batch = TrainingBatch(np.zeros((2, 3, 300, 300), np.uint8), offsets, labels, ["a.jpg", "b.jpg"], [])
    sheet = np.array(draw_batch(batch, BOXES, {1: "cat", 2: "dog"}))
    assert sheet.shape == (300, 600, 3) and not sheet[:, 300:].any()
    for label, (x1, y1, x2, y2) in ((2, (30, 60, 150, 240)), (1, (200, 20, 280, 90))):
        # Below its middle, where no name covers it.
        rows, columns = np.nonzero((sheet[(y1 + y2) // 2 :] == label_colour(label)).all(-1))
        assert (columns.min(), columns.max(), rows.max() + (y1 + y2) // 2) == (x1, x2 - 1, y2 - 1)


def test_what_was_not_checked_is_counted(tmp_path):
    data = shapes(shapes_folder(tmp_path, 3, 1), "train")
    samples = tuple(replace(data.samples[0], path=Path(f"{number}.jpg")) for number in range(501))
    trainer = SimpleNamespace(samples=samples, batch=batch_config(batch_size=8))
    many = replace(data, samples=samples)
    line = _not_checked(trainer, many, 40)  # of 501 images every third is looked at
    assert line.startswith(
        "not checked: the pixels of 485 training and 40 validation images, the declared sizes of 334 training images ("
    )
    assert "declared" not in _not_checked(trainer, replace(many, kind="yolo"), 40)


def test_a_training_tells_what_is_odd_about_the_data_and_images_of_both_splits(tmp_path):
    data = shapes(shapes_folder(tmp_path, 2, 1), "train")
    data.problems.add("odd", "1.jpg", Fate.IMAGE_LEFT_OUT)
    told = []
    options = SimpleNamespace(source=lambda: SimpleNamespace(load=lambda *_: data), num_classes=None)
    assert run._load_data(options, SimpleNamespace(say=lambda *lines: told.extend(lines))) == (data, data)
    problems, shared = told
    assert problems.endswith("\n  1 x odd: 1.jpg")
    assert shared.startswith("2 of the 2 validation images are training images too, such as ")


@pytest.mark.parametrize(
    ("images", "backgrounds", "said"),
    [
        (7, 0, ""),
        (9, 0, ", 2 images without objects, 0 of them trained on in an epoch"),
        (9, 1, ", 2 images without objects, 1 of them trained on in an epoch"),
    ],
)
def test_images_without_objects_are_counted(images, backgrounds, said):
    progress = SimpleNamespace(step=0, data={"images": images})
    options = parse(["--epochs", "3", "--dataset", "coco"])
    batch = SimpleNamespace(labelled=7, backgrounds=backgrounds)
    trainer = SimpleNamespace(batch=batch, world=ALONE, progress=progress, options=options)
    assert run._summary(trainer).startswith(f"7 images with objects{said}, 3 epochs, ")


@pytest.mark.parametrize(("overlap", "added"), [(0.2, ""), (0.25, " --tile-overlap 0.25")])
def test_a_run_on_tiles_says_so_and_how_to_use_it(tmp_path, capsys, overlap, added):
    options = parse(["--epochs", "3", "--dataset", "coco", "--tiles", "640", "--tile-overlap", str(overlap)])
    batch, progress = SimpleNamespace(labelled=7, backgrounds=1), SimpleNamespace(step=0, data={"images": 2})
    trainer = SimpleNamespace(batch=batch, world=ALONE, progress=progress, options=options, samples=range(12))
    assert run._summary(trainer).startswith(
        "7 tiles of 640 pixels and whole images with objects, 5 tiles of 640 pixels and whole images without objects, "
        "1 of them trained on in an epoch, 3 epochs, "
    )
    run._finish(SimpleNamespace(folder=tmp_path / "run", page=None, options=options), None, 2)
    said = capsys.readouterr().out
    for command in ("infer", "eval"):
        assert f"  bash {command}.sh --weights {tmp_path}/run --tiles 640{added}\n" in said


@pytest.mark.parametrize(
    ("names", "given", "share"),
    [
        (["person", "helmet"], None, run.BACKGROUND_IMAGES),
        (["person", "helmet"], 0.0, 0.0),
        ([category.name for category in COCO_CATEGORIES], None, 0.0),
        ([category.name for category in COCO_CATEGORIES[:2]], None, run.BACKGROUND_IMAGES),
        ([category.name for category in VOC_CATEGORIES], None, 0.0),
        ([category.name for category in VOC_CATEGORIES], 0.3, 0.3),
    ],
)
def test_the_share_of_images_without_objects_is_that_of_own_or_of_published_data(names, given, share):
    categories = [SimpleNamespace(name=name) for name in names]
    data, options = SimpleNamespace(categories=categories), SimpleNamespace(background_images=given)
    assert run._background_images(options, data) == share
