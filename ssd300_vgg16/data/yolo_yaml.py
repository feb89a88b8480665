"""The description of a data set in YOLO's layout: data.yaml."""

from dataclasses import dataclass
from pathlib import Path

import yaml

from ssd300_vgg16.errors import UserError

SPLITS = ("train", "val")
FILE_NAMES = ("data.yaml", "data.yml", "dataset.yaml")


@dataclass(frozen=True)
class YoloDescription:
    """What data.yaml says: the class names in order of their index, the folder that paths are relative to, and for
    each split that it names where its images are: folders, or text files that list them."""

    file: Path
    names: tuple[str, ...]
    root: Path
    places: dict[str, tuple[Path, ...]]


def find_yaml(data_path: Path) -> Path | None:
    """data_path if it is a YAML file; in a folder the file of a usual name, else its only YAML file."""
    if data_path.is_file():
        return data_path if data_path.suffix.lower() in (".yaml", ".yml") else None
    usual = [data_path / name for name in FILE_NAMES if (data_path / name).is_file()]
    return (usual or _only([*data_path.glob("*.yaml"), *data_path.glob("*.yml")]) or [None])[0]


def _only(paths: list[Path]) -> list[Path]:
    return paths if len(paths) == 1 else []


def read_yaml(data_path: Path) -> YoloDescription:
    """The description in this file, or in this folder. Places need not exist. Raises UserError, naming the key."""
    file = find_yaml(data_path)
    if file is None:
        raise UserError(f"{data_path}: no data.yaml there; name a YOLO data set's YAML file, or its folder")
    content = _content(file)
    if "kpt_shape" in content:
        raise UserError(f"{file}: kpt_shape: the labels are key points, not boxes; they cannot be used")
    root = _root(content.get("path"), file)
    places = {split: _places(content[split], split, root, file) for split in SPLITS if content.get(split) is not None}
    return YoloDescription(file, _names(content, file), root, places)


def _content(file: Path) -> dict:
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise UserError(f"{file}: cannot be read: {error.strerror}") from None
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise UserError(f"{file}{line}: not valid YAML: {error.problem}") from None
    except (yaml.YAMLError, ValueError, OverflowError, RecursionError) as error:
        raise UserError(f"{file}: not valid YAML: {error}") from None
    if not isinstance(content, dict):
        raise UserError(f"{file}: a YOLO data set's YAML has keys train, val and names; this has none")
    return content


def _root(path: object, file: Path) -> Path:
    """The folder that `path` means: relative to the file, which itself is in it if there is no `path`."""
    if path is None:
        return file.parent
    if not isinstance(path, str):
        raise UserError(f"{file}: path: must be the name of a folder, not {path!r:.80}")
    root = file.parent / path
    if not root.is_dir():
        raise UserError(f"{file}: path: no folder {root}; without this key it is the YAML file's own folder")
    return root


def _places(value: object, split: str, root: Path, file: Path) -> tuple[Path, ...]:
    values = value if isinstance(value, list) else [value]
    if not values or not all(isinstance(entry, str) and entry.strip() for entry in values):
        raise UserError(f"{file}: {split}: must be a folder, a list of folders or a .txt file, not {value!r:.80}")
    return tuple(_place(entry.strip(), root) for entry in values)


def _place(entry: str, root: Path) -> Path:
    place = root / entry
    inside = root / entry.removeprefix("../")
    # Exports of some tools say ../train/images for a folder beside the file.
    return inside if not place.exists() and inside.exists() else place


def _names(content: dict, file: Path) -> tuple[str, ...]:
    names = content.get("names")
    if isinstance(names, dict):
        if not names or any(type(key) is not int for key in names) or sorted(names) != list(range(len(names))):
            raise UserError(f"{file}: names: its numbers must be 0, 1, 2 and so on, one for each class")
        names = [names[index] for index in range(len(names))]
    if not isinstance(names, list) or not names:
        raise UserError(f"{file}: names: must be a list of the classes' names" + (", it is absent" * (names is None)))
    for index, name in enumerate(names):
        if type(name) not in (str, int) or not str(name).strip():
            raise UserError(f"{file}: names: the name of class {index} is {name!r:.80}; put names in quotes")
    _refuse_other_count(content.get("nc"), len(names), file)
    return tuple(str(name).strip() for name in names)


def _refuse_other_count(nc: object, count: int, file: Path) -> None:
    if nc is not None and (type(nc) is not int or nc != count):
        raise UserError(f"{file}: nc: {nc!r:.80}, but there are {count} names")
