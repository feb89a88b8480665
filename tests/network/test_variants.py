"""SSD300 and SSD512, for COCO and for VOC: default boxes, feature maps, answers, a training step."""

import numpy as np
import pytest

import ssd300_vgg16 as ssd
from ssd300_vgg16.data.matching import training_targets
from ssd300_vgg16.network.loss import multibox_loss
from ssd300_vgg16.network.postprocess import postprocess
from ssd300_vgg16.network.ssd import SSD
from ssd300_vgg16.network.variants import SSD300_COCO, VARIANTS, Variant, default_boxes
from ssd300_vgg16.runtime import flow

WIDTH = 1 / 32
GOLDEN = {
    "ssd300_vgg16_coco": "default_boxes",
    "ssd300_vgg16_voc": "default_boxes_ssd300_voc",
    "ssd512_vgg16_coco": "default_boxes_ssd512_coco",
    "ssd512_vgg16_voc": "default_boxes_ssd512_voc",
}
OUTPUTS = {"ssd300_vgg16": 8732, "ssd512_vgg16": 24564, "ssd512_vgg16_highres": 24732}
each_variant = pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
each_model = pytest.mark.parametrize("variant", [v for v in VARIANTS.values() if v.boxes == "coco"], ids=OUTPUTS)


@pytest.mark.parametrize(("name", "file"), GOLDEN.items())
def test_default_boxes_are_the_references_to_the_last_bit(golden, name, file):
    reference = golden(file)
    np.testing.assert_array_equal(default_boxes(VARIANTS[name].layout), reference["boxes_xyxy_px"])
    assert list(VARIANTS[name].layout.feature_maps) == reference["feature_maps"].tolist()


def test_made_once_and_read_only():
    assert default_boxes() is default_boxes() and default_boxes().dtype == np.float32
    assert SSD300_COCO.boxes_per_cell == (4, 6, 6, 6, 4, 4)
    with pytest.raises(ValueError, match="read-only"):
        default_boxes()[0] = 0


@each_variant
def test_the_layers_make_the_feature_maps_that_the_default_boxes_are_for(variant: Variant):
    """By arithmetic alone: what each convolution of a square map leaves of its side."""
    side = variant.layout.image_size
    for rounds_up in (False, False, True):
        side = (side + rounds_up) // 2
    sides = [side, (side // 2)]
    for layer in variant.extra_layers:
        sides.append((sides[-1] + 2 * layer.padding - layer.kernel) // layer.stride + 1)
    assert tuple(sides) == variant.layout.feature_maps
    assert len(variant.layout.sizes) == len(sides) + 1
    assert len(variant.layout.ratios) == len(variant.layout.steps) == len(sides)


@each_model
def test_answers_detections_and_gradients(variant: Variant):
    """Forward, loss, backward and post-processing of a narrow network, on one image with two objects."""
    model = SSD(variant, num_classes=4, width=WIDTH)
    side, boxes = variant.layout.image_size, default_boxes(variant.layout)
    assert len(boxes) == OUTPUTS[variant.model]
    images = np.random.default_rng(0).integers(0, 256, (1, 3, side, side), dtype=np.uint8)
    offsets, logits = model(flow.from_numpy(images))
    assert tuple(offsets.shape) == (1, len(boxes), 4)
    assert tuple(logits.shape) == (1, len(boxes), 4)
    objects = np.array([[10, 10, side - 20, side - 30], [50, 60, 90, 95]], dtype=np.float32)
    targets = training_targets(objects, np.array([1, 3]), boxes)
    losses = multibox_loss(offsets, logits, *(flow.from_numpy(column[None]) for column in targets))
    (losses["localization"] + losses["classification"]).backward()
    assert all(np.isfinite(loss.item()) for loss in losses.values())
    gradients = {name: weight.grad for name, weight in model.named_parameters()}
    assert all(gradient is not None for gradient in gradients.values())
    assert np.abs(gradients["backbone.features.0.weight"].numpy()).max() > 0
    (found,) = postprocess(offsets.detach(), logits.detach(), [(side, side)], 0.0, variant.layout)
    assert len(found["boxes"]) == 200
    assert (found["boxes"] >= 0).all() and (found["boxes"] <= side).all()


def test_sizes_of_voc_and_coco_differ_in_nothing_but_the_default_boxes():
    pairs = [(VARIANTS[f"{model}_coco"], VARIANTS[f"{model}_voc"]) for model in OUTPUTS]
    for coco, voc in pairs:
        assert coco.extra_layers == voc.extra_layers
        assert coco.layout.feature_maps == voc.layout.feature_maps
        assert coco.layout.sizes != voc.layout.sizes


def test_public_names():
    assert ssd.SSD300(num_classes=3, width=WIDTH).layout.image_size == 300
    assert ssd.SSD512(num_classes=3, width=WIDTH, boxes="voc").variant is VARIANTS["ssd512_vgg16_voc"]


def test_highres_is_flowvisions():
    """Feature maps of the extra layers of flowvision's own `highres` backbone, on the same weights."""
    from flowvision.models import vgg16
    from flowvision.models.detection.ssd import SSDFeatureExtractorVGG

    with pytest.MonkeyPatch.context() as patch:
        for name in ("kaiming_normal_", "kaiming_uniform_", "xavier_uniform_", "normal_", "uniform_"):
            patch.setattr(flow.nn.init, name, lambda weight, *_, **__: weight)
        theirs = SSDFeatureExtractorVGG(vgg16(pretrained=False).features, highres=True)
        ours = SSD(VARIANTS["ssd512_vgg16_highres_coco"], num_classes=2).backbone
    shapes = {name: tuple(tensor.shape) for name, tensor in theirs.state_dict().items()}
    assert {name: tuple(tensor.shape) for name, tensor in ours.state_dict().items()} == shapes
    rng = np.random.default_rng(1)
    fc7 = flow.from_numpy(rng.random((1, 1024, 32, 32), dtype=np.float32))
    maps = {ours: fc7, theirs: fc7}
    for mine, reference in zip(ours.extra[1:], theirs.extra[1:], strict=True):
        shapes = {name: tuple(tensor.shape) for name, tensor in reference.state_dict().items()}
        weights = {name: rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:])) for name, shape in shapes.items()}
        for backbone, layers in ((ours, mine), (theirs, reference)):
            layers.load_state_dict({name: flow.tensor(array.astype(np.float32)) for name, array in weights.items()})
            with flow.no_grad():
                maps[backbone] = layers(maps[backbone])
        np.testing.assert_allclose(maps[ours].numpy(), maps[theirs].numpy(), rtol=1e-4, atol=1e-5)
