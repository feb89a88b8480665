"""Pickles of weights, read without running anything of theirs.

A pickle is a program for a small stack machine, and Python's own machine imports and calls whatever the pickle names.
This one cannot: it knows the instructions that plain data and tensors need, a name stands for what a table of ours
says and for nothing else, and what is "called" are functions of that table, which only put their arguments away.
"""

import io
import pickletools
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO

from ssd300_vgg16.errors import UserError

PICKLE_BYTES = 16 << 20
OPCODES = 1_000_000
MAX_KEY_BITS = 60
MAX_ARGUMENTS = 16
# What a damaged pickle can end in; pickletools warns of some bytes, which may be an error.
DAMAGED = (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, Warning)


class StandIn:
    """In the place of an object that is not made: keeps the state that the object would have been given."""

    def __init__(self, *_arguments: object):
        self.state: object = None


def mapping(pairs: object = ()) -> dict:
    """What an OrderedDict or a Counter becomes, from a dict or from a list of pairs, which is emptied.

    Nothing is there twice, so that a small pickle cannot grow by having something copied again and again.
    """
    if isinstance(pairs, dict):
        return pairs
    made: dict = {}
    if isinstance(pairs, list):
        for key, value in pairs:
            _set(made, key, value)
        pairs.clear()
    elif pairs != ():
        raise ValueError("a mapping is made from what is no list of pairs")
    return made


def same(value: tuple = ()) -> tuple:
    """What a framework's Size becomes: the tuple of counts that it is made from, not copied."""
    return value


# What checkpoints of any framework hold beside tensors: options, best figures so far, milestones.
COMMON_NAMES: Mapping[str, object] = {
    "collections.OrderedDict": mapping,
    "collections.Counter": mapping,
    "argparse.Namespace": StandIn,
    "_codecs.encode": StandIn,
    "numpy.dtype": StandIn,
    "numpy.ndarray": StandIn,
    "numpy.core.multiarray.scalar": StandIn,
    "numpy.core.multiarray._reconstruct": StandIn,
    "numpy._core.multiarray.scalar": StandIn,
    "numpy._core.multiarray._reconstruct": StandIn,
}


def read_pickle(
    file: BinaryIO, names: Mapping[str, object], persistent: Callable[[object], object] | None = None
) -> object:
    """The data of the pickle that starts at the file's position, which is left after its end.

    names: what each name (module.name) that may occur stands for, beside COMMON_NAMES; persistent: makes a value from
    what a pickle says of a thing stored outside it. Lists, tuples, texts and numbers come as they are, every mapping as
    a dict. Raises UserError that names whatever weights do not need.
    """
    start = file.tell()
    window = io.BytesIO(file.read(PICKLE_BYTES))  # a length in the pickle can ask for no more than this
    machine = _Machine({**COMMON_NAMES, **names}, persistent)
    try:
        data = machine.run(window)
    except DAMAGED as error:
        raise UserError(
            f"its pickle is damaged, cut short, or longer than {PICKLE_BYTES >> 20} MiB ({error}); copy it again"
        ) from error
    file.seek(start + window.tell())
    return data


class _Machine:
    """The stack machine; `run` may raise any of DAMAGED."""

    def __init__(self, names: Mapping[str, object], persistent: Callable[[object], object] | None):
        self.names = names
        self.persistent = persistent
        self.stack: list = []
        self.below: list[list] = []  # the stacks below each open mark
        self.memo: dict[int, object] = {}

    def run(self, file: BinaryIO) -> object:
        for count, (opcode, argument, _) in enumerate(pickletools.genops(file)):
            if opcode.name == "STOP":
                return self.stack.pop()
            if opcode.name not in INSTRUCTIONS:
                raise UserError(f"its pickle has the instruction {opcode.name}, which weights do not need; not loaded")
            # So that a short file cannot keep this machine busy for hours.
            if count == OPCODES:
                raise UserError(f"its pickle has more than {OPCODES:,} instructions, weights have fewer; not loaded")
            INSTRUCTIONS[opcode.name](self, argument)
        raise ValueError("it has no end")

    def push(self, value: object) -> None:
        self.stack.append(value)

    def take(self, count: int) -> list:
        if count > len(self.stack):
            raise ValueError("values are missing")
        # Never below an open mark: those values are on another stack.
        values = self.stack[-count:]
        del self.stack[-count:]
        return values

    def mark(self, _: object) -> None:
        self.below.append(self.stack)
        self.stack = []

    def take_to_mark(self) -> list:
        values, self.stack = self.stack, self.below.pop()
        return values

    def memoize(self, index: int | None) -> None:
        self.memo[len(self.memo) if index is None else index] = self.stack[-1]

    def append(self, values: list) -> None:
        if not isinstance(self.stack[-1], list):
            raise ValueError("items are added to what is no list")
        self.stack[-1].extend(values)

    def set_items(self, values: list) -> None:
        if len(values) % 2 or not isinstance(self.stack[-1], dict):
            raise ValueError("keys are set in what is no mapping")
        for key, value in zip(values[::2], values[1::2], strict=True):
            _set(self.stack[-1], key, value)

    def look_up(self, module: object, name: object) -> None:
        full = f"{module}.{name}" if isinstance(module, str) and isinstance(name, str) else ""
        if full not in self.names:
            raise UserError(
                f"its pickle asks for {full!r:.120}, which could run code; it was not loaded. "
                "Weights need none of it: save the state_dict() of the network alone"
            )
        self.push(self.names[full])

    def call(self, _: object) -> None:
        function, arguments = self.take(2)
        if not (callable(function) and isinstance(arguments, tuple) and len(arguments) <= MAX_ARGUMENTS):
            raise ValueError("it calls what is no function, or with too many arguments")
        self.push(function(*arguments))

    def build(self, _: object) -> None:
        (state,) = self.take(1)
        if isinstance(self.stack[-1], StandIn):
            self.stack[-1].state = state
        elif not isinstance(self.stack[-1], dict):  # the attributes of a mapping (a state dict's versions) are dropped
            raise ValueError("it gives a state to what has none")

    def load_persistent(self, _: object) -> None:
        if self.persistent is None:
            raise UserError("its pickle asks for a thing stored outside it, which these files do not have; not loaded")
        self.push(self.persistent(*self.take(1)))


def _set(target: dict, key: object, value: object) -> None:
    # Keys are hashed: tuples within tuples, or numbers chosen to collide, can make that endless.
    if not (isinstance(key, str | bytes) or (isinstance(key, int) and key.bit_length() <= MAX_KEY_BITS)):
        raise UserError(f"its pickle has a key of the type {type(key).__name__}, where weights have names; not loaded")
    target[key] = value


def _instructions() -> dict[str, Callable[[_Machine, Any], None]]:  # pickletools gives each its type of argument
    """What to do with the argument of each instruction; those that weights do not need are left out.

    So are those of protocol 0, which is text: frameworks write protocol 2 and later ones.
    """
    table: dict[str, Callable[[_Machine, Any], None]] = {
        "NONE": lambda m, _: m.push(None),
        "NEWTRUE": lambda m, _: m.push(True),
        "NEWFALSE": lambda m, _: m.push(False),
        "MARK": _Machine.mark,
        "EMPTY_DICT": lambda m, _: m.push({}),
        "EMPTY_LIST": lambda m, _: m.push([]),
        "EMPTY_TUPLE": lambda m, _: m.push(()),
        "TUPLE": lambda m, _: m.push(tuple(m.take_to_mark())),
        "TUPLE1": lambda m, _: m.push(tuple(m.take(1))),
        "TUPLE2": lambda m, _: m.push(tuple(m.take(2))),
        "TUPLE3": lambda m, _: m.push(tuple(m.take(3))),
        "APPEND": lambda m, _: m.append(m.take(1)),
        "APPENDS": lambda m, _: m.append(m.take_to_mark()),
        "SETITEM": lambda m, _: m.set_items(m.take(2)),
        "SETITEMS": lambda m, _: m.set_items(m.take_to_mark()),
        "GLOBAL": lambda m, name: m.look_up(*name.split(" ", 1)),
        "STACK_GLOBAL": lambda m, _: m.look_up(*m.take(2)),
        "REDUCE": _Machine.call,
        "NEWOBJ": _Machine.call,
        "BUILD": _Machine.build,
        "BINPERSID": _Machine.load_persistent,
    }
    plain = "BININT BININT1 BININT2 LONG1 BINFLOAT BINSTRING SHORT_BINSTRING BINUNICODE SHORT_BINUNICODE BINBYTES"
    table |= dict.fromkeys([*plain.split(), "SHORT_BINBYTES"], _Machine.push)
    table |= dict.fromkeys(("BINPUT", "LONG_BINPUT", "MEMOIZE"), _Machine.memoize)
    table |= dict.fromkeys(("BINGET", "LONG_BINGET"), lambda m, index: m.push(m.memo[index]))
    return table | dict.fromkeys(("PROTO", "FRAME"), lambda m, _: None)


INSTRUCTIONS = _instructions()
