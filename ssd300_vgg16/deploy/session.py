"""ONNX Runtime: which engine computes, a network called like one of OneFlow's, and models that `export` has written.

Imports neither OneFlow nor onnx.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from onnxruntime.capi.onnxruntime_pybind11_state import InvalidArgument, InvalidGraph, InvalidProtobuf

from ssd300_vgg16 import reading
from ssd300_vgg16.deploy.foreign_model import refuse_foreign
from ssd300_vgg16.devices import resolve_device
from ssd300_vgg16.errors import UserError
from ssd300_vgg16.machine import thread_count
from ssd300_vgg16.network.postprocess import SCORE_THRESHOLD
from ssd300_vgg16.weights.safetensors_file import ModelDescription

# What goes into the network and comes out of it, by their names in the model.
IMAGES, OFFSETS, LOGITS = "images", "offsets", "logits"
BOXES, SCORES, LABELS, BATCH_INDEX = "boxes", "scores", "labels", "batch_index"  # of one with post-processing in it
_RAW, _DETECTIONS = (OFFSETS, LOGITS), (BOXES, SCORES, LABELS, BATCH_INDEX)
ONEFLOW, ONNX_RUNTIME, AUTO = "oneflow", "onnxruntime", "auto"
ENGINES = (AUTO, ONEFLOW, ONNX_RUNTIME)
CUDA_PROVIDER, CPU_PROVIDER = "CUDAExecutionProvider", "CPUExecutionProvider"
# 1.23.0 has no code for Blackwell. 1.18.0 is the last of PyPI's for cuDNN 8, and 1.19 the first for CUDA 12.
FOR_CUDA_12, FOR_CUDA_11 = "onnxruntime-gpu[cuda,cudnn]==1.22.0", "onnxruntime-gpu==1.18.0"
# The same answers as in float32 elsewhere (TF32 has three digits), and convolutions that are not chosen by a race.
CUDA_SETTINGS = {"use_tf32": "0", "cudnn_conv_algo_search": "HEURISTIC"}
ERRORS_ALONE = 3  # else ONNX Runtime warns each time that an optimised model is for this machine


def resolve_engine(
    engine: str, device: str | None, local_rank: int | None = None, exported: bool = False, amp: bool = False
) -> tuple[str, str]:
    """ONEFLOW or ONNX_RUNTIME for one of ENGINES, and the device: AUTO is the latter on the CPU, where it is faster.

    exported: the weights are an ONNX model, which is ONNX Runtime's on any device. local_rank: as of `resolve_device`.
    amp: half precision is asked for, which OneFlow on a GPU alone has here.
    A GPU that ONNX Runtime is to use need not be one that OneFlow can use. Raises UserError for another name, and for
    a device that the engine cannot use here.
    """
    if engine not in ENGINES:
        raise UserError(f"--engine {engine}: write one of {', '.join(ENGINES)}")
    if exported and engine == ONEFLOW:
        raise UserError(f"--engine {ONEFLOW}: an ONNX model is computed by ONNX Runtime; leave --engine out")
    by_onnx_runtime = exported or engine == ONNX_RUNTIME
    if not by_onnx_runtime or device in (None, "cpu"):
        device = resolve_device(device, local_rank)
    elif not re.fullmatch("cuda(:[0-9]+)?", device):
        raise UserError(f"--device {device}: write cpu, cuda or cuda:N")
    elif local_rank is not None:
        if device not in ("cuda", f"cuda:{local_rank}"):
            raise UserError(f"--device {device}: several processes take GPUs 0, 1, ... in turn: write cuda")
        device = f"cuda:{local_rank}"
    if by_onnx_runtime and device != "cpu" and CUDA_PROVIDER not in onnxruntime.get_available_providers():
        raise UserError(
            f"--device {device}: ONNX Runtime {onnxruntime.__version__} is here without its part for NVIDIA's GPUs: "
            f"`.venv/bin/pip uninstall -y onnxruntime; .venv/bin/pip install '{FOR_CUDA_12}'` (for a driver of CUDA "
            f"11: {FOR_CUDA_11}), or add --device cpu"
        )
    if amp and (by_onnx_runtime or device == "cpu"):
        where = "on the CPU" if device == "cpu" else "in ONNX Runtime"
        raise UserError(f"--amp: there is no half precision {where}, only in OneFlow on a GPU; leave --amp out")
    return (ONNX_RUNTIME if by_onnx_runtime or (engine == AUTO and device == "cpu") else ONEFLOW), device


class OnnxRuntimeNetwork:
    """Offsets [B, D, 4] and logits [B, D, C] of images uint8 [B, 3, S, S], or a model's other outputs."""

    def __init__(self, model: bytes, optimised: bool = False, write_to: Path | None = None, device: str = "cpu"):
        """model: an exported network; optimised: a former `write_to` has made it, so it is taken as it is.

        write_to: where to write the optimised model, which is for processors and an ONNX Runtime like these. Raises
        one of ONNX Runtime's exceptions, which share no base class, if it is no model or cannot be written, and
        UserError if it cannot compute on a GPU, which is never replaced by the CPU.
        """
        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = thread_count()
        settings.log_severity_level = ERRORS_ALONE
        settings.add_session_config_entry("session.load_model_format", "ONNX")  # no other of its formats
        # Its threads spin between two operators, but not between two images: those cores have other work then.
        settings.add_session_config_entry("session.force_spinning_stop", "1")
        if optimised:
            settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        if write_to:
            settings.optimized_model_filepath = str(write_to)
        self._device = device
        self._session = _session(model, settings, device)
        self.metadata: dict[str, str] = self._session.get_modelmeta().custom_metadata_map
        self.output_names = tuple(output.name for output in self._session.get_outputs())

    def __call__(self, images: np.ndarray) -> list[np.ndarray]:
        try:
            return self._session.run(self.output_names, {IMAGES: images})
        except Exception as error:
            if self._device == "cpu":
                raise
            raise _cuda_problem(self._device, error) from error


def _session(model: bytes, settings: Any, device: str) -> Any:
    if device == "cpu":
        return onnxruntime.InferenceSession(model, settings, providers=[CPU_PROVIDER])
    if hasattr(onnxruntime, "preload_dlls"):  # those of pip's packages, which the system does not look for
        onnxruntime.preload_dlls()
    cuda = (CUDA_PROVIDER, {"device_id": device.partition(":")[2] or "0", **CUDA_SETTINGS})
    # The CPU too, for what has no code for a GPU, such as the shapes of tensors.
    try:
        session = onnxruntime.InferenceSession(model, settings, providers=[cuda, CPU_PROVIDER], enable_fallback=0)
    except (InvalidArgument, InvalidGraph, InvalidProtobuf):  # of the model, not of the GPU
        raise
    except Exception as error:  # those of ONNX Runtime share no base class
        raise _cuda_problem(device, error) from error
    session.disable_fallback()
    # A provider whose libraries are not found, or whose GPU is not there, is left out with no more than a warning.
    if CUDA_PROVIDER not in session.get_providers():
        raise _cuda_problem(device, "it did not start: what it says above may tell why")
    return session


def _cuda_problem(device: str, error: Exception | str) -> UserError:
    """For a GPU that is not there, is out of memory, or that this ONNX Runtime has no code or no libraries for."""
    reason = " ".join(str(error).split())[:300]
    return UserError(
        f"--device {device}: ONNX Runtime {onnxruntime.__version__} cannot compute there ({reason}); see docs/onnx.md "
        f"for the CUDA and cuDNN that it needs ('{FOR_CUDA_12}' brings them), or add --device cpu"
    )


def is_exported(weights: Path) -> bool:
    """Whether a path names an ONNX model."""
    return weights.suffix == ".onnx"


def exported_network(path: Path, device: str) -> tuple[OnnxRuntimeNetwork, ModelDescription]:
    """The model in ONNX Runtime, which may give detections, for `split_detections`, and its description.

    Raises UserError for a file that is missing, no ONNX model, or not one of this package's, by all that it holds.
    """
    try:
        content = reading.read_bytes(path, reading.WEIGHTS_BYTES)
        refuse_foreign(path, content)
        network = OnnxRuntimeNetwork(content, device=device)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}") from error
    except UserError:  # of the device, or of what is in it
        raise
    except Exception as error:  # those of ONNX Runtime share no base class
        raise UserError(f"{path}: not a whole ONNX model; was its copying interrupted?") from error
    description = description_of(path, network.metadata)
    if description is None or network.output_names not in (_RAW, _DETECTIONS):
        raise UserError(
            f"{path}: not a model that this package has exported: its categories and its outputs are not known; "
            "name a run, or a model made by python -m ssd300_vgg16.export"
        )
    return network, description


def description_of(path: Path, about: dict[str, str]) -> ModelDescription | None:
    """The model in this file, by the metadata of an export; None if they are not of one."""
    if about.get("package") != "ssd300_vgg16":
        return None
    try:
        threshold = float(about["score_threshold"])
        note = f"{path} holds detections scored above {threshold:g}: those below are not measured"
        value = {
            "num_classes": int(about["num_classes"]),
            "width": float(about["width"]),
            "categories": json.loads(about["categories"]),
            "variant": about["variant"],
            "tile_side": int(about["tile_side"]) if "tile_side" in about else None,
            "default_boxes": json.loads(about["default_boxes"]).get("shapes", []),
        }
        return replace(ModelDescription.from_json(value), notes=(note,) if threshold > SCORE_THRESHOLD else ())
    except (KeyError, TypeError, ValueError, RecursionError):
        return None


def split_detections(
    outputs: Sequence[np.ndarray], sizes_hw: np.ndarray, score_threshold: float
) -> list[dict[str, np.ndarray]]:
    """As `postprocess` returns them: detections of each image, boxes in its pixels, from a model that gives them."""
    boxes, scores, labels, batch_index = outputs
    found = []
    for image, (height, width) in enumerate(np.asarray(sizes_hw, dtype=np.float32)):
        rows = (batch_index == image) & (scores > score_threshold)
        # Exported models answer in shares of the image: they do not know its size.
        in_pixels = boxes[rows] * np.array([width, height, width, height])
        found.append({"boxes": in_pixels, "scores": scores[rows], "labels": labels[rows]})
    return found
