"""VOC data sets: which images a split has, what the XML files say, and one message for all that is wrong."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from places import BCCD
from voc_files import image_set, one_cat_each, thing, write_pairs, write_voc, xml

from ssd300_vgg16.data.categories import COCO_CATEGORIES, VOC_CATEGORIES
from ssd300_vgg16.data.coco import load_coco
from ssd300_vgg16.data.coco_layout import find_coco_splits
from ssd300_vgg16.data.dataset import Category
from ssd300_vgg16.data.voc import load_voc
from ssd300_vgg16.data.voc_layout import find_voc_splits
from ssd300_vgg16.errors import UserError


@pytest.fixture
def load(tmp_path):
    """Writes the images with these XML files, in this order, and loads them."""

    def load_files(files, images=None, **options):
        folder = write_voc(tmp_path / "VOC", files, {"train": list(files)}, images)
        return load_voc([image_set(folder, "train")], **options)

    return load_files


def test_a_clean_folder(load, tmp_path):
    first = xml(thing("dog", (1, 1, 60, 40)), thing("cat", more="<difficult>1</difficult><truncated>1</truncated>"))
    dataset = load({"b": first, "a": xml()})
    assert dataset.name == str(tmp_path / "VOC" / "ImageSets" / "Main" / "train.txt")
    assert (dataset.kind, dataset.categories) == ("voc", (Category(1, 1, "cat"), Category(2, 2, "dog")))
    assert not dataset.problems
    b, a = dataset.samples
    assert (b.id, b.path, b.height, b.width) == (1, tmp_path / "VOC" / "JPEGImages" / "b.jpg", 40, 60)
    # Pixels 1 to 60 are all of an image 60 wide.
    assert b.boxes.tolist() == [[0, 0, 60, 40], [10, 10, 30, 20]]
    assert (b.labels.tolist(), b.difficult.tolist()) == ([2, 1], [False, True])
    assert (b.areas.tolist(), b.crowd.tolist()) == ([2400, 200], [False, False])
    assert (a.id, a.boxes.shape, a.difficult.shape) == (2, (0, 4), (0,))
    assert len(b.objects(40, 60)[0]) == 2, "difficult objects are trained on"


def test_the_marks_of_difficult_objects_are_part_of_the_fingerprint(load):
    plain, again, marked = (
        load({"1": xml(thing(more=more))}).fingerprint()
        for more in ("", "<difficult>0</difficult>", "<difficult>1</difficult>")
    )
    assert plain == again
    assert marked["sha256"] != plain["sha256"]


def names_of(image_sets):
    return [(path.parents[2].name, path.stem) for path in image_sets]


@pytest.fixture
def devkit(tmp_path):
    """2007 with all of its annotations, 2012 with few of those of its test set, as they were published."""
    sets = {"train": ["1"], "val": ["2"], "trainval": ["1", "2"], "test": ["3"]}
    write_voc(tmp_path / "VOCdevkit" / "VOC2007", one_cat_each("1", "2", "3"), sets)
    test = ["2012_3", "2012_4", "2012_5"]
    sets = {"train": ["2012_1"], "val": ["2012_2"], "trainval": ["2012_1", "2012_2"], "test": test}
    write_voc(tmp_path / "VOCdevkit" / "VOC2012", one_cat_each("2012_1", "2012_2", "2012_3"), sets)
    return tmp_path / "VOCdevkit"


@pytest.mark.parametrize(("name", "above"), [("VOCdevkit", True), ("VOCdevkit", False), ("voc", True)])
def test_years_are_joined_against_the_test_set_of_2007(devkit, name, above):
    devkit = devkit.rename(devkit.parent / name)
    place = devkit.parent if above else devkit
    train, val = (find_voc_splits(place)[split] for split in ("train", "val"))
    assert names_of(train) == [("VOC2007", "trainval"), ("VOC2012", "trainval")]
    assert names_of(val) == [("VOC2007", "test")]
    dataset = load_voc(train)
    assert dataset.name == f"{devkit} (VOC2007 trainval + VOC2012 trainval)"
    files = ("1.jpg", "2.jpg", "2012_1.jpg", "2012_2.jpg")
    assert [(sample.id, sample.path.name) for sample in dataset.samples] == list(enumerate(files, start=1))


@pytest.mark.parametrize("absent", ["Annotations/3.xml", "JPEGImages/3.jpg", "ImageSets/Main/test.txt"])
def test_without_a_whole_test_set_there_is_train_and_val(devkit, absent):
    (devkit / "VOC2007" / absent).unlink()
    splits = find_voc_splits(devkit)
    assert names_of(splits["train"]) == [("VOC2007", "train"), ("VOC2012", "train")]
    assert names_of(splits["val"]) == [("VOC2007", "val"), ("VOC2012", "val")]
    assert names_of(find_voc_splits(devkit / "VOC2012")["val"]) == [("VOC2012", "val")]


def test_without_trainval_train_and_val_are_taken_together(devkit):
    image_set(devkit / "VOC2007", "trainval").unlink()
    assert names_of(find_voc_splits(devkit / "VOC2007")["train"]) == [("VOC2007", "train"), ("VOC2007", "val")]


@pytest.mark.parametrize("val", ["val", "valid"])
def test_folders_of_images_with_their_xml_files(tmp_path, val):
    write_pairs(tmp_path / "train", one_cat_each("b.rf.1f", "a 0", "c"))
    for name in ("._c.xml", "notes.txt", ".hidden.xml"):
        (tmp_path / "train" / name).write_bytes(b"\0")
    Image.new("RGB", (60, 40)).save(tmp_path / "train" / "unlabelled.jpg")
    write_pairs(tmp_path / val, one_cat_each("d"))
    write_pairs(tmp_path / "test", one_cat_each("e"))
    splits = find_voc_splits(tmp_path)
    assert splits == {"train": (tmp_path / "train",), "val": (tmp_path / val,), "test": (tmp_path / "test",)}
    dataset = load_voc(splits["train"], strict=True)
    assert (dataset.name, dataset.kind) == (str(tmp_path / "train"), "voc")
    files = [tmp_path / "train" / name for name in ("a 0.jpg", "b.rf.1f.jpg", "c.jpg")]
    assert [(sample.id, sample.path) for sample in dataset.samples] == list(enumerate(files, start=1))
    assert dataset.samples[0].boxes.tolist() == [[10, 10, 30, 20]]


def test_image_sets_go_before_folders(devkit):
    write_pairs(devkit / "train", one_cat_each("x"))
    assert names_of(find_voc_splits(devkit)["train"]) == [("VOC2007", "trainval"), ("VOC2012", "trainval")]


@pytest.mark.parametrize(
    ("folder", "images", "given"),
    [
        ("a", "a", None),
        ("Annotations", "JPEGImages", None),
        ("Annotations", "Annotations", None),
        ("labels", "pictures", "pictures"),
        ("Annotations", "pictures", "pictures"),
    ],
)
def test_where_the_images_of_a_folder_of_xml_files_are(tmp_path, monkeypatch, folder, images, given):
    write_pairs(tmp_path / folder, one_cat_each("1"), tmp_path / images)
    if folder != "Annotations":
        (tmp_path / "JPEGImages").mkdir()
    (sample,) = load_voc([tmp_path / folder], given and tmp_path / given).samples
    assert sample.path == tmp_path / images / "1.jpg"
    monkeypatch.chdir(tmp_path / folder)
    (relative,) = load_voc([Path()], given and tmp_path / given).samples
    assert relative.path.resolve() == sample.path


def test_images_that_are_elsewhere(tmp_path):
    write_pairs(tmp_path / "data" / "xml", one_cat_each("1"), tmp_path / "images")
    with pytest.raises(UserError, match=r"(?s)image missing in .*xml: 1\nNo object is left\. .* with --train-images"):
        load_voc([tmp_path / "data" / "xml"])


@pytest.mark.parametrize("lines", [["1 -1", "2  1"], ["1 1"]])
def test_image_sets_of_one_class_are_refused(tmp_path, lines):
    folder = write_voc(tmp_path / "VOC", one_cat_each("1", "2"), {"cat_train": lines})
    with pytest.raises(UserError, match=rf"image set of one class.*\({lines[0]}\).*train\.txt"):
        load_voc([image_set(folder, "cat_train")])


def test_names_may_have_blanks_and_look_flagged(load):
    names = [sample.path.name for sample in load(one_cat_each("photo 1", "photo 0")).samples]
    assert names == ["photo 1.jpg", "photo 0.jpg"]


def test_places_that_are_no_image_sets(tmp_path):
    (tmp_path / "sub.xml").mkdir()
    (tmp_path / "train.txt").write_text("1\n")
    binary = image_set(write_voc(tmp_path / "VOC", {}, {"train": []}), "train")
    binary.write_bytes(b"\xff\xfe\xfa")
    for place, message in (
        (tmp_path, "no XML file in this folder"),
        (tmp_path / "val.txt", r"val\.txt: no such file"),
        (tmp_path / "train.txt", r"train\.txt: not in a VOC data set"),
        (binary, r"train\.txt: cannot be read"),
    ):
        with pytest.raises(UserError, match=message):
            load_voc([place])


def test_an_image_set_relative_to_its_own_folder(tmp_path, monkeypatch):
    folder = write_voc(tmp_path / "VOC", one_cat_each("1"), {"train": ["1"]})
    monkeypatch.chdir(folder / "ImageSets" / "Main")
    assert len(load_voc([Path("train.txt")]).samples) == 1


@pytest.mark.parametrize(
    ("images", "file_name", "found"),
    [
        (["1.jpeg"], "1.jpg", "1.jpeg"),
        (["1.png"], "1.jpg", "1.png"),
        (["1.PNG"], "", "1.PNG"),
        (["1.png", "1.jpg", "1.bmp"], "1.png", "1.jpg"),
        (["1.jpg", "other.jpg"], "other.jpg", "1.jpg"),
        (["other.jpg"], "other.jpg", "other.jpg"),
        (["other.png"], "other.jpg", "other.png"),
        (["other.jpg"], "other", "other.jpg"),
        (["other.jpg", "other.jpg.png"], "other.jpg", "other.jpg"),
        (["other.jpg"], "C:\\photos\\other.jpg", "other.jpg"),
        (["other.jpg"], "../../other.jpg", "other.jpg"),
        (["2.jpg"], "other.jpg", None),
        (["2.jpg"], "..", None),
        (["2.jpg"], "", None),
    ],
)
def test_an_image_is_found_by_the_name_of_its_file_first(load, tmp_path, images, file_name, found):
    files = {"2": xml(thing()), "1": xml(thing(), file_name=file_name)}
    dataset = load(files, images=[*images, "2.jpg"])
    assert [sample.path.name for sample in dataset.samples] == ["2.jpg", *([found] if found else [])]
    expected = {} if found else {f"image missing in {tmp_path / 'VOC' / 'JPEGImages'}": 1}
    assert dataset.problems.counts == expected


@pytest.mark.parametrize(
    "size", ["", "<size><width>0</width><height>0</height></size>", "<size><width>60</width></size>"]
)
def test_an_absent_size_is_read_from_the_image(load, tmp_path, size):
    dataset = load({"1": xml(thing(), size=size), "2": xml(thing())})
    assert [(sample.height, sample.width) for sample in dataset.samples] == [(40, 60)] * 2
    (tmp_path / "VOC" / "JPEGImages" / "1.jpg").write_bytes(b"no image")
    dataset = load_voc([image_set(tmp_path / "VOC", "train")])
    assert dataset.problems.counts == {"image without a size in its XML, whose file cannot be read": 1}
    assert "1.jpg" in dataset.problems.message()
    assert [sample.id for sample in dataset.samples] == [2]


BOMB = '<!DOCTYPE a [<!ENTITY b "{}">]>'.format("x" * 100)


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (None, "missing"),
        ("", "that is empty"),
        (" \n", "that is empty"),
        ("<annotation><object>", "that is not valid XML"),
        (b"<annotation>\xff</annotation>", "that is not valid XML"),
        ('<?xml version="1.0" encoding="nonsense"?><annotation/>', "that is not valid XML"),
        (BOMB + xml(thing()), "that is no plain XML (it has a DTD or null bytes)"),
        ((BOMB + xml(thing())).encode("utf-16"), "that is no plain XML (it has a DTD or null bytes)"),
        ("<html/>", "that is not VOC's: its outermost element is not <annotation>"),
    ],
)
def test_useless_annotation_files_are_dropped_with_their_images(load, tmp_path, content, kind):
    files = {"1": content, "2": xml(thing())}
    folder = write_voc(
        tmp_path / "VOC", {name: text for name, text in files.items() if text is not None}, {"train": files}
    )
    dataset = load_voc([image_set(folder, "train")])
    ((counted, count),) = dataset.problems.counts.items()
    assert counted == f"annotation file {kind}" and count == 1
    assert "train.txt: 1 of 2 images left out, with their objects\n" in dataset.problems.message()
    assert str(folder / "Annotations" / "1.xml") in dataset.problems.message()
    assert [(sample.id, sample.path.name) for sample in dataset.samples] == [(2, "2.jpg")]


def test_places_of_faults_in_xml_make_no_kinds_of_their_own(load, tmp_path):
    broken = {"1": "<annotation><object>", "2": "no XML", "3": b"<annotation>\xff</annotation>"}
    problems = load({**broken, "4": xml(thing())}).problems
    assert problems.counts == {"annotation file that is not valid XML": 3}
    for where in ("no element found: line 1, column 20", "syntax error: line 1, column 0", "in position 12: invalid"):
        assert where in problems.message()


def test_an_annotation_file_that_is_a_folder(load, tmp_path):
    folder = write_voc(tmp_path / "VOC", one_cat_each("1"), {"train": ["1", "2"]})
    (folder / "Annotations" / "2.xml").mkdir()
    kind = "annotation file that cannot be read (Is a directory)"
    assert load_voc([image_set(folder, "train")]).problems.counts == {kind: 1}


@pytest.mark.parametrize(
    ("bad", "kind", "place"),
    [
        ("<object><bndbox/></object>", "object without name", "object 1"),
        (thing(" "), "object without name", "object 1"),
        ("<object><name>cat</name></object>", "object without bndbox", "object 1 (cat)"),
        ("<object><name>cat</name><bndbox/></object>", "object whose bndbox is not 4 numbers", "object 1 (cat)"),
        (thing(box=(1, 2, "three", 4)), "object whose bndbox is not 4 numbers", "object 1 (cat)"),
        (thing(box=(1, 2, "nan", 4)), "object whose bndbox is not finite", "object 1 (cat)"),
        (thing(box=(1, 2, 3, "1e39")), "object whose bndbox is not finite", "object 1 (cat)"),
    ],
)
def test_malformed_objects_are_dropped_and_counted(load, bad, kind, place):
    dataset = load({"1": xml(bad, thing())})
    assert dataset.problems.counts == {kind: 1}
    assert f"1.xml, {place}" in dataset.problems.message()
    assert dataset.samples[0].boxes.tolist() == [[10, 10, 30, 20]]


def test_a_strange_mark_of_difficulty_costs_no_object(load):
    dataset = load({"1": xml(thing(more="<difficult>Unspecified</difficult>"))})
    assert dataset.problems.counts == {"object whose difficult is not 0 or 1, taken for 0": 1}
    assert dataset.samples[0].difficult.tolist() == [False]


def test_boxes_in_fractions_are_refused(load):
    with pytest.raises(UserError, match=r"all 2 boxes are within 0 to 1: .*, and VOC's bndbox is in pixels"):
        load({"1": xml(thing(box=(0.2, 0.1, 0.5, 0.9)), thing(box=(0, 0, 1, 1)))})


def test_an_image_of_two_xml_files_is_one(load):
    files = {"1": xml(thing()), "2": xml(thing(), file_name="2.jpg"), "2 copy": xml(thing("dog"), file_name="2.jpg")}
    dataset = load(files, images=["1.jpg", "2.jpg"])
    assert dataset.problems.counts == {"image that is there again: joined with the first": 1}
    assert [(sample.path.name, sample.labels.tolist()) for sample in dataset.samples] == [
        ("1.jpg", [1]),
        ("2.jpg", [1, 2]),
    ]


def test_parts_are_no_objects_and_numbers_may_have_fractions(load):
    part = f"<part>{thing('head', (12, 12, 14, 14)).removeprefix('<object>').removesuffix('</object>')}</part>"
    floats = thing("person", ("45.70000076293945", 11, "57.5", " 20 "), part)
    dataset = load({"1": xml(floats)})
    assert [category.name for category in dataset.categories] == ["person"]
    np.testing.assert_allclose(dataset.samples[0].boxes, [[44.70000076293945, 10, 57.5, 20]])
    assert not dataset.problems


@pytest.mark.parametrize(
    ("box", "kind", "xyxy"),
    [
        ((0, 0, 60, 40), None, (-1, -1, 60, 40)),  # a tool that counts from 0
        ((1, 1, 61, 41), None, (0, 0, 61, 41)),
        ((1, 1, 62, 41), "box beyond the image", (0, 0, 62, 41)),
        ((-1, 1, 10, 10), "box beyond the image", (-2, 0, 10, 10)),
        ((61, 1, 70, 10), "box outside the image", (60, 0, 70, 10)),
        ((5, 5, 5, 9), "box of no area", (4, 4, 4, 9)),
        ((5, 5, 9, 5), "box of no area", (4, 4, 9, 4)),
        ((9, 5, 5, 9), "box of no area", (8, 4, 4, 9)),
        ((5, 5, 6, 6), None, (4, 4, 6, 6)),
    ],
)
def test_odd_boxes_are_kept_and_counted(load, box, kind, xyxy):
    dataset = load({"1": xml(thing(), thing("dog", box))})
    assert dataset.problems.counts == ({kind: 1} if kind else {})
    assert kind is None or "1.xml, object 2 (dog; 1.jpg, 60 x 40)" in dataset.problems.message()
    assert dataset.samples[0].boxes[1].tolist() == list(xyxy)
    trained = 1 if kind in ("box of no area", "box outside the image") else 2
    assert len(dataset.samples[0].objects(40, 60)[0]) == trained


def test_labels_are_in_alphabetical_order_which_is_that_of_voc(load):
    names = [category.name for category in reversed(VOC_CATEGORIES)]
    assert load({"1": xml(*map(thing, names))}).categories == VOC_CATEGORIES
    assert [category.name for category in load({"1": xml(*map(thing, ("b", "C", "a")))}).categories] == ["a", "b", "C"]


def test_spellings_that_differ_in_case_are_one_category(load):
    dataset = load({"1": xml(thing("rbc"), thing("RBC", (1, 1, 9, 9)), thing("RBC", (1, 1, 8, 9)), thing("Wbc"))})
    assert dataset.categories == (Category(1, 1, "RBC"), Category(2, 2, "Wbc"))
    assert dataset.samples[0].labels.tolist() == [1, 1, 1, 2]
    assert dataset.problems.counts == {"category in several spellings": 1}
    assert "'RBC' = 'rbc'" in dataset.problems.message()


def test_the_labels_of_the_training_split_hold_for_the_other(load):
    given = (Category(1, 1, "bird"), Category(2, 2, "dog"), Category(3, 3, "cat"))
    dataset = load({"1": xml(thing("DOG"), thing("horse"), thing("horse"), thing("cat"))}, categories=given)
    assert dataset.categories == given[1:]
    assert dataset.samples[0].labels.tolist() == [2, 3]
    assert dataset.problems.counts == {"category that the model does not know": 1}
    assert "'horse' (2 objects)" in dataset.problems.message()


def test_a_model_of_coco_knows_all_of_voc(load):
    names = [category.name for category in VOC_CATEGORIES]
    dataset = load({"1": xml(*map(thing, names))}, categories=COCO_CATEGORIES)
    assert not dataset.problems
    assert set(dataset.categories) < set(COCO_CATEGORIES) and len(dataset.categories) == 20
    found = {category.label: category.name for category in dataset.categories}
    by_voc = {name: found[label] for name, label in zip(names, dataset.samples[0].labels.tolist(), strict=True)}
    assert {name: other for name, other in by_voc.items() if name != other} == {
        "aeroplane": "airplane",
        "diningtable": "dining table",
        "motorbike": "motorcycle",
        "pottedplant": "potted plant",
        "sofa": "couch",
        "tvmonitor": "tv",
    }


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        ("1", "image listed twice"),
        ("../Annotations/1", "image set entry that is not a name in Annotations"),
        ("..\\1", "image set entry that is not a name in Annotations"),
        ("1\0", "image set entry that is not a name in Annotations"),
        ("1" * 300, "annotation file that cannot be read (File name too long)"),
    ],
)
def test_bad_lines_of_an_image_set_are_left_out(tmp_path, line, kind):
    folder = write_voc(tmp_path / "VOC", one_cat_each("1"), {"train": ["1", "", line]})
    dataset = load_voc([image_set(folder, "train")])
    assert dataset.problems.counts == {kind: 1}
    assert len(dataset.samples) == 1


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"1": xml()}, "No object is left"),
        ({"1": "<html/>"}, r"annotation file that is not VOC's.*1\.xml.*No object is left"),
        ({"1": xml("<object/>")}, "object without name.*No object is left"),
    ],
)
def test_nothing_to_train_on(load, files, message):
    with pytest.raises(UserError, match="(?s)" + message) as caught:
        load(files)
    assert "train.txt" in str(caught.value)


@pytest.mark.skipif(not BCCD.is_dir(), reason="the BCCD data set is not there")
@pytest.mark.parametrize("split", ["train", "val"])
def test_bccd_says_the_same_as_its_coco_form(split):
    """Its JSON took width = xmax - xmin and did not count from 1: the boxes differ by that pixel."""
    dataset = load_voc(find_voc_splits(BCCD)[split])
    reference = load_coco(*find_coco_splits(BCCD)[split], dataset.categories)
    assert dataset.problems.counts == reference.problems.counts == {"box of no area": 1}
    theirs = {sample.path: sample for sample in reference.samples}
    assert len(theirs) == len(dataset.samples)
    for sample in dataset.samples:
        other = theirs[sample.path]
        shift = np.where(other.areas > 0, 0, 1)[:, None] * [0, 0, 1, 1] + [1, 1, 0, 0]
        assert (sample.boxes + shift).tolist() == other.boxes.tolist()
        assert sample.labels.tolist() == other.labels.tolist()
        assert (sample.height, sample.width) == (other.height, other.width)
        assert len(sample.objects(480, 640)[0]) == len(other.objects(480, 640)[0])
