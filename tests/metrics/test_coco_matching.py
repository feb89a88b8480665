"""COCO's numbers against pycocotools where the rules of matching and of equal scores decide."""

from pathlib import Path

import numpy as np
import pytest

from ssd300_vgg16.data.dataset import Category, Dataset, Problems, Sample
from ssd300_vgg16.metrics import coco_matching
from ssd300_vgg16.metrics.coco_ap import coco_ap
from ssd300_vgg16.metrics.coco_results import coco_results
from ssd300_vgg16.metrics.verification import coco_ground_truth, run_pycocotools


def pycocotools_metrics(results):
    """The twelve numbers, and AP and AP50 of each class, by pycocotools."""
    evaluation = run_pycocotools(coco_ground_truth(results), results)
    precision = evaluation.eval["precision"][:, :, :, 0, -1]
    per_class = {}
    for column, id_ in enumerate(evaluation.params.catIds):
        values = (precision[:, :, column], precision[0, :, column])
        per_class[str(id_)] = tuple(float(part[part > -1].mean()) if (part > -1).any() else -1 for part in values)
    return evaluation.stats.tolist(), per_class


def hard_boxes(rng, count, grid):
    """On a coarse grid, so that many IoUs are equal, or equal to a threshold; some have no area."""
    corners, sides = rng.integers(0, 10, (count, 2)) * grid, rng.integers(0, 8, (count, 2)) * grid
    return np.concatenate((corners, corners + sides), axis=1).astype(np.float64)


def hard_sample(rng, id_, objects, labels, grid):
    boxes = hard_boxes(rng, objects, grid)
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1) * rng.choice([0.5, 1], objects)
    crowd, difficult = rng.random((2, objects)) < 0.15
    return Sample(id_, Path(f"{id_}.jpg"), 480, 640, boxes, rng.integers(1, labels, objects), crowd, areas, difficult)


def hard_detections(rng, sample, count, labels, grid, scores, dtype):
    """Boxes near objects and others; some labels that the data set does not have; few scores, if so many are asked."""
    boxes, found = hard_boxes(rng, count, grid), rng.integers(1, labels + 2, count)
    near = np.flatnonzero(rng.random(count) < 0.6) if len(sample.labels) else []
    of = rng.integers(0, max(len(sample.labels), 1), len(near))
    boxes[near] = sample.boxes[of] + rng.integers(-1, 2, (len(near), 4)) * grid / 2
    found[near] = sample.labels[of]
    chosen = rng.random(count) if scores is None else rng.integers(1, scores, count) / scores
    return {"boxes": boxes.astype(dtype), "scores": chosen.astype(dtype), "labels": found}


@pytest.mark.parametrize(
    ("objects", "detections", "labels", "grid", "scores"),
    [
        (8, 40, 4, 16, None),  # areas on the borders of small and medium
        (8, 40, 4, 16, 5),  # many equal scores, in an image and between images
        (30, 60, 3, 4, 5),  # objects that overlap many
        (3, 500, 2, 30, None),  # more than 100 detections of a class in an image
        (3, 500, 2, 30, 3),  # and the 100th has the score of the 101st
        (1, 5, 2, 60, None),
        (0, 20, 3, 16, None),  # nothing to find
        (8, 0, 3, 16, None),  # nothing found
    ],
)
@pytest.mark.parametrize(("pairs_at_a_time", "dtype"), [(7, np.float32), (1_000_000, np.float64)])
def test_hard_cases_are_equal_to_the_last_digit(
    monkeypatch, objects, detections, labels, grid, scores, pairs_at_a_time, dtype
):
    monkeypatch.setattr(coco_matching, "PAIRS_AT_A_TIME", pairs_at_a_time)
    rng = np.random.default_rng(objects + detections + grid)
    categories = tuple(Category(label, 100 - label, str(100 - label)) for label in range(1, labels + 1))
    ids = (70, 3, 500, 12, 4, 99, 1)
    samples = tuple(hard_sample(rng, id_, rng.integers(0, objects + 1), labels, grid) for id_ in ids)
    dataset = Dataset("hard", categories, samples, Problems("hard"))
    found = [
        hard_detections(rng, sample, rng.integers(detections // 2, detections + 1), labels, grid, scores, dtype)
        for sample in samples
    ]
    positions = [5, 0, 1, 3, 4, 6]
    results = coco_results(dataset, positions, [found[position] for position in positions])
    metrics = coco_ap(results)
    expected, expected_of_class = pycocotools_metrics(results)
    assert (metrics.statistics["AP"] > 0) == bool(objects and detections), "a case that says something"
    assert list(metrics.statistics.values()) == expected
    assert {name: values[:2] for name, values in metrics.per_class.items()} == expected_of_class


LEFT, BETWEEN, RIGHT = [0, 0, 10, 10], [2, 0, 12, 10], [4, 0, 14, 10]


@pytest.mark.parametrize(("objects", "ap50"), [((RIGHT, LEFT), 1), ((LEFT, RIGHT), 51 / 101)])
def test_of_objects_overlapped_alike_the_last_is_taken(objects, ap50):
    """The first detection is between the two; the second is on the right, and finds that if it is not taken."""
    boxes = np.array(objects, dtype=np.float64)
    none, areas = np.zeros(2, dtype=bool), np.full(2, 100.0)
    sample = Sample(1, Path("1.jpg"), 20, 20, boxes, np.ones(2, dtype=np.int64), none, areas, none)
    dataset = Dataset("two", (Category(1, 1, "1"),), (sample,), Problems("two"))
    scores = np.array([0.9, 0.8], dtype=np.float32)
    found = {"boxes": np.array([BETWEEN, RIGHT], dtype=np.float32), "scores": scores, "labels": np.array([1, 1])}
    results = coco_results(dataset, [0], [found])
    metrics = coco_ap(results)
    assert metrics.statistics["AP50"] == pytest.approx(ap50)
    assert list(metrics.statistics.values()) == pycocotools_metrics(results)[0]
