"""report.html in a real browser: what it shows and counts, how it is used, and what it does not do."""

import json
from dataclasses import replace
from urllib.parse import quote

import numpy as np
import pytest
from browser import CHROMIUM
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from report_pages import HOSTILE_NAME, detections_page, evaluation_page, write_page

from ssd300_vgg16.data.dataset import Category, Sample
from ssd300_vgg16.data.images import read_image
from ssd300_vgg16.metrics.coco_results import CocoResults
from ssd300_vgg16.metrics.verification import coco_ground_truth

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium here")


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    """An evaluation's page, its results and metrics."""
    return evaluation_page(tmp_path_factory.mktemp("evaluated"))


@pytest.fixture(scope="module")
def detected(tmp_path_factory):
    """A page of detections: one, two, none and three on four images."""
    folder = tmp_path_factory.mktemp("detected")
    boxes = [(10 + 40 * n, 20, 40 + 40 * n, 80) for n in range(3)]
    files = {
        "b10.jpg": [(0.9, "dog", boxes[0])],
        "b2.jpg": [(0.8, "cat", boxes[0]), (0.3, "dog", boxes[1])],
        "c.jpg": [],
        "a.jpg": [(0.7, "cat", boxes[0]), (0.6, "cat", boxes[1]), (0.5, "dog", boxes[2])],
    }
    for name in files:
        Image.new("RGB", (200, 100), (200, 200, 200)).save(folder / name)
    return detections_page(folder, files)


NAMES = "[...document.querySelectorAll('.card .name')].map((name) => name.textContent)"
TALLY = (
    "Object.fromEntries([...document.querySelectorAll('#tally div')]"
    ".map((row) => [row.dataset.name, row.querySelector('dd').textContent]))"
)
BOXES = "document.querySelectorAll('.card rect.mark').length"


def sides(page, expression):
    """x, y, width and height of a rectangle in a page."""
    return page.js(f"(({{ x, y, width, height }}) => [x, y, width, height])({expression})")


def test_boxes_follow_the_slider_at_once(opened, detected):
    page = opened(detected)
    page.wait(f"{BOXES} === 6")
    assert page.js(TALLY) == {"detections": "6", "images with any": "3", "images without": "1"}
    page.set("threshold", 0.65)
    assert page.js(BOXES) == 3
    assert page.js(TALLY) == {"detections": "3", "images with any": "3", "images without": "1"}
    assert page.js("document.getElementById('threshold-value').textContent") == "0.65"


def test_boxes_lie_where_they_belong(opened, detected):
    """A picture of 200 x 100 in its frame, to half a pixel."""
    page = opened(detected, "query=b10")
    page.wait(f"{BOXES} === 1")
    box = sides(page, "document.querySelector('rect.mark').getBBox()")
    frame = sides(page, "document.querySelector('.frame').getBoundingClientRect()")
    scale = frame[2] / 200
    top = (frame[3] - 100 * scale) / 2
    assert box == pytest.approx([10 * scale, top + 20 * scale, 30 * scale, 60 * scale], abs=0.5)


KINDS = ["jpg", "png", "webp", "avif", "tif", "bmp", "ppm"]
MARKS = """[...document.querySelectorAll('.card')].map((card) => {
  const box = card.querySelector('rect.mark').getBoundingClientRect();
  return [card.querySelector('.name').textContent, box.left, box.top, box.right, box.bottom];
})"""


def turned_pictures(folder):
    """Pictures with a red block, one for each kind and EXIF orientation that it can have."""
    folder.mkdir()
    image = Image.new("RGB", (160, 100), (90, 120, 150))
    image.paste((255, 0, 0), (16, 12, 76, 42))
    for kind in KINDS:
        for orientation in range(1, 2 if kind in ("bmp", "ppm") else 9):
            exif = Image.Exif()
            exif[0x0112] = orientation
            image.save(folder / f"{orientation}.{kind}", exif=exif, quality=95)
    return sorted(folder.iterdir())


def red_block(pixels):
    """x1, y1, x2, y2 of what is red."""
    rows, columns = np.nonzero((pixels[..., 0] > 200) & (pixels[..., 1:].max(axis=2) < 60))
    return columns.min(), rows.min(), columns.max() + 1, rows.max() + 1


def assert_marks_lie_on_the_red(page, count, folder):
    page.wait(f"document.querySelectorAll('.card rect.mark').length === {count}")
    page.wait("[...document.images].every((image) => image.complete)")
    page.settle()
    page.screenshot(folder / "page.png")
    seen = np.asarray(Image.open(folder / "page.png").convert("RGB"))
    for name, *box in page.js(MARKS):
        x1, y1, x2, y2 = (round(side) for side in box)
        found = red_block(seen[y1 - 12 : y2 + 12, x1 - 12 : x2 + 12]) - np.array([12, 12, 12 + x2 - x1, 12 + y2 - y1])
        # The line and its rim cover the red along the edge.
        assert np.abs(found).max() <= 3, (name, found)


def evaluated_pictures(folder, samples, boxes):
    """The page of an evaluation that found all there is: a red block on each image."""
    boxes = np.array([[x1, y1, x2 - x1, y2 - y1] for x1, y1, x2, y2 in boxes], dtype=float)
    numbers, zeros, ones = np.arange(len(samples)), np.zeros(len(samples), int), np.ones(len(samples))
    return write_page(folder, CocoResults(samples, [Category(1, 1, "red")], numbers, zeros, boxes, ones, False))[0]


def sample_of(path, box, height, width, upright=False):
    none = np.zeros(1, dtype=bool)
    boxes = np.array([box], dtype=float)
    return Sample(0, path, height, width, boxes, np.ones(1, int), none, np.full(1, 1800.0), none, upright)


@pytest.mark.parametrize("upright", [False, True])
def test_boxes_lie_right_on_turned_photographs_that_were_evaluated(opened, tmp_path, upright):
    """Labels refer to the pixels as stored, or to the upright image; the page shows it upright."""
    paths = turned_pictures(tmp_path / "in")
    images = [read_image(path, upright) for path in paths]
    boxes = [red_block(image) for image in images]
    samples = [sample_of(*row, *image.shape[:2], upright) for *row, image in zip(paths, boxes, images, strict=True)]
    page = evaluated_pictures(tmp_path / "out", samples, boxes)
    assert_marks_lie_on_the_red(opened(page, "sort=name", height=3600), len(paths), tmp_path)


def test_boxes_lie_right_on_images_of_another_size_than_their_labels_say(opened, tmp_path):
    """One that was made smaller after labelling, stored lying or not; and one whose labels are of the upright image."""
    tmp_path.joinpath("in").mkdir()
    samples, boxes = [], []
    for name, orientation, scale, turned in (
        ("a", 1, 2, False),
        ("b", 6, 2, False),
        ("c", 6, 1, True),
        ("d", 1, 1, False),
    ):
        path, exif = tmp_path / "in" / f"{name}.jpg", Image.Exif()
        exif[0x0112] = orientation
        image = Image.new("RGB", (160, 100), (90, 120, 150))
        image.paste((255, 0, 0), (16, 12, 76, 42))
        image.save(path, exif=exif, quality=95)
        pixels = read_image(path, upright=turned)
        boxes.append([scale * side for side in red_block(pixels)])
        samples.append(sample_of(path, boxes[-1], *(scale * side for side in pixels.shape[:2])))
    page = opened(evaluated_pictures(tmp_path / "out", samples, boxes), "sort=name")
    assert_marks_lie_on_the_red(page, 4, tmp_path)


def test_boxes_lie_right_on_turned_photographs_that_were_detected_on(opened, tmp_path):
    """Detections refer to upright images; what browsers show otherwise, or not at all, is shown as a copy."""
    paths = turned_pictures(tmp_path / "in")
    files = {path.name: [(1, "red", red_block(read_image(path, upright=True)))] for path in paths}
    path = detections_page(tmp_path / "in", files, categories=["red"])
    page = opened(path, height=3600)
    assert_marks_lie_on_the_red(page, len(paths), tmp_path)
    assert len(list((path.parent / "report_images").iterdir())) == 3 * 7 + 8 + 1
    page.click(".card button")
    page.wait("view !== null")
    assert page.js("decodeURIComponent(document.querySelector('#viewer-list a').href)").endswith("/in/1.avif")


def test_a_large_copy_is_made_smaller(opened, tmp_path):
    Image.new("RGB", (5000, 100), (255, 0, 0)).save(tmp_path / "wide.tif")
    path = detections_page(tmp_path, {"wide.tif": [(0.9, "dog", (0, 0, 2500, 100))]})
    page = opened(path, "image=wide.tif")
    page.wait("view !== null")
    assert page.js("stageImage.naturalWidth") == 2048
    box = sides(page, "document.querySelector('#stage rect.mark').getBBox()")
    assert box[2] == pytest.approx(page.js("stageImage.getBoundingClientRect().width") / 2, abs=0.5)


def test_many_classes_have_colours_of_their_own(opened, detected):
    page = opened(detected)
    looks = page.js("Array.from({ length: 80 }, (_, number) => `${colourOf(number)} ${dashOf(number)}`)")
    assert len(set(looks)) == 80
    assert len(page.js("[...new Set(Array.from({ length: 20 }, (_, number) => colourOf(number)))]")) == 20


# What people see who lack a kind of cone: Machado, Oliveira and Fernandes 2009, on linear RGB.
SEEN = {
    "all": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.3039]],
}
# Ottosson's Oklab, in which distances are those that are seen: cones from linear RGB, and L, a, b from their roots.
CONES = [
    [0.41222147, 0.53633254, 0.05144599],
    [0.21190350, 0.68069955, 0.10739696],
    [0.08830246, 0.28171884, 0.62997870],
]
OKLAB = [
    [0.21045426, 0.79361779, -0.00407205],
    [1.97799850, -2.42859221, 0.45059371],
    [0.02590404, 0.78277177, -0.80867577],
]


def test_people_with_any_colour_blindness_tell_the_colours_apart(opened, detected):
    """As well as the first seven, which are Okabe and Ito's."""
    colours = opened(detected).js("COLOURS.map((one) => [1, 3, 5].map((at) => parseInt(one.slice(at, at + 2), 16)))")
    rgb = linear(colours)

    def nearest(count):
        distances = []
        for seen in SEEN.values():
            lab = np.cbrt(np.clip(rgb[:count] @ np.transpose(seen), 0, 1) @ np.transpose(CONES)) @ np.transpose(OKLAB)
            apart = np.linalg.norm(lab[:, None] - lab, axis=2)
            distances.append(apart[~np.eye(count, dtype=bool)].min())
        return min(distances)

    assert len(colours) == 20 and nearest(20) >= nearest(7) > 0.07


def test_filters(opened, detected):
    page = opened(detected)
    page.set("query", "B")
    assert page.js(NAMES) == ["b2.jpg", "b10.jpg"], "as people count"
    page.set("query", "nothing")
    assert page.js("document.querySelector('#gallery').textContent") == "No image is left: choose other filters."
    page.set("query", "")
    page.wait(f"{BOXES} === 6")
    page.click(".chip[data-class='0']")
    assert page.js(BOXES) == 3, "without dogs"
    assert page.js("document.querySelector('.chip[data-class=\"0\"]').getAttribute('aria-pressed')") == "false"


def test_sorting(opened, detected):
    page = opened(detected)
    for order, names in {
        "name": ["a.jpg", "b2.jpg", "b10.jpg", "c.jpg"],
        "few": ["c.jpg", "b10.jpg", "b2.jpg", "a.jpg"],
        "many": ["a.jpg", "b2.jpg", "b10.jpg", "c.jpg"],
        "sure": ["b10.jpg", "b2.jpg", "a.jpg", "c.jpg"],
        "unsure": ["b2.jpg", "a.jpg", "b10.jpg", "c.jpg"],
    }.items():
        page.set("sort", order, "change")
        assert page.js(NAMES) == names, order


def test_the_keyboard_is_enough(opened, detected):
    page = opened(detected)
    page.wait(f"{BOXES} === 6")
    page.js("document.querySelector('.card button').focus()")
    page.key("ArrowRight")
    page.key("Enter")
    shown = "document.getElementById('viewer-name').textContent"
    assert page.js("document.getElementById('viewer').open") and page.js(shown) == "b2.jpg"
    page.wait("document.querySelectorAll('#stage rect.mark').length === 2")
    page.key("ArrowRight")
    assert page.js(shown) == "b10.jpg"
    page.key("ArrowLeft")
    page.key("ArrowLeft")
    page.key("ArrowLeft")
    assert page.js(shown) == "a.jpg", "and not beyond it"
    page.wait("view !== null")
    page.key("+")
    assert page.js("view.zoom") == pytest.approx(1.5)
    page.key("0")
    assert page.js("view.zoom") == 1
    page.key("Escape")
    assert not page.js("document.getElementById('viewer').open")
    assert page.js("document.activeElement.title") == "a.jpg", "where one was"


def test_zoomed_boxes_stay_on_the_image(opened, detected):
    page = opened(detected, f"image={quote('b10.jpg')}")
    page.wait("view !== null")
    page.js("zoom(4, 100, 200)")
    box = sides(page, "document.querySelector('#stage rect.mark').getBBox()")
    left, top, width, _ = sides(page, "document.getElementById('stage-image').getBoundingClientRect()")
    stage, scale = sides(page, "stage.getBoundingClientRect()"), width / 200
    expected = [left - stage[0] + 10 * scale, top - stage[1] + 20 * scale, 30 * scale, 60 * scale]
    assert box == pytest.approx(expected, abs=0.5)


def test_a_link_restores_the_view(opened, evaluated):
    path, _, _ = evaluated
    page = opened(path)
    page.set("threshold", 0.6)
    page.set("iou", 0.7)
    page.set("query", "0")
    page.set("sort", "name", "change")
    page.set("show", "wrong", "change")
    page.click(".chip[data-class='1']")
    page.click("#marks input[value='label']")
    page.click(".card button")
    page.wait("location.hash.includes('image')")
    wanted = [TALLY, NAMES, "document.getElementById('viewer-name').textContent", "hashOf()"]
    other = opened(path, page.js("location.hash.slice(1)"))
    other.wait("viewer.open")
    assert [other.js(what) for what in wanted] == [page.js(what) for what in wanted]
    assert page.js("hashOf()").startswith("score=0.60&iou=0.70&off=1&query=0&sort=name&show=wrong&marks=")


@pytest.mark.parametrize(
    "hash_", ["score=9&iou=x&sort=constructor&off=77&image=none&tab=&pair=1", "%ff&=&#", "tab=toString"]
)
def test_a_broken_link_is_the_view_of_the_beginning(opened, evaluated, hash_):
    page = opened(evaluated[0], hash_)
    assert page.js("hashOf()") == ""


def test_no_name_does_anything(opened, tmp_path):
    names = [HOSTILE_NAME, "\"'><svg onload=alert(1)>.jpg", "a%20#?&.jpg", "&lt;b&gt;.jpg"]
    classes = ["</script><script>alert(1)</script>", "<b>bold</b>"]
    for name in names:
        Image.new("RGB", (40, 40)).save(tmp_path / name, "JPEG")
    rows = [(0.9, classes[0], (1, 1, 30, 30)), (0.8, classes[1], (5, 5, 20, 20))]
    page = opened(detections_page(tmp_path, dict.fromkeys(names, rows), "<u>weights</u>", classes), "sort=name")
    assert sorted(page.js(NAMES)) == sorted(names)
    page.wait(f"{BOXES} === 8")  # each picture was found, whatever its name
    page.click(".card button")
    page.wait("document.querySelectorAll('#stage rect.mark').length === 2")
    assert page.js("document.querySelectorAll('b, u, svg[onload], img[onerror], img[src=x]').length") == 0
    assert page.js("document.scripts.length") == 2
    chips = page.js("[...document.querySelectorAll('.chip[data-class]')].map((chip) => chip.textContent)")
    assert chips == [f"{name}4" for name in classes]


def confusion_by_pycocotools(results, threshold, iou):
    """Counts of (label, detected), -1 for background: matched within classes first, then what is left across them."""

    def matches(document, rows, by_class):
        truth = COCO()
        truth.dataset = document
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes([dict(row) for row in rows]), "bbox")
        evaluation.params.useCats = by_class
        evaluation.params.iouThrs, evaluation.params.maxDets = np.array([iou]), [1000]
        evaluation.params.areaRng, evaluation.params.areaRngLbl = [[0, 1e10]], ["all"]
        evaluation.evaluate()
        pairs, ignored = {}, set()
        for image in filter(None, evaluation.evalImgs):
            for detection, match, ignore in zip(
                image["dtIds"], image["dtMatches"][0], image["dtIgnore"][0], strict=True
            ):
                if ignore:
                    ignored.add(detection)
                elif match:
                    pairs[detection] = int(match)
        return pairs, ignored

    document = coco_ground_truth(results)
    ids = {category.id: number for number, category in enumerate(results.categories)}
    rows = [row for row in results if row["score"] > threshold]
    labels = {entry["id"]: ids[entry["category_id"]] for entry in document["annotations"] if not entry["iscrowd"]}
    hits, ignored = matches(document, rows, by_class=1)
    counts = {}

    def add(label, seen):
        counts[f"{label}_{seen}"] = counts.get(f"{label}_{seen}", 0) + 1

    for object_ in hits.values():
        add(labels[object_], labels[object_])
    kept = [row for number, row in enumerate(rows, start=1) if number not in hits and number not in ignored]
    left = [entry for entry in document["annotations"] if entry["id"] in set(labels) - set(hits.values())]
    crossed, _ = matches(document | {"annotations": left}, kept, by_class=0)
    for number, row in enumerate(kept, start=1):
        add(labels[crossed[number]] if number in crossed else -1, ids[row["category_id"]])
    for entry in left:
        if entry["id"] not in crossed.values():
            add(labels[entry["id"]], -1)
    return counts


@pytest.mark.parametrize(("threshold", "iou"), [(0.0, 0.5), (0.35, 0.5), (0.5, 0.75), (0.2, 0.3)])
def test_the_counts_are_those_of_pycocotools_matching(opened, evaluated, threshold, iou):
    path, results, _ = evaluated
    expected = confusion_by_pycocotools(results, threshold, iou)
    hits = sum(count for pair, count in expected.items() if len(set(pair.split("_"))) == 1)
    labels = sum(count for pair, count in expected.items() if not pair.startswith("-1"))
    seen = sum(count for pair, count in expected.items() if not pair.endswith("_-1"))
    crossed = [pair for pair in expected if "-1" not in pair and len(set(pair.split("_"))) == 2]
    assert 0 < hits < min(labels, seen) and crossed, "a case that says something"
    page = opened(path, f"score={threshold}&iou={iou}&tab=figures")
    counts = page.js(
        "confusions().reduce((all, [a, b]) => ({ ...all, [`${a}_${b}`]: (all[`${a}_${b}`] ?? 0) + 1 }), {})"
    )
    assert counts == expected
    tally = page.js(TALLY)
    assert (int(tally["hits"]), int(tally["missed"])) == (hits, labels - hits)
    assert int(tally["false alarms"]) == seen - hits
    assert float(tally["precision"]) == pytest.approx(hits / seen, abs=5e-4)
    assert float(tally["recall"]) == pytest.approx(hits / labels, abs=5e-4)
    assert float(tally["F1"]) == pytest.approx(2 * hits / (seen + labels), abs=5e-4)


def test_the_page_and_the_metrics_agree(opened, evaluated):
    path, _, metrics = evaluated
    page = opened(path)
    best, tally = metrics["best_f1"], page.js(TALLY)
    assert [int(tally[name]) for name in ("hits", "missed", "false alarms")] == [
        best["hits"], best["misses"], best["false_alarms"]
    ]  # fmt: skip
    curve = page.js("curve(0)")
    measured = next(iter(metrics["per_class"].values()))["AP50"]
    at_recalls = [max([p for r, p in curve if r >= recall], default=0) for recall in np.arange(101) / 100]
    assert np.mean(at_recalls) == pytest.approx(measured, abs=1e-6), "AP is the area under the curve that is shown"


def test_figures_and_suspicious_labels_open_their_pictures(opened, evaluated):
    path, _, _ = evaluated
    page = opened(path, "tab=figures")
    cell = "#confusion td button:not(:disabled):not(.right)"
    about = page.js(f"document.querySelector('{cell}').title")
    page.click(cell)
    assert page.js("document.getElementById('count').textContent").endswith(f"only: {about.split(':')[0]} ✕")
    assert 0 < page.js(f"{NAMES}.length") <= int(about.split(": ")[1])
    page.click("#tab-labels")
    page.click(".suspicions button")
    page.wait("viewer.open && view !== null")
    assert page.js("view.zoom") > 1, "near its box"
    of_no_area = "outlined({ x: 5, y: 5, width: 0, height: 20 }, '#ffffff', 2, null, 'missed')"
    assert page.js(f"{of_no_area}.map((line) => line.getAttribute('width'))") == ["1", "1"], "or nothing would be seen"


@pytest.mark.parametrize("tab", ["images", "figures", "labels"])
def test_a_detector_that_finds_nothing_has_a_page_too(opened, evaluated, tmp_path, tab):
    nothing = {name: getattr(evaluated[1], name)[:0] for name in ("images", "classes", "boxes_xywh", "scores")}
    path, results, _ = write_page(tmp_path / "out", replace(evaluated[1], **nothing))
    labels = sum(int((~sample.crowd).sum()) for sample in results.samples)
    tally = opened(path, f"tab={tab}").js(TALLY)
    assert (tally["hits"], tally["missed"], tally["F1"]) == ("0", str(labels), "0.000")


def test_a_page_without_any_detection(opened, tmp_path):
    Image.new("RGB", (40, 40)).save(tmp_path / "a.jpg")
    page = opened(detections_page(tmp_path, {"a.jpg": []}))
    assert page.js("document.getElementById('count').textContent") == "1 image; nothing on it is scored above 0.25"
    assert page.js("document.getElementById('classes').hidden")


def test_hits_are_seen_beside_many_false_alarms(opened, evaluated):
    page = opened(evaluated[0], "tab=figures")
    bins = "Array.from({ length: 50 }, (_, bin) => bin < 10 ? [0, 5000] : [4, bin])"
    assert page.js(f"highestOf({bins})") == 12, "three times the most hits"
    assert page.js("highestOf(Array.from({ length: 50 }, () => [0, 70]))") == 70, "without hits"


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """An evaluation of 5,000 images, with 20 detections each; there are ten pictures."""
    folder, rng = tmp_path_factory.mktemp("large"), np.random.default_rng(0)
    for number in range(10):
        Image.new("RGB", (320, 240), (20 * number, 120, 90)).save(folder / f"{number}.jpg")
    images, each, objects = 5000, 20, 3
    categories = [Category(number + 1, number + 1, f"class {number}") for number in range(80)]
    no, areas = np.zeros(objects, dtype=bool), np.full(objects, 3600.0)
    samples = []
    for number in range(images):
        corners = rng.uniform(0, 150, (objects, 2)).round(1)
        boxes, labels = np.concatenate((corners, corners + 60), axis=1), rng.integers(1, 81, objects)
        samples.append(Sample(number, folder / f"{number % 10}.jpg", 240, 320, boxes, labels, no, areas, no))
    count = images * each
    boxes, scores = rng.uniform(0, 120, (count, 4)).round(1), rng.uniform(0.01, 1, count)
    columns = np.repeat(np.arange(images), each), rng.integers(0, 80, count), boxes, scores
    return write_page(folder / "out", CocoResults(samples, categories, *columns, named=True))[0]


def test_only_rows_in_sight_are_there(opened, large):
    page = opened(large, "sort=name")
    assert page.js("data.files.length") == 5000
    cards = "document.querySelectorAll('.card').length"
    assert 8 <= page.js(cards) < 60
    rows = set()
    for _ in range(5):
        page.js("scrollBy(0, 30000)")
        page.settle()
        assert 8 <= page.js(cards) < 60
        rows.add(page.js("document.querySelector('.card').getAttribute('aria-posinset')"))
    assert len(rows) == 5
    page.js("document.querySelector('.card button').focus()")
    page.key("End")
    assert page.js("document.activeElement.parentElement.getAttribute('aria-posinset')") == "5000"
    page.set("threshold", 0.9)
    assert int(page.js(TALLY)["hits"].replace(",", "")) >= 0


def linear(colours):
    parts = np.array(colours) / 255
    return np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)


def contrast(*colours):
    low, high = sorted(linear(colours) @ (0.2126, 0.7152, 0.0722))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("dark", [False, True])
def test_text_stands_out(opened, evaluated, dark):
    """WCAG's 4.5 to 1, in both colour schemes."""
    page = opened(evaluated[0], dark=dark)
    colours = {
        name: page.js(
            f"(() => {{ const probe = document.createElement('p'); probe.style.color = 'var(--{name})'; "
            "document.body.append(probe); "
            "const found = getComputedStyle(probe).color.match(/\\d+/g).map(Number); probe.remove(); return found; })()"
        )
        for name in ("paper", "card", "ink", "quiet", "accent", "hit", "alarm", "missed")
    }
    assert (sum(colours["paper"]) < 3 * 128) == dark
    for name in ("ink", "quiet", "accent", "hit", "alarm", "missed"):
        for below in ("paper", "card"):
            assert contrast(colours[name], colours[below]) >= 4.5, (name, below)


@pytest.fixture(scope="module")
def long_names(evaluated, tmp_path_factory):
    """The page of an evaluation of 30 classes with long names."""
    results = evaluated[1]
    more = [Category(label, 1000 + label, f"class {label}") for label in range(5, 31)]
    categories = [*(replace(one, name=f"{one.name} {'of a long name ' * 6}") for one in results.categories), *more]
    return write_page(tmp_path_factory.mktemp("long") / "out", replace(results, categories=categories))[0]


STICKING_OUT = """[...document.querySelectorAll('.panel > *, .panel h2 > *, .chip > *')].filter((one) =>
  one.getBoundingClientRect().right > one.parentElement.closest('.chip, .panel').getBoundingClientRect().right)
  .map((one) => one.outerHTML.slice(0, 200))"""


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("tab", ["images", "figures", "labels"])
def test_everything_fits_and_has_a_name(opened, long_names, width, tab):
    """For screen readers: no button, field or picture without one, in the browser's own accessibility tree."""
    page = opened(long_names, f"tab={tab}", width=width)
    assert page.js("document.documentElement.scrollWidth") <= width
    assert page.js(STICKING_OUT) == []
    if tab == "images":
        page.wait("document.querySelectorAll('.card g text').length > 5")
        assert page.js(
            "[...document.querySelectorAll('.card g text')].some((tag) => /….+ \\d+%$/.test(tag.textContent))"
        )
    tree = page.call("Accessibility.getFullAXTree")["nodes"]
    wanted = {"button", "slider", "searchbox", "combobox", "checkbox", "tab", "img", "table", "dialog"}
    nodes = [node for node in tree if not node["ignored"] and node["role"]["value"] in wanted]
    nameless = [json.dumps(node)[:300] for node in nodes if not node.get("name", {}).get("value")]
    assert len(nodes) > 5 and nameless == []
