"""A network's convolutions in 8 bits: ranges measured on images, weights with a scale for each channel."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.quant_utils import add_pre_process_metadata

from ssd300_vgg16.data.images import read_image
from ssd300_vgg16.data.loader import network_input
from ssd300_vgg16.deploy.names import IMAGES

# What lies between convolutions too, so that an image stays in 8 bits from conv1_1 to the heads. A ReLU is gone then:
# the range of what is behind it, which is measured, begins at zero.
OPERATORS = ["Conv", "Relu", "MaxPool"]


def quantised(model: onnx.ModelProto, images: list[Path], image_size: int) -> onnx.ModelProto:
    """The model with its convolutions in 8 bits, by ranges measured on images.

    Activations are uint8, weights int8 with a scale for each channel; conv4_3's norm and all behind the heads, from
    their offsets and logits on, stay float32: side by side in 8 bits, heads would have to share one range.
    Images are prepared as the detector does. Raises ImageError for one that cannot be read.
    """
    prepared = onnx.ModelProto()
    prepared.CopyFrom(model)
    add_pre_process_metadata(prepared)  # else it is asked for, on stderr; there is nothing to be fused or folded here
    with tempfile.TemporaryDirectory() as folder:
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
    made.producer_name, made.producer_version = model.producer_name, model.producer_version
    onnx.helper.set_model_props(made, {entry.key: entry.value for entry in model.metadata_props})
    return made


class _Images(CalibrationDataReader):
    """Prepared images, one at a time, as ONNX Runtime asks for them."""

    def __init__(self, paths: list[Path], image_size: int):
        self._images = _inputs(paths, image_size)

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._images, None)


def _inputs(paths: list[Path], image_size: int) -> Iterator[dict[str, np.ndarray]]:
    for path in paths:
        yield {IMAGES: network_input(read_image(path, upright=True), image_size)[None]}
