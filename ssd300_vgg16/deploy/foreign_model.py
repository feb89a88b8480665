"""What an ONNX model that somebody gives could hold beyond what `export` writes: refused before anything computes it.

A loop need not end, and data kept in another file could be any file of the user's. The models are read by protobuf,
for as much of ONNX's format as it takes: onnx itself takes longer to import than to detect.
"""

from pathlib import Path
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool
from google.protobuf.message_factory import MessageFactory

from ssd300_vgg16.errors import UserError
from ssd300_vgg16.text import listed

# Those of exports, in float32 and 8 bits; tests/deploy/test_exported.py holds them against what exports have.
_NAMES = (
    "Add Cast Clip Concat ConstantOfShape Conv DequantizeLinear Div Exp Gather GatherND Greater MaxPool Min Mul "
    "NonMaxSuppression NonZero QuantizeLinear ReduceSum Relu Reshape ScatterND Shape Slice Softmax Split Sqrt Sub TopK "
    "Transpose Unsqueeze"
)
OPERATORS = set(_NAMES.split())
# Of onnx.proto: numbers of fields, and the message each holds, or the type of its value.
_Field = descriptor_pb2.FieldDescriptorProto
_BYTES, _INTEGER = _Field.TYPE_BYTES, _Field.TYPE_INT32
_FORMAT: dict[str, dict[str, tuple[int, Any]]] = {
    "Model": {"graph": (7, "Graph"), "training": (20, "Other"), "functions": (25, "Other")},
    "Graph": {"nodes": (1, "Node"), "constants": (5, "Tensor"), "sparse": (15, "Other")},
    "Node": {"operator": (4, _BYTES), "attributes": (5, "Attribute"), "domain": (7, _BYTES)},
    "Attribute": {f"part{number}": (number, "Other") for number in (5, 6, 10, 11, 22, 23)},  # tensors and graphs
    "Tensor": {"external": (13, "Other"), "location": (14, _INTEGER)},
    "Other": {},
}


def refuse_foreign(path: Path, content: bytes) -> None:
    """Raises UserError for a model with operators that no export here has, or with data in another file.

    And protobuf's DecodeError for what is no model.
    """
    model = _message("Model")
    model.ParseFromString(content)
    graphs = list(model.graph)
    nodes = [node for graph in graphs for node in graph.nodes]
    named = ([*node.operator, *filter(None, node.domain)] for node in nodes)
    names = {" of ".join(part.decode(errors="replace") for part in parts) for parts in named}
    advice = "; export its weights with python -I -m ssd300_vgg16.export"
    if others := sorted(names - OPERATORS):
        raise UserError(f"{path}: no export of this package has operators like {listed(others, 3)}{advice}")
    if any(tensor.external or any(tensor.location) for graph in graphs for tensor in graph.constants):
        raise UserError(f"{path}: it has data in another file, which no export of this package has{advice}")
    inner = [attribute for node in nodes for attribute in node.attributes if attribute.ListFields()]
    if inner or model.functions or model.training or any(graph.sparse for graph in graphs):
        raise UserError(f"{path}: it has graphs or tensors in operators, which no export of this package has{advice}")


def _message(name: str) -> Any:
    """An empty message of _FORMAT. All fields are repeated: of one that is there twice, both are looked at."""
    file = descriptor_pb2.FileDescriptorProto(name="exported.proto", package="exported")
    for message, fields in _FORMAT.items():
        described = file.message_type.add(name=message)
        for field, (number, kind) in fields.items():
            one = described.field.add(name=field, number=number, label=_Field.LABEL_REPEATED)
            if isinstance(kind, str):
                one.type, one.type_name = _Field.TYPE_MESSAGE, f".exported.{kind}"
            else:
                one.type = kind
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return MessageFactory(pool).GetPrototype(pool.FindMessageTypeByName(f"exported.{name}"))()
