"""The moving average of the weights is the one that numpy computes."""

import numpy as np
import pytest

from ssd300_vgg16.runtime import flow
from ssd300_vgg16.training.optimizer import MovingAverage

DECAY = 0.75  # reached in step 23
STEPS = 40


def weights_after(step):
    return np.random.default_rng(step).standard_normal((3, 2), dtype=np.float32)


def train(model, average, steps):
    for step in steps:
        model.weight.copy_(flow.tensor(weights_after(step)))
        average.update(step)


@pytest.fixture
def model():
    model = flow.nn.Linear(2, 3, bias=False)
    model.weight.requires_grad = False
    model.weight.copy_(flow.tensor(weights_after(0)))
    return model


def test_the_average_is_numpys(model):
    average = MovingAverage(model, DECAY)
    np.testing.assert_array_equal(average.tensors()["weight"], weights_after(0))
    expected, decays = weights_after(0).astype(np.float64), []
    for step in range(1, STEPS + 1):
        train(model, average, [step])
        decays.append(min(DECAY, (1 + step) / (10 + step)))
        expected = decays[-1] * expected + (1 - decays[-1]) * weights_after(step)
        np.testing.assert_allclose(average.tensors()["weight"], expected, rtol=1e-5, atol=1e-6)
    assert decays[0] < decays[10] < decays[-2] == decays[-1] == DECAY, "a case with a ramp and without"
    np.testing.assert_array_equal(model.weight.numpy(), weights_after(STEPS), err_msg="the weights themselves")


def test_it_goes_on_from_what_was_kept(model):
    average = MovingAverage(model, DECAY)
    train(model, average, range(1, 10))
    kept = {name: array.copy() for name, array in average.tensors().items()}
    other = MovingAverage(model, DECAY)
    other.restore(kept)
    for one in (average, other):
        train(model, one, range(10, 15))
    np.testing.assert_array_equal(other.tensors()["weight"], average.tensors()["weight"])
    assert (other.tensors()["weight"] != kept["weight"]).all()
