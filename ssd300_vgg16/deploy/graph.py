"""A detector as an ONNX graph: the network, one module after another, and post-processing. Nothing is run or traced."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from ssd300_vgg16.boxes import CENTRE_VARIANCE, MAX_LOG_RATIO, SIZE_VARIANCE, xyxy_to_cxcywh
from ssd300_vgg16.deploy.session import BATCH_INDEX, BOXES, LABELS, LOGITS, OFFSETS, SCORES
from ssd300_vgg16.network.postprocess import CANDIDATES_PER_CLASS, DETECTIONS_PER_IMAGE, NMS_IOU
from ssd300_vgg16.network.ssd import SSD, ScoringHead
from ssd300_vgg16.network.variants import SQUARED_NORM_FLOOR, DefaultBoxLayout, default_boxes
from ssd300_vgg16.network.vgg import Conv2d
from ssd300_vgg16.runtime import flow
from ssd300_vgg16.weights.model import model_tensors

if TYPE_CHECKING:
    from oneflow import nn
else:
    nn = flow.nn

Array = np.ndarray | np.generic
OPSET, IR_VERSION = 13, 7  # those of ONNX 1.8 (2020), the first with a scale for each channel in 8 bits


class Graph:
    def __init__(self) -> None:
        self.parameters: Mapping[str, np.ndarray] = {}
        self._nodes: list[onnx.NodeProto] = []
        self._constants: list[onnx.TensorProto] = []

    def parameter(self, name: str) -> str:
        """Add one of the network's parameters, as a constant of its name."""
        return self.constant(name, self.parameters[name])

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


def add_network(graph: Graph, model: SSD, images: str) -> None:
    """Add OFFSETS [B, D, 4] and LOGITS [B, D, num_classes] of the value `images`, uint8 [B, 3, S, S] RGB.

    Convolutions and constants are named as the parameters of published checkpoints.
    """
    graph.parameters = model_tensors(model)
    pixels = graph.add("Cast", images, to=TensorProto.FLOAT)
    backbone = model.backbone
    x = graph.add("Sub", pixels, graph.constant("pixel_mean", model.pixel_mean.numpy()))
    x = _added(graph, x, backbone.features, "backbone.features")
    scale = graph.constant("backbone.scale_weight", graph.parameters["backbone.scale_weight"][:, None, None])
    maps = [_rescaled(graph, x, scale)]
    for number, block in enumerate(backbone.extra):
        x = _added(graph, x, block, f"backbone.extra.{number}")
        maps.append(x)
    _add_head(graph, maps, model.head.regression_head, model.layout, "head.regression_head", OFFSETS)
    _add_head(graph, maps, model.head.classification_head, model.layout, "head.classification_head", LOGITS)


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
    x = graph.add(
        "Conv",
        x,
        *(graph.parameter(f"{name}.{part}") for part in ("weight", "bias")),
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


def _add_head(
    graph: Graph, maps: list[str], head: ScoringHead, layout: DefaultBoxLayout, name: str, output: str
) -> None:
    rows = []
    boxes = [cells**2 * of_cell for cells, of_cell in zip(layout.feature_maps, layout.boxes_per_cell, strict=True)]
    for number, (layer, feature_map) in enumerate(zip(head.module_list, maps, strict=True)):
        values = _convolution(graph, feature_map, layer, f"{name}.module_list.{number}")
        by_cell = graph.add("Transpose", values, perm=(0, 2, 3, 1))
        # The first 0 keeps the size of the batch, which is any. With -1 for the boxes it could not be 0 itself.
        rows.append(graph.add("Reshape", by_cell, np.array([0, boxes[number], head.values])))
    graph.add("Concat", *rows, axis=1, name=output)


def add_postprocess(
    graph: Graph, offsets: str, logits: str, num_classes: int, layout: DefaultBoxLayout, score_threshold: float
) -> None:
    """Add the detections of a batch, image after image, by falling score, from offsets [B, D, 4] and logits [B, D, C].

    BOXES float32 [N, 4] xyxy as parts of the image's width and height, inside it; SCORES float32 [N]; LABELS int64 [N]
    from 1 up; BATCH_INDEX int64 [N], the image of the batch. As `network.postprocess.postprocess` but for ties: of
    equal scores in several classes the lower label goes first, and of those that tie for a class's last place among
    its candidates the earlier default boxes are taken.
    """
    per_class = min(CANDIDATES_PER_CLASS, len(default_boxes(layout)))
    # ONNX Runtime 1.23's TopK divides by its number of rows, and so ends the process where there are no images.
    missing = _missing_images(graph, logits)
    scores, rows = _candidates(graph, logits, num_classes, per_class, missing)
    boxes = graph.add("GatherND", _filled_up(graph, _decoded(graph, offsets, layout), missing), rows, batch_dims=1)
    kept = _kept_by_nms(graph, boxes, scores, per_class, score_threshold)
    per_image = (num_classes - 1) * per_class
    by_image = graph.add("Reshape", kept, np.array([-1, per_image]))
    graph.add_several(
        "TopK", ("best", "best_places"), by_image, np.array([min(DETECTIONS_PER_IMAGE, per_image)]), axis=1
    )
    # TopK always gives its number: places without a detection have score 0, and are taken out.
    detected = graph.add("Transpose", graph.add("NonZero", graph.add("Greater", "best", np.float32(0))), perm=(1, 0))
    graph.add("GatherND", "best", detected, name=SCORES)
    place = graph.add("GatherND", "best_places", detected)
    # Candidates lie class after class, the background left out: the place tells the label.
    graph.add("Add", graph.add("Div", place, np.int64(per_class)), np.int64(1), name=LABELS)
    image = graph.add("Gather", detected, np.int64(0), axis=1, name=BATCH_INDEX)
    columns = [graph.add("Unsqueeze", value, np.array([1])) for value in (image, place)]
    in_pixels = graph.add("GatherND", boxes, graph.add("Concat", *columns, axis=1))
    graph.add("Div", in_pixels, np.float32(layout.image_size), name=BOXES)


def _missing_images(graph: Graph, logits: str) -> str:
    """int64 [1]: 1 if the batch has no image, and else 0."""
    images = graph.add("Slice", graph.add("Shape", logits), np.array([0]), np.array([1]))
    return graph.add("Sub", np.array([1]), graph.add("Min", images, np.array([1])))


def _filled_up(graph: Graph, values: str, missing: str) -> str:
    """[B, X, Y] and so many more of zeros: an image in which nothing is detected."""
    of_image = graph.add("Slice", graph.add("Shape", values), np.array([1]), np.array([3]))
    blank = graph.add("ConstantOfShape", graph.add("Concat", missing, of_image, axis=0))
    return graph.add("Concat", values, blank, axis=0)


def _candidates(graph: Graph, logits: str, num_classes: int, per_class: int, missing: str) -> tuple[str, str]:
    """Best scores of each class but the background [B, C - 1, K]; which default boxes have them [B, (C - 1) * K, 1]."""
    scores = graph.add("Softmax", logits, axis=-1)
    scores = graph.add("Slice", scores, np.array([1]), np.array([num_classes]), np.array([2]))
    by_class = graph.add("Transpose", _filled_up(graph, scores, missing), perm=(0, 2, 1))
    graph.add_several("TopK", ("candidates", "candidate_rows"), by_class, np.array([per_class]), axis=2)
    return "candidates", graph.add("Reshape", "candidate_rows", np.array([0, (num_classes - 1) * per_class, 1]))


def _decoded(graph: Graph, offsets: str, layout: DefaultBoxLayout) -> str:
    """As `boxes.decode` and `boxes.clip`: [B, D, 4] xyxy in pixels of the network's input."""
    defaults = xyxy_to_cxcywh(default_boxes(layout))
    centres = graph.constant("default_centres", defaults[:, :2])
    sizes = graph.constant("default_sizes", defaults[:, 2:])
    graph.add_several("Split", ("centre_offsets", "size_offsets"), offsets, np.array([2, 2]), axis=2)
    shift = graph.add("Mul", graph.add("Mul", "centre_offsets", np.float32(CENTRE_VARIANCE)), sizes)
    centre = graph.add("Add", shift, centres)
    ratio = graph.add("Min", graph.add("Mul", "size_offsets", np.float32(SIZE_VARIANCE)), np.float32(MAX_LOG_RATIO))
    half = graph.add("Div", graph.add("Mul", graph.add("Exp", ratio), sizes), np.float32(2))
    corners = graph.add("Concat", graph.add("Sub", centre, half), graph.add("Add", centre, half), axis=2)
    return graph.add("Clip", corners, np.float32(0), np.float32(layout.image_size))


def _kept_by_nms(graph: Graph, boxes: str, scores: str, per_class: int, score_threshold: float) -> str:
    """Scores [B * (C - 1), 1, K] of the candidates that NMS keeps in their class, and 0 for the others."""
    # ONNX's operator has one set of boxes for all classes of an image, so each class is an image of its own to it.
    boxes = graph.add("Reshape", boxes, np.array([-1, per_class, 4]))
    scores = graph.add("Reshape", scores, np.array([-1, 1, per_class]))
    limits = np.array([DETECTIONS_PER_IMAGE]), np.array([NMS_IOU], np.float32), np.array([score_threshold], np.float32)
    kept = graph.add("NonMaxSuppression", boxes, scores, *limits)
    nothing = graph.add("ConstantOfShape", graph.add("Shape", scores))
    return graph.add("ScatterND", nothing, kept, graph.add("GatherND", scores, kept))
