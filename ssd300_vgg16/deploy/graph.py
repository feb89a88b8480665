"""An ONNX graph that grows by one operator at a time; a value is known by its name."""

import numpy as np
import onnx
from onnx import helper, numpy_helper

OPSET, IR_VERSION = 13, 7  # those of ONNX 1.8 (2020), the first with a scale for each channel in 8 bits


class Graph:
    """Nodes and constants so far."""

    def __init__(self):
        self._nodes: list[onnx.NodeProto] = []
        self._constants: list[onnx.TensorProto] = []

    def constant(self, name: str, array: np.ndarray) -> str:
        """The name of a constant, which it is given here."""
        self._constants.append(numpy_helper.from_array(np.asarray(array, order="C"), name))
        return name

    def add(self, operator: str, *inputs: str | np.ndarray | np.generic, name: str | None = None, **attributes) -> str:
        """The name of an operator's one output; inputs are names of values, or arrays as constants."""
        name = name or f"{operator}_{len(self._nodes)}"
        self.add_several(operator, (name,), *inputs, **attributes)
        return name

    def add_several(
        self, operator: str, outputs: tuple[str, ...], *inputs: str | np.ndarray | np.generic, **attributes
    ) -> None:
        """As `add`, for operators with several outputs, which are named here; the first names the node too."""
        values = [
            value if isinstance(value, str) else self.constant(f"{outputs[0]}.input{place}", value)
            for place, value in enumerate(inputs)
        ]
        self._nodes.append(helper.make_node(operator, values, outputs, outputs[0], **attributes))

    def model(
        self,
        name: str,
        inputs: list[onnx.ValueInfoProto],
        outputs: list[onnx.ValueInfoProto],
    ) -> onnx.ModelProto:
        """The whole as a model with these inputs and outputs; without metadata yet."""
        graph = helper.make_graph(self._nodes, name, inputs, outputs, self._constants)
        opset = [helper.make_opsetid("", OPSET)]
        return helper.make_model(graph, opset_imports=opset, ir_version=IR_VERSION)
