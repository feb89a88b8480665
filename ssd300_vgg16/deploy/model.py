"""A detector as a whole ONNX model: inputs, outputs, metadata; checked, and as a file."""

import json
from dataclasses import asdict
from pathlib import Path

import onnx
from onnx import TensorProto, helper

from ssd300_vgg16 import __version__
from ssd300_vgg16.deploy.graph import Graph
from ssd300_vgg16.deploy.names import IMAGES, LOGITS, OFFSETS
from ssd300_vgg16.deploy.network import add_network
from ssd300_vgg16.deploy.postprocess import BATCH_INDEX, BOXES, LABELS, SCORES, add_postprocess
from ssd300_vgg16.errors import UserError
from ssd300_vgg16.network.default_boxes import default_boxes
from ssd300_vgg16.network.postprocess import CANDIDATES_PER_CLASS, DETECTIONS_PER_IMAGE, NMS_IOU, SCORE_THRESHOLD
from ssd300_vgg16.network.ssd import SSD
from ssd300_vgg16.weights.description import ModelDescription
from ssd300_vgg16.weights.file import write_whole

RAW, DETECTIONS = "raw", "detections"
LARGEST = 2**31 - 1  # bytes: a limit of protobuf, in which ONNX files are written
_PIXEL_FORMAT = "RGB, uint8 0..255, [batch, 3, height, width]; the whole image resized bilinearly, aspect not kept"


def onnx_model(
    model: SSD, description: ModelDescription, outputs: str = DETECTIONS, score_threshold: float = SCORE_THRESHOLD
) -> onnx.ModelProto:
    """The network as ONNX, for batches of any size; its input, IMAGES, is uint8 [B, 3, S, S] RGB.

    outputs: RAW for OFFSETS [B, D, 4] and LOGITS [B, D, C], or DETECTIONS for what `add_postprocess` gives.
    """
    side, classes = model.layout.image_size, model.num_classes
    graph = Graph()
    add_network(graph, model, IMAGES)
    if outputs == DETECTIONS:
        add_postprocess(graph, OFFSETS, LOGITS, classes, model.layout, score_threshold)
        given = detection_outputs()
    else:
        boxes = len(default_boxes(model.layout))
        given = [_float(OFFSETS, ["batch", boxes, 4]), _float(LOGITS, ["batch", boxes, classes])]
    taken = helper.make_tensor_value_info(IMAGES, TensorProto.UINT8, ["batch", 3, side, side])
    made = graph.model(model.variant.name, [taken], given)
    helper.set_model_props(made, _metadata(description, model.layout.image_size, score_threshold))
    made.producer_name, made.producer_version = "ssd300_vgg16", __version__
    return made


def save(path: Path, model: onnx.ModelProto) -> None:
    """Check a model in full and write it, atomically; raises UserError if it cannot be written."""
    content = as_bytes(model)
    onnx.checker.check_model(content, full_check=True)
    write_whole(path, content)


def as_bytes(model: onnx.ModelProto) -> bytes:
    """What a file of the model holds; raises UserError if it is too large for one."""
    if model.ByteSize() > LARGEST:
        raise UserError(f"the network has {model.ByteSize():,} bytes, and 2 GiB are the most that an ONNX model holds")
    return model.SerializeToString()


def detection_outputs() -> list[onnx.ValueInfoProto]:
    """Names, types and shapes of what `add_postprocess` gives."""
    integers = [helper.make_tensor_value_info(name, TensorProto.INT64, ["found"]) for name in (LABELS, BATCH_INDEX)]
    return [_float(BOXES, ["found", 4]), _float(SCORES, ["found"]), *integers]


def _float(name: str, shape: list) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


def _metadata(description: ModelDescription, image_size: int, score_threshold: float) -> dict[str, str]:
    """What a program needs to know of the model, as texts; categories as JSON."""
    return {
        "package": "ssd300_vgg16",
        "version": __version__,
        "variant": description.variant.name,
        "width": f"{description.width:g}",
        "image_size": str(image_size),
        "pixel_format": _PIXEL_FORMAT,
        "num_classes": str(description.num_classes),
        "categories": json.dumps([asdict(category) for category in description.categories]),
        "score_threshold": f"{score_threshold:g}",
        "candidates_per_class": str(CANDIDATES_PER_CLASS),
        "nms_iou": f"{NMS_IOU:g}",
        "detections_per_image": str(DETECTIONS_PER_IMAGE),
    }
