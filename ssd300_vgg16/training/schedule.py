"""The learning rate as a function of the step alone."""

import math
from dataclasses import dataclass

# The published recipe starts at a thousandth of the learning rate and reaches it after 1000 iterations.
WARMUP_FACTOR = 1e-3
WARMUP_STEPS = 1000


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
