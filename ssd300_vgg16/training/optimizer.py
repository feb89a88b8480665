"""What is trained, and OneFlow's own objects for how: the optimizer, and the scheduler of the compiled step."""

from ssd300_vgg16.network.ssd import SSD
from ssd300_vgg16.runtime import flow
from ssd300_vgg16.training.plan import VGG_STAGES, UpdateRule
from ssd300_vgg16.training.schedule import WARMUP_FACTOR, Schedule

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
