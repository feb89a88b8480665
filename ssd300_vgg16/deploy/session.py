"""A network in ONNX Runtime on the CPU, called like one of OneFlow's. Imports neither OneFlow nor onnx."""

from pathlib import Path

import numpy as np
import onnxruntime

from ssd300_vgg16.errors import UserError
from ssd300_vgg16.machine import thread_count

# What goes into the network and comes out of it, by their names in the model.
IMAGES, OFFSETS, LOGITS = "images", "offsets", "logits"
ONEFLOW, ONNX_RUNTIME, AUTO = "oneflow", "onnxruntime", "auto"
ENGINES = (AUTO, ONEFLOW, ONNX_RUNTIME)


def resolve_engine(name: str, device: str) -> str:
    """ONEFLOW or ONNX_RUNTIME for one of ENGINES on a device: AUTO is the latter on the CPU, where it is faster.

    Raises UserError for another name, and for ONNX_RUNTIME on a GPU.
    """
    if name not in ENGINES:
        raise UserError(f"--engine {name}: write one of {', '.join(ENGINES)}")
    if name == AUTO:
        return ONNX_RUNTIME if device == "cpu" else ONEFLOW
    if name == ONNX_RUNTIME and device != "cpu":
        raise UserError(f"--engine {ONNX_RUNTIME} computes on the CPU here, not on {device}: add --device cpu")
    return name


class OnnxRuntimeNetwork:
    """Offsets [B, D, 4] and logits [B, D, C] of images uint8 [B, 3, S, S]."""

    def __init__(self, model: bytes, optimised: bool = False, write_to: Path | None = None):
        """model: an exported network; optimised: a former `write_to` has made it, so it is taken as it is.

        write_to: where to write the optimised model, which is for processors and an ONNX Runtime like these. Raises
        one of ONNX Runtime's exceptions, which share no base class, if it is no model or cannot be written.
        """
        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = thread_count()
        settings.log_severity_level = (
            3  # errors alone; else it warns each time that an optimised model is for this machine
        )
        # Its threads spin between two operators, but not between two images: those cores have other work then.
        settings.add_session_config_entry("session.force_spinning_stop", "1")
        if optimised:
            settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        if write_to:
            settings.optimized_model_filepath = str(write_to)
        self._session = onnxruntime.InferenceSession(model, settings, providers=["CPUExecutionProvider"])

    @property
    def metadata(self) -> dict[str, str]:
        """Texts that the model holds about itself."""
        return self._session.get_modelmeta().custom_metadata_map

    def __call__(self, images: np.ndarray) -> list[np.ndarray]:
        return self._session.run([OFFSETS, LOGITS], {IMAGES: images})
