"""From the network's answers to detections in pixels."""

import numpy as np
import pytest

from ssd300_vgg16 import boxes as box_math
from ssd300_vgg16.network.postprocess import (
    _best_above,
    _candidates_of_best,
    _candidates_on_cpu,
    _softmax,
    best_to_host,
    postprocess,
)
from ssd300_vgg16.network.variants import SSD300_COCO, DefaultBoxLayout, default_boxes
from ssd300_vgg16.runtime import flow

# 80 default boxes, in an image of 64 pixels.
SMALL = DefaultBoxLayout(image_size=64, feature_maps=(4, 2), steps=(16, 32), sizes=(10, 40, 90), ratios=((2,), ()))
BOXES = 4 * 4 * 4 + 2 * 2 * 2


def answers(classes, batch=1, seed=0, scale=1.0):
    """Random offsets and logits for the small layout, background as likely as any class."""
    rng = np.random.default_rng(seed)
    offsets = rng.standard_normal((batch, BOXES, 4), dtype=np.float32)
    return offsets, scale * rng.standard_normal((batch, BOXES, classes), dtype=np.float32)


def run(offsets, logits, sizes_hw, **options):
    return postprocess(flow.from_numpy(offsets), flow.from_numpy(logits), sizes_hw, **options)


def softmax(logits):
    """The package's, so that scores that differ by their last bit alone are in the same order here and there."""
    return _softmax(logits.reshape(-1, logits.shape[-1])).reshape(logits.shape)


def brute_force(greedy_nms, offsets, logits, size_hw, layout, threshold):
    """One image, class by class: above the threshold, the 400 best; then NMS and the 200 best over all classes."""
    side = layout.image_size
    boxes = box_math.clip(box_math.decode(offsets, default_boxes(layout)), side, side)
    scores = softmax(logits)
    candidates = []
    for label in range(1, logits.shape[1]):
        passing = [(scores[row, label], row, label) for row in np.flatnonzero(scores[:, label] > threshold)]
        candidates += sorted(passing, reverse=True)[:400]
    scores, rows, labels = (np.array(column) for column in zip(*candidates, strict=True))
    kept = greedy_nms(boxes[rows].tolist(), scores.tolist(), labels.tolist(), 0.45, 200)
    height, width = size_hw
    in_pixels = boxes[rows[kept]] * np.array([width, height, width, height]) / side
    return {"boxes": in_pixels, "scores": scores[kept], "labels": labels[kept]}


def assert_same(found, expected):
    np.testing.assert_array_equal(found["labels"], expected["labels"])
    np.testing.assert_allclose(found["scores"], expected["scores"], rtol=1e-4)
    np.testing.assert_allclose(found["boxes"], expected["boxes"], rtol=1e-4, atol=1e-3)


def test_equal_to_the_reference(golden):
    reference = golden("postprocess")
    rng = np.random.default_rng(int(reference["seed"]))
    logits = rng.standard_normal((3, 8732, 91), dtype=np.float32)
    logits[..., 0] += np.array([[6], [9], [12]])
    hot, classes = rng.integers(0, 8732, (3, 60)), rng.integers(1, 91, (3, 60))
    for image in range(3):
        logits[image, hot[image], classes[image]] += 9
        logits[image, np.minimum(hot[image] + 1, 8731), classes[image]] += 8
    offsets = rng.standard_normal((3, 8732, 4), dtype=np.float32)
    found = run(offsets, logits, reference["sizes_hw"])
    for image in range(3):
        assert_same(found[image], {key: reference[f"{key}{image}"] for key in ("boxes", "scores", "labels")})


def test_the_worst_case_is_equal_to_brute_force(greedy_nms):
    """Every class of every default box is above the threshold; the best are far enough apart for no ties."""
    rng = np.random.default_rng(0)
    offsets = rng.standard_normal((1, 8732, 4), dtype=np.float32)
    logits = 0.05 * rng.standard_exponential((1, 8732, 91), dtype=np.float32)
    assert softmax(logits).min() > 0.01
    (found,) = run(offsets, logits, [(480, 640)])
    assert len(found["scores"]) == 200
    assert_same(found, brute_force(greedy_nms, offsets[0], logits[0], (480, 640), SSD300_COCO, 0.01))


@pytest.mark.parametrize("many", [False, True])
def test_where_the_highest_scores_are_not_enough_the_others_follow(greedy_nms, many):
    """All boxes of an image nearly the same: of a class, one is left, and of 36,000 candidates 90."""
    rng = np.random.default_rng(2)
    place = np.array([100, 100, 200, 220], dtype=np.float32)
    boxes = place + rng.standard_normal((8732, 4), dtype=np.float32)
    boxes[:300] += np.linspace(-90, 90, 300, dtype=np.float32)[:, None] * many
    offsets = box_math.encode(boxes, default_boxes())
    logits = 0.05 * rng.standard_exponential((8732, 91), dtype=np.float32)
    tries = list(_candidates_on_cpu(logits, 0.01))
    assert len(tries) == 2 and len(tries[0][0]) < 5000 and len(tries[1][0]) == 36000
    (found,) = run(offsets[None], logits[None], [(480, 640)])
    assert (len(found["scores"]) == 90) != many
    assert_same(found, brute_force(greedy_nms, offsets, logits, (480, 640), SSD300_COCO, 0.01))


@pytest.mark.parametrize("above", [0.018, 0.02, 0.025])
def test_the_highest_scores_are_those_of_all(above):
    """Of candidates above a bound, each class has those that it has without it."""
    scores = _softmax(0.3 * np.random.default_rng(3).standard_normal((8732, 91), dtype=np.float32))
    every, few = (
        set(zip(*(part.tolist() for part in _best_above(scores, bound)), strict=True)) for bound in (0, above)
    )
    assert few == {entry for entry in every if entry[0] > above} and 0 < len(few) < len(every)


def test_equal_logits_everywhere():
    """36,000 candidates of one score: which of them are kept is open, but not that they are a proper answer."""
    offsets = np.random.default_rng(1).standard_normal((1, 8732, 4), dtype=np.float32)
    (found,) = run(offsets, np.zeros((1, 8732, 91), dtype=np.float32), [(300, 300)])
    np.testing.assert_allclose(found["scores"], np.full(200, 1 / 91), rtol=1e-6)
    for label in np.unique(found["labels"]):
        boxes = found["boxes"][found["labels"] == label]
        assert (np.triu(box_math.iou(boxes, boxes), k=1) <= 0.4501).all()


@pytest.mark.parametrize("classes", [2, 5, 30])
@pytest.mark.parametrize("threshold", [0.0, 0.01, 0.3])
def test_equal_to_brute_force(greedy_nms, classes, threshold):
    offsets, logits = answers(classes, batch=3, seed=classes, scale=2)
    sizes = [(64, 64), (480, 640), (37, 1000)]
    found = run(offsets, logits, sizes, score_threshold=threshold, layout=SMALL)
    for image in range(3):
        expected = brute_force(greedy_nms, offsets[image], logits[image], sizes[image], SMALL, threshold)
        assert len(expected["scores"])
        assert_same(found[image], expected)


@pytest.mark.parametrize("shape", [(8732, 91), (600, 4), (400, 3), (60, 7)])
@pytest.mark.parametrize("threshold", [0.0, 0.01, 0.3])
def test_both_ways_of_selecting_give_the_same_candidates(shape, threshold):
    logits = np.random.default_rng(shape[0]).standard_normal(shape, dtype=np.float32)
    # A crowded class, a class with no candidate, and others between.
    logits[:, 1] += 3
    logits[:, 2] -= 20
    _, best = best_to_host(flow.zeros(1), flow.from_numpy(logits[None]))
    of_best = _candidates_of_best(*(part[0].numpy() for part in best), threshold)
    ways = [list(_candidates_on_cpu(logits, threshold))[-1], of_best]
    cpu, gpu = ({(row, label): score for score, row, label in zip(*way, strict=True)} for way in ways)
    assert cpu.keys() == gpu.keys()
    np.testing.assert_allclose([cpu[place] for place in gpu], list(gpu.values()), rtol=1e-5)
    counts = np.bincount(ways[0][2], minlength=shape[1])
    assert counts[0] == 0
    assert counts.max() == min((softmax(logits)[:, 1] > threshold).sum(), 400)


@pytest.mark.parametrize(("threshold", "count"), [(0.5, 0), (0.4999, 1)])
def test_the_threshold_is_strict(threshold, count):
    """All boxes alike and equal logits: every score is exactly 0.5."""
    offsets = box_math.encode(np.full((BOXES, 4), [10, 10, 30, 30], dtype=np.float32), default_boxes(SMALL))
    logits = np.zeros((1, BOXES, 2), dtype=np.float32)
    (found,) = run(offsets[None], logits, [(64, 64)], score_threshold=threshold, layout=SMALL)
    assert len(found["scores"]) == count


@pytest.mark.parametrize(
    ("size_hw", "threshold"), [((480, 640), 0.01), ((1, 1), 0.01), ((1000, 3), 0.01), ((64, 64), 1.0)]
)
def test_boxes_are_inside_the_image_and_scores_fall(size_hw, threshold):
    offsets, logits = answers(5)
    (found,) = run(30 * offsets, logits, np.array([size_hw]), score_threshold=threshold, layout=SMALL)
    height, width = size_hw
    count = len(found["scores"])
    assert (count > 0) == (threshold < 1)
    assert (found["boxes"].shape, found["labels"].shape) == ((count, 4), (count,))
    assert [found[key].dtype for key in ("boxes", "scores", "labels")] == [np.float32, np.float32, np.int64]
    assert (found["boxes"] >= 0).all()
    assert (found["boxes"] <= np.array([width, height, width, height]) * (1 + 1e-6)).all()
    assert (found["boxes"][:, :2] <= found["boxes"][:, 2:]).all()
    assert (np.diff(found["scores"]) <= 0).all()
    assert (found["labels"] >= 1).all()


def test_no_images():
    assert run(*answers(5, batch=0), np.empty((0, 2)), layout=SMALL) == []


def test_images_of_a_batch_do_not_mix_and_arrays_get_the_answer_of_tensors():
    offsets, logits = answers(5, batch=3)
    sizes = [(64, 64), (100, 200), (300, 50)]
    before = logits.copy()
    together = run(offsets, logits, sizes, layout=SMALL)
    for image in range(3):
        part = slice(image, image + 1)
        (alone,) = postprocess(offsets[part], logits[part], sizes[part], layout=SMALL)
        for key in ("boxes", "scores", "labels"):
            np.testing.assert_array_equal(alone[key], together[image][key])
    np.testing.assert_array_equal(logits, before)


def test_scores_of_logits_far_apart_are_finite():
    """Of one row and from one row to the next; in float32, the exponential of 100 is not."""
    logits = np.array([[100, 99, -300], [-300, -301, -900]], dtype=np.float32)
    first = 1 / (1 + np.exp(-1))
    np.testing.assert_allclose(_softmax(logits), [[first, 1 - first, 0], [first, 1 - first, 0]], rtol=1e-6)


def test_answers_that_carry_gradients_are_taken():
    offsets, logits = (flow.from_numpy(array).requires_grad_() for array in answers(3))
    (found,) = postprocess(offsets * 1, logits * 1, [(64, 64)], layout=SMALL)
    assert len(found["scores"])
