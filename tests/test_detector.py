"""Detection from Python: loading, and what a call answers."""

import numpy as np
import pytest
from PIL import Image
from small_data import WIDTH, colours, untrained_run

from ssd300_vgg16 import Detector
from ssd300_vgg16.data.dataset import Category
from ssd300_vgg16.data.images import ImageError, read_image
from ssd300_vgg16.errors import UserError
from ssd300_vgg16.runtime import flow
from ssd300_vgg16.weights.locate import BEST, LAST
from ssd300_vgg16.weights.model import build_model
from ssd300_vgg16.weights.safetensors_file import ModelDescription

HEIGHT, WIDTH_PIXELS = 180, 260


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run whose best and last weights differ."""
    folder = tmp_path_factory.mktemp("detector")
    untrained_run(folder / "last", seed=2)
    run = untrained_run(folder / "run", seed=1)
    (folder / "last" / BEST).rename(run / LAST)
    return run


@pytest.fixture(scope="module")
def detector(run):
    return Detector.load(run)


@pytest.fixture(scope="module")
def image():
    return colours(HEIGHT, WIDTH_PIXELS)


def assert_same(found, other):
    assert found["names"] == other["names"]
    for name in ("boxes", "scores", "labels"):
        np.testing.assert_array_equal(found[name], other[name])


def test_an_answer_is_boxes_scores_labels_and_names(detector, image):
    found = detector(image)
    boxes, scores, labels = found["boxes"], found["scores"], found["labels"]
    assert 0 < len(boxes) <= 200
    assert boxes.shape == (len(scores), 4) and len(labels) == len(found["names"]) == len(scores)
    assert (boxes.dtype, scores.dtype, labels.dtype) == (np.float32, np.float32, np.int64)
    assert (boxes >= 0).all() and (boxes <= [WIDTH_PIXELS, HEIGHT, WIDTH_PIXELS, HEIGHT]).all()
    assert boxes[:, 2].max() > HEIGHT, "boxes are in pixels of the image, not of the network's input"
    assert (np.diff(scores) <= 0).all() and scores[-1] > 0.01
    names = {1: "circle", 2: "square", 3: "triangle", 4: "star", 5: "ring"}
    assert found["names"] == [names[label] for label in labels.tolist()]


def test_weights_load_from_a_file_and_from_a_run(run, detector, image):
    expected = detector(image)
    assert_same(Detector.load(run / BEST)(image), expected)
    assert_same(Detector.load(str(run), device="cpu")(image), expected)
    last = Detector.load(run / LAST)(image)
    assert (last["scores"][:5] != expected["scores"][:5]).any(), "a run's best weights go before its last"


def test_a_photograph_is_taken_upright(detector, image, tmp_path):
    path = tmp_path / "photo.png"
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn to the right
    Image.fromarray(image).save(path, exif=exif)
    upright = np.ascontiguousarray(np.rot90(image, 3))
    np.testing.assert_array_equal(read_image(path, upright=True), upright)
    found = detector(path)
    assert_same(found, detector(upright))
    assert_same(found, detector(str(path)))
    assert found["boxes"][:, 3].max() > HEIGHT


def test_scores_are_above_the_threshold(run, detector, image):
    scores = detector(image)["scores"]
    threshold = float(scores[len(scores) // 2])
    found = Detector.load(run, score_threshold=threshold)(image)
    assert 0 < len(found["scores"]) < len(scores)
    assert (found["scores"] > threshold).all()
    nothing = Detector.load(run, score_threshold=0.99)(image)
    assert nothing["boxes"].shape == (0, 4) and nothing["names"] == []


def test_labels_without_a_category_are_named_by_their_number():
    """As in COCO, where not every output has a meaning."""
    flow.manual_seed(0)
    description = ModelDescription(4, WIDTH, (Category(2, 17, "Kätzchen"),))
    detector = Detector(build_model(description), description)
    assert detector.names(np.array([3, 2, 1, 2])) == ["class 3", "Kätzchen", "class 1", "Kätzchen"]


def test_what_cannot_be_read_is_named(detector, run, tmp_path):
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff")
    with pytest.raises(ImageError, match=r"broken\.jpg"):
        detector(tmp_path / "broken.jpg")
    with pytest.raises(UserError, match="nothing: no such file of weights"):
        Detector.load(tmp_path / "nothing")
    with pytest.raises(UserError, match=r"neither best\.safetensors nor last\.safetensors"):
        Detector.load(tmp_path)
    with pytest.raises(UserError, match="--device tpu"):
        Detector.load(run, device="tpu")


@pytest.mark.parametrize("place", [0, 1])
def test_answers_that_are_not_finite_are_no_detections(run, detector, image, place):
    """As an exported model may give them, whose weights nobody has looked at: nothing would be found, silently."""

    def network(images):
        answers = [np.zeros((len(images), 8732, size), np.float32) for size in (4, 6)]
        answers[place][0, 7, 0] = np.nan
        return answers

    with pytest.raises(UserError, match=r"the network.s answers are not finite: .* look at the weights"):
        Detector(run, detector.description, network=network)(image)
