"""What is seen through a view, against the plain order: colours, canvas, crop, mirror, resize, each on whole images."""

import cv2
import numpy as np
import pytest

from ssd300_vgg16.data.augment import FILL_COLOUR, Colours, View, change_colours, seen_boxes, seen_pixels

SIZE = 300
HEIGHT, WIDTH = 240, 320
BOXES = np.array([[10, 20, 90, 100], [200, 60, 310, 230]], dtype=np.float32)
ALL_CHANGES = Colours((("brightness", 1.1), ("contrast", 1.4), ("saturation", 1.4), ("hue", 0.05)), (2, 0, 1))
CONTRAST_LAST = Colours((("brightness", 0.9), ("saturation", 0.6), ("hue", -0.05), ("contrast", 0.6)))


def sharp_image(height=HEIGHT, width=WIDTH, shades=12):
    """Strong shades, so many from top to bottom, and sharp edges: harder than what a camera takes."""
    small = np.random.default_rng(0).integers(0, 256, (shades, shades, 3), dtype=np.uint8)
    image = cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)
    image[height // 4 : height // 2, width // 4 : width // 2] = [230, 40, 90]
    return image


def plain(image, boxes, view, colours):
    """Each step on all pixels: [SIZE, SIZE, 3], and the boxes."""
    image = change_colours(image, colours, image)[..., list(colours.channels)]
    left, top, right, bottom = view.window
    before = max(-top, 0), max(bottom - image.shape[0], 0), max(-left, 0), max(right - image.shape[1], 0)
    canvas = cv2.copyMakeBorder(image, *before, cv2.BORDER_CONSTANT, value=FILL_COLOUR)
    top, left, bottom, right = (top + before[0], left + before[2], bottom + before[0], right + before[2])
    cut = canvas[top:bottom, left:right]
    boxes = boxes - np.float32([view.window[0], view.window[1]] * 2)
    if view.mirrored:
        cut = cut[:, ::-1]
        boxes = boxes[:, [2, 1, 0, 3]] * [-1, 1, -1, 1] + np.float32([right - left, 0] * 2)
    scale = np.array([SIZE / (right - left), SIZE / (bottom - top)] * 2)
    resized = cv2.resize(np.ascontiguousarray(cut), (SIZE, SIZE), interpolation=cv2.INTER_LINEAR)
    return resized, boxes * scale


def seen(image, view, colours):
    out = np.full((3, SIZE, SIZE), 77, dtype=np.uint8)
    seen_pixels(image, view, colours, out)
    return out.transpose(1, 2, 0)


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("window", [(0, 0, WIDTH, HEIGHT), (0, 30, 300, 231), (111, 7, 320, 110), (5, 6, 8, 8)])
@pytest.mark.parametrize("channels", [(0, 1, 2), (2, 0, 1)])
def test_without_colours_and_within_the_image_it_is_the_plain_order(window, mirrored, channels):
    image, view, colours = sharp_image(), View(window, mirrored), Colours((), channels)
    expected, boxes = plain(image, BOXES, view, colours)
    np.testing.assert_allclose(seen_boxes(BOXES, view, image.shape[:2], SIZE), boxes, rtol=1e-4, atol=1e-2)
    assert np.abs(seen(image, view, colours).astype(int) - expected).max() <= (1 if mirrored else 0)


@pytest.mark.parametrize("colours", [ALL_CHANGES, CONTRAST_LAST])
@pytest.mark.parametrize(
    ("scale", "window"), [(1, (0, 0, WIDTH, HEIGHT)), (3, (0, 0, WIDTH, HEIGHT)), (3, (60, 7, 250, 200))]
)
def test_colours_after_the_resize_differ_by_little(colours, scale, window):
    """1 level in the mean, and 8 but for a hundredth of the values: where clipped values are blended with others.

    (On the images of `python -m benchmarks input_pipeline` it is 0.13 in the mean.)
    """
    image = sharp_image(HEIGHT * scale, WIDTH * scale)
    view = View(tuple(side * scale for side in window))
    expected, _ = plain(image, BOXES, view, colours)
    difference = np.abs(seen(image, view, colours).astype(int) - expected)
    assert difference.mean() < 1
    assert np.percentile(difference, 99) <= 8


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize(
    "window", [(-200, -37, 760, 683), (-1, -1, WIDTH, HEIGHT), (-700, -500, 312, 235), (5, 10, 999, 799)]
)
def test_beyond_the_image_it_is_put_on_whole_pixels(window, mirrored):
    """Boxes are half a pixel of the network's input off the plain order's at most, and the pixels go with the boxes."""
    image, view = sharp_image(shades=4), View(window, mirrored)
    expected, boxes = plain(image, BOXES, view, Colours())
    found = seen_boxes(BOXES, view, image.shape[:2], SIZE)
    assert np.abs(found - boxes).max() <= 0.5
    pixels = seen(image, view, Colours())
    fill = (expected == FILL_COLOUR).all(axis=-1)
    surely_fill = cv2.erode(fill.astype(np.uint8), np.ones((3, 3))) > 0
    assert (pixels[surely_fill] == FILL_COLOUR).all()
    surely_image = cv2.erode((~fill).astype(np.uint8), np.ones((3, 3))) > 0
    difference = np.abs(pixels.astype(int) - expected)[surely_image]
    assert difference.mean() < 4


def test_what_is_seen_has_at_least_a_pixel():
    image, view = np.zeros((1, 1, 3), dtype=np.uint8), View((-999, -999, 1, 1))
    pixels = seen(image, view, ALL_CHANGES)
    assert (pixels[:-1, :-1] == FILL_COLOUR).all() and (pixels[-1, -1] != FILL_COLOUR).all()
    box = seen_boxes(np.float32([[0, 0, 1, 1]]), view, image.shape[:2], SIZE)
    np.testing.assert_allclose(box, [[299, 299, 300, 300]])


def test_the_image_is_only_read():
    image = sharp_image()
    before = image.copy()
    image.flags.writeable = False
    for window in ((0, 0, WIDTH, HEIGHT), (5, 5, 90, 90), (-60, -60, 900, 900)):
        seen(image, View(window, True), ALL_CHANGES)
        np.testing.assert_array_equal(image, before)
