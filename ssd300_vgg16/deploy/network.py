"""The network as ONNX operators, one module after another: nothing is run or traced."""

from typing import TYPE_CHECKING

import numpy as np
from onnx import TensorProto

from ssd300_vgg16.deploy.graph import Graph
from ssd300_vgg16.deploy.session import LOGITS, OFFSETS
from ssd300_vgg16.network.ssd import SSD, ScoringHead
from ssd300_vgg16.network.variants import SQUARED_NORM_FLOOR
from ssd300_vgg16.network.vgg import Conv2d
from ssd300_vgg16.runtime import flow

if TYPE_CHECKING:
    from oneflow import nn
else:
    nn = flow.nn


def add_network(graph: Graph, model: SSD, images: str) -> None:
    """Add OFFSETS [B, D, 4] and LOGITS [B, D, num_classes] of the value `images`, uint8 [B, 3, S, S] RGB.

    Convolutions and constants are named as the parameters of published checkpoints.
    """
    pixels = graph.add("Cast", images, to=TensorProto.FLOAT)
    backbone = model.backbone
    x = graph.add("Sub", pixels, graph.constant("pixel_mean", model.pixel_mean.numpy()))
    x = _added(graph, x, backbone.features, "backbone.features")
    maps = [_rescaled(graph, x, graph.constant("backbone.scale_weight", backbone.scale_weight.numpy()[:, None, None]))]
    for number, block in enumerate(backbone.extra):
        x = _added(graph, x, block, f"backbone.extra.{number}")
        maps.append(x)
    _add_head(graph, maps, model.head.regression_head, "head.regression_head", OFFSETS)
    _add_head(graph, maps, model.head.classification_head, "head.classification_head", LOGITS)


def _added(graph: Graph, x: str, layer: nn.Module, name: str) -> str:
    """The output of a layer, or of a sequence of them."""
    if isinstance(layer, nn.Sequential):
        for place, part in layer.named_children():
            x = _added(graph, x, part, f"{name}.{place}")
        return x
    if isinstance(layer, Conv2d):
        return _convolution(graph, x, layer, name)
    if isinstance(layer, nn.MaxPool2d):
        return _pooling(graph, x, layer, name)
    if isinstance(layer, nn.Identity):
        return x
    # Left out in silence, a layer that somebody adds to the network would make a model with other answers.
    raise TypeError(f"{name}: there is no way here to write a {type(layer).__name__} as ONNX")


def _convolution(graph: Graph, x: str, layer: Conv2d, name: str) -> str:
    parameters = {part: graph.constant(f"{name}.{part}", getattr(layer, part).numpy()) for part in ("weight", "bias")}
    x = graph.add(
        "Conv",
        x,
        *parameters.values(),
        name=name,
        kernel_shape=layer.kernel_size,
        strides=layer.stride,
        pads=(*layer.padding, *layer.padding),
        dilations=layer.dilation,
    )
    return graph.add("Relu", x, name=f"{name}.relu") if layer.relu else x


def _pooling(graph: Graph, x: str, layer: nn.MaxPool2d, name: str) -> str:
    # The module keeps what it was made with: one number, or one for each axis.
    kernel, stride, padding = (
        size if isinstance(size, tuple) else (size, size) for size in (layer.kernel_size, layer.stride, layer.padding)
    )
    return graph.add(
        "MaxPool",
        x,
        name=name,
        kernel_shape=kernel,
        strides=stride,
        pads=(*padding, *padding),
        ceil_mode=int(layer.ceil_mode),  # pool3 rounds up: 38 cells from 75
    )


def _rescaled(graph: Graph, x: str, scale: str) -> str:
    """As the backbone does: each position's channels at norm 1, then scaled by channel."""
    squares = graph.add("ReduceSum", graph.add("Mul", x, x), np.array([1]), keepdims=1)
    norm = graph.add("Sqrt", graph.add("Add", squares, np.float32(SQUARED_NORM_FLOOR)))
    return graph.add("Mul", graph.add("Div", x, norm), scale)


def _add_head(graph: Graph, maps: list[str], head: ScoringHead, name: str, output: str) -> None:
    rows = []
    for number, (layer, feature_map) in enumerate(zip(head.module_list, maps, strict=True)):
        values = _convolution(graph, feature_map, layer, f"{name}.module_list.{number}")
        by_cell = graph.add("Transpose", values, perm=(0, 2, 3, 1))
        # 0 keeps the size of the batch, which is any.
        rows.append(graph.add("Reshape", by_cell, np.array([0, -1, head.values])))
    graph.add("Concat", *rows, axis=1, name=output)
