"""Where a data set comes from: options of the command lines to `Dataset` objects."""

from dataclasses import dataclass
from pathlib import Path

from ssd300_vgg16.data.coco import find_coco_split, load_coco
from ssd300_vgg16.data.dataset import Category, Dataset
from ssd300_vgg16.data.shapes import write_shapes
from ssd300_vgg16.errors import UserError

DEFAULT_COCO = Path("data/coco")
DEFAULT_SHAPES = Path("data/shapes")
SHAPES_IMAGES = {"train_images": 1200, "val_images": 100}
SHAPES_SEED = 0


@dataclass(frozen=True)
class DataSource:
    """A data set by kind ("coco" or "shapes") and place; a split's own annotation file and image folder go first."""

    kind: str = "coco"
    path: Path | None = None
    train: tuple[Path, Path] | None = None
    val: tuple[Path, Path] | None = None
    strict: bool = False

    def is_absent(self) -> bool:
        """Whether nothing was said about the data and the default place is empty too."""
        return self.kind == "coco" and not (self.path or self.train or self.val or DEFAULT_COCO.is_dir())

    def locate(self, split: str) -> tuple[Path, Path]:
        """(annotation file, image folder) of "train" or "val"; generated now if need be."""
        given = self.train if split == "train" else self.val
        if given:
            return given
        if self.kind == "shapes":
            folder = self.path or DEFAULT_SHAPES
            write_shapes(folder, **SHAPES_IMAGES, seed=SHAPES_SEED)
            return find_coco_split(folder, split)
        return find_coco_split(self.path or DEFAULT_COCO, split)

    def load(self, split: str, categories: tuple[Category, ...] | None = None) -> Dataset:
        """The "train" or "val" split; with `categories`, its labels are theirs."""
        annotation_file, image_folder = self.locate(split)
        return load_coco(annotation_file, image_folder, categories, strict=self.strict)


def split_location(split: str, annotations: str | None, images: str | None) -> tuple[Path, Path] | None:
    """The pair of options that name one split; UserError if only one of them is given."""
    if (annotations is None) != (images is None):
        given, other = ("annotations", "images") if annotations else ("images", "annotations")
        raise UserError(f"--{split}-{given} needs --{split}-{other} with it")
    return (Path(annotations), Path(images)) if annotations else None
