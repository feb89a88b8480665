"""Where a data set comes from: options of the command lines to `Dataset` objects."""

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from ssd300_vgg16.data.coco import load_coco
from ssd300_vgg16.data.coco_layout import coco_files, find_coco_splits
from ssd300_vgg16.data.dataset import Category, Dataset
from ssd300_vgg16.data.foreign import foreign_format
from ssd300_vgg16.data.layout import WHOLE, Splits, folders_below
from ssd300_vgg16.data.shapes import write_shapes
from ssd300_vgg16.data.voc import load_voc
from ssd300_vgg16.data.voc_layout import find_voc_splits, is_image_set, read_image_set, voc_folders, xml_folders
from ssd300_vgg16.data.yolo import load_yolo
from ssd300_vgg16.data.yolo_layout import find_description, find_yolo_splits, places_of, read_description
from ssd300_vgg16.errors import UserError

TOLD_BY_CONTENT = "auto"
KINDS = (TOLD_BY_CONTENT, "coco", "voc", "yolo", "shapes")
DEFAULT_COCO = Path("data/coco")
DEFAULT_SHAPES = Path("data/shapes")
SHAPES_IMAGES = {"train_images": 1200, "val_images": 100}
SHAPES_SEED = 0
VAL_FRACTION = 0.2
MAX_WRAPPINGS = 4  # folders in folders

# A split's own annotation file and image folder; for VOC an image set or a folder of XML files, whose images
# are where it says without one.
Location = tuple[Path, Path | None]


class Format(NamedTuple):
    """What it is called, what finds the places of the splits that are there, and what this looks for."""

    name: str
    find: Callable[[Path], Splits]
    looked_for: str


FORMATS = {
    "coco": Format(
        "a COCO-style data set",
        find_coco_splits,
        "annotations/instances_{0}2017.json, annotations/instances_{0}.json, other JSON files with images near",
    ),
    "voc": Format("VOC", find_voc_splits, "ImageSets/Main/{0}.txt beside Annotations, folders of XML files called {0}"),
    "yolo": Format(
        "a YOLO data set", find_yolo_splits, "the key {0} in data.yaml or obj.data, folders of images called {0}"
    ),
}
NOTHING_FOUND = (
    "no COCO-style, VOC or YOLO data set found: looked for COCO's JSON, XML files, data.yaml, obj.data or a list of "
    "class names; --dataset with one of coco, voc, yolo says what is missing"
)


class Found(NamedTuple):
    """Where a split is: its name in the data set, which may be another's, its places, and what is to be said of it."""

    split: str
    places: tuple[Path, ...]
    note: str = ""
    fraction: float | None = None  # of a data set without a split of its own, the part that is for validation


@dataclass(frozen=True)
class DataSource:
    """A data set by kind, one of KINDS, and place; a split's own annotation file and image folder go first.

    val_fraction: the part of the images that is for validation where the data set has no split of its own; None:
    VAL_FRACTION. Raises UserError for a split's own place that the kind has no use for.
    """

    kind: str = TOLD_BY_CONTENT
    path: Path | None = None
    train: Location | None = None
    val: Location | None = None
    strict: bool = False
    val_fraction: float | None = None

    def __post_init__(self) -> None:
        # A run's options may say anything.
        if self.kind not in KINDS:
            raise UserError(f"--dataset {self.kind:.80}: write one of {', '.join(KINDS)}")
        if self.val_fraction is not None and not 0 < self.val_fraction <= 1:
            raise UserError(f"--val-fraction {self.val_fraction:g}: it is above 0, and up to 1")
        for split, given in (("train", self.train), ("val", self.val)):
            if given and self.kind == "yolo":
                raise UserError(f"--{split}-annotations: the places of a YOLO data set's splits are in its data.yaml")
            is_coco = self.kind in ("coco", "shapes") or (self.kind == TOLD_BY_CONTENT and given and _is_json(given[0]))
            if given and is_coco and given[1] is None:
                raise UserError(f"--{split}-annotations needs --{split}-images with it")

    def is_absent(self) -> bool:
        """Whether nothing was said about the data and the default place is empty too."""
        said = self.path or self.train or self.val or DEFAULT_COCO.is_dir()
        return self.kind in (TOLD_BY_CONTENT, "coco") and not said

    @cached_property
    def format(self) -> str:
        """One of FORMATS, told by the content if need be. Raises UserError if nothing, or too much, is found there."""
        if self.kind != TOLD_BY_CONTENT:
            return "coco" if self.kind == "shapes" else self.kind
        given = self.train or self.val
        if given:
            return "coco" if _is_json(given[0]) else "voc"
        folder = self._folder
        kind = guess_kind(folder)
        if kind is None:
            raise UserError(f"{folder}: {foreign_format(folder) or NOTHING_FOUND}")
        return kind

    def locate(self, split: str) -> tuple[Path, ...]:
        """The files and folders that "train" or "val" will be read from; generated now if need be.

        coco: annotation file, image folder; voc: image sets, or folders of XML files; yolo: folders of
        images, or lists of them.
        Raises UserError when they are not there.
        """
        found = self._find(split)
        # What data.yaml names need not be there.
        return places_of(read_description(self._folder), found.split) if self.format == "yolo" else found.places

    def load(self, split: str, categories: tuple[Category, ...] | None = None) -> Dataset:
        """The "train" or "val" split; with `categories`, its labels are theirs."""
        found = self._find(split)
        if self.format == "voc":
            _, images = self._given(split) or (None, None)
            dataset = load_voc(found.places, images, categories, self.strict)
        elif self.format == "yolo":
            dataset = load_yolo(self._folder, found.split, categories, self.strict)
        else:
            annotation_file, image_folder = found.places
            dataset = load_coco(annotation_file, image_folder, categories, self.strict)
        if found.note:
            dataset.problems.notes.append(found.note)
        return dataset if found.fraction is None else _divided(dataset, split, found.fraction)

    def _find(self, split: str) -> Found:
        given = self._given(split)
        if given and self.format == "voc":
            read_image_set(given[0])
            return Found(split, given[:1])
        if given:
            return Found(split, tuple(place for place in given if place))
        folder = self._folder
        splits = self._splits(folder)
        val = self.val or splits.get("val") or splits.get("test")
        if val and self.val_fraction is not None:
            raise UserError(f"--val-fraction: the data has a validation split, {val[0]}: leave the option out")
        if split in splits and (split == "val" or val):
            return Found(split, splits[split])
        if split == "val" and "test" in splits:
            return Found("test", splits["test"], f"no val split: the test split is used, {splits['test'][0]}")
        whole = "train" if "train" in splits else WHOLE
        if whole in splits and val:
            return Found(whole, splits[whole])
        if whole in splits:
            fraction = VAL_FRACTION if self.val_fraction is None else self.val_fraction
            absent = read_description(folder).places.get("val", ()) if self.format == "yolo" else ()
            note = "".join(f"there is no {place}; " for place in absent) + (
                f"{splits[whole][0]}: no validation split there: {fraction:.0%} of the images are kept for it, "
                "told by a hash of their names (--val-fraction)"
            )
            return Found(whole, splits[whole], note, fraction)
        self._refuse_other_kind(folder)
        looked_for = FORMATS[self.format].looked_for.format(split)
        own_place = "" if self.format == "yolo" else f"; or name it with --{split}-annotations, --{split}-images"
        raise UserError(f"{folder}: no {split} split there: looked for {looked_for}{own_place}")

    def _splits(self, folder: Path) -> Splits:
        if self.kind == "shapes":
            write_shapes(folder, **SHAPES_IMAGES, seed=SHAPES_SEED)
        try:
            return FORMATS[self.format].find(folder)
        except UserError:
            # A folder of another kind is the likelier mistake than a file that is missing.
            self._refuse_other_kind(folder)
            raise

    def _refuse_other_kind(self, folder: Path) -> None:
        other = guess_kind(folder)
        if other not in (None, self.format):
            raise UserError(f"{folder}: this looks like {FORMATS[other].name}: add --dataset {other}")

    def _given(self, split: str) -> Location | None:
        return self.train if split == "train" else self.val

    @cached_property
    def _folder(self) -> Path:
        usual = {TOLD_BY_CONTENT: DEFAULT_COCO, "coco": DEFAULT_COCO, "shapes": DEFAULT_SHAPES}
        folder = self.path or usual.get(self.kind)
        if folder is None:
            raise UserError(f"--dataset {self.kind} needs --data-path with it")
        folder = folder.expanduser()
        if self.kind != "shapes" and self.path and not folder.exists():
            raise UserError(f"{folder}: no such folder; name that of a data set")
        return _unwrapped(folder)


def split_location(split: str, annotations: str | None, images: str | None) -> Location | None:
    """The pair of options that name one split; UserError if there are images without annotations."""
    if images is not None and annotations is None:
        raise UserError(f"--{split}-images needs --{split}-annotations with it")
    return None if annotations is None else (Path(annotations), None if images is None else Path(images))


def guess_kind(path: str | os.PathLike) -> str | None:
    """The kind of data set that a folder or file holds, by its content: "coco", "voc", "yolo", or None.

    Raises UserError, which names what was seen, where it holds several.
    """
    path = Path(path)
    if _is_json(path) or any(path.glob("annotations/instances_*.json")):
        return "coco"
    # Image sets have one meaning; the other layouts are told by files that may lie beside anything.
    if voc_folders(path) or is_image_set(path) or path.suffix.lower() == ".xml":
        return "voc"
    seen: dict[str, Path | None] = {
        "coco": next(iter(coco_files(path)), None),
        "voc": next(iter(xml_folders(path)), None),
        "yolo": find_description(path),
    }
    kinds = [kind for kind, place in seen.items() if place]
    if len(kinds) > 1:
        all_seen = " and ".join(f"{FORMATS[kind].name} ({seen[kind]})" for kind in kinds)
        choice = " or ".join(kinds)
        raise UserError(f"{path}: there is {all_seen}: say which is meant with --dataset {choice}")
    return kinds[0] if kinds else None


def _unwrapped(folder: Path) -> Path:
    """The folder, or where nothing is found in it, the only one in it: archives hold the data so."""
    inside = folder
    for _ in range(MAX_WRAPPINGS):
        try:
            if guess_kind(inside):
                return inside
        except UserError:  # several kinds, one of which was chosen maybe
            return inside
        folders = folders_below(inside, 1)[1:]
        if len(folders) != 1:
            return folder
        inside = folders[0]
    return folder


def _is_json(path: Path) -> bool:
    return path.suffix.lower() == ".json"


def _divided(dataset: Dataset, split: str, fraction: float) -> Dataset:
    """The "train" or "val" part of a data set that has no split of its own: of each image its file's name decides.

    The same name falls into the same part whatever other images there are, and val of a smaller fraction is in that of
    a larger one. Raises UserError if nothing is left for the split.
    """
    shares = [_share(sample.path.name) for sample in dataset.samples]
    # A few images may all fall on one side; then the nearest one changes it.
    limit = max(fraction, min(shares)) if fraction < 1 else 1.0
    if fraction < 1 and max(shares) <= limit:
        limit = max((share for share in shares if share < max(shares)), default=limit)
    chosen = [
        sample for sample, share in zip(dataset.samples, shares, strict=True) if (share <= limit) == (split == "val")
    ]
    if not chosen:
        raise UserError(
            f"{dataset.name}: of {len(shares)} images none is left for {split} with --val-fraction {fraction:g}"
        )
    return replace(dataset, samples=tuple(chosen))


def _share(name: str) -> float:
    """From 0 to 1, evenly spread over names."""
    return int.from_bytes(hashlib.sha256(name.encode(errors="surrogateescape")).digest()[:6], "big") / 2**48
