"""Any change of a good file ends in data that are right, or in the package's own error: tried by hypothesis."""

import gzip
import io
import json
import tarfile
import zipfile
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from foreign_weights import saved, tensor
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as some
from mutations import changed, changed_values, right_or_refused
from PIL import Image
from safetensors.numpy import save
from voc_files import thing, xml

from ssd300_vgg16.cli import report
from ssd300_vgg16.cli.train_options import parse
from ssd300_vgg16.data.coco import load_coco
from ssd300_vgg16.data.dataset import Category
from ssd300_vgg16.data.images import exif_orientation, image_size, read_image
from ssd300_vgg16.data.voc import load_voc
from ssd300_vgg16.data.yolo import load_yolo
from ssd300_vgg16.weights.formats import read_contents
from ssd300_vgg16.weights.recognise import read_as_ssd
from ssd300_vgg16.weights.safetensors_file import ModelDescription

GOLDEN = Path(__file__).parent / "golden/weight_files"
QUIET = {"deadline": None, "database": None, "suppress_health_check": list(HealthCheck)}
BOTH = pytest.mark.parametrize("how_many", [1, pytest.param(30, marks=pytest.mark.long)])


def tried(run, strategy, examples, how_many):
    """Run with so many examples, the same each time; with many times as many, others each time."""
    given(strategy)(settings(max_examples=examples * how_many // 2, derandomize=how_many == 1, **QUIET)(run))()


def assert_right(dataset, folder):
    """What a training or an evaluation takes for granted."""
    labels = {category.label for category in dataset.categories}
    assert labels <= set(range(1, dataset.num_classes))
    for sample in dataset.samples:
        assert sample.path.resolve().is_relative_to(folder.resolve())
        assert sample.width > 0 and sample.height > 0
        assert sample.boxes.shape == (len(sample.labels), 4) and np.isfinite(sample.boxes).all()
        assert np.isfinite(sample.areas).all() and set(sample.labels.tolist()) <= labels
        boxes, _ = sample.objects(sample.height, sample.width)
        assert (boxes[:, 2:] > boxes[:, :2]).all()
    dataset.fingerprint(), dataset.problems.message()


def picture(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (60, 40)).save(path)


COCO = {
    "images": [{"id": 1, "file_name": "a.jpg", "width": 60, "height": 40}, {"id": 2, "file_name": "b.jpg"}],
    "annotations": [
        {"id": 1, "image_id": 1, "category_id": 3, "bbox": [1, 2, 30, 20], "area": 600, "iscrowd": 0},
        {"id": 2, "image_id": 2, "category_id": 7, "bbox": [1.5, 2, 3, 4], "iscrowd": 1},
        {"id": 3, "image_id": 1, "category_id": 3, "segmentation": {"size": [40, 60], "counts": [100, 50, 2250]}},
        {"id": 4, "image_id": 1, "category_id": 3, "segmentation": {"size": [40, 60], "counts": "d3b0"}},
    ],
    "categories": [{"id": 3, "name": "cat"}, {"id": 7, "name": "dog", "supercategory": "animal"}],
}


@BOTH
@pytest.mark.parametrize(
    "how",
    [lambda: changed_values(COCO).map(json.dumps), lambda: changed(json.dumps(COCO).encode())],
    ids=["values", "bytes"],
)
def test_coco(tmp_path, how, how_many):
    for name in "ab":
        picture(tmp_path / f"{name}.jpg")

    def run(text):
        path = tmp_path / "a.json"
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        with right_or_refused():
            assert_right(load_coco(path, tmp_path), tmp_path)

    tried(run, how(), 200, how_many)


@BOTH
def test_voc(tmp_path, how_many):
    picture(tmp_path / "1.jpg")
    good = '<?xml version="1.0" encoding="utf-8"?>' + xml(thing(), thing("dog", (1, 1, 60, 40)), thing("Cat"))

    def run(text):
        (tmp_path / "1.xml").write_bytes(text)
        with right_or_refused():
            assert_right(load_voc([tmp_path]), tmp_path)

    tried(run, changed(good.encode()), 250, how_many)


YAML = b"path: .\ntrain: images\nval: [images, images]\nnc: 2\nnames:\n  0: cat\n  1: dog\n"
LABELS = b"0 0.5 0.5 0.2 0.4\n1 0.1 0.1 0.2 0.1\n1 0.1 0.1 0.2 0.1 0.3 0.4 0.5 0.5\n"


@BOTH
@pytest.mark.parametrize(("name", "good"), [("data.yaml", YAML), ("labels/1.txt", LABELS)])
def test_yolo(tmp_path, monkeypatch, name, good, how_many):
    monkeypatch.chdir(tmp_path)
    picture(tmp_path / "images" / "1.jpg")
    (tmp_path / "labels").mkdir()
    (tmp_path / "data.yaml").write_bytes(YAML)

    def run(text):
        (tmp_path / name).write_bytes(text)
        for split in ("train", "val"):
            with right_or_refused():
                assert_right(load_yolo(tmp_path, split), tmp_path)

    tried(run, changed(good), 120, how_many)


def encoded(kind, **options):
    file = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "maker"
    Image.effect_mandelbrot((30, 20), (-2, -1, 1, 1), 50).convert("RGB").save(file, kind, exif=exif, **options)
    return file.getvalue()


KINDS = {"JPEG": {}, "PNG": {}, "WEBP": {"lossless": True}, "TIFF": {"compression": "tiff_lzw"}, "AVIF": {}}
KINDS |= {"BMP": {}, "GIF": {}, "PPM": {}, "MPO": {}}


@BOTH
@pytest.mark.parametrize("kind", KINDS)
def test_images(tmp_path, kind, how_many):
    path = tmp_path / "a.image"

    def run(data):
        path.write_bytes(data)
        with right_or_refused():
            pixels = read_image(path, upright=True)
            assert pixels.dtype == np.uint8 and pixels.shape[2] == 3
            assert pixels.shape[:2] == image_size(path, upright=True)
            assert exif_orientation(path) in range(1, 9)
        with right_or_refused():
            image_size(path)

    tried(run, changed(encoded(kind, **KINDS[kind])), 120, how_many)


def packed_zip(files):
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return made.getvalue()


def packed_tar(*members):
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return made.getvalue()


TENSORS = {"conv.weight": np.arange(6, dtype=np.float32).reshape(2, 3), "conv.bias": np.ones(2, np.float16)}
SAFETENSORS = save(TENSORS, {"ssd300_vgg16": json.dumps({"progress": {"step": 1}})})
PICKLE = saved(("w", tensor()), ("epoch", b"K\1"))


def zip_of(pickled):
    return packed_zip({"a/data.pkl": pickled, "a/data/0": np.arange(6, dtype="<f4").tobytes()})


@some.composite
def made_up_tar(draw):
    """With kinds, sizes and extended headers that tar's own tools never write, and whose checksums are right."""
    made = io.BytesIO()
    for _ in range(draw(some.integers(1, 4))):
        member = tarfile.TarInfo(draw(some.sampled_from(("w", "d/w", "../w", "/w", "x" * 300, ""))))
        member.type = draw(
            some.sampled_from([b"0", b"1", b"2", b"3", b"5", b"6", b"S", b"L", b"K", b"x", b"g", b"X", b"9"])
        )
        content = draw(some.binary(max_size=600))
        member.size = draw(some.sampled_from((len(content), 0, 1, 2**33, 8**11 - 1)))
        names = some.sampled_from(
            ("GNU.sparse.major", "GNU.sparse.minor", "GNU.sparse.map", "GNU.sparse.size", "size", "path")
        )
        values = some.sampled_from(("1", "0", "0,9", "-1", "99999999999", "a", "", "1,2,3"))
        member.pax_headers = draw(some.dictionaries(names, values, max_size=4))
        try:
            made.write(member.tobuf(tarfile.PAX_FORMAT))
        except ValueError:  # the library does not write it
            continue
        made.write(content + bytes(-len(content) % 512))
    made.write(bytes(draw(some.sampled_from((0, 512, 1024, 10240)))))
    return made.getvalue()


def golden(name):
    return (GOLDEN / "torch2.6" / name).read_bytes()


WEIGHTS = {
    "safetensors": lambda: changed(SAFETENSORS),
    "pickle": lambda: changed(PICKLE).map(zip_of),
    "pickle of a module": lambda: changed(
        zipfile.ZipFile(GOLDEN / "torch2.6/mixed_zip.pth").read("mixed_zip/data.pkl")
    ).map(zip_of),
    "stream": lambda: changed(golden("checkpoint_stream.pth")),
    "zip": lambda: changed(zip_of(PICKLE)),
    "zip of torch": lambda: changed(golden("plain_zip.pth")),
    "tar": lambda: changed(packed_tar(("a/w.safetensors", SAFETENSORS), ("b", b"text"))),
    "tar.gz": lambda: changed(packed_tar(("a/w.safetensors", SAFETENSORS))).map(partial(gzip.compress, mtime=0)),
    "gzip": lambda: changed(gzip.compress(packed_tar(("w", SAFETENSORS)), mtime=0)),
    "made up tar": made_up_tar,
}


@BOTH
@pytest.mark.parametrize("kind", WEIGHTS)
def test_weights(tmp_path, kind, how_many):
    path = tmp_path / "w"

    def run(data):
        path.write_bytes(data)
        with right_or_refused():
            contents = read_contents(path)
            assert all(type(array) is np.ndarray for array in contents.tensors.values())
            assert sum(array.nbytes for array in contents.tensors.values()) <= 20 * len(data)
        with right_or_refused():
            read_as_ssd(path)
        assert list(tmp_path.iterdir()) == [path]

    tried(run, WEIGHTS[kind](), 120, how_many)


CATEGORIES = (Category(1, 5, "cat"), Category(2, 7, "dog"))
DESCRIPTION = ModelDescription(3, 0.125, CATEGORIES, tile_side=640).as_json()


@BOTH
def test_descriptions(how_many):
    def run(value):
        try:
            description = ModelDescription.from_json(value)
        except (KeyError, TypeError, ValueError):  # which say what is wrong, to whoever knows the file
            return
        assert 2 <= description.num_classes <= 30_000 and 0 < description.width <= 8
        assert description.tile_side is None or description.tile_side > 0
        assert all(type(category.id) is int and len(category.name) <= 1000 for category in description.categories)

    tried(run, changed_values(DESCRIPTION), 300, how_many)


def run_files(folder):
    """The files of a run of two reports, by name, and what they hold."""
    figures = {"localization": 1.5, "classification": 2.5, "lr": 0.1, "images_per_second": 9.0, "data_wait": 0.1}
    picture = {"file": "a.jpg", "jpeg": "", "size": [64, 48], "marks": [["cat", 1.0, 2.0, 30.0, 20.0, None]]}
    about = {"name": "a.json", "images": 4, "objects": 9, "sha256": "0123456789"}
    options = parse(["--data-path", str(folder), "--preset", "narrow"]).as_json()
    options |= {"model": "ssd300_vgg16", "default_boxes": "coco", "num_classes": 3, "width": 0.125}
    return {
        "options.json": options | {"commands": [{"step": 0, "command": "train.sh"}], "val_images_folder": "."},
        "environment.json": {"data": {"train": about, "val": about}, "steps": 9, "device": "cpu", "cpu": "one"},
        "metrics.jsonl": [
            {"kind": "training", "step": 1, "seconds_left": 61, **figures},
            {"kind": "evaluation", "step": 1, "epoch": 1, "AP": 0.5, "AP50": 0.8},
        ],
        "coco_metrics.json": {
            "per_class": {"cat": {"AP": 0.5, "AP50": 0.8, "objects": 9}},
            "best_f1": {"f1": 0.5},
            "tiles": {"side": 9},
        },
        "run_page.json": {
            "samples": [picture],
            "validation": [picture],
            "detections": [{"step": 1, "epoch": 1, "images": [[["cat", 2.0, 3.0, 30.0, 20.0, 0.75]]]}],
            "classes": ["cat"],
            "state": "running",
        },
    }


def written(name, document):
    lines = document if name == "metrics.jsonl" and isinstance(document, list) else [document]
    return "".join(json.dumps(line) + "\n" for line in lines)


@BOTH
@pytest.mark.parametrize(
    "name", ["options.json", "environment.json", "metrics.jsonl", "coco_metrics.json", "run_page.json"]
)
def test_runs(tmp_path, capsys, monkeypatch, name, how_many):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "run"
    folder.mkdir()
    files = run_files(tmp_path)
    for other, document in files.items():
        (folder / other).write_text(written(other, document))
    assert report.main([str(folder)]) == 0
    parse(["--resume", str(folder)])

    def run(document):
        (folder / name).write_text(written(name, document))
        for arguments in ([str(folder)], [str(folder), str(folder)]):
            with right_or_refused():
                report.main(arguments)
        with right_or_refused():
            parse(["--resume", str(folder)])

    tried(run, changed_values(files[name]), 60, how_many)
