"""python -m ssd300_vgg16.data inspect, as a user calls it."""

import base64
import json
import re
import subprocess
import sys

import cv2
import numpy as np
import pytest
from small_data import environment, shapes, shapes_folder
from voc_files import thing, write_pairs, write_voc, xml
from yolo_files import YAML, sideways, write_yolo

from ssd300_vgg16.cli import inspect
from ssd300_vgg16.errors import UserError
from ssd300_vgg16.inspection import figures
from ssd300_vgg16.inspection.page import PAGE
from ssd300_vgg16.inspection.pictures import SIDE


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return shapes_folder(tmp_path_factory.mktemp("data"), 8, 3)


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """An empty folder, which is the current one."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def change(folder, tmp_path, **edits):
    """A copy of the training annotations of a shapes folder, each section changed by a function; as options."""
    document = json.loads((folder / "annotations" / "instances_train.json").read_text())
    for section, edit in edits.items():
        edit(document[section])
    (tmp_path / "changed.json").write_text(json.dumps(document))
    return ["--train-annotations", str(tmp_path / "changed.json"), "--train-images", str(folder / "train")]


def samples_on(page):
    """The pictures on a page, as a browser decodes them."""
    contents = re.findall(r'src="data:image/jpeg;base64,([\w+/=]+)"', page)
    return [cv2.imdecode(np.frombuffer(base64.b64decode(content), np.uint8), cv2.IMREAD_COLOR) for content in contents]


def test_command_on_generated_shapes(folder, elsewhere, capsys):
    assert inspect.main(["inspect", str(folder)]) == 0
    output = capsys.readouterr().out
    assert output.index("train: ") < output.index("val: ")
    assert "images              8, 0 of them without objects" in output
    assert re.search(r"classes  +5: \w+ \d+, ", output)
    assert output.count("ssd300_vgg16 with coco: ") == 2
    assert "no problems in the annotations" in output and "images read: 8; broken" in output
    assert sorted(elsewhere.rglob("*.*")) == [elsewhere / "inspection" / PAGE]
    assert output.endswith(f"written: inspection/{PAGE}\n") and len(output.splitlines()) < 30
    page = (elsewhere / "inspection" / PAGE).read_text()
    assert len(samples_on(page)) == 8 + 3 and page.count("as above") == 1
    assert "No problems in the annotations" in page and "all shown" not in page


def test_objects_are_shown_as_they_are_on_tiles(elsewhere, capsys):
    """Where most are too small, a side is advised; with it they are larger, and lost ones are shown in their tiles."""
    pixels = np.full((1200, 1600, 3), 90, np.uint8)
    (elsewhere / "images").mkdir()
    cv2.imwrite(str(elsewhere / "images" / "a.jpg"), pixels)
    boxes = [[x, y, 16, 16] for x in range(40, 1500, 200) for y in range(40, 1100, 200)]
    boxes += [[300, 300, 5, 5], [301, 301, 5, 5]]
    rows = [
        {"id": at, "image_id": 1, "category_id": 1, "bbox": box, "area": 256, "iscrowd": 0}
        for at, box in enumerate(boxes)
    ]
    image = {"id": 1, "file_name": "a.jpg", "width": 1600, "height": 1200}
    content = {"images": [image], "annotations": rows, "categories": [{"id": 1, "name": "bead"}]}
    (elsewhere / "a.json").write_text(json.dumps(content))
    data = ["inspect", "--train-annotations", "a.json", "--train-images", "images"]
    assert inspect.main(data) == 0
    advice = r"advice: the median side is 3 pixels .* train\.sh with --tiles (\d+) \("
    (side,) = re.findall(advice, capsys.readouterr().out)
    assert inspect.main([*data, "--tiles", side]) == 0
    output = capsys.readouterr().out
    assert re.search(rf"  tiles of {side} +\d+ of them, or .* is \d\d pixels, without tiles 3 pixels; ", output)
    assert "images              1, 0" in output and "objects             50" in output and "--tiles" not in output
    page = (elsewhere / "inspection" / PAGE).read_text()
    assert re.search(r"bead: xyxy .*, in the tile at \d+, \d+", page) and f"tiles of {side}" in page


def test_figures_of_a_network_are_the_same_in_the_comparison(folder, elsewhere, capsys):
    rows = []
    for options in (["--model", "ssd512_vgg16", "--default-boxes", "voc"], []):
        assert inspect.main(["inspect", str(folder), "--split", "val", "--images", "1", *options]) == 0
        page = (elsewhere / "inspection" / PAGE).read_text()
        size = 512 if options else 300
        assert f"Validation: shapes at {size} x {size}" in page and "train: " not in capsys.readouterr().out
        row = r"<th[^>]*>(ssd\d+_vgg16, \w+).*?</th><td>([\d.]+%</td><td>[\d.]+)</td>"
        rows.append(dict(re.findall(row, page)))
        assert len(rows[-1]) == 5 and len(samples_on(page)) == 1
    fitted = [rows[0].pop("ssd512_vgg16, fit"), rows[1].pop("ssd300_vgg16, fit")]
    assert rows[0] == rows[1] and len(set(rows[0].values())) > 2
    assert all(found.startswith("100.0%") for found in fitted)


def test_fitted_default_boxes_are_compared_and_chosen(elsewhere, capsys):
    """Of long thin objects, which no published default box is like."""
    things = [thing("cat", (5 + 9 * number, 2, 9 + 9 * number, 38)) for number in range(5)]
    flat = thing("cat", (5, 5, 5, 9))
    write_voc(elsewhere / "VOC", {"1": xml(*things), "2": xml(flat)}, {"train": ["1"], "val": ["2"]})
    assert inspect.main(["inspect", "VOC"]) == 0
    output = capsys.readouterr().out
    assert re.search(r"advice: --default-boxes fit: the mean .* 0\.\d\d, .* 0\.\d\d: fit is the better choice", output)
    assert re.search(r"\n +mean of the best IoUs 0\.\d\d; coco 0\.0% \(0\.\d\d\), fit 100\.0% \(0\.\d\d\)\n", output)
    assert inspect.main(["inspect", "VOC", "--default-boxes", "fit"]) == 0
    output = capsys.readouterr().out
    assert "ssd300_vgg16 with fit: 100.0% of the objects" in output and "advice" not in output
    with pytest.raises(UserError, match=r"--default-boxes fit: .* has no objects to fit default boxes to"):
        inspect.main(["inspect", "VOC", "--split", "val", "--default-boxes", "fit"])


@pytest.mark.parametrize("model", ["ssd300_vgg16", "ssd512_vgg16", "ssd512_vgg16_highres"])
def test_one_network_of_each_input_size_is_compared(folder, model):
    chosen, compared = inspect._candidates(model, "voc", shapes(folder, "val"))
    large = model if "512" in model else "ssd512_vgg16"
    expected = [(name, boxes) for name in ("ssd300_vgg16", large) for boxes in ("coco", "voc")] + [(model, "fit")]
    assert (chosen.model, chosen.box_sizes) == (model, "voc")
    assert [(one.model, one.box_sizes) for one in compared] == expected


def test_images_of_both_splits_are_told(elsewhere, capsys):
    write_voc(elsewhere / "VOC2007", {"a": xml(thing())}, {"train": ["a"], "val": ["a"]})
    assert inspect.main(["inspect", "VOC2007"]) == 0
    output = capsys.readouterr().out
    assert "ssd300_vgg16 with voc: " in output, "the default boxes are those that training would take"
    assert "1 of the 1 validation images are training images too, such as VOC2007/JPEGImages/a.jpg: " in output


def test_years_of_voc_are_shown_together(elsewhere, capsys):
    hard = thing("dog", (1, 1, 60, 40), "<difficult>1</difficult>")
    other = thing("dog", (1, 1, 50, 40), "<difficult>1</difficult>")
    files = {"1": xml(thing(), hard), "2": xml(thing()), "3": xml(thing("dog"), thing("dog", (5, 5, 5, 9)))}
    write_voc(elsewhere / "data" / "VOC2007", files, {"trainval": ["1", "2"], "test": ["3"]})
    write_voc(elsewhere / "data" / "VOC2012", {"4": xml(thing(), hard, other)}, {"trainval": ["4"], "test": ["5"]})
    assert inspect.main(["inspect", str(elsewhere / "data")]) == 0
    train, val = capsys.readouterr().out.split("\nval: ")
    assert f"train: {elsewhere / 'data'} (VOC2007 trainval + VOC2012 trainval)\n" in train
    assert "images              3, 0 of them without objects" in train
    assert "objects             6; 3 difficult: trained on, not evaluated\n" in train
    assert "2: cat 3, dog 3\n" in train
    assert "images read: 3; broken, or of another size than annotated: 0" in train and "no problems" in train
    assert val.startswith(f"{elsewhere / 'data' / 'VOC2007' / 'ImageSets' / 'Main' / 'test.txt'}\n")
    assert "1 x box of no area: " in val and "3.xml, object 2 (dog; 3.jpg, 60 x 40)" in val
    assert "every class of val has objects in train" in val and "training images too" not in val


def test_rotations_that_are_not_applied_are_told(elsewhere, capsys):
    """Of a folder of images with their XML files, which says what an upright image is like, and of the same in YOLO."""
    size = "<size><width>50</width><height>100</height></size>"
    stored = "<size><width>100</width><height>50</height></size>"
    files = {"a": xml(thing(), size=stored), "b": xml(thing(), size=size)}
    for split in ("train", "val"):
        write_pairs(elsewhere / "voc" / split, files)
        for name in files:
            sideways(elsewhere / "voc" / split / f"{name}.jpg")
    assert inspect.main(["inspect", "voc", "--split", "train", "--read-all"]) == 0
    output = capsys.readouterr().out
    assert "1 x image that its EXIF orientation turns to the declared size: read upright: b.jpg: 100 x 50" in output
    assert "images with an EXIF rotation: 1 of these, such as voc/train/a.jpg (orientation 6); their boxes" in output
    write_yolo(elsewhere / "yolo", {"a": "0 0.5 0.5 0.2 0.4"}, YAML.replace("images/val", "images/train"))
    sideways(elsewhere / "yolo/images/train/a.jpg")
    assert inspect.main(["inspect", "yolo", "--split", "train"]) == 0
    output = capsys.readouterr().out
    assert "all 50 x 100" in output and "EXIF" not in output
    (sample,) = samples_on((elsewhere / "inspection" / PAGE).read_text())
    assert sample.shape == (SIDE, SIDE // 2, 3)


def test_problems_are_told(folder, elsewhere, capsys):
    def spoil(annotations):
        annotations[0]["bbox"] = [5, 5, 0, 20]
        annotations[1]["category_id"] = 999

    def turn(images):
        images[2]["width"], images[2]["height"] = 1000, 500

    options = change(folder, elsewhere, annotations=spoil, images=turn)
    assert inspect.main(["inspect", *options, "--read-all", "--images", "1"]) == 1
    output = capsys.readouterr().out
    assert re.search(r"changed.json: 1 of \d+ objects not trained on, but counted in an evaluation\n", output)
    assert "1 x box of no area: annotation 1" in output and "1 x annotation of unknown category_id" in output
    assert "images read: 8; broken, or of another size than annotated: 1" in output
    assert "000003.jpg: " in output and "by the annotations 1000 x 500" in output
    page = (elsewhere / "inspection" / PAGE).read_text()
    for kind in ("Image file that is broken, or of another size than annotated", "Box of no area"):
        assert f"{kind}: 1 image, all shown" in page
    assert len(samples_on(page)) == 3


def test_broken_sample_is_named_and_has_a_place_on_the_page(elsewhere, capsys):
    folder = shapes_folder(elsewhere, 2, 1)
    (folder / "train" / "000002.jpg").write_bytes(b"")
    assert inspect.main(["inspect", str(folder), "--split", "train"]) == 1
    assert "000002.jpg: the file is empty" in capsys.readouterr().out
    page = (elsewhere / "inspection" / PAGE).read_text()
    assert len(samples_on(page)) == 1 and page.count(">cannot be read<") == 3  # the sample twice, the fault once


def test_classes_of_val_that_are_missing_in_train_are_named(folder, elsewhere, capsys):
    def without_circles(annotations):
        annotations[:] = [entry for entry in annotations if entry["category_id"] != 3]

    options = change(folder, elsewhere, annotations=without_circles)
    circles = figures.class_counts(val := shapes(folder, "val"), figures.objects_at_input(val, 300))
    assert any(row.name == "circle" and row.objects for row in circles)
    assert inspect.main(["inspect", str(folder), *options]) == 0
    output = capsys.readouterr().out
    assert "classes of val that train has no object of: circle\n" in output
    assert "without objects: circle" in output


def test_only_crowds(folder, elsewhere, capsys):
    def crowds(annotations):
        for entry in annotations:
            entry["iscrowd"] = 1

    assert inspect.main(["inspect", *change(folder, elsewhere, annotations=crowds)]) == 0
    output = capsys.readouterr().out
    assert "objects             0; " in output and "default boxes" not in output
    assert (
        "8, 8 of them without objects (where nothing is annotated, trained on by train.sh --background-images)"
        in output
    )


def test_names_that_are_hard_to_draw(folder, elsewhere):
    def rename(categories):
        for category, name in zip(categories, ("$\\frac$", "two\nlines", "鳥", "\x1b[31m", "_^{"), strict=True):
            category["name"] = name

    assert inspect.main(["inspect", *change(folder, elsewhere, categories=rename)]) == 0


def test_missing_split_is_told_unless_it_was_asked_for(elsewhere, capsys):
    folder = shapes_folder(elsewhere)
    (folder / "annotations" / "instances_train.json").unlink()
    assert inspect.main(["inspect", str(folder)]) == 0
    assert "no train split there" in capsys.readouterr().out
    with pytest.raises(UserError, match="no train split there"):
        inspect.main(["inspect", str(folder), "--split", "both"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "nowhere: no such folder"),
        ([], "data/coco: no such folder"),
        (["."], r"\.: no COCO-style, VOC or YOLO data set found"),
        ([".", "--dataset", "coco"], "no train split there: looked for"),
        ([".", "--data-path", "."], "named twice"),
        (["--val-images", "x"], "--val-images needs --val-annotations"),
    ],
)
def test_wrong_input_is_refused_and_nothing_written(arguments, message, elsewhere):
    with pytest.raises(UserError, match=message):
        inspect.main(["inspect", *arguments])
    assert not any(elsewhere.iterdir())


def test_number_of_samples_is_bounded(elsewhere, capsys):
    for count in ("0", "101", "x"):
        with pytest.raises(SystemExit, match="2"):
            inspect.main(["inspect", ".", "--images", count])
        assert "--images" in capsys.readouterr().err


def test_the_data_sets_own_folder_is_written_to_only_if_named(elsewhere, monkeypatch):
    folder = shapes_folder(elsewhere)
    before = sorted(folder.rglob("*"))
    monkeypatch.chdir(folder / "train")
    with pytest.raises(UserError, match="--output-dir"):
        inspect.main(["inspect", ".."])
    assert sorted(folder.rglob("*")) == before
    assert inspect.main(["inspect", "..", "--split", "val", "--output-dir", ".."]) == 0
    assert (folder / PAGE).is_file()


def test_command_line_answers_without_oneflow(folder, elsewhere):
    """As a user calls it; what is imported is printed when it has ended."""
    program = (
        "import atexit, runpy, sys; atexit.register(lambda: print('oneflow' in sys.modules, 'cv2' in sys.modules)); "
        f"sys.argv[1:] = ['inspect', {str(folder)!r}, '--split', 'val']; "
        "runpy.run_module('ssd300_vgg16.data', run_name='__main__', alter_sys=True)"
    )
    result = subprocess.run([sys.executable, "-c", program], env=environment(), capture_output=True, text=True)
    assert result.returncode == 0 and not result.stderr
    assert "written: inspection/inspection.html" in result.stdout
    assert result.stdout.splitlines()[-1] == "False True"


def test_error_is_one_line(elsewhere):
    command_line = [sys.executable, "-m", "ssd300_vgg16.data", "inspect", "nowhere"]
    result = subprocess.run(command_line, env=environment(), capture_output=True, text=True)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == "python -I -m ssd300_vgg16.data: nowhere: no such folder; name that of a data set\n"


def test_no_command_prints_the_help(capsys):
    assert inspect.main([]) == 0
    assert "inspect" in capsys.readouterr().out
