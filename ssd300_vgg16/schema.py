"""JSON that anyone may have written, held against types when it is read: the program goes on with what it expects.

Types are those of annotations: int, float, str, bool, None, unions, list[T], tuple[T, ...], tuple[T, U], dict[str, T],
dataclasses and TypedDicts. Of the last two, unknown fields are passed over, as other versions have others; and fields
may be absent, but for those that a TypedDict requires.
"""

import dataclasses
import json
import os
import reprlib
import types
from collections.abc import Mapping
from typing import Any, Union, get_args, get_origin, get_type_hints, is_typeddict

from ssd300_vgg16 import reading

MAX_LETTERS = 1 << 20
_NAMES = {int: "a whole number", float: "a number", str: "a text", bool: "true or false", type(None): "null"}


def read_json_as(path: str | os.PathLike, kind: Any) -> Any:
    """The content of a run's JSON file, of this type. Raises OSError, and ValueError with the place that is otherwise.

    kind: a type, or a mapping of names to types, as those of a dataclass's fields.
    """
    return loads_as(reading.read_bytes(path, reading.RUN_BYTES), kind)


def loads_as(text: str | bytes, kind: Any) -> Any:
    """As `read_json_as`, of a text."""
    try:
        value = json.loads(text)
    except RecursionError as error:
        raise ValueError("lists in lists in lists") from error
    check(value, kind)
    return value


def check(value: object, kind: Any, place: str = "it") -> None:
    """Raises ValueError, which names the place, if a value of JSON is not of this type."""
    if kind is Any:
        return
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        _check_any(value, arguments, place)
    elif origin in (list, tuple):
        _expect(isinstance(value, list), value, "a list", place)
        kinds = arguments if origin is tuple and arguments[-1] is not ... else arguments[:1] * len(value)  # type: ignore[arg-type]
        _expect(len(value) == len(kinds), value, f"a list of {len(kinds)}", place)  # type: ignore[arg-type]
        for number, (one, of_one) in enumerate(zip(value, kinds, strict=True)):  # type: ignore[call-overload]
            check(one, of_one, f"{place}[{number}]")
    elif origin is dict:
        _expect(isinstance(value, dict), value, "an object", place)
        for name, one in value.items():  # type: ignore[attr-defined]
            check(name, str, f"a name in {place}")
            check(one, arguments[1], f"{place}.{name:.80}")
    elif isinstance(kind, Mapping) or dataclasses.is_dataclass(kind) or is_typeddict(kind):
        _expect(isinstance(value, dict), value, "an object", place)
        fields = kind if isinstance(kind, Mapping) else get_type_hints(kind)
        for name in sorted(getattr(kind, "__required_keys__", ())):
            _expect(name in value, value, f"an object with {name}", place)  # type: ignore[operator]
        for name in fields.keys() & value.keys():  # type: ignore[attr-defined]
            check(value[name], fields[name], name if place == "it" else f"{place}.{name}")  # type: ignore[index]
    else:
        _expect(_is(value, kind), value, _NAMES[kind], place)


def _check_any(value: object, kinds: tuple[Any, ...], place: str) -> None:
    faults = []
    for kind in kinds:
        try:
            return check(value, kind, place)
        except ValueError as error:
            faults.append(error)
    raise faults[0]


def _is(value: object, kind: type) -> bool:
    if kind in (int, float):
        # true is no number; and JSON has NaN here, and numbers of any length.
        number = type(value) is int or (kind is float and type(value) is float)
        return number and abs(value) < 2**63  # type: ignore[arg-type]
    return type(value) is kind and (kind is not str or len(value) <= MAX_LETTERS)  # type: ignore[arg-type]


def _expect(is_so: bool, value: object, what: str, place: str) -> None:
    if not is_so:
        raise ValueError(f"{place} is {reprlib.repr(value)}, not {what}")
