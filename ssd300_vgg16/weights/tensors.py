"""Tensors in a checkpoint: which of its mappings is the network, and arrays out of raw bytes, checked."""

from collections import deque
from collections.abc import Callable, Iterator, Mapping
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


def read_network(
    data: object, tensor_type: type[Tensor], read: Callable[[Tensor], np.ndarray]
) -> tuple[dict[str, np.ndarray], list[str]]:
    """The network's arrays by name, and the names of all else in the data, as "epoch" or "model.version".

    read: the array of a tensor that the data describe. The mapping with most tensors is the network; of several about
    as large, the one saved under a network's name. The prefix that DataParallel gives all names is dropped. Raises
    UserError if there is no mapping of names to tensors, and with the name of a tensor that cannot be read.
    """
    candidates = list(_candidates(data, tensor_type))
    if not candidates:
        raise UserError(
            "it holds no mapping of names to tensors; save the network's state_dict(), not the network or a list"
        )
    most = max(count for _, count in candidates)
    # From half as many tensors as the largest has on, the name tells more than the number.
    path, _ = max(candidates, key=lambda candidate: (2 * candidate[1] >= most, _rank(candidate[0]), candidate[1]))
    ignored = []
    level: Any = data  # a mapping at every step of the path, since `_candidates` has walked it
    for depth, step in enumerate(path):
        ignored += [".".join((*path[:depth], str(name))) for name in level if name != step]
        level = level[step]
    tensors = {name: value for name, value in level.items() if _is_name(name) and isinstance(value, tensor_type)}
    ignored += [".".join((*path, str(name))) for name in level if name not in tensors]
    prefix = DATA_PARALLEL if all(name.startswith(DATA_PARALLEL) for name in tensors) else ""
    arrays = {}
    for name, tensor in tensors.items():
        try:
            arrays[name.removeprefix(prefix)] = read(tensor)
        except UserError as error:
            raise UserError(f"its tensor {name!r:.120}: {error}") from error
    return arrays, ignored


def _candidates(data: object, tensor_type: type) -> Iterator[tuple[tuple[str, ...], int]]:
    """Path and number of tensors of each mapping with some, the outermost first; once, since one may hold itself."""
    waiting: deque[tuple[tuple[str, ...], object]] = deque([((), data)])
    seen: set[int] = set()
    while waiting:
        path, mapping = waiting.popleft()
        if not isinstance(mapping, dict) or id(mapping) in seen:
            continue
        seen.add(id(mapping))
        if count := sum(_is_name(name) and isinstance(value, tensor_type) for name, value in mapping.items()):
            yield path, count
        if len(path) < MAX_DEPTH:
            waiting.extend(((*path, name), value) for name, value in mapping.items() if _is_name(name))


def _is_name(name: object) -> TypeGuard[str]:
    return isinstance(name, str) and len(name) <= MAX_NAME_LENGTH


def _rank(path: tuple[str, ...]) -> int:
    known = path[-1:] and path[-1] in NAMES_OF_NETWORKS
    return -NAMES_OF_NETWORKS.index(path[-1]) if known else -len(NAMES_OF_NETWORKS)


def refuse_not_finite(tensors: Mapping[str, np.ndarray]) -> None:
    """Raises UserError, which names the first, if one holds NaN, infinity, or what is infinite in float32."""
    for name, array in tensors.items():
        # Comparisons with NaN are false.
        if array.size and not (array.min() >= -_LARGEST and array.max() <= _LARGEST):
            raise UserError(
                f"its tensor {name!r:.120} holds NaN or infinity, with which nothing is detected or learned: "
                "take a file from before that, or export it again"
            )


MAX_DIMENSIONS = 8
_LARGEST = np.finfo(np.float32).max
MAX_NUMBERS = 2**40
BFLOAT16 = "bfloat16"


def item_size(dtype: str) -> int:
    """Bytes of one number of a type, by the name that numpy and PyTorch share."""
    return 2 if dtype == BFLOAT16 else np.dtype(dtype).itemsize


def numbers(raw: bytes, dtype: str) -> np.ndarray:
    """Little-endian bytes as [N] numbers of a type; bfloat16 becomes float32. The bytes must make whole numbers."""
    if dtype == "bool":
        # Through uint8: a byte other than 0 and 1, taken as a bool as it is, is neither.
        return np.frombuffer(raw, np.uint8).astype(bool)
    if dtype == BFLOAT16:
        # bfloat16 is the upper half of float32.
        return (np.frombuffer(raw, np.uint16).astype(np.uint32) << 16).view(np.float32)
    return np.frombuffer(raw, dtype)


def check_shape(shape: object) -> tuple[int, ...]:
    """The shape itself; raises UserError if it is no tuple of a few counts."""
    if not (is_counts(shape) and len(shape) <= MAX_DIMENSIONS and prod(size or 1 for size in shape) <= MAX_NUMBERS):
        raise UserError(f"its shape is no tuple of up to {MAX_DIMENSIONS} counts; the file is damaged or made up")
    return shape


def is_counts(values: object) -> TypeGuard[tuple[int, ...]]:
    """Whether it is a tuple of whole numbers that can count something; a bool is none."""
    return isinstance(values, tuple) and all(type(value) is int and 0 <= value <= MAX_NUMBERS for value in values)
