"""Detection from the command line: pictures and detections.json for every image that can be read."""

import csv
import json
import os
import re
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml
from PIL import Image
from pycocotools.coco import COCO
from small_data import CATEGORY_IDS, run, shapes_folder, untrained_run

from ssd300_vgg16 import Detector, infer
from ssd300_vgg16.boxes import xywh_to_xyxy
from ssd300_vgg16.data.image_files import find_images
from ssd300_vgg16.detection.results import folder_name
from ssd300_vgg16.errors import UserError

IMAGES = 4
LOW = ("--score-threshold", "0.01", "--device", "cpu")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with generated shapes, and an untrained run that sees objects everywhere."""
    folder = tmp_path_factory.mktemp("inference")
    data = shapes_folder(folder, 1, IMAGES)
    weights = untrained_run(folder / "runs" / "untrained")
    (weights / "options.json").write_text(json.dumps({"val_images_folder": str(data / "val")}))
    return folder


@pytest.fixture
def photos(place, tmp_path, monkeypatch):
    """Photographs in sub-folders, two of the same name, in the current directory; one cannot be read."""
    monkeypatch.chdir(tmp_path)
    names = ("a.jpg", "one/a.jpg", "one/two/a.jpg", "one/b c.jpg")
    for name, image in zip(names, sorted((place / "shapes" / "val").iterdir()), strict=True):
        Path("photos", name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(image, Path("photos", name))
    return Path("photos")


def detect(place, *arguments):
    weights = ("--weights", place / "runs" / "untrained")
    return infer.main([str(argument) for argument in (*weights, *LOW, *arguments)])


def files_in(folder):
    return sorted(str(path.relative_to(folder)) for path in Path(folder).rglob("*") if path.is_file())


def detections(folder="detections"):
    return json.loads(Path(folder, "detections.json").read_text())


def test_a_folder_is_searched_and_its_shape_kept(place, photos, capsys):
    assert detect(place, "photos") == 0
    pictures = ["a.jpg", "one/a.jpg", "one/b c.jpg", "one/two/a.jpg"]
    assert files_in("detections") == sorted([*pictures, "detections.json", "report.html"])
    for name in pictures:
        picture, original = cv2.imread(str(Path("detections", name))), cv2.imread(str(photos / name))
        assert picture.shape == original.shape
        assert np.abs(picture.astype(int) - original).mean() > 1, "nothing is drawn"
    assert capsys.readouterr().out == (
        f"4 images, {len(detections())} detections: pictures and detections.json are in detections\n"
        "look at them: open detections/report.html in a browser\n"
    )


def test_detections_are_cocos_results_with_names(place, photos):
    detect(place, "photos", "--max-detections", 3)
    results = detections()
    files = ["photos/a.jpg", "photos/one/a.jpg", "photos/one/b c.jpg", "photos/one/two/a.jpg"]
    assert [(result["image_id"], result["file_name"]) for result in results[::3]] == list(enumerate(files, start=1))
    detector = Detector.load(place / "runs" / "untrained", "cpu")
    for number, file in enumerate(files):
        found, rows = detector(file)[:3], results[3 * number : 3 * number + 3]
        boxes = xywh_to_xyxy(np.array([row["bbox"] for row in rows]))
        np.testing.assert_allclose(boxes, found.boxes, atol=0.02)
        np.testing.assert_allclose([row["score"] for row in rows], found.scores, atol=1e-5)
        assert [row["category_name"] for row in rows] == found.names
        assert [row["category_id"] for row in rows] == [CATEGORY_IDS[name] for name in found.names]


def annotations(place, names):
    """The generated set's annotations with these ids and file names instead of its own."""
    document = json.loads((place / "shapes" / "annotations" / "instances_val.json").read_text())
    ids = dict(zip([image["id"] for image in document["images"]], [id_ for id_, _ in names], strict=True))
    document["images"] = [
        {**image, "id": i, "file_name": n} for image, (i, n) in zip(document["images"], names, strict=True)
    ]
    for annotation in document["annotations"]:
        annotation["image_id"] = ids[annotation["image_id"]]
    Path("ids.json").write_text(json.dumps(document))
    return "ids.json"


def test_image_ids_are_those_of_the_annotations(place, photos, capsys):
    """Two files are called a.jpg in the annotations: their folders decide. The third of that name is not named."""
    names = [(70, "one/a.jpg"), (8, "two\\a.jpg"), (900, "elsewhere/b c.jpg"), (1, "missing.jpg")]
    file = annotations(place, names)
    assert detect(place, "photos", "--image-ids", file) == 0
    ids = {row["file_name"]: row["image_id"] for row in detections()}
    assert ids == {"photos/one/a.jpg": 70, "photos/one/two/a.jpg": 8, "photos/one/b c.jpg": 900}
    left_out = f"not named by {file}, and left out: 1 of 4 images: photos/a.jpg\n"
    assert left_out in capsys.readouterr().out
    assert len(COCO(file).loadRes("detections/detections.json").getImgIds()) == 4


@pytest.mark.parametrize(
    ("names", "problem"),
    [
        (["a.jpg", "b c.jpg", "x.jpg", "y.jpg"], "which of photos/a.jpg, photos/one/a.jpg, .* is its image 1 cannot"),
        (["x/two/a.jpg", "y/two/a.jpg", "1.jpg", "2.jpg"], "which of photos/one/two/a.jpg is its image 1, 2 cannot"),
        (["1.jpg", "2.jpg", "3.jpg", "4.jpg"], "has none of the file names, such as a.jpg$"),
    ],
)
def test_image_ids_that_cannot_be_told_are_refused(place, photos, names, problem):
    file = annotations(place, list(enumerate(names, start=1)))
    with pytest.raises(UserError, match=problem):
        detect(place, "photos", "--image-ids", file)
    assert not Path("detections").exists()


def test_yolos_text_files(place, photos):
    cv2.imwrite("photos/none.png", np.zeros((60, 80, 3), np.uint8))
    assert detect(place, "photos", "--save-txt", "--score-threshold", 0.3, "--max-detections", 3) == 0
    labels = [name for name in files_in("detections") if name.startswith("labels/")]
    stems = ["a", "none", "one/a", "one/b c", "one/two/a"]
    assert labels == [f"labels/{stem}.txt" for stem in stems], "one for each image, whatever is on it"
    names = yaml.safe_load(Path("detections/data.yaml").read_text())["names"]
    assert names == dict(enumerate(["circle", "square", "triangle", "star", "ring"]))
    for file in ("a.jpg", "one/b c.jpg"):
        rows = [row for row in detections() if row["file_name"] == f"photos/{file}"]
        height, width = cv2.imread(f"photos/{file}").shape[:2]
        lines = Path("detections/labels", file).with_suffix(".txt").read_text().splitlines()
        assert len(lines) == len(rows) > 0
        for line, row in zip(lines, rows, strict=True):
            number, *values = line.split()
            assert names[int(number)] == row["category_name"]
            x, y, w, h = row["bbox"]
            expected = [(x + w / 2) / width, (y + h / 2) / height, w / width, h / height, row["score"]]
            np.testing.assert_allclose([float(value) for value in values], expected, atol=1e-3)


def test_yolos_text_files_overwrite_no_labels(place, photos):
    shutil.copy("photos/a.jpg", "photos/a.JPG")
    shared = r"photos/a\.JPG, photos/a\.jpg would share detections/labels/a\.txt: give each"
    with pytest.raises(UserError, match=shared):
        detect(place, "photos", "--save-txt")
    Path("set", "labels").mkdir(parents=True)
    for _ in range(2):
        with pytest.raises(UserError, match=r"set/labels is there and not of infer\.sh's making"):
            detect(place, "photos/a.jpg", "--save-txt", "--output-dir", "set")
        assert detect(place, "photos/a.jpg", "--save-txt", "--output-dir", "own") == 0


def test_a_table(place, photos):
    shutil.copy("photos/a.jpg", '=odd, "name".jpg')
    detect(place, '=odd, "name".jpg', "photos/a.jpg", "--save-csv", "--max-detections", 4)
    with Path("detections/detections.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["file", "x1", "y1", "x2", "y2", "score", "category_id", "name"] and len(rows) == 8
    assert {row["file"] for row in rows} == {'\'=odd, "name".jpg', "photos/a.jpg"}
    for row, found in zip(rows, detections(), strict=True):
        box = xywh_to_xyxy(np.array(found["bbox"]))
        np.testing.assert_allclose([float(row[side]) for side in ("x1", "y1", "x2", "y2")], box, atol=0.011)
        about = (float(row["score"]), int(row["category_id"]), row["name"])
        assert about == (found["score"], found["category_id"], found["category_name"])


def test_objects_are_cut_out(place, photos):
    detect(place, "photos", "--save-crop", "--max-detections", 3)
    crops = sorted(path for path in Path("detections/crops").rglob("*") if path.is_file())
    assert len(crops) == len(detections()) == 12
    for number, row in enumerate([row for row in detections() if row["file_name"] == "photos/one/b c.jpg"], start=1):
        crop = cv2.imread(f"detections/crops/{row['category_name']}/one/b c-{number:03d}.jpg")
        x1, y1, x2, y2 = xywh_to_xyxy(np.array(row["bbox"]))
        x1, y1, x2, y2 = int(x1), int(y1), int(np.ceil(x2)), int(np.ceil(y2))
        expected = cv2.imread("photos/one/b c.jpg")[y1:y2, x1:x2]
        assert np.abs(np.array(crop.shape) - expected.shape).max() <= 1, "coordinates in the list are rounded"
        if crop.shape == expected.shape:
            assert np.abs(crop.astype(int) - expected).mean() < 8
    with pytest.raises(UserError, match="is in photos/crops, where crops go"):
        (photos / "crops").mkdir()
        shutil.copy("photos/a.jpg", "photos/crops")
        detect(place, "photos/crops", "--save-crop", "--output-dir", "photos")


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("traffic light", "traffic light"),
        ("../../etc", "_.._etc"),
        ("a/b\0c\n", "a_b_c_"),
        ("..", "_"),
        ("犬" * 300, "犬" * 60),
    ],
)
def test_a_class_name_makes_a_safe_folder(name, folder):
    assert folder_name(name) == folder


def test_the_score_threshold(place, photos):
    detect(place, "photos/a.jpg")
    scores = [result["score"] for result in detections()]
    assert scores == sorted(scores, reverse=True) and len(scores) == 100
    for threshold in (scores[50], 0.99):
        detect(place, "photos/a.jpg", "--score-threshold", threshold)
        assert [result["score"] for result in detections()] == [score for score in scores if score > threshold]


def test_the_score_threshold_of_the_best_f1(place, photos, tmp_path, monkeypatch, capsys):
    run_folder = shutil.copytree(place / "runs" / "untrained", tmp_path / "run")
    arguments = ["--weights", "run", "photos/a.jpg", "--device", "cpu", "--score-threshold", "best"]
    contents = [None, "{}", "[]", "not JSON"]
    contents += [f'{{"best_f1": {{"score_threshold": {value}}}}}' for value in ("1", '"x"')]
    contents += [f'{{"best_f1": {{"score_threshold": 0.5}}, "tiles": {{"side": {side}}}}}' for side in ("640", '"x"')]
    for content in contents:
        if content:
            (run_folder / "coco_metrics.json").write_text(content)
        with pytest.raises(UserError, match=r"run/coco_metrics\.json is not there .*; bash eval\.sh --weights run"):
            infer.main(arguments)
    (run_folder / "coco_metrics.json").write_text('{"best_f1": {"score_threshold": 0.59}}')
    monkeypatch.setattr(infer, "detect", lambda options: options.score_threshold)
    assert infer.main(arguments) == 0.59
    tiles, other = "tiles of 640 pixels that overlap by 0.2", "need not be the best here; bash eval.sh --weights run"
    for found_on, *given in (
        ("without tiles", None),
        ("without tiles", f"{other} --tiles auto --tile-overlap 0.2 finds", "--tiles", "auto"),
        (tiles, None, "--tiles", "640"),
        (tiles, None, "--tiles", "auto"),
        (tiles, f"{other} --tiles auto --tile-overlap 0.5", "--tiles", "auto", "--tile-overlap", "0.5"),
        (tiles, f"{other} --tiles 320", "--tiles", "320"),
        (tiles, f"{other} --tiles 640 --tile-overlap 0.3", "--tiles", "640", "--tile-overlap", "0.3"),
        (tiles, f"{other} finds"),
        ("without tiles", f"{other} --mirror finds", "--mirror"),
        ("without tiles, mirrored too", None, "--mirror"),
        ("without tiles, mirrored too", f"{other} finds"),
    ):
        on = "" if found_on != tiles else ', "tiles": {"side": 640, "overlap": 0.2}'
        on += ', "mirror": true' * found_on.endswith("mirrored too")
        (run_folder / "coco_metrics.json").write_text(f'{{"best_f1": {{"score_threshold": 0.59}}{on}}}')
        advice, *given = given or [None]
        assert infer.main([*arguments, *given]) == 0.59
        said = capsys.readouterr().out
        assert f"best: 0.59, found {'on ' * (found_on == tiles)}{found_on}\n" in said
        assert (advice in said) if advice else ("need not" not in said)


def test_nothing_but_broken_images(place, photos, capsys):
    Path("broken.jpg").write_bytes(b"")
    assert detect(place, "broken.jpg") == 1
    assert detections() == []
    assert capsys.readouterr().err == "not read: broken.jpg: the file is empty\n"


def test_names_that_meet_get_pictures_of_their_own(place, photos):
    """Names that differ in the suffix alone, and those that a picture of another would have."""
    names = ("a.jpg", "a.png", "a.jpeg", "a.png.jpg", "a.png.jpg.jpg")
    image = cv2.imread("photos/a.jpg")
    for number, name in enumerate(names, start=1):
        cv2.imwrite(f"photos/{name}", image[: 30 * number])
    detect(place, *(f"photos/{name}" for name in names))
    heights = {path.name: cv2.imread(str(path)).shape[0] for path in Path("detections").glob("*.jpg")}
    of_pngs = {"a.png.jpg": 120, "a.png.jpg.jpg": 150, "a.png.jpg.jpg.jpg": 60}
    assert heights == {"a.jpg": 30, "a.jpeg.jpg": 90, **of_pngs}


@pytest.mark.parametrize("output", ["photos", "./photos/", "other/../photos"])
def test_pictures_do_not_overwrite_images(place, photos, output):
    Path("other").mkdir()
    before = {path: path.read_bytes() for path in photos.rglob("*.jpg")}
    with pytest.raises(UserError, match=r"--output-dir .*would overwrite the image .*photos/a\.jpg"):
        detect(place, "photos", "--output-dir", output)
    assert {path: path.read_bytes() for path in photos.rglob("*") if path.is_file()} == before


def test_pictures_stay_in_the_output_folder_wherever_images_come_from(place, photos, monkeypatch):
    Path("work/deep").mkdir(parents=True)
    shutil.copy(photos / "a.jpg", "work/deep/b.jpg")
    monkeypatch.chdir("work")
    before = Path("../photos/a.jpg").read_bytes()
    detect(place, "../photos/a.jpg", "deep/b.jpg", "--output-dir", "../out")
    assert files_in("../out") == ["detections.json", "photos/a.jpg", "report.html", "work/deep/b.jpg"]
    assert Path("../photos/a.jpg").read_bytes() == before


@pytest.mark.parametrize("named", ["runs/untrained", "runs/untrained/best.safetensors", None])
def test_without_images_the_newest_run_shows_what_it_was_evaluated_on(place, tmp_path, monkeypatch, named):
    monkeypatch.chdir(place)
    weights = ["--weights", named] if named else []
    assert infer.main([*weights, *LOW, "--output-dir", str(tmp_path / "out")]) == 0
    pictures = [f"{number:06d}.jpg" for number in range(1, IMAGES + 1)]
    assert files_in(tmp_path / "out") == [*pictures, "detections.json", "report.html"]


def test_no_more_than_a_dozen_images_are_shown(place, tmp_path):
    for number in range(20):
        (tmp_path / f"{number:02d}.jpg").touch()
    (tmp_path / "options.json").write_text(json.dumps({"val_images_folder": str(tmp_path)}))
    assert infer.samples_of(tmp_path) == [tmp_path / f"{number:02d}.jpg" for number in range(12)]


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ([], "no run with weights in .*/runs: train first"),
        (["--weights", "nothing"], "--weights nothing: there is no such file or folder"),
        (["--weights", "best.safetensors"], "best.safetensors: name images or folders"),
        (["nothing.jpg"], "'nothing.jpg': no such file or folder"),
        (["--weights", "best.safetensors", "empty"], "empty: no image in this folder"),
        (["--weights", "nothing", "a.jpg"], "nothing: no such file of weights"),
        (["--weights", "a.jpg", "a.jpg"], "a.jpg: it is of no format that is known here"),
        (["--weights", "best.safetensors", "a.jpg", "--device", "gpu"], "--device gpu: write cpu, cuda or cuda:N"),
    ],
)
def test_what_is_wrong_is_said(place, tmp_path, monkeypatch, arguments, problem):
    monkeypatch.chdir(tmp_path)
    shutil.copy(place / "runs" / "untrained" / "best.safetensors", tmp_path)
    shutil.copy(place / "shapes" / "val" / "000001.jpg", tmp_path / "a.jpg")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=problem):
        infer.main(arguments)
    assert not os.path.exists("detections")  # noqa: PTH110


def test_a_folder_that_cannot_be_written_is_no_traceback(place, photos):
    Path("file").touch()
    arguments = ("--weights", place / "runs" / "untrained", "photos/a.jpg", "--output-dir", "file/out")
    process = run("infer", *arguments, folder=photos.absolute().parent)
    assert process.returncode == 2
    assert process.stderr == "infer.sh: file/out cannot be written (Not a directory): name another folder\n"


def test_a_turned_photograph_is_shown_upright(place, photos):
    exif = Image.Exif()
    exif[0x0112] = 6
    with Image.open(photos / "a.jpg") as image:
        width, height = image.size
        image.save("turned.jpg", exif=exif)
    detect(place, "turned.jpg")
    assert cv2.imread("detections/turned.jpg").shape == (width, height, 3)
    boxes = xywh_to_xyxy(np.array([result["bbox"] for result in detections()]))
    assert (boxes[:, 2] <= height + 0.01).all() and (boxes[:, 3] <= width + 0.01).all()


def test_results_inside_the_images_folder_are_never_taken_for_images(place, photos, capsys):
    for _ in range(2):
        assert detect(place, "photos", "--output-dir", "photos/out") == 0
        assert len({row["file_name"] for row in detections("photos/out")}) == 4
    assert "photos/out holds an earlier call's detections: detections.json and" in capsys.readouterr().out


@pytest.mark.parametrize("paths", [["photos/**/*.jpg"], ["photos/*"], ["photos/a.jpg", "photos/out/a.jpg"]])
def test_patterns_do_not_reach_into_the_results(photos, paths):
    """The shell's neither, whose matches come as files."""
    (photos / "out" / "deep").mkdir(parents=True)
    shutil.copy("photos/a.jpg", "photos/out/a.jpg")
    shutil.copy("photos/a.jpg", "photos/out/deep/b.jpg")
    found = find_images(paths, leave_out=Path("photos/../photos/out"))
    assert found and not [path for path in found if "out" in path.parts]
    assert len(find_images(["photos/out/*.jpg"], leave_out=Path("photos"))) == 1, "what is named is taken"


@pytest.mark.parametrize("pattern", ["**/*.jpg", "photos/**/*.jpg", "**/photos/**/*.jpg", "p**s/**/*.jpg"])
def test_a_pattern_looks_into_each_folder_once(photos, pattern):
    """Two links to the folder that they are in would make a trillion paths."""
    expected = [path for path in find_images(["photos"]) if path.suffix == ".jpg"]
    (photos / "x").symlink_to(".")
    (photos / "y").symlink_to(".")
    assert find_images([pattern]) == expected


def test_what_is_no_image_is_named_and_the_others_are_done(place, photos, capsys):
    (photos / "broken.jpg").write_bytes(b"\xff\xd8\xff broken")
    os.mkfifo(photos / "p.jpg")
    (photos / "self.jpg").symlink_to("self.jpg")
    (photos / "scan.jp2").touch()
    (photos / "IMG_1.HEIC").write_bytes(b"\0\0\0\x18ftypheic" + bytes(50))
    assert detect(place, "photos") == 1
    output, errors = capsys.readouterr()
    assert "no image by their names, and left out: 1 .jp2\n" in output and "4 images, " in output
    assert "not read: photos/p.jpg: a named pipe, not a file\n" in errors
    assert re.search(r"not read: photos/IMG_1\.HEIC: .* pip install pillow-heif\n", errors)
    assert "not read: photos/broken.jpg: " in errors and "not read: photos/self.jpg: " in errors
    assert len([name for name in files_in("detections") if name.endswith(".jpg")]) == 4
    assert len({row["file_name"] for row in detections()}) == 4


@pytest.mark.parametrize(
    ("option", "value", "problem"),
    [
        ("--max-detections", 201, "the detector gives 200 for each image at most"),
        ("--score-threshold", 1, "1 is not a number from 0 up to, but not including, 1"),
        ("--output-dir", "", "it is empty: name a folder"),
    ],
)
def test_values_without_sense_are_refused_in_plain_words(option, value, problem, capsys):
    with pytest.raises(SystemExit):
        infer.main([option, str(value)])
    assert problem in capsys.readouterr().err
