"""python -m ssd300_vgg16.export: what it writes, that it runs elsewhere, and what it refuses."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import onnx
import onnxruntime
import pytest
from foreign_weights import published_trunk, random_detector, write_pth
from PIL import Image
from places import REPOSITORY
from small_data import FITTED_SHAPES, colours, run, untrained_run

import ssd300_vgg16
from ssd300_vgg16.boxes import cxcywh_to_xyxy
from ssd300_vgg16.data.categories import Category
from ssd300_vgg16.data.images import network_input, read_image
from ssd300_vgg16.deploy.model import _Images, _metadata
from ssd300_vgg16.deploy.session import description_of
from ssd300_vgg16.detector import Detector
from ssd300_vgg16.errors import UserError
from ssd300_vgg16.export import _spread, main
from ssd300_vgg16.network.postprocess import postprocess
from ssd300_vgg16.network.variants import VARIANTS, default_boxes, fitted_variant
from ssd300_vgg16.runtime import flow
from ssd300_vgg16.weights.safetensors_file import ModelDescription, save_weights


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A run's folder with small weights for the shapes."""
    return untrained_run(tmp_path_factory.mktemp("export") / "run")


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """A folder of blocks of colour: three pictures, and a photograph that lies on its side."""
    folder = tmp_path_factory.mktemp("photographs")
    for number in range(3):
        cv2.imwrite(str(folder / f"{number}.png"), colours(180, 260 + number, number))
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(folder / "0.png").save(folder / "lying.jpg", exif=exif)
    return folder


def exported(weights, path, *options):
    assert main([str(weights), "--to", str(path), *map(str, options)]) == 0
    return path


def refusal(*arguments):
    with pytest.raises(UserError) as caught:
        main([str(argument) for argument in arguments])
    return str(caught.value)


def session_of(path):
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


def assert_same_detections(rows, detector, path):
    """rows: name, score and box of each detection."""
    found = detector(path)
    assert 5 < len(rows) < 200, "too few to compare, or all there is room for"
    assert [row[0] for row in rows] == found["names"]
    np.testing.assert_allclose([row[1] for row in rows], found["scores"], atol=2e-4)
    np.testing.assert_allclose([row[2:] for row in rows], found["boxes"], atol=0.05)


def scripts_of_the_docs():
    """The one that detects, and the one that decodes raw outputs."""
    return re.findall(r"```python\n(.*?)```", (REPOSITORY / "docs" / "onnx.md").read_text(), re.DOTALL)


def test_the_script_of_the_docs_detects_without_this_package(weights, photographs, tmp_path):
    script, _ = scripts_of_the_docs()
    assert "ssd300_vgg16" not in script and len(script.splitlines()) <= 30
    (tmp_path / "detect.py").write_text(script)
    path = photographs / "lying.jpg"
    threshold = float(Detector.load(weights, "cpu")(path)["scores"][29:31].mean())
    exported(weights, tmp_path / "model.onnx", "--score-threshold", threshold)
    elsewhere = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, "-I", "detect.py", "model.onnx", path]
    done = subprocess.run(command, cwd=tmp_path, env=elsewhere, capture_output=True, text=True, timeout=60, check=True)
    rows = [(name, *map(float, numbers)) for name, *numbers in (row.split("\t") for row in done.stdout.splitlines())]
    assert_same_detections(rows, Detector.load(weights, "cpu", threshold, engine="oneflow"), path)


def test_raw_outputs_of_a_foreign_file(tmp_path, capsys):
    """A .pth with amdegroot's names, of a width that its shapes tell."""
    source = write_pth(tmp_path / "theirs.pth", random_detector("amdegroot"))
    path = exported(source, tmp_path / "raw.onnx", "--outputs", "raw")
    printed = capsys.readouterr().out
    assert "class names taken to be VOC's" in printed, "what was assumed is said"
    assert "takes images [batch, 3, 300, 300], uint8 RGB" in printed
    assert "gives offsets [batch, 8732, 4], logits [batch, 8732, 21]" in printed
    images = np.random.default_rng(0).integers(0, 256, (1, 3, 300, 300), dtype=np.uint8)
    found = session_of(path).run(["offsets", "logits"], {"images": images})
    with flow.no_grad():
        expected = Detector.load(source, "cpu", engine="oneflow").model(flow.from_numpy(images))
    for ours, reference in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, reference.numpy(), rtol=1e-4, atol=1e-6)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["raw.onnx", "theirs.pth"]


@pytest.fixture(scope="module")
def wider(tmp_path_factory):
    """As `weights`, with some channels in each layer: 8 bits of one channel alone do not last to the end."""
    return untrained_run(tmp_path_factory.mktemp("wider") / "run", width=1 / 8)


@pytest.mark.parametrize(
    "variant", (*VARIANTS.values(), fitted_variant("ssd300_vgg16", FITTED_SHAPES)), ids=lambda variant: variant.name
)
def test_the_docs_make_the_default_boxes_from_metadata(variant):
    _, script = scripts_of_the_docs()
    names = {}
    exec(script, names)
    description = ModelDescription(2, 0.02, (Category(1, 1, "ring"),), variant)
    about = _metadata(description, 0.5)
    made = names["default_boxes"](about) * variant.layout.image_size
    np.testing.assert_allclose(cxcywh_to_xyxy(made), default_boxes(variant.layout), atol=1e-3)
    assert description_of(Path("model.onnx"), about) == description


def test_opencv_runs_the_raw_model_and_the_docs_decode_it(wider, photographs, tmp_path):
    _, script = scripts_of_the_docs()
    names = {}
    exec(script, names)
    path = exported(wider, tmp_path / "raw.onnx", "--outputs", "raw", "--batch", 1)
    session = session_of(path)
    assert session.get_inputs()[0].shape == [1, 3, 300, 300]
    image = cv2.imread(str(photographs / "0.png"))[..., ::-1]
    images = network_input(np.ascontiguousarray(image), 300)[None]
    offsets, logits = session.run(["offsets", "logits"], {"images": images})
    net = cv2.dnn.readNetFromONNX(str(path))
    net.setInput(images.astype(np.float32))
    for ours, theirs in zip((offsets, logits), net.forward(["offsets", "logits"]), strict=True):
        np.testing.assert_allclose(theirs, ours, rtol=1e-3, atol=1e-4)
    boxes, scores = names["decode"](offsets[0], logits[0], session.get_modelmeta().custom_metadata_map)
    [expected] = postprocess(offsets, logits, [image.shape[:2]])
    height, width = image.shape[:2]
    scaled = boxes * [width, height, width, height]
    for box, score, label in list(zip(expected["boxes"], expected["scores"], expected["labels"], strict=True))[:20]:
        near = np.abs(scaled - box).max(axis=1) < 0.01
        assert np.isclose(scores[near, label], score, atol=1e-5).any()


@pytest.fixture(scope="module")
def in_8_bits(wider, photographs, tmp_path_factory):
    path = tmp_path_factory.mktemp("int8") / "model.onnx"
    return exported(wider, path, "--int8", "--calibrate", photographs, "--outputs", "raw")


def test_all_convolutions_are_in_8_bits_and_nothing_between_them_is_not(in_8_bits):
    model = onnx.load(in_8_bits)
    onnx.checker.check_model(model, full_check=True)
    made_by = {output: node for node in model.graph.node for output in node.output}
    weights_of = {node.name: made_by.get(node.input[1]) for node in model.graph.node if node.op_type == "Conv"}
    assert len(weights_of) == 35 and None not in weights_of.values()
    assert "Relu" not in {node.op_type for node in model.graph.node}, "a ReLU of its own would be computed in float"
    constants = {constant.name: constant for constant in model.graph.initializer}
    for maker in weights_of.values():
        quantised, scales, _ = (constants[each] for each in maker.input)
        assert quantised.data_type == onnx.TensorProto.INT8
        assert list(scales.dims) == list(quantised.dims[:1]), "a scale for each channel"
    assert {entry.key for entry in model.metadata_props} >= {"categories", "image_size", "score_threshold"}
    assert "onnx.infer" not in {entry.key for entry in model.metadata_props}


def test_in_8_bits_the_answers_are_nearly_those_of_float(in_8_bits, wider, photographs):
    image = cv2.imread(str(photographs / "1.png"))[..., ::-1]
    images = network_input(np.ascontiguousarray(image), 300)[None]
    with flow.no_grad():
        expected = Detector.load(wider, "cpu").model(flow.from_numpy(images))
    for found, tensor in zip(session_of(in_8_bits).run(None, {"images": images}), expected, strict=True):
        reference = tensor.numpy()
        error = np.sqrt(np.mean((found - reference) ** 2) / np.var(reference))
        assert 1e-5 < error < 0.1


def test_calibration_images_are_prepared_as_the_detectors(photographs):
    given = _Images([photographs / "lying.jpg"], 300)
    expected = network_input(read_image(photographs / "lying.jpg", upright=True), 300)
    np.testing.assert_array_equal(given.get_next()["images"], expected[None])
    assert given.get_next() is None


def test_calibration_images_are_spread_over_the_folder():
    assert _spread(list("abc")) == list("abc")
    chosen = _spread(list(range(1000)))
    assert len(set(chosen)) == 200 and chosen[:2] == [0, 5] and chosen[-1] == 995


def test_refusals_come_before_weights_are_read(tmp_path, photographs):
    new, empty = tmp_path / "new.onnx", tmp_path / "empty"
    empty.mkdir()
    for problem, *options in (
        ("--int8 needs --calibrate FOLDER", "--int8"),
        ("--calibrate is for --int8", "--calibrate", photographs),
        ("--int8 needs .*; --score-threshold is for detect", "--outputs", "raw", "--score-threshold", 0.5, "--int8"),
        ("an ONNX file, and its name has to end so: .onnx", "--to", tmp_path / "new.pb"),
        ("there is no such folder", "--to", tmp_path / "none" / "new.onnx"),
        (f"{empty}: no image in this folder", "--int8", "--calibrate", empty),
        ("no such file", "--int8", "--calibrate", tmp_path / "missing"),
        ("no such file of weights",),
    ):
        assert re.search(problem, refusal(tmp_path / "no-weights", "--to", new, *options))
    new.write_text("mine")
    assert "there is such a file already" in refusal(tmp_path / "no-weights", "--to", new)
    assert new.read_text() == "mine"


def test_a_trunk_without_heads_is_refused(tmp_path):
    save_weights(tmp_path / "trunk.safetensors", published_trunk(), None)
    assert "detects nothing" in refusal(tmp_path / "trunk.safetensors", "--to", tmp_path / "new.onnx")
    assert not (tmp_path / "new.onnx").exists()


def test_a_broken_calibration_image_is_named_and_left_out(weights, photographs, tmp_path, capsys):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "broken.jpg").write_bytes(b"\xff\xd8\xff")
    new, options = tmp_path / "new.onnx", ("--int8", "--calibrate", tmp_path / "photos")
    assert "none of the images could be read" in refusal(weights, "--to", new, *options)
    assert not new.exists()
    shutil.copy(photographs / "0.png", tmp_path / "photos")
    exported(weights, new, *options)
    assert re.search(r"left out of the calibration: .*broken\.jpg: ", capsys.readouterr().err)


def test_as_a_program(weights, photographs, tmp_path):
    """Without the quantiser's advice to those who call it; and an error without a traceback."""
    done = run("export", weights, "--to", "a.onnx", "--int8", "--calibrate", photographs, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "pre-processing" not in done.stderr
    assert done.stdout.startswith("written: a.onnx, ")
    assert [file.name for file in tmp_path.iterdir()] == ["a.onnx"]
    again = run("export", weights, "--to", "a.onnx", folder=tmp_path)
    assert (again.returncode, again.stdout) == (2, "")
    assert again.stderr == (
        "python -I -m ssd300_vgg16.export: a.onnx: there is such a file already; remove it, or name another\n"
    )


def test_the_version_is_the_projects():
    stated = re.search(r'^version = "(.*)"', (REPOSITORY / "pyproject.toml").read_text(), re.MULTILINE)
    assert ssd300_vgg16.__version__ == stated[1]
