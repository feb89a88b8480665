"""PyTorch's files of weights, read without PyTorch: the zip of today, and the stream of pickles before version 1.6."""

import io
import re
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from struct import Struct
from typing import BinaryIO

import numpy as np

from ssd300_vgg16.errors import UserError
from ssd300_vgg16.weights.archive import checked_zip, read_entry
from ssd300_vgg16.weights.restricted_pickle import StandIn, read_pickle, same
from ssd300_vgg16.weights.tensors import BFLOAT16, ITEM_SIZES, find_state_dict, is_counts, numbers, strided

PICKLE_IN_ZIP = re.compile(r"([^/]+/)?data\.pkl")
# The number that begins a stream, as the instruction LONG1 of its first pickle.
STREAM_MAGIC = b"\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."
STREAM_PROTOCOL = 1001
LENGTH = Struct("<q")
# What the files of PyTorch's first releases, which are tars, hold.
TAR_MEMBERS = frozenset(("pickle", "storages", "tensors"))


@dataclass(frozen=True)
class _StorageType:
    dtype: str


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
        return self.stored * ITEM_SIZES[self.dtype]


@dataclass(frozen=True)
class _Tensor:
    """What a pickle says of a tensor, not checked yet."""

    storage: _Storage
    offset: object
    shape: object
    strides: object


def _tensor(storage: object, offset: object, shape: object, strides: object, *_grad_and_hooks: object) -> _Tensor:
    if not isinstance(storage, _Storage):
        raise TypeError("a tensor without its numbers")
    return _Tensor(storage, offset, shape, strides)


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
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
    "torch.Size": same,
    "torch.device": StandIn,
    "torch.storage.UntypedStorage": _StorageType("uint8"),
    **{f"torch.{dtype}": dtype for dtype in ITEM_SIZES},
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

    # Older releases do not write the part byteorder: their numbers are taken to be little-endian.
    big_endian = f"{folders[0]}byteorder" in entries and part("byteorder") == b"big"

    def run(storage: _Storage) -> np.ndarray:
        raw = part(f"data/{storage.key}")
        if len(raw) != storage.stored_bytes:
            raise UserError(
                f"it has {len(raw)} bytes of numbers stored, instead of {storage.stored_bytes}; copy it again"
            )
        return numbers(raw, storage.dtype, big_endian)

    return _network(read_pickle(io.BytesIO(part("data.pkl")), NAMES, _Storages().add), run)


def read_torch_stream(file: BinaryIO) -> tuple[dict[str, np.ndarray], list[str]]:
    """As `read_torch_zip`, of a file that begins with STREAM_MAGIC.

    Pickles: a magic number, the protocol, the machine, the data, the keys of the storages; then for each key, in that
    order, how many numbers (int64) and the numbers, little-endian on any machine.
    """
    # The magic number, which has been looked at already.
    read_pickle(file, {})
    if read_pickle(file, {}) != STREAM_PROTOCOL:
        raise UserError(
            f"it is no stream of protocol {STREAM_PROTOCOL}, which PyTorch wrote; copy or download it again"
        )
    # Sizes of numbers on the machine that wrote it, which are in the storages' types too.
    read_pickle(file, {})
    storages = _Storages()
    data = read_pickle(file, NAMES, storages.add)
    places = _places(file, read_pickle(file, {}), storages.by_key)

    def run(storage: _Storage) -> np.ndarray:
        file.seek(places[storage.key])
        return numbers(file.read(storage.stored_bytes), storage.dtype)

    return _network(data, run)


def _places(file: BinaryIO, keys: object, storages: Mapping[str, _Storage]) -> dict[str, int]:
    """Where the numbers of each storage begin; raises UserError unless all are there, and as many as was said."""
    if not (isinstance(keys, list) and all(isinstance(key, str) for key in keys) and set(keys) == set(storages)):
        raise UserError("its list of storages is not that of its tensors; copy or download it again")
    start, end = file.tell(), file.seek(0, io.SEEK_END)
    places = {}
    for key in keys:
        file.seek(start)
        length = file.read(LENGTH.size)
        places[key] = start + LENGTH.size
        start = places[key] + storages[key].stored_bytes
        if len(length) < LENGTH.size or start > end:
            raise UserError(f"it is cut short: of {len(keys)} storages, the {len(places)}th ends beyond the file's end")
        if LENGTH.unpack(length) != (storages[key].stored,):
            raise UserError("it is damaged: a storage has not as many numbers as its tensors say; copy it again")
    return places


class _Storages:
    """The storages that a pickle asks for."""

    def __init__(self) -> None:
        self.by_key: dict[str, _Storage] = {}

    def add(self, saved: object) -> _Storage:
        """One, from what the pickle says: ("storage", type, key, device, count) and in streams a view or None."""
        if not (isinstance(saved, tuple) and len(saved) in (5, 6) and saved[0] == "storage"):
            raise UserError("its pickle asks for a thing outside it that is no storage of numbers; not loaded")
        _, kind, key, _, stored, *view = saved
        # In streams a storage may be a window of another.
        _, start, size = (view[0] if view else None) or (key, 0, stored)
        counts = is_counts((stored, start, size))
        if not (isinstance(kind, _StorageType) and isinstance(key, str) and counts and start + size <= stored):
            raise UserError("its pickle describes a storage that cannot be; the file is damaged or made up")
        storage = _Storage(key, kind.dtype, stored, start, size)
        before = self.by_key.setdefault(key, storage)
        if (before.dtype, before.stored) != (storage.dtype, storage.stored):
            raise UserError("its pickle describes one storage in two ways; the file is damaged or made up")
        return storage


def _network(data: object, run: Callable[[_Storage], np.ndarray]) -> tuple[dict[str, np.ndarray], list[str]]:
    """The tensors of the network in a checkpoint, and the names of the rest; `run` reads the stored numbers."""
    described, ignored = find_state_dict(data, _Tensor)
    runs: dict[str, np.ndarray] = {}
    tensors = {}
    for name, tensor in described.items():
        storage = tensor.storage
        try:
            # Tensors that share a storage, as tied weights do, share the array too.
            if storage.key not in runs:
                runs[storage.key] = run(storage)
            stored = runs[storage.key][storage.start : storage.start + storage.size]
            tensors[name] = strided(stored, tensor.offset, tensor.shape, tensor.strides)
        except UserError as error:
            raise UserError(f"its tensor {name!r:.120}: {error}") from error
    return tensors, ignored
