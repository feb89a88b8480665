"""A device beside the CPU: network, post-processing, loss, gradients, update, and a training that is resumed.

On the CPU itself, what is compiled (OneFlow's own kernels) is compared with single operations (the kernels here).
"""

import os
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING
from unittest.mock import patch

import numpy as np

from ssd300_vgg16.distributed.world import ALONE
from ssd300_vgg16.network.loss import multibox_loss
from ssd300_vgg16.network.postprocess import postprocess
from ssd300_vgg16.network.ssd import COCO_CLASSES, SSD
from ssd300_vgg16.network.variants import default_boxes
from ssd300_vgg16.network.vgg import convolutions_in_half
from ssd300_vgg16.self_test import made_up
from ssd300_vgg16.training.checkpoint import Checkpoint, Progress, load_checkpoint, save_checkpoint
from ssd300_vgg16.training.config import OptimizerConfig, Schedule
from ssd300_vgg16.training.step import EagerStep, GraphStep, make_step
from ssd300_vgg16.weights.locate import LAST
from ssd300_vgg16.weights.model import model_tensors
from ssd300_vgg16.weights.safetensors_file import ModelDescription

if TYPE_CHECKING:
    import oneflow as flow
else:
    from ssd300_vgg16.runtime import flow

Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Tolerance:
    """What two computations in a precision may differ by, and why.

    answers: of what a network or a loss gives, as a part of the largest value. parameters: of gradients and updates, as
    a part of each parameter's norm: a few of their values jump, where a ReLU or a maximum turns to its other side.
    """

    name: str
    reason: str
    answers: float
    parameters: float


# Products rounded to 10 bits on the CPU gave 1.4e-3 and 2.2e-2 (width 0.25); in float32 a single ReLU in conv1 that
# turns over is 5e-4 of a gradient.
FLOAT32 = Tolerance("float32", "sums of thousands of products in another order: 1e-6 is usual", 1e-4, 1e-2)
TF32 = Tolerance("TF32", "10 bits of mantissa in products, as on NVIDIA GPUs from Ampere on", 1e-2, 0.1)
HALF = Tolerance("half", "10 bits of mantissa in products and in what is kept of them", 1e-2, 0.1)
EXACT = Tolerance("no products", "a few float32 operations on the same numbers: 1e-7 is usual", 1e-5, 1e-5)
FIRST_WITH_TF32 = (8, 0)  # compute capability

FULL_WIDTH = 1.0
CPU_TRAINING_WIDTH = 0.375  # on the CPU OneFlow's own kernels are slow; those here for narrow networks are others
IMAGES, CLASSES = 2, 21
# Three background boxes count for each of these: with so many, all do, and none hangs on the last bits of its loss.
POSITIVE = 0.3
FEW = 0.01
SCHEDULE = Schedule("multistep", 1e-3, total_steps=100, warmup_steps=0)
# That it starts at in a training, 65536, is too large for these gradients, and the first updates would be left out.
LOSS_SCALE = 256.0
LOGITS_DEVIATION = 1.5
RANDOM = ("kaiming_uniform_", "kaiming_normal_", "xavier_uniform_", "normal_", "uniform_")


@dataclass(frozen=True)
class Check:
    """A check's largest difference, and the difference allowed; note: where the difference is, or what went wrong."""

    name: str
    difference: float
    allowed: float
    note: str = ""

    @property
    def ok(self) -> bool:
        """Whether it is not more. NaN never is."""
        return self.difference <= self.allowed

    def row(self) -> str:
        """A line of the report."""
        verdict = "ok" if self.ok else "FAILED"
        return f"{self.name:<18} {self.difference:>9.1e} {self.allowed:>9.1e}  {verdict:<6}  {self.note}".rstrip()


@dataclass(frozen=True)
class Way:
    """One way to compute: compiled or in single operations, and in which precision."""

    device: str
    eager: bool
    amp: bool
    tolerance: Tolerance

    @property
    def name(self) -> str:
        """As the report calls it."""
        kind = "in single operations" if self.eager else "compiled"
        return f"{kind}, {self.tolerance.name}"

    def run(self, call: Callable, *arrays: np.ndarray) -> list[np.ndarray]:
        """What a network or a function gives for arrays."""
        tensors = [flow.from_numpy(array).to(self.device) for array in arrays]
        with flow.no_grad():
            answers = call(*tensors) if self.eager else _Compiled(call, self.amp)(*tensors)
        return [answer.numpy() for answer in answers]

    def make_step(self, model: SSD) -> EagerStep | GraphStep:
        """The step of a training."""
        return make_step(model, OptimizerConfig("sgd"), SCHEDULE, ALONE, 1, self.amp, self.eager)


class _Compiled(flow.nn.Graph):
    def __init__(self, call: Callable, amp: bool):
        super().__init__()
        self.call = call
        self.config.enable_amp(amp)

    def build(self, *tensors):
        return self.call(*tensors)


REFERENCE = Way("cpu", eager=True, amp=False, tolerance=FLOAT32)


def ways_of(device: str) -> list[Way]:
    """The ways to compute on a device, without the reference itself."""
    tolerance = float32_of(device)
    if device == "cpu":
        return [Way(device, eager=False, amp=False, tolerance=tolerance)]
    return [
        Way(device, eager=True, amp=False, tolerance=tolerance),
        Way(device, eager=False, amp=False, tolerance=tolerance),
        Way(device, eager=False, amp=True, tolerance=HALF),
    ]


def float32_of(device: str) -> Tolerance:
    """What float32 is on a device: convolutions run in TF32 where a GPU can, unless NVIDIA_TF32_OVERRIDE=0."""
    if device == "cpu" or os.environ.get("NVIDIA_TF32_OVERRIDE") == "0":
        return FLOAT32
    return TF32 if flow.cuda.get_device_capability(device) >= FIRST_WITH_TF32 else FLOAT32


def difference(found: np.ndarray, expected: np.ndarray) -> float:
    """The largest, as a part of the largest value expected; infinite where the shapes differ."""
    if found.shape != expected.shape:
        return float("inf")
    if not expected.size:
        return 0.0
    largest = np.abs(expected.astype(np.float64)).max()
    return float(np.abs(found.astype(np.float64) - expected).max() / (largest or 1.0))


def worst_parameter(found: Arrays, expected: Arrays) -> tuple[float, str]:
    """The largest norm of a difference, as a part of the norm expected, and whose it is."""
    worst = (-1.0, "")
    for name, array in expected.items():
        norm = np.linalg.norm(array.astype(np.float64))
        part = float(np.linalg.norm(found[name].astype(np.float64) - array) / (norm or 1.0))
        if not part <= worst[0]:  # NaN too
            worst = part, name
    return worst


def postprocessing(device: str) -> Iterator[Check]:
    """What is detected in given answers of the network."""
    offsets, logits, _, _ = _given_answers()
    sizes = np.array([[480, 640]] * IMAGES)
    expected = postprocess(offsets, logits, sizes)
    found = postprocess(flow.from_numpy(offsets).to(device), flow.from_numpy(logits).to(device), sizes)
    for part in ("boxes", "scores", "labels"):
        worst = max(difference(one[part], other[part]) for one, other in zip(found, expected, strict=True))
        counts = " and ".join(str(len(one[part])) for one in found)
        yield Check(part, worst, EXACT.answers, f"{counts} detections")


def network(way: Way) -> Iterator[Check]:
    """Offsets and logits."""
    model = made_up.model(CLASSES, FULL_WIDTH, way.device)
    if way.eager and way.amp:  # as a Detector has it; what is compiled chooses by itself
        convolutions_in_half(model)
    found = way.run(model, made_up.images(IMAGES))
    for name, one, other in zip(("offsets", "class logits"), found, _expected_answers(), strict=True):
        yield Check(name, difference(one, other), way.tolerance.answers)


def beside_flowvision(device: str) -> Iterator[Check]:
    """Offsets and logits of the network on a device, and of flowvision's own on the CPU, of the same weights."""
    # Here, because flowvision's import takes seconds and only this needs it.
    from flowvision.models.detection import ssd300_vgg16

    model, image = made_up.model(COCO_CLASSES, 1.0, "cpu"), made_up.images(1)
    with ExitStack() as stack:
        stack.enter_context(flow.no_grad())
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")  # of what flowvision has deprecated itself
        # Random numbers for its 35 million weights take seconds, and these are about to be replaced.
        for name in RANDOM:
            stack.enter_context(patch.object(flow.nn.init, name, lambda weight, *_, **__: weight))
        theirs = ssd300_vgg16(pretrained=False, pretrained_backbone=False).eval()
        # By name: a parameter that only one of the two has would be refused.
        theirs.load_state_dict(model.state_dict())
        images, _ = theirs.transform([flow.from_numpy(image[0].astype(np.float32) / 255)])
        expected = theirs.head(list(theirs.backbone(images.tensors).values()))
    way = Way(device, eager=True, amp=False, tolerance=float32_of(device))
    offsets, logits = way.run(model.to(device), image)
    yield Check("offsets", difference(offsets, expected["bbox_regression"].numpy()), way.tolerance.answers)
    yield Check("class logits", difference(logits, expected["cls_logits"].numpy()), way.tolerance.answers)


def loss(way: Way) -> Iterator[Check]:
    """Both parts of the loss of given answers, few of them positive, with hard negatives."""
    arrays = _given_answers()
    found, expected = way.run(_losses, *arrays), REFERENCE.run(_losses, *arrays)
    for name, one, other in zip(("localization", "classification"), found, expected, strict=True):
        yield Check(name, difference(one, other), EXACT.answers)


def training(way: Way) -> Iterator[Check]:
    """Two steps, and the second of them in a training that goes on from a checkpoint of the first."""
    width = CPU_TRAINING_WIDTH if way.device == "cpu" else FULL_WIDTH
    with tempfile.TemporaryDirectory() as folder:
        found, expected = _Trained(way, width, Path(folder)), _expected_training(width)
        for number in (0, 1):
            losses = difference(found.losses[number], expected.losses[number])
            yield Check(f"loss of step {number + 1}", losses, way.tolerance.answers)
        # After a step from rest the momentum is the gradient, times the learning rate.
        yield _of_parameters("gradients", found.momentum, expected.momentum, way)
        yield _of_parameters("update", found.change(0, 1), expected.change(0, 1), way)
        yield _of_parameters("resumed step", found.resumed(), found.change(1, 2), way)


def _of_parameters(name: str, found: Arrays, expected: Arrays, way: Way) -> Check:
    part, parameter = worst_parameter(found, expected)
    return Check(name, part, way.tolerance.parameters, parameter)


class _Trained:
    """Two steps of a way, with a checkpoint after the first: losses and weights of each, and the first's momentum."""

    def __init__(self, way: Way, width: float, folder: Path):
        self.way, self.width, self.folder = way, width, folder
        self.batch = made_up.batch(IMAGES, CLASSES, len(default_boxes()), POSITIVE)
        model = made_up.model(CLASSES, width, way.device)
        self.weights = [_copies(model_tensors(model))]
        step = way.make_step(model)
        if way.amp:
            step.restore({"step": np.array(0), "loss_scale": np.array(LOSS_SCALE, dtype=np.float32)})
        self.losses = [self._take(step)]
        self.weights.append(_copies(model_tensors(model)))
        state = _copies(step.state())
        self.momentum = {name: array for name, array in state.items() if name.endswith("-momentum")}
        checkpoint = Checkpoint(self.weights[1], state, {}, Progress(step=1))
        save_checkpoint(folder, checkpoint, ModelDescription(CLASSES, width, ()), keep=1)
        self.losses.append(self._take(step))
        self.weights.append(_copies(model_tensors(model)))

    def change(self, first: int, last: int) -> Arrays:
        """Of the weights, from after so many steps to after so many."""
        return {name: self.weights[last][name] - array for name, array in self.weights[first].items()}

    def resumed(self) -> Arrays:
        """The change that the second step makes in a new training, from the checkpoint."""
        checkpoint = load_checkpoint(self.folder / LAST)
        model = made_up.model(CLASSES, self.width, "cpu")
        model.load_state_dict({name: flow.tensor(array) for name, array in checkpoint.model.items()})
        step = self.way.make_step(model.to(self.way.device))
        step.restore(checkpoint.optimizer)
        self._take(step)
        return {name: array - self.weights[1][name] for name, array in model_tensors(model).items()}

    def _take(self, step: EagerStep | GraphStep) -> np.ndarray:
        return step(self.batch, int(np.count_nonzero(self.batch.labels))).numpy()[:2].copy()


def _copies(arrays: Arrays) -> dict[str, np.ndarray]:
    return {name: array.copy() for name, array in arrays.items()}


def _losses(*tensors):
    return tuple(multibox_loss(*tensors).values())


@cache
def _expected_answers() -> list[np.ndarray]:
    return REFERENCE.run(made_up.model(CLASSES, FULL_WIDTH, "cpu"), made_up.images(IMAGES))


@cache
def _expected_training(width: float) -> _Trained:
    with tempfile.TemporaryDirectory() as folder:
        return _Trained(REFERENCE, width, Path(folder))


@cache
def _given_answers() -> tuple[np.ndarray, ...]:
    """Offsets, logits and their targets, as `multibox_loss` takes them."""
    batch = made_up.batch(IMAGES, CLASSES, len(default_boxes()), FEW)
    rng = np.random.default_rng(2)
    offsets = rng.standard_normal(batch.offsets.shape, dtype=np.float32)
    logits = rng.standard_normal((*batch.labels.shape, CLASSES), dtype=np.float32) * np.float32(LOGITS_DEVIATION)
    return offsets, logits, batch.offsets, batch.labels
