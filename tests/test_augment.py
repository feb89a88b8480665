import colorsys

import cv2
import numpy as np
import pytest

from ssd300_vgg16 import boxes as box_math
from ssd300_vgg16.data import augment as aug
from ssd300_vgg16.errors import UserError

STEPS = (aug.photometric_distortion, aug.zoom_out, aug.iou_crop, aug.horizontal_flip)
COLOURS = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 0]], dtype=np.uint8)


def noise_image(height=48, width=64, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def example(height=48, width=64):
    boxes = np.array([[2, 3, 30, 40], [20, 10, 60, 30], [40, 30, 44, 36]], dtype=np.float32)
    return noise_image(height, width), boxes, np.array([1, 2, 3])


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


@pytest.fixture
def recorded(monkeypatch):
    """Every call of an adjustment: its name and its argument; the image stays as it is."""
    calls = []
    for name in ("brightness", "contrast", "saturation", "hue"):
        monkeypatch.setattr(
            aug, f"adjust_{name}", lambda image, amount, name=name: (calls.append((name, amount)), image)[1]
        )
    return calls


def test_photometric_probabilities_order_and_ranges(recorded):
    ranges = {"brightness": (0.875, 1.125), "contrast": (0.5, 1.5), "saturation": (0.5, 1.5), "hue": (-0.05, 0.05)}
    image, boxes, labels = example()
    rng, draws = np.random.default_rng(0), 4000
    permuted = contrast_first = both = 0
    amounts = {name: [] for name in ranges}
    for _ in range(draws):
        recorded.clear()
        out = aug.photometric_distortion(image, boxes, labels, rng)[0]
        permuted += not np.array_equal(out, image)
        names = [name for name, _ in recorded]
        assert [name for name in names if name != "contrast"] == [n for n in ranges if n in names and n != "contrast"]
        assert names.index("brightness") == 0 if "brightness" in names else True
        both += {"contrast", "hue"} <= set(names)
        contrast_first += {"contrast", "hue"} <= set(names) and names.index("contrast") < names.index("hue")
        for name, amount in recorded:
            amounts[name].append(amount)
    assert_rate(permuted, 0.5 * 5 / 6, draws)  # one of the six permutations is the identity
    assert_rate(contrast_first, 0.5, both)
    for name, (low, high) in ranges.items():
        assert_rate(len(amounts[name]), 0.5, draws)
        margin = 0.01 * (high - low)
        assert low <= min(amounts[name]) < low + margin and high - margin < max(amounts[name]) <= high


def test_photometric_choices_are_independent(recorded):
    rng, draws, image = np.random.default_rng(1), 2000, noise_image(2, 2)
    together = 0
    for _ in range(draws):
        recorded.clear()
        aug.photometric_distortion(image, np.zeros((0, 4), np.float32), np.zeros(0, np.int64), rng)
        together += {"brightness", "saturation", "hue", "contrast"} == {name for name, _ in recorded}
    assert_rate(together, 1 / 16, draws)


def test_channel_permutations_are_exact_and_all_occur(recorded):
    image, rng, seen = noise_image(), np.random.default_rng(0), set()
    for _ in range(200):
        out = aug.photometric_distortion(image, np.zeros((0, 4), np.float32), np.zeros(0, np.int64), rng)[0]
        order = tuple(
            int(np.flatnonzero([(out[..., c] == image[..., k]).all() for k in range(3)])[0]) for c in range(3)
        )
        seen.add(order)
    assert len(seen) == 6


@pytest.mark.parametrize("factor", [0.875, 1.0, 1.0371, 1.125])
def test_brightness_multiplies(factor):
    image = noise_image()
    expected = np.clip(np.rint(image.astype(np.float64) * factor), 0, 255)
    np.testing.assert_array_equal(aug.adjust_brightness(image, factor), expected)


@pytest.mark.parametrize("factor", [0.0, 0.5, 1.0, 1.271, 1.5])
def test_contrast_blends_with_the_mean_grey(factor):
    image = noise_image() // 2 + np.array([90, 10, 0], dtype=np.uint8)
    mean = (image.astype(np.float64) @ [0.299, 0.587, 0.114]).mean()
    expected = np.clip(np.rint(image * factor + mean * (1 - factor)), 0, 255)
    np.testing.assert_array_equal(aug.adjust_contrast(image, factor), expected)


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


@pytest.mark.parametrize(
    "adjust",
    [aug.adjust_brightness, aug.adjust_contrast, aug.adjust_saturation, lambda image, _: aug.adjust_hue(image, 0)],
)
def test_neutral_amount_changes_nothing(adjust):
    np.testing.assert_array_equal(adjust(noise_image(), 1.0), noise_image())


def test_zoom_out_probability_range_and_fill():
    image, boxes, labels = example(30, 40)
    rng, draws = np.random.default_rng(0), 2000
    ratios, positions = [], []
    for _ in range(draws):
        canvas, moved, out_labels = aug.zoom_out(image, boxes, labels, rng)
        left, top = (moved - boxes)[0, :2].astype(int)
        np.testing.assert_array_equal(moved - boxes, np.tile([left, top], (3, 2)))
        np.testing.assert_array_equal(canvas[top : top + 30, left : left + 40], image)
        assert out_labels is labels
        if canvas is image:
            continue
        ratios.append(canvas.shape[1] / 40)
        assert abs(canvas.shape[0] / 30 - ratios[-1]) < 1 / 30
        if canvas.shape[1] > 80:
            positions.append((left / (canvas.shape[1] - 40), top / (canvas.shape[0] - 30)))
        if left and top:
            np.testing.assert_array_equal(np.unique(canvas[:top].reshape(-1, 3), axis=0), [[123, 117, 104]])
    assert_rate(len(ratios), 0.5, draws)
    assert 1 <= min(ratios) < 1.05 and 3.95 < max(ratios) <= 4
    assert abs(np.mean(ratios) - 2.5) < 4 * np.sqrt(9 / 12 / len(ratios)) + 0.025  # sides are whole pixels
    assert np.all(np.abs(np.mean(positions, axis=0) - 0.5) < 0.06)
    assert np.min(positions) < 0.02 and np.max(positions) > 0.95


def crop_of(image, out):
    """xyxy of a crop of an image whose pixel values are its coordinates."""
    x, y = out[0, 0, :2].astype(int)
    np.testing.assert_array_equal(image[y : y + out.shape[0], x : x + out.shape[1]], out)
    return np.array([x, y, x + out.shape[1], y + out.shape[0]], dtype=np.float32)


def coordinate_image(height, width):
    y, x = np.mgrid[:height, :width]
    return np.stack([x, y, np.zeros_like(x)], axis=-1).astype(np.uint8)


@pytest.mark.parametrize("min_iou", [0.0, 0.1, 0.3, 0.5, 0.7, 0.9])
def test_iou_crop_keeps_its_constraints(monkeypatch, min_iou):
    monkeypatch.setattr(aug, "MIN_IOU_OPTIONS", (min_iou,))
    image, labels = coordinate_image(180, 240), np.arange(3)
    boxes = np.array([[5, 4, 230, 170], [100, 60, 160, 130], [20, 20, 40, 60]], dtype=np.float32)
    rng, cropped = np.random.default_rng(0), 0
    for _ in range(150):
        out, kept, kept_labels = aug.iou_crop(image, boxes, labels, rng)
        if out is image:
            continue
        cropped += 1
        crop = crop_of(image, out)
        height, width = out.shape[:2]
        assert int(0.3 * 240) <= width <= 240 and int(0.3 * 180) <= height <= 180
        assert 0.5 <= width / height <= 2
        centres = (boxes[:, :2] + boxes[:, 2:]) / 2
        inside = ((centres > crop[:2]) & (centres < crop[2:])).all(axis=1)
        np.testing.assert_array_equal(kept_labels, labels[inside])
        assert box_math.iou(crop[None], boxes[inside]).max() >= np.float32(min_iou)
        np.testing.assert_array_equal(kept, box_math.clip(boxes[inside] - np.tile(crop[:2], 2), height, width))
        assert (box_math.area(kept) > 0).all() and kept.dtype == np.float32
    assert cropped > 100


def test_iou_crop_matches_trials_one_by_one():
    """The distribution of the first of 40 trials, drawn one by one as the recipe tells it."""
    boxes, labels = np.array([[20, 20, 120, 90]], dtype=np.float32), np.zeros(1, np.int64)
    image, draws = coordinate_image(100, 150), 3000
    rng = np.random.default_rng(0)
    ours = np.array([aug.iou_crop(image, boxes, labels, rng)[0].shape[:2] for _ in range(draws)])
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
    image, boxes, labels = example()
    rng, draws = np.random.default_rng(0), 2000
    whole = sum(aug.iou_crop(image, boxes, labels, rng)[0] is image for _ in range(draws))
    assert_rate(whole, 1 / 7, draws)
    assert len(aug.MIN_IOU_OPTIONS) == 7


def test_iou_crop_gives_up_where_nothing_fits(monkeypatch):
    monkeypatch.setattr(aug, "MIN_IOU_OPTIONS", (0.9,))
    image, boxes, labels = noise_image(), np.array([[1, 1, 3, 3]], dtype=np.float32), np.array([1])
    assert aug.iou_crop(image, boxes, labels, np.random.default_rng(0))[0] is image


def test_iou_crop_does_not_search_without_boxes():
    rng, image = np.random.default_rng(0), noise_image()
    assert aug.iou_crop(image, np.zeros((0, 4), np.float32), np.zeros(0, np.int64), rng)[0] is image
    assert rng.bit_generator.state == np.random.default_rng(0).bit_generator.state


def test_flip_probability_and_boxes():
    image, boxes, labels = example()
    rng, draws, flipped = np.random.default_rng(0), 2000, 0
    for _ in range(draws):
        out, moved, _ = aug.horizontal_flip(image, boxes, labels, rng)
        if out is image:
            np.testing.assert_array_equal(moved, boxes)
            continue
        flipped += 1
        np.testing.assert_array_equal(out, image[:, ::-1])
        np.testing.assert_array_equal(moved[0], [34, 3, 62, 40])
        assert moved.dtype == np.float32
    assert_rate(flipped, 0.5, draws)


@pytest.mark.parametrize("policy", ["none", "hflip", "ssdlite", "zoom"])
def test_boxes_follow_the_pixels(policy, monkeypatch):
    monkeypatch.setitem(aug.POLICIES, "zoom", (aug.zoom_out, aug.iou_crop, aug.horizontal_flip))
    image, boxes, labels = painted_example()
    checked = 0
    for seed in range(40):
        out, moved, kept = aug.augment(image, boxes, labels, np.random.default_rng(seed), policy)
        out, moved = aug.resize(out, moved, 300)
        for box, label in zip(moved, kept, strict=True):
            if min(box[2:] - box[:2]) < 4:
                continue
            assert np.abs(painted_box(out, COLOURS[label]) - box).max() <= 1.01, (seed, label)
            checked += 1
    assert checked > 60


def test_resize():
    image, boxes = noise_image(37, 91), np.array([[0, 0, 91, 37], [9.1, 3.7, 18.2, 7.4]], dtype=np.float32)
    out, moved = aug.resize(image, boxes)
    np.testing.assert_array_equal(out, cv2.resize(image, (300, 300), interpolation=cv2.INTER_LINEAR))
    np.testing.assert_allclose(moved, [[0, 0, 300, 300], [30, 30, 60, 60]], rtol=1e-6)
    assert out.dtype == np.uint8 and moved.dtype == np.float32
    assert aug.resize(image, boxes, 512)[0].shape == (512, 512, 3)


@pytest.mark.parametrize("policy", list(aug.POLICIES))
def test_same_rng_same_result_and_arguments_stay(policy):
    image, boxes, labels = example()
    results = []
    for seed in list(range(30)) * 2:
        out = aug.augment(image, boxes, labels, np.random.default_rng([seed, 1, 2]), policy)
        aug.resize(*out[:2])
        results.append(out)
    for first, second in zip(results[:30], results[30:], strict=True):
        for a, b in zip(first, second, strict=True):
            np.testing.assert_array_equal(a, b)
    for left, right in zip((image, boxes, labels), example(), strict=True):
        np.testing.assert_array_equal(left, right)
    if policy != "none":
        assert any(not np.array_equal(results[0][0], other[0]) for other in results[1:30])


@pytest.mark.parametrize("step", STEPS)
def test_steps_read_what_cannot_be_written(step):
    image, boxes, labels = example()
    for array in (image, boxes, labels):
        array.flags.writeable = False
    for seed in range(10):
        # Whoever wrote into an argument would raise here.
        out, moved, kept = step(image, boxes, labels, np.random.default_rng(seed))
        assert (out.dtype, moved.dtype, kept.dtype) == (image.dtype, boxes.dtype, labels.dtype)


@pytest.mark.parametrize("policy", list(aug.POLICIES))
@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 50), (50, 1), (2, 3), (48, 64)])
@pytest.mark.parametrize("with_box", [True, False])
def test_small_images_and_images_without_boxes(policy, height, width, with_box):
    image = noise_image(height, width)
    boxes = np.array([[0, 0, width, height]] * with_box, dtype=np.float32).reshape(-1, 4)
    labels = np.ones(len(boxes), dtype=np.int64)
    for seed in range(20):
        out, moved, kept = aug.augment(image, boxes, labels, np.random.default_rng(seed), policy)
        out, moved = aug.resize(out, moved)
        assert out.shape == (300, 300, 3) and out.dtype == np.uint8
        assert moved.shape == (len(labels), 4) and moved.dtype == np.float32
        assert kept.shape == labels.shape and kept.dtype == np.int64
        assert (box_math.area(moved) > 0).all()


def test_policies_are_the_recipe():
    assert {name: [step.__name__ for step in steps] for name, steps in aug.POLICIES.items()} == {
        "ssd": ["photometric_distortion", "zoom_out", "iou_crop", "horizontal_flip"],
        "ssdlite": ["iou_crop", "horizontal_flip"],
        "hflip": ["horizontal_flip"],
        "none": [],
    }


def test_unknown_policy_is_named():
    with pytest.raises(UserError, match=r"'sdd'.*ssd, ssdlite, hflip, none"):
        aug.augment(*example(), np.random.default_rng(0), "sdd")
