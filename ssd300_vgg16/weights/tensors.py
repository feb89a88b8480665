"""Tensors in a checkpoint: which of its mappings is the network, and arrays out of raw bytes, checked."""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import Any, TypeGuard, TypeVar

import numpy as np

from ssd300_vgg16.errors import UserError

# Names under which training scripts save the network, the best first.
NAMES_OF_NETWORKS = ("model", "state_dict", "model_state_dict", "net", "network", "module")
MAX_DEPTH = 4
MAX_NAME_LENGTH = 200
DATA_PARALLEL = "module."

Tensor = TypeVar("Tensor")


@dataclass(frozen=True)
class _Candidate:
    path: tuple[str, ...]
    count: int


def find_state_dict(data: object, tensor_type: type[Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors of the network by name, and the names of all else in the data, as "epoch" or "model.version".

    The mapping with most tensors is the network; of several about as large, the one saved under a network's name. The
    prefix that DataParallel gives all names is dropped. Raises UserError if there is no mapping of names to tensors.
    """
    candidates = list(_candidates(data, tensor_type))
    if not candidates:
        raise UserError(
            "it holds no mapping of names to tensors; save the network's state_dict(), not the network or a list"
        )
    most = max(candidate.count for candidate in candidates)
    # From half as many tensors as the largest has on, the name tells more than the number.
    path = max(candidates, key=lambda candidate: (2 * candidate.count >= most, _rank(candidate), candidate.count)).path
    ignored = []
    level: Any = data  # a mapping at every step of the path, since `_candidates` has walked it
    for depth, step in enumerate(path):
        ignored += [".".join((*path[:depth], str(name))) for name in level if name != step]
        level = level[step]
    tensors = {name: value for name, value in level.items() if _is_name(name) and isinstance(value, tensor_type)}
    ignored += [".".join((*path, str(name))) for name in level if name not in tensors]
    return _without_prefix(tensors), ignored


def _candidates(data: object, tensor_type: type) -> Iterator[_Candidate]:
    """The mappings with tensors, the outermost first; each once, since a mapping may hold itself."""
    waiting: deque[tuple[tuple[str, ...], object]] = deque([((), data)])
    seen: set[int] = set()
    while waiting:
        path, mapping = waiting.popleft()
        if not isinstance(mapping, dict) or id(mapping) in seen:
            continue
        seen.add(id(mapping))
        if count := sum(_is_name(name) and isinstance(value, tensor_type) for name, value in mapping.items()):
            yield _Candidate(path, count)
        if len(path) < MAX_DEPTH:
            waiting.extend(((*path, name), value) for name, value in mapping.items() if _is_name(name))


def _is_name(name: object) -> TypeGuard[str]:
    return isinstance(name, str) and len(name) <= MAX_NAME_LENGTH


def _rank(candidate: _Candidate) -> int:
    name = candidate.path[-1] if candidate.path else ""
    return -NAMES_OF_NETWORKS.index(name) if name in NAMES_OF_NETWORKS else -len(NAMES_OF_NETWORKS)


def _without_prefix(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    if all(name.startswith(DATA_PARALLEL) for name in tensors):
        return {name.removeprefix(DATA_PARALLEL): tensor for name, tensor in tensors.items()}
    return tensors


MAX_DIMENSIONS = 8
MAX_NUMBERS = 2**40
BFLOAT16 = "bfloat16"
# Bytes of one number, by the name that numpy and PyTorch share.
ITEM_SIZES = {
    "float64": 8,
    "float32": 4,
    "float16": 2,
    BFLOAT16: 2,
    "int64": 8,
    "int32": 4,
    "int16": 2,
    "int8": 1,
    "uint8": 1,
    "bool": 1,
}


def numbers(raw: bytes, dtype: str, big_endian: bool = False) -> np.ndarray:
    """The bytes as [N] numbers of a type in ITEM_SIZES, in this machine's order; bfloat16 becomes float32.

    The bytes must make whole numbers.
    """
    if dtype == "bool":
        # Through uint8: a byte other than 0 and 1, taken as a bool as it is, is neither.
        return np.frombuffer(raw, np.uint8).astype(bool)
    if dtype == BFLOAT16:
        # bfloat16 is the upper half of float32.
        return (numbers(raw, "uint16", big_endian).astype(np.uint32) << 16).view(np.float32)
    stored = np.dtype(dtype).newbyteorder(">" if big_endian else "<")
    return np.frombuffer(raw, stored).astype(dtype, copy=False)


def check_shape(shape: object) -> tuple[int, ...]:
    """The shape itself; raises UserError if it is no tuple of a few counts."""
    if not (is_counts(shape) and len(shape) <= MAX_DIMENSIONS and prod(size or 1 for size in shape) <= MAX_NUMBERS):
        raise UserError(f"its shape is no tuple of up to {MAX_DIMENSIONS} counts; the file is damaged or made up")
    return shape


def strided(values: np.ndarray, offset: object, shape: object, strides: object) -> np.ndarray:
    """The view of [N] values that starts at `offset` and steps by `strides`, all three counted in values.

    Raises UserError for a view that leaves the values, or repeats them to seem more than they are.
    """
    shape = check_shape(shape)
    if not (is_counts(strides) and len(strides) == len(shape) and type(offset) is int and is_counts((offset,))):
        raise UserError("its strides or offset are no counts; the file is damaged or made up")
    count = prod(shape)
    if not count:
        return np.empty(shape, values.dtype)
    end = offset + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True)) + 1
    # The second: strides of 0 would make a small file fill the memory.
    if end > len(values) or count > len(values):
        raise UserError(
            f"its shape {shape} with strides {strides} from {offset} on reaches beyond the {len(values)} numbers stored"
        )
    item = values.itemsize
    return np.ndarray(shape, values.dtype, values, offset * item, tuple(stride * item for stride in strides))


def is_counts(values: object) -> TypeGuard[tuple[int, ...]]:
    """Whether it is a tuple of whole numbers that can count something; a bool is none."""
    return isinstance(values, tuple) and all(type(value) is int and 0 <= value <= MAX_NUMBERS for value in values)
