"""The network in a checkpoint: the one mapping of names to tensors among optimizers, epochs and averages."""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

from ssd300_vgg16.errors import UserError

# Names under which training scripts save the network, the best first.
NAMES_OF_NETWORKS = ("model", "state_dict", "model_state_dict", "net", "network", "module")
DEEPEST = 4
LONGEST_NAME = 200
DATA_PARALLEL = "module."


@dataclass(frozen=True)
class _Candidate:
    path: tuple[str, ...]
    count: int


def find_state_dict(data: object, tensor_type: type) -> tuple[dict[str, object], list[str]]:
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
    path = max(candidates, key=lambda candidate: (2 * candidate.count >= most, _rank(candidate), candidate.count)).path
    ignored = []
    for depth, step in enumerate(path):
        ignored += [".".join((*path[:depth], str(name))) for name in data if name != step]
        data = data[step]
    tensors = {name: value for name, value in data.items() if _is_entry(name, value, tensor_type)}
    ignored += [".".join((*path, str(name))) for name in data if name not in tensors]
    return _without_prefix(tensors), ignored


def _candidates(data: object, tensor_type: type) -> Iterator[_Candidate]:
    """The mappings with tensors, the outermost first; each once, since a mapping may hold itself."""
    waiting, seen = deque([((), data)]), set()
    while waiting:
        path, mapping = waiting.popleft()
        if not isinstance(mapping, dict) or id(mapping) in seen:
            continue
        seen.add(id(mapping))
        if count := sum(_is_entry(name, value, tensor_type) for name, value in mapping.items()):
            yield _Candidate(path, count)
        if len(path) < DEEPEST:
            waiting.extend(((*path, name), value) for name, value in mapping.items() if _is_name(name))


def _is_entry(name: object, value: object, tensor_type: type) -> bool:
    return _is_name(name) and isinstance(value, tensor_type)


def _is_name(name: object) -> bool:
    return isinstance(name, str) and len(name) <= LONGEST_NAME


def _rank(candidate: _Candidate) -> int:
    name = candidate.path[-1] if candidate.path else ""
    return -NAMES_OF_NETWORKS.index(name) if name in NAMES_OF_NETWORKS else -len(NAMES_OF_NETWORKS)


def _without_prefix(tensors: dict[str, object]) -> dict[str, object]:
    if all(name.startswith(DATA_PARALLEL) for name in tensors):
        return {name.removeprefix(DATA_PARALLEL): tensor for name, tensor in tensors.items()}
    return tensors
