"""VOC's AP: cases worked out by hand, and an implementation of the definition that goes box by box."""

import json
from pathlib import Path

import numpy as np
import pytest
from coco_files import detections_of

from ssd300_vgg16.boxes import area, iou
from ssd300_vgg16.data.dataset import Category, Dataset, Problems, Sample
from ssd300_vgg16.metrics.coco_ap import coco_ap
from ssd300_vgg16.metrics.coco_results import coco_results
from ssd300_vgg16.metrics.voc_ap import voc_ap

CATEGORIES = (Category(1, 1, "cat"), Category(2, 2, "dog"), Category(5, 5, "unicorn"))
BOX = (0, 0, 10, 10)
FAR = (500, 500, 510, 510)


def sample(number, objects):
    """An image with objects (label, box, difficult)."""
    labels, boxes, difficult = zip(*objects, strict=True) if objects else ((), (), ())
    boxes, none = np.array(boxes, dtype=np.float64).reshape(-1, 4), np.zeros(len(labels), dtype=bool)
    columns = boxes, np.array(labels, dtype=np.int64), none, area(boxes), np.array(difficult, dtype=bool)
    return Sample(number, Path(f"{number}.jpg"), 600, 600, *columns)


def dataset_of(*images):
    samples = tuple(sample(number, objects) for number, objects in enumerate(images, start=1))
    return Dataset("made up", CATEGORIES, samples, Problems("made up"), kind="voc")


def voc_of(images, rows):
    return voc_ap(dataset_of(*images), list(range(len(images))), [detections_of(*of_image) for of_image in rows])


CAT, DIFFICULT_CAT = (1, BOX, False), (1, BOX, True)
CATS = [(1, (20 * k, 0, 20 * k + 10, 10), False) for k in range(10)]


def at(k):
    return CATS[k][1]


@pytest.mark.parametrize(
    ("objects", "rows", "expected"),
    [
        # Found, and nothing else: precision 1 up to recall 1.
        ([CAT], [(0.9, 1, BOX)], (1, 1, 1)),
        ([CAT], [], (0, 0, 1)),
        ([CAT], [(0.9, 1, FAR)], (0, 0, 1)),
        # A second detection of the same object is false, whatever its score: after the true one it changes nothing,
        # since recall is at 1 then.
        ([CAT], [(0.9, 1, BOX), (0.8, 1, BOX)], (1, 1, 1)),
        # The false one comes first: precision 1/2 at all recalls.
        ([CAT], [(0.8, 1, BOX), (0.9, 1, FAR)], (1 / 2, 1 / 2, 1)),
        # True, false (twice the same object), true of 2: precision 1, 1/2, 2/3 at recalls 1/2, 1/2, 1.
        # Area: 1/2 * 1 + 1/2 * 2/3. At 11 points: 1 at the recalls 0 to 0.5, 2/3 at 0.6 to 1.
        (CATS[:2], [(0.9, 1, at(0)), (0.8, 1, at(0)), (0.7, 1, at(1))], (1 / 2 + 1 / 3, (6 + 5 * 2 / 3) / 11, 2)),
        # False, true, true, of 4: precisions 0, 1/2, 2/3; the envelope is 2/3 up to recall 1/2, and 0 from there on.
        # 11 points: 2/3 at the recalls 0 to 0.5, 0 above.
        (CATS[:4], [(0.9, 1, FAR), (0.8, 1, at(0)), (0.7, 1, at(1))], (1 / 3, 6 * (2 / 3) / 11, 4)),
        # 3 of 10 objects, found first: precision 1 at the recalls 0, 0.1, 0.2 and 0.3.
        (CATS, [(0.9, 1, at(k)) for k in range(3)], (0.3, 4 / 11, 10)),
        # A difficult object is not to be found, and what finds it counts for nothing, also when two do.
        ([DIFFICULT_CAT], [(0.9, 1, BOX)], (-1, -1, 0)),
        ([DIFFICULT_CAT, CATS[1]], [(0.9, 1, BOX), (0.8, 1, BOX), (0.7, 1, at(1))], (1, 1, 1)),
        # IoU of exactly 0.5 is enough: 50 of 100. A little less is not.
        ([CAT], [(0.9, 1, (0, 0, 10, 5))], (1, 1, 1)),
        ([CAT], [(0.9, 1, (0, 0, 10, 4.99))], (0, 0, 1)),
        # Another class is no help, and no harm.
        ([CAT], [(0.9, 2, BOX)], (0, 0, 1)),
        ([CAT, (2, BOX, False)], [(0.9, 2, BOX), (0.8, 1, BOX)], (1, 1, 1)),
        # A detection takes the object it overlaps most, taken or not: here the first one twice (IoU 1 and 0.9), though
        # the other (IoU 0.6 with it) is free.
        ([CAT, (1, (0, 0, 10, 6), False)], [(0.9, 1, BOX), (0.8, 1, (0, 0, 10, 9))], (1 / 2, 6 / 11, 2)),
        # Of two equal objects the first, so the second is never found: precision 1, 1/2 at recall 1/2.
        ([CAT, CAT], [(0.9, 1, BOX), (0.8, 1, BOX)], (1 / 2, 6 / 11, 2)),
        # Of equal objects the difficult one comes first and takes all.
        ([DIFFICULT_CAT, CAT], [(0.9, 1, BOX), (0.8, 1, BOX)], (0, 0, 1)),
        # Equal scores stay in their order: true, then false.
        ([CAT], [(0.5, 1, BOX), (0.5, 1, FAR)], (1, 1, 1)),
        ([CAT], [(0.5, 1, FAR), (0.5, 1, BOX)], (1 / 2, 1 / 2, 1)),
    ],
)
def test_worked_cases(objects, rows, expected):
    assert voc_of([objects], [rows]).per_class["cat"] == pytest.approx(expected)


def test_means_are_over_the_classes_that_have_objects():
    metrics = voc_of([[CAT, (2, FAR, False), (5, BOX, True)]], [[(0.9, 1, BOX), (0.8, 5, BOX), (0.7, 77, BOX)]])
    assert metrics.per_class == {"cat": (1, 1, 1), "dog": (0, 0, 1), "unicorn": (-1, -1, 0)}
    assert (metrics.mean_ap, metrics.mean_ap_07) == (0.5, 0.5)
    nothing = voc_of([[]], [[(0.9, 1, BOX)]])
    assert (nothing.mean_ap, nothing.mean_ap_07) == (-1, -1)


def test_only_the_images_at_the_positions_count():
    """A false one in an image without objects comes between: precisions 1, 1/2, 2/3."""
    dataset = dataset_of([CAT], [CAT], [], [CAT])
    found = [detections_of((score, 1, BOX)) for score in (0.9, 0.8, 0.7)]
    expected = (1 / 2 + 1 / 3, (6 + 5 * 2 / 3) / 11, 2)
    assert voc_ap(dataset, [3, 2, 0], found).per_class["cat"] == pytest.approx(expected)


def overlap(a, b):
    return float(iou(np.array([a], dtype=float), np.array([b], dtype=float))[0, 0])


def box_by_box(images, detections, label):
    """(Area, 11 points) by the definition, one detection after the other."""
    rows = [
        (score, number, box)
        for number, of_image in enumerate(detections)
        for score, found, box in of_image
        if found == label
    ]
    to_find = sum(found == label and not difficult for objects in images for found, _, difficult in objects)
    taken, true, false, curve = set(), 0, 0, []
    for _, number, box in sorted(rows, key=lambda row: -row[0]):  # stable
        best, most = None, -1
        for index, (of_class, other, _) in enumerate(images[number]):
            if of_class == label and overlap(box, other) > most:
                best, most = index, overlap(box, other)
        if most >= 0.5 and images[number][best][2]:
            continue
        if most >= 0.5 and (number, best) not in taken:
            taken.add((number, best))
            true += 1
        else:
            false += 1
        curve.append((true, true / (true + false)))
    eleven = sum(max([p for hits, p in curve if hits * 10 >= t * to_find], default=0) for t in range(11)) / 11
    area, recall = 0, 0
    for k, (hits, _) in enumerate(curve):
        area += (hits - recall) / to_find * max(p for _, p in curve[k:])
        recall = hits
    return area, eleven


@pytest.mark.parametrize("seed", range(4))
def test_equal_to_box_by_box_on_random_data(seed):
    """Boxes on a coarse grid and few scores: many ties, IoUs of exactly 0.5, duplicates; images without objects."""
    rng = np.random.default_rng(seed)

    def box():
        x, y = rng.integers(0, 4, 2) * 5
        return (int(x), int(y), int(x + rng.integers(1, 4) * 5), int(y + rng.integers(1, 4) * 5))

    images, detections = [], []
    for _ in range(40):
        objects = [(int(rng.integers(1, 3)), box(), bool(rng.random() < 0.3)) for _ in range(rng.integers(0, 6))]
        seen = [(label, around) for label, around, _ in objects for _ in range(rng.integers(0, 3))]
        seen += [(int(rng.integers(1, 3)), box()) for _ in range(rng.integers(0, 8))]
        images.append(objects)
        detections.append([(rng.integers(1, 9) / 8, *seen[index]) for index in rng.permutation(len(seen))])
    pairs = zip(detections, images, strict=True)
    assert [overlap(a, b) for rows, objects in pairs for *_, a in rows for _, b, _ in objects].count(0.5) > 3
    metrics = voc_of(images, detections)
    for name, label in (("cat", 1), ("dog", 2)):
        expected = box_by_box(images, detections, label)
        assert 0.05 < expected[0] < 0.95 and expected[0] != expected[1]
        assert metrics.per_class[name][:2] == pytest.approx(expected)


def test_table_and_json_hold_the_numbers():
    rows = [(0.9, 1, FAR), (0.8, 1, at(0)), (0.7, 1, at(1))]
    metrics = voc_of([CATS[:4], [(2, BOX, False)]], [rows, [(0.9, 2, BOX)]])
    # cats: 1/3 and 4/11, as above; dogs: 1.
    assert metrics.table().splitlines() == [
        "VOC mAP at IoU 0.5, area under the curve (2010 on): 0.667",
        "VOC mAP at IoU 0.5, 11 points (2007): 0.682",
    ]
    content = json.loads(json.dumps(metrics.as_json()))
    assert (content["mAP"], content["mAP_07"]) == pytest.approx((2 / 3, 15 / 22))
    assert content["per_class"]["cat"] == {"AP": pytest.approx(1 / 3), "AP_07": pytest.approx(4 / 11), "objects": 4}
    assert metrics.columns()["VOC07 AP"] == {"cat": pytest.approx(4 / 11), "dog": 1, "unicorn": -1}


@pytest.mark.parametrize(
    ("objects", "rows", "ap50", "count"),
    [
        # What finds the difficult object is ignored: precision 1 up to recall 1. If it counted as an object, AP50 would
        # still be 1; as a false one it would be 1/2.
        ([DIFFICULT_CAT, CATS[1]], [(0.9, 1, BOX), (0.8, 1, at(1))], 1, 1),
        # A difficult object that is not found costs nothing.
        ([DIFFICULT_CAT, CATS[1]], [(0.8, 1, at(1))], 1, 1),
        # A quarter of the difficult object has an IoU of 0.25 with it, and is false; of a crowd it would be a part.
        # Precisions 0, 1/2: AP50 1/2.
        ([DIFFICULT_CAT, CATS[1]], [(0.9, 1, (0, 0, 5, 5)), (0.8, 1, at(1))], 1 / 2, 1),
        ([DIFFICULT_CAT], [(0.9, 1, BOX)], -1, 0),
    ],
)
def test_coco_ignores_difficult_objects_at_their_ordinary_iou(objects, rows, ap50, count):
    metrics = coco_ap(coco_results(dataset_of(objects), [0], [detections_of(*rows)]))
    assert metrics.per_class["cat"][1:] == (pytest.approx(ap50, abs=1e-6), count)
    assert metrics.statistics["AP50"] == pytest.approx(ap50, abs=1e-6)


def test_results_of_data_sets_without_ids_of_their_own_name_the_file():
    dataset = dataset_of([CAT], [CAT])
    assert list(coco_results(dataset, [1], [detections_of((0.5, 1, BOX))])) == [
        {"image_id": 2, "category_id": 1, "bbox": [0, 0, 10, 10], "score": 0.5, "file_name": "2.jpg"}
    ]
