"""PyTorch's files of weights, read without PyTorch: the zip of today, and the stream of pickles before version 1.6."""

import io
import re
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from math import prod
from typing import BinaryIO

import numpy as np

from ssd300_vgg16.errors import UserError
from ssd300_vgg16.weights.archive import checked_zip, read_entry
from ssd300_vgg16.weights.restricted_pickle import StandIn, read_pickle, same
from ssd300_vgg16.weights.tensors import BFLOAT16, check_shape, is_counts, item_size, numbers, read_network

PICKLE_IN_ZIP = re.compile(r"([^/]+/)?data\.pkl")
# The number that begins a stream, as the instruction LONG1 of its first pickle.
STREAM_MAGIC = b"\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."
STREAM_PROTOCOL = 1001
LENGTH_BYTES = 8
MADE_UP = "the file is damaged or made up"


class _StorageType(str):
    """The type of a storage's numbers, which is no text that a pickle could hold itself."""


@dataclass(frozen=True)
class _Storage:
    """What a pickle says of numbers stored outside it: the stored run `key`, of which `size` numbers from `start`."""

    key: str
    dtype: str
    stored: int
    start: int
    size: int

    @property
    def stored_bytes(self) -> int:
        return self.stored * item_size(self.dtype)


class _Tensor:
    """What a pickle says of a tensor, not checked yet."""

    def __init__(self, storage: object, offset: object, shape: object, strides: object, *_grad_and_hooks: object):
        if not isinstance(storage, _Storage):
            raise TypeError("a tensor without its numbers")
        self.storage, self.offset, self.shape, self.strides = storage, offset, shape, strides


def _parameter(tensor: object, *_grad_and_hooks: object) -> object:
    return tensor


STORAGE_TYPES = {
    "Double": "float64",
    "Float": "float32",
    "Half": "float16",
    "BFloat16": BFLOAT16,
    "Long": "int64",
    "Int": "int32",
    "Short": "int16",
    "Char": "int8",
    "Byte": "uint8",
    "Bool": "bool",
}
NAMES: Mapping[str, object] = {
    "torch._utils._rebuild_tensor": _Tensor,
    "torch._utils._rebuild_tensor_v2": _Tensor,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
    "torch.Size": same,
    "torch.device": StandIn,
    "torch.storage.UntypedStorage": _StorageType("uint8"),
    **{f"torch.{dtype}": dtype for dtype in STORAGE_TYPES.values()},
    **{f"torch.{name}Storage": _StorageType(dtype) for name, dtype in STORAGE_TYPES.items()},
}


def is_torch_zip(archive: zipfile.ZipFile) -> bool:
    """Whether the zip is one that torch.save, or TorchScript, wrote."""
    return any(PICKLE_IN_ZIP.fullmatch(name) for name in archive.namelist())


def read_torch_zip(archive: zipfile.ZipFile) -> tuple[dict[str, np.ndarray], list[str]]:
    """The network's tensors, and the names of all else in the file; numbers that are not the network's stay unread.

    Raises UserError for a file that is damaged, is TorchScript, or asks for more than tensors.
    """
    entries = {entry.filename: entry for entry in checked_zip(archive)}
    # torch.save puts all parts into one folder, which it names after the file.
    folders = [match[1] or "" for name in entries if (match := PICKLE_IN_ZIP.fullmatch(name))]
    if len(folders) > 1:
        raise UserError("it holds several pickles named data.pkl, where torch.save writes one")
    if f"{folders[0]}constants.pkl" in entries:
        raise UserError("it is a TorchScript program: load it with torch.jit.load, and torch.save its state_dict()")

    def part(name: str) -> bytes:
        if folders[0] + name not in entries:
            raise UserError(f"the part {name!r:.80} of its file is missing; copy or download it again")
        return read_entry(archive, entries[folders[0] + name])

    if f"{folders[0]}byteorder" in entries and part("byteorder") == b"big":
        raise UserError("its numbers are big-endian, as on IBM Z: torch.save it on another machine")
    storages: dict[str, _Storage] = {}
    data = read_pickle(io.BytesIO(part("data.pkl")), NAMES, partial(_add_storage, storages))

    def stored(key: str) -> np.ndarray:
        raw, expected = part(f"data/{key}"), storages[key].stored_bytes
        if len(raw) != expected:
            raise UserError(f"it has {len(raw)} bytes of numbers stored, instead of {expected}; copy it again")
        return numbers(raw, storages[key].dtype)

    return _network(data, stored)


def read_torch_stream(file: BinaryIO) -> tuple[dict[str, np.ndarray], list[str]]:
    """As `read_torch_zip`, of a file that begins with STREAM_MAGIC.

    Pickles: a magic number, the protocol, the machine, the data, the keys of the storages; then for each key, in that
    order, how many numbers (int64) and the numbers, little-endian on any machine.
    """
    read_pickle(file, {})  # the magic number, which has been looked at already
    if read_pickle(file, {}) != STREAM_PROTOCOL:
        raise UserError(f"it is no stream of protocol {STREAM_PROTOCOL}, which PyTorch wrote; copy it again")
    read_pickle(file, {})  # sizes of numbers on the machine that wrote it, which are in the storages' types too
    storages: dict[str, _Storage] = {}
    data = read_pickle(file, NAMES, partial(_add_storage, storages))
    places = _places(file, read_pickle(file, {}), storages)

    def stored(key: str) -> np.ndarray:
        file.seek(places[key])
        return numbers(file.read(storages[key].stored_bytes), storages[key].dtype)

    return _network(data, stored)


def _places(file: BinaryIO, keys: object, storages: Mapping[str, _Storage]) -> dict[str, int]:
    """Where the numbers of each storage begin; raises UserError unless all are there, and as many as was said."""
    if not (isinstance(keys, list) and all(isinstance(key, str) for key in keys) and set(keys) == set(storages)):
        raise UserError("its list of storages is not that of its tensors; copy or download it again")
    start, end = file.tell(), file.seek(0, io.SEEK_END)
    places = {}
    for key in keys:
        file.seek(start)
        count = int.from_bytes(file.read(LENGTH_BYTES), "little", signed=True)
        places[key] = start + LENGTH_BYTES
        start = places[key] + storages[key].stored_bytes
        if start > end:
            raise UserError("it is cut short: a storage ends beyond the file's end; copy or download it again")
        if count != storages[key].stored:
            raise UserError("it is damaged: a storage has not as many numbers as its tensors say; copy it again")
    return places


def _add_storage(storages: dict[str, _Storage], saved: object) -> _Storage:
    """One that a pickle asks for, which says ("storage", type, key, device, count) and in streams a view or None."""
    if not (isinstance(saved, tuple) and len(saved) in (5, 6) and saved[0] == "storage"):
        raise UserError("its pickle asks for a thing outside it that is no storage of numbers; not loaded")
    _, kind, key, _, stored, *view = saved
    # In streams a storage may be a window of another.
    _, start, size = (view[0] if view else None) or (key, 0, stored)
    counts = is_counts((stored, start, size))
    if not (isinstance(kind, _StorageType) and isinstance(key, str) and counts and start + size <= stored):
        raise UserError(f"its pickle describes a storage that cannot be; {MADE_UP}")
    storage = _Storage(key, kind, stored, start, size)
    before = storages.setdefault(key, storage)
    if (before.dtype, before.stored) != (storage.dtype, storage.stored):
        raise UserError(f"its pickle describes one storage in two ways; {MADE_UP}")
    return storage


def _network(data: object, stored: Callable[[str], np.ndarray]) -> tuple[dict[str, np.ndarray], list[str]]:
    """The tensors of the network in a checkpoint, and the names of the rest; `stored` reads the numbers of a key."""
    # Tensors that share a storage, as tied weights do, share the array too.
    once = cache(stored)

    def read(tensor: _Tensor) -> np.ndarray:
        storage = tensor.storage
        run = once(storage.key)[storage.start : storage.start + storage.size]
        return _strided(run, tensor.offset, tensor.shape, tensor.strides)

    return read_network(data, _Tensor, read)


def _strided(values: np.ndarray, offset: object, shape: object, strides: object) -> np.ndarray:
    """The view of [N] values that starts at `offset` and steps by `strides`, all three counted in values.

    Raises UserError for a view that leaves the values, or repeats them to seem more than they are.
    """
    shape = check_shape(shape)
    if not (is_counts(strides) and len(strides) == len(shape) and type(offset) is int and is_counts((offset,))):
        raise UserError(f"its strides or offset are no counts; {MADE_UP}")
    count = prod(shape)
    if not count:
        return np.empty(shape, values.dtype)
    end = offset + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True)) + 1
    # The second: strides of 0 would make a small file fill the memory.
    if end > len(values) or count > len(values):
        raise UserError(f"its shape {shape} reaches beyond the {len(values)} numbers stored; {MADE_UP}")
    item = values.itemsize
    return np.ndarray(shape, values.dtype, values, offset * item, tuple(stride * item for stride in strides))
