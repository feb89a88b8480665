"""COCO's numbers against pycocotools on the same files."""

import json

import numpy as np
import pytest
from coco_files import (
    CATEGORIES,
    EMPTY_IMAGES,
    IMAGE_IDS,
    LABELS,
    load,
    pycocotools_of_files,
    random_annotations,
    random_detections,
    write,
)
from full_disk import full_disk

from ssd300_vgg16.errors import UserError
from ssd300_vgg16.metrics.coco_ap import STATISTICS, coco_ap
from ssd300_vgg16.metrics.coco_results import coco_results


def pycocotools_statistics(annotation_file, detections, folder, image_ids=IMAGE_IDS, category_ids=None):
    """The same of detections as the network gives them."""
    ids = {label: id_ for id_, label in LABELS.items()}
    rows = []
    for image_id, found in zip(IMAGE_IDS, detections, strict=True):
        for (x1, y1, x2, y2), score, label in zip(
            found["boxes"].tolist(), found["scores"].tolist(), found["labels"].tolist(), strict=True
        ):
            bbox = [x1, y1, x2 - x1, y2 - y1]
            rows.append({"image_id": image_id, "category_id": ids[label], "bbox": bbox, "score": score})
    (folder / "detections.json").write_text(json.dumps(rows))
    return pycocotools_of_files(annotation_file, folder / "detections.json", image_ids, category_ids)


def evaluate(dataset, detections, positions=None):
    positions = list(range(len(dataset.samples))) if positions is None else positions
    found = [detections[position] for position in positions]
    return coco_ap(coco_results(dataset, positions, found))


def assert_statistics(metrics, expected):
    assert list(metrics.statistics) == [name for name, *_ in STATISTICS]
    np.testing.assert_allclose(list(metrics.statistics.values()), expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("seed", range(5))
def test_equal_to_pycocotools_on_the_files(tmp_path, seed):
    rng = np.random.default_rng(seed)
    annotations = random_annotations(rng)
    detections = random_detections(rng, annotations)
    metrics = evaluate(load(tmp_path, annotations), detections)
    expected = pycocotools_statistics(tmp_path / "annotations.json", detections, tmp_path)
    assert 0.1 < expected[0] < 0.9
    assert_statistics(metrics, expected)
    for id_, name in CATEGORIES:
        of_class = pycocotools_statistics(tmp_path / "annotations.json", detections, tmp_path, category_ids=[id_])
        objects = sum(entry["category_id"] == id_ and not entry["iscrowd"] for entry in annotations)
        assert metrics.per_class[name] == (pytest.approx(of_class[0]), pytest.approx(of_class[1]), objects)
    assert metrics.per_class["unicorn"] == (-1, -1, 0)


@pytest.mark.parametrize("positions", [[0, 2, 3], [5], [4, 1, 0, 5]])
def test_some_of_the_images(tmp_path, positions):
    rng = np.random.default_rng(10)
    annotations = random_annotations(rng)
    detections = random_detections(rng, annotations)
    metrics = evaluate(load(tmp_path, annotations), detections, positions)
    ids = [IMAGE_IDS[position] for position in positions]
    assert_statistics(
        metrics, pycocotools_statistics(tmp_path / "annotations.json", detections, tmp_path, image_ids=ids)
    )


def test_an_annotation_of_id_0_counts_as_any_other(tmp_path):
    """pycocotools takes a match with annotation 0 for no match: its numbers of such a file are too low."""
    rng = np.random.default_rng(11)
    annotations = [{**entry, "iscrowd": 0} for entry in random_annotations(rng)]
    detections = found_exactly(annotations)
    from_zero = [{**entry, "id": entry["id"] - 1} for entry in annotations]
    path = write(tmp_path, from_zero)
    too_low = pycocotools_statistics(path, detections, tmp_path)
    expected = pycocotools_statistics(write(tmp_path, annotations), detections, tmp_path)
    assert too_low[0] < expected[0]
    assert_statistics(evaluate(load(tmp_path, from_zero), detections), expected)


def found_exactly(annotations):
    """Each object that is no crowd, and nothing else, with falling scores."""
    detections = []
    for image_id in IMAGE_IDS:
        objects = [entry for entry in annotations if entry["image_id"] == image_id and not entry["iscrowd"]]
        boxes = [[x, y, x + w, y + h] for x, y, w, h in (entry["bbox"] for entry in objects)]
        detections.append(
            {
                "boxes": np.array(boxes, dtype=np.float32).reshape(-1, 4),
                "scores": np.linspace(0.9, 0.5, len(objects), dtype=np.float32),
                "labels": np.array([LABELS[entry["category_id"]] for entry in objects], dtype=np.int64),
            }
        )
    return detections


def large_objects(rng):
    """No crowds, and every box has area: each can be found."""
    annotations = random_annotations(rng)
    return [{**entry, "iscrowd": 0, "bbox": [5.0 * i, 5.0, 40.0, 50.0]} for i, entry in enumerate(annotations)]


def test_perfect_detections(tmp_path):
    annotations = large_objects(np.random.default_rng(12))
    metrics = evaluate(load(tmp_path, annotations), found_exactly(annotations))
    for name in ("AP", "AP50", "AP75", "AR_100"):
        assert metrics.statistics[name] == pytest.approx(1), name
    assert {name: values[:2] for name, values in metrics.per_class.items()} == {
        "dog": (pytest.approx(1), pytest.approx(1)),
        "cat": (pytest.approx(1), pytest.approx(1)),
        "horse": (pytest.approx(1), pytest.approx(1)),
        "unicorn": (-1, -1),
    }


NOTHING = {"boxes": np.empty((0, 4), np.float32), "scores": np.empty(0, np.float32), "labels": np.empty(0, np.int64)}


def test_no_detections_at_all(tmp_path):
    dataset = load(tmp_path, large_objects(np.random.default_rng(13)))
    metrics = evaluate(dataset, [NOTHING] * len(IMAGE_IDS))
    assert metrics.statistics["AP"] == metrics.statistics["AP50"] == metrics.statistics["AR_100"] == 0
    assert metrics.per_class["dog"][:2] == (0, 0)
    assert metrics.per_class["unicorn"] == (-1, -1, 0)


def test_images_without_objects_only(tmp_path):
    """There is nothing to find: COCO's tool answers -1."""
    rng = np.random.default_rng(14)
    annotations = random_annotations(rng)
    position = IMAGE_IDS.index(EMPTY_IMAGES[0])
    metrics = evaluate(load(tmp_path, annotations), random_detections(rng, annotations), [position])
    assert set(metrics.statistics.values()) == {-1}
    assert set(metrics.per_class.values()) == {(-1, -1, 0)}


def test_results_have_the_ids_of_the_data_set_and_xywh(tmp_path):
    dataset = load(tmp_path, large_objects(np.random.default_rng(15)))
    found = {
        "boxes": np.array([[1.5, 2.25, 11.5, 22.25], [0, 0, 640, 480], [3, 4, 5, 6]], dtype=np.float32),
        "scores": np.array([0.75, 0.5, 0.25], dtype=np.float32),
        # The data set has no label 80.
        "labels": np.array([2, 80, 1]),
    }
    results = coco_results(dataset, [4, 1], [NOTHING, found])
    assert len(results) == 2
    assert list(results) == [
        {"image_id": 3, "category_id": 17, "bbox": [1.5, 2.25, 10, 20], "score": 0.75},
        {"image_id": 3, "category_id": 3, "bbox": [3, 4, 2, 2], "score": 0.25},
    ]


@pytest.mark.parametrize("count", [0, 1, 2, 7])
@pytest.mark.parametrize("around", [[], [NOTHING]])
def test_what_is_written_is_what_there_is(tmp_path, count, around):
    rng = np.random.default_rng(19)
    found = {
        "boxes": rng.uniform(0, 640, (count, 4)).astype(np.float32),
        "scores": rng.random(count).astype(np.float32),
        "labels": rng.integers(1, 4, count),
    }
    images = [*around, found, *around, found, *around]
    results = coco_results(load(tmp_path, large_objects(rng)), list(range(len(images))), images)
    path = tmp_path / "detections.json"
    path.write_text("what was there before")
    results.write(path)
    written = json.loads(path.read_text())
    assert written == list(results) and len(written) == len(results) == 2 * count
    assert [row["score"] for row in written] == 2 * found["scores"].tolist()
    corners = [[round(value, 3) for value in box[:2]] for box in found["boxes"].tolist()]
    assert [row["bbox"][:2] for row in written] == 2 * corners
    assert [path.name for path in tmp_path.iterdir() if "detections" in path.name] == ["detections.json"]


def test_a_full_disk_leaves_the_former_detections(tmp_path):
    """And nothing half-written."""
    rng = np.random.default_rng(20)
    annotations = random_annotations(rng)
    detections = random_detections(rng, annotations)
    results = coco_results(load(tmp_path, annotations), list(range(len(IMAGE_IDS))), detections)
    path = tmp_path / "detections.json"
    path.write_text("former")
    with full_disk(at=1000), pytest.raises(UserError, match="its former version is whole"):
        results.write(path)
    assert path.read_text() == "former"
    assert [path.name for path in tmp_path.iterdir() if "detections" in path.name] == ["detections.json"]


def test_labels_the_data_set_does_not_have_change_nothing(tmp_path):
    rng = np.random.default_rng(16)
    annotations = random_annotations(rng)
    dataset, detections = load(tmp_path, annotations), random_detections(rng, annotations)
    more = [
        {
            "boxes": np.concatenate((found["boxes"], found["boxes"])),
            "scores": np.concatenate((found["scores"], np.ones_like(found["scores"]))),
            "labels": np.concatenate((found["labels"], np.full_like(found["labels"], 80))),
        }
        for found in detections
    ]
    assert evaluate(dataset, more) == evaluate(dataset, detections)


@pytest.fixture
def metrics(tmp_path):
    rng = np.random.default_rng(18)
    annotations = random_annotations(rng)
    return evaluate(load(tmp_path, annotations), random_detections(rng, annotations))


def test_table_has_a_row_for_each_number_and_each_class(metrics):
    overall, classes = (part.splitlines()[1:] for part in metrics.table().split("\n\n"))
    assert [(row.split()[0], float(row.split()[-1])) for row in overall] == [
        (name, pytest.approx(value, abs=6e-4)) for name, value in metrics.statistics.items()
    ]
    assert len(overall) == 12
    assert [row.split() for row in classes] == [
        [name, str(objects), f"{ap:.3f}", f"{ap50:.3f}"] for name, (ap, ap50, objects) in metrics.per_class.items()
    ]
    assert {row.split()[0] for row in classes} == {"cat", "dog", "horse", "unicorn"}


def test_table_takes_more_columns_for_the_classes(metrics):
    more = {"one": dict.fromkeys(metrics.per_class, 0.25), "two": dict.fromkeys(metrics.per_class, -1)}
    plain, wider = (table.split("\n\n")[1].splitlines() for table in (metrics.table(), metrics.table(more)))
    assert [row.split() for row in wider[1:]] == [[*row.split(), "0.250", "-1.000"] for row in plain[1:]]
    assert wider[0].split() == [*plain[0].split(), "one", "two"]


def test_as_json_holds_the_same_numbers(metrics):
    content = json.loads(json.dumps(metrics.as_json()))
    assert {name: content[name] for name in metrics.statistics} == metrics.statistics
    assert content["per_class"] == {
        name: {"AP": ap, "AP50": ap50, "objects": objects} | metrics.per_class_by_size[name]
        for name, (ap, ap50, objects) in metrics.per_class.items()
    }
