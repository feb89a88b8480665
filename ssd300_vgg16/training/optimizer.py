"""A moving average of the weights, which often detects a little better than the weights themselves."""

from collections.abc import Mapping

import numpy as np

from ssd300_vgg16.network.ssd import SSD
from ssd300_vgg16.network.vgg import Conv2d
from ssd300_vgg16.runtime import flow
from ssd300_vgg16.training.config import VGG_STAGES, WARMUP_FACTOR, Schedule, UpdateRule
from ssd300_vgg16.weights.model import local

# Deviation of pixel values around their mean. The trunk takes it down to one, each layer by its share: an optimizer
# like Adam, whose steps do not know the scale of what they change, would wreck one layer of very small weights.
PIXEL_DEVIATION = 58.0
# Deviation of the heads' weights: at first every class is as likely as another, and the trunk is left in peace.
HEAD_DEVIATION = 0.01


def initialise_from_scratch(model: SSD) -> None:
    """He's initialisation in the backbone, so that depth mutes nothing; heads close to zero; zero biases."""
    init = flow.nn.init
    for convolution in _convolutions(model.backbone):
        init.kaiming_normal_(convolution.weight, mode="fan_in", nonlinearity="relu")
        init.zeros_(convolution.bias)
    for convolution in _convolutions(model.head):
        init.normal_(convolution.weight, std=HEAD_DEVIATION)
        init.zeros_(convolution.bias)
    trunk = _convolutions(model.backbone.features)
    with flow.no_grad():
        for convolution in trunk:
            convolution.weight.mul_(PIXEL_DEVIATION ** (-1 / len(trunk)))


def _convolutions(module) -> list[Conv2d]:
    return [child for child in module.modules() if isinstance(child, Conv2d)]


# A step no training reaches.
NEVER = 1 << 62


def freeze_backbone(model: SSD, trainable_stages: int) -> None:
    """Leave only the last of VGG's five stages trainable, and all that SSD adds; 5 freezes nothing, 0 all of VGG."""
    for stage in _vgg_stages(model)[: VGG_STAGES - trainable_stages]:
        for module in stage:
            for parameter in module.parameters():
                parameter.requires_grad = False


def _vgg_stages(model: SSD) -> list[list]:
    stages = [[]]
    for module in model.backbone.features:
        if isinstance(module, flow.nn.MaxPool2d):
            stages.append([])
        stages[-1].append(module)
    conv5 = [module for module in model.backbone.extra[0] if not isinstance(module, flow.nn.Sequential)]
    return [*stages, conv5]


def make_optimizer(rule: UpdateRule, model: SSD, lr: float):
    """OneFlow's optimizer over the trainable parameters."""
    named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    everything = [parameter for _, parameter in named]
    groups = [{"params": everything, "weight_decay": rule.weight_decay, "lr_scale": 1.0}]
    if rule.biases_apart:
        groups[0]["params"] = [parameter for name, parameter in named if not name.endswith("bias")]
        decay = rule.weight_decay if rule.bias_weight_decay is None else rule.bias_weight_decay
        biases = [parameter for name, parameter in named if name.endswith("bias")]
        groups.append({"params": biases, "weight_decay": decay, "lr_scale": rule.bias_lr_factor})
    if rule.clip_norm is not None:
        for group in groups:
            group |= {"clip_grad_max_norm": rule.clip_norm, "clip_grad_norm_type": 2.0}
    if rule.kind == "sgd":
        return flow.optim.SGD(groups, lr=lr, momentum=rule.momentum)
    return flow.optim.AdamW(groups, lr=lr)


def oneflow_scheduler(schedule: Schedule, optimizer):
    """A OneFlow scheduler with the same learning rates, which a graph can carry out without the host."""
    schedulers = flow.optim.lr_scheduler
    if schedule.kind == "multistep":
        # In a graph, an empty list of milestones aborts the process.
        milestones = [step - schedule.warmup_steps for step in schedule.milestones] or [NEVER]
        after = schedulers.MultiStepLR(optimizer, milestones, schedule.gamma)
    else:
        after = schedulers.CosineDecayLR(optimizer, schedule.total_steps - schedule.warmup_steps, alpha=0.0)
    if schedule.warmup_steps == 0:
        return after
    return schedulers.WarmUpLR(after, WARMUP_FACTOR, schedule.warmup_steps, "linear", warmup_prefix=True)


class MovingAverage:
    """Exponential average of a model's parameters on their device: decay x average + (1 - decay) x weights.

    In the first steps, the decay is no higher than (1 + steps) / (10 + steps), so that the fresh weights are forgotten.
    """

    def __init__(self, model: SSD, decay: float):
        self.decay = decay
        self._model = model
        self._averages = {name: local(parameter).detach().clone() for name, parameter in model.named_parameters()}

    def update(self, steps: int) -> None:
        """Take in the weights after so many steps."""
        decay = min(self.decay, (1 + steps) / (10 + steps))
        with flow.no_grad():
            for name, parameter in self._model.named_parameters():
                self._averages[name].mul_(decay).add_(local(parameter), alpha=1 - decay)

    def tensors(self) -> dict[str, np.ndarray]:
        """The averages by the names of the parameters."""
        return {name: average.numpy() for name, average in self._averages.items()}

    def restore(self, tensors: Mapping[str, np.ndarray]) -> None:
        """Go on from `tensors`."""
        for name, array in tensors.items():
            self._averages[name].copy_(flow.tensor(np.ascontiguousarray(array)).to(self._averages[name].device))
