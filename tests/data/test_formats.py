"""Data sets of all kinds by what the command lines say of them."""

import json
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
from small_data import emptied, shapes_folder
from voc_files import image_set, one_cat_each, thing, write_pairs, write_voc, xml
from yolo_files import GOOD, write_yolo

from ssd300_vgg16.data.categories import match_names, same_name
from ssd300_vgg16.data.dataset import Category
from ssd300_vgg16.data.formats import KINDS, TOLD_BY_CONTENT, DataSource, guess_kind, split_location
from ssd300_vgg16.errors import UserError


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """A data set of each kind."""
    folder = tmp_path_factory.mktemp("data")
    files = {"1": xml(thing()), "2": xml(thing("dog"), thing())}
    write_voc(folder / "VOCdevkit" / "VOC2007", files, {"train": ["1"], "val": ["2"]})
    yaml = "train: images/train\nval: images/train\nnames: [cat, dog]\n"
    return {
        "coco": shapes_folder(folder, 2, 1),
        "voc": folder / "VOCdevkit",
        "yolo": write_yolo(folder / "yolo", {"a": GOOD}, yaml),
    }


@pytest.mark.parametrize(("kind", "sizes"), [("coco", (2, 1)), ("voc", (1, 1)), ("yolo", (1, 1))])
def test_all_kinds_have_one_interface(places, kind, sizes):
    source = DataSource(kind, places[kind])
    train = source.load("train")
    val = source.load("val", train.categories)
    assert (len(train.samples), len(val.samples)) == sizes
    assert train.kind == val.kind == kind
    label_of = {category.name: category.label for category in train.categories}
    assert all(label_of[category.name] == category.label for category in val.categories)
    for split in ("train", "val"):
        assert all(isinstance(path, Path) and path.exists() for path in source.locate(split))
    for sample in (*train.samples, *val.samples):
        count = len(sample.labels)
        assert sample.boxes.shape == (count, 4)
        for column in (sample.crowd, sample.difficult):
            assert column.shape == (count,) and column.dtype == np.bool_


@pytest.mark.parametrize("kind", ["coco", "voc", "yolo"])
def test_an_image_that_has_lost_its_annotations_is_known_from_an_empty_one(tmp_path, kind):
    if kind == "voc":
        files = {"1": xml(thing()), "2": xml(), "3": xml(thing(" "))}
        write_voc(tmp_path / "data", files, {"train": ["1", "2", "3"], "val": ["1"]})
    elif kind == "yolo":
        labels = {"a": GOOD, "b": "", "c": "0\n", "d": None, "e": b"\xff\xfe\x00"}
        write_yolo(tmp_path / "data", labels, "train: images/train\nval: images/train\nnames: [cat, dog]\n")
    else:
        emptied(shapes_folder(tmp_path, 3, 1), 2).rename(tmp_path / "data")
        path = tmp_path / "data" / "annotations" / "instances_train.json"
        content = json.loads(path.read_text())
        content["annotations"].append(content["annotations"][0] | {"image_id": 2, "bbox": None})
        path.write_text(json.dumps(content))
    samples = DataSource(kind, tmp_path / "data").load("train").samples
    found = [("objects" if len(sample.labels) else "lost" if sample.incomplete else "empty") for sample in samples]
    expected = {
        "coco": ["empty", "lost", "objects"],
        "voc": ["objects", "empty", "lost"],
        "yolo": ["objects", "empty", "lost", "empty", "lost"],
    }
    assert found == expected[kind]


@pytest.mark.parametrize("kind", ["voc", "yolo"])  # COCO's: test_coco.py
def test_strict_refuses_what_is_otherwise_counted(tmp_path, kind):
    if kind == "voc":
        files = {"1": xml(thing(), thing(box=(5, 5, 5, 5)), thing(" "))}
        write_voc(tmp_path / "data", files, {"train": ["1"], "val": ["1"]})
    else:
        yaml = "train: images/train\nval: images/train\nnames: [cat]\n"
        write_yolo(tmp_path / "data", {"a": f"{GOOD}0 0.5 0.5 0 0\n0\n"}, yaml)
    problems = DataSource(kind, tmp_path / "data").load("train").problems
    assert f"{problems.source}: 1 of 3 objects left out\n  1 x " in problems.message()
    assert "1 of 3 objects not trained on, but counted in an evaluation\n  1 x box of no area: " in problems.message()
    with pytest.raises(UserError) as caught:
        DataSource(kind, tmp_path / "data", strict=True).load("train")
    assert str(caught.value).startswith(problems.message())


def test_a_split_of_voc_can_be_named(places):
    folder = places["voc"] / "VOC2007"
    val = split_location("val", str(image_set(folder, "train")), None)
    source = DataSource("voc", val=val)
    assert source.locate("val") == (image_set(folder, "train"),)
    assert [sample.path.name for sample in source.load("val").samples] == ["1.jpg"]
    with pytest.raises(UserError, match="--dataset voc needs --data-path"):
        source.locate("train")
    images = split_location("val", str(image_set(folder, "train")), str(folder / "ImageSets"))
    with pytest.raises(UserError, match=r"image missing in .*ImageSets"):
        DataSource("voc", val=images).load("val")
    with pytest.raises(UserError, match="no such file"):
        DataSource("voc", val=(Path("nowhere/ImageSets/Main/val.txt"), None)).locate("val")


def test_splits_of_voc_can_be_folders_of_xml_files(tmp_path):
    folder = write_pairs(tmp_path / "xml", one_cat_each("1"), tmp_path / "images")
    beside = write_pairs(tmp_path / "beside", one_cat_each("2"))
    train = split_location("train", str(folder), str(tmp_path / "images"))
    source = DataSource("voc", train=train, val=split_location("val", str(beside), None))
    assert (source.locate("train"), source.locate("val")) == ((folder,), (beside,))
    paths = [source.load(split).samples[0].path for split in ("train", "val")]
    assert paths == [tmp_path / "images" / "1.jpg", beside / "2.jpg"]
    empty = split_location("val", str(tmp_path / "images"), None)
    with pytest.raises(UserError, match="images: no XML file in this folder"):
        DataSource("voc", val=empty).locate("val")


@pytest.mark.parametrize(
    ("kind", "given", "message"),
    [
        ("coco", ("a.json", None), "--val-annotations needs --val-images with it"),
        ("shapes", ("a.json", None), "--val-annotations needs --val-images with it"),
        ("yolo", ("a.json", "images"), r"--val-annotations: the places .* are in its data\.yaml"),
        ("voc", (None, "images"), "--val-images needs --val-annotations with it"),
    ],
)
def test_places_that_a_kind_has_no_use_for(kind, given, message):
    with pytest.raises(UserError, match=message):
        DataSource(kind, Path("somewhere"), val=split_location("val", *given))


@pytest.mark.parametrize("kind", ["voc", "yolo"])
def test_kinds_without_a_usual_place(kind):
    source = DataSource(kind)
    assert not source.is_absent()
    with pytest.raises(UserError, match=f"--dataset {kind} needs --data-path with it"):
        source.locate("train")


@pytest.mark.parametrize(("kind", "place"), list(permutations(("coco", "voc", "yolo"), 2)))
def test_another_kind_of_data_set_is_recognised(places, kind, place):
    for split in ("train", "val"):
        with pytest.raises(UserError, match=f"this looks like .*: add --dataset {place}$") as caught:
            DataSource(kind, places[place]).locate(split)
        assert str(places[place]) in str(caught.value)


def test_an_incomplete_data_set_of_the_kind_says_what_is_missing(places, tmp_path):
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "instances_val.json").touch()
    with pytest.raises(UserError, match=r"no train split there: .*instances_train\.json.*--train-annotations"):
        DataSource("coco", tmp_path).locate("train")
    write_voc(tmp_path / "voc", one_cat_each("1"), {"val": ["1"]})
    with pytest.raises(UserError, match=r"voc: no train split there: .*ImageSets/Main/train\.txt.*--train-annotations"):
        DataSource(path=tmp_path / "voc").locate("train")
    with pytest.raises(UserError, match=r"nowhere: no such folder; name that of a data set"):
        DataSource("coco", tmp_path / "nowhere").locate("train")


def test_the_kind_is_guessed_from_the_content(places, tmp_path):
    for kind, place in places.items():
        assert guess_kind(place) == kind
    voc = places["voc"] / "VOC2007"
    assert guess_kind(voc) == guess_kind(image_set(voc, "val")) == guess_kind(voc / "Annotations" / "1.xml") == "voc"
    assert guess_kind(places["voc"].parent) == "voc"
    assert guess_kind(places["yolo"] / "data.yaml") == "yolo"
    assert guess_kind(str(places["coco"] / "annotations" / "instances_val.json")) == "coco"
    assert guess_kind(tmp_path) is guess_kind(tmp_path / "nowhere") is None
    for name in ("train", "val", "valid", "Annotations"):
        pairs = write_pairs(tmp_path / name / name, one_cat_each("1"))
        assert guess_kind(pairs) == guess_kind(pairs.parent) == "voc"
    (tmp_path / "train" / "environment.yml").write_text("name: cats\ndependencies: [python]\n")
    assert guess_kind(tmp_path / "train") == "voc"
    (tmp_path / "train" / "data.yaml").write_text("train: images\nval: images\nnames: [cat]\n")
    with pytest.raises(UserError, match=r"VOC \(.*\) and a YOLO data set \(.*data\.yaml\): .*--dataset voc or yolo"):
        guess_kind(tmp_path / "train")
    with pytest.raises(UserError, match="looks like VOC: add --dataset voc"):
        DataSource("coco", tmp_path / "val").locate("train")
    assert {*places, "shapes", TOLD_BY_CONTENT} == set(KINDS)


def test_names_of_the_same_thing():  # all of VOC's: test_voc.py
    assert same_name("Cat") == same_name(" cat ") and same_name("aeroplane") == same_name("Airplane")
    assert same_name("cat") != same_name("cats") and same_name("table") != same_name("dining table")


def test_names_are_matched_by_id_then_spelling_then_meaning():
    given = (Category(1, 10, "sofa"), Category(2, 20, "couch"), Category(3, 30, "cat"), Category(4, 40, "Cat"))

    def labels(names):
        return {key: category.label for key, category in match_names(names, given, "here").items()}

    assert labels({1: "couch", 2: "sofa", 40: "cat", 50: "CAT"}) == {1: 2, 2: 1, 40: 4, 50: 3}
    assert labels({"a": "Couch", "b": "horse"}) == {"a": 2}
    assert match_names({5: "tv"}, (Category(7, 7, "TVmonitor"),), "here") == {5: Category(7, 7, "TVmonitor")}
    assert match_names({5: "TV", 6: "tv"}, (Category(7, 7, "tv"),), "here") == {5: Category(7, 7, "tv")}
    with pytest.raises(UserError, match=r"here: none of its categories \(horse\) .* \(sofa, couch, cat, Cat\)"):
        labels({1: "horse"})
