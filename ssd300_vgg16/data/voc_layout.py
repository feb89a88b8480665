"""Which images each split of a VOC data set has: image sets, or folders of XML files, in whatever layout."""

import glob
import os
import re
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from ssd300_vgg16 import reading
from ssd300_vgg16.data.image_files import IMAGE_SUFFIXES
from ssd300_vgg16.data.layout import WHOLE, Splits, by_split, file_names, folders_below, read_lines
from ssd300_vgg16.errors import UserError

# A test set whose annotations were published has nearly all of them; VOC2012's has some, of another task.
PUBLISHED_SHARE = 0.9
BYTES_LOOKED_AT = 4096
_ROOT = re.compile(rb"<annotation[\s>]")


class ImageSet(NamedTuple):
    """What one image set, or folder of XML files, lists: names without suffix, of files in these two folders."""

    path: Path
    annotations: Path
    images: Path
    names: list[str]


def find_voc_splits(data: Path) -> Splits:
    """The image sets of each split that is there; without any, the folders of XML files.

    Where the test set of some year is there with its annotations, "val" is the test sets, and "train" is trainval of
    every year (train and val, where there is no trainval.txt): 2007 and 2012 together give the usual "07+12".
    Otherwise "train" is train.txt and "val" is val.txt of every year.
    """
    if data.is_file():
        return {WHOLE: (data,)} if is_image_set(data) else find_voc_splits(data.parent)
    folders = voc_folders(data)
    if not folders:
        return by_split(xml_folders(data), data)
    tests = [path for path in _image_sets(folders, "test") if _is_published(path)]
    if tests:
        years = [_image_sets([folder], "trainval") or _image_sets([folder], "train", "val") for folder in folders]
        places: Splits = {"train": tuple(chain.from_iterable(years)), "val": tuple(tests)}
    else:
        places = {split: _image_sets(folders, split) for split in ("train", "val")}
    places = {split: paths for split, paths in places.items() if paths}
    # CVAT calls the list of a task without subsets default.txt.
    whole = _image_sets(folders, "trainval", "default") or tuple(folder / "Annotations" for folder in folders)
    return places or {WHOLE: whole}


def is_image_set(file: Path) -> bool:
    """Whether this is ImageSets/Main/x.txt, by its folders."""
    return file.parent.parent.name == "ImageSets"


def _image_sets(folders: Sequence[Path], *names: str) -> tuple[Path, ...]:
    """Those of these names that are there; CVAT's are called Train, Validation and Test."""
    paths: list[Path] = []
    for main in (folder / "ImageSets" / "Main" for folder in folders):
        files = sorted(file_names(main), key=lambda file: (-len(file), file))  # of several, train.txt and val.txt
        there = {file.lower().replace("validation", "val"): main / file for file in files}
        paths += [there[f"{name}.txt"] for name in names if f"{name}.txt" in there]
    return tuple(paths)


def voc_folders(data: Path) -> list[Path]:
    """The folders with ImageSets/Main and Annotations that data means, by name: it is one, or holds some (VOC2007,
    VOC2012), or holds VOCdevkit, which does."""
    folders = list(filter(_is_voc, folders_below(data)))
    return [folder for folder in folders if len(folder.parts) == len(folders[0].parts)]


def _is_voc(folder: Path) -> bool:
    return (folder / "ImageSets" / "Main").is_dir() and (folder / "Annotations").is_dir()


def xml_folders(data: Path) -> list[Path]:
    """The folder and those in it that have VOC's XML files."""
    return list(filter(_holds_annotations, folders_below(data)))


def _holds_annotations(folder: Path) -> bool:
    names = xml_names(folder)
    if not names:
        return False
    # One file tells: other programs' XML has another outermost element. UTF-16 has null bytes between its letters.
    try:
        with reading.opened(xml_file(folder, names[0])) as file:
            start = file.read(BYTES_LOOKED_AT).replace(b"\0", b"")
    except OSError:
        return True  # to be said when it is read
    return not start.strip() or _ROOT.search(start) is not None


def _is_published(test_set: Path) -> bool:
    """Whether an image set has its images and annotations."""
    image_set = read_image_set(test_set)
    annotated = file_names(image_set.annotations)
    images = image_names(image_set.images)
    there = sum(f"{name}.xml" in annotated and name in images for name in image_set.names)
    return there > 0 and there >= PUBLISHED_SHARE * len(image_set.names)


def read_image_set(path: Path) -> ImageSet:
    """The image set in this file, or all XML files in this folder, sorted; the former's images are in JPEGImages.

    The images of a folder of XML files are in it, in a folder beside it, or in the folder that it is in.
    Raises UserError when it is neither, or of no use: lists of one class have a flag in every line.
    """
    if path.is_dir():
        names = xml_names(path)
        if not names:
            raise UserError(f"{path}: no XML file in this folder")
        return ImageSet(path, path, _images_of(path, names), names)
    folder = Path(os.path.normpath(path.parent / ".." / ".."))
    if not path.is_file():
        raise UserError(f"{path}: no such file; name a list like ImageSets/Main/train.txt, or a folder of XML files")
    if not (folder / "Annotations").is_dir():
        raise UserError(f"{path}: not in a VOC data set: an image set is ImageSets/Main/x.txt beside Annotations/")
    names = [line for _, line in read_lines(path)]
    flagged = names and all(re.search(r"\s(-1|0|1)$", name) for name in names)
    if flagged and not (folder / "Annotations" / f"{names[0]}.xml").is_file():
        raise UserError(
            f"{path}: this is the image set of one class, with a flag in each line ({names[0]}); give one that lists "
            f"images only, like {path.parent / 'train.txt'}"
        )
    return ImageSet(path, folder / "Annotations", folder / "JPEGImages", names)


def _images_of(xml_folder: Path, names: Sequence[str]) -> Path:
    """The folder with most of the images that XML files of these names are for: the folder itself, or one near it."""
    above = Path(os.path.normpath(xml_folder / ".."))
    own_name = Path(os.path.abspath(xml_folder)).name  # noqa: PTH100 - "." has no name
    near = [xml_folder, above / "JPEGImages", *sorted(path for path in above.iterdir() if path.is_dir()), above]
    # DATA/annotations/train goes with DATA/images/train.
    near += sorted(Path(os.path.normpath(above / "..")).glob(f"*/{glob.escape(own_name)}"))
    images = {folder: image_names(folder) for folder in dict.fromkeys(near)}
    stems = set(names)
    # An XML file may also name its image, which then has another name: so any images are better than none.
    return max(images, key=lambda folder: (len(stems & images[folder].keys()), bool(images[folder])))


def joined_name(image_sets: Sequence[ImageSet]) -> str:
    """The file, or the folder of several with their years: data/VOCdevkit (VOC2007 trainval + VOC2012 trainval)."""
    paths = [image_set.path for image_set in image_sets]
    if len(paths) == 1 or any(path.is_dir() for path in paths):
        return ", ".join(map(str, paths))
    folders = [image_set.annotations.parent for image_set in image_sets]
    sets = [f"{folder.name} {path.stem}" for folder, path in zip(folders, paths, strict=True)]
    return f"{folders[0].parent} ({' + '.join(sets)})"


def image_names(folder: Path) -> dict[str, str]:
    """The images in a folder, by their names, and by these without suffix where no other has that for a name."""
    names = [name for name in file_names(folder) if Path(name).suffix.lower() in IMAGE_SUFFIXES]
    # The last of several with one stem is taken: a JPEG, which VOC's are.
    names.sort(key=lambda name: (Path(name).suffix.lower() in (".jpg", ".jpeg"), name))
    return {Path(name).stem: name for name in names} | {name: name for name in names}


def xml_names(folder: Path) -> list[str]:
    """The XML files in a folder, sorted, without suffix; not the hidden ones, which some systems put into archives."""
    names = [Path(name) for name in file_names(folder) if not name.startswith(".")]
    return sorted({name.stem for name in names if name.suffix.lower() == ".xml"})


def xml_file(folder: Path, name: str) -> Path:
    """The XML file of this name, whose suffix may be in capitals."""
    path = folder / f"{name}.xml"
    capitals = folder / f"{name}.XML"
    # Not Path.exists(), which raises for a line of an image set that is too long for a name.
    return capitals if os.path.exists(capitals) and not os.path.exists(path) else path  # noqa: PTH110
