"""What a training step asks of a GPU: work, transfers and types, as the stand-in's log has them."""

import re

import pytest
from gpu_stand_in import done_on_gpus, of, types_of_convolutions
from marked_steps import BATCH, KINDS, STEPS
from places import REPOSITORY

IMAGES = BATCH * 3 * 300 * 300
# Images, offsets, labels, and the number to divide the losses by.
INPUTS = IMAGES + BATCH * (8732 * 4 * 4 + 8732 * 8 + 4)
# Of one step: kernels, calls of cuDNN, bytes to the GPU besides the inputs, bytes to the host, waits of the host.
# A compiled step sends its learning rates, and gets the number of values that are not finite, without a wait.
COSTS = {
    "float32": (649, 104, 12, 8, 0),
    "amp": (533, 104, 12, 8, 0),
    "amp adamw in two passes": (952, 208, 20, 8, 0),
    "eager": (603, 104, 4 - BATCH * 4, 12, 2),
}
# What half precision may be used for besides cuDNN: to cast (and scale), to add (biases and
# gradients), ReLU (3, 33) and pooling.
# The third type of AdamW's kernel is of a copy of the weights that it does not make.
HALF = re.compile(
    r"CastFunctor|FusedCastScaleGpu|AddFunctor|\(BinaryOp\)(0|33),"
    r"|\(UnaryOp\)3,|MaxPool2d|AdamUpdateGpu<float, float, __half>"
)


@pytest.fixture(scope="module")
def steps(tmp_path_factory):
    """The log of STEPS steps of each kind, all of them done."""
    script = REPOSITORY / "tests" / "gpu" / "marked_steps.py"
    _, log = done_on_gpus([script, *KINDS], folder=tmp_path_factory.mktemp("steps"), slow_us=1000)
    places = [place for place, event in enumerate(log) if event.kind == "mark"]
    return {kind: log[begin:end] for kind, begin, end in zip(KINDS, places[::2], places[1::2], strict=True)}


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_step_costs(steps, kind):
    log = steps[kind]
    to_device = of(log, "copy", "to-device")
    (thread,) = {event.thread for event in to_device if event.size == IMAGES}  # of eager operations
    to_host = of(log, "copy", "to-host")[:-2]  # the last two are the weights and metrics that are read at the end
    # What is copied to the host by an eager operation is waited for.
    waits = [event for event in (*of(log, "wait"), *to_host) if event.thread == thread]
    totals = (
        len(of(log, "kernel")),
        len(of(log, "cudnn")),
        sum(event.size for event in to_device) - STEPS * INPUTS,
        sum(event.size for event in to_host),
        len(waits),
    )
    assert tuple(total / STEPS for total in totals) == COSTS[kind]


def test_the_next_batch_travels_beside_the_step(steps):
    log = steps["float32"]
    sent = [place for place, event in enumerate(log) if (event.name, event.size) == ("to-device", IMAGES)]
    updates = [place for place, event in enumerate(log) if "MomentumUpdate" in event.name]
    of_a_step = len(updates) // STEPS
    assert len(sent) == STEPS
    # The third batch while the first two steps run, and not after the second.
    assert sent[1] < updates[0] and sent[2] < updates[of_a_step]


@pytest.mark.parametrize("kind", ["amp", "amp adamw in two passes"])
def test_half_precision_is_for_convolutions(steps, kind):
    log = steps[kind]
    assert types_of_convolutions(log) == {"half"}
    names = {event.name for event in of(log, "kernel")}
    assert [name for name in names if "half" in name and not HALF.search(name)] == []
    update = "AdamUpdateGpu<float, float," if "adamw" in kind else "MomentumUpdateGpu<float, float>"
    for part in (update, "SmoothL1Functor<float>", "SmoothL1GradFunctor<float>", "SoftmaxCrossEntropyResultGpu<float"):
        assert any(part in name for name in names), part


def test_without_it_there_is_none(steps):
    for kind in ("float32", "eager"):
        assert not [event for event in of(steps[kind], "kernel") if "half" in event.name]
        assert types_of_convolutions(steps[kind]) == {"float"}
