"""Data sets made to take hours or all memory: each image, file or value that is too much is named, the others go on."""

import json

import numpy as np
import pytest
from foreign_weights import less_memory_than
from voc_files import thing, write_pairs, xml
from yolo_files import GOOD, write_yolo

from ssd300_vgg16.data import categories
from ssd300_vgg16.data.coco import load_coco
from ssd300_vgg16.data.formats import DataSource
from ssd300_vgg16.data.matching import UNMATCHED, match
from ssd300_vgg16.data.voc import load_voc
from ssd300_vgg16.data.yolo import load_yolo
from ssd300_vgg16.data.yolo_layout import read_description
from ssd300_vgg16.errors import UserError
from ssd300_vgg16.network.variants import default_boxes

COUNTS = {"a": 3, "b": 4, "c": 1}


def yolo(folder):
    return load_yolo(write_yolo(folder, {name: GOOD * count for name, count in COUNTS.items()}), "train")


def voc(folder):
    return load_voc([write_pairs(folder, {name: xml(*[thing()] * count) for name, count in COUNTS.items()})])


def coco(folder):
    write_pairs(folder, dict.fromkeys(COUNTS, ""))
    images = [{"id": ord(name), "file_name": f"{name}.jpg", "width": 60, "height": 40} for name in COUNTS]
    of_image = [name for name, count in COUNTS.items() for _ in range(count)]
    objects = [
        {"image_id": ord(name), "category_id": 1, "bbox": [1, place, 9, 9]} for place, name in enumerate(of_image)
    ]
    document = {"images": images, "annotations": objects, "categories": [{"id": 1, "name": "cat"}]}
    (folder / "a.json").write_text(json.dumps(document))
    return load_coco(folder / "a.json", folder)


@pytest.mark.parametrize("load", [yolo, voc, coco])
def test_an_image_with_too_many_objects_is_left_out(tmp_path, monkeypatch, load):
    monkeypatch.setenv("SSD_MAX_OBJECTS", "3")
    dataset = load(tmp_path)
    assert [sample.path.stem for sample in dataset.samples] == ["a", "c"]
    assert all(len(sample.labels) for sample in dataset.samples)
    example = "b.jpg: 4 objects, where 3 is the limit; SSD_MAX_OBJECTS moves it"
    assert "1 of 3 images left out" in dataset.problems.message() and example in dataset.problems.message()


def test_ids_that_have_one_hash_are_left_out(tmp_path):
    """All multiples of this number have: 20,000 of them take half a minute, and 200,000 an hour."""
    (tmp_path / "a.jpg").touch()
    images = [{"id": number * (2**61 - 1), "file_name": f"{number}.jpg"} for number in range(20_000)]
    document = {"images": images, "annotations": [{}], "categories": [{"id": 1, "name": "cat"}]}
    (tmp_path / "a.json").write_text(json.dumps(document))
    with pytest.raises(UserError, match="19,991 x image whose id has more than 64 bits"):
        load_coco(tmp_path / "a.json", tmp_path)


def test_labels_of_one_image_that_are_too_large_are_left_out(tmp_path, monkeypatch):
    monkeypatch.setenv("SSD_MAX_LABEL_BYTES", "100")
    dataset = load_yolo(write_yolo(tmp_path, {"a": GOOD, "b": GOOD * 10}), "train")
    assert [len(sample.labels) for sample in dataset.samples] == [1, 0]
    assert "has 180 bytes, where 100 is the limit; SSD_MAX_LABEL_BYTES moves it" in dataset.problems.message()


def many(first, of_former):
    """Lines of YAML, each of which names the former ten times: the last would hold a billion values."""
    return "\n".join([f"a0: &a0 {first}", *(f"a{n}: &a{n} {of_former(f'*a{n - 1}')}" for n in range(1, 10))])


TEN = 10
BOMBS = {
    "lists": many("[x, x]", lambda former: f"[{', '.join([former] * TEN)}]"),
    "merges": many("{k: 1}", lambda former: f"{{<<: [{', '.join([former] * TEN)}]}}"),
    "itself": "a0: &a0 [*a0]",
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_aliases_that_make_much_of_little_are_refused(tmp_path, bomb):
    (tmp_path / "data.yaml").write_text(f"{BOMBS[bomb]}\ntrain: images\nnames: [*a0]\n")
    with less_memory_than(5 << 20), pytest.raises(UserError, match=r"data\.yaml, line \d+: .* alias \(\*\) of more"):
        read_description(tmp_path)


def test_an_alias_of_one_value_is_that_value(tmp_path):
    (tmp_path / "data.yaml").write_text("train: &t images\nval: *t\nnames: [cat]\n")
    (tmp_path / "images").mkdir()
    assert read_description(tmp_path).places["val"] == (tmp_path / "images",)


@pytest.mark.parametrize("key", ["names", "path", "train", "nc"])
def test_a_long_text_that_is_named_often_is_not_shown_as_often(tmp_path, key):
    text = f"long: &x {'x' * 50_000}\n" + f"{key}: [[{', '.join(['*x'] * 1000)}]]\n"
    (tmp_path / "data.yaml").write_text("".join(f"{name}: [a]\n" for name in {"train", "names"} - {key}) + text)
    with less_memory_than(50 << 20), pytest.raises(UserError) as caught:
        read_description(tmp_path)
    assert len(str(caught.value)) < 1000


def test_a_name_that_no_folder_has_is_an_error_of_the_users(tmp_path):
    for entry in ("x" * 5000, "a\0b"):
        (tmp_path / "data.yaml").write_text(json.dumps({"train": entry, "path": ".", "names": ["cat"]}))
        with pytest.raises(UserError, match=r"data\.yaml: train: "):
            load_yolo(tmp_path, "train")


MULTIPLES = ", ".join(f"{number * (2**61 - 1)}: cat" for number in range(20_000))


@pytest.mark.parametrize("names", [f"[0x{'f' * 4000}]", f"[1{':1' * 200_000}]", f"{{{MULTIPLES}}}"])
def test_numbers_that_take_minutes_are_refused(tmp_path, names):
    """Those to the base of 60 grow with each part, and the multiples have one hash."""
    (tmp_path / "data.yaml").write_text(f"train: images\nnames: {names}\n")
    with pytest.raises(UserError, match=r"data\.yaml, line 2: not valid YAML: a whole number that is too long"):
        read_description(tmp_path)


def test_a_path_of_more_folders_than_there_are_is_looked_for_nowhere(tmp_path):
    """To look for each of its ends took half an hour."""
    (tmp_path / "data.yaml").write_text(f"train: {'a/' * 300_000}\nnames: [cat]\n")
    with pytest.raises(UserError, match=r"data\.yaml: train: there is no "):
        load_yolo(tmp_path, "train")


def test_the_name_of_a_category_has_an_end(tmp_path):
    long = f"long: &x {'x' * 100_000}\ntrain: images/train\nnames: [{'*x, ' * 9_000}]\n"
    with less_memory_than(5 << 20), pytest.raises(UserError, match="a category's name has 100,000 letters"):
        load_yolo(write_yolo(tmp_path / "often", {"a": GOOD}, yaml=long), "train")
    folder = write_yolo(tmp_path, {"a": GOOD}, yaml=json.dumps({"train": "images/train", "names": ["x" * 2000]}))
    with pytest.raises(UserError, match="a category's name has 2,000 letters, where 1,000 are the limit"):
        load_yolo(folder, "train")


def test_categories_that_no_network_has_outputs_for_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(categories, "MAX_CLASSES", 2)
    with pytest.raises(UserError, match="2 categories, of which 1 are the limit"):
        load_yolo(write_yolo(tmp_path, {"a": GOOD}), "train")


@pytest.mark.parametrize("source", [{"kind": "tar"}, {"val_fraction": -1.0}, {"val_fraction": 1e9}])
def test_a_source_that_a_runs_options_make_up_is_refused(source):
    with pytest.raises(UserError, match=r"--dataset tar: write one of|--val-fraction"):
        DataSource(**source)


@pytest.mark.parametrize("encoding", ["punycode", "idna", "zlib_codec", "nonsense"])
def test_encodings_that_no_xml_has_are_refused(tmp_path, encoding):
    write_pairs(tmp_path, {"a": xml(thing()), "b": ""})
    text = f"<?xml version='1.0' encoding='{encoding}'?>".encode()
    (tmp_path / "b.xml").write_bytes(text + b"ab-" + b"egbpdaj6bu4bxfgehfvwxn" * 100)
    dataset = load_voc([tmp_path])
    assert len(dataset.samples) == 1 and "annotation file that is not valid XML" in dataset.problems.message()


def test_objects_are_many_and_memory_is_not():
    boxes = np.tile(np.array([[0, 0, 300, 300]], dtype=np.float32), (1500, 1))
    with less_memory_than(250 << 20):
        found = match(boxes, default_boxes())
    # All are equal: the last has the best default box, the first those that fit.
    assert set(found.tolist()) == {UNMATCHED, 0, len(boxes) - 1}
