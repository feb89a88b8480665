"""The learning rate of each step, and the training steps that follow it."""

from math import cos, pi

import numpy as np
import pytest

from ssd300_vgg16.data.loader import TrainingBatch
from ssd300_vgg16.data.matching import training_targets
from ssd300_vgg16.network.default_boxes import default_boxes
from ssd300_vgg16.network.ssd import SSD300
from ssd300_vgg16.runtime import flow
from ssd300_vgg16.training.schedule import Schedule, oneflow_scheduler
from ssd300_vgg16.training.step import EagerStep, GraphStep, make_optimizer, make_step, to_device

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


def test_learning_rate_is_a_function_of_the_step_alone():
    steps = np.random.default_rng(0).permutation(1200).tolist()
    shuffled = {step: RECIPE.learning_rate(step) for step in steps}
    assert [shuffled[step] for step in range(1200)] == [RECIPE.learning_rate(step) for step in range(1200)]


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
            loss = self.linear(x).sum()
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


STEPS = 6
# Warm-up in steps 0 and 1, a tenth from step 4 on.
LEARNING_RATES = {"sgd": 1e-6, "adamw": 1e-4}
CLASSES = 3


def short_schedule(kind):
    return Schedule("multistep", LEARNING_RATES[kind], total_steps=STEPS, warmup_steps=2, milestones=(4,))


def new_step(step_class, kind, model):
    optimizer = make_optimizer(kind, model, LEARNING_RATES[kind], momentum=0.9, weight_decay=5e-4)
    return step_class(model, optimizer, short_schedule(kind))


def copy_weights(weights, model):
    model.load_state_dict({name: flow.tensor(array) for name, array in weights.items()})
    return model


def weights_of(model):
    return {name: tensor.numpy().copy() for name, tensor in model.state_dict().items()}


def assert_trained_alike(found, expected, before, tolerance):
    """Weights differ from each other by no more than this part of what training has changed, and their rounding."""
    assert found.keys() == expected.keys() == before.keys()
    for name, weight in expected.items():
        change = np.linalg.norm(weight - before[name])
        assert np.linalg.norm(found[name] - weight) <= tolerance * change + 1e-7 * np.linalg.norm(weight), name


@pytest.mark.parametrize(("kind", "tolerance"), [("sgd", 5e-2), ("adamw", 2e-1)])
def test_a_graph_and_single_operations_train_alike(kind, tolerance):
    flow.manual_seed(0)
    rng = np.random.default_rng(0)
    objects = np.array([[20, 20, 200, 200], [100, 150, 160, 190]], dtype=np.float32)
    targets = [training_targets(objects[: 2 - i], np.array([1, 2])[: 2 - i], default_boxes()) for i in range(2)]
    offsets, labels = (np.stack(column) for column in zip(*targets, strict=True))
    images = rng.integers(0, 256, (2, 3, 300, 300), dtype=np.uint8)
    batch = to_device(TrainingBatch(images, offsets, labels, [], []), "cpu")
    before = weights_of(SSD300(CLASSES, width=0.05))
    losses, after = {}, {}
    for step_class in (EagerStep, GraphStep):
        model = copy_weights(before, SSD300(CLASSES, width=0.05))
        step = new_step(step_class, kind, model)
        losses[step_class] = [step(*batch).numpy() for _ in range(STEPS)]
        after[step_class] = weights_of(model)
    np.testing.assert_allclose(losses[GraphStep], losses[EagerStep], rtol=1e-3)
    # Which of two nearly equal cells a pooling takes can differ, and with it the gradients below. AdamW divides every
    # gradient by its own size, so where one is next to nothing its rounding becomes a whole step.
    assert_trained_alike(after[GraphStep], after[EagerStep], before, tolerance)


class TinyModel(flow.nn.Module):
    """To a training step the same as SSD300, but ready at once: eight numbers in, ten default boxes out."""

    def __init__(self):
        super().__init__()
        self.hidden = flow.nn.Linear(8, 16)
        self.answers = flow.nn.Linear(16, 10 * (4 + CLASSES))

    def forward(self, images):
        answers = self.answers(flow.tanh(self.hidden(images))).reshape(-1, 10, 4 + CLASSES)
        return answers[:, :, :4], answers[:, :, 4:]


@pytest.fixture(scope="module")
def tiny_batches():
    rng = np.random.default_rng(1)
    batches = []
    for _ in range(STEPS):
        labels = rng.integers(0, CLASSES, (4, 10)) * (rng.random((4, 10)) < 0.3)
        images = rng.standard_normal((4, 8), dtype=np.float32)
        offsets = rng.standard_normal((4, 10, 4), dtype=np.float32)
        batches.append(tuple(flow.from_numpy(array) for array in (images, offsets, labels)))
    return batches


@pytest.fixture(scope="module", params=["sgd", "adamw"])
def uninterrupted(request, tiny_batches):
    """Optimizer, first weights, and the losses and weights of a run without a break."""
    before = weights_of(TinyModel())
    model = copy_weights(before, TinyModel())
    step = new_step(EagerStep, request.param, model)
    losses = np.array([step(*batch).numpy() for batch in tiny_batches])
    return request.param, before, losses, weights_of(model)


def interrupted(first_class, second_class, kind, before, batches, at):
    """The losses and weights of a run that is broken off and taken up again by another model and optimizer."""
    model = copy_weights(before, TinyModel())
    step = new_step(first_class, kind, model)
    losses = [step(*batch).numpy() for batch in batches[:at]]
    weights, state = weights_of(model), {name: array.copy() for name, array in step.state().items()}
    assert state["step"] == at
    model = copy_weights(weights, TinyModel())
    step = new_step(second_class, kind, model)
    step.restore(state)
    losses += [step(*batch).numpy() for batch in batches[at:]]
    assert step.state()["step"] == len(batches)
    return np.array(losses), weights_of(model)


@pytest.mark.parametrize("at", [1, 3, 5])
def test_restored_single_operations_go_on_exactly(uninterrupted, tiny_batches, at):
    kind, before, losses, after = uninterrupted
    found_losses, found_after = interrupted(EagerStep, EagerStep, kind, before, tiny_batches, at)
    np.testing.assert_array_equal(found_losses, losses)
    for name in after:
        np.testing.assert_array_equal(found_after[name], after[name])


@pytest.mark.parametrize("first", [EagerStep, GraphStep])
@pytest.mark.parametrize("second", [EagerStep, GraphStep])
def test_one_kind_of_step_goes_on_where_another_stopped(uninterrupted, tiny_batches, first, second):
    kind, before, losses, after = uninterrupted
    found_losses, found_after = interrupted(first, second, kind, before, tiny_batches, at=3)
    np.testing.assert_allclose(found_losses, losses, rtol=1e-5)
    assert_trained_alike(found_after, after, before, tolerance=1e-4)


@pytest.mark.parametrize(("kind", "slots"), [("sgd", {"momentum"}), ("adamw", {"m", "v"})])
@pytest.mark.parametrize("step_class", [EagerStep, GraphStep])
def test_state_has_the_same_words_in_both_kinds(tiny_batches, step_class, kind, slots):
    model = TinyModel()
    step = new_step(step_class, kind, model)
    step(*tiny_batches[0])
    state = step.state()
    expected = {f"{name}-{slot}": tensor.shape for name, tensor in model.named_parameters() for slot in slots}
    assert {name: array.shape for name, array in state.items()} == {"step": (), **expected}


def test_step_on_the_cpu_is_made_of_single_operations():
    model = TinyModel()
    optimizer = make_optimizer("sgd", model, 1e-3, 0.9, 0.0)
    assert type(make_step(model, optimizer, short_schedule("sgd"), "cpu")) is EagerStep
