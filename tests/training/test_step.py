"""Training steps: op by op or compiled, in one pass or several, they train alike; a bad batch changes nothing."""

import os
from dataclasses import replace

import numpy as np
import pytest
from small_data import slowed

from ssd300_vgg16.data.loader import TrainingBatch
from ssd300_vgg16.data.matching import training_targets
from ssd300_vgg16.distributed.world import ALONE
from ssd300_vgg16.network.ssd import SSD300
from ssd300_vgg16.network.variants import default_boxes
from ssd300_vgg16.runtime import flow
from ssd300_vgg16.training.config import OptimizerConfig, Schedule
from ssd300_vgg16.training.optimizer import freeze_backbone
from ssd300_vgg16.training.step import STEP_METRICS, EagerStep, GraphStep, NotFinite, counted_positives, make_step
from ssd300_vgg16.weights.model import arrays_of

STEPS = 6
# Warm-up in steps 0 and 1, a tenth from step 4 on.
LEARNING_RATES = {"sgd": 1e-6, "adamw": 1e-4}
CLASSES = 3
SLOTS = {"sgd": {"momentum"}, "adamw": {"m", "v"}}


def short_schedule(kind):
    return Schedule("multistep", LEARNING_RATES[kind], total_steps=STEPS, warmup_steps=2, milestones=(4,))


def constant(rate):
    return Schedule("multistep", rate, total_steps=100, warmup_steps=0)


def new_step(step_class, kind, model, schedule=None, config=None, **options):
    config = OptimizerConfig(kind, **(config or {}))
    return step_class(model, config, schedule or short_schedule(kind), ALONE, **options)


def take(step, batch):
    return step(batch, counted_positives(batch.labels, step.background_positives)).numpy()


def copy_weights(weights, model):
    model.load_state_dict({name: flow.tensor(array) for name, array in weights.items()})
    return model


def weights_of(model):
    return {name: array.copy() for name, array in arrays_of(model.state_dict()).items()}


def state_of(step):
    return {name: array.copy() for name, array in step.state().items()}


def norm_of(arrays):
    return np.sqrt(sum(np.square(array, dtype=np.float64).sum() for array in arrays))


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)


def assert_trained_alike(found, expected, before, tolerance):
    """Weights differ from each other by no more than this part of what training has changed, and their rounding."""
    assert found.keys() == expected.keys() == before.keys()
    for name, weight in expected.items():
        change = np.linalg.norm(weight - before[name])
        assert np.linalg.norm(found[name] - weight) <= tolerance * change + 1e-7 * np.linalg.norm(weight), name


def assert_read_alike(found, expected):
    """Losses, and the gradient's norm if it is among the found ones."""
    np.testing.assert_allclose(found[:, :2], expected[:, :2], rtol=1e-3)
    np.testing.assert_allclose(found[:, 2:], expected[:, 2 : found.shape[1]], rtol=2e-2)


class TinyModel(flow.nn.Module):
    """To a training step the same as SSD300, but ready at once: eight numbers in, ten default boxes out."""

    def __init__(self):
        super().__init__()
        self.hidden = flow.nn.Linear(8, 16)
        self.answers = flow.nn.Linear(16, 10 * (4 + CLASSES))

    def forward(self, images):
        answers = self.answers(flow.tanh(self.hidden(slowed(images)))).reshape(-1, 10, 4 + CLASSES)
        return answers[:, :, :4], answers[:, :, 4:]


@pytest.fixture(scope="module")
def tiny_batches():
    rng = np.random.default_rng(1)
    batches = []
    for _ in range(STEPS):
        labels = rng.integers(0, CLASSES, (4, 10)) * (rng.random((4, 10)) < 0.3)
        images = rng.standard_normal((4, 8), dtype=np.float32)
        batches.append(TrainingBatch(images, rng.standard_normal((4, 10, 4), dtype=np.float32), labels, [], []))
    return batches


@pytest.fixture(scope="module")
def tiny_weights():
    flow.manual_seed(2)
    return weights_of(TinyModel())


@pytest.fixture(scope="module")
def ssd_batch():
    """Two images, with two objects and with one."""
    objects = np.array([[20, 20, 200, 200], [100, 150, 160, 190]], dtype=np.float32)
    labels = np.array([1, 2])
    targets = [training_targets(objects[: 2 - i % 2], labels[: 2 - i % 2], default_boxes()) for i in range(2)]
    offsets, labels = (np.stack(column) for column in zip(*targets, strict=True))
    images = np.random.default_rng(0).integers(0, 256, (2, 3, 300, 300), dtype=np.uint8)
    return TrainingBatch(images, offsets, labels, [], [])


@pytest.fixture(scope="module")
def ssd_weights():
    flow.manual_seed(0)
    return weights_of(SSD300(CLASSES, width=0.03))


@pytest.fixture(scope="module")
def train_ssd(ssd_batch, ssd_weights):
    """Train SSD300 on the same batch again and again: metrics of each step, and the weights after them."""

    def train(step_class, kind, trainable_stages=5, config=None, **options):
        model = copy_weights(ssd_weights, SSD300(CLASSES, width=0.03))
        freeze_backbone(model, trainable_stages)
        step = new_step(step_class, kind, model, config=config, **options)
        return np.array([take(step, ssd_batch) for _ in range(STEPS)]), weights_of(model)

    return train


# Which of two nearly equal cells a pooling takes can differ, and with it the gradients below. AdamW divides every
# gradient by its own size, so where one is next to nothing its rounding becomes a whole step.
@pytest.mark.parametrize(
    ("kind", "settings", "tolerance"),
    [
        # All layers' gradients are the same below, and the updates of SGD where biases are apart.
        pytest.param("sgd", {}, 5e-2, marks=pytest.mark.long),
        ("adamw", {}, 2e-1),
        (
            "sgd",
            {"trainable_stages": 3, "config": {"bias_lr_factor": 2.0, "bias_weight_decay": 0.0}},
            5e-2,
        ),
    ],
    ids=["sgd", "adamw", "frozen-and-biases-apart"],
)
def test_a_graph_and_single_operations_train_alike(train_ssd, ssd_weights, kind, settings, tolerance):
    trained = (train_ssd(step_class, kind, **settings) for step_class in (EagerStep, GraphStep))
    metrics, after = zip(*trained, strict=True)
    assert_read_alike(metrics[1], metrics[0])
    assert_trained_alike(after[1], after[0], ssd_weights, tolerance)


@pytest.mark.parametrize(
    ("step_class", "passes"), [(EagerStep, 2), (EagerStep, 3), (EagerStep, 9), (GraphStep, 2), (GraphStep, 4)]
)
@pytest.mark.parametrize(
    ("config", "backgrounds"),
    [({}, 0), ({"clip_norm": 0.3}, 0), ({}, 2)],
    ids=["plain", "clipped", "backgrounds"],
)
def test_several_passes_are_one_to_rounding(tiny_batches, tiny_weights, step_class, passes, config, backgrounds):
    """Without pooling, that is, and with positives that are not spread evenly over the passes."""
    after, batches = [], [*tiny_batches]
    for number, images in enumerate([[0], [1, 2], [0, 1, 2, 3]] if backgrounds else []):
        batches[number] = replace(batches[number], labels=batches[number].labels.copy())
        batches[number].labels[images] = 0
    for kind, options in ((EagerStep, {}), (step_class, {"passes": passes})):
        model = copy_weights(tiny_weights, TinyModel())
        step = new_step(kind, "sgd", model, constant(0.1), config, background_positives=backgrounds, **options)
        after.append(([take(step, batch)[:2] for batch in batches], weights_of(model)))
    assert after[0][0][2][1] > 0, "backgrounds alone cost something too"
    np.testing.assert_allclose(after[1][0], after[0][0], rtol=1e-5)
    assert_trained_alike(after[1][1], after[0][1], tiny_weights, tolerance=1e-5)
    assert "ENABLE_LOGICAL_CHAIN" not in os.environ, "a process started from here would count other kernels"


@pytest.mark.parametrize("step_class", [EagerStep, GraphStep])
@pytest.mark.parametrize("clip_norm", [None, 0.5, 1e6])
def test_the_gradient_is_measured_and_clipped(tiny_batches, tiny_weights, step_class, clip_norm):
    """Without momentum, a step goes down the gradient by the learning rate."""
    batch, rate = tiny_batches[0], 0.5
    model = copy_weights(tiny_weights, TinyModel())
    take(new_step(EagerStep, "sgd", model, constant(rate)), batch)
    gradient = norm_of(parameter.grad.numpy() for parameter in model.parameters())
    model = copy_weights(tiny_weights, TinyModel())
    config = {"momentum": 0.0, "weight_decay": 0.0, "clip_norm": clip_norm}
    metrics = take(new_step(step_class, "sgd", model, constant(rate), config), batch)
    change = norm_of(after - tiny_weights[name] for name, after in weights_of(model).items())
    assert gradient > 1, "a case in which 0.5 is short"
    assert metrics[STEP_METRICS.index("gradient_norm")] == pytest.approx(gradient, rel=1e-5)
    assert change == pytest.approx(rate * min(gradient, clip_norm or np.inf), rel=1e-4)


@pytest.fixture(scope="module", params=[np.nan, np.inf])
def bad_batch(request, tiny_batches):
    images = tiny_batches[1].images.copy()
    images[2, 3] = request.param
    return TrainingBatch(images, tiny_batches[1].offsets, tiny_batches[1].labels, [], [])


@pytest.mark.parametrize("kind", SLOTS)
def test_an_eager_step_that_is_not_finite_never_was(tiny_batches, tiny_weights, bad_batch, kind):
    models = [copy_weights(tiny_weights, TinyModel()) for _ in range(2)]
    step, other = (new_step(EagerStep, kind, model, constant(0.1), {"clip_norm": 0.3}) for model in models)
    for one in (step, other):
        take(one, tiny_batches[0])
    with pytest.raises(NotFinite) as caught:
        take(step, bad_batch)
    assert caught.value.step == 1 and not np.isfinite(caught.value.metrics).all()
    assert_same(step.state(), other.state())
    assert_same(weights_of(models[0]), weights_of(models[1]))
    np.testing.assert_array_equal(take(step, tiny_batches[2]), take(other, tiny_batches[2]))
    assert_same(weights_of(models[0]), weights_of(models[1]))


@pytest.mark.parametrize("kind", SLOTS)
def test_a_compiled_step_leaves_out_what_is_not_finite(tiny_batches, tiny_weights, bad_batch, kind):
    model = copy_weights(tiny_weights, TinyModel())
    step = new_step(GraphStep, kind, model, constant(0.1))
    take(step, tiny_batches[0])
    weights, state = weights_of(model), state_of(step)
    assert not np.isfinite(take(step, bad_batch)).all()
    assert_same(weights_of(model), weights)
    slots = {f"{name}-{slot}" for name in weights for slot in SLOTS[kind]}
    assert_same(*({name: found[name] for name in slots} for found in (step.state(), state)))
    metrics = take(step, tiny_batches[2])
    assert np.isfinite(metrics).all()
    assert all(np.isfinite(array).all() for array in weights_of(model).values())
    assert all((array != weights[name]).any() for name, array in weights_of(model).items())


@pytest.fixture(scope="module", params=["sgd", "adamw"])
def uninterrupted(request, tiny_batches):
    """Optimizer, first weights, and the metrics and weights of a run without a break."""
    before = weights_of(TinyModel())
    model = copy_weights(before, TinyModel())
    step = new_step(EagerStep, request.param, model)
    metrics = np.array([take(step, batch) for batch in tiny_batches])
    return request.param, before, metrics, weights_of(model)


def interrupted(first_class, second_class, kind, before, batches, at, first=None, second=None):
    """The metrics and weights of a run that is broken off and taken up again by another model and optimizer."""
    model = copy_weights(before, TinyModel())
    step = new_step(first_class, kind, model, **(first or {}))
    metrics = [take(step, batch) for batch in batches[:at]]
    weights, state = weights_of(model), state_of(step)
    assert state.get("step", 0) == at
    model = copy_weights(weights, TinyModel())
    step = new_step(second_class, kind, model, **(second or {}))
    step.restore(state)
    metrics += [take(step, batch) for batch in batches[at:]]
    assert step.state()["step"] == len(batches)
    return metrics, weights_of(model)


@pytest.mark.parametrize("at", [0, 1, 3, 5])
def test_restored_single_operations_go_on_exactly(uninterrupted, tiny_batches, at):
    kind, before, metrics, after = uninterrupted
    resumed_metrics, found_after = interrupted(EagerStep, EagerStep, kind, before, tiny_batches, at)
    np.testing.assert_array_equal(resumed_metrics, metrics)
    assert_same(found_after, after)


@pytest.mark.parametrize("first", [EagerStep, GraphStep])
@pytest.mark.parametrize("second", [EagerStep, GraphStep])
@pytest.mark.parametrize("at", [0, 3])
def test_one_kind_of_step_goes_on_where_another_stopped(uninterrupted, tiny_batches, first, second, at):
    kind, before, metrics, after = uninterrupted
    resumed_metrics, found_after = interrupted(first, second, kind, before, tiny_batches, at)
    np.testing.assert_allclose(resumed_metrics, metrics, rtol=1e-5)
    assert_trained_alike(found_after, after, before, tolerance=1e-4)


@pytest.mark.parametrize(("first", "second"), [(True, False), (False, True), (True, True)])
def test_half_precision_may_come_and_go(uninterrupted, tiny_batches, first, second):
    """Its gradients are scaled, which must not be seen after it."""
    kind, before, metrics, after = uninterrupted
    options = {"first": {"amp": first}, "second": {"amp": second}}
    resumed_metrics, found_after = interrupted(GraphStep, GraphStep, kind, before, tiny_batches, 3, **options)
    assert_read_alike(np.array(resumed_metrics[3:]), metrics[3:])
    assert_trained_alike(found_after, after, before, tolerance=1e-4)


@pytest.mark.parametrize("kind", SLOTS)
@pytest.mark.parametrize(
    ("step_class", "options", "own"),
    [
        (EagerStep, {}, {"step"}),
        (GraphStep, {}, {"step"}),
        (GraphStep, {"amp": True}, {"step", "loss_scale", "good_steps"}),
    ],
    ids=["eager", "graph", "amp"],
)
def test_state_has_the_same_words_in_all_kinds(tiny_batches, kind, step_class, options, own):
    model = TinyModel()
    step = new_step(step_class, kind, model, **options)
    take(step, tiny_batches[0])
    slots = {f"{name}-{slot}": tensor.shape for name, tensor in model.named_parameters() for slot in SLOTS[kind]}
    assert {name: array.shape for name, array in step.state().items()} == dict.fromkeys(own, ()) | slots


def test_a_loss_scale_is_kept_by_half_precision_alone(tiny_batches, tiny_weights):
    model = copy_weights(tiny_weights, TinyModel())
    step = new_step(GraphStep, "sgd", model, amp=True)
    step.restore({"step": np.array(1), "loss_scale": np.array(1024.0, dtype=np.float32)})
    take(step, tiny_batches[0])
    assert step.state()["loss_scale"] == 1024
    plain = new_step(GraphStep, "sgd", TinyModel())
    take(plain, tiny_batches[0])
    step = new_step(GraphStep, "sgd", TinyModel(), amp=True)
    step.restore(plain.state())
    take(step, tiny_batches[0])
    assert step.state()["loss_scale"] == 65536


@pytest.mark.parametrize(("eager", "kind"), [(True, EagerStep), (False, GraphStep)])
def test_the_kind_of_step_is_the_one_asked_for(eager, kind):
    step = make_step(TinyModel(), OptimizerConfig("sgd"), constant(1e-3), ALONE, passes=2, amp=False, eager=eager)
    assert type(step) is kind
    assert step.passes == 2
    assert step.metric_names == (STEP_METRICS if eager else STEP_METRICS[:2])
