"""Default boxes, number for number."""

from math import sqrt

import numpy as np
import pytest

from ssd300_vgg16.network.variants import SSD300_COCO, DefaultBoxLayout, default_boxes

SMALL = DefaultBoxLayout(image_size=64, feature_maps=(4, 2), steps=(16, 32), sizes=(10, 40, 90), ratios=((2,), (2, 3)))


def test_equal_to_the_reference_to_the_last_bit(golden):
    reference = golden("default_boxes")
    np.testing.assert_array_equal(default_boxes(), reference["boxes_xyxy_px"])
    assert list(SSD300_COCO.feature_maps) == reference["feature_maps"].tolist()


def test_shape_and_type():
    boxes = default_boxes()
    assert (boxes.shape, boxes.dtype) == ((8732, 4), np.float32)
    assert SSD300_COCO.boxes_per_cell == (4, 6, 6, 6, 4, 4)


def test_made_once_and_read_only():
    assert default_boxes() is default_boxes()
    with pytest.raises(ValueError, match="read-only"):
        default_boxes()[0] = 0


def test_the_first_cell():
    """Centre (4, 4); s = 21, sqrt(21 x 45), then twice as wide as high, then twice as high as wide."""
    wide, narrow, between = 21 * sqrt(2), 21 / sqrt(2), sqrt(21 * 45)
    expected = [
        [4 - width / 2, 4 - height / 2, 4 + width / 2, 4 + height / 2]
        for width, height in ((21, 21), (between, between), (wide, narrow), (narrow, wide))
    ]
    np.testing.assert_allclose(default_boxes()[:4], expected, rtol=1e-5)


def test_sizes_are_clipped_to_the_image_and_centres_are_not():
    x1, y1, x2, y2 = default_boxes().T
    assert max((x2 - x1).max(), (y2 - y1).max()) == pytest.approx(300)
    assert min(x1.min(), y1.min()) < 0
    assert max(x2.max(), y2.max()) > 300


def brute_force(layout):
    """One box at a time: map, row, column, shape."""
    boxes = []
    for index, cells in enumerate(layout.feature_maps):
        size, following = layout.sizes[index : index + 2]
        shapes = [(size, size), (sqrt(size * following),) * 2]
        for ratio in layout.ratios[index]:
            shapes += [(size * sqrt(ratio), size / sqrt(ratio)), (size / sqrt(ratio), size * sqrt(ratio))]
        for row in range(cells):
            for column in range(cells):
                x, y = (column + 0.5) * layout.steps[index], (row + 0.5) * layout.steps[index]
                for shape in shapes:
                    width, height = (min(side, layout.image_size) for side in shape)
                    boxes.append([x - width / 2, y - height / 2, x + width / 2, y + height / 2])
    return boxes


@pytest.mark.parametrize("layout", [SSD300_COCO, SMALL])
def test_equal_to_one_box_at_a_time(layout):
    boxes = default_boxes(layout)
    expected = np.array(brute_force(layout))
    assert boxes.shape == expected.shape
    np.testing.assert_allclose(boxes, expected, atol=1e-3)
