"""A network in ONNX Runtime, called like one of OneFlow."""

import numpy as np
import onnxruntime

from ssd300_vgg16.deploy.model import IMAGES, RAW, as_bytes, onnx_model
from ssd300_vgg16.deploy.network import LOGITS, OFFSETS
from ssd300_vgg16.network.ssd import SSD
from ssd300_vgg16.network.threads import thread_count
from ssd300_vgg16.runtime import flow
from ssd300_vgg16.weights.description import ModelDescription


class OnnxRuntimeNetwork:
    """Offsets and logits, as tensors, of images uint8 [B, 3, S, S]; the weights are those of now, whatever follows."""

    def __init__(self, model: SSD, description: ModelDescription):
        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = thread_count()
        # Its threads would go on looking for work between images, and take the cores from post-processing.
        settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
        content = as_bytes(onnx_model(model, description, RAW))
        self._session = onnxruntime.InferenceSession(content, settings, providers=["CPUExecutionProvider"])

    def __call__(self, images: np.ndarray) -> tuple:
        return tuple(map(flow.from_numpy, self._session.run([OFFSETS, LOGITS], {IMAGES: images})))
