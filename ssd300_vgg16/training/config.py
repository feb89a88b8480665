"""The configs of a training: plain values, frozen, without OneFlow."""

import math
from dataclasses import dataclass

from ssd300_vgg16.data.loader import BatchConfig
from ssd300_vgg16.errors import UserError

# The published recipe starts at a thousandth of the learning rate and reaches it after 1000 iterations.
WARMUP_FACTOR = 1e-3


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

    def __post_init__(self) -> None:
        limit = min((*self.milestones, self.total_steps - 1)) if self.kind == "multistep" else self.total_steps - 1
        object.__setattr__(self, "warmup_steps", max(0, min(self.warmup_steps, limit)))

    def notices(self, asked_warmup: int) -> list[str]:
        """What to tell where the warm-up is shorter than asked for."""
        if self.warmup_steps >= asked_warmup:
            return []
        return [
            f"The warm-up takes {self.warmup_steps} of the training's {self.total_steps} steps: "
            f"--warmup-steps {asked_warmup} is too long for it."
        ]

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


# VGG16's stages as the model zoo counts them: each begins with the pooling before it, the first with conv1_1.
VGG_STAGES = 5


@dataclass(frozen=True)
class OptimizerConfig:
    """ "sgd" (momentum, L2 in the gradient) or "adamw" (decoupled weight decay).

    Biases learn bias_lr_factor times as fast and decay by bias_weight_decay (None: as everything). The gradient of all
    parameters together is scaled down to a norm of clip_norm where it is longer (None: never).
    """

    kind: str
    momentum: float = 0.9
    weight_decay: float = 5e-4
    bias_lr_factor: float = 1.0
    bias_weight_decay: float | None = None
    clip_norm: float | None = None

    @property
    def biases_apart(self) -> bool:
        """Whether biases are treated in another way than weights."""
        return self.bias_lr_factor != 1 or self.bias_weight_decay not in (None, self.weight_decay)


def refuse_compiled(config: OptimizerConfig, passes: int, batch_size: int, processes: int) -> None:
    """Raises UserError for what a compiled step cannot do, and single operations can."""
    if config.clip_norm is not None and config.biases_apart:
        raise UserError("--clip-norm does not go with --bias-lr-factor or --bias-wd in a compiled step: add --eager")
    if passes > 1 and batch_size % (passes * processes):
        shared = f" over {processes} processes" if processes > 1 else ""
        raise UserError(
            f"--accumulate {passes}: a compiled step takes passes of one size, and {batch_size} images{shared} do not "
            "divide so: change --batch-size, or add --eager"
        )


@dataclass(frozen=True)
class SaveEvery:
    """How often to write a checkpoint between the ends of epochs: after so many steps, or so many seconds."""

    steps: int | None = None
    seconds: float | None = None

    def is_due(self, steps: int, seconds: float) -> bool:
        """Whether it is time, so many steps and seconds after the last one."""
        return (self.steps is not None and steps >= self.steps) or (
            self.seconds is not None and seconds >= self.seconds
        )


@dataclass(frozen=True)
class TrainingConfig:
    """How long to train, and how often to look: print_every counts steps, evaluate_every epochs, keep checkpoints."""

    epochs: int
    schedule: Schedule
    batch: BatchConfig
    print_every: int
    evaluate_every: int
    save_every: SaveEvery
    keep: int
