"""The learning rate of each step, and OneFlow's own scheduler, which has the same."""

from math import cos, pi

import numpy as np
import pytest
from small_data import slowed

from ssd300_vgg16.runtime import flow
from ssd300_vgg16.training.config import Schedule
from ssd300_vgg16.training.optimizer import oneflow_scheduler

RECIPE = Schedule("multistep", base_lr=2e-3, total_steps=1200, warmup_steps=100, milestones=(800, 1100))
ABRUPT = Schedule("multistep", base_lr=1.0, total_steps=30, warmup_steps=0, milestones=(10, 20), gamma=0.5)
LONG_WARMUP = Schedule("multistep", base_lr=1.0, total_steps=30, warmup_steps=25, milestones=(10, 20))
PLAIN = Schedule("multistep", base_lr=1.0, total_steps=10, warmup_steps=4)
COSINE = Schedule("cosine", base_lr=1.0, total_steps=30, warmup_steps=10)
ABRUPT_COSINE = Schedule("cosine", base_lr=1.0, total_steps=30, warmup_steps=0)
BRIEF_COSINE = Schedule("cosine", base_lr=1.0, total_steps=5, warmup_steps=100)
ONE_STEP = Schedule("multistep", base_lr=1.0, total_steps=1, warmup_steps=1000)
ONE_STEP_COSINE = Schedule("cosine", base_lr=1.0, total_steps=1, warmup_steps=1000)


@pytest.mark.parametrize(
    ("schedule", "step", "learning_rate"),
    [
        pytest.param(RECIPE, 0, 2e-6, id="first step"),
        pytest.param(RECIPE, 50, 2e-3 * 0.5005, id="half of the warm-up"),
        pytest.param(RECIPE, 99, 2e-3 * (0.001 + 0.999 * 0.99), id="last of the warm-up"),
        pytest.param(RECIPE, 100, 2e-3, id="first after the warm-up"),
        pytest.param(RECIPE, 799, 2e-3, id="before the first milestone"),
        pytest.param(RECIPE, 800, 2e-4, id="first milestone"),
        pytest.param(RECIPE, 1099, 2e-4, id="before the second milestone"),
        pytest.param(RECIPE, 1100, 2e-5, id="second milestone"),
        pytest.param(RECIPE, 1199, 2e-5, id="last step"),
        pytest.param(RECIPE, 5000, 2e-5, id="beyond the end"),
        pytest.param(ABRUPT, 0, 1.0, id="no warm-up"),
        pytest.param(ABRUPT, 20, 0.25, id="another gamma"),
        pytest.param(PLAIN, 9, 1.0, id="no milestones"),
        pytest.param(LONG_WARMUP, 9, 0.001 + 0.999 * 0.9, id="warm-up cut short, its last"),
        pytest.param(LONG_WARMUP, 10, 0.1, id="warm-up cut short, at the milestone"),
        pytest.param(COSINE, 0, 0.001, id="cosine, first step"),
        pytest.param(COSINE, 9, 0.001 + 0.999 * 0.9, id="cosine, last of the warm-up"),
        pytest.param(COSINE, 10, 1.0, id="cosine, first after the warm-up"),
        pytest.param(COSINE, 20, 0.5, id="cosine, half-way"),
        pytest.param(COSINE, 29, 0.5 * (1 + cos(pi * 19 / 20)), id="cosine, last step"),
        pytest.param(COSINE, 30, 0.0, id="cosine, end"),
        pytest.param(COSINE, 99, 0.0, id="cosine, beyond the end"),
        pytest.param(ABRUPT_COSINE, 0, 1.0, id="cosine, no warm-up"),
        pytest.param(BRIEF_COSINE, 3, 0.001 + 0.999 * 0.75, id="cosine, warm-up longer than all"),
        pytest.param(BRIEF_COSINE, 4, 1.0, id="cosine, the only step after the warm-up"),
        pytest.param(ONE_STEP, 0, 1.0, id="one step"),
        pytest.param(ONE_STEP_COSINE, 0, 1.0, id="cosine, one step"),
    ],
)
def test_learning_rate(schedule, step, learning_rate):
    assert schedule.learning_rate(step) == pytest.approx(learning_rate, rel=1e-12, abs=1e-15)


def test_a_warm_up_that_is_cut_short_is_told():
    assert RECIPE.notices(100) == ABRUPT.notices(0) == []
    shorter = "The warm-up takes {} of the training's {} steps: --warmup-steps {} is too long for it."
    assert BRIEF_COSINE.notices(100) == [shorter.format(4, 5, 100)]
    assert LONG_WARMUP.notices(25) == [shorter.format(10, 30, 25)]


class OneWeight:
    """A weight whose gradient is always 1: what it loses in a step is the learning rate."""

    def __init__(self, schedule):
        self.linear = flow.nn.Linear(1, 1, bias=False)
        flow.nn.init.zeros_(self.linear.weight)
        self.optimizer = flow.optim.SGD(self.linear.parameters(), lr=schedule.base_lr)
        self.scheduler = oneflow_scheduler(schedule, self.optimizer)

    def losses_of(self, take_step, steps):
        values = [0.0]
        for _ in range(steps):
            take_step()
            values.append(self.linear.weight.item())
        return -np.diff(values)


def eager_rates(schedule, steps):
    one = OneWeight(schedule)

    def take_step():
        one.optimizer.zero_grad()
        one.linear(flow.ones(1, 1)).sum().backward()
        one.optimizer.step()
        one.scheduler.step()

    return one.losses_of(take_step, steps)


def graph_rates(schedule, steps):
    one = OneWeight(schedule)

    class Step(flow.nn.Graph):
        def __init__(self):
            super().__init__()
            self.linear = one.linear
            self.add_optimizer(one.optimizer, lr_sch=one.scheduler)

        def build(self, x):
            loss = self.linear(slowed(x)).sum()
            loss.backward()
            return loss

    graph = Step()
    return one.losses_of(lambda: graph(flow.ones(1, 1)), steps)


@pytest.mark.parametrize("rates", [eager_rates, graph_rates])
@pytest.mark.parametrize(
    "schedule", [ABRUPT, LONG_WARMUP, PLAIN, COSINE, ABRUPT_COSINE, BRIEF_COSINE, ONE_STEP, ONE_STEP_COSINE]
)
def test_oneflow_is_given_the_same_learning_rates(rates, schedule):
    steps = schedule.total_steps + 3
    expected = [schedule.learning_rate(step) for step in range(steps)]
    # The rate is a difference of two float32 weights of up to 30.
    np.testing.assert_allclose(rates(schedule, steps), expected, rtol=1e-5, atol=1e-5)
