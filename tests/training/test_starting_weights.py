"""Where a training's first weights come from: its first checkpoint, before any step, beside the files named."""

import hashlib
import json
import re
import shutil

import numpy as np
import pytest
from file_server import Answer, directly_and_at_once, names, serving
from foreign_weights import (
    FOREIGN_WIDTH,
    by_published_names,
    published_trunk,
    random_detector,
    reduced_vgg16,
    write_pth,
)
from small_data import WIDTH, shapes_folder, untrained_run

from ssd300_vgg16 import evaluate, infer, train
from ssd300_vgg16.detector import Detector
from ssd300_vgg16.errors import UserError
from ssd300_vgg16.training import trainer
from ssd300_vgg16.training.checkpoint import load_checkpoint
from ssd300_vgg16.weights.locate import BEST, LAST
from ssd300_vgg16.weights.published import PUBLISHED, Published, Source
from ssd300_vgg16.weights.recognise import read_as_ssd
from ssd300_vgg16.weights.safetensors_file import read_weights

SETTINGS = ("-b", 2, "-j", 0, "--device", "cpu", "--keep", 9)
SCORES = "head.classification_head.module_list"
BOXES = (4, 6, 6, 6, 4, 4)
NAME, TRUNK = "ssd300_vgg16_coco", "vgg16_amdegroot"
COCO_CLASSES = 91


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with generated shapes, a run on them, and files of others."""
    folder = tmp_path_factory.mktemp("starting")
    shapes_folder(folder, 2, 1)
    untrained_run(folder / "theirs")
    write_pth(folder / "voc.pth", random_detector("amdegroot"))
    write_pth(folder / "trunk.pth", reduced_vgg16())
    return folder


@pytest.fixture(autouse=True)
def offline(tmp_path, monkeypatch):
    """No published weights but those that a test serves, in a folder of its own."""
    directly_and_at_once(monkeypatch)
    monkeypatch.setenv("SSD_CACHE", str(tmp_path / "cache"))
    for name, entry in PUBLISHED.items():
        nowhere = Source(f"http://127.0.0.1:9/{name}.pth")
        monkeypatch.setitem(PUBLISHED, name, Published(name, entry.kind, "gone", (nowhere,)))


@pytest.fixture
def without_steps(monkeypatch):
    """Trainings end after their first checkpoint."""
    monkeypatch.setattr(trainer.Trainer, "train", trainer.Trainer._save)


@pytest.fixture
def begin(place, tmp_path):
    """What starts a training on the shapes; returns its first checkpoint's tensors, and its description as JSON."""

    def train_from(*arguments, data=place / "shapes", folder=tmp_path / "run"):
        call(train, "--data-path", data, "--output-dir", folder, *SETTINGS, "--iterations", 1, *arguments)
        return first_of(folder)

    return train_from


def call(module, *arguments):
    assert module.main([str(argument) for argument in arguments]) == 0


def first_of(folder):
    path = folder / "step-000000000.safetensors"
    return load_checkpoint(path).model, read_weights(path)[1]["model"]


def options_of(folder):
    return json.loads((folder / "options.json").read_text())


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)


def assert_taken_but_for_scores(found, expected):
    assert_same(*({n: a for n, a in each.items() if not n.startswith(SCORES)} for each in (found, expected)))


def test_the_same_classes_start_from_all_the_weights_of_a_run(place, begin, tmp_path, capsys):
    tensors, description = begin("--load", place / "theirs")
    expected, header = read_weights(place / "theirs" / BEST)
    assert_same(tensors, expected)
    assert description == header["model"] | {"tile_side": 404}
    assert "class scores                12 tensors  from the file" in capsys.readouterr().out
    assert (options_of(tmp_path / "run")["width"], options_of(tmp_path / "run")["default_boxes"]) == (WIDTH, "coco")
    after = load_checkpoint(tmp_path / "run" / LAST)
    assert after.progress.step == 1
    assert any((after.model[name] != array).any() for name, array in expected.items()), "it was trained from there"


@pytest.mark.parametrize(
    ("project", "size", "num_classes", "model", "boxes"),
    [
        ("amdegroot", 300, 21, "ssd300_vgg16", "voc"),
        ("lufficc", 300, 81, "ssd300_vgg16", "coco"),
        ("lufficc", 512, 21, "ssd512_vgg16", "voc"),
    ],
)
def test_network_width_and_default_boxes_follow_the_weights(
    begin, tmp_path, without_steps, capsys, project, size, num_classes, model, boxes
):
    theirs = random_detector(project, size, num_classes)
    tensors, description = begin("--load", write_pth(tmp_path / "w.pth", theirs))
    assert_taken_but_for_scores(tensors, by_published_names(theirs, size))
    assert (description["variant"], description["width"]) == (f"{model}_{boxes}", FOREIGN_WIDTH)
    assert description["num_classes"] == 6
    assert description["tile_side"] == 404, "of the shapes, not of the photographs that the weights are of"
    options = options_of(tmp_path / "run")
    assert (options["model"], options["width"], options["default_boxes"]) == (model, FOREIGN_WIDTH, boxes)
    output = capsys.readouterr().out
    assert f"w.pth: PyTorch zip, {project}'s names, {model}_{boxes}\n" in output
    assert "classes initialised: circle, square, triangle, star, ring\n" in output


def test_what_is_said_of_the_network_goes_before_the_weights(place, begin, tmp_path, without_steps, capsys):
    said = ("--model", "ssd512_vgg16", "--default-boxes", "coco")
    tensors, description = begin("--load", place / "voc.pth", *said)
    assert description["variant"] == "ssd512_vgg16_coco"
    theirs = by_published_names(random_detector("amdegroot"))
    np.testing.assert_array_equal(tensors["backbone.extra.0.7.3.weight"], theirs["backbone.extra.0.7.3.weight"])
    assert re.search(r"extra layers +20 tensors  16 of 20 from the file", capsys.readouterr().out)


@pytest.mark.parametrize(
    ("name", "array", "row"),
    [
        ("conf.2.weight", np.zeros(7, np.float32), r"class scores +12 tensors  11 of 12 from the file"),
        ("conf.3.bias", np.zeros(127, np.float32), r"class scores +12 tensors  11 of 12 from the file"),
        ("loc.0.bias", np.zeros((), np.float32), r"box offsets +12 tensors  11 of 12 from the file"),
        ("extras.0.bias", None, r"extra layers +16 tensors  15 of 16 from the file"),
    ],
)
def test_what_does_not_fit_is_initialised_and_said(begin, tmp_path, without_steps, capsys, name, array, row):
    theirs = {key: value for key, value in random_detector("amdegroot").items() if key != name}
    theirs |= {} if array is None else {name: array}
    begin("--load", write_pth(tmp_path / "w.pth", theirs))
    assert re.search(row, capsys.readouterr().out)


def test_a_trunk_alone_starts_vgg16(place, begin, without_steps, tmp_path):
    width = ("--width", FOREIGN_WIDTH)
    tensors, _ = begin("--weights-backbone", place / "trunk.pth", *width)
    trunk = published_trunk()
    assert_same({name: tensors[name] for name in trunk}, trunk)
    for name, array in tensors.items():
        if name not in trunk and name.endswith("weight") and name != "backbone.scale_weight":
            assert 0 < np.abs(array).max() < 1 and array.std() > 0.01, name
    assert options_of(tmp_path / "run")["trainable_backbone_layers"] == 4
    other, _ = begin("--load", place / "trunk.pth", *width, folder=tmp_path / "load")
    assert_same(other, tensors)


def test_of_a_whole_detector_weights_backbone_takes_vgg16_alone(place, begin, without_steps):
    """As its help says: the rest starts from nothing."""
    tensors, _ = begin("--weights-backbone", place / "voc.pth", "--width", FOREIGN_WIDTH)
    theirs = by_published_names(random_detector("amdegroot"))
    trunk = published_trunk()
    assert_same({name: tensors[name] for name in trunk}, trunk)
    for name in theirs.keys() - trunk.keys():
        assert tensors[name].shape != theirs[name].shape or (tensors[name] != theirs[name]).all(), name


def test_from_nothing(begin, tmp_path, without_steps, capsys):
    tensors, description = begin("--weights-backbone", "none", "--width", WIDTH)
    assert description["variant"] == "ssd300_vgg16_coco"
    again, _ = begin("--weights-backbone", "none", "--width", WIDTH, folder=tmp_path / "again")
    other, _ = begin("--weights-backbone", "none", "--width", WIDTH, "--seed", 1, folder=tmp_path / "other")
    assert_same(again, tensors)
    weights = [name for name in tensors if name.endswith(".weight")]
    assert all((tensors[name] != other[name]).any() for name in weights)
    assert "starting from" not in capsys.readouterr().out
    assert options_of(tmp_path / "run")["trainable_backbone_layers"] == 5
    assert not (tmp_path / "cache").exists()


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A server of a detector for COCO, which is the only source of NAME now."""
    theirs = random_detector("amdegroot", num_classes=COCO_CLASSES)
    body = write_pth(tmp_path / "served.pth", theirs).read_bytes()
    with serving() as server:
        source = Source(server.url(), len(body), hashlib.sha256(body).hexdigest())
        monkeypatch.setitem(PUBLISHED, NAME, Published(NAME, "detector", "for tests", (source,)))
        server.answers = [Answer(body)]
        yield server


@pytest.mark.parametrize("option", [("--pretrained",), ("--load", NAME)])
def test_published_weights_are_downloaded_once(server, begin, tmp_path, without_steps, option):
    for number in range(2):
        tensors, description = begin(*option, folder=tmp_path / f"run{number}")
        theirs = random_detector("amdegroot", num_classes=COCO_CLASSES)
        assert_taken_but_for_scores(tensors, by_published_names(theirs))
        assert description["width"] == FOREIGN_WIDTH
        assert options_of(tmp_path / f"run{number}")["load"] == NAME
    assert len(server.requests) == 1
    assert names(tmp_path / "cache") == ["weights.pth", "weights.pth.json"]


def test_the_backbone_of_a_full_width_is_downloaded_by_itself(begin, tmp_path):
    """Before the run's folder is made: without a network there is nothing left behind, and what to do is said."""
    with pytest.raises(UserError, match=r"vgg16_amdegroot could not be downloaded:(.|\n)*Without a network"):
        begin()
    assert not (tmp_path / "run").exists()


def test_trouble_with_the_data_is_told_before_a_download(server, tmp_path):
    with pytest.raises(UserError, match="no COCO-style, VOC or YOLO data set found"):
        call(train, "--pretrained", "--data-path", tmp_path, *SETTINGS)
    assert server.requests == []


def coco_shapes(place, tmp_path):
    """The validation set with three of COCO's names, as a detector for COCO can be evaluated on it."""
    objects = ("person", "dog", "cup", "chair", "vase")
    content = json.loads((place / "shapes" / "annotations" / "instances_val.json").read_text())
    for category, name in zip(content["categories"], objects, strict=True):
        category["name"] = name
    path = tmp_path / "as_coco.json"
    path.write_text(json.dumps(content))
    return ("--val-annotations", path, "--val-images", place / "shapes" / "val", "-j", 0, "--device", "cpu")


def test_published_weights_are_tested_and_leave_nothing_in_the_cache(server, place, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    data = coco_shapes(place, tmp_path)
    written = tmp_path / "evaluations" / NAME
    for module, arguments in ((train, ("--test-only", "--pretrained")), (evaluate, ("--weights", NAME))):
        call(module, *arguments, *data)
        expected = ["coco_metrics.json", "detections.json", "report.html", "suspicious_labels.csv"]
        assert names(written) == expected
        shutil.rmtree(written)
        output = capsys.readouterr().out
        assert re.search(r"^AP50 +0.50 +all", output, re.MULTILINE)
        assert f"written: evaluations/{NAME}/coco_metrics.json, " in output
    assert len(server.requests) == 1
    assert names(tmp_path / "cache") == ["onnx", "weights.pth", "weights.pth.json"]


def test_published_weights_detect_by_their_name(server, place, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (image,) = (place / "shapes" / "val").iterdir()
    found = Detector.load(NAME, "cpu", 0.0)(image)
    assert len(found["names"]) > 0 and set(found["names"]) <= {c.name for c in read_as_ssd_categories(tmp_path)}
    call(infer, image, "--weights", NAME, "--score-threshold", 0, "--device", "cpu", "--output-dir", "out")
    written = json.loads((tmp_path / "out" / "detections.json").read_text())
    assert [row["category_name"] for row in written] == found["names"][:100]
    assert len(server.requests) == 1
    with pytest.raises(UserError, match=f"--weights {NAME}: name images or folders"):
        infer.main(["--weights", NAME])


def read_as_ssd_categories(tmp_path):
    return read_as_ssd(tmp_path / "served.pth").description.categories


def test_weights_that_are_not_there_leave_no_folder(place, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="nosuch"):
        evaluate.main(["--weights", "nosuch/best.safetensors", *map(str, coco_shapes(place, tmp_path))])
    assert not (tmp_path / "nosuch").exists()


@pytest.mark.parametrize("weights", ["voc.pth", "trunk.pth", "theirs"])
def test_another_width_is_refused_and_does_not_use_up_the_folder(place, begin, tmp_path, weights):
    for _ in range(2):
        with pytest.raises(UserError, match=rf"{weights}.*: backbone\.features\.0\.weight is .* Give the --width"):
            begin("--load", place / weights, "--width", 0.2)
    assert not (tmp_path / "run" / "options.json").exists()
    assert not list((tmp_path).rglob("*.safetensors"))


class Killed(BaseException):
    """Stands for a SIGKILL."""


def kill(self):
    raise Killed


@pytest.mark.parametrize("start", ["voc.pth", "backbone", "name", "none"])
def test_a_run_killed_before_its_first_checkpoint_starts_the_same_again(
    server, place, begin, tmp_path, monkeypatch, capsys, start
):
    arguments = {
        "voc.pth": ("--load", place / "voc.pth"),
        "backbone": ("--weights-backbone", place / "trunk.pth", "--width", FOREIGN_WIDTH),
        "name": ("--pretrained",),
        "none": ("--weights-backbone", "none", "--width", WIDTH),
    }[start]
    with monkeypatch.context() as patch:
        patch.setattr(trainer.Trainer, "train", trainer.Trainer._save)
        expected, description = begin(*arguments, folder=tmp_path / "whole")
        patch.setattr(trainer.Trainer, "train", kill)
        with pytest.raises(Killed):
            begin(*arguments)
        for _ in range(2):  # killed once more, it has not forgotten either
            assert not (tmp_path / "run" / LAST).exists()
            with pytest.raises(Killed):
                call(train, "--resume", tmp_path / "run", "-j", 0)
        patch.setattr(trainer.Trainer, "train", trainer.Trainer._save)
        call(train, "--resume", tmp_path / "run", "-j", 0)
    found, again = first_of(tmp_path / "run")
    assert again == description
    assert_same(found, expected)
    assert len(options_of(tmp_path / "run")["commands"]) == 4
    assert "has no checkpoint yet: starting it from the beginning." in capsys.readouterr().out


def test_with_a_checkpoint_the_first_weights_are_not_needed_any_more(place, begin, tmp_path, without_steps):
    source = write_pth(tmp_path / "w.pth", random_detector("amdegroot"))
    expected, _ = begin("--load", source)
    source.unlink()
    call(train, "--resume", tmp_path / "run", "-j", 0)
    assert_same(first_of(tmp_path / "run")[0], expected)


def test_processes_that_go_on_from_a_checkpoint_need_no_download(
    server, place, begin, tmp_path, without_steps, monkeypatch
):
    """What starts several processes downloads beforehand, once, what they start from, and nothing else."""
    begin("--pretrained")
    shutil.rmtree(tmp_path / "cache")
    server.answers = [Answer(status=404)]
    monkeypatch.setenv("NPROC", "2")
    monkeypatch.setattr(train, "supervise", lambda *arguments, **options: 0)
    call(train, "--resume", tmp_path / "run")
    shutil.copy(place / "theirs" / BEST, tmp_path / "of no run")
    for arguments in (
        ("--resume", tmp_path / "run"),
        ("--resume", tmp_path / "of no run"),
        ("--load", place / "theirs"),
    ):
        call(train, "--test-only", *arguments, "--data-path", place / "shapes")
    assert len(server.requests) == 1
    with pytest.raises(UserError, match="404"):
        call(train, "--pretrained", "--data-path", place / "shapes", *SETTINGS)
