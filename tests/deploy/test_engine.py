"""The same detector on OneFlow and on ONNX Runtime."""

import json

import cv2
import numpy as np
import pytest
from small_data import colours, shapes_folder, untrained_run

from ssd300_vgg16 import evaluate, infer
from ssd300_vgg16.deploy import session
from ssd300_vgg16.deploy.session import OnnxRuntimeNetwork, resolve_engine
from ssd300_vgg16.detector import Detector
from ssd300_vgg16.errors import UserError
from ssd300_vgg16.runtime import flow

ENGINES = ("oneflow", "onnxruntime")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return untrained_run(tmp_path_factory.mktemp("engines") / "run", seed=1)


@pytest.fixture(scope="module")
def image():
    return colours(180, 260)


@pytest.fixture
def sessions(monkeypatch):
    """How many images each call has given to ONNX Runtime."""
    counts, call = [], OnnxRuntimeNetwork.__call__

    def counted(self, images):
        counts.append(len(images))
        return call(self, images)

    monkeypatch.setattr(OnnxRuntimeNetwork, "__call__", counted)
    return counts


def assert_nearly_same(found, expected):
    assert found["names"] == expected["names"]
    np.testing.assert_array_equal(found["labels"], expected["labels"])
    np.testing.assert_allclose(found["scores"], expected["scores"], rtol=1e-4)
    np.testing.assert_allclose(found["boxes"], expected["boxes"], atol=0.01)


def test_both_find_the_same(run, image, sessions):
    threshold = float(Detector.load(run, "cpu")(image)["scores"][29:31].mean())
    sessions.clear()
    oneflow, onnx = (Detector.load(run, "cpu", threshold, name)(image) for name in ENGINES)
    assert sessions == [1], "ONNX Runtime where it was asked for, and not else"
    assert len(oneflow["scores"]) == 30
    assert_nearly_same(onnx, oneflow)
    Detector.load(run, "cpu")(image)
    assert sessions == [1, 1], "on the CPU it is the default"


def test_a_detector_of_a_network_in_training_goes_with_its_weights(run, image, sessions):
    """As in train.sh, where weights change from one evaluation to the next."""
    loaded = Detector.load(run, "cpu")
    detector = Detector(loaded.model, loaded.description)
    before = detector(image)["scores"]
    flow.nn.init.zeros_(loaded.model.head.classification_head.module_list[0].weight)
    assert not np.array_equal(detector(image)["scores"], before)
    assert sessions == []


def test_which_engine(monkeypatch):
    monkeypatch.setattr(session, "resolve_device", lambda name, local_rank: name or "cuda")
    assert resolve_engine("auto", "cpu") == ("onnxruntime", "cpu")
    assert resolve_engine("auto", "cuda:1") == ("oneflow", "cuda:1")
    assert [resolve_engine(name, "cpu")[0] for name in ENGINES] == list(ENGINES)
    without = "ONNX Runtime .* without its part for NVIDIA's GPUs: .*onnxruntime-gpu.*, or add --device cpu"
    for device in ("cuda", "cuda:1", None):
        with pytest.raises(UserError, match=without):
            resolve_engine("onnxruntime", device)
    assert resolve_engine("auto", "cuda", amp=True) == ("oneflow", "cuda")
    for engine, exported in (("auto", False), ("oneflow", False), ("auto", True)):
        with pytest.raises(UserError, match="--amp: there is no half precision on the CPU, only in OneFlow on a GPU"):
            resolve_engine(engine, "cpu", exported=exported, amp=True)
    with pytest.raises(UserError, match="--engine oneflow: an ONNX model is computed by ONNX Runtime"):
        resolve_engine("oneflow", "cpu", exported=True)
    with pytest.raises(UserError, match="--engine caffe: write one of auto, oneflow, onnxruntime"):
        Detector.load("no weights, which are not looked for", engine="caffe")


def test_infer_and_eval_take_it(run, image, tmp_path, sessions):
    data = shapes_folder(tmp_path, 1, 1)
    cv2.imwrite(str(tmp_path / "photo.png"), image)
    scores = {}
    for name in ENGINES:
        sessions.clear()
        common = ["--weights", str(run), "--device", "cpu", "--engine", name, "--output-dir"]
        assert infer.main([str(tmp_path / "photo.png"), *common, str(tmp_path / f"{name}-photos")]) == 0
        assert evaluate.main(["--data-path", str(data), "-j", "0", *common, str(tmp_path / name)]) == 0
        assert len(sessions) == (2 if name == "onnxruntime" else 0)
        results = json.loads((tmp_path / name / "detections.json").read_text())
        scores[name] = [row["score"] for row in results]
    assert len(scores["oneflow"]) == 200
    np.testing.assert_allclose(scores["onnxruntime"], scores["oneflow"], rtol=1e-3)
