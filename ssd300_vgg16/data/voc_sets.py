"""Which images a split of a VOC data set has: image sets, or folders of XML files."""

import glob
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from ssd300_vgg16.data.dataset import file_names
from ssd300_vgg16.data.image_files import IMAGE_SUFFIXES
from ssd300_vgg16.errors import UserError

# A test set whose annotations were published has nearly all of them; VOC2012's has some, of another task.
PUBLISHED_SHARE = 0.9
# Of data sets without ImageSets, by the names that tools export them with.
SPLIT_FOLDERS = {"train": ("train",), "val": ("valid", "val")}


class ImageSet(NamedTuple):
    """What one image set, or folder of XML files, lists: names without suffix, of files in these two folders."""

    path: Path
    annotations: Path
    images: Path
    names: list[str]


class ImageNames(NamedTuple):
    """The image files of one folder."""

    all: frozenset[str]
    by_stem: dict[str, str]


def read_image_set(path: Path) -> ImageSet:
    """The image set in this file, or all XML files in this folder, sorted; the former's images are in JPEGImages.

    The images of a folder of XML files are in it, in a folder beside it, or in the folder that it is in.
    Raises UserError when it is neither, or of no use.
    """
    if not path.is_dir():
        folder = voc_folder_of(path)
        return ImageSet(path, folder / "Annotations", folder / "JPEGImages", _lines(path))
    names = xml_names(path)
    if not names:
        raise UserError(f"{path}: no XML file in this folder")
    return ImageSet(path, path, _images_of(path, names), names)


def _images_of(xml_folder: Path, names: Sequence[str]) -> Path:
    """The folder with most of the images that XML files of these names are for: the folder itself, or one near it."""
    stems = set(names)
    above = Path(os.path.normpath(xml_folder / ".."))
    own_name = Path(os.path.abspath(xml_folder)).name  # noqa: PTH100 - "." has no name
    near = [xml_folder, above / "JPEGImages", *sorted(path for path in above.iterdir() if path.is_dir()), above]
    # DATA/annotations/train goes with DATA/images/train.
    near += sorted(path for path in Path(os.path.normpath(above / "..")).glob(f"*/{glob.escape(own_name)}"))
    images = {folder: image_names(folder) for folder in dict.fromkeys(near)}
    # An XML file may also name its image, which then has another name: so any images are better than none.
    return max(images, key=lambda folder: (len(stems & images[folder].by_stem.keys()), bool(images[folder].all)))


def find_voc_split(data_path: str | os.PathLike, split: str) -> tuple[Path, ...]:
    """The image sets that make up the split, "train" or "val", of the data in a folder of `voc_folders`.

    Where the test set of some year is there with its annotations, "val" is the test sets, and "train" is trainval of
    every year (train and val, where there is no trainval.txt): 2007 and 2012 together give the usual "07+12".
    Otherwise "train" is train.txt and "val" is val.txt of every year. Where there are no image sets at all, it is the
    folder of XML files with a name of SPLIT_FOLDERS. Raises UserError when there is none.
    """
    folders = voc_folders(data_path)
    if not folders:
        return (_split_folder(Path(data_path), split),)
    with_tests = [test for folder in folders if _is_published(test := _image_set(folder, "test"))]
    if with_tests:
        image_sets = with_tests if split == "val" else [path for folder in folders for path in _trainval(folder)]
    else:
        image_sets = [path for folder in folders if (path := _image_set(folder, split)).is_file()]
    if not image_sets:
        sets = ", ".join(str(_image_set(folder, split)) for folder in folders)
        raise UserError(f"no {split} image set: looked for {sets}. Or give it with --{split}-annotations FILE.")
    return tuple(image_sets)


def voc_folders(data_path: str | os.PathLike) -> list[Path]:
    """The folders with ImageSets/Main and Annotations that data_path means, by name: it is one, or holds some (VOC2007,
    VOC2012), or holds VOCdevkit, which does."""
    data = Path(data_path)
    if _is_voc(data):
        return [data]
    for parent in (data, data / "VOCdevkit"):
        children = sorted(parent.iterdir()) if parent.is_dir() else []
        years = [child for child in children if _is_voc(child)]
        if years:
            return years
    return []


def voc_folder_of(image_set: Path) -> Path:
    """The folder that an image set, in its ImageSets/Main, belongs to. Raises UserError if either is not there."""
    folder = Path(os.path.normpath(image_set.parent / ".." / ".."))
    if not image_set.is_file():
        raise UserError(
            f"{image_set}: no such file; a VOC image set is a text file like ImageSets/Main/train.txt, or a folder of "
            "XML files"
        )
    if not (folder / "Annotations").is_dir():
        raise UserError(f"{image_set}: not in a VOC data set: an image set is ImageSets/Main/x.txt beside Annotations/")
    return folder


def joined_name(image_sets: Sequence[Path]) -> str:
    """The file, or the folder of several with their years: data/VOCdevkit (VOC2007 trainval + VOC2012 trainval)."""
    if len(image_sets) == 1:
        return str(image_sets[0])
    if any(path.is_dir() for path in image_sets):
        return ", ".join(map(str, image_sets))
    folders = [voc_folder_of(path) for path in image_sets]
    sets = [f"{folder.name} {path.stem}" for folder, path in zip(folders, image_sets, strict=True)]
    return f"{folders[0].parent} ({' + '.join(sets)})"


def image_names(folder: Path) -> ImageNames:
    """The images in a folder; none if it cannot be read."""
    names = [name for name in file_names(folder) if Path(name).suffix.lower() in IMAGE_SUFFIXES]
    # The last of several with one stem is taken: a JPEG, which VOC's are.
    names.sort(key=lambda name: (Path(name).suffix.lower() in (".jpg", ".jpeg"), name))
    return ImageNames(frozenset(names), {Path(name).stem: name for name in names})


def _is_voc(folder: Path) -> bool:
    return (folder / "ImageSets" / "Main").is_dir() and (folder / "Annotations").is_dir()


def _image_set(folder: Path, name: str) -> Path:
    return folder / "ImageSets" / "Main" / f"{name}.txt"


def xml_names(folder: Path) -> list[str]:
    """The XML files in a folder, sorted, without suffix; not the hidden ones, which some systems put into archives."""
    names = [Path(name) for name in file_names(folder) if not name.startswith(".")]
    return sorted({name.stem for name in names if name.suffix.lower() == ".xml"})


def xml_file(folder: Path, name: str) -> Path:
    """The XML file of this name, whose suffix may be in capitals."""
    path = folder / f"{name}.xml"
    capitals = folder / f"{name}.XML"
    return capitals if not path.exists() and capitals.exists() else path


def _split_folder(data: Path, split: str) -> Path:
    """The folder of XML files for a split. Raises UserError, which says what to do, if there is none."""
    folders = {name: [data / folder for folder in SPLIT_FOLDERS[name]] for name in SPLIT_FOLDERS}
    first_of = {name: next(filter(xml_names, folders[name]), None) for name in folders}
    if folder := first_of[split]:
        return folder
    if any(first_of.values()):
        looked = ", ".join(map(str, folders[split]))
        option = f"--{split}-annotations FOLDER"
        raise UserError(f"no folder of {split} XML files: looked for {looked}. Or give it with {option}.")
    undivided = "XML files that are not divided into a train and a val split"
    if xml_names(data / "Annotations"):
        sets = "the names of those of each, without .xml, in ImageSets/Main/train.txt and val.txt"
        raise UserError(f"{data / 'Annotations'}: {undivided}: list {sets} beside this folder")
    if xml_names(data):
        raise UserError(f"{data}: {undivided}: move them, with their images, into folders train and val in it")
    raise UserError(
        f"{data}: no VOC data set: it, or folders in it or in its VOCdevkit, should have ImageSets/Main and "
        "Annotations; or it should have folders train and val (or valid) of images with their XML files"
    )


def _trainval(folder: Path) -> list[Path]:
    both = _image_set(folder, "trainval")
    if both.is_file():
        return [both]
    return [path for name in ("train", "val") if (path := _image_set(folder, name)).is_file()]


def _is_published(test_set: Path) -> bool:
    """Whether an image set is there with its images and annotations."""
    if not test_set.is_file():
        return False
    image_set = read_image_set(test_set)
    annotated = file_names(image_set.annotations)
    images = image_names(image_set.images).by_stem
    there = sum(f"{name}.xml" in annotated and name in images for name in image_set.names)
    return there > 0 and there >= PUBLISHED_SHARE * len(image_set.names)


def _lines(image_set: Path) -> list[str]:
    """The names that an image set lists. Raises UserError for lists of one class, in which every line has a flag."""
    try:
        lines = [line.strip() for line in image_set.read_text(encoding="utf-8-sig").splitlines()]
    except (OSError, ValueError) as error:
        raise UserError(f"{image_set}: cannot be read: {getattr(error, 'strerror', None) or error}") from None
    names = [line for line in lines if line]
    flagged = names and all(re.search(r"\s(-1|0|1)$", name) for name in names)
    if flagged and not (voc_folder_of(image_set) / "Annotations" / f"{names[0]}.xml").is_file():
        raise UserError(
            f"{image_set}: this is the image set of one class, with a flag in each line ({names[0]}); give one that "
            f"lists images only, like {image_set.parent / 'train.txt'}"
        )
    return names
