"""Where a data set comes from: options of the command lines to `Dataset` objects."""

import os
from dataclasses import dataclass
from pathlib import Path

from ssd300_vgg16.data.coco import find_coco_split, load_coco
from ssd300_vgg16.data.dataset import Category, Dataset
from ssd300_vgg16.data.shapes import write_shapes
from ssd300_vgg16.data.voc import load_voc
from ssd300_vgg16.data.voc_sets import find_voc_split, holds_xml, read_image_set, voc_folders
from ssd300_vgg16.data.yolo import find_yaml, find_yolo_split, load_yolo
from ssd300_vgg16.errors import UserError

KINDS = ("coco", "voc", "yolo", "shapes")
DEFAULT_COCO = Path("data/coco")
DEFAULT_SHAPES = Path("data/shapes")
SHAPES_IMAGES = {"train_images": 1200, "val_images": 100}
SHAPES_SEED = 0

# A split's own annotation file and image folder; for VOC an image set or a folder of XML files, whose images
# are where it says without one.
Location = tuple[Path, Path | None]


@dataclass(frozen=True)
class DataSource:
    """A data set by kind, one of KINDS, and place; a split's own annotation file and image folder go first.

    Raises UserError for a split's own place that this kind has no use for.
    """

    kind: str = "coco"
    path: Path | None = None
    train: Location | None = None
    val: Location | None = None
    strict: bool = False

    def __post_init__(self) -> None:
        for split, given in (("train", self.train), ("val", self.val)):
            if given and self.kind == "yolo":
                raise UserError(f"--{split}-annotations: the places of a YOLO data set's splits are in its data.yaml")
            if given and self.kind != "voc" and given[1] is None:
                raise UserError(f"--{split}-annotations needs --{split}-images with it")

    def is_absent(self) -> bool:
        """Whether nothing was said about the data and the default place is empty too."""
        return self.kind == "coco" and not (self.path or self.train or self.val or DEFAULT_COCO.is_dir())

    def locate(self, split: str) -> tuple[Path, ...]:
        """The files and folders that "train" or "val" will be read from; generated now if need be.

        coco and shapes: annotation file, image folder; voc: image sets, or a folder of XML files; yolo: folders of
        images, or lists of them.
        Raises UserError when they are not there.
        """
        given = self._given(split)
        if self.kind == "voc" and given:
            read_image_set(given[0])
            return given[:1]
        if given:
            return tuple(place for place in given if place)
        if self.kind == "shapes":
            write_shapes(self._folder(), **SHAPES_IMAGES, seed=SHAPES_SEED)
        find = {"voc": find_voc_split, "yolo": find_yolo_split}.get(self.kind, find_coco_split)
        folder = self._folder()
        try:
            return find(folder, split)
        except UserError:
            # A folder of another kind is the likelier mistake than a file that is missing.
            _refuse_other_kind(folder, self.kind)
            raise

    def load(self, split: str, categories: tuple[Category, ...] | None = None) -> Dataset:
        """The "train" or "val" split; with `categories`, its labels are theirs."""
        places = self.locate(split)
        if self.kind == "voc":
            _, given_folder = self._given(split) or (None, None)
            return load_voc(places, given_folder, categories, self.strict)
        if self.kind == "yolo":
            return load_yolo(self._folder(), split, categories, self.strict)
        annotation_file, image_folder = places
        return load_coco(annotation_file, image_folder, categories, self.strict)

    def _given(self, split: str) -> Location | None:
        return self.train if split == "train" else self.val

    def _folder(self) -> Path:
        folder = self.path or {"coco": DEFAULT_COCO, "shapes": DEFAULT_SHAPES}.get(self.kind)
        if folder is None:
            raise UserError(f"--dataset {self.kind} needs --data-path with it")
        return folder


def split_location(split: str, annotations: str | None, images: str | None) -> Location | None:
    """The pair of options that name one split; UserError if there are images without annotations."""
    if images is not None and annotations is None:
        raise UserError(f"--{split}-images needs --{split}-annotations with it")
    return None if annotations is None else (Path(annotations), None if images is None else Path(images))


def guess_kind(path: str | os.PathLike) -> str | None:
    """The kind of data set that a folder or file holds, by its content: "coco", "voc", "yolo", or None."""
    path = Path(path)
    if path.suffix.lower() == ".json" or any(path.glob("annotations/instances_*.json")):
        return "coco"
    # VOC before YOLO: a YAML file may lie beside anything, image sets have one meaning.
    if voc_folders(path) or path.parent.parent.name == "ImageSets" or path.suffix.lower() == ".xml":
        return "voc"
    if find_yaml(path):
        return "yolo"
    return "voc" if holds_xml(path) else None


def _refuse_other_kind(path: Path, kind: str) -> None:
    other = guess_kind(path)
    if other and other != ("coco" if kind == "shapes" else kind):
        name = {"coco": "a COCO-style data set", "voc": "VOC", "yolo": "a YOLO data set"}[other]
        raise UserError(f"{path}: this looks like {name}: add --dataset {other}")
