"""COCO's numbers against pycocotools, on the same files and where the rules of matching and equal scores decide."""

import json
from pathlib import Path

import numpy as np
import pytest
from coco_files import (
    CATEGORIES,
    IMAGE_IDS,
    LABELS,
    detections_of,
    load,
    pycocotools_of_files,
    random_annotations,
    random_detections,
)
from full_disk import full_disk

from ssd300_vgg16.data.dataset import Category, Dataset, Problems, Sample
from ssd300_vgg16.errors import UserError
from ssd300_vgg16.metrics import coco_ap as matching
from ssd300_vgg16.metrics.coco_ap import STATISTICS, coco_ap
from ssd300_vgg16.metrics.coco_results import coco_results
from ssd300_vgg16.metrics.verification import coco_ground_truth, run_pycocotools


def pycocotools_statistics(annotation_file, detections, category_ids=None):
    """pycocotools' numbers of detections as the network gives them."""
    ids = {label: id_ for id_, label in LABELS.items()}
    rows = []
    for image_id, found in zip(IMAGE_IDS, detections, strict=True):
        columns = (found[name].tolist() for name in ("boxes", "scores", "labels"))
        for (x1, y1, x2, y2), score, label in zip(*columns, strict=True):
            bbox = [x1, y1, x2 - x1, y2 - y1]
            rows.append({"image_id": image_id, "category_id": ids[label], "bbox": bbox, "score": score})
    path = annotation_file.with_name("detections.json")
    path.write_text(json.dumps(rows))
    return pycocotools_of_files(annotation_file, path, category_ids=category_ids)


def evaluate(dataset, detections):
    return coco_ap(coco_results(dataset, list(range(len(dataset.samples))), detections))


@pytest.mark.parametrize("seed", range(5))
def test_equal_to_pycocotools_on_the_files(tmp_path, seed):
    rng = np.random.default_rng(seed)
    annotations = random_annotations(rng)
    detections = random_detections(rng, annotations)
    metrics = evaluate(load(tmp_path, annotations), detections)
    expected = pycocotools_statistics(tmp_path / "annotations.json", detections)
    assert 0.1 < expected[0] < 0.9
    assert list(metrics.statistics) == [name for name, *_ in STATISTICS]
    np.testing.assert_allclose(list(metrics.statistics.values()), expected, rtol=0, atol=1e-9)
    for id_, name in CATEGORIES:
        of_class = pycocotools_statistics(tmp_path / "annotations.json", detections, category_ids=[id_])
        objects = sum(entry["category_id"] == id_ and not entry["iscrowd"] for entry in annotations)
        assert metrics.per_class[name] == (pytest.approx(of_class[0]), pytest.approx(of_class[1]), objects)
        assert list(metrics.per_class_by_size[name].values()) == pytest.approx(of_class[3:6])
    assert metrics.per_class["unicorn"] == (-1, -1, 0)


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


def pycocotools_metrics(results):
    """The twelve numbers, and AP and AP50 of each class, by pycocotools."""
    evaluation = run_pycocotools(coco_ground_truth(results), results)
    precision = evaluation.eval["precision"][:, :, :, 0, -1]
    per_class = {}
    for column, id_ in enumerate(evaluation.params.catIds):
        values = (precision[:, :, column], precision[0, :, column])
        per_class[str(id_)] = tuple(float(part[part > -1].mean()) if (part > -1).any() else -1 for part in values)
    return evaluation.stats.tolist(), per_class


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
    monkeypatch.setattr(matching, "PAIRS_AT_A_TIME", pairs_at_a_time)
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
    none, areas = np.zeros(2, dtype=bool), np.full(2, 100.0)
    sample = Sample(1, Path("1.jpg"), 20, 20, np.array(objects, float), np.ones(2, int), none, areas, none)
    dataset = Dataset("two", (Category(1, 1, "1"),), (sample,), Problems("two"))
    results = coco_results(dataset, [0], [detections_of((0.9, 1, BETWEEN), (0.8, 1, RIGHT))])
    metrics = coco_ap(results)
    assert metrics.statistics["AP50"] == pytest.approx(ap50)
    assert list(metrics.statistics.values()) == pycocotools_metrics(results)[0]


def test_results_have_the_ids_of_the_data_set_and_xywh(tmp_path):
    """The data set has no label 80."""
    dataset = load(tmp_path, random_annotations(np.random.default_rng(15)))
    rows = (0.75, 2, (1.5, 2.25, 11.5, 22.25)), (0.5, 80, (0, 0, 640, 480)), (0.25, 1, (3, 4, 5, 6))
    results = coco_results(dataset, [4, 1], [detections_of(), detections_of(*rows)])
    assert len(results) == 2
    assert list(results) == [
        {"image_id": 3, "category_id": 17, "bbox": [1.5, 2.25, 10, 20], "score": 0.75},
        {"image_id": 3, "category_id": 3, "bbox": [3, 4, 2, 2], "score": 0.25},
    ]


@pytest.mark.parametrize("count", [0, 1, 2, 7])
@pytest.mark.parametrize("around", [[], [detections_of()]])
def test_what_is_written_is_what_there_is(tmp_path, count, around):
    rng = np.random.default_rng(19)
    found = detections_of(*((rng.random(), rng.integers(1, 4), rng.uniform(0, 640, 4)) for _ in range(count)))
    images = [*around, found, *around, found, *around]
    results = coco_results(load(tmp_path, random_annotations(rng)), list(range(len(images))), images)
    path = tmp_path / "detections.json"
    path.write_text("former")
    if count:
        with full_disk(at=10), pytest.raises(UserError, match="its former version is whole"):
            results.write(path)
        assert path.read_text() == "former"
    results.write(path)
    written = json.loads(path.read_text())
    assert written == list(results) and len(written) == len(results) == 2 * count
    assert [row["score"] for row in written] == 2 * found["scores"].tolist()
    corners = [[round(value, 3) for value in box[:2]] for box in found["boxes"].tolist()]
    assert [row["bbox"][:2] for row in written] == 2 * corners
    assert [path.name for path in tmp_path.iterdir() if "detections" in path.name] == ["detections.json"]


def test_table_and_json_have_each_number_and_each_class(tmp_path):
    rng = np.random.default_rng(18)
    annotations = random_annotations(rng)
    metrics = evaluate(load(tmp_path, annotations), random_detections(rng, annotations))
    more = {"one": dict.fromkeys(metrics.per_class, 0.25), "two": dict.fromkeys(metrics.per_class, -1)}
    (heading, *plain), (wider_heading, *wider) = (
        table.split("\n\n")[1].splitlines() for table in (metrics.table(), metrics.table(more))
    )
    assert [(row.split()[0], float(row.split()[-1])) for row in metrics.table().split("\n\n")[0].splitlines()[1:]] == [
        (name, pytest.approx(value, abs=6e-4)) for name, value in metrics.statistics.items()
    ]
    assert [row.split() for row in plain] == [
        [name, str(objects), f"{ap:.3f}", f"{ap50:.3f}"] for name, (ap, ap50, objects) in metrics.per_class.items()
    ]
    assert [row.split() for row in wider] == [[*row.split(), "0.250", "-1.000"] for row in plain]
    assert wider_heading.split() == [*heading.split(), "one", "two"]
    content = json.loads(json.dumps(metrics.as_json()))
    per_class = {
        name: {"AP": ap, "AP50": ap50, "objects": objects} | metrics.per_class_by_size[name]
        for name, (ap, ap50, objects) in metrics.per_class.items()
    }
    assert content == metrics.statistics | {"per_class": per_class}
