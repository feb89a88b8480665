"""eval.sh --verify: COCO's numbers beside pycocotools' own, on made-up data."""

import json
from dataclasses import replace

import numpy as np
import pytest
from coco_files import detections_of, load, random_annotations, random_detections

from ssd300_vgg16.metrics.coco_ap import STATISTICS, coco_ap
from ssd300_vgg16.metrics.coco_results import coco_results
from ssd300_vgg16.metrics.verification import verification_of


def verified(dataset, detections, positions=None):
    positions = positions or list(range(len(dataset.samples)))
    results = coco_results(dataset, positions, [detections[position] for position in positions])
    return verification_of(coco_ap(results), results, dataset)


def largest(verification):
    return max(verification.differences.values())


@pytest.fixture
def made():
    """Crowds, all sizes, several classes; and detections of them."""
    rng = np.random.default_rng(5)
    annotations = random_annotations(rng)
    return annotations, random_detections(rng, annotations)


@pytest.mark.parametrize("positions", [None, [0, 2, 3]])
def test_numbers_of_a_coco_file_agree(tmp_path, made, positions):
    annotations, detections = made
    verification = verified(load(tmp_path, annotations), detections, positions)
    assert 0.1 < verification.theirs["AP"] < 0.9
    assert largest(verification) < 1e-9
    assert verification.problem() is None and verification.notes == ()
    heading, *rows, last = verification.table().splitlines()
    assert "pycocotools" in heading and last.startswith("largest difference: ")
    assert [row.split()[0] for row in rows] == [name for name, *_ in STATISTICS]
    assert f" {verification.theirs['AP']:.8f} " in rows[0]


def test_annotations_from_id_0_are_renumbered_and_that_is_said(tmp_path, made):
    annotations, detections = made
    from_zero = [{**entry, "id": entry["id"] - 1} for entry in annotations]
    verification = verified(load(tmp_path, from_zero), detections)
    assert largest(verification) < 1e-9
    assert "id 0" in verification.table().splitlines()[-2]


def test_what_a_file_may_leave_out_is_filled_in(tmp_path, made):
    annotations, detections = made
    short = [{key: entry[key] for key in entry if key not in ("area", "iscrowd")} for entry in annotations]
    assert largest(verified(load(tmp_path, short), detections)) < 1e-9


@pytest.mark.parametrize("kind", ["voc", "yolo", "coco"])
def test_other_data_and_files_with_faults_are_converted(tmp_path, made, kind):
    """With difficult objects, as VOC has them."""
    annotations, detections = made
    if kind == "coco":
        annotations.append({"id": 1000, "image_id": 3, "category_id": 3, "bbox": None})
    dataset = load(tmp_path, annotations)
    if kind == "voc":
        rng = np.random.default_rng(6)
        samples = [replace(sample, difficult=rng.random(len(sample.labels)) < 0.2) for sample in dataset.samples]
        dataset = replace(dataset, samples=tuple(samples))
    verification = verified(replace(dataset, kind=kind), detections)
    assert list(verification.ours.values()) == list(verification.theirs.values())
    assert "converted to COCO's form" in verification.table()


def test_nothing_detected_can_be_verified(tmp_path, made):
    dataset = load(tmp_path, made[0])
    assert verified(dataset, [detections_of()] * len(dataset.samples)).theirs["AP"] == 0


def test_a_difference_is_a_problem_with_the_name_of_the_number(tmp_path, made):
    """An annotation changed behind our back: the file is read anew."""
    annotations, detections = made
    dataset = load(tmp_path, annotations)
    path = tmp_path / "annotations.json"
    content = json.loads(path.read_text())
    for entry in content["annotations"][::2]:
        entry["bbox"][0] += 40
    path.write_text(json.dumps(content))
    verification = verified(dataset, detections)
    assert largest(verification) > 1e-3
    assert "AP50" in verification.problem() and "1e-06" in verification.problem()
