"""OneFlow's folders of weights, read without OneFlow: a pickle beside a folder per tensor, or only such folders.

Each tensor's folder has the numbers in `out` and their shape and type in `meta`. The older layout has no pickle but an
empty file `snapshot_done`, and the folders have the tensors' own names.
"""

import errno
import io
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from math import prod
from pathlib import Path

import numpy as np

from ssd300_vgg16 import reading
from ssd300_vgg16.errors import UserError
from ssd300_vgg16.weights.restricted_pickle import PICKLE_BYTES, StandIn, read_pickle, same
from ssd300_vgg16.weights.tensors import BFLOAT16, check_shape, item_size, numbers, read_network

PICKLE, DONE, META, NUMBERS = "pickled_data", "snapshot_done", "meta", "out"
PROTOCOL = 1
META_BYTES = 4096
# As protobuf prints oneflow.VariableMetaInfo.
META_TEXT = re.compile(r"\s*shape\s*\{((?:\s*dim:\s*\d{1,18})*)\s*\}\s*data_type:\s*k(\w{1,20})\s*")
TYPES = {
    "Double": "float64",
    "Float": "float32",
    "Float16": "float16",
    "BFloat16": BFLOAT16,
    "Int64": "int64",
    "Int32": "int32",
    "Int16": "int16",
    "Int8": "int8",
    "UInt8": "uint8",
    "Bool": "bool",
}


@dataclass(frozen=True)
class Files:
    """Files of a folder on a disk or in an archive: their sizes in bytes by name, and how to read one."""

    sizes: Mapping[str, int]
    read: Callable[[str], bytes]


class _Tensor(StandIn):
    """A tensor or parameter, whose state says in which folder its numbers are."""


# OneFlow's releases named the module of its classes differently.
_TENSORS = ("Tensor", "_oneflow_internal.Tensor", "framework.tensor.Tensor")
_PARAMETERS = ("nn.Parameter", "nn.parameter.Parameter", "_oneflow_internal.nn.Parameter")
NAMES: Mapping[str, object] = {
    **{f"oneflow.{name}": _Tensor for name in _TENSORS + _PARAMETERS},
    "oneflow.Size": same,
    "oneflow._oneflow_internal.Size": same,
    "oneflow._oneflow_internal.dtype": StandIn,
}


def files_on_disk(folder: Path) -> Files:
    """The files of a folder that may be of weights: those in it, and each subfolder's numbers and meta.

    Raises OSError if what is read of them is too large.
    """
    paths = [*folder.glob("*"), *folder.glob(f"*/{META}"), *folder.glob(f"*/{NUMBERS}")]
    sizes = {path.relative_to(folder).as_posix(): path.stat().st_size for path in paths if path.is_file()}
    # All together: sparse files have any size, and take no place.
    if (size := sum(size for name, size in sizes.items() if _is_read(name))) > reading.WEIGHTS_BYTES.value:
        raise OSError(errno.EOVERFLOW, f"has {reading.WEIGHTS_BYTES.told(size)}", str(folder))

    def read(name: str) -> bytes:
        # No more than was measured: what is no file of a disk may say 0 bytes, and never end.
        with reading.opened(folder / name) as file:
            return file.read(sizes[name])

    return Files(sizes, read)


def parts_on_disk(weights: Path) -> list[Path]:
    """The files that weights consist of, a file's or a folder of OneFlow's. Raises OSError as `files_on_disk` does."""
    if weights.is_dir():
        return sorted(weights / name for name in files_on_disk(weights).sizes if _is_read(name))
    return [weights] if weights.exists() else []


def _is_read(name: str) -> bool:
    return name.rpartition("/")[2] in (PICKLE, DONE, META, NUMBERS)


def roots(files: Files) -> list[str]:
    """The folders that hold weights as OneFlow writes them, as prefixes of names ("" or "some/folder/")."""
    marks = [name.rpartition("/") for name in files.sizes]
    return sorted({folder + slash for folder, slash, last in marks if last in (PICKLE, DONE)})


def read_flow_folder(files: Files, root: str) -> tuple[dict[str, np.ndarray], list[str]]:
    """The network's tensors in the folder with this prefix, and the names of all else in it.

    Raises UserError for a tensor whose numbers are missing or not as many as `meta` says, and for a pickle that asks
    for more than tensors.
    """

    def read(name: str, max_bytes: int) -> bytes:
        path, file = root + name, name.rpartition("/")[2]
        if path not in files.sizes:
            raise UserError(f"its {file} is missing; copy or download the whole folder again")
        if files.sizes[path] > max_bytes:
            raise UserError(f"its {file} has {files.sizes[path]} bytes, where {max_bytes} are expected; not loaded")
        return files.read(path)

    # Tensors that share a folder (tied weights, or a file made to seem large) share one array.
    @cache
    def array(folder: str) -> np.ndarray:
        shape, dtype = _meta(read(f"{folder}/{META}", META_BYTES))
        expected = prod(shape) * item_size(dtype)
        raw = read(f"{folder}/{NUMBERS}", expected)
        if len(raw) != expected:
            raise UserError(f"its {NUMBERS} has {len(raw)} bytes, its {META} says {expected}; copy it again")
        return numbers(raw, dtype).reshape(shape)

    if root + PICKLE in files.sizes:
        saved = read_pickle(io.BytesIO(read(PICKLE, PICKLE_BYTES)), NAMES)
        if not isinstance(saved, dict) or saved.get("protocol_version") != PROTOCOL:
            raise UserError(f"its {PICKLE} is not one that flow.save wrote (protocol_version {PROTOCOL})")
        return read_network(saved.get("data"), _Tensor, lambda tensor: array(_folder(tensor.state)))
    # The older layout: a folder with the name of each tensor.
    inside = sorted(name.removeprefix(root) for name in files.sizes if name.startswith(root) and name != root + DONE)
    folders = [folder for folder, _, file in (name.partition("/") for name in inside) if file == NUMBERS]
    if not folders:
        raise UserError(f"it has {DONE}, but no folder with the numbers of a tensor ({NUMBERS}); copy it again")
    arrays, _ = read_network({folder: folder for folder in folders}, str, array)
    return arrays, [name for name in inside if name.partition("/")[0] not in folders]


def _folder(state: object) -> str:
    """The folder of a tensor, from its state in the pickle."""
    folder = state.get("path") if isinstance(state, dict) else None
    if not isinstance(folder, str) or not re.fullmatch(r"\w+", folder, re.ASCII):
        raise UserError(f"it does not lie in a plain folder beside {PICKLE}; not loaded")
    return folder


def _meta(text: bytes) -> tuple[tuple[int, ...], str]:
    """The shape and type of the numbers beside it."""
    match = META_TEXT.fullmatch(text.decode("latin1"))
    if match is None or match[2] not in TYPES:
        raise UserError(f"its {META} says no shape and type of numbers that are read here: {text[:80]!r}")
    return check_shape(tuple(int(count) for count in re.findall(r"\d+", match[1]))), TYPES[match[2]]
