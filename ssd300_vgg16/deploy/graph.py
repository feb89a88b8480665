"""An ONNX graph that grows by one operator at a time. Values are known by their names."""

from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

Array = np.ndarray | np.generic
OPSET, IR_VERSION = 13, 7  # those of ONNX 1.8 (2020), the first with a scale for each channel in 8 bits


class Graph:
    def __init__(self) -> None:
        self._nodes: list[onnx.NodeProto] = []
        self._constants: list[onnx.TensorProto] = []

    def constant(self, name: str, array: Array) -> str:
        """Add a constant; returns its name."""
        self._constants.append(numpy_helper.from_array(np.asarray(array, order="C"), name))
        return name

    def add(self, operator: str, *inputs: str | Array, name: str | None = None, **attributes: Any) -> str:
        """Add an operator with one output; returns its name. Inputs are names of values, or arrays for constants."""
        name = name or f"{operator}_{len(self._nodes)}"
        self.add_several(operator, (name,), *inputs, **attributes)
        return name

    def add_several(self, operator: str, outputs: tuple[str, ...], *inputs: str | Array, **attributes: Any) -> None:
        """Add an operator with these outputs; the first names the node too."""
        names = [
            value if isinstance(value, str) else self.constant(f"{outputs[0]}.input{place}", value)
            for place, value in enumerate(inputs)
        ]
        self._nodes.append(helper.make_node(operator, names, outputs, outputs[0], **attributes))

    def model(
        self, name: str, inputs: list[onnx.ValueInfoProto], outputs: list[onnx.ValueInfoProto]
    ) -> onnx.ModelProto:
        """The graph as a model with these inputs and outputs, without metadata."""
        graph = helper.make_graph(self._nodes, name, inputs, outputs, self._constants)
        opset = [helper.make_opsetid("", OPSET)]
        return helper.make_model(graph, opset_imports=opset, ir_version=IR_VERSION)
