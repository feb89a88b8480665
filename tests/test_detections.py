"""What a detector takes, and what its results can be turned into."""

import dataclasses
import io
import json
import pickle
import sys
from importlib.machinery import ModuleSpec
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from PIL import Image
from small_data import CATEGORY_IDS, colours, untrained_run

from ssd300_vgg16 import Detector, UserError
from ssd300_vgg16.data.images import ImageError, read_image, rgb
from ssd300_vgg16.detections import Detections

HEIGHT, WIDTH = 60, 90
ENGINES = ("oneflow", "onnxruntime")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return untrained_run(tmp_path_factory.mktemp("detections") / "run", seed=1)


@pytest.fixture(scope="module", params=ENGINES)
def detector(run, request):
    return Detector.load(run, "cpu", engine=request.param)


@pytest.fixture(scope="module")
def onnx_detector(run):
    return Detector.load(run, "cpu", engine="onnxruntime")


def seen(names=("dog", "cat"), source=None):
    """Made-up detections of as many names, two at the most."""
    count = len(names)
    arrays = {
        "boxes": np.array([[1, 2, 31, 42.5], [10, 20, 15, 21]], np.float32)[:count],
        "scores": np.array([0.75, 0.25], np.float32)[:count],
        "labels": np.array([2, 1])[:count],
        "category_ids": np.array([18, 17])[:count],
    }
    return Detections(**arrays, names=list(names), source=source)


def assert_same(found, other):
    assert found.names == other.names
    for name in ("boxes", "scores", "labels", "category_ids"):
        np.testing.assert_array_equal(getattr(found, name), getattr(other, name))


def grey(image):
    return image[..., 1].copy()


def rgba(image):
    return np.dstack((image, image[..., 0]))


def palette(image):
    return Image.fromarray(image).quantize(16)


def unchanged(image):
    return image


def grey_rgb(image):
    return np.dstack([grey(image)] * 3)


# What is given, and the same pixels as an array [H, W, 3].
SAME = {
    "floats": (lambda image: image / 255, unchanged),
    "mirrored view": (lambda image: image[:, ::-1], lambda image: image[:, ::-1].copy()),
    "RGBA": (rgba, unchanged),
    "grey": (grey, grey_rgb),
    "grey with an axis": (lambda image: grey(image)[..., None], grey_rgb),
    "Pillow": (Image.fromarray, unchanged),
    "Pillow, RGBA": (lambda image: Image.fromarray(rgba(image)), unchanged),
    "Pillow, L": (lambda image: Image.fromarray(grey(image)), grey_rgb),
    "Pillow, P": (palette, lambda image: np.array(palette(image).convert("RGB"))),
    "Pillow, 1": (
        lambda image: Image.fromarray(grey(image) > 99),
        lambda image: np.uint8(255) * (grey_rgb(image) > 99),
    ),
    "Pillow, F": (lambda image: Image.fromarray(grey(image) / np.float32(255)), grey_rgb),
}


@pytest.mark.parametrize("kind", SAME)
def test_every_kind_of_image_becomes_its_pixels(kind):
    given, pixels = SAME[kind]
    taken = rgb(given(colours()))
    assert taken.dtype == np.uint8
    np.testing.assert_array_equal(taken, pixels(colours()))


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64])
def test_floats_are_rounded_to_the_nearest_pixel_value(kind):
    values = np.arange(256, dtype=np.uint8)[None]
    np.testing.assert_array_equal(rgb((values / 255).astype(kind))[..., 0], values)
    assert rgb(np.array([[0.6 / 255]], kind))[0, 0, 0] == 1


def test_an_array_is_not_copied_and_may_be_read_only(detector):
    image = colours()
    image.flags.writeable = False
    assert rgb(image) is image or rgb(image).base is image
    assert len(detector(image)) == len(detector(colours())) > 0


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["png", "webp", "tif"])
def test_a_pillow_image_is_turned_as_its_file_is(tmp_path, orientation, suffix):
    path = tmp_path / f"photo.{suffix}"
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(colours()).save(path, exif=exif, **({"lossless": True} if suffix == "webp" else {}))
    with Image.open(path) as image:
        np.testing.assert_array_equal(rgb(image), read_image(path, upright=True))


def test_damaged_exif_data_is_ignored(tmp_path):
    Image.fromarray(colours()).save(tmp_path / "photo.png", exif=b"Exif\0\0no header of it")
    with Image.open(tmp_path / "photo.png") as image:
        np.testing.assert_array_equal(rgb(image), colours())


REFUSED = {
    "shape (3, 60, 90), not [H, W, 3], [H, W, 4] or [H, W]: its channels come first": colours().transpose(2, 0, 1),
    "shape (60, 90, 2), not [H, W, 3], [H, W, 4] or [H, W]": colours()[..., :2],
    "shape (5,), not": np.zeros(5, np.uint8),
    "shape (0, 90, 3) has no pixels": colours()[:0],
    "shape (5, 0, 3) has no pixels": Image.new("RGB", (0, 5)),
    "floats from 0 to 255, where 0 to 1 is expected": np.array([[0.0, 255.0]]),
    "floats from -2 to 2, where": np.array([[-2.0, 2.0]]),
    "floats from nan to nan": np.full((4, 4), np.nan),
    "int64 values, where uint8 from 0 to 255 or floats from 0 to 1": colours().astype(np.int64),
    "uint16 values": colours().astype(np.uint16),
    "bool values": colours() > 5,
    "int32 values": Image.new("I", (4, 4)),
    "a path, a numpy array or a Pillow image is needed, not NoneType": None,
    "a path, a numpy array or a Pillow image is needed, not bytes": b"photo.jpg",
}


@pytest.mark.parametrize("complaint", REFUSED)
def test_what_is_no_image_is_refused_with_a_sentence(onnx_detector, complaint):
    with pytest.raises(UserError) as refusal:
        onnx_detector(REFUSED[complaint])
    assert str(refusal.value).startswith("the image: ") and complaint in str(refusal.value)
    with pytest.raises(UserError) as refusal:
        onnx_detector([colours(), REFUSED[complaint]])
    assert str(refusal.value).startswith("images[1]: "), "which of them it is"


def test_a_pillow_image_that_cannot_be_read_is_refused(onnx_detector):
    file = io.BytesIO()
    Image.fromarray(colours()).save(file, "png")
    closed = Image.fromarray(colours())
    closed.close()
    for image in (Image.open(io.BytesIO(file.getvalue()[:-200])), closed):
        with pytest.raises(UserError, match="the image: the Pillow image cannot be read: "):
            onnx_detector(image)


def several(folder):
    """Images of different sizes and kinds, and the same pixels as arrays."""
    arrays = [colours(), colours(80, 40, seed=4), colours(50, 50, seed=5), colours(HEIGHT, WIDTH, seed=6)]
    path = folder / "photo.png"
    Image.fromarray(arrays[1]).save(path)
    return [arrays[0], path, Image.fromarray(arrays[2]), str(path)], [*arrays[:3], arrays[1]]


@pytest.mark.parametrize("batch", [1, 3])
def test_several_images_give_a_list(detector, tmp_path, monkeypatch, batch):
    images, arrays = several(tmp_path)
    monkeypatch.setattr("ssd300_vgg16.detector.BATCH_ON_CPU", batch)
    expected = [detector(array) for array in arrays]
    for given in (images, tuple(images), iter(images)):
        results = detector(given)
        assert isinstance(results, list) and len(results) == 4
        for result, one in zip(results, expected, strict=True):
            assert result.names == one.names
            np.testing.assert_allclose(result.boxes, one.boxes, atol=1e-3)
    stacked = np.stack([arrays[0], colours(seed=6)])
    assert [len(result) for result in detector(stacked)] == [len(detector(image)) for image in stacked]
    assert detector([]) == detector(iter([])) == []


def test_a_result_is_read_by_attribute_by_name_and_one_by_one():
    found = seen()
    for name in ("boxes", "scores", "labels", "names"):
        assert found[name] is getattr(found, name) and name in found
    assert list(dict(found)) == ["boxes", "scores", "labels", "names"]
    assert "image" not in found
    with pytest.raises(KeyError, match="masks"):
        found["masks"]
    assert len(found) == 2
    first, second = found
    assert first.box.tolist() == [1, 2, 31, 42.5] and first[1:] == (0.75, 2, "dog")
    assert (second.score, second.label, second.name) == (0.25, 1, "cat")


def test_some_of_a_result_are_chosen_as_numpy_does():
    found = seen(source="photo.jpg")
    for chosen in (found[found.scores < 0.5], found[1:], found[-1], found[[1]], found[np.array([1])]):
        (cat,) = chosen
        assert cat.box.tolist() == [10, 20, 15, 21] and cat[1:] == (0.25, 1, "cat")
        assert chosen.category_ids.tolist() == [17] and chosen.source == "photo.jpg"
    assert len(found[found.scores > 1]) == 0
    with pytest.raises(IndexError):
        found[2]


def test_a_result_prints_as_a_short_table(onnx_detector):
    assert repr(seen(source="a/photo.jpg")) == (
        "2 detections on a/photo.jpg\n"
        "score  name      x1      y1      x2      y2\n"
        "0.750  dog      1.0     2.0    31.0    42.5\n"
        "0.250  cat     10.0    20.0    15.0    21.0"
    )
    assert repr(seen([])) == str(seen([])) == "0 detections"
    assert "0.750  a?[31m  " in repr(seen(["a\x1b[31m"]))
    found = onnx_detector(colours())
    lines = repr(found).splitlines()
    assert len(found) > 10 and lines[-1] == f"... and {len(found) - 10} more" and len(lines) == 13, "the best ten"


def as_array(png):
    return cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_COLOR)[..., ::-1]


def test_a_notebook_shows_the_image_with_its_boxes(tmp_path):
    image = np.full((60, 90, 3), 128, np.uint8)
    found = seen(source=image)
    picture = np.asarray(found.picture())
    assert picture.shape == image.shape
    assert (picture[30, 1] != 128).any(), "the left line of the dog's box"
    np.testing.assert_array_equal(as_array(found._repr_png_()), picture)
    np.testing.assert_array_equal(picture[46:], 128)
    # The cat, at 0.25, is not above what is shown.
    assert (np.asarray(found.picture(0.2)) != picture).any()
    np.testing.assert_array_equal(np.asarray(found.picture(0.9)), image)
    path = tmp_path / "photo.png"
    Image.fromarray(image).save(path)
    np.testing.assert_array_equal(as_array(seen(source=path)._repr_png_()), picture)
    assert as_array(seen([], source=colours(1000, 1600))._repr_png_()).shape == (500, 800, 3)


def test_without_an_image_the_table_is_shown(onnx_detector, tmp_path):
    found = onnx_detector(colours(), keep_image=False)
    assert found.source is None and found._repr_png_() is None
    with pytest.raises(UserError, match="keep_image"):
        found.picture()
    gone = seen(source=tmp_path / "gone.jpg")
    assert gone._repr_png_() is None
    with pytest.raises(ImageError, match=r"gone\.jpg: no such file"):
        gone.picture()
    assert [result.source for result in onnx_detector([colours()] * 2, keep_image=False)] == [None, None]


def test_what_a_result_keeps_of_its_image_is_pickled_too(onnx_detector, tmp_path):
    images, arrays = several(tmp_path)
    for found, image, array in zip(onnx_detector(images), images, arrays, strict=True):
        assert found.source is image, "neither pixels nor a copy"
        copy = pickle.loads(pickle.dumps(found))
        assert_same(copy, found)
        for one in (found, copy):
            np.testing.assert_array_equal(one.image, array)


def test_to_coco(onnx_detector):
    rows = seen().to_coco(7)
    assert json.loads(json.dumps(rows)) == [
        {"image_id": 7, "category_id": 18, "bbox": [1, 2, 30, 40.5], "score": 0.75},
        {"image_id": 7, "category_id": 17, "bbox": [10, 20, 5, 1], "score": 0.25},
    ]
    assert seen([]).to_coco(7) == []
    thirds = dataclasses.replace(seen(["dog"]), boxes=np.array([[0, 0, 1 / 3, 2 / 3]], np.float32))
    assert json.dumps(thirds.to_coco(7)[0]["bbox"]) == "[0.0, 0.0, 0.333, 0.667]"
    unknown = dataclasses.replace(seen(), category_ids=None)[1:]
    assert [row["category_id"] for row in unknown.to_coco(7)] == [1], "the label"
    found = onnx_detector(colours())
    assert found.category_ids.tolist() == [CATEGORY_IDS[name] for name in found.names], "those of the data set"


def test_to_numpy():
    rows = seen().to_numpy()
    assert rows.dtype == np.float32
    assert rows.tolist() == [[1, 2, 31, 42.5, 0.75, 2], [10, 20, 15, 21, 0.25, 1]]
    assert seen([]).to_numpy().shape == (0, 6)


@pytest.mark.parametrize("names", [["dog", "cat"], []])
def test_to_pandas_and_supervision(monkeypatch, names):
    """With modules that only keep what their class is called with: these need not be installed."""
    for name, made in (("pandas", "DataFrame"), ("supervision", "Detections")):
        module = SimpleNamespace(**{made: lambda *args, **kwargs: args or kwargs}, __spec__=ModuleSpec(name, None))
        monkeypatch.setitem(sys.modules, name, module)
    found = seen(names)
    (columns,) = found.to_pandas()
    assert list(columns) == ["x1", "y1", "x2", "y2", "score", "label", "name"]
    assert columns["x2"].tolist() == found.boxes[:, 2].tolist() and columns["name"].tolist() == names
    fields = found.to_supervision()
    assert fields.pop("data")["class_name"].tolist() == names
    assert fields == {"xyxy": found.boxes, "confidence": found.scores, "class_id": found.labels}


@pytest.mark.parametrize("package", ["pandas", "supervision"])
def test_what_is_not_installed_is_named(monkeypatch, package):
    monkeypatch.setattr("ssd300_vgg16.detections.find_spec", lambda name: None)
    with pytest.raises(UserError, match=f"{package} is not installed: .venv/bin/python -m pip install {package}"):
        getattr(seen(), f"to_{package}")()
