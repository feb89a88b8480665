"""Images of another size than their annotations declare, as training, evaluation and inspection see them."""

import json

import numpy as np
import pytest
from layout_files import TRAIN, coco, images
from yolo_files import sideways

from ssd300_vgg16.data.coco import load_coco
from ssd300_vgg16.data.loader import BatchConfig, evaluation_batches, training_batches
from ssd300_vgg16.data.sizes import MISDECLARED, RESIZED, TURNED, read_as_annotated, scaled
from ssd300_vgg16.data.workers import WorkerPool
from ssd300_vgg16.errors import UserError
from ssd300_vgg16.network.variants import SSD300_VGG16, default_boxes

NAMES = TRAIN[:2]


def load(folder, size=None, bbox=None, **options):
    """Two images of 60 x 40, with annotations that declare another size."""
    if not (folder / "images").exists():
        images(folder / "images", NAMES)
    coco(folder / "a.json", NAMES)
    document = json.loads((folder / "a.json").read_text())
    for entry in document["images"]:
        entry["width"], entry["height"] = size or (60, 40)
    for entry in document["annotations"]:
        entry["bbox"] = bbox or entry["bbox"]
    (folder / "a.json").write_text(json.dumps(document))
    return load_coco(folder / "a.json", folder / "images", **options)


def targets(dataset):
    """Labels and offsets of a batch without augmentation."""
    config = BatchConfig(2, "none", 0, default_boxes(SSD300_VGG16.layout), 300)
    with WorkerPool(0) as pool:
        (batch,) = training_batches(dataset.samples, config, 0, pool)
        (evaluated,) = evaluation_batches(dataset.samples, 2, 300, pool)
    assert not batch.unreadable and not evaluated.unreadable
    return batch.labels, batch.offsets, evaluated.sizes_hw.tolist()


def test_boxes_of_images_that_were_resized_are_scaled(tmp_path):
    right = load(tmp_path / "right", bbox=[10, 10, 20, 10])
    resized = load(tmp_path / "resized", (240, 160), [40, 40, 80, 40])
    assert not right.problems and resized.problems.counts == {RESIZED: 2}
    assert "0.jpg: 60 x 40, declared 240 x 160" in resized.problems.message()
    labels, offsets, sizes = targets(right)
    scaled_labels, scaled_offsets, declared = targets(resized)
    np.testing.assert_array_equal(labels, scaled_labels)
    np.testing.assert_allclose(offsets, scaled_offsets, atol=1e-5)
    assert (labels > 0).any() and (sizes, declared) == ([[40, 60]] * 2, [[160, 240]] * 2)
    with pytest.raises(UserError, match="another size than declared"):
        load(tmp_path / "resized", (240, 160), strict=True)


def test_a_declared_size_that_the_boxes_do_not_fit_is_not_believed(tmp_path):
    dataset = load(tmp_path, (30, 20), [35, 20, 20, 15])
    assert dataset.problems.counts[MISDECLARED] == 2
    assert targets(dataset)[2] == [[40, 60]] * 2


def test_sizes_that_cannot_both_be_right_stop_the_loading(tmp_path):
    with pytest.raises(UserError, match=r"2 of 2 images looked at .*60 x 40 pixels, by the annotations 500 x 100"):
        load(tmp_path, (500, 100))
    # Of another shape too, but the boxes say that they are of the declared one.
    assert load(tmp_path, (500, 100), [300, 50, 100, 20]).problems.counts == {RESIZED: 2}


def test_one_size_that_cannot_be_right_is_told_with_what_becomes_of_the_image(tmp_path):
    load(tmp_path)
    document = json.loads((tmp_path / "a.json").read_text())
    document["images"][0].update(width=500, height=100)
    (tmp_path / "a.json").write_text(json.dumps(document))
    message = load_coco(tmp_path / "a.json", tmp_path / "images").problems.message()
    assert "image files looked at that are left out when they are read: 1\n  1 x image of another size and" in message


def test_an_image_that_exif_turns_to_the_declared_size_is_read_upright(tmp_path):
    (tmp_path / "images").mkdir()
    for name in NAMES:
        sideways(tmp_path / "images" / name)
    dataset = load(tmp_path, (50, 100))
    assert dataset.problems.counts == {TURNED: 2}
    decoded, annotated = read_as_annotated(dataset.samples[0])
    assert decoded.pixels.shape == (100, 50, 3) and decoded.size == annotated == (100, 50)
    assert decoded.pixels[50, 40, 0] > 200 > decoded.pixels[50, 10, 0]  # red is right
    assert targets(dataset)[2] == [[100, 50]] * 2


def test_scaled():
    boxes = np.array([[10, 20, 30, 40]], dtype=np.float32)
    assert scaled(boxes, (40, 60), (80, 60)).tolist() == [[10, 40, 30, 80]]
    assert scaled(boxes, (40, 60), (40, 60)) is boxes
