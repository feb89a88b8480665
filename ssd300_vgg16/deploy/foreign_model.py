"""What an ONNX model that somebody gives could hold beyond what `export` writes: refused before anything computes it.

A loop need not end, and data kept in another file could be any file of the user's. The models are read here as far as
that takes, field by field: onnx itself takes longer to import than to detect, and protobuf makes an object of each of a
billion empty parts.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ssd300_vgg16.errors import UserError
from ssd300_vgg16.text import listed

# Those of exports, in float32 and 8 bits; tests/deploy/test_exported.py holds them against what exports have.
_NAMES = (
    "Add Cast Clip Concat ConstantOfShape Conv DequantizeLinear Div Exp Gather GatherND Greater MaxPool Min Mul "
    "NonMaxSuppression NonZero QuantizeLinear ReduceSum Relu Reshape ScatterND Shape Slice Softmax Split Sqrt Sub TopK "
    "Transpose Unsqueeze"
)
OPERATORS = set(_NAMES.split())
MAX_PARTS = 100_000  # of a model; exports have some thousands
# Of onnx.proto: numbers of fields.
_GRAPH, _TRAINING, _FUNCTIONS = 7, 20, 25  # of a model
_NODE, _CONSTANT, _SPARSE = 1, 5, 15  # of a graph
_OPERATOR, _ATTRIBUTE, _DOMAIN = 4, 5, 7  # of a node
_INNER = {5, 6, 10, 11, 22, 23}  # of an attribute: tensors and graphs
_EXTERNAL, _LOCATION = 13, 14  # of a constant


def refuse_foreign(path: Path, content: bytes) -> None:
    """Raises UserError for a model with operators that no export here has, or with data in another file.

    And ValueError, TypeError or IndexError for what is no model, or one of more than MAX_PARTS.
    """
    fields = _Reader().fields
    names, inner, elsewhere = set(), False, False
    for in_model, graph in fields(content):
        inner |= in_model in (_TRAINING, _FUNCTIONS)
        for in_graph, part in fields(graph) if in_model == _GRAPH else ():
            inner |= in_graph == _SPARSE
            if in_graph == _NODE:
                said = list(fields(part))
                named = [text for number in (_OPERATOR, _DOMAIN) for at, text in said if at == number and text]
                names.add(" of ".join(memoryview(text).tobytes().decode(errors="replace") for text in named))
                inner |= any(number in _INNER for at, one in said if at == _ATTRIBUTE for number, _ in fields(one))
            elif in_graph == _CONSTANT:
                elsewhere |= any(at == _EXTERNAL or (at == _LOCATION and value) for at, value in fields(part))
    advice = "; export its weights with python -I -m ssd300_vgg16.export"
    if others := sorted(names - OPERATORS):
        raise UserError(f"{path}: no export of this package has operators like {listed(others, 3)}{advice}")
    if elsewhere:
        raise UserError(f"{path}: it has data in another file, which no export of this package has{advice}")
    if inner:
        raise UserError(f"{path}: it has graphs or tensors in operators, which no export of this package has{advice}")


class _Reader:
    """Of protobuf's messages; counts their fields."""

    def __init__(self) -> None:
        self.count = 0

    def fields(self, message: Any) -> Iterator[tuple[int, Any]]:
        """Number and value of each field: a number, the bytes of a text or message, 0 for what has a fixed length."""
        data, place = memoryview(message), 0
        while place < len(data):
            self.count += 1
            key, place = _number(data, place)
            value: Any = 0
            length = {1: 8, 5: 4}.get(key & 7, 0)
            if key & 7 == 2:
                length, place = _number(data, place)
                value = data[place : place + length]
            elif key & 7 == 0:
                value, place = _number(data, place)
            place += length
            if key & 7 not in (0, 1, 2, 5) or place > len(data) or self.count > MAX_PARTS:
                raise ValueError("no message, or too long a one")
            yield key >> 3, value


def _number(data: memoryview, place: int) -> tuple[int, int]:
    """One of variable length, and where it ends."""
    number = 0
    for shift in range(0, 70, 7):
        byte = data[place]
        number, place = number | (byte & 127) << shift, place + 1
        if byte < 128:
            return number, place
    raise ValueError("a number that does not end")
