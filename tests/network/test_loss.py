"""The multibox loss: values, gradients, and the choice of hard negatives."""

import numpy as np
import pytest
from small_data import slowed

from ssd300_vgg16.data.matching import training_targets
from ssd300_vgg16.network.cpu import loss as cpu_loss
from ssd300_vgg16.network.loss import multibox_loss
from ssd300_vgg16.network.variants import default_boxes
from ssd300_vgg16.runtime import flow

REFERENCE_BATCHES = {
    "all": slice(0, 5),
    "one_object": slice(0, 1),
    "no_object": slice(1, 2),
    "crowded": slice(4, 5),
}


def run(offsets, logits, target_offsets, target_labels, normaliser=None, background_positives=0):
    """Both losses, and the gradients of their sum for offsets and logits, in numpy."""
    offsets, logits = (flow.from_numpy(array).requires_grad_() for array in (offsets, logits))
    targets = flow.from_numpy(target_offsets), flow.from_numpy(target_labels)
    normaliser = normaliser and flow.tensor(float(normaliser))
    losses = multibox_loss(offsets, logits, *targets, normaliser, background_positives)
    (losses["localization"] + losses["classification"]).backward()
    return {name: loss.item() for name, loss in losses.items()}, offsets.grad.numpy(), logits.grad.numpy()


@pytest.fixture(scope="module")
def reference_batch(golden):
    reference = golden("loss")
    rng = np.random.default_rng(int(reference["seed"]))
    logits = 2 * rng.standard_normal((5, 8732, 91), dtype=np.float32)
    offsets = rng.standard_normal((5, 8732, 4), dtype=np.float32)
    objects = ((reference[f"boxes{i}"], reference[f"labels{i}"]) for i in range(5))
    targets = [training_targets(boxes, labels, default_boxes()) for boxes, labels in objects]
    return offsets, logits, *(np.stack(column) for column in zip(*targets, strict=True))


@pytest.mark.parametrize(("name", "images"), REFERENCE_BATCHES.items())
def test_equal_to_the_reference(golden, reference_batch, name, images):
    losses, offsets_gradient, logits_gradient = run(*(column[images] for column in reference_batch))
    found = {
        **losses,
        "offsets_grad_norm": np.linalg.norm(offsets_gradient),
        "logits_grad_norm": np.linalg.norm(logits_gradient),
    }
    reference = golden("loss")
    assert found == {key: pytest.approx(float(reference[f"{name}_{key}"]), rel=1e-4, abs=0) for key in found}


def random_batch(seed, default_boxes, classes, positives):
    """Answers and targets with this many positive default boxes per image."""
    rng = np.random.default_rng(seed)
    batch = len(positives)
    labels = np.zeros((batch, default_boxes), dtype=np.int64)
    for row, count in zip(labels, positives, strict=True):
        row[rng.permutation(default_boxes)[:count]] = rng.integers(1, classes, count)
    target_offsets = rng.standard_normal((batch, default_boxes, 4), dtype=np.float32) * (labels > 0)[..., None]
    offsets = 2 * rng.standard_normal((batch, default_boxes, 4), dtype=np.float32)
    logits = 2 * rng.standard_normal((batch, default_boxes, classes), dtype=np.float32)
    return offsets, logits, target_offsets.astype(np.float32), labels


def by_hand(offsets, logits, target_offsets, target_labels, background_positives=0):
    """As `run`, image by image in double precision, with the gradients written out."""
    losses = {"localization": 0.0, "classification": 0.0}
    offsets_gradient, logits_gradient = np.zeros(offsets.shape), np.zeros(logits.shape)
    count = 0
    for image, labels in enumerate(target_labels):
        positives, negatives = np.flatnonzero(labels > 0), np.flatnonzero(labels == 0)
        powers = np.exp(logits[image].astype(np.float64))
        probabilities = powers / powers.sum(axis=1, keepdims=True)
        cross_entropy = -np.log(probabilities[np.arange(len(labels)), labels])
        counted = len(positives) or background_positives
        count += counted
        hardest = sorted(negatives, key=lambda row: -cross_entropy[row])[: 3 * counted]
        for row in (*positives, *hardest):
            losses["classification"] += cross_entropy[row]
            logits_gradient[image, row] = probabilities[row] - np.eye(logits.shape[2])[labels[row]]
        for row in positives:
            distance = offsets[image, row].astype(np.float64) - target_offsets[image, row]
            near = np.abs(distance) < 1
            losses["localization"] += np.where(near, distance**2 / 2, np.abs(distance) - 0.5).sum()
            offsets_gradient[image, row] = np.clip(distance, -1, 1)
    count = max(1, count)
    return {name: loss / count for name, loss in losses.items()}, offsets_gradient / count, logits_gradient / count


@pytest.mark.parametrize(
    ("default_boxes", "classes", "positives"),
    [
        pytest.param(50, 4, [3, 1, 7], id="some"),
        pytest.param(50, 2, [5], id="one class"),
        pytest.param(50, 91, [2, 0, 0, 4], id="images without objects"),
        pytest.param(50, 4, [0, 0], id="no object at all"),
        pytest.param(50, 4, [12, 13, 20, 1], id="more negatives asked than exist"),
        pytest.param(20, 4, [20, 19], id="nothing but positives"),
        pytest.param(1200, 5, [300], id="300 positives"),
        pytest.param(1, 3, [1, 0], id="one default box"),
    ],
)
@pytest.mark.parametrize(("seed", "background_positives"), [(0, 0), (1, 0), (0, 3)])
def test_equal_to_image_by_image(seed, background_positives, default_boxes, classes, positives):
    """The gradients agree too: none flows through the ranking of the negatives.

    OneFlow's log-softmax on the CPU is off by up to 5e-6 for each default box, hence the absolute tolerance.
    """
    batch = random_batch(seed, default_boxes, classes, positives)
    losses, *gradients = run(*batch, background_positives=background_positives)
    expected_losses, *expected_gradients = by_hand(*batch, background_positives)
    assert losses == pytest.approx(expected_losses, rel=1e-5, abs=1e-5)
    for gradient, expected in zip(gradients, expected_gradients, strict=True):
        np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=5e-6)


@pytest.mark.parametrize("patterns", [1, 2])
def test_of_negatives_that_cost_the_same_the_first_are_counted(patterns):
    """As at the start of a training: all logits are equal, or those of many default boxes."""
    offsets, logits, target_offsets, labels = random_batch(4, 50, 4, [4, 6, 20])
    logits[:] = np.array([[0, 0, 0, 0], [0, 1, 0, 0]], dtype=np.float32)[np.arange(50) * 7 % 5 % patterns]
    losses, _, gradient = run(offsets, logits, target_offsets, labels)
    expected_losses, _, expected = by_hand(offsets, logits, target_offsets, labels)
    assert losses == pytest.approx(expected_losses, rel=1e-5)
    np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=5e-6)
    assert (gradient != 0).any(axis=2).sum(axis=1).tolist() == [16, 24, 50]


def test_a_batch_without_objects_costs_nothing():
    losses, *gradients = run(*random_batch(2, 50, 4, [0, 0, 0]))
    assert losses == {"localization": 0.0, "classification": 0.0}
    for gradient in gradients:
        assert not gradient.any()  # NaN would count as something


def test_a_batch_of_backgrounds_costs_the_mean_of_its_hard_negatives():
    """However many images it has: what an image adds to the normaliser goes with what it adds to the loss."""
    offsets, logits, target_offsets, labels = random_batch(2, 50, 4, [0])
    one, _, gradient = run(offsets, logits, target_offsets, labels, background_positives=5)
    assert np.count_nonzero(gradient.any(axis=2)) == 15 and one["localization"] == 0
    four = run(*(np.repeat(array, 4, axis=0) for array in (offsets, logits, target_offsets, labels)), None, 5)
    assert four[0]["classification"] == pytest.approx(one["classification"], rel=1e-6)
    assert (
        one["classification"] < 3 * 10
    )  # three negatives for each in the normaliser; none of these costs more than 10


@pytest.mark.parametrize("size", [1e4, 1e30])
def test_wild_answers_leave_the_loss_finite(size):
    offsets, logits, target_offsets, labels = random_batch(6, 50, 4, [3, 20])
    losses, *gradients = run(offsets, np.float32(size) * logits, target_offsets, labels)
    assert np.isfinite(list(losses.values())).all()
    for gradient in gradients:
        assert np.isfinite(gradient).all()


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("positives", [0, 3])
def test_a_logit_that_is_not_finite_is_seen_though_its_box_does_not_count(value, positives):
    """Or a training would go on with a network that has failed."""
    offsets, logits, target_offsets, labels = random_batch(8, 50, 4, [positives])
    logits[0, np.flatnonzero(labels[0] == 0)[-1], 2] = value
    assert not np.isfinite(run(offsets, logits, target_offsets, labels)[0]["classification"])


class LossGraph(flow.nn.Graph):
    def __init__(self, background_positives):
        super().__init__()
        self.background_positives = background_positives

    def build(self, offsets, *others):
        losses = multibox_loss(slowed(offsets), *others, background_positives=self.background_positives)
        return losses["localization"], losses["classification"]


@pytest.mark.parametrize("background_positives", [0, 4])
def test_a_graph_computes_the_same(background_positives):
    graph = LossGraph(background_positives)
    for positives in ([3, 0, 7], [0, 0, 0], [50, 30, 1]):
        batch = random_batch(7, 50, 4, positives)
        found = [loss.item() for loss in graph(*map(flow.from_numpy, batch))]
        expected = run(*batch, background_positives=background_positives)[0]
        assert found == pytest.approx(list(expected.values()), rel=1e-6)


@pytest.mark.parametrize(("background_positives", "normaliser"), [(0, 38), (6, 44)])
def test_parts_of_a_batch_divided_alike_make_the_whole(background_positives, normaliser):
    batch = random_batch(seed=5, default_boxes=200, classes=4, positives=[7, 0, 1, 30])
    expected, *expected_gradients = run(*batch, background_positives=background_positives)
    both = slice(0, 1), slice(1, 4)
    parts = [run(*(column[rows] for column in batch), normaliser, background_positives) for rows in both]
    for name, value in expected.items():
        assert sum(losses[name] for losses, *_ in parts) == pytest.approx(value, rel=1e-5)
    for gradients, whole in zip(zip(*(found for _, *found in parts), strict=True), expected_gradients, strict=True):
        np.testing.assert_allclose(np.concatenate(gradients), whole, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("label", [-1, 4])
def test_a_label_that_no_logit_is_of_is_refused(label):
    offsets, logits, target_offsets, labels = random_batch(0, 50, 4, [3])
    labels[0, 7] = label
    with pytest.raises(ValueError, match=r"labels from .* and 4 classes"):
        cpu_loss.multibox_loss(offsets, logits, target_offsets, labels)


def test_arrays_of_other_boxes_are_refused():
    offsets, logits, target_offsets, labels = random_batch(0, 50, 4, [3])
    for arrays in (
        (offsets[:, :40], logits, target_offsets, labels),
        (offsets, logits[:, :40], target_offsets, labels),
        (offsets, logits, target_offsets[:, :40], labels),
        (offsets, logits, target_offsets, labels[:, :40]),
    ):
        with pytest.raises(ValueError, match="other boxes"):
            cpu_loss.multibox_loss(*arrays)
