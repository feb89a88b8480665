"""What is trained, and how each group of parameters is."""

import numpy as np
import pytest

from ssd300_vgg16.data.loader import TrainingBatch
from ssd300_vgg16.distributed.world import ALONE
from ssd300_vgg16.network.ssd import SSD300
from ssd300_vgg16.runtime import flow
from ssd300_vgg16.training.config import VGG_STAGES, Schedule, UpdateRule
from ssd300_vgg16.training.optimizer import freeze_backbone
from ssd300_vgg16.training.step import EagerStep, GraphStep

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


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_frozen_layers_stay_as_they_are(kind):
    """Whatever their weight decay would do."""
    model = SSD300(3, width=0.02)
    freeze_backbone(model, 2)
    before = {name: parameter.numpy().copy() for name, parameter in model.named_parameters()}
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, (1, 8732)) * (rng.random((1, 8732)) < 0.01)
    offsets = rng.standard_normal((1, 8732, 4), dtype=np.float32)
    batch = TrainingBatch(rng.integers(0, 256, (1, 3, 300, 300), dtype=np.uint8), offsets, labels, [], [])
    step = EagerStep(model, UpdateRule(kind, weight_decay=0.1), constant(1e-3), ALONE)
    step(batch, np.count_nonzero(labels))
    for name, parameter in model.named_parameters():
        changed = (parameter.numpy() != before[name]).any()
        # A bias of zero may have no gradient either.
        assert changed == parameter.requires_grad or (name.endswith("bias") and not changed), name
        assert any(key.startswith(f"{name}-") for key in step.state()) == parameter.requires_grad, name


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
    rule = UpdateRule("sgd", momentum=0.0, weight_decay=0.5, bias_lr_factor=factor, bias_weight_decay=bias_decay)
    step_class(model, rule, constant(RATE), ALONE)(batch, 1)
    # By hand: smooth L1 on the offsets, cross-entropy with label 1 on the logits.
    answers = weight @ numbers[0] + bias
    powers = np.exp(answers[4:])
    gradient = np.concatenate([np.clip(answers[:4] - 1, -1, 1), powers / powers.sum() - np.array([0, 1, 0])])
    expected = weight - RATE * (gradient[:, None] * numbers + 0.5 * weight)
    np.testing.assert_allclose(model.linear.weight.numpy(), expected, rtol=1e-5, atol=1e-7)
    expected = bias - RATE * factor * (gradient + expected_decay * bias)
    np.testing.assert_allclose(model.linear.bias.numpy(), expected, rtol=1e-5, atol=1e-7)
