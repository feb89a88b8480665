"""The options of a training, as typed values that nothing writes into."""

from dataclasses import asdict, dataclass
from pathlib import Path

from ssd300_vgg16.data.formats import DEFAULT_COCO, TOLD_BY_CONTENT, DataSource, split_location
from ssd300_vgg16.errors import UserError
from ssd300_vgg16.training import run_folder
from ssd300_vgg16.training.config import OptimizerConfig, SaveEvery
from ssd300_vgg16.weights.locate import LAST, find_weights, is_published_name

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
    replay: str | None
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

    def save_interval(self) -> SaveEvery:
        """What the text of --save-every means: steps ("500") or minutes ("10m")."""
        if self.save_every.endswith("m"):
            return SaveEvery(seconds=60 * int(self.save_every.removesuffix("m")))
        return SaveEvery(steps=int(self.save_every))

    def whole_detector(self) -> str | None:
        """The detector to start from; of a run that was killed before its first checkpoint, what --load said then."""
        if self.load or not self.resume:
            return self.load
        return run_folder.read_options(run_folder.run_of(Path(self.resume))).get("load")

    def find_starting_weights(self) -> Path | None:
        """The file of --load, --pretrained or --weights-backbone, downloaded if need be; None to start from nothing."""
        named = self.whole_detector() or self.weights_backbone
        if named in (None, NO_WEIGHTS):
            return None
        try:
            return find_weights(Path(named))
        except UserError as error:
            if named != self.weights_backbone:
                raise
            raise UserError(f"{error}\nOr train without them: --weights-backbone {NO_WEIGHTS}") from error

    def download_weights(self) -> None:
        """Have the published weights that the training starts from in the folder of downloads."""
        if self.resume and (self.test_only or (run_folder.run_of(Path(self.resume)) / LAST).exists()):
            return  # its own weights are there
        named = self.whole_detector() or self.weights_backbone
        if named and is_published_name(Path(named)):
            self.find_starting_weights()
