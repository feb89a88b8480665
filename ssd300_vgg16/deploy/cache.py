"""The ONNX cache: the model that ONNX Runtime computes, made once and kept beside the weights it was made from.

A file `.NAME.KEY-CRC.onnx`, hidden; that for GPUs, which is not optimised for a processor, ends in `.cuda.onnx`. KEY is
a digest of all that the model depends on. CRC is a checksum of the file itself, so that a damaged one is not used. Who
can put another in its place can change the weights too.
"""

import hashlib
import json
import stat
import time
import zlib
from contextlib import suppress
from dataclasses import replace
from glob import escape
from pathlib import Path

import onnxruntime

from ssd300_vgg16 import __version__
from ssd300_vgg16.deploy.session import OnnxRuntimeNetwork
from ssd300_vgg16.errors import UserError
from ssd300_vgg16.files import TEMPORARY_SUFFIX, is_temporary, sha256_of, temporary
from ssd300_vgg16.machine import processor_flags
from ssd300_vgg16.weights.safetensors_file import ModelDescription

# Raise it when the same weights get another graph, categories or notes than before: after a change in this folder, in
# the network, or in how a format of weights is read. Else models that were kept before the change are used after it.
# tests/deploy/test_cache.py fails when the graph has changed and this has not.
MODEL_VERSION = 2
DESCRIPTION, NOTES = "description", "notes"
KEY_LETTERS = 16
_ANY_CRC = "[0-9a-f]" * 8
ABANDONED_SECONDS = 3600.0  # a file that has been unfinished for so long is that of a killed process


def onnx_runtime_network(weights: Path, device: str = "cpu") -> tuple[OnnxRuntimeNetwork, ModelDescription]:
    """The network of a detector's file (or folder of OneFlow's) in ONNX Runtime, and its description.

    The model is kept for the next time, where that can be: a folder that is read-only or full is no error. Raises
    UserError for a file that does not hold a whole detector, or a device that ONNX Runtime cannot use.
    """
    key = _key(weights, device)
    return _kept(weights, key, device) or _made(weights, key, device)


def _key(weights: Path, device: str) -> str | None:
    """A digest of all that the model depends on; None if nothing can be kept of these weights."""
    if not weights.name:  # ".", beside which there is no place
        return None
    # The name, as some weights are recognised by it. The processor, as ONNX Runtime optimises for its instructions.
    optimised_for = [onnxruntime.__version__, *sorted(processor_flags())] if device == "cpu" else []
    parts = [str(MODEL_VERSION), __version__, *optimised_for, weights.name]
    files = [path for path in sorted(weights.rglob("*")) if path.is_file()] if weights.is_dir() else [weights]
    try:
        for path in files:
            parts += [path.name, sha256_of(path)]
    except OSError:  # the loader will report it
        return None
    return hashlib.sha256("\n".join(parts).encode(errors="surrogateescape")).hexdigest()[:KEY_LETTERS]


def _kept(weights: Path, key: str | None, device: str) -> tuple[OnnxRuntimeNetwork, ModelDescription] | None:
    """The model that was kept under this key, if there is one and it is whole."""
    if key is None:
        return None
    for path in _beside(weights, f"{key}-{_ANY_CRC}{_suffix(device)}"):
        try:
            content = path.read_bytes()
            if path == _place(weights, key, content, device):
                network = OnnxRuntimeNetwork(content, optimised=device == "cpu", device=device)
                description = ModelDescription.from_json(json.loads(network.metadata[DESCRIPTION]))
                return network, replace(description, notes=tuple(json.loads(network.metadata[NOTES])))
        except UserError:  # of the device, which another model would not help
            raise
        except Exception:  # whatever is wrong with it, it is made anew
            continue
    return None


def _made(weights: Path, key: str | None, device: str) -> tuple[OnnxRuntimeNetwork, ModelDescription]:
    # Only here: it brings OneFlow and onnx, whose import takes longer than to read what was kept.
    from ssd300_vgg16.deploy.model import RAW, as_bytes, load_model, onnx_model

    model, description = load_model(weights)
    made = onnx_model(model, description, RAW)
    for name, value in ((DESCRIPTION, description.as_json()), (NOTES, description.notes)):
        made.metadata_props.add(key=name, value=json.dumps(value))
    content = as_bytes(made)
    if key and _key(weights, device) == key:  # or the weights were replaced while they were read
        try:
            return _made_and_kept(content, weights, key, device), description
        except UserError:
            raise
        except Exception:  # a folder that cannot be written: it is made in memory
            pass
    return OnnxRuntimeNetwork(content, device=device), description


def _made_and_kept(content: bytes, weights: Path, key: str, device: str) -> OnnxRuntimeNetwork:
    """The network, and its model (for the CPU: optimised) in its place; raises any exception if it can't be written."""
    aside = temporary(weights)
    aside.touch(0o600, exist_ok=False)
    try:
        network = OnnxRuntimeNetwork(content, write_to=aside if device == "cpu" else None, device=device)
        if device != "cpu":
            aside.write_bytes(content)
        aside.chmod(stat.S_IMODE(weights.stat().st_mode) & 0o666)  # who may not read the weights may not read it
        place = _place(weights, key, aside.read_bytes(), device)
        aside.replace(place)
    finally:
        aside.unlink(missing_ok=True)
    for former in _beside(weights, f"*-{_ANY_CRC}{_suffix(device)}"):
        if former != place:
            with suppress(OSError):
                former.unlink(missing_ok=True)
    for begun in filter(is_temporary, _beside(weights, f"*{TEMPORARY_SUFFIX}")):
        with suppress(OSError):  # another process may have finished it meanwhile
            if begun.stat().st_mtime < time.time() - ABANDONED_SECONDS:
                begun.unlink()
    return network


def _beside(weights: Path, pattern: str) -> list[Path]:
    return [path for path in weights.parent.glob(f".{escape(weights.name)}.{pattern}") if path.is_file()]


def _place(weights: Path, key: str, content: bytes, device: str) -> Path:
    return weights.with_name(f".{weights.name}.{key}-{zlib.crc32(content):08x}{_suffix(device)}")


def _suffix(device: str) -> str:
    return ".onnx" if device == "cpu" else ".cuda.onnx"
