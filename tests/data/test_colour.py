"""Photometric distortion: what is drawn, and what each change does to the pixels."""

import colorsys

import numpy as np
import pytest

from ssd300_vgg16.data import augment as colour

RANGES = {"brightness": (0.875, 1.125), "contrast": (0.5, 1.5), "saturation": (0.5, 1.5), "hue": (-0.05, 0.05)}


def noise_image(height=48, width=64, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def assert_rate(hits, expected, draws):
    """Within four standard deviations of the binomial."""
    assert abs(hits / draws - expected) < 4 * np.sqrt(expected * (1 - expected) / draws)


def test_probabilities_order_and_ranges():
    rng, draws = np.random.default_rng(0), 4000
    permuted = contrast_first = both = 0
    amounts = {name: [] for name in RANGES}
    for _ in range(draws):
        drawn = colour.draw_colours(rng)
        permuted += drawn.channels != (0, 1, 2)
        names = [name for name, _ in drawn.changes]
        assert [name for name in names if name != "contrast"] == [n for n in RANGES if n in names and n != "contrast"]
        assert names.index("brightness") == 0 if "brightness" in names else True
        both += {"contrast", "hue"} <= set(names)
        contrast_first += {"contrast", "hue"} <= set(names) and names.index("contrast") < names.index("hue")
        for name, amount in drawn.changes:
            amounts[name].append(amount)
    assert_rate(permuted, 0.5 * 5 / 6, draws)  # one of the six permutations is the identity
    assert_rate(contrast_first, 0.5, both)
    for name, (low, high) in RANGES.items():
        assert_rate(len(amounts[name]), 0.5, draws)
        margin = 0.01 * (high - low)
        assert low <= min(amounts[name]) < low + margin and high - margin < max(amounts[name]) <= high


def test_choices_are_independent():
    rng, draws = np.random.default_rng(1), 2000
    together = sum({name for name, _ in colour.draw_colours(rng).changes} == set(RANGES) for _ in range(draws))
    assert_rate(together, 1 / 16, draws)


def test_all_orders_of_the_channels_occur():
    rng = np.random.default_rng(0)
    seen = {colour.draw_colours(rng).channels for _ in range(200)}
    assert len(seen) == 6
    assert all(sorted(order) == [0, 1, 2] for order in seen)


@pytest.mark.parametrize("factor", [0.875, 1.0, 1.0371, 1.125])
def test_brightness_multiplies(factor):
    image = noise_image()
    expected = np.clip(np.rint(image.astype(np.float64) * factor), 0, 255)
    np.testing.assert_array_equal(colour.adjust_brightness(image, factor), expected)


@pytest.mark.parametrize("factor", [0.0, 0.5, 1.0, 1.271, 1.5])
def test_contrast_blends_with_a_grey(factor):
    image, grey = noise_image(), 101.3
    expected = np.clip(np.rint(image * factor + grey * (1 - factor)), 0, 255)
    np.testing.assert_array_equal(colour.adjust_contrast(image, factor, grey), expected)


@pytest.mark.parametrize("before", [[], [("brightness", 1.125)], [("saturation", 1.5), ("hue", 0.05)]])
def test_contrast_is_about_the_mean_grey_of_the_whole_image_as_changed_so_far(before):
    """Estimated from a sample: on noise, whose pixels have nothing in common with their neighbours, within a level."""
    image = noise_image(480, 640) // 2 + np.array([90, 10, 0], dtype=np.uint8)
    colours = colour.Colours((*before, ("contrast", 0.0)))
    changed = colour.change_colours(image, colour.Colours(tuple(before)), image)
    mean = (changed.astype(np.float64) @ [0.299, 0.587, 0.114]).mean()
    assert np.abs(colour.change_colours(image[:5, :7], colours, image) - mean).max() < 1.5


@pytest.mark.parametrize("factor", [0.0, 0.5, 1.0, 1.271, 1.5])
def test_saturation_blends_with_grey(factor):
    image = noise_image()
    grey = image.astype(np.float64) @ [0.299, 0.587, 0.114]
    expected = np.clip(image * factor + grey[..., None] * (1 - factor), 0, 255)
    assert np.abs(colour.adjust_saturation(image, factor) - expected).max() < 1


@pytest.mark.parametrize("turns", [-0.05, -0.013, 0.0, 0.027, 0.05, 1 / 3])
def test_hue_turns(turns):
    image = noise_image(24, 32)
    image[0, :2] = [[255, 0, 10], [255, 0, 0]]  # either way over the seam of the hue
    expected = np.empty(image.shape)
    for index in np.ndindex(image.shape[:2]):
        hue, saturation, value = colorsys.rgb_to_hsv(*(image[index] / 255))
        expected[index] = 255 * np.array(colorsys.hsv_to_rgb((hue + turns) % 1, saturation, value))
    assert np.abs(colour.adjust_hue(image, turns) - expected).max() <= 0.51


@pytest.mark.parametrize("change", [("brightness", 1.0), ("contrast", 1.0), ("saturation", 1.0), ("hue", 0.0)])
def test_neutral_amount_changes_nothing(change):
    image = noise_image()
    image.flags.writeable = False
    np.testing.assert_array_equal(colour.change_colours(image, colour.Colours((change,)), image), image)


def test_changes_are_made_in_their_order():
    image = noise_image()
    changes = (("brightness", 1.125), ("saturation", 0.5))
    expected = colour.adjust_saturation(colour.adjust_brightness(image, 1.125), 0.5)
    other = colour.adjust_brightness(colour.adjust_saturation(image, 0.5), 1.125)
    changed = colour.change_colours(image, colour.Colours(changes), image)
    np.testing.assert_array_equal(changed, expected)
    assert not np.array_equal(changed, other)
