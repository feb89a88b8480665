"""One training step: network, loss, backward and update, with no transfer of results to the host inside.

On a GPU it is a static graph. On the CPU it runs op by op, because that is where `cpu_convolution` can serve.
"""

from collections.abc import Mapping

import numpy as np

from ssd300_vgg16.data.loader import TrainingBatch
from ssd300_vgg16.network.loss import multibox_loss
from ssd300_vgg16.network.ssd import SSD300
from ssd300_vgg16.runtime import flow
from ssd300_vgg16.training.schedule import Schedule, oneflow_scheduler

LOSS_PARTS = ("localization", "classification")
STEP = "step"
# What a graph calls an optimizer's tensors, and what the optimizer itself calls them.
GRAPH_STEP = "System-Train-TrainStep"
SLOTS = {"momentum": "momentum_buf", "m": "exp_avg", "v": "exp_avg_sq"}


def make_optimizer(kind: str, model: SSD300, lr: float, momentum: float, weight_decay: float):
    """OneFlow's "sgd" (momentum, L2 in the gradient) or "adamw" (decoupled weight decay) over all parameters."""
    parameters = list(model.parameters())
    if kind == "sgd":
        return flow.optim.SGD(parameters, lr=lr, momentum=momentum, weight_decay=weight_decay)
    return flow.optim.AdamW(parameters, lr=lr, weight_decay=weight_decay)


def _backward(model: SSD300, images, target_offsets, target_labels):
    """Gradients of all parameters; returns the parts of the loss, in the order of LOSS_PARTS, as one tensor."""
    offsets, logits = model(images)
    losses = multibox_loss(offsets, logits, target_offsets, target_labels)
    (losses["localization"] + losses["classification"]).backward()
    return flow.stack([losses[part] for part in LOSS_PARTS])


class GraphStep(flow.nn.Graph):
    """Calling it with a batch trains the model one step and returns the parts of the loss, still on the device.

    The first call compiles. Every batch has to have the shapes of the first. `state` and `restore` speak of the
    optimizer and the schedule in the same words as EagerStep's.
    """

    def __init__(self, model: SSD300, optimizer, schedule: Schedule):
        super().__init__()
        self.model = model
        self.add_optimizer(optimizer, lr_sch=oneflow_scheduler(schedule, optimizer))

    def build(self, images, target_offsets, target_labels):
        return _backward(self.model, images, target_offsets, target_labels)

    def state(self) -> dict[str, np.ndarray]:
        """ "step" and "PARAMETER-SLOT" to arrays."""
        found = {}
        for name, tensor in self.state_dict().items():
            if name == GRAPH_STEP:
                found[STEP] = tensor.numpy().reshape(())
            elif isinstance(tensor, flow.Tensor):
                found[name.removeprefix("model.")] = tensor.numpy()
        return found

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """Go on from a `state`; only before the first call."""
        state = {f"model.{name}": array for name, array in state.items() if name != STEP} | (
            {GRAPH_STEP: state[STEP].reshape(1)} if STEP in state else {}
        )
        self.load_state_dict({name: flow.tensor(np.ascontiguousarray(array)) for name, array in state.items()})


class EagerStep:
    """As GraphStep, op by op."""

    def __init__(self, model: SSD300, optimizer, schedule: Schedule):
        self.model = model
        self.optimizer = optimizer
        self.schedule = schedule
        self.steps = 0

    def __call__(self, images, target_offsets, target_labels):
        for group in self.optimizer.param_groups:
            group["lr"] = self.schedule.learning_rate(self.steps)
        self.optimizer.zero_grad()
        losses = _backward(self.model, images, target_offsets, target_labels)
        self.optimizer.step()
        self.steps += 1
        return losses.detach()

    def state(self) -> dict[str, np.ndarray]:
        """ "step" and "PARAMETER-SLOT" to arrays."""
        found = {STEP: np.array(self.steps)}
        for name, parameter in self.model.named_parameters():
            for slot, key in SLOTS.items():
                if key in self.optimizer._state[parameter]:
                    found[f"{name}-{slot}"] = self.optimizer._state[parameter][key].numpy()
        return found

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """Go on from a `state`."""
        parameters = dict(self.model.named_parameters())
        for name, array in state.items():
            if name != STEP:
                parameter, _, slot = name.rpartition("-")
                tensor = flow.tensor(np.ascontiguousarray(array)).to(parameters[parameter].device)
                self.optimizer._state[parameters[parameter]][SLOTS[slot]] = tensor
        self.steps = self.optimizer._state["step"] = int(state.get(STEP, 0))


def make_step(model: SSD300, optimizer, schedule: Schedule, device: str) -> GraphStep | EagerStep:
    """The kind of step that is faster on the device the model is on."""
    kind = EagerStep if device == "cpu" else GraphStep
    return kind(model, optimizer, schedule)


def to_device(batch: TrainingBatch, device: str) -> tuple:
    """A batch's three arrays as tensors on the device, in the order the step takes them."""
    return tuple(flow.from_numpy(array).to(device) for array in (batch.images, batch.offsets, batch.labels))
