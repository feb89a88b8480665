"""Errors are told apart, and their cost in AP computed, as TIDE does it."""

import json

import numpy as np
import pytest
from coco_files import IMAGE_IDS, detections_of, load, random_annotations, random_detections
from places import GOLDEN

from ssd300_vgg16.metrics import errors
from ssd300_vgg16.metrics.coco_results import coco_results
from ssd300_vgg16.metrics.errors import ERRORS, error_figures, judge

DOG = 3  # the id of a category; its label is 1
OBJECT = (100, 100, 200, 200)
NEAR = (100, 100, 200, 140)  # IoU 0.4
FAR = (300, 300, 400, 400)


def results_of(folder, rows, box=OBJECT, crowd=0, image=7):
    """Detections (score, label, box) on this image; the one dog that there is, in this box, is on image 7."""
    x1, y1, x2, y2 = box
    dog = {"id": 1, "image_id": 7, "category_id": DOG, "bbox": [x1, y1, x2 - x1, y2 - y1], "area": 1000.0}
    dataset = load(folder, [dog | {"iscrowd": crowd}])
    return coco_results(dataset, [IMAGE_IDS.index(image)], [detections_of(*rows)])


@pytest.mark.parametrize(
    ("box", "label", "kind"),
    [
        (OBJECT, 1, errors.HIT),
        (OBJECT, 2, errors.CLASS),
        (NEAR, 1, errors.LOCALISATION),
        (NEAR, 2, errors.BOTH),
        (FAR, 1, errors.BACKGROUND),
        (FAR, 2, errors.BACKGROUND),
    ],
)
def test_what_a_detection_is(tmp_path, box, label, kind):
    judgement = judge(results_of(tmp_path, [(0.9, label, box)]))
    assert judgement.kinds.tolist() == [kind]
    assert judgement.hit.tolist() == [kind == errors.HIT]
    assert judgement.claims.tolist() == [0 if kind in (errors.CLASS, errors.LOCALISATION) else -1]
    assert judgement.missed.tolist() == [kind in (errors.BOTH, errors.BACKGROUND)]
    assert judgement.near_scores.tolist() == pytest.approx([0 if box == FAR else 0.9])


def test_a_second_detection_of_an_object_is_a_duplicate(tmp_path):
    judgement = judge(results_of(tmp_path, [(0.9, 1, OBJECT), (0.8, 1, OBJECT)]))
    assert judgement.kinds.tolist() == [errors.HIT, errors.DUPLICATE]


def test_what_lies_in_a_crowd_of_its_class_does_not_count(tmp_path):
    judgement = judge(results_of(tmp_path, [(0.9, 1, OBJECT), (0.8, 2, OBJECT)], (50, 50, 350, 350), crowd=1))
    assert judgement.kinds.tolist() == [errors.IGNORED, errors.BACKGROUND]
    assert not judgement.missed.any()


def test_only_the_best_of_several_claims_is_mended(tmp_path):
    """The box of 0.8 claims the dog; the wrong class of 0.7 goes when classes are mended."""
    results = results_of(tmp_path, [(0.8, 1, NEAR), (0.7, 2, OBJECT)])
    judgement = judge(results)
    assert judgement.claims.tolist() == [0]
    figures = error_figures(results, judgement)
    assert figures["AP50"] == 0
    # Two classes count: dogs, and cats, of which there is only a detection. Once mended, the dogs have an AP of 1.
    assert figures["localisation"]["AP50_gain"] == pytest.approx(0.5)
    assert figures["class"]["AP50_gain"] == 0
    assert [figures[name]["count"] for name in ERRORS] == [1, 1, 0, 0, 0, 0]


@pytest.mark.parametrize(("rows", "backgrounds"), [([], 0), ([(0.5, 1, NEAR)], 1)])
def test_an_image_with_nothing_on_it(tmp_path, rows, backgrounds):
    results = results_of(tmp_path, rows, image=12)
    figures = error_figures(results, judge(results))
    nothing = {"count": 0, "AP50_gain": 0}
    assert [figures[name] for name in ERRORS] == [*[nothing] * 4, nothing | {"count": backgrounds}, nothing]
    assert figures["AP50"] == figures["without_false_alarms"] == figures["without_misses"] == 0


TIDE = json.loads((GOLDEN / "tide.json").read_text())


@pytest.mark.parametrize("tide", TIDE, ids=[f"{case['seed']}-{case['crowds']}" for case in TIDE])
def test_the_figures_are_tides(tmp_path, tide):
    """Scores are of two decimals: many are equal."""
    rng = np.random.default_rng(tide["seed"])
    annotations = [entry | {"iscrowd": entry["iscrowd"] * tide["crowds"]} for entry in random_annotations(rng)]
    detections = random_detections(rng, annotations)
    for found in detections:
        found["scores"] = found["scores"].round(2)
    results = coco_results(load(tmp_path, annotations), list(range(len(detections))), detections)
    figures = error_figures(results, judge(results))
    assert [figures[name]["count"] for name in ERRORS] == tide["counts"]
    assert [100 * figures[name]["AP50_gain"] for name in ERRORS] == pytest.approx(tide["gains"], abs=1e-8)
    for name in ("AP50", "without_false_alarms", "without_misses"):
        assert 100 * figures[name] == pytest.approx(tide[name], abs=1e-8), name
