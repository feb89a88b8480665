"""Exported ONNX models as weights of infer.sh, eval.sh and Detector."""

import json

import numpy as np
import onnx
import onnxruntime
import pytest
from foreign_weights import less_memory_than
from small_data import shapes_folder, untrained_run

from ssd300_vgg16 import Detector, evaluate, export, infer
from ssd300_vgg16.deploy.foreign_model import OPERATORS
from ssd300_vgg16.deploy.session import exported_network
from ssd300_vgg16.errors import UserError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported")
    shapes_folder(folder, 1, 3)
    run = untrained_run(folder / "run", seed=1)
    images = str(folder / "shapes" / "val")
    for name, options in {"whole": [], "raw": ["--outputs", "raw"], "high": ["--score-threshold", "0.3"]}.items():
        assert export.main([str(run), "--to", str(folder / f"{name}.onnx"), *options]) == 0
    small = ["--outputs", "raw", "--int8", "--calibrate", images]
    assert export.main([str(run), "--to", str(folder / "small.onnx"), *small]) == 0
    return folder


def measured(folder, weights, output, *options):
    common = ["--data-path", str(folder / "shapes"), "--device", "cpu", "-j", "0", "-b", "2"]
    assert evaluate.main(["--weights", str(weights), "--output-dir", str(output), *common, *options]) == 0
    return json.loads((output / "detections.json").read_text())


def test_they_are_measured_as_their_weights_are(folder, tmp_path):
    expected = measured(folder, folder / "run", tmp_path / "run")
    for name in ("whole", "raw"):
        rows = measured(folder, folder / f"{name}.onnx", tmp_path / name)
        assert [row["image_id"] for row in rows] == [row["image_id"] for row in expected]
        np.testing.assert_allclose([row["score"] for row in rows], [row["score"] for row in expected], rtol=1e-4)
    assert len(measured(folder, folder / "small.onnx", tmp_path / "small")) > 0


def test_detections_of_images_of_several_sizes(folder):
    image = np.random.default_rng(2).integers(0, 256, (40, 90, 3), dtype=np.uint8)
    expected, found = (
        Detector.load(folder / name, "cpu", 0.05)(image) for name in ("run/best.safetensors", "whole.onnx")
    )
    assert len(expected["scores"]) > 10 and expected["boxes"][:, 2].max() > 50
    assert found["names"] == expected["names"]
    np.testing.assert_allclose(found["scores"], expected["scores"], rtol=1e-4)
    np.testing.assert_allclose(found["boxes"], expected["boxes"], atol=0.01)


def test_infer_detects_with_them_as_with_their_weights(folder, tmp_path):
    scores = []
    for number, name in enumerate(("run", "whole.onnx", "raw.onnx")):
        output = tmp_path / str(number)
        options = ["--weights", str(folder / name), "--output-dir", str(output), "--score-threshold", "0.05"]
        assert infer.main([str(folder / "shapes" / "val"), *options, "--device", "cpu"]) == 0
        scores.append([row["score"] for row in json.loads((output / "detections.json").read_text())])
    assert len(scores[0]) > 10
    np.testing.assert_allclose(scores[1:], [scores[0]] * 2, rtol=1e-3)


def test_a_threshold_in_the_file_is_told(folder):
    assert Detector.load(folder / "whole.onnx", "cpu").description.notes == ()
    (note,) = Detector.load(folder / "high.onnx", "cpu").description.notes
    assert note.endswith("high.onnx holds detections scored above 0.3: those below are not measured")


def test_the_operators_that_are_known_are_those_of_exports(folder):
    graphs = [onnx.load(path).graph for path in folder.glob("*.onnx")]
    assert {node.op_type for graph in graphs for node in graph.node} == OPERATORS


def with_data_elsewhere(model):
    constant = next(tensor for tensor in model.graph.initializer if tensor.name == "pixel_mean")
    constant.ClearField("raw_data")
    constant.data_location = onnx.TensorProto.EXTERNAL
    constant.external_data.add(key="location", value="secret")


def with_a_loop(model):
    loop = model.graph.node.add(op_type="Loop", input=["", "yes", "before"], output=list(model.graph.node[-1].output))
    loop.attribute.add(name="body", type=onnx.AttributeProto.GRAPH).g.name = "for ever"


def with_a_graph_inside(model):
    model.graph.node[0].attribute.add(name="body", type=onnx.AttributeProto.GRAPH).g.name = "inside"


def with_operators_of_its_own(model):
    model.functions.add(name="Relu", domain="")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (with_data_elsewhere, "it has data in another file, which"),
        (with_a_loop, "no export of this package has operators like Loop; export its weights"),
        (lambda model: setattr(model.graph.node[3], "domain", "com.other"), ".* like [A-Za-z]+ of com.other;"),
        (with_a_graph_inside, "it has graphs or tensors in operators, which"),
        (with_operators_of_its_own, "it has graphs or tensors in operators, which"),
    ],
)
def test_what_no_export_here_makes_is_refused_before_it_is_computed(folder, tmp_path, monkeypatch, change, reason):
    model = onnx.load(folder / "raw.onnx")
    change(model)
    (tmp_path / "theirs.onnx").write_bytes(model.SerializeToString())
    monkeypatch.setattr(onnxruntime, "InferenceSession", lambda *_, **__: pytest.fail("it was computed"))
    with pytest.raises(UserError, match=rf"theirs\.onnx: {reason}"):
        Detector.load(tmp_path / "theirs.onnx", "cpu")


def test_a_model_of_a_million_empty_parts_takes_no_memory(tmp_path):
    (tmp_path / "nodes.onnx").write_bytes(b"\x3a\x80\x89\x7a" + b"\x0a\0" * 1_000_000)
    (tmp_path / "number.onnx").write_bytes(b"\x3a\x08\x0a\x06\x20" + b"\xff" * 4 + b"\x0f")  # for an operator's name
    for name in ("nodes", "number"):
        with less_memory_than(10 << 20), pytest.raises(UserError, match=rf"{name}\.onnx: not a whole ONNX model"):
            exported_network(tmp_path / f"{name}.onnx", "cpu")


def test_what_is_refused(folder, tmp_path):
    with pytest.raises(UserError, match=r"nothing.onnx: No such file or directory"):
        Detector.load(tmp_path / "nothing.onnx", "cpu")
    (tmp_path / "text.onnx").write_text("text")
    with pytest.raises(UserError, match=r"text.onnx: not a whole ONNX model"):
        Detector.load(tmp_path / "text.onnx", "cpu")
    model = onnx.load(folder / "raw.onnx")
    about = {entry.key: entry.value for entry in model.metadata_props}
    for foreign in ({}, about | {"package": "other"}, about | {"categories": "[1]"}, about | {"variant": "ssd7"}):
        onnx.helper.set_model_props(model, foreign)
        onnx.save(model, tmp_path / "foreign.onnx")
        with pytest.raises(UserError, match=r"foreign.onnx: not a model that this package has exported"):
            Detector.load(tmp_path / "foreign.onnx", "cpu")


def test_of_no_images_there_are_no_detections(folder):
    nothing = np.zeros((0, 3, 300, 300), dtype=np.uint8)
    for name, engine in (("run", "oneflow"), ("run", "onnxruntime"), ("whole.onnx", "auto"), ("raw.onnx", "auto")):
        detector = Detector.load(folder / name, "cpu", engine=engine)
        assert detector([]) == detector.detect(nothing, np.zeros((0, 2))) == []
    shapes = {name: [(0, 8732, 4), (0, 8732, 6)] for name in ("raw", "small")} | {"whole": [(0, 4), (0,), (0,), (0,)]}
    for name, expected in shapes.items():
        session = onnxruntime.InferenceSession(folder / f"{name}.onnx", providers=["CPUExecutionProvider"])
        assert [output.shape for output in session.run(None, {"images": nothing})] == expected, name


@pytest.mark.parametrize("name", ["whole", "raw"])
def test_openvino_runs_them(folder, name):
    openvino = pytest.importorskip("openvino")
    images = np.random.default_rng(3).integers(0, 256, (2, 3, 300, 300), dtype=np.uint8)
    path = str(folder / f"{name}.onnx")
    model = openvino.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    found = model(images)
    for output, expected in zip(names, session.run(names, {"images": images}), strict=True):
        assert len(expected) > 1
        np.testing.assert_allclose(found[output], expected, rtol=1e-3, atol=1e-3, err_msg=output)
