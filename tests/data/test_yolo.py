"""YOLO data sets: data.yaml, where images and labels are, and one message for all that is wrong."""

from pathlib import Path

import numpy as np
import pytest
from yolo_files import GOOD, HEIGHT, WIDTH, YAML, picture, sideways, write_yolo

from ssd300_vgg16.data.categories import COCO_CATEGORIES
from ssd300_vgg16.data.dataset import Category
from ssd300_vgg16.data.formats import DataSource
from ssd300_vgg16.data.yolo import load_yolo
from ssd300_vgg16.data.yolo_layout import read_description
from ssd300_vgg16.errors import UserError


@pytest.fixture
def load(tmp_path):
    def load_labels(labels, yaml=YAML, **options):
        return load_yolo(write_yolo(tmp_path / "yolo", labels, yaml), "train", **options)

    return load_labels


def test_a_clean_folder(load, tmp_path):
    dataset = load({"b": None, "a": f"1 0.25 0.5 0.5 1\n\n{GOOD}", "c": ""})
    assert dataset.name == f"{tmp_path / 'yolo' / 'data.yaml'} (train)"
    assert (dataset.kind, dataset.categories) == ("yolo", (Category(1, 0, "cat"), Category(2, 1, "dog")))
    assert not dataset.problems
    a, b, c = dataset.samples
    assert (a.id, a.path, a.height, a.width) == (1, tmp_path / "yolo/images/train/a.jpg", HEIGHT, WIDTH)
    np.testing.assert_allclose(a.boxes, [[0, 0, 50, 50], [40, 15, 60, 35]])
    assert a.labels.tolist() == [2, 1]
    np.testing.assert_allclose(a.areas, [2500, 400])
    assert (a.crowd.tolist(), a.difficult.tolist()) == ([False, False], [False, False])
    assert [(sample.id, sample.boxes.shape) for sample in (b, c)] == [(2, (0, 4)), (3, (0, 4))]


@pytest.mark.parametrize(
    "yaml",
    [
        "train: images/train",
        "path: .\ntrain: images/train",
        "path: images\ntrain: train",
        "path: HERE\ntrain: images/train",
        "path: ../yolo\ntrain: ./images/train",
        "train: HERE/images/train",
        "train: [images/train]",
        "train: [images/train/sub, images/train/a]",
        "train: ../images/train",  # beside the file, as some tools write it
        "train: train.txt",
        "path: images\ntrain: HERE/train.txt",
        "train: [images/train/a, list/other.txt]",
    ],
)
def test_where_the_images_are(tmp_path, yaml):
    yaml = yaml.replace("HERE", str(tmp_path / "yolo"))
    folder = write_yolo(tmp_path / "yolo", {"a/1": GOOD}, f"{yaml}\nnames: [cat]\n")
    picture(folder / "images/train/sub/2.PNG")
    (folder / "train.txt").write_text(f"./images/train/a/1.jpg\n\n{folder}/images/train/sub/2.PNG\n")
    (folder / "list").mkdir()
    (folder / "list" / "other.txt").write_text("images/train/sub/2.PNG")
    samples = load_yolo(folder, "train").samples
    found = {sample.path.resolve().relative_to(folder.resolve()): len(sample.labels) for sample in samples}
    assert found == {Path("images/train/a/1.jpg"): 1, Path("images/train/sub/2.PNG"): 0}


@pytest.mark.parametrize(
    ("images", "labels"),
    [
        ("images/train", "labels/train"),
        ("train/images", "train/labels"),
        ("images/my/images/deep/er", "images/my/labels/deep/er"),
        ("pictures", "pictures"),
        ("my_images", "my_images"),
    ],
)
def test_where_the_labels_are(tmp_path, images, labels):
    picture(tmp_path / images / "a.b.jpg")
    (tmp_path / labels).mkdir(parents=True, exist_ok=True)
    (tmp_path / labels / "a.b.txt").write_text(GOOD)
    (tmp_path / "data.yaml").write_text(f"train: {images}\nnames: [cat]\n")
    assert len(load_yolo(tmp_path, "train").samples[0].labels) == 1


def test_a_folder_of_images_that_one_stands_in(tmp_path, monkeypatch):
    write_yolo(tmp_path / "yolo", {"a": GOOD})
    monkeypatch.chdir(tmp_path / "yolo" / "images")
    (Path("data.yaml")).write_text("train: train\nnames: [cat]\n")
    (sample,) = load_yolo(".", "train").samples
    assert (sample.path, len(sample.labels)) == (Path("train/a.jpg"), 1)


@pytest.mark.parametrize("place", ["images/train", "pictures"])
def test_labels_without_an_image_are_told(tmp_path, place):
    folder = tmp_path / ".cache" / "yolo"
    labels = folder / place.replace("images", "labels")
    (labels / "sub" / ".hidden").mkdir(parents=True)
    picture(folder / place / "a.jpg")
    (folder / "data.yaml").write_text(f"train: {place}\nnames: [cat, dog]\n")
    others = {"classes": "cat\ndog\n", "empty": "\n", "counts": "12\n", "sub/.hidden/d": GOOD, ".e": GOOD}
    for name, text in {"a": GOOD, "b": GOOD, "sub/c": f"\n{GOOD}", **others}.items():
        (labels / f"{name}.txt").write_text(text)
    problems = load_yolo(folder, "train").problems
    assert problems.counts == {"label file without an image": 2}
    assert "label files left out: 2\n  2 x label file without an image: " in problems.message()
    assert f"{labels / 'b.txt'}, {labels / 'sub' / 'c.txt'}" in problems.message()


def test_labels_of_images_that_a_list_leaves_out_are_no_problem(tmp_path):
    folder = write_yolo(tmp_path / "yolo", {"a": GOOD, "b": GOOD}, YAML.replace("images/train", "train.txt"))
    (folder / "train.txt").write_text("images/train/a.jpg\n")
    assert not load_yolo(folder, "train").problems


def test_lists_of_images_with_faults(tmp_path):
    folder = write_yolo(tmp_path / "yolo", {"a": GOOD}, YAML.replace("images/train", "train.txt"))
    (folder / "images/train/broken.jpg").write_bytes(b"no image")
    rows = [
        "images/train/a.jpg",
        "./images/train/a.jpg",
        "images/train/b.jpg",
        "images/train/broken.jpg",
        "x\0",
        "x" * 300,
    ]
    (folder / "train.txt").write_text("\n".join(rows))
    dataset = load_yolo(folder, "train")
    assert dataset.problems.counts == {
        "image listed twice": 1,
        "listed image that is missing": 3,
        "image that cannot be read": 1,
    }
    assert "train.txt, line 3: images/train/b.jpg" in dataset.problems.message()
    assert "4 of 5 images left out, with their objects\n  3 x listed image" in dataset.problems.message()
    assert "entries read all the same: 1\n  1 x image listed twice" in dataset.problems.message()
    assert [sample.path.name for sample in dataset.samples] == ["a.jpg"]
    (folder / "train.txt").write_bytes(b"\xff\xd8\xff")
    with pytest.raises(UserError, match=r"train\.txt: cannot be read: it is not UTF-8 text; a split is a folder of"):
        load_yolo(folder, "train")


def test_boxes_and_sizes_are_those_of_the_upright_image(tmp_path):
    folder = write_yolo(tmp_path / "yolo", {"a": "0 0.75 0.25 0.5 0.5\n", "b": GOOD})
    sideways(folder / "images/train/a.jpg")
    a, b = load_yolo(folder, "train").samples
    assert (a.height, a.width, b.height, b.width) == (WIDTH, HEIGHT, HEIGHT, WIDTH)
    np.testing.assert_allclose(a.boxes, [[25, 0, 50, 50]])
    np.testing.assert_allclose(b.boxes, [[40, 15, 60, 35]])
    assert a.upright and b.upright


def test_an_outline_stands_for_the_box_around_it(load):
    dataset = load({"a": "1 0.1 0.2 0.5 0.1 0.3 0.6\n0 0.1 0.1 0.2 0.1 0.2 0.3 0.1 0.3\n"})
    assert not dataset.problems
    np.testing.assert_allclose(dataset.samples[0].boxes, [[10, 5, 50, 30], [10, 5, 20, 15]])
    assert dataset.samples[0].labels.tolist() == [2, 1]


def test_a_line_that_is_there_twice_counts_once(load):
    dataset = load({"a": f"{GOOD}1 0.5 0.5 0.2 0.4\n{GOOD}"})
    assert dataset.problems.counts == {"object that is there twice, with the same box: counted once": 1}
    assert "labels/train/a.txt, line 3" in dataset.problems.message()
    assert dataset.samples[0].labels.tolist() == [1, 2]


def test_corners_given_as_centre_and_size_are_refused(load):
    corners = ["0 0.1 0.1 0.9 0.9", "0 0.5 0.2 0.8 0.7", "1 0.3 0.46 0.5 0.9", "1 0.6 0.6 0.9 0.9"]
    said = r"3 of 4 boxes lead out of their images, and all fit as x1, y1, x2, y2; YOLO's lines are: class, x and y"
    with pytest.raises(UserError, match=said):
        load({"a": "\n".join(corners)})
    load({"a": "\n".join([*corners, GOOD])})  # which are no corners


def test_a_list_of_class_names_that_says_otherwise_is_told(load, tmp_path):
    load({"a": GOOD})
    listed = tmp_path / "yolo" / "labels" / "train" / "classes.txt"
    for text, notes in (("cat\n", 0), ("cat\ndog\nbird\n", 0), ("dog\ncat\n", 1), (b"\xff\xfe", 0)):
        listed.write_bytes(text if isinstance(text, bytes) else text.encode())
        assert len(load({"a": GOOD}).problems.notes) == notes
    listed.write_text("dog\ncat\n")
    assert load({"a": GOOD}).problems.message().startswith(f"{listed}: other class names than in ")


def test_two_classes_of_one_name_are_told_apart(load):
    dataset = load({"a": f"{GOOD}1 0.5 0.5 0.2 0.4\n"}, YAML.replace("dog", "cat"))
    assert [category.name for category in dataset.categories] == ["cat", "cat (id 1)"]
    assert dataset.problems.counts == {"category name used twice": 1}


def test_classes_that_differ_in_capitals_only_are_no_problem(load):
    dataset = load({"a": f"{GOOD}1 0.5 0.5 0.2 0.4\n"}, YAML.replace("cat, dog", "a, A"), strict=True)
    assert [category.name for category in dataset.categories] == ["a", "A"]
    assert "classes that differ in capitals only: 'a' and 'A'" in dataset.problems.message()


COUNT = "line that is neither a class with 4 numbers nor one with 3 or more points"


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        ("2 0.5 0.5 0.1 0.1", "line whose class is not one of 0 to 1"),
        ("0.5 0.5 0.5 0.1 0.1", "line whose class is not a whole number"),
        ("nan 0.5 0.5 0.1 0.1", "line whose class is not a whole number"),
        ("cat 0.5 0.5 0.1 0.1", "line with something else than numbers"),
        ("0,0.5,0.5,0.1,0.1", "line with something else than numbers"),
        ("0", COUNT),
        ("0 0.5 0.5 0.1", COUNT),
        ("0 0.5 0.5 0.1 0.1 0.9 0.9 0.9", COUNT),
        ("0 0.5 nan 0.1 0.1", "line with numbers that are not finite"),
        ("0 0.5 0.5 1e400 0.1", "line with numbers that are not finite"),
    ],
)
def test_malformed_lines_are_dropped_and_counted(load, line, kind):
    dataset = load({"a": f"{GOOD}\n{line}\n{GOOD.replace('0.2', '0.3')}"})
    assert dataset.problems.counts == {kind: 1}
    assert f"labels/train/a.txt, line 3: {line}" in dataset.problems.message()
    assert len(dataset.samples[0].labels) == 2


@pytest.mark.parametrize("content", [b"\xff\xd8\xff", None])
def test_label_files_that_cannot_be_read(load, tmp_path, content):
    if content is None:
        (tmp_path / "yolo/labels/train/b.txt").mkdir(parents=True)
    problems = load({"a": GOOD, "b": content}).problems
    assert problems.counts == {"label file that cannot be read": 1}
    assert "b.txt: cannot be read: " in problems.message()


def test_a_folder_of_labels_that_may_not_be_looked_into(load, monkeypatch):
    exists = Path.exists

    def refuse(path):
        if path.name == "b.txt":
            raise PermissionError(13, "Permission denied", str(path))
        return exists(path)

    monkeypatch.setattr(Path, "exists", refuse)
    assert load({"a": GOOD, "b": GOOD}).problems.counts == {"label file that cannot be read": 1}


@pytest.mark.parametrize(
    ("line", "kind", "xyxy"),
    [
        ("0 0.5 0.5 1 1", None, (0, 0, 100, 50)),
        ("0 0.5 0.5 1.019 1.039", None, (0, 0, 100, 50)),  # nearly a pixel more on all sides
        ("0 0.5 0.5 1.022 1", "box beyond the image", (-1.1, 0, 101.1, 50)),
        ("0 0.5 0.5 1.01 1.1", "box beyond the image", (0, -2.5, 100, 52.5)),
        ("0 50 25 20 10", "box outside the image", (4000, 1000, 6000, 1500)),  # in pixels
        ("0 0.5 0.5 0 0.1", "box of no area", (50, 22.5, 50, 27.5)),
        ("0 0.5 0.5 -0.1 0.1", "box of no area", (55, 22.5, 45, 27.5)),
        ("0 0.1 0.1 0.5 0.1 0.3 0.1", "box of no area", (10, 5, 50, 5)),
    ],
)
def test_odd_boxes_are_clipped_by_a_pixel_or_counted(load, line, kind, xyxy):
    dataset = load({"a": f"{GOOD}{line}\n"})
    assert dataset.problems.counts == ({kind: 1} if kind else {})
    assert kind is None or "a.txt, line 2 (cat; a.jpg, 100 x 50): xyxy " in dataset.problems.message()
    np.testing.assert_allclose(dataset.samples[0].boxes[1], xyxy, atol=1e-9)


def test_categories_are_matched_by_name(load):
    given = (Category(7, 70, "Dog"), Category(8, 80, "bird"))
    dataset = load({"a": f"{GOOD}1 0.5 0.5 0.1 0.1\n{GOOD}"}, categories=given)
    assert dataset.categories == (Category(7, 1, "Dog"),)
    assert dataset.samples[0].labels.tolist() == [7]
    assert dataset.problems.counts == {"category that the model does not know": 1}
    assert "'cat' (2 objects)" in dataset.problems.message()
    own = load({"a": GOOD})
    assert load({"a": GOOD}, categories=own.categories).categories == own.categories


def test_a_model_of_coco_knows_coco_in_yolos_order(load):
    names = [category.name for category in COCO_CATEGORIES]
    yaml = f"train: images/train\nnames: {dict(enumerate(names))}\n".replace("'", "")
    dataset = load({"a": "79 0.5 0.5 0.1 0.1"}, yaml=yaml, categories=COCO_CATEGORIES)
    assert (dataset.samples[0].labels.tolist(), dataset.categories[-1]) == ([90], Category(90, 79, "toothbrush"))


@pytest.mark.parametrize(
    ("labels", "given", "message"),
    [
        ({"a": None}, None, r"No object is left.*files like .*labels/train/a\.txt"),
        ({"a": "9 1 1 1 1"}, None, "class is not one of 0 to 1.*No object is left"),
        ({"a": GOOD}, (Category(1, 1, "dog"),), r"does not know: 'cat'.*No object is left"),
        ({}, None, "images/train"),
    ],
)
def test_nothing_to_train_on(load, tmp_path, labels, given, message):
    (tmp_path / "yolo/images/train").mkdir(parents=True)
    with pytest.raises(UserError, match="(?s)" + message):
        load(labels, categories=given)


@pytest.mark.parametrize(
    ("yaml", "message"),
    [
        ("train: [", r"data\.yaml, line 1: not valid YAML"),
        ("a: b\n c: d", r"data\.yaml, line 2: not valid YAML"),
        ("date: 2024-13-45", "not valid YAML: month must be in"),
        ("[" * 2000, "not valid YAML"),
        ("x: !!python/object/apply:os.getcwd []", "not valid YAML: could not determine a constructor"),
        ("\0", "not valid YAML"),
        ("- a", "has keys train, val and names"),
        ("", "has keys train, val and names"),
        ("train: a\nname: [cat]", "names: must be a list of the classes' names, it is absent"),
        ("train: a\nval: a", "names: must be a list of the classes' names, it is absent"),
        ("names: cat", "names: must be a list of the classes' names$"),
        ("names: []", "names: must be a list"),
        ("names: [cat, [dog]]", r"names: the name of class 1 is \['dog'\]"),
        ("names: ['']", "names: the name of class 0 is ''; put names in quotes"),
        ("names: [yes, no]", "names: the name of class 0 is True; put names in quotes"),
        ("names: {0: a, 2: b}", "names: its numbers must be 0, 1, 2"),
        ("names: {a: 0}", "names: its numbers must be"),
        ("nc: 3\nnames: [a, b]", "nc: 3, but there are 2 names"),
        ("nc: two\nnames: [a, b]", "nc: 'two', but there are 2 names"),
        ("path: 3\nnames: [a]", "path: must be the name of a folder, not 3"),
        ("path: nowhere\nnames: [a]", "path: no folder .*nowhere; without this key"),
        ("train: 3\nnames: [a]", r"train: must be a folder, a list of folders or a \.txt file, not 3"),
        ("train: [a, 3]\nnames: [a]", "train: must be a folder"),
        ("train:\nnames: [a]", "train: this key is absent"),
        ("train: nowhere\nnames: [a]", "train: there is no .*nowhere"),
        ("kpt_shape: [17, 3]\nnames: [a]", "kpt_shape: the labels are key points"),
    ],
)
def test_a_yaml_file_that_is_not_this_is_refused(tmp_path, yaml, message):
    (tmp_path / "data.yaml").write_text(yaml)
    with pytest.raises(UserError, match=message) as caught:
        load_yolo(tmp_path, "train")
    assert "data.yaml" in str(caught.value)


def test_splits_that_were_never_made(tmp_path, monkeypatch):
    """Roboflow names all three; and ~ is the user's own folder."""
    monkeypatch.setenv("HOME", str(tmp_path))
    yaml = "path: ~/yolo\ntrain: images/train\nval: valid/images\ntest: test/images\nnames: [cat]\n"
    folder = write_yolo(tmp_path / "yolo", dict.fromkeys("abcde", GOOD), yaml)
    source = DataSource(path=folder)
    train, val = source.load("train"), source.load("val")
    assert len(train.samples) + len(val.samples) == 5 and val.samples
    absent, images = folder / "valid/images", folder / "images/train"
    said = f"there is no {absent}; {images}: no validation split there: 20% of the images "
    assert train.problems.message().startswith(said)
    write_yolo(folder, {"x": GOOD}, yaml, images="test/images")
    assert [sample.path.name for sample in source.load("val").samples] == ["x.jpg"]
    assert len(source.load("train").samples) == 5


def test_names_that_are_numbers(tmp_path):
    (tmp_path / "data.yaml").write_text("names: [7, '8']\nnc: 2\n")
    assert read_description(tmp_path).names == ("7", "8")


@pytest.mark.parametrize(
    ("files", "given", "found"),
    [
        (["data.yaml", "other.yaml"], "", "data.yaml"),
        (["data.yml"], "", "data.yml"),
        (["coco8.yaml"], "", "coco8.yaml"),
        (["a.yaml", "b.yaml"], "", None),
        (["a.yaml", "b.yaml"], "b.yaml", "b.yaml"),
        (["a.txt"], "a.txt", None),
        ([], "nowhere", None),
    ],
)
def test_which_file_is_read(tmp_path, files, given, found):
    for name in files:
        (tmp_path / name).write_text("names: [a]")
    if found:
        assert read_description(tmp_path / given).file == tmp_path / found
    else:
        with pytest.raises(UserError, match=r"no data\.yaml there"):
            read_description(tmp_path / given)


def test_darknets_file_may_have_its_suffix_in_capitals(tmp_path):
    (tmp_path / "A.DATA").write_text("names = a.names\n")
    (tmp_path / "a.names").write_text("cat\ndog\n")
    assert read_description(tmp_path / "A.DATA").names == ("cat", "dog")
