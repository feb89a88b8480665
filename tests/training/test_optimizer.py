"""What is trained, and how each group of parameters is."""

import numpy as np
import pytest

from ssd300_vgg16.data.loader import TrainingBatch
from ssd300_vgg16.distributed.world import ALONE
from ssd300_vgg16.network.ssd import SSD300
from ssd300_vgg16.network.vgg import Conv2d
from ssd300_vgg16.runtime import flow
from ssd300_vgg16.training.config import VGG_STAGES, OptimizerConfig, Schedule
from ssd300_vgg16.training.optimizer import freeze_backbone, initialise_from_scratch
from ssd300_vgg16.training.step import EagerStep, GraphStep
from ssd300_vgg16.weights.model import model_tensors

# torchvision's rule: VGG's layers before this one of vgg16().features are frozen. A stage begins with its pooling.
FROZEN_BEFORE = {5: 0, 4: 4, 3: 9, 2: 16, 1: 23, 0: 31}
# extra.0 begins with the pooling that is vgg16().features[23], and goes on with conv5; its seventh part is fc6 and fc7.
POOLING_4, CONV5_PARTS = 23, 7
RATE = 0.01


def vgg_layer(name):
    """Which layer of vgg16().features the parameter belongs to; None for what SSD adds."""
    if name.startswith("backbone.features."):
        return int(name.split(".")[2])
    if name.startswith("backbone.extra.0.") and int(name.split(".")[3]) < CONV5_PARTS:
        return POOLING_4 + int(name.split(".")[3])
    return None


@pytest.mark.parametrize("stages", range(VGG_STAGES + 1))
def test_stages_are_frozen_as_in_the_model_zoo(stages):
    model = SSD300(3, width=0.02)
    assert {vgg_layer(name) for name, _ in model.named_parameters()} - {None} == {
        *(0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
    }
    freeze_backbone(model, stages)
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert frozen == {
        name
        for name, _ in model.named_parameters()
        if vgg_layer(name) is not None and vgg_layer(name) < FROZEN_BEFORE[stages]
    }


@pytest.mark.parametrize("kind", ["sgd", pytest.param("adamw", marks=pytest.mark.long)])
def test_frozen_layers_stay_as_they_are(kind):
    """Whatever their weight decay would do."""
    model = SSD300(3, width=0.02)
    freeze_backbone(model, 2)
    before = {name: array.copy() for name, array in model_tensors(model).items()}
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, (1, 8732)) * (rng.random((1, 8732)) < 0.01)
    offsets = rng.standard_normal((1, 8732, 4), dtype=np.float32)
    batch = TrainingBatch(rng.integers(0, 256, (1, 3, 300, 300), dtype=np.uint8), offsets, labels, [], [])
    step = EagerStep(model, OptimizerConfig(kind, weight_decay=0.1), constant(1e-3), ALONE)
    step(batch, np.count_nonzero(labels))
    after, state = model_tensors(model), step.state()
    for name, parameter in model.named_parameters():
        changed = (after[name] != before[name]).any()
        # A bias of zero may have no gradient either.
        assert changed == parameter.requires_grad or (name.endswith("bias") and not changed), name
        assert any(key.startswith(f"{name}-") for key in state) == parameter.requires_grad, name


def constant(rate):
    return Schedule("multistep", rate, total_steps=100, warmup_steps=0)


class Layer(flow.nn.Module):
    """One default box of one image: eight numbers in, four offsets and three logits out."""

    def __init__(self):
        super().__init__()
        self.linear = flow.nn.Linear(8, 7)

    def forward(self, images):
        answers = self.linear(images).reshape(1, 1, 7)
        return answers[:, :, :4], answers[:, :, 4:]


@pytest.mark.parametrize("step_class", [EagerStep, GraphStep])
@pytest.mark.parametrize(
    ("factor", "bias_decay", "expected_decay"), [(1.0, None, 0.5), (2.0, None, 0.5), (1.0, 0.0, 0.0), (3.0, 0.25, 0.25)]
)
def test_biases_have_a_rate_and_a_decay_of_their_own(step_class, factor, bias_decay, expected_decay):
    numbers = np.linspace(-1, 1, 8, dtype=np.float32)[None]
    batch = TrainingBatch(numbers, np.ones((1, 1, 4), dtype=np.float32), np.ones((1, 1), dtype=np.int64), [], [])
    flow.manual_seed(1)
    model = Layer()
    weight, bias = (parameter.numpy().copy() for parameter in (model.linear.weight, model.linear.bias))
    config = OptimizerConfig("sgd", momentum=0.0, weight_decay=0.5, bias_lr_factor=factor, bias_weight_decay=bias_decay)
    step_class(model, config, constant(RATE), ALONE)(batch, 1)
    # By hand: smooth L1 on the offsets, cross-entropy with label 1 on the logits.
    answers = weight @ numbers[0] + bias
    powers = np.exp(answers[4:])
    gradient = np.concatenate([np.clip(answers[:4] - 1, -1, 1), powers / powers.sum() - np.array([0, 1, 0])])
    expected = weight - RATE * (gradient[:, None] * numbers + 0.5 * weight)
    np.testing.assert_allclose(model.linear.weight.numpy(), expected, rtol=1e-5, atol=1e-7)
    expected = bias - RATE * factor * (gradient + expected_decay * bias)
    np.testing.assert_allclose(model.linear.bias.numpy(), expected, rtol=1e-5, atol=1e-7)


def pictures(count):
    """Coarse noise, as the network takes it."""
    coarse = np.random.default_rng(0).integers(0, 256, (count, 3, 12, 12), dtype=np.uint8)
    return coarse.repeat(25, axis=2).repeat(25, axis=3)


def before_relus(model, images):
    """What goes into each ReLU of the backbone, by layer."""
    outputs, x = [], flow.from_numpy(images).to(flow.float32) - model.pixel_mean
    with flow.no_grad():
        for block in (model.backbone.features, *model.backbone.extra):
            for layer in block.modules():
                if isinstance(layer, Conv2d):
                    outputs.append(layer.without_relu(x).numpy())
                    x = flow.from_numpy(np.maximum(outputs[-1], 0))
                elif isinstance(layer, flow.nn.MaxPool2d):
                    x = layer(x)
    return outputs


def test_from_scratch_every_channel_is_centred_and_of_one_scale():
    flow.manual_seed(0)
    model, images = SSD300(num_classes=3, width=0.125), pictures(8)
    initialise_from_scratch(model, images)
    outputs = before_relus(model, images)
    trunk = 10
    for number, output in enumerate(outputs, start=1):
        expected = 58.0 ** max(0, 1 - number / trunk)
        np.testing.assert_allclose(output.mean(axis=(0, 2, 3)), 0, atol=1e-3 * expected)
        assert np.median(output.std(axis=(0, 2, 3))) == pytest.approx(expected, rel=1e-2)
        assert output.std(axis=(0, 2, 3)).max() < 1.01 * expected
    # Unlike He's alone: what the channels have in common everywhere is no more than a part of conv4_3.
    conv4_3 = np.maximum(outputs[trunk - 1], 0)
    common = (conv4_3.mean(axis=(0, 2, 3)) ** 2).sum() / (conv4_3**2).mean(axis=(0, 2, 3)).sum()
    assert common < 0.5


def test_from_scratch_the_heads_are_close_to_zero_and_the_same_seed_gives_the_same():
    weights = []
    for _ in range(2):
        flow.manual_seed(7)
        model = SSD300(num_classes=3, width=0.05)
        initialise_from_scratch(model, pictures(3))
        weights.append(model_tensors(model))
    for name, array in weights[0].items():
        np.testing.assert_array_equal(array, weights[1][name])
        if name.startswith("head.") and name.endswith("weight"):
            assert array.std() == pytest.approx(0.01, rel=0.1)


@pytest.mark.parametrize("images", [np.zeros((0, 3, 300, 300), np.uint8), np.full((2, 3, 300, 300), 90, np.uint8)])
def test_from_scratch_blank_images_say_nothing(images):
    """Where nothing varies but the edge of the zeros around, to scale by it would make the first step explode."""
    flow.manual_seed(0)
    model = SSD300(num_classes=3, width=0.05)
    initialise_from_scratch(model, images)
    for name, array in model_tensors(model).items():
        if name.startswith("backbone.") and name.endswith("weight") and "scale" not in name:
            he = np.sqrt(2 / np.prod(array.shape[1:]))
            assert 0.3 * he < array.std() < 1.5 * he
        elif name.endswith("bias"):
            assert not array.any()
