"""Default boxes fitted to made-up objects of known shapes."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ssd300_vgg16.boxes import iou
from ssd300_vgg16.data.augment import augment
from ssd300_vgg16.data.dataset import Sample
from ssd300_vgg16.data.fitting import MAX_ROUNDS, fit, objects_seen
from ssd300_vgg16.data.images import DecodedImage
from ssd300_vgg16.network.variants import MIN_SIDE, default_boxes, fitted_variant, shapes_in_cell, variant_of

SIDE = 300
COCO = variant_of("ssd300_vgg16", "coco").layout


def objects_of(*shapes, count=150, seed=0):
    """Boxes [N, 4] of these widths and heights, each as often anywhere in the input."""
    rng = np.random.default_rng(seed)
    sizes = np.repeat(np.array(shapes, dtype=float), count, axis=0)
    corners = rng.random((len(sizes), 2)) * (SIDE - sizes)
    return np.concatenate((corners, corners + sizes), axis=1, dtype=np.float32)


def fitted_to(objects, model="ssd300_vgg16"):
    return fit(objects, np.ones(len(objects), dtype=np.int64), model)


def areas_of(layout):
    return np.array([width * height for of_map in layout.shapes for width, height in of_map])


def mean_iou(objects, layout):
    return iou(objects, default_boxes(layout)).max(axis=1).mean()


@pytest.mark.parametrize(
    ("shapes", "least"),
    [
        ([(12, 70), (45, 45), (200, 110)], 0.8),
        ([(16, 120)], 0.7),  # cells are 8 pixels apart, half as wide as the objects
        ([(10, 10), (14, 14)], 0.55),  # and only 4 of them are in a cell
    ],
)
def test_the_shapes_of_the_objects_are_found(shapes, least):
    variant = fitted_to(objects_of(*shapes))
    layout = variant.layout
    assert (variant.name, layout.boxes_per_cell) == ("ssd300_vgg16_fit", COCO.boxes_per_cell)
    assert len(default_boxes(layout)) == len(default_boxes(COCO))
    others = objects_of(*shapes, seed=1)
    assert mean_iou(others, layout) >= max(least, mean_iou(others, COCO) + 0.1)
    assert fitted_to(objects_of(*shapes)) == variant


def test_maps_that_no_object_is_for_keep_their_default_boxes():
    """And in their order, so that heads which have learnt them go on meaning them."""
    fitted = fitted_to(objects_of((20, 20), (30, 30))).layout
    for index in (4, 5):
        published = np.minimum(shapes_in_cell(COCO, index), 1)
        np.testing.assert_allclose(shapes_in_cell(fitted, index), published, atol=1e-4)
    smallest = [min(max(shape) for shape in shapes) for shapes in fitted.shapes]
    assert smallest[0] <= 30 < min(smallest[4:])


def test_a_class_of_few_objects_counts_as_much():
    """As in AP, whatever the frequent one would gain."""
    few, many = objects_of((14, 14), (20, 12), count=4), objects_of((40, 44), (46, 30), (30, 50), (26, 34), count=40)
    labels = np.repeat([1, 2], [len(few), len(many)])
    objects = np.concatenate((few, many))
    alike, apart = fitted_to(objects).layout, fit(objects, labels, "ssd300_vgg16").layout
    assert mean_iou(few, apart) > mean_iou(few, alike)
    assert np.sum(areas_of(apart) < 400) > np.sum(areas_of(alike) < 400)


def test_the_large_and_the_long_are_not_left_to_the_finest_map():
    """Its cells are nearest to any object, and see little of a large one."""
    finest = fitted_to(objects_of((250, 250), (280, 150), (20, 20)), "ssd512_vgg16").layout.shapes[0]
    assert max(max(shape) for shape in finest) <= 3 * 51.2


def sample(number, rows, height, width):
    boxes, none = np.array(rows, dtype=np.float64).reshape(-1, 4), np.zeros(len(rows), dtype=bool)
    labels = np.ones(len(rows), dtype=np.int64)
    return Sample(number, Path("x.jpg"), height, width, boxes, labels, none, np.zeros(len(rows)), none)


SAMPLES = [
    sample(1, [(20, 10, 60, 50), (-30, 0, 100, 90)], 100, 200),
    sample(2, [], 50, 50),
    sample(3, [(5, 5, 40, 30)], 80, 60),
]


@pytest.mark.parametrize("policy", ["none", "hflip", "ssdlite"])
def test_objects_are_seen_as_training_sees_them(policy):
    """The same boxes as beside the pixels, drawn anew in each round through a small data set."""
    seen, labels = objects_seen(SAMPLES, SIDE, policy, seed=3)
    rng, expected = np.random.default_rng(3), []
    for index in np.concatenate([rng.permutation(3) for _ in range(MAX_ROUNDS)]):
        each = SAMPLES[index]
        pixels = np.zeros((each.height, each.width, 3), dtype=np.uint8)
        objects, out = each.objects(each.height, each.width), np.empty((3, SIDE, SIDE), dtype=np.uint8)
        if len(objects[0]):
            expected.append(augment(DecodedImage(pixels, pixels.shape[:2]), *objects, rng, policy, out)[0])
    np.testing.assert_array_equal(seen, np.concatenate(expected))
    assert labels.tolist() == [1] * len(seen)


GOOD = fitted_to(objects_of((50, 50))).layout.shapes


@pytest.mark.parametrize("side", [0, -1, 1e-30, MIN_SIDE / 2, SIDE + 1, 1e9, np.nan, np.inf])
def test_a_side_that_no_default_box_has_is_refused(side):
    with pytest.raises(ValueError, match="a default box with a side of"):
        fitted_variant("ssd300_vgg16", (((side, 20), *GOOD[0][1:]), *GOOD[1:]))


@pytest.mark.parametrize("shapes", [(), GOOD[:5], (GOOD[0] * 1000, *GOOD[1:]), (GOOD[1], *GOOD[1:])])
def test_other_numbers_of_default_boxes_are_refused(shapes):
    with pytest.raises(ValueError, match="default boxes in a cell"):
        fitted_variant("ssd300_vgg16", shapes)


def test_published_layouts_have_no_shapes_of_their_own():
    assert replace(fitted_variant("ssd300_vgg16", GOOD).layout, shapes=(), sizes=COCO.sizes, ratios=COCO.ratios) == COCO
