"""What describes a data set in YOLO's layout: data.yaml, darknet's obj.data, or a list of class names."""

import os
import re
import reprlib
from dataclasses import dataclass, field
from fnmatch import filter as matching
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import yaml

from ssd300_vgg16 import reading
from ssd300_vgg16.data.image_files import IMAGE_SUFFIXES
from ssd300_vgg16.data.layout import (
    WHOLE,
    Splits,
    by_split,
    file_names,
    folders_below,
    read_lines,
    read_text,
    shorter_paths,
    split_named,
)
from ssd300_vgg16.errors import UserError
from ssd300_vgg16.text import printable

SPLITS = ("train", "val", "test")
YAML_NAMES = ("data.yaml", "data.yml", "dataset.yaml")
# Lists of class names; the first is Roboflow's, and lies in each split's folder.
ROBOFLOW_NAMES = "_darknet.labels"
NAMES_FILES = (ROBOFLOW_NAMES, "*.names", "classes.txt", "labels.txt")
FILES_LOOKED_AT = 20
MAX_DIGITS = 18
_SHOWN = reprlib.Repr()  # of lists that hold one long text again and again, the whole would fill the memory
_SHOWN.maxstring = _SHOWN.maxother = 80
_DATA_KEY = re.compile(r"names\s*=")
LABEL_LINE = re.compile(r"\d+(\.0)?( -?[\d.]+(e-?\d+)?){4,}\s*")


@dataclass(frozen=True)
class YoloDescription:
    """What data.yaml or its like says: the class names in order of their index, the folder that paths are relative to,
    and for each split that it names where its images are: folders, or text files that list them.

    notes: what was taken otherwise than it is written."""

    file: Path
    names: tuple[str, ...]
    root: Path
    places: Splits
    notes: list[str] = field(default_factory=list)


def find_yolo_splits(data: Path) -> Splits:
    """The folders of images, or lists of them, of each split that is described; or layout.WHOLE.

    Many files name splits that were never made: beside a training split that is there, these are left out.
    """
    places = read_description(data).places
    there = {split: those for split, those in places.items() if all(map(_exists, those))}
    needed = ("train",) if "train" in there else ("train", "val", WHOLE)
    return {split: those for split, those in places.items() if split in there or split in needed}


def places_of(description: YoloDescription, split: str) -> tuple[Path, ...]:
    """The places of a split. Raises UserError unless all are there."""
    if split not in description.places:
        raise UserError(f"{description.file}: {split}: this key is absent; it names the folder of the {split} images")
    for place in description.places[split]:
        if not _exists(place):
            raise UserError(f"{description.file}: {split}: there is no {printable(str(place))}")
    return description.places[split]


def find_description(data: Path) -> Path | None:
    """The file that describes a YOLO data set, if the folder or file holds one; other programs' YAML does not count.

    Raises UserError if several folders in it are data sets.
    """
    if data.is_file():
        return data if data.suffix.lower() in (".yaml", ".yml", ".data") or _lists_names(data.name) else None
    files = {folder: file_names(folder) for folder in folders_below(data)}
    # A usual name goes first: data sets have YAML files of other programs beside theirs.
    usual = [folder / name for folder in files for name in YAML_NAMES if name in files[folder]]
    usual = [file for file in usual[:FILES_LOOKED_AT] if _is_description(file, is_below=file.parent != data)]
    if usual and usual[0].parent == data:
        return usual[0]
    others = list(filter(_is_description, [*data.glob("*.yaml"), *data.glob("*.yml")][:FILES_LOOKED_AT]))
    if len(others) == 1:
        return others[0]
    if len(usual) > 1:
        raise UserError(f"{data}: several YOLO data sets there, such as {usual[0]} and {usual[1]}: name one of them")
    return usual[0] if usual else _darknet_file(files)


def _lists_names(name: str) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in NAMES_FILES)


def _is_description(file: Path, is_below: bool = False) -> bool:
    """Whether this is data.yaml by its keys; one that cannot be read, by its name. is_below: in a sub-folder."""
    try:
        keys = _content(file).keys()
    except UserError:
        return file.name in YAML_NAMES and file.stat().st_size > 0 and not is_below
    # infer.sh's, among the results that someone has put there, has names alone.
    return "train" in keys if is_below else bool({"names", "nc"} & keys) or {"train", "val"} <= keys


def _darknet_file(files: dict[Path, frozenset[str]]) -> Path | None:
    """darknet's .data file, else the list of class names that lies with YOLO's label files; None without either."""
    data_files = [folder / name for folder in files for name in sorted(files[folder]) if name.endswith(".data")]
    for file in data_files[:FILES_LOOKED_AT]:  # other programs' files end so too
        if any(_DATA_KEY.match(line) for line in some_lines(file)):
            return file
    lists = [folder / name for end in NAMES_FILES for folder in files for name in sorted(matching(files[folder], end))]
    return lists[0] if lists and (lists[0].name == ROBOFLOW_NAMES or _has_labels(files)) else None


def _has_labels(files: dict[Path, frozenset[str]]) -> bool:
    """Whether one of the first text files of some folder has a line that is a label."""
    for folder, names in files.items():
        texts = sorted(name for name in names if name.endswith(".txt") and not _lists_names(name))
        for name in texts[:FILES_LOOKED_AT]:
            if any(LABEL_LINE.fullmatch(line) for line in some_lines(folder / name)[:1]):
                return True
    return False


def some_lines(file: Path) -> list[str]:
    """The lines of a text file; none if it cannot be read."""
    try:
        return [line for _, line in read_lines(file, reading.LABEL_BYTES)]
    except UserError:
        return []


def read_description(data: Path) -> YoloDescription:
    """The description in this file or folder, of whichever form. Raises UserError, naming the key."""
    # One of a usual name without the keys is read all the same, to say which is absent.
    file = find_description(data) or next(filter(Path.is_file, (data / name for name in YAML_NAMES)), None)
    if file is None:
        raise UserError(f"{data}: no data.yaml there with train, val and names; name that file, or its folder")
    if file.suffix.lower() in (".yaml", ".yml"):
        return _read_yaml(file)
    return _read_data_file(file) if file.suffix.lower() == ".data" else _described_by_names(file, data)


def _read_yaml(file: Path) -> YoloDescription:
    content = _content(file)
    if "kpt_shape" in content:
        raise UserError(f"{file}: kpt_shape: the labels are key points, not boxes; they cannot be used")
    # Some tools name the key as they name the folder.
    keys = {split: "valid" if split == "val" and "val" not in content else split for split in SPLITS}
    named = {split: _entries(content[key], key, file) for split, key in keys.items() if content.get(key) is not None}
    notes: list[str] = []
    root = _root(content.get("path"), file, named, notes)
    places = {split: tuple(_place(entry, root) for entry in entries) for split, entries in named.items()}
    return YoloDescription(file, _names(content, file), root, places, notes)


class _Loader(yaml.SafeLoader):
    """YAML's, without what makes a small file endless.

    An alias stands for one value: of lists, a few hundred bytes would make billions of values. Whole numbers are short:
    longer ones can be chosen to have one hash, and those to the base of 60 (1:1:1:...) take a minute.
    """

    def compose_node(self, parent: Any, index: Any) -> Any:
        is_alias, mark = self.check_event(yaml.AliasEvent), self.peek_event().start_mark
        node = super().compose_node(parent, index)
        if is_alias and not isinstance(node, yaml.ScalarNode):
            raise yaml.MarkedYAMLError(problem="an alias (*) of more than one value: write them out", problem_mark=mark)
        return node

    def construct_yaml_int(self, node: Any) -> int:
        if len(node.value) > MAX_DIGITS:
            raise yaml.MarkedYAMLError(problem="a whole number that is too long", problem_mark=node.start_mark)
        return super().construct_yaml_int(node)


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)


def _content(file: Path) -> dict:
    try:
        content = yaml.load(read_text(file, reading.YAML_BYTES), _Loader)
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise UserError(f"{file}{line}: not valid YAML: {error.problem}") from None
    except (yaml.YAMLError, ValueError, OverflowError, RecursionError) as error:
        raise UserError(f"{file}: not valid YAML: {error}") from None
    if not isinstance(content, dict):
        raise UserError(f"{file}: a YOLO data set's YAML has keys train, val and names; this has none")
    return content


def _root(path: object, file: Path, named: dict[str, list[str]], notes: list[str]) -> Path:
    """The folder that `path` means: relative to the file, which itself is in it if there is no `path`.

    Of a set that has moved it is the folder near the file that has its images.
    """
    if path is None:
        return file.parent
    if not isinstance(path, str):
        raise UserError(f"{file}: path: must be the name of a folder, not {_SHOWN.repr(path)}")
    root = file.parent / _expanded(path)  # an absolute path stays as it is
    if os.path.isdir(root):  # noqa: PTH112 - is_dir() raises for what is too long for a name, as exists() does
        return root
    moved = [*(file.parent / shorter for shorter in shorter_paths(path)), file.parent, file.parent.parent / path]
    first = next((entry for entries in named.values() for entry in entries), None)
    for folder in moved:
        if first and _exists(_place(first, folder)):
            notes.append(f"{file}: path: there is no {root}; taken to be {folder}, where the images are")
            return folder
    raise UserError(
        f"{file}: path: no folder {printable(str(root))}; without this key it is the YAML file's own folder"
    )


def _exists(path: Path) -> bool:
    return os.path.exists(path)  # noqa: PTH110


def _expanded(path: str) -> Path:
    try:
        return Path(path).expanduser()
    except RuntimeError:  # of a user who is not known here
        return Path(path)


def _entries(value: Any, split: str, file: Path) -> list[str]:
    values = value if isinstance(value, list) else [value]
    if not values or not all(isinstance(entry, str) and entry.strip() for entry in values):
        raise UserError(
            f"{file}: {split}: must be a folder, a list of folders or a .txt file, not {_SHOWN.repr(value)}"
        )
    return [entry.strip() for entry in values]


def _place(entry: str, root: Path) -> Path:
    """A folder or file by its path, from another machine maybe; ../train/images may be meant for train/images."""
    place = root / _expanded(entry)
    if _exists(place):
        return place
    for shorter in shorter_paths(entry):
        # A last folder alone is often called images, for each of the splits.
        is_telling = "/" in shorter or split_named(Path(shorter), root) != WHOLE or os.path.isfile(root / shorter)  # noqa: PTH113
        if is_telling and _exists(root / shorter):
            return root / shorter
    return place


def _names(content: dict, file: Path) -> tuple[str, ...]:
    names = content.get("names")
    if isinstance(names, dict):
        if not names or any(type(key) is not int for key in names) or sorted(names) != list(range(len(names))):
            raise UserError(f"{file}: names: its numbers must be 0, 1, 2 and so on, one for each class")
        names = [names[index] for index in range(len(names))]
    if not isinstance(names, list) or not names:
        raise UserError(f"{file}: names: must be a list of the classes' names" + (", it is absent" * (names is None)))
    for index, name in enumerate(names):
        # YAML takes a class called no or 1.5 for a truth value or a number.
        if type(name) not in (str, int) or not str(name).strip():
            raise UserError(f"{file}: names: the name of class {index} is {_SHOWN.repr(name)}; put names in quotes")
    # It is worth nothing beside the names, but a difference tells of a file that was edited by half.
    count = content.get("nc")
    if count is not None and (type(count) is not int or count != len(names)):
        raise UserError(f"{file}: nc: {_SHOWN.repr(count)}, but there are {len(names)} names")
    return tuple(str(name).strip() for name in names)


def _listed_names(file: Path) -> tuple[str, ...]:
    names = tuple(line for _, line in read_lines(file, reading.LABEL_BYTES))
    if not names:
        raise UserError(f"{file}: no class names there")
    return names


def _read_data_file(file: Path) -> YoloDescription:
    """darknet's .data: lines like "train = data/train.txt"; paths are those of the machine that it was trained on."""
    pairs = [line.partition("=") for _, line in read_lines(file, reading.LABEL_BYTES)]
    content = {key.strip(): value.strip() for key, _, value in pairs if value.strip()}
    if "names" not in content:
        raise UserError(f"{file}: names: this key is absent; it names the file of the classes' names")
    names = _listed_names(names_file := _place(content["names"], file.parent))
    count = content.get("classes", str(len(names)))
    if count != str(len(names)):
        raise UserError(f"{file}: classes: {count}, but there are {len(names)} names in {names_file}")
    keys = {"train": "train", "valid": "val", "val": "val", "test": "test"}
    places: Splits = {split: (_place(content[key], file.parent),) for key, split in keys.items() if key in content}
    # Tools write "valid = data/valid.txt" whether there is one or not.
    places = {split: those for split, those in places.items() if split == "train" or _exists(those[0])}
    return YoloDescription(file, names, file.parent, places)


def _described_by_names(file: Path, data: Path) -> YoloDescription:
    """The data set of a list of class names: all folders near it that have images, each for the split that it names."""
    root = data if data.is_dir() else file.parent
    files = {folder: file_names(folder) for folder in folders_below(root)}
    # LabelImg writes one into each folder, in the order in which it met the classes.
    lists = {folder / file.name: _listed_names(folder / file.name) for folder in files if file.name in files[folder]}
    file = max(lists, key=lambda each: len(lists[each]))
    names = lists[file]
    for other, listed in lists.items():
        if listed != names[: len(listed)]:
            raise UserError(f"{other}: other class names than in {file}, and both are for one data set")
    split_of = {
        folder: split_named(folder, root)
        for folder in files
        if any(Path(name).suffix.lower() in IMAGE_SUFFIXES for name in files[folder])
    }
    # A folder stands for all that is in it, but for what another split is.
    outermost = [
        folder for folder, split in split_of.items() if split not in {split_of.get(above) for above in folder.parents}
    ]
    return YoloDescription(file, names, root, by_split(outermost, root))
