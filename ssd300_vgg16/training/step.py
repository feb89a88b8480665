"""One training step: network, loss, backward and update, on this process's part of a batch.

Any number of processes, and of passes that a batch is split into, gives the training of one process on the whole
batch: losses are divided by the positives of the whole batch, and gradients are summed.
"""

import io
import os
from collections.abc import Iterator, Mapping
from contextlib import redirect_stderr, redirect_stdout
from typing import TYPE_CHECKING

import numpy as np

from ssd300_vgg16.data.loader import TrainingBatch
from ssd300_vgg16.distributed.world import World
from ssd300_vgg16.network.loss import multibox_loss
from ssd300_vgg16.network.ssd import SSD
from ssd300_vgg16.training.config import OptimizerConfig, Schedule
from ssd300_vgg16.training.optimizer import make_optimizer, oneflow_scheduler

if TYPE_CHECKING:
    import oneflow as flow
else:
    from ssd300_vgg16.runtime import flow

# What each step measures, in this order.
STEP_METRICS = ("localization", "classification", "gradient_norm")
STEP = "step"
# What a graph calls its own state and an optimizer's tensors, and what we and the optimizer itself call them.
GRAPH_STATE = {
    STEP: "System-Train-TrainStep",
    "loss_scale": "System-Train-DynamicLossScale-{graph}-LossScale",
    "good_steps": "System-Train-DynamicLossScale-{graph}-GoodStepCounter",
}
GRAPHS_OWN = "System-"
SLOTS = {"momentum": "momentum_buf", "m": "exp_avg", "v": "exp_avg_sq"}
SET_FOR_PASSES = "ENABLE_LOGICAL_CHAIN"  # by OneFlow, in the environment, for a graph that takes its batch in passes
# Graphs of several processes: OneFlow frees one only when all processes do so, and waits for that for ever.
_kept: list["_Graph"] = []
# A scale of 1 that never grows: the graph's way to leave out an update whose gradients are not finite.
UNSCALED = {"init_scale": 1.0, "growth_factor": 2.0, "backoff_factor": 0.5, "growth_interval": 1 << 30}
# As torch.cuda.amp.GradScaler has it.
HALF_SCALED = {"init_scale": 65536.0, "growth_factor": 2.0, "backoff_factor": 0.5, "growth_interval": 2000}


class NotFinite(Exception):
    """A step whose losses or gradients are not finite; `metrics` float32 [R] are in the order of STEP_METRICS."""

    def __init__(self, metrics: np.ndarray, step: int):
        super().__init__(metrics, step)
        self.metrics = metrics
        self.step = step

    def __str__(self) -> str:
        # Without the gradient's norm where that is not read.
        values = zip(STEP_METRICS, self.metrics.tolist(), strict=False)
        return f"step {self.step + 1} is not finite: {', '.join(f'{name} is {value}' for name, value in values)}"


def counted_positives(labels: np.ndarray, background_positives: int) -> int:
    """What the losses of these images, labels int64 [B, D], are divided by: `multibox_loss` says of what."""
    of_image = np.count_nonzero(labels, axis=1)
    return int(np.where(of_image > 0, of_image, background_positives).sum())


def _parts(batch: TrainingBatch) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return batch.images, batch.offsets, batch.labels


def _norm(tensors: list[flow.Tensor]) -> flow.Tensor:
    """The Euclidean norm of all numbers in tensors of one device, as a scalar tensor there."""
    if tensors[0].is_cuda:
        return flow.sqrt(flow.stack([flow._C.square(tensor).sum() for tensor in tensors]).sum())
    # On the CPU a sum takes ten times as long as a product (which, on a GPU, may be one of fewer digits).
    return flow.sqrt(flow.stack([flow.dot(tensor.reshape(-1), tensor.reshape(-1)) for tensor in tensors]).sum())


class EagerStep:
    """The step op by op. On the CPU it is the faster one, because `network.cpu` can serve in it.

    Calling it with a part of a batch, and the `counted_positives` of the whole batch, trains the model one step and
    returns the STEP_METRICS, of the whole batch, as a tensor. Raises NotFinite before it has changed anything.
    `following` is of use to a compiled step only.
    """

    def __init__(
        self,
        model: SSD,
        config: OptimizerConfig,
        schedule: Schedule,
        world: World,
        passes: int = 1,
        background_positives: int = 0,
    ):
        self.model = model
        self.optimizer = make_optimizer(config, model, schedule.base_lr)
        self.config = config
        self.schedule = schedule
        self.world = world
        self.passes = passes
        self.background_positives = background_positives
        self.metric_names = STEP_METRICS
        self.steps = 0
        self._trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]

    def __call__(self, batch: TrainingBatch, positives: int, following: TrainingBatch | None = None) -> flow.Tensor:
        self.optimizer.zero_grad(set_to_none=True)
        losses = self._backward(batch, positives)
        gradients = [parameter.grad for parameter in self._trainable]
        losses = self._sum_over_processes(losses, gradients)
        norm = _norm(gradients)
        metrics = flow.cat([losses, norm.reshape(1)])
        if not np.isfinite(metrics.numpy()).all():
            raise NotFinite(metrics.numpy(), self.steps)
        if self.config.clip_norm is not None:
            # The small term keeps gradients of zero from being divided by zero.
            factor = self.config.clip_norm / (norm + 1e-6)
            for gradient in gradients:
                gradient.mul_(factor.clamp(max=1.0))
        self._update()
        return metrics

    def _backward(self, batch: TrainingBatch, positives: int) -> flow.Tensor:
        """Gradients of all parameters, and the losses [2], of this process's images alone."""
        device = self._trainable[0].device
        normaliser = flow.tensor(float(max(1, positives)), dtype=flow.float32, device=device)
        total = flow.zeros(2, device=device)
        for images, target_offsets, target_labels in _passes(batch, self.passes):
            targets = flow.from_numpy(target_offsets).to(device), flow.from_numpy(target_labels).to(device)
            offsets, logits = self.model(flow.from_numpy(images).to(device))
            losses = multibox_loss(offsets, logits, *targets, normaliser, self.background_positives)
            (losses["localization"] + losses["classification"]).backward()
            total += flow.stack([losses["localization"], losses["classification"]]).detach()
        return total

    def _sum_over_processes(self, losses: flow.Tensor, gradients: list[flow.Tensor]) -> flow.Tensor:
        if self.world.world_size == 1:
            return losses
        # One all_reduce of everything: many small ones would cost a round trip each.
        flat = flow.cat([losses, *(gradient.reshape(-1) for gradient in gradients)])
        flow.comm.all_reduce(flat)
        start = len(losses)
        for gradient in gradients:
            gradient.copy_(flat[start : start + gradient.numel()].reshape(gradient.shape))
            start += gradient.numel()
        return flat[: len(losses)]

    def _update(self) -> None:
        rate = self.schedule.learning_rate(self.steps)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["lr_scale"]  # a graph's optimizer does this by itself
        self.optimizer.step()
        self.steps += 1

    def state(self) -> dict[str, np.ndarray]:
        """ "step" and "PARAMETER-SLOT" to arrays."""
        state = {STEP: np.array(self.steps)}
        for name, parameter in self.model.named_parameters():
            for slot, key in SLOTS.items():
                if key in _slots(self.optimizer).get(parameter, {}):
                    state[f"{name}-{slot}"] = _slots(self.optimizer)[parameter][key].numpy()
        return state

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """Go on from a `state`."""
        parameters = dict(self.model.named_parameters())
        for name, array in state.items():
            parameter, _, slot = name.rpartition("-")
            if slot in SLOTS:
                tensor = flow.tensor(np.ascontiguousarray(array)).to(parameters[parameter].device)
                _slots(self.optimizer)[parameters[parameter]][SLOTS[slot]] = tensor
        self.steps = _slots(self.optimizer)["step"] = int(state.get(STEP, 0))


def _slots(optimizer: flow.optim.Optimizer) -> dict:
    """What an optimizer keeps for each parameter. OneFlow 0.9 hides it under another name than 1.0."""
    return optimizer.state if hasattr(optimizer, "state") else optimizer._state


def _passes(batch: TrainingBatch, passes: int) -> Iterator[tuple[np.ndarray, ...]]:
    """The batch's arrays in so many parts, as even as can be, none of them empty."""
    pieces = [np.array_split(array, min(passes, len(array))) for array in _parts(batch)]
    return zip(*pieces, strict=True)


class _Graph(flow.nn.Graph):
    """Network, loss, backward and update, compiled; over several processes on global tensors."""

    def __init__(
        self,
        model: SSD,
        optimizer: flow.optim.Optimizer,
        schedule: Schedule,
        passes: int,
        amp: bool,
        background_positives: int,
    ) -> None:
        super().__init__()
        self.model = model
        self.passes = passes
        self.background_positives = background_positives
        # With amp the gradients are scaled here, by what is not to be had; with passes they come at other times.
        self.reads_norm = passes == 1 and not amp
        self.trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.add_optimizer(optimizer, lr_sch=oneflow_scheduler(schedule, optimizer))
        self.set_grad_scaler(flow.amp.GradScaler(**(HALF_SCALED if amp else UNSCALED)))
        if amp:
            self.config.enable_amp(True)
        if next(model.parameters()).is_cuda:
            self.fuse()

    def fuse(self) -> None:
        """Compile what scales and decays gradients into the update, for fewer kernels and less memory."""
        # Steps on the CPU stay as they are, bit for bit; measured on the stand-in: docs/internals.md.
        self.config.allow_fuse_model_update_ops(True)
        self.config.allow_fuse_cast_scale(True)

    def __call__(self, *arrays: flow.Tensor) -> tuple[flow.Tensor, ...]:
        if self.is_compiled:
            return super().__call__(*arrays)
        if self.passes > 1:
            self.config.set_gradient_accumulation_steps(self.passes)
        try:
            # What goes wrong in compiling is raised, and need not be printed too.
            with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
                return super().__call__(*arrays)
        finally:
            if self.passes > 1:  # or graphs of processes that are started from this one would be compiled otherwise
                os.environ.pop(SET_FOR_PASSES, None)

    def build(
        self,
        images: flow.Tensor,
        target_offsets: flow.Tensor,
        target_labels: flow.Tensor,
        normaliser: flow.Tensor,
    ) -> tuple[flow.Tensor, ...]:
        offsets, logits = self.model(images)
        targets = target_offsets, target_labels
        losses = multibox_loss(offsets, logits, *targets, normaliser.max(), self.background_positives)
        # OneFlow takes the mean of the passes' gradients; theirs is the sum.
        ((losses["localization"] + losses["classification"]) * float(self.passes)).backward()
        parts = flow.stack([losses["localization"], losses["classification"]])
        if not self.reads_norm:
            return (self._whole(parts),)
        squares = [flow._C.square(self._whole(parameter.grad)).sum() for parameter in self.trainable]
        return self._whole(parts), self._whole(flow.sqrt(flow.stack(squares).sum()))

    @staticmethod
    def _whole(tensor: flow.Tensor) -> flow.Tensor:
        return tensor.to_global(sbp=flow.sbp.broadcast) if tensor.is_global else tensor


class GraphStep:
    """As EagerStep, compiled at the first call, with no transfer to the host inside: the one for GPUs.

    An update whose gradients are not finite is left out, and the metrics say so; nothing is raised. Every batch has
    to have the shapes of the first. With amp, products run in half precision. The gradient norm is not read with amp,
    nor with several passes. What `refuse_compiled` refuses, it cannot do.

    `following`, the batch of the next call, is copied to the device beside this step.
    """

    def __init__(
        self,
        model: SSD,
        config: OptimizerConfig,
        schedule: Schedule,
        world: World,
        passes: int = 1,
        amp: bool = False,
        background_positives: int = 0,
    ):
        self.world = world
        self.passes = passes
        self.amp = amp
        self.background_positives = background_positives
        self.device = next(model.parameters()).device
        if world.world_size > 1:
            self.placement = flow.placement(self.device.type, ranks=list(range(world.world_size)))
            model.to_global(placement=self.placement, sbp=flow.sbp.broadcast)
        optimizer = make_optimizer(config, model, schedule.base_lr)
        self._graph = _Graph(model, optimizer, schedule, passes, amp, background_positives)
        if world.world_size > 1:
            _kept.append(self._graph)
        self.metric_names = STEP_METRICS if self._graph.reads_norm else STEP_METRICS[:2]
        self._following: list[flow.Tensor] = []

    def __call__(self, batch: TrainingBatch, positives: int, following: TrainingBatch | None = None) -> flow.Tensor:
        normaliser = np.full(len(batch.images), max(1, positives), dtype=np.float32)
        inputs = (self._following or self._on_device(*_parts(batch))) + self._on_device(normaliser)
        # Before the graph is set off: what is copied later waits for its outputs. After all that the graph waits for.
        self._following = self._on_device(*_parts(following)) if following else []
        outputs = self._graph(*map(self._placed, inputs))
        losses, *norm = [tensor.to_local() if self.world.world_size > 1 else tensor for tensor in outputs]
        # The passes' losses come one after the other.
        return flow.cat([losses.reshape(-1, 2).sum(dim=0), *(tensor.reshape(1) for tensor in norm)])

    def _on_device(self, *arrays: np.ndarray) -> list[flow.Tensor]:
        return [flow.from_numpy(array).to(self.device) for array in arrays]

    def _placed(self, tensor: flow.Tensor) -> flow.Tensor:
        # All processes have to do this together, and one may have no batch to follow.
        return tensor.to_global(self.placement, flow.sbp.split(0)) if self.world.world_size > 1 else tensor

    def state(self) -> dict[str, np.ndarray]:
        """ "step", "PARAMETER-SLOT", and with amp the loss scale's, to arrays; for the first process alone to ask.

        OneFlow keeps the graph's own state there, and the other processes cannot read it.
        """
        state, names = {}, {graph: ours for ours, graph in self._state_names().items()}
        for name, tensor in self._graph.state_dict().items():
            if isinstance(tensor, flow.Tensor) and (name in names or not name.startswith(GRAPHS_OWN)):
                array = (tensor.to_local() if tensor.is_global else tensor).numpy()
                state[names.get(name, name.removeprefix("model."))] = array.reshape(()) if name in names else array
        return state

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """Go on from a `state`; only before the first call."""
        names = self._state_names()
        tensors = {}
        for name, array in state.items():
            if name in GRAPH_STATE and name not in names:
                continue
            array = array.reshape(1) if name in names else array
            tensor = flow.tensor(np.ascontiguousarray(array))
            if name not in names:  # the graph's own state is in main memory
                tensor = tensor.to(self.device)
            if self.world.world_size > 1:
                tensor = tensor.to_global(placement=self.placement, sbp=flow.sbp.broadcast)
            tensors[names.get(name, f"model.{name}")] = tensor
        self._graph.load_state_dict(tensors)

    def _state_names(self) -> dict[str, str]:
        # The loss scale is amp's alone: to a step without, what it left would look like the gradients' own size.
        kept = GRAPH_STATE if self.amp else [STEP]
        return {ours: GRAPH_STATE[ours].format(graph=self._graph.name) for ours in kept}


def make_step(
    model: SSD,
    config: OptimizerConfig,
    schedule: Schedule,
    world: World,
    passes: int,
    amp: bool,
    eager: bool,
    background_positives: int = 0,
) -> GraphStep | EagerStep:
    """The kind of step asked for."""
    if eager:
        return EagerStep(model, config, schedule, world, passes, background_positives)
    return GraphStep(model, config, schedule, world, passes, amp, background_positives)
