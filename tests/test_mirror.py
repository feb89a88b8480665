"""Detection on the mirror image too."""

import json
from pathlib import Path

import numpy as np
import pytest
from small_data import colours, shapes_folder, untrained_run

from ssd300_vgg16 import Detector, evaluate, infer
from ssd300_vgg16.mirror import join


def detected(*rows):
    boxes, scores, labels = zip(*rows, strict=True) if rows else ((), (), ())
    boxes = np.array(boxes, dtype=np.float32).reshape(-1, 4)
    return {"boxes": boxes, "scores": np.array(scores, np.float32), "labels": np.array(labels, dtype=np.int64)}


def test_what_both_views_see_is_their_mean_and_the_rest_is_halved():
    plain = detected(((10, 10, 50, 50), 0.9, 1), ((60, 60, 90, 90), 0.6, 2))
    mirrored = detected(((49, 10, 89, 50), 0.3, 1), ((10, 60, 40, 90), 0.5, 1))  # of an image 100 pixels wide
    joined = join(plain, mirrored, 100)
    assert joined["labels"].tolist() == [1, 2, 1]
    np.testing.assert_allclose(joined["scores"], [0.6, 0.3, 0.25])
    np.testing.assert_allclose(joined["boxes"], [[10.25, 10, 50.25, 50], [60, 60, 90, 90], [60, 60, 90, 90]], rtol=1e-6)
    assert join(detected(), mirrored, 100)["scores"].tolist() == [0.25, pytest.approx(0.15)]
    assert not len(join(detected(), detected(), 100)["scores"])


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return untrained_run(tmp_path_factory.mktemp("mirror") / "run")


def test_a_mirrored_image_has_mirrored_detections(run):
    image, threshold = colours(180, 260), 0.3
    detector = Detector.load(run, "cpu", threshold, mirror=True)
    found, other = detector(image), detector(image[:, ::-1])
    assert len(found.boxes) > 0 and found.scores.min() > threshold
    np.testing.assert_allclose(other.scores, found.scores, atol=1e-5)
    np.testing.assert_allclose(260 - other.boxes[:, [2, 0]], found.boxes[:, [0, 2]], atol=1e-2)


def test_a_threshold_leaves_out_and_changes_nothing_else(run):
    image = colours(180, 260)
    few, many = (Detector.load(run, "cpu", threshold, mirror=True)(image) for threshold in (0.3, 0.05))
    assert 0 < len(few.scores) < len(many.scores)
    np.testing.assert_array_equal(few.boxes, many.boxes[: len(few.boxes)])


def test_infer_and_eval_take_mirror_images(run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    data = shapes_folder(tmp_path / "data", 1, 2)
    images = sorted((data / "val").glob("*.jpg"))
    options = ("--weights", str(run), "--device", "cpu", "--mirror")
    assert infer.main([*map(str, images), *options, "--score-threshold", "0.1"]) == 0
    rows = json.loads(Path("detections/detections.json").read_text())
    detector = Detector.load(run, "cpu", 0.1, mirror=True)
    expected = [score for image in images for score in detector(image).scores[:100].tolist()]
    assert [row["score"] for row in rows] == pytest.approx(expected, abs=1e-5)
    assert evaluate.main(["--data-path", str(data), *options, "--output-dir", "evaluated"]) == 0
    assert "mirrored too" in capsys.readouterr().out
