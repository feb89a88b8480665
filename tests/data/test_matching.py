"""Which default box learns which object, and what the network is to answer for it."""

from fractions import Fraction

import numpy as np
import pytest

from ssd300_vgg16 import boxes as box_math
from ssd300_vgg16.data import matching
from ssd300_vgg16.data.matching import match, objects_of, training_targets
from ssd300_vgg16.network.variants import default_boxes


def frozen(rows):
    """Boxes that raise when they are written to."""
    array = np.array(rows, dtype=np.float32).reshape(-1, 4)
    array.setflags(write=False)
    return array


def random_objects(rng, count):
    corner = rng.uniform(0, 280, (count, 2))
    return frozen(np.concatenate((corner, np.minimum(corner + rng.uniform(4, 200, (count, 2)), 300)), axis=1))


def test_equal_to_the_reference(golden):
    reference = golden("matching")
    cases = [name.removesuffix("_boxes") for name in reference if name.endswith("_boxes")]
    assert len(cases) == 10
    for case in cases:
        objects = reference[f"{case}_boxes"]
        matched = match(objects, default_boxes())
        assert (matched.shape, matched.dtype) == ((8732,), np.int64)
        np.testing.assert_array_equal(matched, reference[f"{case}_matched"], err_msg=case)
        if len(objects):
            offsets, labels = training_targets(objects, np.arange(1, len(objects) + 1), default_boxes())
            expected = reference[f"{case}_encoded"]
            np.testing.assert_allclose(offsets[labels > 0], expected, rtol=1e-4, atol=1e-5, err_msg=case)


def integer_boxes(rng, count):
    corner = rng.integers(0, 24, (count, 2))
    return frozen(np.concatenate((corner, corner + rng.integers(1, 12, (count, 2))), axis=1))


def exact_iou(a, b):
    (ax1, ay1, ax2, ay2), (bx1, by1, bx2, by2) = (map(int, box) for box in (a, b))
    shared = max(min(ax2, bx2) - max(ax1, bx1), 0) * max(min(ay2, by2) - max(ay1, by1), 0)
    return Fraction(shared, (ax2 - ax1) * (ay2 - ay1) + (bx2 - bx1) * (by2 - by1) - shared)


def brute_force(objects, boxes):
    """The rule, pair by pair in exact fractions; of equals the first is the best, and the last object wins."""
    matched = []
    for box in boxes:
        best = max(range(len(objects)), key=lambda i: (exact_iou(objects[i], box), -i))
        matched.append(best if exact_iou(objects[best], box) >= Fraction(1, 2) else -1)
    for index, one in enumerate(objects):
        matched[max(range(len(boxes)), key=lambda j: (exact_iou(one, boxes[j]), -j))] = index
    return matched


@pytest.mark.parametrize("seed", range(8))
def test_equal_to_brute_force(seed):
    """Whole numbers on a small field, so that ties and overlaps of exactly one half abound."""
    rng = np.random.default_rng(seed)
    objects, boxes = integer_boxes(rng, 1 + 3 * seed), integer_boxes(rng, 60)
    assert match(objects, boxes).tolist() == brute_force(objects, boxes)


@pytest.mark.parametrize(
    ("height", "matched"), [pytest.param(5, [0, 0], id="exactly 0.5"), pytest.param(4.99, [-1, 0], id="below")]
)
def test_threshold(height, matched):
    """The second default box is the object's best; the first takes it only if the overlap suffices."""
    boxes = frozen([[0, 0, 10, 10], [0, 0, 10, 5]])
    assert match(frozen([[0, 0, 10, height]]), boxes).tolist() == matched


def test_of_two_objects_with_one_best_box_the_later_has_it():
    boxes = frozen([[0, 0, 10, 10], [1, 0, 11, 10], [40, 40, 50, 50]])
    twins = frozen([[0, 0, 10, 10], [0, 0, 10, 10]])
    # The second box overlaps both alike, and takes the first of them.
    assert match(twins, boxes).tolist() == [1, 0, -1]


def test_no_objects():
    nothing = np.empty((0, 4), dtype=np.float32)
    assert (match(nothing, default_boxes()) == -1).all()
    offsets, labels = training_targets(nothing, np.empty(0, dtype=np.int64), default_boxes())
    assert (offsets.shape, offsets.dtype, labels.shape, labels.dtype) == ((8732, 4), np.float32, (8732,), np.int64)
    assert not offsets.any()
    assert not labels.any()


def test_300_objects():
    objects = random_objects(np.random.default_rng(11), 300)
    matched = match(objects, default_boxes())
    best = box_math.iou(objects, default_boxes()).argmax(axis=1)
    last_of = {box: index for index, box in enumerate(best.tolist())}
    assert {box: matched[box] for box in last_of} == last_of
    offsets, _ = training_targets(objects, np.ones(300, dtype=np.int64), default_boxes())
    assert np.isfinite(offsets).all()


def test_objects_are_matched_in_parts_as_all_at_once(monkeypatch):
    objects = random_objects(np.random.default_rng(13), 50)
    whole = match(objects, default_boxes())
    monkeypatch.setattr(matching, "OBJECTS_AT_ONCE", 7)
    np.testing.assert_array_equal(match(objects, default_boxes()), whole)


def test_training_targets_say_label_and_place_of_the_matched_object():
    objects, object_labels = random_objects(np.random.default_rng(12), 9), np.array([9, 8, 7, 6, 5, 4, 3, 2, 90])
    matched = match(objects, default_boxes())
    offsets, labels = training_targets(objects, object_labels, default_boxes())
    assert labels.tolist() == [0 if index < 0 else object_labels[index] for index in matched]
    positive = matched >= 0
    assert not offsets[~positive].any()
    decoded = box_math.decode(offsets[positive], default_boxes()[positive])
    np.testing.assert_allclose(decoded, objects[matched[positive]], atol=1e-3)


def test_objects_are_had_back_from_their_targets():
    boxes = np.array([[20, 30, 120, 150], [22, 30, 122, 150], [200, 10, 290, 90]], dtype=np.float32)
    labels = np.array([3, 1, 3])
    found, of_box = objects_of(*training_targets(boxes, labels, default_boxes()), default_boxes())
    order = np.lexsort((found[:, 0], of_box))
    np.testing.assert_allclose(found[order], boxes[[1, 0, 2]], atol=0.01)
    assert of_box[order].tolist() == [1, 3, 3]
    nothing = training_targets(boxes[:0], labels[:0], default_boxes())
    assert len(objects_of(*nothing, default_boxes())[0]) == 0
