"""COCO annotation files: labels, what is kept, and one message for all that is wrong."""

import json
import re

import numpy as np
import pytest
from PIL import Image
from places import BCCD
from pycocotools.coco import COCO
from pycocotools.mask import encode

from ssd300_vgg16.boxes import xyxy_to_xywh
from ssd300_vgg16.data.categories import COCO_CATEGORIES
from ssd300_vgg16.data.coco import load_coco
from ssd300_vgg16.data.coco_layout import find_coco_splits
from ssd300_vgg16.data.dataset import Category
from ssd300_vgg16.errors import UserError

GIVEN = (Category(1, 500, "Dog"), Category(2, 600, "cat"))


def image(id_, **fields):
    return {"id": id_, "file_name": f"{id_}.jpg", "width": 60, "height": 40} | fields


def annotation(id_, **fields):
    return {"id": id_, "image_id": 1, "category_id": 7, "bbox": [10, 10, 20, 10], "area": 150, "iscrowd": 0} | fields


def document(**sections):
    return {
        "images": [image(1), image(2)],
        "annotations": [annotation(1), annotation(2, category_id=3)],
        "categories": [{"id": 7, "name": "cat"}, {"id": 3, "name": "dog"}],
    } | sections


def without(entry, field):
    return {key: value for key, value in entry.items() if key != field}


@pytest.fixture
def load(tmp_path):
    """Writes a document and its images (1.jpg to 3.jpg), and loads it."""
    for name in ("1.jpg", "2.jpg", "3.jpg", "sub/deep.jpg"):
        (tmp_path / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (60, 40)).save(tmp_path / "images" / name)

    def load_document(content, **options):
        text = content if isinstance(content, str | bytes) else json.dumps(content)
        (tmp_path / "file.json").write_bytes(text.encode() if isinstance(text, str) else text)
        return load_coco(tmp_path / "file.json", tmp_path / "images", **options)

    return load_document


def test_a_clean_file(load, tmp_path):
    dataset = load(document())
    assert dataset.name == str(tmp_path / "file.json")
    assert dataset.categories == (Category(1, 3, "dog"), Category(2, 7, "cat"))
    assert not dataset.problems
    first, second = dataset.samples
    assert (first.id, first.path, first.height, first.width) == (1, tmp_path / "images" / "1.jpg", 40, 60)
    assert first.boxes.tolist() == [[10, 10, 30, 20]] * 2
    assert (first.labels.tolist(), first.crowd.tolist(), first.areas.tolist()) == ([2, 1], [False] * 2, [150] * 2)
    columns = (first.boxes, first.labels, first.crowd, first.areas)
    assert [column.dtype for column in columns] == [np.float64, np.int64, np.bool_, np.float64]
    assert (second.id, second.boxes.shape, second.labels.shape) == (2, (0, 4), (0,))


def test_samples_have_the_order_of_images_and_annotations(load):
    rows = [annotation(k, image_id=1 + k % 3, bbox=[k, 0, 5, 5]) for k in (5, 3, 1, 4, 2, 0)]
    dataset = load(document(images=[image(3), image(1), image(2)], annotations=rows))
    assert [sample.id for sample in dataset.samples] == [3, 1, 2]
    assert [sample.boxes[:, 0].tolist() for sample in dataset.samples] == [[5, 2], [3, 0], [1, 4]]


def test_crowds_and_absent_fields(load):
    bare = without(without(annotation(2), "area"), "iscrowd")
    rows = [annotation(1, iscrowd=1), bare, annotation(3, area=None, iscrowd=None, bbox=[9, 9, 20, 10])]
    dataset = load(document(annotations=rows))
    assert not dataset.problems
    assert dataset.samples[0].crowd.tolist() == [True, False, False]
    assert dataset.samples[0].areas.tolist() == [150, 200, 200]


@pytest.mark.parametrize("ids", [(0, 5), (-3, 2**63 - 1), (90, 2**40)])
def test_any_ids(load, ids):
    low, high = ids
    dataset = load(
        document(
            images=[image(high, file_name="1.jpg"), image(low, file_name="2.jpg")],
            annotations=[
                annotation(low, image_id=high, category_id=high),
                annotation(high, image_id=low, category_id=low),
            ],
            categories=[{"id": high, "name": "b"}, {"id": low, "name": "a"}],
        )
    )
    assert dataset.categories == (Category(1, low, "a"), Category(2, high, "b"))
    assert [(sample.id, sample.labels.tolist()) for sample in dataset.samples] == [(high, [2]), (low, [1])]
    assert not dataset.problems


def test_coco_has_80_categories_with_label_equal_id():
    assert len({category.name for category in COCO_CATEGORIES}) == 80
    assert all(category.label == category.id for category in COCO_CATEGORIES)
    missing = set(range(1, 91)) - {category.id for category in COCO_CATEGORIES}
    assert missing == {12, 26, 29, 30, 45, 66, 68, 69, 71, 83}
    by_id = {category.id: category.name for category in COCO_CATEGORIES}
    assert (by_id[1], by_id[44], by_id[72], by_id[90]) == ("person", "bottle", "tv", "toothbrush")


@pytest.mark.parametrize(("count", "labels", "num_classes"), [(80, [90], 91), (79, [79], 80)])
def test_all_of_coco_keeps_its_ids_a_part_does_not(load, count, labels, num_classes):
    some = COCO_CATEGORIES[-count:]
    rows = [{"id": category.id, "name": category.name, "supercategory": "x"} for category in reversed(some)]
    dataset = load(document(categories=rows, annotations=[annotation(1, category_id=90)]))
    assert dataset.samples[0].labels.tolist() == labels
    assert dataset.num_classes == num_classes


def test_given_categories_are_matched_by_name(load):
    rows = [{"id": id_, "name": name} for id_, name in ((7, " CAT "), (3, "dog"), (9, "unused"), (4, "horse"))]
    annotations = [annotation(id_, category_id=category) for id_, category in enumerate((7, 3, 4, 4))]
    dataset = load(document(categories=rows, annotations=annotations), categories=GIVEN)
    assert set(dataset.categories) == {Category(2, 7, "cat"), Category(1, 3, "Dog")}
    assert dataset.samples[0].labels.tolist() == [2, 1]
    assert dataset.problems.counts == {"category that the model does not know": 1}
    message = dataset.problems.message()
    assert "1 of 4 categories left out, with their objects\n" in message and "'horse' (2 objects)" in message


def test_categories_of_one_name_are_told_apart_by_id(load):
    same = load(document(categories=[{"id": 7, "name": "cat"}, {"id": 3, "name": "cat"}]))
    assert same.categories == (Category(1, 3, "cat"), Category(2, 7, "cat (id 7)"))
    assert same.problems.counts == {"category name used twice": 1} and same.samples[0].labels.tolist() == [2, 1]
    rows = [{"id": 7, "name": "cat"}, {"id": 3, "name": "Cat"}]
    own = load(document(categories=rows))
    assert not own.problems.counts and "differ in capitals only: 'Cat' and 'cat'" in own.problems.message()
    again = load(document(categories=rows), categories=own.categories)
    assert [sample.labels.tolist() for sample in own.samples] == [[2, 1], []]
    assert [sample.labels.tolist() for sample in again.samples] == [[2, 1], []]


@pytest.mark.parametrize(
    ("bad", "kind", "place"),
    [
        (3, "annotation that is not an object", "annotations[0]"),
        (without(annotation(9), "image_id"), "annotation without image_id", "id 9"),
        ({}, "annotation without image_id", "image_id: annotations[0]\n"),
        (annotation(9, image_id=None), "annotation whose image_id is not a whole number", "id 9"),
        (annotation(9, image_id=77), "annotation of unknown image_id", "image_id 77"),
        (without(annotation(9), "category_id"), "annotation without category_id", "id 9"),
        (annotation(9, category_id=0), "annotation of unknown category_id", "category_id 0"),
        (without(annotation(9), "bbox"), "annotation without bbox", "id 9"),
        (annotation(9, bbox=None), "annotation whose bbox is not 4 numbers", "id 9"),
        (annotation(9, bbox=[1, 2, 3]), "annotation whose bbox is not 4 numbers", "bbox [1, 2, 3]"),
        (annotation(9, bbox=[1, 2, 3, "four"]), "annotation whose bbox is not 4 numbers", "id 9"),
        (annotation(9, bbox=[1, 2, 3, True]), "annotation whose bbox is not 4 numbers", "id 9"),
        (annotation(9, bbox=[1, 2, 3, float("nan")]), "annotation whose bbox is not finite", "id 9"),
        (annotation(9, bbox=[1, float("-inf"), 3, 4]), "annotation whose bbox is not finite", "id 9"),
        (annotation(9, bbox=[1, 2, 10**400, 4]), "annotation whose bbox is not finite", "id 9"),
        (annotation(9, iscrowd="no"), "annotation whose iscrowd is not 0 or 1", "id 9"),
    ],
)
def test_malformed_annotations_are_dropped_and_counted(load, bad, kind, place):
    dataset = load(document(annotations=[bad, annotation(1)]))
    assert dataset.problems.counts == {kind: 1}
    assert place in f"{dataset.problems.message()}\n"
    assert len(dataset.samples[0].boxes) == 1


# Rows 10 to 19 and columns 5 to 24 of 40 x 60 pixels, column by column: before it, its 20 columns, the rest.
RUNS = [5 * 40 + 10, *[10, 30] * 19, 10, 20 + 35 * 40]
COMPRESSED = "b6:n00000000000000000000000000000000000000^[1"  # of pycocotools


def mask(counts, size=(40, 60)):
    return {"size": list(size), "counts": counts}


@pytest.mark.parametrize("counts", [RUNS, COMPRESSED], ids=["runs", "compressed"])
@pytest.mark.parametrize("fields", [{}, {"bbox": None}, {"bbox": []}, {"bbox": [1, 2, float("nan"), 4]}], ids=str)
def test_a_run_length_mask_stands_in_for_the_box(load, counts, fields):
    row = without(annotation(9, segmentation=mask(counts)), "bbox") | fields
    dataset = load(document(annotations=[row]))
    assert not dataset.problems
    assert dataset.samples[0].boxes.tolist() == [[5, 10, 25, 20]]


def test_the_runs_are_those_that_pycocotools_compresses():
    pixels = np.zeros((40, 60), dtype=np.uint8, order="F")
    pixels[10:20, 5:25] = 1
    assert encode(pixels)["counts"].decode() == COMPRESSED
    assert np.repeat(np.arange(len(RUNS)) % 2, RUNS).tolist() == pixels.ravel(order="F").tolist()


def test_a_box_goes_before_the_mask(load):
    dataset = load(document(annotations=[annotation(1, segmentation=mask(RUNS))]))
    assert dataset.samples[0].boxes.tolist() == [[10, 10, 30, 20]]


@pytest.mark.parametrize(
    "segmentation",
    [
        mask(RUNS, (0, 60)),  # a side of 0 would end the process
        mask(RUNS, (-40, 60)),
        mask(RUNS, (40,)),
        mask(RUNS, (40.0, 60)),
        mask(RUNS, (1 << 20, 1 << 20)),
        mask(RUNS[:-1]),
        mask([-200, *RUNS[1:], 400]),
        mask([210.5, *RUNS[1:]]),
        mask(["210", *RUNS[1:]]),
        mask(COMPRESSED, (40, 20)),  # it would be beyond the mask
        mask("\x01\x02zzz"),
        mask("é"),
        mask(None),
        {},
        [[10, 10, 20, 10, 20, 20]],  # a polygon
    ],
    ids=str,
)
def test_other_masks_do_not(load, segmentation):
    bad = without(annotation(9, segmentation=segmentation), "bbox")
    dataset = load(document(annotations=[bad, annotation(1)]))
    assert dataset.problems.counts == {"annotation without bbox": 1}


@pytest.mark.parametrize("ids", [(0, 1), (1, 1), ("a", None), ("1", "1")])
def test_no_object_is_lost_by_the_id_of_its_annotation(load, ids):
    rows = [annotation(id_, bbox=[10 * k, 10, 20, 10]) for k, id_ in enumerate(ids, start=1)]
    dataset = load(document(annotations=[*rows, without(annotation(1, bbox=[0, 0, 5, 5]), "id")]))
    assert dataset.samples[0].boxes.tolist() == [[10, 10, 30, 20], [20, 10, 40, 20], [0, 0, 5, 5]]
    assert not dataset.problems.counts


def test_numbers_may_be_written_as_texts(load):
    rows = [annotation("1", image_id="2", category_id="3", bbox=["10", "10.5", "20", 10], iscrowd="0")]
    categories = [{"id": "7", "name": "cat"}, {"id": "3", "name": "dog"}]
    dataset = load(document(images=[image("1"), image("2")], annotations=rows, categories=categories), strict=True)
    assert dataset.samples[1].boxes.tolist() == [[10, 10.5, 30, 20.5]]
    assert [category.id for category in dataset.categories] == [3, 7]


def test_a_number_that_no_float_holds_is_none_of_a_box(load):
    rows = [annotation(1), annotation(2, bbox=["1", 10**400, 3, 4]), annotation(3, bbox=[1, 10**400, 3, 4])]
    dataset = load(document(annotations=rows))
    assert sum(len(sample.labels) for sample in dataset.samples) == 1
    assert dataset.problems.counts == {
        "annotation whose bbox is not 4 numbers": 1,
        "annotation whose bbox is not finite": 1,
    }


def test_ids_may_be_written_with_a_fraction_of_0(load):
    rows = [annotation(1.0, image_id=2.0, category_id=3.0)]
    dataset = load(document(images=[image(1), image(2.0, file_name="2.jpg")], annotations=rows))
    assert "or ids as 7.0, are read as numbers" in dataset.problems.message() and not dataset.problems.counts
    assert [(sample.id, type(sample.id), len(sample.boxes)) for sample in dataset.samples] == [(1, int, 0), (2, int, 1)]
    # 1.0 is 1: another file with it is left out.
    again = load(document(images=[image(1), image(1.0, file_name="2.jpg")]))
    assert again.problems.counts == {"image with the id of another": 1}
    assert [sample.path.name for sample in again.samples] == ["1.jpg"]


@pytest.mark.parametrize("other_id", [1, 1.0, 5])
def test_an_image_that_is_there_for_each_of_its_boxes_is_one(load, other_id):
    rows = [annotation(1), annotation(2, image_id=other_id, bbox=[1, 1, 9, 9])]
    dataset = load(document(images=[image(1), image(other_id, file_name="1.jpg")], annotations=rows))
    assert dataset.problems.counts == {"image that is there again: joined with the first": 1}
    assert [(sample.id, len(sample.boxes)) for sample in dataset.samples] == [(1, 2)]


def test_a_file_that_two_names_mean_is_one_image(load):
    rows = [annotation(1, image_id=2), annotation(2, image_id=5, bbox=[1, 1, 9, 9])]
    dataset = load(document(images=[image(1), image(2), image(5, file_name="/data/2.jpg")], annotations=rows))
    assert dataset.problems.counts == {"image that is there again: joined with the first": 1}
    assert [(sample.id, len(sample.boxes)) for sample in dataset.samples] == [(1, 0), (2, 2)]


def test_an_object_that_is_there_twice_counts_once(load):
    rows = [annotation(1), annotation(2), annotation(3, category_id=3), annotation(4, bbox=[10, 10, 20, 11])]
    dataset = load(document(annotations=rows))
    assert dataset.problems.counts == {"object that is there twice, with the same box: counted once": 1}
    assert "annotation 2 of image 1 (cat; " in dataset.problems.message()
    assert len(dataset.samples[0].boxes) == 3
    # COCO's own figures count all that is in its files.
    whole = [{"id": category.id, "name": category.name} for category in COCO_CATEGORIES]
    assert len(load(document(annotations=rows, categories=whole)).samples[0].boxes) == 4


def test_boxes_in_fractions_are_refused(load):
    rows = [annotation(k, bbox=[0.2, 0.3, 0.1 * k, 0.5]) for k in range(1, 4)]
    with pytest.raises(UserError, match=r"all 3 boxes are within 0 to 1: .* COCO's bbox is in pixels"):
        load(document(annotations=rows))
    assert load(document(annotations=[*rows, annotation(9)])).problems.counts == {}


def test_corners_given_as_sizes_are_refused(load):
    corners = [[10, 10, 30, 20], [40, 20, 58, 39], [30, 5, 55, 38], [2, 2, 9, 9]]
    rows = [annotation(k, bbox=bbox) for k, bbox in enumerate(corners)]
    with pytest.raises(UserError, match=r"2 of 4 boxes lead out of their images, and all fit as x1, y1, x2, y2"):
        load(document(annotations=rows))
    load(document(annotations=[*rows, annotation(9, bbox=[30, 5, 10, 10])]))  # which are no corners


def test_the_category_above_the_others_is_left_out(load):
    categories = [
        {"id": 0, "name": "pets", "supercategory": "none"},
        {"id": 3, "name": "dog", "supercategory": "pets"},
        {"id": 7, "name": "cat", "supercategory": "pets"},
    ]
    assert [category.name for category in load(document(categories=categories)).categories] == ["dog", "cat"]
    rows = [annotation(1), annotation(2, category_id=0)]
    names = [category.name for category in load(document(annotations=rows, categories=categories)).categories]
    assert names == ["pets", "dog", "cat"]
    categories[2]["supercategory"] = ["pets"]  # a file may say anything
    assert [category.name for category in load(document(categories=categories)).categories] == ["dog", "cat"]


@pytest.mark.parametrize(
    ("bbox", "kind"),
    [
        ([0, 0, 60, 40], None),
        ([-1, -1, 62, 42], None),
        ([-1.01, 0, 10, 10], "box beyond the image"),
        ([0, -1.01, 10, 10], "box beyond the image"),
        ([50, 0, 11.01, 10], "box beyond the image"),
        ([0, 30, 10, 11.01], "box beyond the image"),
        ([60, 0, 10, 10], "box outside the image"),
        ([0, 40, 10, 10], "box outside the image"),
        ([-10, 0, 10, 10], "box outside the image"),
        ([0, -10, 10, 10], "box outside the image"),
        ([1e37, 0, 1e37, 10], "box outside the image"),
        ([5, 5, 0, 10], "box of no area"),
        ([5, 5, 10, 0], "box of no area"),
        ([5, 5, -3, 10], "box of no area"),
        ([900, 5, 0, 0], "box of no area"),
    ],
)
def test_odd_boxes_are_kept_and_counted(load, bbox, kind):
    dataset = load(document(annotations=[annotation(4, bbox=bbox)]))
    assert dataset.problems.counts == ({kind: 1} if kind else {})
    assert (kind is None) or "annotation 4 of image 1 (cat; 1.jpg, 60 x 40): xyxy " in dataset.problems.message()
    np.testing.assert_allclose(xyxy_to_xywh(dataset.samples[0].boxes), [bbox], rtol=1e-6, atol=1e-4)


@pytest.mark.parametrize("area", ["12", [3], float("nan"), float("inf"), 10**400])
def test_a_bad_area_is_replaced(load, area):
    dataset = load(document(annotations=[annotation(4, area=area)]))
    assert dataset.problems.counts == {"area that is not a number": 1}
    assert dataset.samples[0].areas.tolist() == [200]


@pytest.mark.parametrize(
    ("bad", "kind"),
    [
        ("1.jpg", "image that is not an object"),
        (without(image(3), "id"), "image without id"),
        (image("3rd"), "image whose id is not a whole number"),
        (image(1, file_name="3.jpg"), "image with the id of another"),
        (without(image(3), "file_name"), "image without file_name"),
        (image(3, file_name=" "), "image whose file_name is not a text"),
        (image(3, width=0), "image whose width or height is not a positive whole number"),
        (image(3, height="40"), "image whose width or height is not a positive whole number"),
        (image(3, height=float("nan")), "image whose width or height is not a positive whole number"),
        (image(3, height=40.5), "image whose width or height is not a positive whole number"),
    ],
)
def test_malformed_images_are_dropped_and_counted(load, bad, kind):
    dataset = load(document(images=[image(1), bad], annotations=[annotation(1)]))
    assert dataset.problems.counts == {kind: 1}
    assert [sample.path.name for sample in dataset.samples] == ["1.jpg"]


@pytest.mark.parametrize("name", ["absent.jpg", "sub", "sub/absent.jpg", "no/folder.jpg", "a\0/b.jpg", "."])
def test_missing_images_are_dropped_and_named(load, tmp_path, name):
    dataset = load(document(images=[image(1), image(2, file_name=name)]))
    assert dataset.problems.counts == {f"image missing in {tmp_path / 'images'}": 1}
    shown = name.replace("\0", "?")  # as a terminal can take it
    assert f"image 2 ({shown})" in dataset.problems.message()
    assert [sample.id for sample in dataset.samples] == [1]


@pytest.mark.parametrize(
    ("name", "file"),
    [(name, "sub/deep.jpg") for name in ("sub/deep.jpg", "sub//deep.jpg", "sub\\deep.jpg")]
    # Of another machine: they are looked for in the folder.
    + [(name, "1.jpg") for name in ("./1.jpg", "../images/1.jpg", "/data/upload/2/1.jpg", "C:\\photos\\1.jpg")]
    + [("../../up/3f2a5c07-1.jpg", "1.jpg")],
)
def test_where_images_are(load, tmp_path, name, file):
    dataset = load(document(images=[image(1, file_name=name)]))
    assert dataset.samples[0].path == tmp_path / "images" / file
    assert not dataset.problems


def test_file_names_lead_nowhere_out_of_the_folder(load, tmp_path):
    (tmp_path / "secret.jpg").write_bytes((tmp_path / "images" / "1.jpg").read_bytes())
    dataset = load(
        document(images=[image(1), image(2, file_name="../secret.jpg"), image(3, file_name="/etc/hostname")])
    )
    assert dataset.problems.counts == {f"image missing in {tmp_path / 'images'}": 2}


def test_an_absent_size_is_read_from_the_image(load, tmp_path):
    (tmp_path / "images" / "2.jpg").write_bytes(b"no image")
    bare = [without(image(1), "width"), image(2, height=None), image(3, height=40.0)]
    dataset = load(document(images=bare))
    assert [(sample.id, sample.height, sample.width) for sample in dataset.samples] == [(1, 40, 60), (3, 40, 60)]
    assert dataset.problems.counts == {"image without width and height, whose file cannot be read": 1}


@pytest.mark.parametrize("bad", [5, {"name": "x"}, {"id": 8}, {"id": 8, "name": None}, {"id": 7, "name": "again"}])
def test_malformed_categories_are_dropped(load, bad):
    dataset = load(document(categories=[*document()["categories"], bad]))
    assert sum(dataset.problems.counts.values()) == 1
    assert "categories[2]" in dataset.problems.message()
    assert [category.id for category in dataset.categories] == [3, 7]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"images": [\n  {"id": 1,}\n]}', r"file\.json, line 2, column 12: not valid JSON"),
        ("", r"line 1, column 1"),
        ("[" * 100_000, "not valid JSON"),
        ("9" * 5000, "file"),
        ("[1, 2]", "a JSON object, this is a list"),
        ('{"info": {}}', r'no "images".*found info'),
        (without(document(), "annotations"), 'no "annotations"'),
        (document(categories={"1": "cat"}), '"categories" must be a list, it is a dict'),
        (document(images=[]), '"images" is empty'),
        (document(annotations=[]), '"annotations" is empty'),
        (document(categories=[]), '"categories" is empty'),
        (document(categories=[{"id": 1}]), "category without name.*No category is left"),
        (document(images=[image(8), image(9)]), r"image missing in .*8\.jpg.*No image is left"),
        (document(annotations=[annotation(1, bbox=[])]), "not 4 numbers.*No object is left"),
        (document(annotations=[annotation(1, image_id=2)], images=[image(1), image(2, width=0)]), "No object is left"),
        (b"\xff\xfe\xfa{}", "cannot be read: it is not UTF-8 text"),
    ],
)
def test_useless_files(load, content, message):
    with pytest.raises(UserError, match="(?s)" + message) as error:
        load(content)
    assert "file.json" in str(error.value)


def test_places_that_are_not_there(load, tmp_path):
    with pytest.raises(UserError, match=r"absent\.json: cannot be read"):
        load_coco(tmp_path / "absent.json", tmp_path)
    load("\ufeff" + json.dumps(document()))  # with a mark of its byte order
    with pytest.raises(UserError, match=r"nowhere: no such folder"):
        load_coco(tmp_path / "file.json", tmp_path / "nowhere")


def test_all_problems_come_in_one_message(load):
    rows = [annotation(k, bbox=[0, 0, 0, 0]) for k in range(5)] + [annotation(8, bbox=[1]), annotation(9, area="x")]
    content = document(images=[image(1), image(5)], annotations=rows)
    message = load(content).problems.message()
    with pytest.raises(UserError, match=re.escape(message)):
        load(content, strict=True)
    for part in (
        "file.json: 5 of 7 objects not trained on, but counted in an evaluation\n  5 x box of no area: annotation 0 ",
        "file.json: 1 of 2 images left out, with their objects\n  1 x image missing",
        "file.json: 1 of 7 objects left out\n  1 x annotation whose bbox",
        "file.json: entries read all the same: 1\n  1 x area that is not a number",
    ):
        assert part in message


def assert_equals_pycocotools(dataset, reference: COCO):
    assert {sample.id for sample in dataset.samples} == set(reference.getImgIds())
    ids = {category.label: category.id for category in dataset.categories}
    for sample in dataset.samples:
        rows = reference.loadAnns(reference.getAnnIds(imgIds=[sample.id]))
        boxes = np.array([row["bbox"] for row in rows]).reshape(-1, 4)
        np.testing.assert_allclose(xyxy_to_xywh(sample.boxes), boxes, rtol=1e-5, atol=1e-4)
        assert [ids[label] for label in sample.labels] == [row["category_id"] for row in rows]
        assert sample.areas.tolist() == [row["area"] for row in rows]
        assert sample.crowd.tolist() == [bool(row["iscrowd"]) for row in rows]


def test_pycocotools_sees_the_same(load, tmp_path, capsys):
    rng = np.random.default_rng(0)
    boxes = np.round(rng.uniform(-20, 60, (50, 4)), 2).tolist()
    rows = [annotation(k, image_id=1 + k % 2, bbox=box, area=k, iscrowd=k % 5 // 4) for k, box in enumerate(boxes)]
    dataset = load(document(annotations=rows))
    assert set(dataset.problems.counts) == {"box of no area", "box outside the image", "box beyond the image"}
    assert_equals_pycocotools(dataset, COCO(str(tmp_path / "file.json")))


@pytest.mark.skipif(not BCCD.is_dir(), reason="the BCCD data set is not there")
@pytest.mark.parametrize(("split", "images", "boxes"), [("train", 205, 2805), ("val", 87, 1138)])
def test_bccd(split, images, boxes, capsys):
    annotation_file, image_folder = find_coco_splits(BCCD)[split]
    dataset = load_coco(annotation_file, image_folder)
    assert (len(dataset.samples), sum(len(sample.boxes) for sample in dataset.samples)) == (images, boxes)
    assert dataset.problems.counts == {"box of no area": 1}
    assert sum(len(sample.objects(480, 640)[0]) for sample in dataset.samples) == boxes - 1
    assert_equals_pycocotools(dataset, COCO(str(annotation_file)))


@pytest.mark.parametrize(
    ("file", "folder"),
    [
        ("instances_{}2017.json", "{}2017"),
        ("instances_{}2017.json", "{}"),
        ("instances_{}.json", "{}"),
        ("instances_{}.json", "images"),
        ("instances_{}.json", "images/{}"),
        ("instances_{}.json", "images/{}2017"),
        ("instances_{}2017.json", "JPEGImages"),
    ],
)
def test_split_layouts(tmp_path, file, folder):
    expected = {}
    for split in ("train", "val"):
        places = (tmp_path / "annotations" / file.format(split), tmp_path / folder.format(split))
        for place in (places[0].parent, places[1]):
            place.mkdir(parents=True, exist_ok=True)
        places[0].touch()
        expected[split] = places
    assert find_coco_splits(tmp_path) == expected
