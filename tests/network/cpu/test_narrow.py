"""Narrow networks, computed image by image, against the same network layer after layer."""

import copy

import numpy as np
import pytest

from ssd300_vgg16 import SSD300, SSD512
from ssd300_vgg16.network.cpu import narrow, ops
from ssd300_vgg16.network.vgg import Conv2d
from ssd300_vgg16.runtime import flow
from ssd300_vgg16.weights.model import arrays_of

OUTPUTS = 5
GRADIENTS = 1e-4  # of the largest: float32 summed in other orders over all of an image's cells


@pytest.fixture
def model():
    flow.manual_seed(0)
    return SSD300(num_classes=OUTPUTS, width=0.125)


def layer_after_layer(monkeypatch):
    monkeypatch.setattr(ops, "narrow_network", lambda *_: None)


def images(count, side=300):
    return flow.from_numpy(np.random.default_rng(0).integers(0, 256, (count, 3, side, side), dtype=np.uint8))


def answers_and_gradients(model, count):
    """Offsets, logits, and the gradient of each parameter for random gradients of both."""
    model.zero_grad(set_to_none=True)
    answers = model(images(count, model.layout.image_size))
    rng = np.random.default_rng(1)
    shares = [flow.from_numpy(rng.standard_normal(tuple(each.shape), dtype=np.float32)) for each in answers]
    sum((answer * share).sum() for answer, share in zip(answers, shares, strict=True)).backward()
    return [each.numpy() for each in answers], gradients_of(model)


def gradients_of(model):
    return arrays_of({name: p.grad for name, p in model.named_parameters() if p.grad is not None})


def assert_close(found, expected, tolerance=2e-5):
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * np.abs(expected).max())


@pytest.mark.parametrize("count", [1, 3])
def test_equal_to_layer_after_layer(model, monkeypatch, thread_count, count):
    """With fewer images than threads, and more."""
    assert_equal_to_layer_after_layer(model, monkeypatch, count)


@pytest.mark.parametrize(
    "other",
    [
        lambda: SSD300(OUTPUTS, width=0.1),  # channels that are no multiple of 8
        lambda: SSD512(OUTPUTS, width=1 / 16),  # other layers, one with a kernel of 4 x 4
    ],
    ids=["width 0.1", "SSD512"],
)
def test_other_channels_and_layers_are_equal(monkeypatch, other):
    flow.manual_seed(0)
    assert_equal_to_layer_after_layer(other(), monkeypatch, 1)


def with_clear_relus(model, count):
    """A copy whose channels are about 4, or about -4, before their ReLU, with a deviation of 1.

    A number that is rounded otherwise then seldom falls on the other side of 0, where a gradient gains or loses a term.
    """
    model = copy.deepcopy(model)
    x = images(count, model.layout.image_size).to(flow.float32) - model.pixel_mean
    with flow.no_grad():
        for layer in (layer for part in (model.backbone.features, model.backbone.extra) for layer in part.modules()):
            if isinstance(layer, Conv2d):
                sums = layer.without_relu(x).numpy() - layer.bias.numpy()[:, None, None]
                means = sums.mean(axis=(0, 2, 3))
                # Maps of one cell deviate by nothing.
                deviations = np.maximum(sums.std(axis=(0, 2, 3)), np.abs(means).mean() / 10)
                signs = np.where(np.arange(len(means)) % 2, -4, 4)
                layer.weight.copy_(flow.from_numpy(layer.weight.numpy() / deviations[:, None, None, None]))
                layer.bias.copy_(flow.from_numpy((signs - means / deviations).astype(np.float32)))
            if not list(layer.children()):
                x = layer(x)
    return model


def assert_equal_to_layer_after_layer(model, monkeypatch, count):
    assert narrow.network_of(model) is not None
    settled = with_clear_relus(model, count)
    answers = answers_and_gradients(model, count)[0]
    gradients = answers_and_gradients(settled, count)[1]
    layer_after_layer(monkeypatch)
    for found, expected in zip(answers, answers_and_gradients(model, count)[0], strict=True):
        assert_close(found, expected)
    expected_gradients = answers_and_gradients(settled, count)[1]
    assert gradients.keys() == expected_gradients.keys()
    for name, expected in expected_gradients.items():
        assert_close(gradients[name], expected, GRADIENTS)


def test_equal_to_oneflows_own_layers(model, monkeypatch):
    """As in a graph, where none of the kernels here serve."""
    settled = with_clear_relus(model, 2)
    answers = answers_and_gradients(model, 2)[0]
    gradients = answers_and_gradients(settled, 2)[1]
    layer_after_layer(monkeypatch)
    monkeypatch.setattr(ops, "covers_convolution", lambda *_: False)
    for found, expected in zip(answers, answers_and_gradients(model, 2)[0], strict=True):
        assert_close(found, expected)
    for name, expected in answers_and_gradients(settled, 2)[1].items():
        assert_close(gradients[name], expected, GRADIENTS)


def test_without_gradients_the_same_answers_and_nothing_kept(model):
    with_gradients, _ = answers_and_gradients(model, 2)
    with flow.no_grad():
        answers = model(images(2))
    for answer, expected in zip(answers, with_gradients, strict=True):
        np.testing.assert_array_equal(answer.numpy(), expected)


def test_the_same_sums_every_time(model):
    (_, first), (_, again) = (answers_and_gradients(model, 3) for _ in range(2))
    for name in first:
        np.testing.assert_array_equal(first[name], again[name])


def test_going_back_twice_gives_twice_the_gradients(model):
    total = sum(each.sum() for each in model(images(1)))
    total.backward(retain_graph=True)
    once = {name: array.copy() for name, array in gradients_of(model).items()}
    total.backward()
    for name, gradient in gradients_of(model).items():
        assert_close(gradient, 2 * once[name])


def test_changed_parameters_are_seen(model):
    before = model(images(1))[1].numpy()
    with flow.no_grad():
        model.head.classification_head.module_list[0].bias.add_(1.0)
    after = model(images(1))[1].numpy()
    cells = 38 * 38 * 4
    np.testing.assert_allclose(after[:, :cells], before[:, :cells] + 1, atol=1e-4)
    np.testing.assert_array_equal(after[:, cells:], before[:, cells:])


def test_frozen_parameters_get_no_gradient(model):
    for parameter in model.backbone.features.parameters():
        parameter.requires_grad = False
    _, gradients = answers_and_gradients(model, 1)
    assert not any(name.startswith("backbone.features") for name in gradients)
    assert any(name.startswith("backbone.extra") for name in gradients)


def test_a_wide_network_is_computed_layer_after_layer():
    assert narrow.network_of(SSD300(num_classes=3, width=2 * narrow.MAX_WIDTH)) is None


def test_what_is_not_a_number_stays_so(model):
    """Or the trainer would not see that a training has failed."""
    gradient = np.zeros((1, 8732, 4), dtype=np.float32)
    gradient[0, 100, 0] = np.nan
    (model(images(1))[0] * flow.tensor(gradient)).sum().backward()
    assert np.isnan(model.backbone.features[0].weight.grad.numpy()).any()
    with flow.no_grad():
        model.backbone.features[0].bias[0] = np.nan
    assert np.isnan(model(images(1))[1].numpy()).any()


def test_the_loss_counts_few_boxes(model, monkeypatch):
    """Gradients of 0 but for some boxes, as the loss has them, and of 0 for all of an image without objects."""
    counted = np.zeros((3, 8732, 1), dtype=np.float32)
    counted[0, [0, 1, 5000, 8731]] = counted[1, 5800] = 1
    found = []
    for _ in range(2):
        model.zero_grad(set_to_none=True)
        offsets, logits = model(images(3))
        (
            (offsets.sum(dim=2, keepdim=True) + (logits * logits).sum(dim=2, keepdim=True)) * flow.tensor(counted)
        ).sum().backward()
        found.append(gradients_of(model))
        layer_after_layer(monkeypatch)
    assert len(found[0]) == len(list(model.parameters())) and found[0].keys() == found[1].keys()
    for name, gradient in found[0].items():
        assert_close(gradient, found[1][name])


def with_hook(model):
    model.backbone.features[0].register_forward_hook(lambda *_: None)


def with_another_activation(model):
    model.backbone.features[1] = flow.nn.Sigmoid()


def with_another_head(model):
    model.head.classification_head.module_list[1] = flow.nn.Conv2d(128, 6 * OUTPUTS, 1)


@pytest.mark.parametrize("change", [with_hook, with_another_activation, with_another_head])
def test_a_model_that_was_changed_is_computed_as_it_is_now(model, change):
    """After a first call with it as it was."""
    before = model(images(1))[1].numpy()
    change(model)
    assert narrow.network_of(model) is None
    assert np.allclose(model(images(1))[1].numpy(), before, atol=1e-4) == (change is with_hook)


def test_a_parameter_that_was_replaced_is_seen(model):
    head = model.head.classification_head.module_list[0]
    model(images(1))
    head.weight = flow.nn.Parameter(flow.zeros(*head.weight.shape))
    head.bias = flow.nn.Parameter(flow.ones(*head.bias.shape))
    np.testing.assert_array_equal(model(images(1))[1].numpy()[:, : 38 * 38 * 4], 1)
