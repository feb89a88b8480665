"""What a step changes the weights by: initialisation, frozen stages, the optimizer, and a moving average."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from ssd300_vgg16.network.ssd import SSD
from ssd300_vgg16.network.vgg import Conv2d
from ssd300_vgg16.training.config import VGG_STAGES, WARMUP_FACTOR, OptimizerConfig, Schedule
from ssd300_vgg16.weights.model import arrays_of, local

if TYPE_CHECKING:
    import oneflow as flow
else:
    from ssd300_vgg16.runtime import flow

# Deviation of pixel values around their mean. The trunk takes it down to one, each layer by its share: an optimizer
# like Adam, whose steps do not know the scale of what they change, would wreck one layer of very small weights.
PIXEL_DEVIATION = 58.0
# In levels of 255. What is in blank images is the edge of the zeros around them, and the network must not learn that.
MIN_PIXEL_DEVIATION = 2.0
# Deviation of the heads' weights: at first every class is as likely as another, and the trunk is left in peace.
HEAD_DEVIATION = 0.01
# Of the layer's: a channel that is nearly the same everywhere, as on the last maps of few images, is no measure.
MIN_DEVIATION = 0.25


def initialise_from_scratch(model: SSD, images: np.ndarray) -> None:
    """He's initialisation in the backbone, then each channel centred and scaled on some training images.

    images: uint8 [B, 3, S, S]; with none, or nothing but blank ones, nothing is centred. Heads are close to zero. The
    model is on the CPU.
    """
    init = flow.nn.init
    for convolution in _convolutions(model.backbone):
        init.kaiming_normal_(convolution.weight, mode="fan_in", nonlinearity="relu")
        init.zeros_(convolution.bias)
    for convolution in _convolutions(model.head):
        init.normal_(convolution.weight, std=HEAD_DEVIATION)
        init.zeros_(convolution.bias)
    if len(images) and images.std() > MIN_PIXEL_DEVIATION:
        _centre_and_scale(model, images)


def _centre_and_scale(model: SSD, images: np.ndarray) -> None:
    """Give what goes into each ReLU mean 0 and the same deviation in each channel, on these images.

    Without normalisation layers, what the channels have in common in all places grows from layer to layer: with He's
    initialisation alone it is 85 % of conv4_3, and a narrow network then learns nothing but the average answer for
    hundreds of steps. (Kraehenbuehl et al., "Data-dependent Initializations of Convolutional Neural Networks", 2016.)
    """
    trunk = len(_convolutions(model.backbone.features))
    number = 0
    with flow.no_grad():
        x = flow.from_numpy(images).to(flow.float32) - model.pixel_mean
        for block in (model.backbone.features, *model.backbone.extra):
            for layer in block.modules():
                if isinstance(layer, Conv2d):
                    number += 1
                    target = PIXEL_DEVIATION ** max(0, 1 - number / trunk)
                    outputs = layer.without_relu(x).numpy()
                    _fit_channels(layer, outputs, target)
                    x = flow.from_numpy(np.maximum(outputs, 0, out=outputs))
                elif isinstance(layer, flow.nn.MaxPool2d):
                    x = layer(x)


def _fit_channels(layer: Conv2d, outputs: np.ndarray, target: float) -> None:
    """Shift and scale a layer so that its outputs [B, C, H, W] have mean 0 and this deviation, and these with it."""
    mean, deviation = outputs.mean(axis=(0, 2, 3)), outputs.std(axis=(0, 2, 3))
    deviation = np.maximum(deviation, MIN_DEVIATION * np.sqrt((deviation**2).mean()))
    deviation[deviation == 0] = target
    scale = (target / deviation).astype(np.float32)
    layer.weight.mul_(flow.from_numpy(scale[:, None, None, None]))
    layer.bias.sub_(flow.from_numpy(mean)).mul_(flow.from_numpy(scale))
    # In place: at full width they are hundreds of megabytes.
    outputs -= mean[:, None, None]
    outputs *= scale[:, None, None]


def _convolutions(module: flow.nn.Module) -> list[Conv2d]:
    return [child for child in module.modules() if isinstance(child, Conv2d)]


# A step no training reaches.
NEVER = 1 << 62


def freeze_backbone(model: SSD, trainable_stages: int) -> None:
    """Leave only the last of VGG's five stages trainable, and all that SSD adds; 5 freezes nothing, 0 all of VGG."""
    for stage in _vgg_stages(model)[: VGG_STAGES - trainable_stages]:
        for module in stage:
            for parameter in module.parameters():
                parameter.requires_grad = False


def _vgg_stages(model: SSD) -> list[list[flow.nn.Module]]:
    stages: list[list[flow.nn.Module]] = [[]]
    for module in model.backbone.features:
        if isinstance(module, flow.nn.MaxPool2d):
            stages.append([])
        stages[-1].append(module)
    conv5 = [module for module in model.backbone.extra[0] if not isinstance(module, flow.nn.Sequential)]
    return [*stages, conv5]


def make_optimizer(config: OptimizerConfig, model: SSD, lr: float) -> flow.optim.Optimizer:
    """OneFlow's optimizer over the trainable parameters."""
    named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    everything = [parameter for _, parameter in named]
    groups = [{"params": everything, "weight_decay": config.weight_decay, "lr_scale": 1.0}]
    if config.biases_apart:
        groups[0]["params"] = [parameter for name, parameter in named if not name.endswith("bias")]
        decay = config.weight_decay if config.bias_weight_decay is None else config.bias_weight_decay
        biases = [parameter for name, parameter in named if name.endswith("bias")]
        groups.append({"params": biases, "weight_decay": decay, "lr_scale": config.bias_lr_factor})
    if config.clip_norm is not None:
        for group in groups:
            group |= {"clip_grad_max_norm": config.clip_norm, "clip_grad_norm_type": 2.0}
    if config.kind == "sgd":
        return flow.optim.SGD(groups, lr=lr, momentum=config.momentum)
    return flow.optim.AdamW(groups, lr=lr)


def oneflow_scheduler(schedule: Schedule, optimizer: flow.optim.Optimizer) -> flow.optim.lr_scheduler._LRScheduler:
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
        averages = list(self._averages.values())
        weights = [local(parameter) for parameter in self._model.parameters()]
        with flow.no_grad():
            if averages[0].is_cuda:
                # A kernel for 32 tensors, for which the way below takes 96; there is none for the CPU.
                flow._C.multi_tensor_yolov5_weight_update(averages, weights, decay)
                return
            for average, weight in zip(averages, weights, strict=True):
                average.mul_(decay).add_(weight, alpha=1 - decay)

    def tensors(self) -> dict[str, np.ndarray]:
        """The averages by the names of the parameters."""
        return arrays_of(self._averages)

    def restore(self, tensors: Mapping[str, np.ndarray]) -> None:
        """Go on from `tensors`."""
        for name, array in tensors.items():
            self._averages[name].copy_(flow.tensor(np.ascontiguousarray(array)).to(self._averages[name].device))
