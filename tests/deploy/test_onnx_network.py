"""The exported network and its post-processing, in ONNX Runtime, against OneFlow's."""

import json

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper
from small_data import FITTED_SHAPES

from ssd300_vgg16.data.categories import COCO_CATEGORIES
from ssd300_vgg16.data.dataset import Category
from ssd300_vgg16.deploy.graph import Graph, add_network, add_postprocess
from ssd300_vgg16.deploy.model import detection_outputs, onnx_model, save
from ssd300_vgg16.errors import UserError
from ssd300_vgg16.network.postprocess import postprocess
from ssd300_vgg16.network.ssd import SSD
from ssd300_vgg16.network.variants import SSD300_VGG16, VARIANTS, DefaultBoxLayout, default_boxes, fitted_variant
from ssd300_vgg16.network.vgg import Conv2d
from ssd300_vgg16.runtime import flow
from ssd300_vgg16.weights.safetensors_file import ModelDescription

OUTPUTS = ("boxes", "scores", "labels", "batch_index")
# Few default boxes, so that NMS and the limits are quick to reach: 400 and some, and a class of more than 400.
SMALL = DefaultBoxLayout(64, (9, 5), (7, 13), (16, 32, 64), ((2, 3), (2,)))
DEFAULT_BOXES = len(default_boxes(SMALL))


def network(variant, num_classes, width, seed=0):
    flow.manual_seed(seed)
    description = ModelDescription(num_classes, width, (Category(2, 17, "Kätzchen"),), variant)
    return SSD(variant, num_classes, width).eval(), description


def session_of(model):
    onnx.checker.check_model(model, full_check=True)
    return onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


def pictures(number, side, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (number, 3, side, side), dtype=np.uint8)


def assert_raw_outputs_are_oneflows(model, description, batches):
    session = session_of(onnx_model(model, description, "raw"))
    for images in batches:
        with flow.no_grad():
            expected = [tensor.numpy() for tensor in model(flow.from_numpy(images))]
        found = session.run(["offsets", "logits"], {"images": images})
        for ours, reference in zip(found, expected, strict=True):
            assert ours.shape == reference.shape
            assert np.abs(ours - reference).max() <= 1e-4 * np.abs(reference).max()


@pytest.mark.parametrize(
    ("name", "num_classes", "width"),
    [
        # Those with VOC's boxes have the same layers: see network/test_variants.py.
        ("ssd300_vgg16_coco", 4, 1 / 32),
        ("ssd512_vgg16_coco", 4, 1 / 32),
        ("ssd512_vgg16_highres_coco", 4, 1 / 32),
        ("ssd300_vgg16_coco", 2, 0.02),
        ("ssd300_vgg16_coco", 91, 0.1),
        pytest.param("ssd300_vgg16_coco", 91, 1.0, marks=pytest.mark.long, id="published"),
    ],
)
def test_offsets_and_logits_are_oneflows(name, num_classes, width):
    model, description = network(VARIANTS[name], num_classes, width)
    scale = np.random.default_rng(1).uniform(1, 30, model.backbone.scale_weight.shape[0]).astype(np.float32)
    model.backbone.scale_weight.data.copy_(flow.from_numpy(scale))
    for convolution in (model.backbone.features[0], model.head.regression_head.module_list[5]):
        flow.nn.init.uniform_(convolution.bias, -3, 3)  # fresh biases are zero
    side = model.layout.image_size
    assert_raw_outputs_are_oneflows(model, description, [pictures(2, side), pictures(1, side, seed=1)])


def test_black_and_white_pictures():
    """Where a feature map is zero, its norm is too; and padding is zero after the mean is taken off, not before."""
    model, description = network(SSD300_VGG16, 3, 1 / 32)
    flat = np.stack([np.zeros((3, 300, 300), np.uint8), np.full((3, 300, 300), 255, np.uint8)])
    # As after a training. Without biases a flat picture gives sums of exactly 0, which Winograd's method rounds in its
    # own way, and where there is nothing but rounding the normalisation makes it large.
    for layer in model.backbone.features:
        if isinstance(layer, Conv2d):
            flow.nn.init.normal_(layer.bias, std=0.1)
    assert_raw_outputs_are_oneflows(model, description, [flat])
    for layer in (model.backbone.features[21], model.backbone.features[19]):
        flow.nn.init.zeros_(layer.weight)
        flow.nn.init.zeros_(layer.bias)
    assert_raw_outputs_are_oneflows(model, description, [flat])


def test_a_layer_that_onnx_is_not_written_for_is_named():
    model, _ = network(SSD300_VGG16, 2, 0.02)
    model.backbone.features[1] = flow.nn.Sigmoid()
    with pytest.raises(TypeError, match=r"backbone\.features\.1: there is no way here to write a Sigmoid"):
        add_network(Graph(), model, "images")


def post_processing(num_classes, layout, threshold):
    """Post-processing alone, as a function of offsets and logits."""
    graph, boxes = Graph(), len(default_boxes(layout))
    add_postprocess(graph, "offsets", "logits", num_classes, layout, threshold)
    inputs = [
        helper.make_tensor_value_info("offsets", TensorProto.FLOAT, ["batch", boxes, 4]),
        helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", boxes, num_classes]),
    ]
    session = session_of(graph.model("postprocess", inputs, detection_outputs()))
    return lambda offsets, logits: dict(
        zip(OUTPUTS, session.run(OUTPUTS, {"offsets": offsets, "logits": logits}), strict=True)
    )


def assert_detections_are_ours(offsets, logits, layout, threshold=0.01):
    """Both on the same answers of a network; returns how many were found in each image."""
    found = post_processing(logits.shape[2], layout, threshold)(offsets, logits)
    sizes = [(1.0, 1.0)] * len(offsets)
    expected = postprocess(flow.from_numpy(offsets), flow.from_numpy(logits), sizes, threshold, layout)
    counts = [len(each["scores"]) for each in expected]
    np.testing.assert_array_equal(found["batch_index"], np.repeat(np.arange(len(counts)), counts))
    together = {name: np.concatenate([each[name] for each in expected]) for name in OUTPUTS[:3]}
    np.testing.assert_array_equal(found["labels"], together["labels"])
    np.testing.assert_allclose(found["scores"], together["scores"], rtol=1e-5)
    np.testing.assert_allclose(found["boxes"], together["boxes"], atol=1e-6)
    assert (found["boxes"].dtype, found["labels"].dtype) == (np.float32, np.int64)
    return counts


def answers(num_classes, boxes, batch=2, spread=1.0, seed=0):
    rng = np.random.default_rng(seed)
    logits = rng.standard_normal((batch, boxes, num_classes), dtype=np.float32) * np.float32(spread)
    return rng.standard_normal((batch, boxes, 4), dtype=np.float32), logits


@pytest.mark.parametrize(
    "variant",
    [VARIANTS["ssd300_vgg16_coco"], VARIANTS["ssd512_vgg16_voc"], fitted_variant("ssd300_vgg16", FITTED_SHAPES)],
    ids=lambda variant: variant.name,
)
def test_detections_are_the_packages(variant):
    layout = variant.layout
    counts = assert_detections_are_ours(*answers(4, len(default_boxes(layout))), layout)
    assert counts == [200, 200]


@pytest.mark.parametrize("num_classes", [2, 3, 30])
@pytest.mark.parametrize("threshold", [0.0, 0.01, 0.5])
def test_numbers_of_classes_and_thresholds(num_classes, threshold):
    assert_detections_are_ours(*answers(num_classes, DEFAULT_BOXES, 3), SMALL, threshold)


def test_an_image_without_detections_and_wild_offsets():
    """Its place is left empty; boxes are bounded, and clipped to the image."""
    offsets, logits = answers(3, DEFAULT_BOXES, 3)
    logits[1, :, 0] = 50  # all background
    counts = assert_detections_are_ours(offsets * 1000, logits, SMALL)
    assert counts[1] == 0 and counts[0] > 0 and counts[2] > 0
    assert assert_detections_are_ours(offsets[1:2], logits[1:2], SMALL) == [0]


def test_a_class_has_at_most_400_candidates():
    """Of boxes that all suppress one another, but for the 400th and the 401st best."""
    layout = SSD300_VGG16.layout
    offsets, logits = answers(2, len(default_boxes(layout)), 1, spread=0.1)
    offsets[..., 2:] = 1000  # all of them the whole image
    best = np.argsort(logits[0, :, 0] - logits[0, :, 1])
    offsets[0, best[[399, 400]], 2:] = -20
    found = post_processing(2, layout, 0.01)(offsets, logits)
    assert_detections_are_ours(offsets, logits, layout)
    small = (found["boxes"][:, 2:] - found["boxes"][:, :2]).max(axis=1) < 0.1
    assert small.sum() == 1, "the 400th best is a candidate, the 401st is none"


def test_of_equal_scores_the_earlier_box_suppresses_and_the_lower_label_goes_first():
    offsets = np.zeros((1, DEFAULT_BOXES, 4), np.float32)
    logits = np.zeros((1, DEFAULT_BOXES, 3), np.float32)
    logits[..., 0] = 20
    centre = 6 * (9 * 4 + 4)  # the first two boxes of a cell overlap by half
    logits[0, [centre, centre + 1], 0] = 0
    found = post_processing(3, SMALL, 0.1)(offsets, logits)
    assert found["labels"].tolist() == [1, 2]
    np.testing.assert_allclose(found["boxes"], [default_boxes(SMALL)[centre] / 64] * 2, atol=1e-6)


def test_a_score_at_the_threshold_is_not_above_it():
    offsets, logits = np.zeros((1, DEFAULT_BOXES, 4), np.float32), np.zeros((1, DEFAULT_BOXES, 2), np.float32)
    assert len(post_processing(2, SMALL, 0.5)(offsets, logits)["scores"]) == 0
    assert len(post_processing(2, SMALL, 0.4999)(offsets, logits)["scores"]) > 0


def test_metadata_says_what_a_program_needs():
    model, description = network(VARIANTS["ssd512_vgg16_voc"], 91, 0.02)
    description = ModelDescription(91, 0.02, COCO_CATEGORIES, description.variant, tile_side=640)
    made = onnx_model(model, description, score_threshold=0.3)
    about = session_of(made).get_modelmeta().custom_metadata_map
    assert json.loads(about["categories"])[16] == {"label": 18, "id": 18, "name": "dog"}
    expected = {"variant": "ssd512_vgg16_voc", "width": "0.02", "image_size": "512", "num_classes": "91"}
    expected |= {
        "score_threshold": "0.3",
        "nms_iou": "0.45",
        "package": "ssd300_vgg16",
        "version": "0.1.0",
        "tile_side": "640",
    }
    assert expected.items() <= about.items()
    assert about["pixel_format"].startswith("RGB, uint8")
    assert made.opset_import[0].version >= 13 and len(made.opset_import) == 1


def test_what_no_onnx_file_holds_is_refused(tmp_path, monkeypatch):
    made = onnx_model(*network(SSD300_VGG16, 2, 0.02), "raw")
    monkeypatch.setattr("ssd300_vgg16.deploy.model.MAX_BYTES", 1000)
    with pytest.raises(UserError, match="2 GiB are the most"):
        save(tmp_path / "large.onnx", made)
    assert not list(tmp_path.iterdir())


def test_a_model_that_is_none_is_not_written(tmp_path):
    made = onnx_model(*network(SSD300_VGG16, 2, 0.02), "raw")
    made.graph.node[3].input[0] = "nowhere"
    with pytest.raises(onnx.checker.ValidationError):
        save(tmp_path / "broken.onnx", made)
    assert not list(tmp_path.iterdir())
