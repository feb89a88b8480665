"""The figures, advice and sheet of samples of python -m ssd300_vgg16.data inspect."""

import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from small_data import shapes, shapes_folder
from yolo_files import sideways

from ssd300_vgg16.boxes import iou
from ssd300_vgg16.data.dataset import Category, Dataset, Problems, Sample
from ssd300_vgg16.draw import label_colour
from ssd300_vgg16.inspection import figures
from ssd300_vgg16.inspection import report as inspection_text
from ssd300_vgg16.inspection.figures import Candidate, ClassCount, InputObjects, Marked
from ssd300_vgg16.inspection.page import _classes, _fit_table
from ssd300_vgg16.inspection.pictures import MARGIN, SIDE, choose_samples, draw_marked, draw_sample
from ssd300_vgg16.inspection.report import advice, tile_advice
from ssd300_vgg16.inspection.split import Fit, check_images, read_checked
from ssd300_vgg16.network.variants import SSD300_COCO, default_boxes
from ssd300_vgg16.report.html_page import node, static_page

CATEGORIES = (Category(1, 10, "cat"), Category(2, 20, "dog"), Category(3, 30, "owl"))


def sample(number, objects, height=100, width=200, path="x.jpg", crowd=(), difficult=()):
    """objects: rows of x1, y1, x2, y2, label; crowd, difficult: which of them are."""
    table = np.array(objects, dtype=np.float64).reshape(-1, 5)
    rows = np.arange(len(table))
    boxes, labels = table[:, :4], table[:, 4].astype(np.int64)
    crowd, difficult = np.isin(rows, crowd), np.isin(rows, difficult)
    return Sample(number, path, height, width, boxes, labels, crowd, np.zeros(len(table)), difficult)


def dataset(*samples, categories=CATEGORIES):
    return Dataset("made by hand", categories, samples, Problems("made by hand"))


@pytest.fixture
def by_hand():
    return dataset(
        sample(1, [(20, 10, 60, 50, 1), (-30, 0, 100, 100, 1), (0, 0, 200, 100, 2)], crowd=[2], difficult=[0]),
        sample(2, []),
        sample(3, [(50, 50, 50, 60, 1), (500, 0, 600, 50, 2), (0, 0, 10, 10, 2)], height=100, width=100),
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return shapes_folder(tmp_path_factory.mktemp("data"), 8, 3)


def test_objects_are_those_that_training_sees_at_the_input(by_hand, folder):
    for data in (by_hand, shapes(folder, "train")):
        objects = figures.objects_at_input(data, 512)
        for index, one in enumerate(data.samples):
            boxes, labels = one.objects(one.height, one.width)
            scale = np.array([512 / one.width, 512 / one.height] * 2)
            np.testing.assert_allclose(objects.boxes[objects.images == index], boxes * scale, rtol=1e-5)
            np.testing.assert_array_equal(objects.labels[objects.images == index], labels)
    objects = figures.objects_at_input(by_hand, 300)
    assert (objects.images.tolist(), objects.labels.tolist()) == ([0, 0, 2], [1, 1, 2])
    np.testing.assert_allclose(objects.sides, [np.sqrt(60 * 120), np.sqrt(150 * 300), 30], rtol=1e-6)
    np.testing.assert_allclose(objects.ratios, [0.5, 0.5, 1])


def test_contents_are_counted(by_hand):
    found = figures.contents(by_hand, figures.objects_at_input(by_hand, 300))
    assert (found.images, found.images_without_objects, found.objects) == (3, 1, 3)
    assert (found.difficult, found.crowds, found.flat) == (1, 1, 2)
    assert found.sizes == [((200, 100), 2), ((100, 100), 1)]
    assert (found.median_per_image, found.max_per_image) == (1, 2)
    text = inspection_text.describe_contents(found)
    for words in ("3, 1 of them without", "1 difficult", "1 crowds", "2 of no area", "most often 200 x 100 (2)"):
        assert words in text


def test_classes_are_counted_by_objects_and_images(by_hand):
    rows = figures.class_counts(by_hand, figures.objects_at_input(by_hand, 300))
    assert rows == [ClassCount(1, "cat", 2, 1), ClassCount(2, "dog", 1, 1), ClassCount(3, "owl", 0, 0)]


@pytest.mark.parametrize(
    ("rows", "end"),
    [
        ([("cat", 2), ("dog", 1), ("owl", 0)], "  classes             3: cat 2, dog 1; without objects: owl"),
        ([(f"class {n}", 200 - n) for n in range(1, 131)], "class 9 191, ..., class 130 70"),
        (
            [("a name\nof $two$ lines, which goes on and on", 1), ("\x1b[31mred", 0)],
            "2: a name?of $two$ lines, whic... 1; without objects: ?[31mred",
        ),
    ],
)
def test_classes_are_told_in_a_line(rows, end):
    counts = [ClassCount(label, name, objects, 1) for label, (name, objects) in enumerate(rows)]
    assert inspection_text.describe_classes(counts).endswith(end)


def test_classes_that_train_has_no_object_of():
    train, val = (
        [ClassCount(label, name, objects, objects) for label, (name, objects) in enumerate(counts.items(), start=1)]
        for counts in ({"Cat": 5, "dog": 0, "owl": 1}, {"cat": 1, "dog": 2, "emu": 3, "fox": 0})
    )
    assert figures.unseen_classes(train, val) == ["dog", "emu"]


def random_objects(count, images, largest=120.0, spread=250.0):
    rng = np.random.default_rng(0)
    corners, sides = rng.uniform(0, spread, (count, 2)), rng.uniform(2, largest, (count, 2))
    boxes = np.clip(np.concatenate((corners, corners + sides), axis=1), 0, 300).astype(np.float32)
    return InputObjects(np.sort(rng.integers(0, images, count)), rng.integers(1, 4, count), boxes)


def test_best_iou_is_that_of_every_pair():
    objects, boxes = random_objects(37, 5), default_boxes(SSD300_COCO)
    expected = iou(objects.boxes, boxes[::7]).max(axis=1)
    np.testing.assert_array_equal(figures.best_iou(objects.boxes, boxes[::7]), expected)


def test_objects_that_lose_their_default_boxes():
    """The strategy, object by object: a default box has the best object above 0.5, forced ones the last that asks."""
    objects, boxes = random_objects(60, 4, largest=20.0, spread=60.0), default_boxes(SSD300_COCO)
    expected = []
    for image in range(4):
        overlap = iou(objects.boxes[objects.images == image], boxes)
        owners = {box: int(overlap[:, box].argmax()) for box in np.flatnonzero(overlap.max(axis=0) >= 0.5)}
        owners |= {int(row.argmax()): index for index, row in enumerate(overlap)}
        expected += [index not in owners.values() for index in range(len(overlap))]
    lost = figures.lost_objects(objects, boxes)
    assert lost.tolist() == expected and 0 < lost.sum() < 30


def test_table_by_size():
    sides, ious = [7.9, 8, 15, 256, 400], np.array([0.1, 0.5, 0.49, 0.7, 0.9])
    lost = np.array([True, False, True, False, False])
    table = _fit_table(Fit(of_size(*((side, side) for side in sides)), {COCO: ious}, lost, []), COCO)
    assert [["".join(cell.itertext()) for cell in row] for row in table.iter("tr")][1:] == [
        ["< 8", "1", "0.10", "0%", "1"],
        ["8 - 16", "2", "0.49", "50%", "1"],
        [">= 256", "2", "0.80", "100%", "0"],
        ["all", "5", "0.54", "60.0%", "2"],
    ]
    widths = [[bar.get("width") for bar in row.iter("rect")] for row in table.iter("tr")][1:-1]
    assert widths == [["0.00%", "50.00%"], ["50.00%", "50.00%"], ["100.00%", "0.00%"]]
    line = inspection_text.describe_fit(ious, lost, COCO)
    assert line.endswith("small with coco: 60.0% of the objects have one with IoU >= 0.5, 40.0% are learnt by none")


def test_a_sample_of_objects_has_whole_images():
    objects = random_objects(500, 100)
    some = figures.some_images(objects, 60, seed=0)
    assert 60 <= len(some) < 80
    for image in np.unique(some.images):
        np.testing.assert_array_equal(some.boxes[some.images == image], objects.boxes[objects.images == image])
    assert set(some.images) != set(figures.some_images(objects, 60, seed=1).images)
    assert figures.some_images(objects, 500, seed=0) is objects


COCO, VOC, FIT, LARGE = (
    Candidate(model, boxes, size, np.array([[0, 0, 20, 20], [0, 0, 60, 60]], dtype=np.float32))
    for model, boxes, size in (
        ("small", "coco", 300),
        ("small", "voc", 300),
        ("small", "fit", 300),
        ("large", "coco", 512),
    )
)


def of_size(*sizes):
    boxes = [(0, 0, width, height) for width, height in sizes]
    return InputObjects(np.zeros(len(sizes), int), np.ones(len(sizes), int), np.array(boxes, dtype=np.float32))


@pytest.mark.parametrize(
    ("shape", "ious", "lost", "expected"),
    [
        ((50, 50), {COCO: [0.9] * 4, VOC: [0.9] * 4}, 0, []),
        ((5, 5), {COCO: [0.1, 0.1, 0.9, 0.9]}, 0, ["50% of .* small at 300 x 300; larger crops"]),
        (
            (5, 5),
            {COCO: [0.1, 0.1, 0.9, 0.9], LARGE: [0.9] * 4},
            0,
            ["small .*--model large --default-boxes coco .* 100%"],
        ),
        ((200, 40), {COCO: [0.1, 0.1, 0.9, 0.9]}, 0, ["longer than 3 to 1"]),
        ((90, 90), {COCO: [0.4, 0.4, 0.9, 0.9]}, 0, ["between those of the default boxes$"]),
        ((50, 50), {COCO: [0.4, 0.9, 0.9, 0.9], VOC: [0.9] * 4}, 0, ["25% of", "voc fits 100% .*coco 75%: voc is"]),
        ((50, 50), {COCO: [0.9] * 4, VOC: [0.4, 0.9, 0.9, 0.9]}, 0, []),
        ((50, 50), {COCO: [0.9] * 100, FIT: [0.94] * 100}, 0, []),
        ((50, 50), {COCO: [0.7] * 100, VOC: [0.73] * 100, FIT: [0.76] * 100}, 0, []),
        ((50, 50), {COCO: [0.7] * 100, VOC: [0.73] * 100, FIT: [0.79] * 100}, 0, ["fit: .* 0.79, .* 0.73: fit is the"]),
        (
            (50, 50),
            {COCO: [0.9] * 96 + [0.4] * 4, VOC: [0.9] * 99 + [0.4], FIT: [0.92] * 100},
            0,
            ["voc is the better"],
        ),
        ((50, 50), {COCO: [0.9] * 96 + [0.4] * 4, VOC: [0.4] * 100, FIT: [0.99] * 100}, 0, ["fit is the better"]),
        ((50, 50), {COCO: [0.9] * 4}, 1, ["25% of the objects are not learnt"]),
    ],
)
def test_advice_follows_from_the_figures(shape, ious, lost, expected):
    ious = {candidate: np.array(values) for candidate, values in ious.items()}
    count = len(ious[COCO])
    lines = advice(of_size(*[shape] * count), ious, np.arange(count) < lost, COCO)
    assert len(lines) == len(expected)
    for line, pattern in zip(lines, expected, strict=True):
        assert re.search(pattern, line)


@pytest.mark.parametrize(
    ("side", "size", "advised"),
    [
        (60, (4000, 3000), 512),  # 40 pixels at the input on tiles of 519: the smallest default box has 20
        (20, (4000, 3000), 160),
        (8, (4000, 3000), 128),  # not shown at more than about twice its size
        (80, (900, 900), None),  # on tiles of more than half the image
        (400, (4000, 3000), None),
    ],
)
def test_tiles_are_advised_where_most_objects_are_too_small(side, size, advised):
    width, height = size
    objects = [(10, 10, 10 + side, 10 + side, 1)] * 3 + [(10, 10, 900, 900, 1)] * 2
    data = dataset(sample(1, objects, height=height, width=width))
    lines = tile_advice(figures.objects_at_input(data, 300), data.samples, COCO, "bash train.sh --data-path D")
    assert len(lines) == (advised is not None)
    if advised:
        assert f" on tiles of {advised} pixels " in lines[0] and f"D --tiles {advised} (" in lines[0]


@pytest.mark.parametrize("seed", range(5))
def test_samples_show_every_class_that_they_can(seed):
    images = np.concatenate((np.arange(300), np.arange(100), [5, 200]))
    labels = np.repeat([1, 2, 3, 4], (300, 100, 1, 1))
    objects = InputObjects(images, labels, np.zeros((len(images), 4), np.float32))
    chosen = choose_samples(objects, 300, 6, seed)
    assert len(set(chosen)) == 6 and {5, 200} <= set(chosen)
    assert chosen == choose_samples(objects, 300, 6, seed) != choose_samples(objects, 300, 6, seed + 1)
    assert sorted(choose_samples(objects.of_images(np.arange(4)), 4, 6, seed)) == [0, 1, 2, 3]


def test_pictures_have_the_boxes():
    grey = np.full((100, 200, 3), 90, np.uint8)
    one = sample(1, [(20, 10, 60, 50, 1), (100, 20, 180, 80, 2)], path=Path("a.jpg"), crowd=[1])
    picture = np.array(draw_sample(one, grey, {1: "cat", 2: "dog"}))
    assert picture.shape == (SIDE // 2, SIDE, 3)
    solid, dashed = ((picture == label_colour(label)).all(-1) for label in (1, 2))
    assert solid[:, round(20 * SIDE / 200) : round(60 * SIDE / 200)].any(axis=0).all()
    row = dashed[np.argmax(dashed[:, SIDE // 2 :].sum(axis=1)), SIDE // 2 : round(180 * SIDE / 200)]
    assert 0.3 < row.mean() < 0.8


def test_boxes_beyond_the_image_are_seen():
    """The picture is as wide as the box and the image together, with a margin."""
    marked = Marked(0, np.array([[-100.0, 20, 50, 80]]), np.array([1]))
    picture = np.array(draw_marked(np.full((100, 200, 3), 90, np.uint8), marked))
    assert picture.shape[0] == round(100 * SIDE / (200 + 100 + MARGIN))
    columns = np.flatnonzero((picture == label_colour(1)).all(-1).any(axis=0))
    assert columns[[0, -1]] == pytest.approx([MARGIN * SIDE / 308, (MARGIN + 150) * SIDE / 308], abs=2)


def test_wrong_boxes_are_marked_by_kind():
    data = dataset(
        sample(1, [(20, 10, 60, 50, 1), (-30, 0, 100, 100, 2)]),
        sample(2, []),
        sample(3, [(50, 50, 50, 60, 1), (500, 0, 600, 50, 2), (0, 0, 250, 10, 3), (0, -9, 10, 10, 1)]),
    )
    found = {
        kind: [(each.image, each.labels.tolist(), each.boxes[0].tolist()) for each in marked]
        for kind, marked in figures.marked_faults(data).items()
    }
    assert found == {
        "box of no area": [(2, [1], [50, 50, 50, 60])],
        "box outside the image": [(2, [2], [500, 0, 600, 50])],
        "box beyond the image": [(0, [2], [-30, 0, 100, 100]), (2, [3, 1], [0, 0, 250, 10])],
    }


def test_lost_objects_are_marked_in_pixels_of_their_images():
    near = [(60.0, 60.0, 64.0, 64.0, 1)] * 3
    data = dataset(sample(1, [(0, 0, 100, 100, 1)]), sample(2, near[:2]), sample(3, near, height=300, width=600))
    objects = figures.objects_at_input(data, 300)
    marked = figures.marked_lost(data, objects, figures.lost_objects(objects, default_boxes(SSD300_COCO)), 300)
    assert [(each.image, len(each.labels)) for each in marked] == [(2, 2), (1, 1)]
    np.testing.assert_allclose(marked[0].boxes, [near[0][:4]] * 2, rtol=1e-5)


def test_files_that_are_not_as_annotated_are_named(folder, tmp_path):
    data = shapes(folder, "train")
    (tmp_path / "cut.jpg").write_bytes(data.samples[0].path.read_bytes()[:2000])
    first, second, third = data.samples[:3]
    turned = replace(second, height=second.width, width=second.height)
    messages, rotations = zip(*check_images([replace(first, path=tmp_path / "cut.jpg"), turned, third]), strict=True)
    assert "cut.jpg: the JPEG image is truncated" in messages[0]
    size = f"{second.width} x {second.height} pixels, by the annotations {second.height} x {second.width}, as if turned"
    assert messages[1].startswith(f"{second.path}: {size}")
    assert messages[2] is None
    assert rotations == (None, None, None)


@pytest.mark.parametrize("upright", [True, False])
def test_rotations_are_named_where_they_are_not_applied(tmp_path, upright):
    path = tmp_path / "a.jpg"
    sideways(path)
    height, width = (100, 50) if upright else (50, 100)
    right = replace(sample(1, [], height, width, path), upright=upright)
    wrong = replace(right, height=width, width=height)
    image, finding = read_checked(right)
    assert image.shape == (height, width, 3)
    assert finding == (None, None if upright else f"{path} (orientation 6)")
    image, finding = read_checked(wrong)
    if upright:
        assert "as if turned" in finding[0]
    else:
        assert image.shape == (100, 50, 3) and finding == (None, None)  # which is what was meant


def test_any_name_can_be_written_and_becomes_no_markup():
    page = static_page("inspection", "\udcff<b>", [node("p", "\udcff<b>", title='"><b>')])
    assert b"<title>?&lt;b&gt;</title>" in page.encode()
    assert b'<p title="&quot;&gt;<b&gt;">&#56575;&lt;b&gt;</p>' in page.encode()


def test_a_row_for_each_class_of_either_split():
    train = SimpleNamespace(split="train", classes=[ClassCount(1, "cat", 6, 3), ClassCount(2, "cat", 2, 1)])
    val = SimpleNamespace(split="val", classes=[ClassCount(2, "owl", 1, 1), ClassCount(1, "Cat", 3, 2)])
    rows = [[cell.text or cell[-1].tail for cell in row] for row in _classes([train, val], []).iter("tr")][1:]
    assert rows == [
        ["cat", "6", "3", "75.0%", "3", "2", "75.0%"],
        ["cat", "2", "1", "25.0%", "0", "0", "0.0%"],
        ["owl", "0", "0", "0.0%", "1", "1", "25.0%"],
    ]
