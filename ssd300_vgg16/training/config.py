"""What a training is told: the options of `train.sh`, and the schedule and optimizer that follow from them.

Typed values that nothing writes into, without OneFlow.
"""

import math
from dataclasses import asdict, dataclass
from pathlib import Path

from ssd300_vgg16.data.formats import DEFAULT_COCO, TOLD_BY_CONTENT, DataSource, split_location
from ssd300_vgg16.errors import UserError
from ssd300_vgg16.weights.locate import find_weights

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


NO_WEIGHTS = "none"
PATHS = ("data_path", "train_annotations", "train_images", "val_annotations", "val_images", "load", "weights_backbone")


def with_absolute_paths(options: dict) -> dict:
    """The options, with paths that are there made absolute: a run may be gone on with from another folder."""
    there = {name for name in PATHS if options.get(name) and Path(options[name]).exists()}
    return {name: str(Path(value).absolute()) if name in there else value for name, value in options.items()}


@dataclass(frozen=True)
class TrainOptions:
    """The options of `train.sh`, with those of the preset and the resumed run. Names are those of the options.

    None stands for what the data, the starting weights or the machine decide. notices: what the user should know.
    """

    preset: str
    # Data
    data_path: str | None
    dataset: str
    train_annotations: str | None
    train_images: str | None
    val_annotations: str | None
    val_images: str | None
    val_fraction: float | None
    strict_data: bool
    data_augmentation: str
    background_images: float | None
    # Network
    model: str | None
    default_boxes: str | None
    width: float | None
    num_classes: int | None
    load: str | None
    pretrained: bool
    weights_backbone: str | None
    trainable_backbone_layers: int
    # Schedule
    epochs: int | None
    iterations: int | None
    batch_size: int
    accumulate: int
    lr: float
    lr_scheduler: str
    lr_steps: tuple[int, ...]
    lr_gamma: float
    warmup_steps: int
    seed: int
    # Update of the weights
    optimizer: str
    momentum: float
    weight_decay: float
    clip_norm: float | None
    bias_lr_factor: float
    bias_wd: float | None
    ema: float | None
    # Run
    output_dir: str | None
    resume: str | None
    test_only: bool
    save_every: str
    keep: int
    restarts: int
    check: bool
    print_freq: int
    eval_every: int
    # Machine
    device: str | None
    workers: int | None
    eager: bool | None
    amp: bool
    notices: tuple[str, ...] = ()

    def as_json(self) -> dict:
        """The content of options.json, which `--resume` reads."""
        options = {name: value for name, value in asdict(self).items() if name != "notices"}
        given = self.data_path or self.train_annotations or self.dataset not in (TOLD_BY_CONTENT, "coco")
        if not given and DEFAULT_COCO.is_dir():
            options["data_path"] = str(DEFAULT_COCO)
        return with_absolute_paths(options)

    @property
    def length(self) -> int:
        """The length of the training: in steps with --iterations, else in epochs."""
        length = self.iterations or self.epochs
        assert length is not None  # the command line fills in --epochs where neither is given
        return length

    def source(self) -> DataSource:
        """Where the data is."""
        return DataSource(
            kind=self.dataset,
            path=Path(self.data_path) if self.data_path else None,
            train=split_location("train", self.train_annotations, self.train_images),
            val=split_location("val", self.val_annotations, self.val_images),
            strict=self.strict_data,
            val_fraction=self.val_fraction,
        )

    def optimizer_config(self) -> OptimizerConfig:
        """How a step changes the weights."""
        return OptimizerConfig(
            kind=self.optimizer,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
            bias_lr_factor=self.bias_lr_factor,
            bias_weight_decay=self.bias_wd,
            clip_norm=self.clip_norm,
        )

    def save_is_due(self, steps: int, seconds: float) -> bool:
        """Whether --save-every asks for a checkpoint, so many steps and seconds after the last one."""
        if self.save_every.endswith("m"):
            return seconds >= 60 * int(self.save_every.removesuffix("m"))
        return steps >= int(self.save_every)

    def find_starting_weights(self) -> Path | None:
        """The file of --load, --pretrained or --weights-backbone, downloaded if need be; None to start from nothing."""
        named = self.load or self.weights_backbone
        if named in (None, NO_WEIGHTS):
            return None
        try:
            return find_weights(Path(named))
        except UserError as error:
            if self.load:
                raise
            raise UserError(f"{error}\nOr train without them: --weights-backbone {NO_WEIGHTS}") from error
