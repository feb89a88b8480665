"""Box arithmetic: formats, overlap and offsets."""

import numpy as np
import pytest

from ssd300_vgg16 import boxes as box_math

FORMATS = [
    (box_math.xyxy_to_cxcywh, [10, 20, 40, 30], [25, 25, 30, 10]),
    (box_math.cxcywh_to_xyxy, [25, 25, 30, 10], [10, 20, 40, 30]),
    (box_math.xyxy_to_xywh, [10, 20, 40, 30], [10, 20, 30, 10]),
    (box_math.xywh_to_xyxy, [10, 20, 30, 10], [10, 20, 40, 30]),
]


def frozen(rows, dtype=np.float32):
    """An array that raises when it is written to."""
    array = np.array(rows, dtype=dtype)
    array.setflags(write=False)
    return array


def random_boxes(rng, count, low=0.0, high=300.0):
    corners = np.sort(rng.uniform(low, high, (count, 2, 2)), axis=1)
    return frozen(corners.reshape(count, 4))


@pytest.mark.parametrize(("convert", "before", "after"), FORMATS)
@pytest.mark.parametrize("shape", [(4,), (1, 4), (2, 3, 4), (0, 4)])
def test_formats(convert, before, after, shape):
    converted = convert(frozen(np.broadcast_to(before, shape)))
    assert converted.dtype == np.float32
    np.testing.assert_array_equal(converted, np.broadcast_to(after, shape))


@pytest.mark.parametrize(
    ("box", "area"),
    [
        ([10, 20, 40, 30], 300),
        ([-10, -10, 10, 10], 400),
        ([5, 5, 5, 9], 0),
        ([5, 5, 5, 5], 0),
        ([40, 20, 10, 30], 0),
        ([40, 30, 10, 20], 0),
    ],
)
def test_area(box, area):
    assert box_math.area(frozen(box)) == area
    assert box_math.area(frozen([box, box])).tolist() == [area, area]


@pytest.mark.parametrize(
    ("box", "clipped"),
    [
        ([10, 20, 40, 30], [10, 20, 40, 30]),
        ([-5, -6, 70, 60], [0, 0, 60, 50]),
        ([-9, -9, -1, -1], [0, 0, 0, 0]),
        ([70, 60, 90, 80], [60, 50, 60, 50]),
    ],
)
def test_clip(box, clipped):
    found = box_math.clip(frozen([box]), height=50, width=60)
    assert found.dtype == np.float32
    assert found.tolist() == [clipped]


@pytest.mark.parametrize(
    ("a", "b", "iou"),
    [
        pytest.param([0, 0, 10, 10], [0, 0, 10, 10], 1, id="identical"),
        pytest.param([0, 0, 10, 10], [0, 0, 10, 5], 0.5, id="half"),
        pytest.param([0, 0, 10, 10], [5, 5, 15, 15], 25 / 175, id="corner"),
        pytest.param([0, 0, 10, 10], [2, 2, 4, 4], 0.04, id="inside"),
        pytest.param([0, 0, 10, 10], [10, 0, 20, 10], 0, id="touching"),
        pytest.param([0, 0, 10, 10], [20, 20, 30, 30], 0, id="apart in both axes"),
        pytest.param([0, 0, 10, 10], [0, 20, 10, 30], 0, id="apart in one axis"),
        pytest.param([0, 0, 10, 10], [5, 5, 5, 5], 0, id="no area inside"),
        pytest.param([5, 5, 5, 5], [5, 5, 5, 5], 0, id="no area at all"),
    ],
)
def test_iou(a, b, iou):
    for one, other in ((a, b), (b, a)):
        found = box_math.iou(frozen([one]), frozen([other]))
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, [[iou]], rtol=1e-6)


@pytest.mark.parametrize(("n", "m"), [(7, 5), (0, 3), (3, 0), (0, 0)])
def test_iou_of_all_pairs(n, m):
    rng = np.random.default_rng(0)
    a, b = random_boxes(rng, n), random_boxes(rng, m)
    pairs = box_math.iou(a, b)
    assert pairs.shape == (n, m)
    for i, j in np.ndindex(n, m):
        assert pairs[i, j] == box_math.iou(a[i : i + 1], b[j : j + 1])[0, 0]


def test_offsets_of_a_known_pair():
    """Equation 2: (110 - 100) / 40 / 0.1, (105 - 100) / 20 / 0.1, ln(80 / 40) / 0.2, ln(10 / 20) / 0.2."""
    default_box, thing = frozen([[80, 90, 120, 110]]), frozen([[70, 100, 150, 110]])
    offsets = box_math.encode(thing, default_box)
    assert offsets.dtype == np.float32
    np.testing.assert_allclose(offsets, [[2.5, 2.5, np.log(2) / 0.2, -np.log(2) / 0.2]], rtol=1e-6)


def test_a_default_box_itself_has_offsets_zero():
    boxes = random_boxes(np.random.default_rng(1), 20)
    assert not box_math.encode(boxes, boxes).any()
    np.testing.assert_allclose(box_math.decode(frozen(np.zeros((20, 4))), boxes), boxes, atol=1e-4)


@pytest.mark.parametrize("count", [200, 0])
def test_decode_inverts_encode(count):
    rng = np.random.default_rng(2)
    objects = random_boxes(rng, count)
    default_boxes = box_math.cxcywh_to_xyxy(frozen(rng.uniform(20, 300, (count, 4))))
    decoded = box_math.decode(frozen(box_math.encode(objects, default_boxes)), default_boxes)
    assert decoded.dtype == np.float32
    np.testing.assert_allclose(decoded, objects, atol=1e-3)


@pytest.mark.parametrize("offset", [21.0, 1e3, 1e30])
def test_a_wild_size_is_bounded(offset):
    """exp() is applied to at most ln(1000 / 16)."""
    x1, y1, x2, y2 = box_math.decode(frozen([[0, 0, offset, -offset]]), frozen([[0, 0, 16, 16]]))[0]
    assert x2 - x1 == pytest.approx(1000)
    assert y2 - y1 == pytest.approx(16 * np.exp(-offset * 0.2), abs=1e-5)
