"""Many images: in order, with few in memory, drawn by the end; and what is left of work that was stopped."""

import json
import re
import shutil
import signal
import threading
import time
from contextlib import closing
from itertools import chain, islice
from pathlib import Path

import cv2
import numpy as np
import pytest
from full_disk import full_disk
from small_data import shapes_folder, start, untrained_run

from ssd300_vgg16 import Detector, infer
from ssd300_vgg16.data.images import ImageError
from ssd300_vgg16.detection import run
from ssd300_vgg16.detection.files import ImageFile
from ssd300_vgg16.detection.pipeline import detect_each, read_ahead
from ssd300_vgg16.detection.results import JsonList
from ssd300_vgg16.errors import UserError

COUNT = 6
BROKEN = 3


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """An untrained run, and images of different sizes, of which one is broken."""
    folder = tmp_path_factory.mktemp("images")
    data = shapes_folder(folder, 1, COUNT)
    untrained_run(folder / "run")
    for number, path in enumerate(sorted((data / "val").iterdir()), start=1):
        cv2.imwrite(str(path), cv2.imread(str(path))[: 150 + 10 * number])
        if number == BROKEN:
            path.write_bytes(b"\xff\xd8\xff broken")
    return folder


@pytest.fixture(scope="module")
def detector(place):
    return Detector.load(place / "run", "cpu")


@pytest.fixture
def files(place, tmp_path):
    paths = sorted((place / "shapes" / "val").iterdir())
    return [
        ImageFile(n, path, tmp_path / "out", tmp_path / "out" / f"{n}.jpg") for n, path in enumerate(paths, start=1)
    ]


@pytest.mark.parametrize("batch_size", [1, 2, 100])
def test_each_gets_its_own_answer_in_order(detector, files, batch_size):
    found_each = list(detect_each(detector, files, 7, batch_size))
    assert [file for file, _ in found_each] == files
    for file, found in found_each:
        if file.image_id == BROKEN:
            assert isinstance(found, ImageError) and not file.picture.exists()
            continue
        expected = detector(file.path)
        assert found["names"] == expected["names"][:7]
        np.testing.assert_allclose(found["boxes"], expected["boxes"][:7], atol=0.01)
        np.testing.assert_allclose(found["scores"], expected["scores"][:7], rtol=1e-4)
        picture = cv2.imread(str(file.picture))
        assert picture.shape[0] == 150 + 10 * file.image_id, "drawn at the end, in the image's own size"


def test_few_are_read_ahead_and_come_in_order_whichever_is_ready_first():
    begun, most = [], 0

    def slower_first(item):
        begun.append(item)
        time.sleep(0.01 if item % 3 == 0 else 0)
        return item

    for number, item in enumerate(read_ahead(slower_first, range(50), threads=3, batch_size=2)):
        assert item == number
        most = max(most, len(begun) - number)
    assert sorted(begun) == list(range(50)) and 2 <= most <= 6


def test_few_wait_to_be_drawn(detector, files, monkeypatch):
    """A slow disk holds the network up, so that images do not pile up in memory."""
    drawn, most = [], 0

    def slow(image, found, file, categories):
        time.sleep(0.05)
        drawn.append(file)

    monkeypatch.setattr("ssd300_vgg16.detection.pipeline._write", slow)
    monkeypatch.setattr("ssd300_vgg16.detection.pipeline.MAX_THREADS", 1)
    whole = [file for file in files if file.image_id != BROKEN] * 3
    for number, _ in enumerate(detect_each(detector, whole, 1), start=1):
        most = max(most, number - len(drawn))
    assert len(drawn) == len(whole) and most <= 2


def test_one_who_stops_early_has_the_pictures_so_far_and_no_threads_are_left(detector, files):
    threads = threading.active_count()
    with closing(detect_each(detector, files, 100)) as found_each:
        next(found_each)
        next(found_each)
    assert [file.picture.exists() for file in files] == [True, True] + [False] * (COUNT - 2)
    assert threading.active_count() == threads


def test_what_is_odd_about_an_image_is_told(detector, tmp_path, capsys):
    dark = tmp_path / "dark.png"
    cv2.imwrite(str(dark), np.full((40, 60), 4095, dtype=np.uint16))
    list(detect_each(detector, [ImageFile(1, dark, tmp_path, tmp_path / "1.jpg")], 5))
    assert capsys.readouterr().out == f"{dark}: 16-bit image, scaled to 8 by what is in it (12 bits)\n"


def test_a_picture_is_whole_or_not_there(detector, files):
    with full_disk(at=2000), pytest.raises(UserError, match=r"1\.jpg could not be written"):
        list(detect_each(detector, files[:1], 5))
    assert list(files[0].picture.parent.iterdir()) == []


@pytest.mark.parametrize("rows", [[], [[]], [[{"a": 1}], [], [{"b": "ä"}, {"c": 2.5}]]])
def test_a_list_is_written_as_it_grows(tmp_path, rows):
    path, part = tmp_path / "list.json", tmp_path / "list.json.part"
    path.write_text("former")
    with JsonList(path) as written:
        for each in rows:
            written.add(each)
            assert json.loads(part.read_text()) == list(chain(*rows[: rows.index(each) + 1]))
        assert path.read_text() == "former"
    assert json.loads(path.read_text()) == list(chain(*rows)) and written.count == sum(map(len, rows))
    assert not part.exists()


def test_a_list_that_an_error_ends_is_whole_and_is_gone_on_with(tmp_path):
    path, part = tmp_path / "list.json", tmp_path / "list.json.part"
    whole = {"file_name": "ä,.jpg", "bbox": [1, 2, 3, 4], "score": 0.5, "category_id": 1, "category_name": "cat"}
    a, b, c, d = ({"image_id": number, **whole} for number in range(4))
    with pytest.raises(ZeroDivisionError), JsonList(path) as written:
        written.add([a, b, c])
        written.add([1 / 0])
    assert json.loads(part.read_text()) == [a, b, c]
    assert not path.exists(), "it would look complete"
    _, (second, second_end), _ = JsonList.rows(part)
    assert second == b
    with JsonList(path, second_end, 2) as written:
        written.add([d])
    assert json.loads(path.read_text()) == [a, b, d] and written.count == 3
    path.write_bytes(path.read_bytes()[:-5])
    assert len(list(JsonList.rows(path))) == 2, "those before a line that is cut off"


def test_a_list_on_a_full_disk_is_whole_and_does_not_look_complete(tmp_path):
    refusal = pytest.raises(UserError, match=r"list\.json\.part: .*; it holds the \d+ detections so far")
    with full_disk(at=1000), refusal, JsonList(tmp_path / "list.json") as written:
        for number in range(1000):
            written.add([{"number": number, "text": "x" * 30}] * 2)
    rows = json.loads((tmp_path / "list.json.part").read_text())
    assert 10 < len(rows) == written.count < 25 and not (tmp_path / "list.json").exists()


def arguments(place, *more):
    return ("--weights", place / "run", "--device", "cpu", "--score-threshold", "0.01", "--max-detections", "2", *more)


def test_what_was_found_before_a_stop_is_kept(place, tmp_path, no_hang):
    many, first = tmp_path / "many", tmp_path / "first"
    many.mkdir()
    for number in range(400):
        (many / f"{number:03d}.jpg").symlink_to(place / "shapes" / "val" / "000001.jpg")
    (many / "001.jpg").unlink()
    (many / "001.jpg").write_bytes(b"")
    process = start("infer", *arguments(place, many, "--output-dir", "first"), folder=tmp_path)
    while not (first / "004.jpg").exists():
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    output, errors = process.communicate()
    assert process.returncode == 128 + signal.SIGTERM
    assert errors == f"not read: {many}/001.jpg: the file is empty\ninfer.sh: stopped by SIGTERM\n"
    done = int(re.search(r"^Stopped after (\d+) of 400 images\. Go on with: .*--resume$", output, re.MULTILINE)[1])
    assert not (first / "detections.json").exists()
    rows = json.loads((first / "detections.json.part").read_text())
    assert {row["image_id"] for row in rows} == set(range(1, done + 1)) - {2}
    assert {path.name for path in first.glob("*.jpg")} == {f"{n:03d}.jpg" for n in range(done)} - {"001.jpg"}


@pytest.fixture
def photos(place, tmp_path, monkeypatch):
    """Images in the current folder; the third is broken, and on the fourth nothing is found."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(place / "shapes" / "val", "photos")


def detect(place, *more):
    return infer.main([*map(str, arguments(place, *more, "photos"))])


def interrupted(place, monkeypatch, done):
    """A detection that ends after some images, as by a kill."""

    def some(detector, files, *rest):
        with closing(detect_each(detector, files, *rest)) as results:
            for file, found in islice(results, done):
                yield file, found[:0] if file.image_id == 4 else found
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(run, "detect_each", some)
        detect(place)


@pytest.mark.parametrize(("undrawn", "done", "left"), [(None, 4, [BROKEN, 6]), (5, 2, [BROKEN, 4, 5, 6])])
def test_what_was_interrupted_is_gone_on_with(place, photos, monkeypatch, capsys, undrawn, done, left):
    """The last is done again, whose rows might not be whole, and so is all from one on that was not drawn."""
    detect(place, "--output-dir", "whole", "--save-csv")
    interrupted(place, monkeypatch, 6)
    if undrawn:
        Path("detections", f"00000{undrawn}.jpg").unlink()
    asked = []
    monkeypatch.setattr(run, "detect_each", lambda *given: asked.extend(given[1]) or detect_each(*given))
    capsys.readouterr()
    assert detect(place, "--resume", "--save-csv") == 1, "the broken one is tried again"
    assert f"\n{done} of 6 images are done\n" in "\n" + capsys.readouterr().out
    assert [file.image_id for file in asked] == left
    rows, whole = (json.loads(Path(name, "detections.json").read_text()) for name in ("detections", "whole"))
    assert rows == [row for row in whole if row["image_id"] != 4 or undrawn]
    names = {path.name for path in Path("whole").iterdir()}
    assert {path.name for path in Path("detections").iterdir()} == names
    assert Path("detections/detections.csv").read_text().count("\n") == len(rows) + 1
    page = Path("detections/report.html").read_text()
    assert all(f'"00000{number}.jpg"' in page for number in (1, 2, 4, 5, 6)), "images from before are on the page"
    with pytest.raises(UserError, match=r"--resume: detections/detections\.json is complete"):
        detect(place, "--resume")


@pytest.mark.parametrize("change", [{"bbox": [1, 2, 3]}, {"category_id": None}, {"score": "1"}, {"file_name": "b.jpg"}])
def test_rows_that_no_detection_has_written_are_not_gone_on_with(place, photos, monkeypatch, change):
    detect(place, "--output-dir", "whole", "--save-csv")
    interrupted(place, monkeypatch, 6)
    part = Path("detections/detections.json.part")
    rows = [row | change if row["image_id"] == 2 else row for row in json.loads(part.read_text())]
    part.write_text("[\n" + ",\n".join(map(json.dumps, rows)) + "\n]\n")
    assert detect(place, "--resume", "--save-csv") == 1
    for name in ("detections.json", "detections.csv"):
        assert Path("detections", name).read_text() == Path("whole", name).read_text()


def test_other_settings_are_not_mixed(place, photos, tmp_path, monkeypatch, capsys):
    interrupted(place, monkeypatch, 5)
    before = Path("detections/detections.json.part").read_bytes()
    other_run = untrained_run(tmp_path / "other", seed=1)
    shutil.copy("photos/000001.jpg", "extra.jpg")
    for options, name in (
        (["--max-detections", "3"], "--max-detections"),
        (["--score-threshold", "0.02"], "--score-threshold"),
        (["--save-txt"], "--save-txt"),
        (["--tiles", "200"], "--tiles, --tile-overlap"),
        (["--mirror"], "--mirror"),
        (["--weights", other_run], "weights"),
        (["extra.jpg"], "images"),
    ):
        with pytest.raises(UserError, match=f"was begun with other {name}: give the same, or leave --resume out"):
            detect(place, "--resume", *options)
    assert Path("detections/detections.json.part").read_bytes() == before
    capsys.readouterr()
    assert detect(place, "--max-detections", "1") == 1
    assert "nothing of detections/detections.json.part is gone on with: begins with" in capsys.readouterr().out
    assert len(json.loads(Path("detections/detections.json").read_text())) == COUNT - 1
