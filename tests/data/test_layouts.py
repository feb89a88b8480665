"""Data sets in the layouts of many tools, found by their folder alone; and what is said where that cannot be."""

import json

import numpy as np
import pytest
from layout_files import (
    CAT,
    LAYOUTS,
    NAMES,
    TRAIN,
    VAL,
    YOLO_LABELS,
    coco,
    cvat_coco,
    images,
    paired_json_beside,
    single_json,
    texts,
    ultralytics,
    voc,
    yolo_labels,
)
from voc_files import thing, xml

from ssd300_vgg16 import evaluate
from ssd300_vgg16.cli import inspect, train_options
from ssd300_vgg16.data import foreign
from ssd300_vgg16.data.dataset import shared_images
from ssd300_vgg16.data.formats import DataSource
from ssd300_vgg16.data.voc import load_voc
from ssd300_vgg16.errors import UserError


def source_of_evaluation(folder, monkeypatch):
    """What eval.sh reads."""
    import ssd300_vgg16.evaluate_weights

    sources = []
    monkeypatch.setattr(
        ssd300_vgg16.evaluate_weights, "evaluate_weights", lambda weights, source, *_: sources.append(source)
    )
    evaluate.main(["--weights", "w", "--data-path", str(folder)])
    return sources[0]


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_data_set_is_found_by_its_folder_in_each_command(tmp_path, monkeypatch, capsys, name):
    write, kind, is_divided = LAYOUTS[name]
    folder = tmp_path / "animals"
    write(folder)
    source = train_options.parse(["--data-path", str(folder)]).source()
    train = source.load("train")
    val = source.load("val", train.categories)
    assert (train.kind, val.kind) == (kind, kind)
    assert [category.name for category in train.categories] == [category.name for category in val.categories]
    assert [category.name for category in train.categories] == ["cat", "dog"]
    assert not (train.problems.counts or val.problems.counts)
    files = [tuple(sorted(sample.path.name for sample in dataset.samples)) for dataset in (train, val)]
    if is_divided:
        assert files == [TRAIN, VAL]
    else:
        assert sorted(files[0] + files[1]) == sorted(NAMES) and files[1]
        assert "no validation split there: 20% of the images" in train.problems.message()
    for sample in train.samples + val.samples:
        np.testing.assert_allclose(sample.boxes, [[10, 10, 30, 20], [20, 25, 40, 35]], atol=1e-3)
        assert sample.labels.tolist() == [1, 2]
    evaluated = source_of_evaluation(folder, monkeypatch).load("val", train.categories)
    assert [sample.path for sample in evaluated.samples] == [sample.path for sample in val.samples]
    monkeypatch.setattr(
        inspect, "inspect_split", lambda split, dataset, *_: pytest.fail(f"{split} {len(dataset.samples)}")
    )
    with pytest.raises(pytest.fail.Exception, match=f"train {len(train.samples)}"):
        inspect.main(["inspect", str(folder), "--output-dir", str(tmp_path / "out")])


def test_the_json_file_itself_can_be_named(tmp_path):
    cvat_coco(tmp_path)
    source = DataSource(path=tmp_path / "annotations" / "instances_default.json")
    assert len(source.load("train").samples) + len(source.load("val").samples) == len(NAMES)


def test_a_split_by_names_is_the_same_whatever_else_there_is(tmp_path):
    single_json(tmp_path)

    def names(split, fraction=None):
        return {sample.path.name for sample in DataSource(path=tmp_path, val_fraction=fraction).load(split).samples}

    assert names("val") <= names("val", 0.5) and len(names("val", 0.5)) < len(NAMES) == len(names("val", 1.0))
    assert names("train", 0.5) == set(NAMES) - names("val", 0.5)
    before = names("val", 0.5)
    coco(tmp_path / "labels.json", NAMES[:5])
    assert names("val", 0.5) == before & set(NAMES[:5])
    with pytest.raises(UserError, match="none is left for train with --val-fraction 1"):
        names("train", 1.0)


def test_images_that_are_in_both_splits_are_told(tmp_path):
    for split, names in (("train", TRAIN), ("val", (*VAL, TRAIN[0]))):
        images(tmp_path / split, names)
        coco(tmp_path / split / "a.json", names)
    train, val = (DataSource(path=tmp_path).load(split) for split in ("train", "val"))
    assert "1 of the 3 validation images are training images too, such as" in shared_images(train, val)
    assert "3 of the 3 validation" in shared_images(val, val)
    (tmp_path / "val" / TRAIN[0]).write_bytes(b"another")
    assert shared_images(train, val) is None


def test_a_fraction_of_divided_data_is_refused(tmp_path):
    ultralytics(tmp_path)
    with pytest.raises(UserError, match=r"--val-fraction: the data has a validation split, .*images/val"):
        DataSource(path=tmp_path, val_fraction=0.3).load("train")


def test_the_test_split_stands_for_a_missing_validation_split(tmp_path):
    for split, names in (("train", TRAIN), ("test", VAL)):
        images(tmp_path / split, names)
        coco(tmp_path / split / "_annotations.coco.json", names)
    source = DataSource(path=tmp_path)
    assert len(source.load("train").samples) == len(TRAIN)
    val = source.load("val")
    assert len(val.samples) == len(VAL) and "no val split: the test split is used" in val.problems.message()


def test_two_files_for_one_split_are_named(tmp_path):
    images(tmp_path)
    for name in ("one.json", "two.json"):
        coco(tmp_path / name)
    with pytest.raises(UserError, match=r"2 COCO annotation files .*one\.json, .*two\.json.*--train-annotations"):
        DataSource(path=tmp_path).locate("train")


def test_two_sets_of_one_format_are_named(tmp_path):
    for name in ("cats", "dogs"):
        texts(tmp_path / name, {"data.yaml": "train: images\nnames: [cat]\n"})
    with pytest.raises(
        UserError, match=r"several YOLO data sets there, such as .*cats/data\.yaml and .*dogs/data\.yaml"
    ):
        DataSource(path=tmp_path).locate("train")
    texts(tmp_path, {"data.yaml": "train: images\nval: images\nnames: [cat]\n"})
    images(tmp_path / "images")
    assert DataSource(path=tmp_path).locate("train") == (tmp_path / "images",)


@pytest.mark.parametrize("other", ["dog\ncat\n", "cat\n"])
def test_lists_of_class_names_agree(tmp_path, other):
    for split, names, listed in (("train", TRAIN, "cat\ndog\n"), ("test", VAL, other)):
        images(tmp_path / split, names)
        yolo_labels(tmp_path / split, names)
        texts(tmp_path / split, {"classes.txt": listed})
    source = DataSource(path=tmp_path)
    if other == "cat\n":  # LabelImg had not met more
        assert [category.name for category in source.load("val").categories] == ["cat", "dog"]
        return
    with pytest.raises(UserError, match=r"train/classes\.txt: other class names than in .*test/classes\.txt, and both"):
        source.load("train")


@pytest.mark.parametrize("name", ["Roboflow COCO", "CVAT VOC", "LabelImg YOLO"])
def test_the_only_folder_in_a_folder_stands_for_it(tmp_path, name):
    write, kind, _ = LAYOUTS[name]
    write(tmp_path / "a" / "b" / "c" / "animals")
    (tmp_path / "animals.zip").touch()
    for given in ("auto", kind):
        assert (train := DataSource(given, tmp_path).load("train")).samples and train.kind == kind
    (tmp_path / "other").mkdir()
    with pytest.raises(UserError, match=rf"{tmp_path.name}: no COCO-style, VOC or YOLO data set found"):
        DataSource(path=tmp_path).load("train")


def test_a_folder_that_leads_to_itself(tmp_path):
    (tmp_path / "again").symlink_to(tmp_path)
    with pytest.raises(UserError, match=rf"{tmp_path.name}: no COCO-style, VOC or YOLO data set found"):
        DataSource(path=tmp_path).load("train")


def test_two_formats_are_named(tmp_path):
    images(tmp_path / "images")
    coco(tmp_path / "labels.json")
    voc(tmp_path / "annotations")
    with pytest.raises(
        UserError, match=r"COCO-style data set \(.*labels\.json\) and VOC \(.*annotations\): .*coco or voc"
    ):
        DataSource(path=tmp_path).locate("train")
    assert len(DataSource("voc", tmp_path).load("train").samples) > 0


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("1.json", {"version": "5", "shapes": [], "imagePath": "1.jpg"}, "labelme"),
        ("via.json", {"1.jpg77": {"filename": "1.jpg", "regions": []}}, "VGG Image Annotator"),
        ("a.json", {"asset": {}, "regions": []}, "VoTT"),
        ("a.json", [{"image": "1.jpg", "annotations": []}], "CreateML"),
        ("a.json", {"info": {}, "categories": {}, "items": []}, "Datumaro"),
        ("a.xml", "<?xml version='1.0'?><annotations><image id='0'/></annotations>", "CVAT's own XML"),
        ("1.txt", YOLO_LABELS, "YOLO without class names"),
        ("a.json", [{"data": {"image": "1.jpg"}, "annotations": []}], "Label Studio"),
        ("a.tfrecord", "", "TFRecord"),
        ("a.csv", "filename,width,height,class,xmin,ymin,xmax,ymax\n", "CSV"),
        ("1.txt", "Car 0.00 0 -1.58 587.0 173.3 614.1 200.1 1.65 1.67 3.64 -0.65 1.71 46.70 -1.59\n", "KITTI"),
    ],
)
def test_formats_that_are_not_read_are_said_by_name(tmp_path, name, content, said):
    images(tmp_path)
    texts(tmp_path, {name: content if isinstance(content, str) else json.dumps(content)})
    with pytest.raises(UserError) as error:
        DataSource(path=tmp_path).locate("train")
    told, _, advice = str(error.value).partition(", which is not read: ")
    assert told == f"{tmp_path}: labels in the format {said} ({tmp_path / name})"
    assert advice.startswith(("export ", "convert ", "list "))


def test_json_that_cannot_be_read_is_named_where_nothing_else_is_found(tmp_path):
    single_json(tmp_path)
    file = tmp_path / "labels.json"
    file.write_text(file.read_text()[:-100])  # as an interrupted download leaves it
    with pytest.raises(UserError, match=r"labels\.json, line 1, column \d+: not valid JSON"):
        DataSource(path=tmp_path).locate("train")


def test_json_of_a_split_that_cannot_be_read_is_named(tmp_path):
    paired_json_beside(tmp_path / "animals")
    (tmp_path / "._animals_train.json").write_bytes(b"\0\5\x16\7\xff")  # as macOS leaves them
    assert DataSource(path=tmp_path / "animals").locate("val")[0] == tmp_path / "animals_val.json"
    (tmp_path / "animals_val.json").write_text('{"images": [')
    with pytest.raises(UserError, match=r"animals_val\.json, line 1, column \d+: not valid JSON"):
        DataSource(path=tmp_path / "animals").locate("train")
    assert DataSource(path=tmp_path / "animals_train.json").locate("train")[1] == tmp_path / "animals"


def test_so_many_files_are_looked_at_for_other_formats(tmp_path, monkeypatch):
    monkeypatch.setattr(foreign, "MAX_FILES", 2)
    texts(tmp_path, {"1.csv": "x", "2.csv": "x", "3.csv": "xmin"})
    assert foreign.foreign_format(tmp_path) is None


@pytest.mark.parametrize("header", ["", "x" * 200_000, "a,\0b", '"a'])
def test_nothing_that_could_be_a_data_set(tmp_path, header):
    images(tmp_path)
    texts(tmp_path, {"a.csv": header})
    with pytest.raises(UserError, match="no COCO-style, VOC or YOLO data set found"):
        DataSource(path=tmp_path).locate("train")
    with pytest.raises(UserError, match=r"nowhere: no such folder; name that of a data set$"):
        DataSource(path=tmp_path / "nowhere").locate("train")


@pytest.mark.parametrize("encoding", ["gbk", "shift_jis", "utf-16", "iso-8859-1"])
def test_xml_in_the_encoding_that_it_declares(tmp_path, encoding):
    name = "Käse" if encoding == "iso-8859-1" else "猫"
    text = f'<?xml version="1.0" encoding="{encoding}"?>\n{xml(thing(name, CAT))}'
    images(tmp_path, ["1.jpg"])
    (tmp_path / "1.xml").write_bytes(text.encode(encoding))
    assert [category.name for category in load_voc([tmp_path]).categories] == [name]
