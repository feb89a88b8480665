"""The learning rate as a function of the step alone, and the same as a OneFlow scheduler for the compiled step."""

import math
from dataclasses import dataclass

from ssd300_vgg16.runtime import flow

# The published recipe starts at a thousandth of the learning rate and reaches it after 1000 iterations.
WARMUP_FACTOR = 1e-3
WARMUP_STEPS = 1000
# A step no training reaches.
NEVER = 1 << 62


@dataclass(frozen=True)
class Schedule:
    """Linear warm-up, then "multistep" (times gamma from each milestone on) or "cosine" (down to 0 at total_steps).

    All lengths are in training steps. A warm-up ends at the first milestone at the latest.
    """

    kind: str
    base_lr: float
    total_steps: int
    warmup_steps: int
    milestones: tuple[int, ...] = ()
    gamma: float = 0.1

    def __post_init__(self):
        limit = min((*self.milestones, self.total_steps - 1)) if self.kind == "multistep" else self.total_steps - 1
        object.__setattr__(self, "warmup_steps", max(0, min(self.warmup_steps, limit)))

    def learning_rate(self, step: int) -> float:
        """The learning rate of a step, counted from 0."""
        # 1. Warm-up, a straight line.
        if step < self.warmup_steps:
            return self.base_lr * (WARMUP_FACTOR + (1 - WARMUP_FACTOR) * step / self.warmup_steps)
        # 2. Steps down.
        if self.kind == "multistep":
            return self.base_lr * self.gamma ** sum(step >= milestone for milestone in self.milestones)
        # 3. Half a cosine.
        done = (step - self.warmup_steps) / (self.total_steps - self.warmup_steps)
        return self.base_lr * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


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
