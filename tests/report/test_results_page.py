"""report.html as a file: what is in it, what cannot break out of it, and the list of suspicious labels."""

import csv
import io
import json
import os
import re
from pathlib import Path
from urllib.parse import unquote_to_bytes

import pytest
from coco_files import detections_of, load
from report_pages import HOSTILE_NAME, detections_page, evaluation_page

from ssd300_vgg16.data.dataset import Category
from ssd300_vgg16.metrics.coco_results import coco_results
from ssd300_vgg16.metrics.errors import judge
from ssd300_vgg16.report.results_page import (
    COLUMNS,
    OTHER_CLASS,
    UNLABELLED,
    UNSEEN,
    DetectionsPage,
    as_csv,
    suspicious,
)

DOG, CAT, HORSE = 3, 17, 40  # ids; labels 1, 2 and 3; numbers on the page 0, 1 and 2


def content_of(page):
    """The data in a page; that there is one block of it, and one script, shows that nothing ends them early."""
    text = page.read_text()
    assert len(re.findall("<script", text)) == len(re.findall("</script>", text)) == 2
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)[1])


def test_detections_stand_in_columns(tmp_path):
    page = DetectionsPage([Category(1, 7, "dog"), Category(2, 3, "cat")])
    for name, rows, names in (
        ("b.jpg", [(0.9, 1, (1, 2, 11, 22)), (0.5, 9, (0, 0, 5.5, 6))], ["dog", "class 9"]),
        ("deep/a.jpg", [], []),
        ("c.jpg", [(0.25, 2, (3, 4, 5, 6))], ["cat"]),
    ):
        page.add(tmp_path / "in" / name, detections_of(*rows) | {"names": names})
    (tmp_path / "out").mkdir()
    content = content_of(page.write(tmp_path / "out", "weights", 0.25))
    assert content["classes"] == ["cat", "dog", "class 9"], "in order of id, as in an evaluation: colours stay the same"
    assert content["files"] == ["b.jpg", "deep/a.jpg", "c.jpg"]
    assert content["folder"] == "../in/" and content["links"] == content["files"]
    assert content["detections"] == {
        "ends": [2, 2, 3],
        "boxes": [1, 2, 10, 20, 0, 0, 5.5, 6, 3, 4, 2, 2],
        "scores": [90000, 50000, 25000],
        "classes": [1, 2, 0],
        "left_out": 0,
    }
    assert "objects" not in content


def test_the_best_are_kept_where_there_are_too_many(tmp_path, monkeypatch):
    monkeypatch.setattr("ssd300_vgg16.report.results_page.MAX_DETECTIONS", 2)
    box = (1, 1, 2, 2)
    files = {"a.jpg": [(0.6, "dog", box), (0.1, "dog", box)], "b.jpg": [(0.8, "dog", box)]}
    found = content_of(detections_page(tmp_path, files))["detections"]
    assert (found["ends"], found["scores"], found["left_out"]) == ([1, 2], [60000, 80000], 1)


@pytest.mark.parametrize(
    "name", ["a b.jpg", "100%.jpg", "a#b?c.jpg", "http:x.jpg", "é.jpg", HOSTILE_NAME, "\udcff.jpg"]
)
def test_a_link_leads_to_its_file(tmp_path, name):
    content = content_of(detections_page(tmp_path, {name: []}))
    link = content["folder"] + content["links"][0]
    assert re.fullmatch(r"[\w./%~-]+", link, re.ASCII), "nothing that means something in an address"
    assert unquote_to_bytes(link) == b"../" + os.fsencode(name)


def test_no_name_becomes_markup_and_nothing_is_fetched(tmp_path):
    classes = ["</script><script>alert(1)</script>", "{{style}}<!--"]
    path = detections_page(tmp_path, {HOSTILE_NAME: []}, "<b>{{content}}</b>", classes)
    content, text = content_of(path), path.read_text()
    assert content["classes"] == classes and content["heading"] == "<b>{{content}}</b>"
    assert "<title>Detections: &lt;b&gt;{{content}}&lt;/b&gt;</title>" in text
    assert "<img onerror" not in text and "<!--" not in text
    assert set(re.findall(r"https?://[^\"' ]*", text)) == {"http://www.w3.org/2000/svg"}, "the name of a namespace"
    assert "default-src 'none'; style-src 'sha256-" in text and "script-src 'sha256-" in text


def suspicions_of(folder, annotations, rows):
    """Of detections (score, label, box) on the first image."""
    results = coco_results(load(folder, annotations), [0], [detections_of(*rows)])
    return suspicious(results, judge(results))


def annotation(number, category, x, y, side):
    entry = {"id": number, "image_id": 7, "category_id": category, "bbox": [x, y, side, side], "area": side**2}
    return entry | {"iscrowd": 0}


def test_labels_are_suspected(tmp_path):
    found = suspicions_of(
        tmp_path,
        [
            annotation(1, DOG, 0, 0, 50),  # seen as a cat
            annotation(2, CAT, 100, 0, 50),  # seen as a cat, and as a horse
            annotation(3, HORSE, 200, 0, 20),  # not seen, small
            annotation(4, HORSE, 300, 0, 60),  # hardly seen
        ],
        [
            (0.95, 2, (0, 0, 50, 50)),
            (0.9, 2, (100, 0, 150, 50)),
            (0.85, 3, (100, 0, 150, 50)),
            (0.8, 1, (0, 200, 40, 240)),  # no label there
            (0.4, 1, (0, 300, 40, 340)),  # nor there, but not sure
            (0.05, 3, (300, 0, 360, 60)),
        ],
    )
    assert [(one.kind, one.label, one.detected, one.image) for one in found] == [
        (UNLABELLED, -1, 0, 0),
        (OTHER_CLASS, 0, 1, 0),
        (UNSEEN, 2, -1, 0),
        (UNSEEN, 2, -1, 0),
    ]
    assert [one.box_xywh for one in found] == [(0, 200, 40, 40), (0, 0, 50, 50), (300, 0, 60, 60), (200, 0, 20, 20)]


def test_the_list_is_a_table_that_computes_nothing(tmp_path):
    found = suspicions_of(tmp_path, [annotation(1, DOG, 0, 0, 50)], [(0.8, 2, (0, 200, 40, 240))])
    table = as_csv(found, ["=cmd|' /C calc'!A0.jpg"], ["dog", 'a "cat",\n+1', "horse", "unicorn"])
    rows = list(csv.reader(io.StringIO(table.decode())))
    assert rows[0] == list(COLUMNS)
    assert rows[1][:5] == ["no label", "'=cmd|' /C calc'!A0.jpg", "", 'a "cat",\n+1', "0.800"]
    assert rows[2] == ["unseen label", "'=cmd|' /C calc'!A0.jpg", "dog", "", "", "0.0", "0.0", "50.0", "50.0", ""]


def test_an_evaluation_has_labels_and_figures(tmp_path):
    page, results, metrics = evaluation_page(tmp_path)
    content = content_of(page)
    objects = sum(len(sample.labels) for sample in results.samples)
    assert content["objects"]["ends"][-1] == len(content["objects"]["classes"]) == objects
    assert content["detections"]["ends"][-1] == len(results) == len(content["detections"]["kinds"])
    assert content["metrics"] == json.loads(json.dumps(metrics))
    assert content["threshold"] == metrics["best_f1"]["score_threshold"]
    assert len(content["suspicions"]) == content["all_suspicions"] > 0
    rows = list(csv.reader(io.StringIO(Path(page.parent, content["suspicions_file"]).read_text())))
    assert len(rows) == content["all_suspicions"] + 1
