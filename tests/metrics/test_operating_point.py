"""Counts, precision and recall at a score threshold are those of pycocotools' matching, and the best is chosen."""

from itertools import chain

import numpy as np
import pytest
from coco_files import load, random_annotations, random_detections

from ssd300_vgg16.metrics.coco_results import coco_results
from ssd300_vgg16.metrics.operating_point import SCORE_THRESHOLDS, operating_points
from ssd300_vgg16.metrics.verification import coco_ground_truth, run_pycocotools


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Objects of all kinds, crowds among them, and detections good and bad."""
    rng = np.random.default_rng(3)
    annotations = random_annotations(rng)
    dataset = load(tmp_path_factory.mktemp("coco"), annotations)
    detections = random_detections(rng, annotations)
    for found in detections:
        found["scores"] = found["scores"].astype(np.float64).round(2)  # just on a threshold, and so not above it
    return coco_results(dataset, list(range(len(dataset.samples))), detections)


def by_pycocotools(results):
    """Of each category name: scores of hits, scores of false alarms, and the number of objects, all at IoU 0.5."""
    evaluation = run_pycocotools(coco_ground_truth(results), results)
    names, counts = {category.id: category.name for category in results.categories}, {}
    whole_range = evaluation.params.areaRng[0]
    for image in filter(None, evaluation.evalImgs):
        if image["aRng"] != whole_range:
            continue
        hits, alarms, objects = counts.setdefault(names[image["category_id"]], ([], [], []))
        for score, match, ignore in zip(image["dtScores"], image["dtMatches"][0], image["dtIgnore"][0], strict=True):
            if not ignore:
                (hits if match else alarms).append(score)
        objects.append(int((~np.asarray(image["gtIgnore"], dtype=bool)).sum()))
    return counts


def all_classes(counts):
    return [list(chain.from_iterable(column)) for column in zip(*counts.values(), strict=True)]


def test_the_figures_are_those_of_pycocotools_matching(results):
    overall = operating_points(results)
    per_class = overall["per_class"]
    expected = by_pycocotools(results)
    assert set(per_class) == {"cat", "dog", "horse", "unicorn"}
    everything = all_classes(expected)
    for point, (hits, alarms, objects) in [(overall, everything), *((per_class[n], expected[n]) for n in expected)]:
        found = sum(score > point["score_threshold"] for score in hits)
        false = sum(score > point["score_threshold"] for score in alarms)
        assert (point["hits"], point["false_alarms"], point["misses"]) == (found, false, sum(objects) - found)
        assert point["precision"] == (found / (found + false) if found + false else 0)
        assert point["recall"] == (found / sum(objects) if sum(objects) else 0)


def test_no_threshold_has_a_better_f1(results):
    overall = operating_points(results)
    hits, alarms, objects = all_classes(by_pycocotools(results))
    f1 = []
    for threshold in SCORE_THRESHOLDS:
        found, false = ((np.array(scores) > threshold).sum() for scores in (hits, alarms))
        f1.append(2 * found / (found + false + sum(objects)))
    assert 0 < np.argmax(f1) < 99, "a case that says something"
    assert overall["f1"] == pytest.approx(max(f1))
    assert overall["score_threshold"] == SCORE_THRESHOLDS[np.argmax(f1)]
