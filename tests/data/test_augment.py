"""Augmentation: what is drawn how often, and that boxes go where their pixels go."""

import colorsys
from dataclasses import replace
from itertools import permutations

import cv2
import numpy as np
import pytest

from ssd300_vgg16 import boxes as box_math
from ssd300_vgg16.data import augment as aug
from ssd300_vgg16.data.augment import Colours, View, draw_colours, seen_pixels
from ssd300_vgg16.data.images import DecodedImage, decode_image

RANGES = {"brightness": (0.875, 1.125), "contrast": (0.5, 1.5), "saturation": (0.5, 1.5), "hue": (-0.05, 0.05)}
COLOURS = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 0]], dtype=np.uint8)


def noise_image(height=48, width=64, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def example(height=48, width=64):
    boxes = np.array([[2, 3, 30, 40], [20, 10, 60, 30], [40, 30, 44, 36]], dtype=np.float32)
    return noise_image(height, width), boxes, np.array([1, 2, 3])


def augmented(image, boxes, labels, rng, policy, size=300):
    """(pixels [size, size, 3], boxes, labels) of `augment`."""
    out = np.full((3, size, size), 77, dtype=np.uint8)
    moved, kept = aug.augment(DecodedImage(image, image.shape[:2]), boxes, labels, rng, policy, out)
    return out.transpose(1, 2, 0), moved, kept


def painted_example(height=240, width=320):
    """Four boxes that do not overlap, each filled with a colour of its own on grey."""
    boxes = np.array(
        [[10, 20, 90, 100], [110, 30, 170, 70], [200, 60, 310, 230], [20, 130, 150, 220]], dtype=np.float32
    )
    image = np.full((height, width, 3), 128, dtype=np.uint8)
    for (x1, y1, x2, y2), colour in zip(boxes.astype(int), COLOURS, strict=True):
        image[y1:y2, x1:x2] = colour
    return image, boxes, np.arange(4)


def painted_box(image, colour):
    rows, columns = np.nonzero(np.abs(image.astype(int) - colour).max(axis=-1) < 64)
    return [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]


def assert_rate(hits, expected, draws):
    """Within four standard deviations of the binomial."""
    assert abs(hits / draws - expected) < 4 * np.sqrt(expected * (1 - expected) / draws)


def test_zoom_out_probability_range_and_place():
    boxes, labels, view = *example(30, 40)[1:], View((0, 0, 40, 30))
    rng, draws = np.random.default_rng(0), 2000
    ratios, positions = [], []
    for _ in range(draws):
        seen, *others = aug.zoom_out(view, boxes, labels, rng)
        assert others[0] is boxes and others[1] is labels and not seen.mirrored
        if seen is view:
            continue
        left, top, right, bottom = seen.window
        assert left <= 0 and top <= 0 and right >= 40 and bottom >= 30
        ratios.append((right - left) / 40)
        assert abs((bottom - top) / 30 - ratios[-1]) < 1 / 30
        if right - left > 80:
            positions.append((-left / (right - left - 40), -top / (bottom - top - 30)))
    assert_rate(len(ratios), 0.5, draws)
    assert 1 <= min(ratios) < 1.05 and 3.95 < max(ratios) <= 4
    assert abs(np.mean(ratios) - 2.5) < 4 * np.sqrt(9 / 12 / len(ratios)) + 0.025  # sides are whole pixels
    assert np.all(np.abs(np.mean(positions, axis=0) - 0.5) < 0.06)
    assert np.min(positions) < 0.02 and np.max(positions) > 0.95


@pytest.mark.parametrize("min_iou", [0.0, 0.1, 0.3, 0.5, 0.7, 0.9])
def test_iou_crop_keeps_its_constraints(monkeypatch, min_iou):
    monkeypatch.setattr(aug, "MIN_IOU_OPTIONS", (min_iou,))
    view, labels = View((-10, -20, 230, 160)), np.arange(3)
    boxes = np.array([[5, 4, 230, 150], [100, 60, 160, 130], [20, 20, 40, 60]], dtype=np.float32)
    rng, cropped = np.random.default_rng(0), 0
    for _ in range(150):
        seen, kept, kept_labels = aug.iou_crop(view, boxes, labels, rng)
        if seen is view:
            continue
        cropped += 1
        crop, (height, width) = np.float32(seen.window), seen.size
        assert crop[0] >= -10 and crop[1] >= -20 and crop[2] <= 230 and crop[3] <= 160
        assert int(0.3 * 240) <= width <= 240 and int(0.3 * 180) <= height <= 180
        assert 0.5 <= width / height <= 2
        centres = (boxes[:, :2] + boxes[:, 2:]) / 2
        inside = ((centres > crop[:2]) & (centres < crop[2:])).all(axis=1)
        np.testing.assert_array_equal(kept_labels, labels[inside])
        assert box_math.iou(crop[None], boxes[inside]).max() >= np.float32(min_iou)
        np.testing.assert_array_equal(kept[:, :2], np.maximum(boxes[inside, :2], crop[:2]))
        np.testing.assert_array_equal(kept[:, 2:], np.minimum(boxes[inside, 2:], crop[2:]))
        assert (box_math.area(kept) > 0).all() and kept.dtype == np.float32
    assert cropped > 100


def test_iou_crop_matches_trials_one_by_one():
    """The distribution of the first of 40 trials, drawn one by one as the recipe tells it."""
    boxes, labels = np.array([[20, 20, 120, 90]], dtype=np.float32), np.zeros(1, np.int64)
    view, draws = View((0, 0, 150, 100)), 3000
    rng = np.random.default_rng(0)
    ours = np.array([aug.iou_crop(view, boxes, labels, rng)[0].size for _ in range(draws)])
    rng = np.random.default_rng(1)
    expected = np.array([_recipe_crop_size(100, 150, boxes, rng) for _ in range(draws)])
    whole, expected_whole = ((sizes == (100, 150)).all(axis=1).mean() for sizes in (ours, expected))
    assert abs(whole - expected_whole) < 4 * np.sqrt(2 * expected_whole * (1 - expected_whole) / draws)
    assert np.all(np.abs(ours.mean(axis=0) - expected.mean(axis=0)) < 4 * expected.std(axis=0) * np.sqrt(2 / draws))


def _recipe_crop_size(height, width, boxes, rng):
    while True:
        min_iou = [0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 1.0][rng.integers(7)]
        if min_iou == 1:
            return height, width
        for _ in range(40):
            new_width, new_height = (int(side * rng.uniform(0.3, 1)) for side in (width, height))
            if not 0.5 <= new_width / new_height <= 2:
                continue
            left, top = int((width - new_width) * rng.random()), int((height - new_height) * rng.random())
            x, y = (boxes[0, :2] + boxes[0, 2:]) / 2
            crop = np.array([[left, top, left + new_width, top + new_height]], dtype=np.float32)
            if crop[0, 0] < x < crop[0, 2] and crop[0, 1] < y < crop[0, 3] and box_math.iou(crop, boxes) >= min_iou:
                return new_height, new_width


def test_whole_image_is_one_of_seven_options(monkeypatch):
    monkeypatch.setattr(aug, "MIN_IOU_OPTIONS", (*[0.0] * 6, None))
    boxes, labels, view = *example()[1:], View((0, 0, 64, 48))
    rng, draws = np.random.default_rng(0), 2000
    whole = sum(aug.iou_crop(view, boxes, labels, rng)[0] is view for _ in range(draws))
    assert_rate(whole, 1 / 7, draws)
    assert len(aug.MIN_IOU_OPTIONS) == 7


def test_iou_crop_gives_up_where_nothing_fits(monkeypatch):
    monkeypatch.setattr(aug, "MIN_IOU_OPTIONS", (0.9,))
    view, boxes, labels = View((0, 0, 64, 48)), np.array([[1, 1, 3, 3]], dtype=np.float32), np.array([1])
    assert aug.iou_crop(view, boxes, labels, np.random.default_rng(0))[0] is view


def test_an_image_without_boxes_is_cropped_all_the_same(monkeypatch):
    """Or what is no object would be seen smaller than objects are."""
    windows, nothing = [], (np.zeros((0, 4), np.float32), np.zeros(0, np.int64))
    monkeypatch.setattr(aug, "seen_pixels", lambda image, view, *_: windows.append(view.window))
    for seed in range(300):
        _, boxes, labels = augmented(noise_image(480, 640), *nothing, np.random.default_rng(seed), "ssdlite")
        assert len(boxes) == len(labels) == 0
    left, top, right, bottom = np.array(windows).T
    assert (left >= 0).all() and (top >= 0).all() and (right <= 640).all() and (bottom <= 480).all()
    areas = (right - left) * (bottom - top) / (640 * 480)
    assert 0.1 < (areas == 1).mean() < 0.3 and 0.1 < (areas < 0.25).mean() < 0.4


def test_flip_probability_and_boxes():
    rng, draws, flipped = np.random.default_rng(0), 2000, 0
    image, boxes, labels = example(300, 300)
    for _ in range(draws):
        view, same, _ = aug.horizontal_flip(View((0, 0, 300, 300)), boxes, labels, rng)
        assert same is boxes and view.window == (0, 0, 300, 300)
        flipped += view.mirrored
    assert_rate(flipped, 0.5, draws)
    for seed in range(6):
        pixels, moved, _ = augmented(image, boxes, labels, np.random.default_rng(seed), "hflip")
        if np.array_equal(pixels, image):
            np.testing.assert_array_equal(moved, boxes)
        else:
            np.testing.assert_array_equal(pixels, image[:, ::-1])
            np.testing.assert_array_equal(moved[0], [270, 3, 298, 40])


@pytest.mark.parametrize("policy", ["none", "hflip", "ssdlite", "zoom"])
def test_boxes_follow_the_pixels(policy, monkeypatch):
    monkeypatch.setitem(aug.POLICIES, "zoom", replace(aug.POLICIES["ssd"], distorts_colours=False))
    image, boxes, labels = painted_example()
    checked = 0
    for seed in range(40):
        out, moved, kept = augmented(image, boxes, labels, np.random.default_rng(seed), policy)
        for box, label in zip(moved, kept, strict=True):
            if min(box[2:] - box[:2]) < 4:
                continue
            assert np.abs(painted_box(out, COLOURS[label]) - box).max() <= 1.01, (seed, label)
            checked += 1
    assert checked > 60


def test_without_augmentation_the_image_is_resized():
    image, boxes = noise_image(37, 91), np.array([[0, 0, 91, 37], [9.1, 3.7, 18.2, 7.4]], dtype=np.float32)
    rng = np.random.default_rng(0)
    out, moved, labels = augmented(image, boxes, np.arange(2), rng, "none")
    np.testing.assert_array_equal(out, cv2.resize(image, (300, 300), interpolation=cv2.INTER_LINEAR))
    np.testing.assert_allclose(moved, [[0, 0, 300, 300], [30, 30, 60, 60]], rtol=1e-6)
    assert out.dtype == np.uint8 and moved.dtype == np.float32 and labels.tolist() == [0, 1]
    assert augmented(image, boxes, np.arange(2), rng, "none", 512)[0].shape == (512, 512, 3)


@pytest.mark.parametrize("policy", list(aug.POLICIES))
def test_same_rng_same_result_and_arguments_are_only_read(policy):
    arguments = example()
    for array in arguments:
        array.flags.writeable = False
    results = [augmented(*arguments, np.random.default_rng([seed % 30, 1, 2]), policy) for seed in range(60)]
    for first, second in zip(results[:30], results[30:], strict=True):
        assert [array.dtype for array in first] == [np.uint8, np.float32, np.int64]
        for a, b in zip(first, second, strict=True):
            np.testing.assert_array_equal(a, b)
    if policy != "none":
        assert any(not np.array_equal(results[0][0], other[0]) for other in results[1:30])


@pytest.mark.parametrize("policy", list(aug.POLICIES))
@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 50), (50, 1), (2, 3), (48, 64)])
@pytest.mark.parametrize("with_box", [True, False])
def test_small_images_and_images_without_boxes(policy, height, width, with_box):
    image = noise_image(height, width)
    boxes = np.array([[0, 0, width, height]] * with_box, dtype=np.float32).reshape(-1, 4)
    labels = np.ones(len(boxes), dtype=np.int64)
    for seed in range(20):
        out, moved, kept = augmented(image, boxes, labels, np.random.default_rng(seed), policy)
        assert out.shape == (300, 300, 3) and out.dtype == np.uint8
        assert moved.shape == (len(labels), 4) and moved.dtype == np.float32
        assert kept.shape == labels.shape and kept.dtype == np.int64
        assert (box_math.area(moved) > 0).all()


def test_policies_are_the_recipe():
    assert {
        name: (policy.distorts_colours, [step.__name__ for step in policy.steps])
        for name, policy in aug.POLICIES.items()
    } == {
        "ssd": (True, ["zoom_out", "iou_crop", "horizontal_flip"]),
        "ssdlite": (False, ["iou_crop", "horizontal_flip"]),
        "hflip": (False, ["horizontal_flip"]),
        "none": (False, []),
    }


def test_colours_are_distorted_as_drawn_first():
    image = noise_image()
    whole = np.array([[0, 0, 64, 48]], dtype=np.float32), np.ones(1, dtype=np.int64)
    changed = 0
    for seed in range(20):
        rng = np.random.default_rng(seed)
        colours, view = draw_colours(rng), View((0, 0, 64, 48))
        for step in aug.POLICIES["ssd"].steps:
            view, *_ = step(view, *whole, rng)
        expected = np.zeros((3, 300, 300), dtype=np.uint8)
        seen_pixels(image, view, colours, expected)
        out, _, _ = augmented(image, *whole, np.random.default_rng(seed), "ssd")
        np.testing.assert_array_equal(out.transpose(2, 0, 1), expected)
        changed += colours != Colours()
    assert changed > 10


@pytest.fixture(scope="module")
def large_image(tmp_path_factory):
    """A JPEG of 2100 x 2800 pixels: soft shapes, and noise as cameras have it."""
    rng = np.random.default_rng(0)
    image = cv2.resize(rng.integers(0, 256, (21, 28, 3), dtype=np.uint8), (2800, 2100), interpolation=cv2.INTER_CUBIC)
    image = np.clip(image + rng.normal(0, 4, (2100, 2800, 1)), 0, 255).astype(np.uint8)
    path = tmp_path_factory.mktemp("large") / "large.jpg"
    cv2.imwrite(str(path), image)
    return path


@pytest.mark.parametrize(("policy", "factor"), [("ssd", 2), ("ssdlite", 2), ("hflip", 4), ("none", 4)])
def test_an_image_decoded_smaller_gives_nearly_the_same(large_image, policy, factor):
    """The same is drawn; values differ by the noise of single pixels, which the mean of a block has less of.

    With noise of 4 levels it is 3 in the mean. What is seen may move by less than a pixel of the network's input, its
    boxes with it.
    """
    plain = decode_image(large_image)
    reduced = decode_image(large_image, min_side=aug.POLICIES[policy].min_side(300))
    assert (plain.factor, reduced.factor) == (1, factor)
    boxes = np.float32([[100, 300, 900, 1100], [1000, 400, 2500, 2000], [1300, 1200, 1700, 1400]])
    for seed in range(12):
        found = []
        for decoded in (plain, reduced):
            rng, out = np.random.default_rng([7, seed]), np.zeros((3, 300, 300), dtype=np.uint8)
            found.append((out, *aug.augment(decoded, boxes, np.arange(3), rng, policy, out), rng.random()))
        (pixels, moved, labels, drawn), (others, others_moved, others_labels, others_drawn) = found
        assert drawn == others_drawn and labels.tolist() == others_labels.tolist()
        assert np.abs(moved - others_moved).max(initial=0) < 1
        difference = np.abs(pixels.astype(int) - others)
        assert difference.mean() < 3 and np.percentile(difference, 95) <= 12


@pytest.mark.parametrize(("policy", "side"), [("ssd", 1000), ("ssdlite", 1000), ("hflip", 300), ("none", 300)])
def test_the_smallest_crop_has_enough_pixels(policy, side):
    assert aug.POLICIES[policy].min_side(300) == side


def test_probabilities_order_and_ranges():
    rng, draws = np.random.default_rng(0), 4000
    orders = []
    contrast_first = both = together = 0
    permuted_too = dict.fromkeys(RANGES, 0)
    amounts = {name: [] for name in RANGES}
    for _ in range(draws):
        drawn = aug.draw_colours(rng)
        orders.append(drawn.channels)
        names = [name for name, _ in drawn.changes]
        assert [name for name in names if name != "contrast"] == [n for n in RANGES if n in names and n != "contrast"]
        assert names.index("brightness") == 0 if "brightness" in names else True
        both += {"contrast", "hue"} <= set(names)
        contrast_first += {"contrast", "hue"} <= set(names) and names.index("contrast") < names.index("hue")
        together += set(names) == set(RANGES)
        for name, amount in drawn.changes:
            amounts[name].append(amount)
            permuted_too[name] += drawn.channels != (0, 1, 2)
    assert set(orders) == set(permutations(range(3)))
    assert_rate(sum(order != (0, 1, 2) for order in orders), 0.5 * 5 / 6, draws)  # one of the six is the identity
    assert_rate(contrast_first, 0.5, both)
    assert_rate(together, 1 / 16, draws)  # choices are independent
    for name, (low, high) in RANGES.items():
        assert_rate(len(amounts[name]), 0.5, draws)
        assert_rate(permuted_too[name], 0.25 * 5 / 6, draws)
        margin = 0.01 * (high - low)
        assert low <= min(amounts[name]) < low + margin and high - margin < max(amounts[name]) <= high


@pytest.mark.parametrize("factor", [0.875, 1.0, 1.0371, 1.125])
def test_brightness_multiplies(factor):
    image = noise_image()
    expected = np.clip(np.rint(image.astype(np.float64) * factor), 0, 255)
    np.testing.assert_array_equal(aug.adjust_brightness(image, factor), expected)


@pytest.mark.parametrize("factor", [0.0, 0.5, 1.0, 1.271, 1.5])
def test_contrast_blends_with_a_grey(factor):
    image, grey = noise_image(), 101.3
    expected = np.clip(np.rint(image * factor + grey * (1 - factor)), 0, 255)
    np.testing.assert_array_equal(aug.adjust_contrast(image, factor, grey), expected)


@pytest.mark.parametrize("before", [[], [("brightness", 1.125)], [("saturation", 1.5), ("hue", 0.05)]])
def test_contrast_is_about_the_mean_grey_of_the_whole_image_as_changed_so_far(before):
    """Estimated from a sample: on noise, whose pixels have nothing in common with their neighbours, within a level."""
    image = noise_image(480, 640) // 2 + np.array([90, 10, 0], dtype=np.uint8)
    colours = aug.Colours((*before, ("contrast", 0.0)))
    changed = aug.change_colours(image, aug.Colours(tuple(before)), image)
    mean = (changed.astype(np.float64) @ [0.299, 0.587, 0.114]).mean()
    assert np.abs(aug.change_colours(image[:5, :7], colours, image) - mean).max() < 1.5


@pytest.mark.parametrize("factor", [0.0, 0.5, 1.0, 1.271, 1.5])
def test_saturation_blends_with_grey(factor):
    image = noise_image()
    grey = image.astype(np.float64) @ [0.299, 0.587, 0.114]
    expected = np.clip(image * factor + grey[..., None] * (1 - factor), 0, 255)
    assert np.abs(aug.adjust_saturation(image, factor) - expected).max() < 1


@pytest.mark.parametrize("turns", [-0.05, -0.013, 0.0, 0.027, 0.05, 1 / 3])
def test_hue_turns(turns):
    image = noise_image(24, 32)
    image[0, :2] = [[255, 0, 10], [255, 0, 0]]  # either way over the seam of the hue
    expected = np.empty(image.shape)
    for index in np.ndindex(image.shape[:2]):
        hue, saturation, value = colorsys.rgb_to_hsv(*(image[index] / 255))
        expected[index] = 255 * np.array(colorsys.hsv_to_rgb((hue + turns) % 1, saturation, value))
    assert np.abs(aug.adjust_hue(image, turns) - expected).max() <= 0.51


@pytest.mark.parametrize("change", [("brightness", 1.0), ("contrast", 1.0), ("saturation", 1.0), ("hue", 0.0)])
def test_neutral_amount_changes_nothing(change):
    image = noise_image()
    image.flags.writeable = False
    np.testing.assert_array_equal(aug.change_colours(image, aug.Colours((change,)), image), image)


def test_changes_are_made_in_their_order():
    image = noise_image()
    changes = (("brightness", 1.125), ("saturation", 0.5))
    expected = aug.adjust_saturation(aug.adjust_brightness(image, 1.125), 0.5)
    other = aug.adjust_brightness(aug.adjust_saturation(image, 0.5), 1.125)
    changed = aug.change_colours(image, aug.Colours(changes), image)
    np.testing.assert_array_equal(changed, expected)
    assert not np.array_equal(changed, other)
