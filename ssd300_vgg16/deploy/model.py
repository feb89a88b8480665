"""A detector as an ONNX model with metadata, in float32 or with its convolutions in 8 bits, and the file of it."""

import json
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.quant_utils import add_pre_process_metadata

from ssd300_vgg16 import __version__
from ssd300_vgg16.boxes import CENTRE_VARIANCE, SIZE_VARIANCE
from ssd300_vgg16.data.images import ImageError, network_input, read_image
from ssd300_vgg16.deploy.graph import Graph, add_network, add_postprocess
from ssd300_vgg16.deploy.session import BATCH_INDEX, BOXES, IMAGES, LABELS, LOGITS, OFFSETS, SCORES
from ssd300_vgg16.errors import UserError
from ssd300_vgg16.files import temporary_files_told, write_atomically
from ssd300_vgg16.network.postprocess import CANDIDATES_PER_CLASS, DETECTIONS_PER_IMAGE, NMS_IOU, SCORE_THRESHOLD
from ssd300_vgg16.network.ssd import SSD
from ssd300_vgg16.network.variants import default_boxes
from ssd300_vgg16.weights.model import load_model
from ssd300_vgg16.weights.safetensors_file import ModelDescription

RAW, DETECTIONS = "raw", "detections"
MAX_BYTES = 2**31 - 1  # a limit of protobuf, in which ONNX files are written
_PIXEL_FORMAT = "RGB, uint8 0..255, [batch, 3, height, width]; the whole image resized bilinearly, aspect not kept"


def onnx_model(
    model: SSD,
    description: ModelDescription,
    outputs: str = DETECTIONS,
    score_threshold: float = SCORE_THRESHOLD,
    batch_size: int | None = None,
) -> onnx.ModelProto:
    """The network as ONNX; its input, IMAGES, is uint8 [B, 3, S, S] RGB, B any number unless batch_size is given.

    outputs: RAW for OFFSETS [B, D, 4] and LOGITS [B, D, C], or DETECTIONS for what `add_postprocess` gives.
    """
    layout, classes = model.layout, model.num_classes
    batch = batch_size or "batch"
    graph = Graph()
    add_network(graph, model, IMAGES)
    if outputs == DETECTIONS:
        add_postprocess(graph, OFFSETS, LOGITS, classes, layout, score_threshold)
        results = detection_outputs()
    else:
        boxes = len(default_boxes(layout))
        results = [_float(OFFSETS, [batch, boxes, 4]), _float(LOGITS, [batch, boxes, classes])]
    shape = [batch, 3, layout.image_size, layout.image_size]
    images = helper.make_tensor_value_info(IMAGES, TensorProto.UINT8, shape)
    made = graph.model(model.variant.name, [images], results)
    helper.set_model_props(made, _metadata(description, score_threshold))
    made.producer_name, made.producer_version = "ssd300_vgg16", __version__
    return made


def export(
    weights: Path, to: Path, outputs: str, score_threshold: float, batch_size: int | None, calibrate_on: list[Path]
) -> None:
    """Write a detector's file of any format as ONNX, and tell of it; in 8 bits, if there are images to calibrate on.

    Raises UserError as `load_model` and `quantised` do, and if it cannot be written.
    """
    model, description = load_model(weights)
    for note in description.notes:
        print(note)
    made = onnx_model(model, description, outputs, score_threshold, batch_size)
    if calibrate_on:
        made = quantised(made, calibrate_on, model.layout.image_size)
    save(to, made)
    print(f"written: {to}, {to.stat().st_size / 1e6:.1f} MB, checked, from {weights}")
    print(f"  takes {', '.join(map(_shaped, made.graph.input))}, uint8 RGB")
    print(f"  gives {', '.join(map(_shaped, made.graph.output))}")


def _shaped(value: onnx.ValueInfoProto) -> str:
    sizes = [size.dim_param or str(size.dim_value) for size in value.type.tensor_type.shape.dim]
    return f"{value.name} [{', '.join(sizes)}]"


def save(path: Path, model: onnx.ModelProto) -> None:
    """Check a model in full and write it, atomically; raises UserError if it cannot be written."""
    content = as_bytes(model)
    onnx.checker.check_model(content, full_check=True)
    write_atomically(path, content)


def as_bytes(model: onnx.ModelProto) -> bytes:
    """The content of the model's file; raises UserError if it is too large for one."""
    if model.ByteSize() > MAX_BYTES:
        raise UserError(f"the network has {model.ByteSize():,} bytes, and 2 GiB are the most that an ONNX model holds")
    return model.SerializeToString()


def detection_outputs() -> list[onnx.ValueInfoProto]:
    """Names, types and shapes of what `add_postprocess` gives, for all images of a batch together."""
    integers = [helper.make_tensor_value_info(name, TensorProto.INT64, ["found"]) for name in (LABELS, BATCH_INDEX)]
    return [_float(BOXES, ["found", 4]), _float(SCORES, ["found"]), *integers]


def _float(name: str, shape: list) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


def _metadata(description: ModelDescription, score_threshold: float) -> dict[str, str]:
    layout = asdict(description.variant.layout)
    image_size = layout.pop("image_size")
    # Texts alone, as ONNX has nothing else for metadata. docs/onnx.md names them: programs of others read them.
    return {
        "package": "ssd300_vgg16",
        "version": __version__,
        "variant": description.variant.name,
        "width": f"{description.width:g}",
        "image_size": str(image_size),
        "pixel_format": _PIXEL_FORMAT,
        "num_classes": str(description.num_classes),
        **({} if description.tile_side is None else {"tile_side": str(description.tile_side)}),
        "categories": json.dumps([asdict(category) for category in description.categories]),
        "score_threshold": f"{score_threshold:g}",
        "candidates_per_class": str(CANDIDATES_PER_CLASS),
        "nms_iou": f"{NMS_IOU:g}",
        "detections_per_image": str(DETECTIONS_PER_IMAGE),
        "default_boxes": json.dumps({name: value for name, value in layout.items() if value}),
        "variances": json.dumps([CENTRE_VARIANCE, SIZE_VARIANCE]),
    }


# Not convolutions alone, so that an image stays in 8 bits from conv1_1 to the heads. The quantiser takes ReLUs out: the
# range of what comes behind one begins at zero, which cuts off the same values.
OPERATORS = ["Conv", "Relu", "MaxPool"]


def quantised(model: onnx.ModelProto, images: list[Path], image_size: int) -> onnx.ModelProto:
    """The model with its convolutions in 8 bits, by ranges measured on images, which are prepared as the detector does.

    Activations are uint8, weights int8 with a scale for each channel. conv4_3's norm, the heads' outputs and all that
    follows stay float32: side by side in 8 bits, the heads would have to share one range. An image that cannot be read
    is named on standard error, and left out. Raises UserError if none can be read.
    """
    prepared = onnx.ModelProto()
    prepared.CopyFrom(model)
    add_pre_process_metadata(prepared)  # else it is asked for, on stderr; there is nothing to be fused or folded here
    with temporary_files_told(), tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        quantize_static(
            prepared,
            path,
            _Images(images, image_size),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=OPERATORS,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
        made = onnx.load(path)
    # Else it would carry the quantiser's name, and the mark that was made above.
    made.producer_name, made.producer_version = model.producer_name, model.producer_version
    onnx.helper.set_model_props(made, {entry.key: entry.value for entry in model.metadata_props})
    return made


class _Images(CalibrationDataReader):
    """Prepared images, one at a time, as ONNX Runtime asks for them."""

    def __init__(self, paths: list[Path], image_size: int):
        self._images = _readable(paths, image_size)

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._images, None)


def _readable(paths: list[Path], image_size: int) -> Iterator[dict[str, np.ndarray]]:
    broken = 0
    for path in paths:
        try:
            image = read_image(path, upright=True)
        except ImageError as error:
            broken += 1
            print(f"left out of the calibration: {error}", file=sys.stderr)
        else:
            yield {IMAGES: network_input(image, image_size)[None]}
    if broken == len(paths):
        raise UserError("--calibrate: none of the images could be read")
