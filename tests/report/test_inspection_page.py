"""inspection.html in a real browser: what it shows, what hostile names do, and what it does not do."""

import json

import pytest
from browser import CHROMIUM
from report_pages import HOSTILE_NAME
from small_data import shapes_folder

from ssd300_vgg16.cli import inspect

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium here")
HOSTILE_CLASS = "</style><script>alert(1)</script>"


@pytest.fixture(scope="module")
def inspected(tmp_path_factory):
    """The page about shapes with a hostile file, a hostile class, a broken file and a box beyond its image."""
    folder = tmp_path_factory.mktemp("inspected")
    data = shapes_folder(folder, 6, 3)
    annotations = data / "annotations" / "instances_train.json"
    document = json.loads(annotations.read_text())
    first = document["images"][0]
    (data / "train" / first["file_name"]).rename(data / "train" / HOSTILE_NAME)
    first["file_name"] = HOSTILE_NAME
    document["annotations"][0]["bbox"] = [-50, 10, 100, 60]
    document["categories"][0]["name"] = HOSTILE_CLASS
    annotations.write_text(json.dumps(document))
    (data / "train" / document["images"][1]["file_name"]).write_bytes(b"")
    assert inspect.main(["inspect", str(data), "--output-dir", str(folder / "out")]) == 1
    return folder / "out" / "inspection.html"


def text_of(selector):
    return f"[...document.querySelectorAll({json.dumps(selector)})].map((element) => element.textContent)"


def test_page(inspected, opened):
    colours = set()
    for width, dark in ((1280, False), (500, True)):
        page = opened(inspected, width=width, dark=dark, script="")
        page.js("[...document.images].forEach((image) => { image.loading = 'eager'; })")
        page.wait("[...document.images].every((image) => image.complete)")
        assert page.js("[...document.images].filter((image) => image.naturalWidth >= 300).length") == 5 + 3 + 1
        assert page.js(text_of(".unreadable")) == ["cannot be read"] * 2
        assert page.js(text_of(".panel h3"))[-2:] == [
            "Image file that is broken, or of another size than annotated: 1 image, all shown",
            "Box beyond the image: 1 image, all shown",
        ]
        assert HOSTILE_NAME in page.js(text_of("figcaption a")) and HOSTILE_CLASS in page.js(text_of("tbody th"))
        links = page.js("[...document.links].map((link) => decodeURIComponent(link.href))")
        assert any(link.endswith(f"/shapes/train/{HOSTILE_NAME}") for link in links)
        assert page.js("document.querySelectorAll('script, [onerror]').length") == 0
        assert page.js("document.documentElement.scrollWidth") <= width, "nothing is cut off at the side"
        beside = "new Set([...document.querySelectorAll('.panel')].map((panel) => panel.offsetLeft)).size"
        assert page.js(beside) == (2 if width > 900 else 1), "in two columns, where there is room"
        colours.add(page.js("getComputedStyle(document.body).backgroundColor"))
    assert len(colours) == 2
