"""The ONNX cache: models that ONNX Runtime computes, made once and kept in the user's own cache folder.

A file `onnx/KEY-CRC.onnx` there; that for GPUs, which is not optimised for a processor, ends in `.cuda.onnx`. KEY is a
digest of all that the model depends on. CRC is a checksum of the file itself, so that a damaged one is not used. Not
beside the weights: these may be a stranger's, and a model that came with them would be used for them.
"""

import hashlib
import json
import os
import time
import zlib
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import onnxruntime

from ssd300_vgg16 import __version__
from ssd300_vgg16.deploy.session import OnnxRuntimeNetwork
from ssd300_vgg16.errors import UserError
from ssd300_vgg16.files import is_temporary, new_file, temporary, write_atomically
from ssd300_vgg16.folders import own_cache_folder
from ssd300_vgg16.machine import processor_flags
from ssd300_vgg16.reading import sha256_of
from ssd300_vgg16.weights.oneflow_reader import parts_on_disk
from ssd300_vgg16.weights.safetensors_file import ModelDescription

# Raise it when the same weights get another graph, categories or notes than before: after a change in this folder, in
# the network, or in how a format of weights is read. Else models that were kept before the change are used after it.
# tests/deploy/test_cache.py fails when the graph has changed and this has not.
MODEL_VERSION = 3
DESCRIPTION, NOTES = "description", "notes"
FOLDER = "onnx"
MAX_KEPT = 8  # models, each about as large as its weights: those that were not used for longest go
_ANY_CRC = "[0-9a-f]" * 8
ABANDONED_SECONDS = 3600.0  # a file that has been unfinished for so long is that of a killed process


def onnx_runtime_network(weights: Path, device: str = "cpu") -> tuple[OnnxRuntimeNetwork, ModelDescription]:
    """The network of a detector's file (or folder of OneFlow's) in ONNX Runtime, and its description.

    The model is kept for the next time, where that can be: a cache folder that is read-only, full or not the user's
    own is no error. Raises UserError for a file that does not hold a whole detector, or a device that ONNX Runtime
    cannot use.
    """
    key, folder = _key(weights, device), _folder()
    return _kept(folder, key, device) or _made(weights, folder, key, device)


def _folder() -> Path | None:
    """Where models are kept; None if they cannot be kept safely."""
    try:
        folder = own_cache_folder() / FOLDER
        folder.mkdir(0o700, exist_ok=True)  # who may not read the weights may not read their models
    except (UserError, OSError):
        return None
    return folder


def _key(weights: Path, device: str) -> str | None:
    """A digest of all that the model depends on; None if nothing can be kept of these weights."""
    # The name, as some weights are recognised by it. The processor, as ONNX Runtime optimises for its instructions.
    optimised_for = [onnxruntime.__version__, *sorted(processor_flags())] if device == "cpu" else []
    parts = [str(MODEL_VERSION), __version__, *optimised_for, weights.name]
    try:
        for path in parts_on_disk(weights):
            parts += [path.name, sha256_of(path)]
    except OSError:  # the loader will report it
        return None
    return hashlib.sha256("\n".join(parts).encode(errors="surrogateescape")).hexdigest()


def _kept(folder: Path | None, key: str | None, device: str) -> tuple[OnnxRuntimeNetwork, ModelDescription] | None:
    """The model that was kept under this key, if there is one and it is whole."""
    if folder is None or key is None:
        return None
    for path in folder.glob(f"{key}-{_ANY_CRC}{_suffix(device)}"):
        try:
            content = path.read_bytes()
            if path == _place(folder, key, content, device):
                network = OnnxRuntimeNetwork(content, optimised=device == "cpu", device=device)
                description = ModelDescription.from_json(json.loads(network.metadata[DESCRIPTION]))
                description = replace(description, notes=tuple(json.loads(network.metadata[NOTES])))
                with suppress(OSError):
                    os.utime(path)
                return network, description
        except UserError:  # of the device, which another model would not help
            raise
        except Exception:  # whatever is wrong with it, it is made anew
            continue
    return None


def _made(
    weights: Path, folder: Path | None, key: str | None, device: str
) -> tuple[OnnxRuntimeNetwork, ModelDescription]:
    # Only here: it brings OneFlow and onnx, whose import takes longer than to read what was kept.
    from ssd300_vgg16.deploy.model import RAW, as_bytes, load_model, onnx_model

    model, description = load_model(weights)
    made = onnx_model(model, description, RAW)
    for name, value in ((DESCRIPTION, description.as_json()), (NOTES, description.notes)):
        made.metadata_props.add(key=name, value=json.dumps(value))
    content = as_bytes(made)
    if folder and key and _key(weights, device) == key:  # or the weights were replaced while they were read
        try:
            return _made_and_kept(content, folder, key, device), description
        except UserError:
            raise
        except Exception:  # a folder that cannot be written: it is made in memory
            pass
    return OnnxRuntimeNetwork(content, device=device), description


def _made_and_kept(content: bytes, folder: Path, key: str, device: str) -> OnnxRuntimeNetwork:
    """The network, and its model (for the CPU: optimised) in its place; raises any exception if it can't be written."""
    aside = new_file(temporary(folder / key))
    try:
        network = OnnxRuntimeNetwork(content, write_to=aside if device == "cpu" else None, device=device)
        if device != "cpu":
            write_atomically(aside, content)
        place = _place(folder, key, aside.read_bytes(), device)
        aside.replace(place)
    finally:
        aside.unlink(missing_ok=True)
    _forget(folder, place)
    return network


def _forget(folder: Path, newest: Path) -> None:
    """Remove what was not used for longest, damaged models of the newest one's key, and what killed processes left."""
    with suppress(OSError):  # another process may have removed or finished it meanwhile
        times = {path: path.stat().st_mtime for path in folder.iterdir()}
        models = sorted((path for path in times if path.suffix == ".onnx" and path != newest), key=times.__getitem__)
        same = [path for path in models if path.name.partition("-")[0] == newest.name.partition("-")[0]]
        left = [path for path in times if is_temporary(path) and times[path] < time.time() - ABANDONED_SECONDS]
        for path in {*models[: max(0, len(models) + 1 - MAX_KEPT)], *same, *left}:
            path.unlink(missing_ok=True)


def _place(folder: Path, key: str, content: bytes, device: str) -> Path:
    return folder / f"{key}-{zlib.crc32(content):08x}{_suffix(device)}"


def _suffix(device: str) -> str:
    return ".onnx" if device == "cpu" else ".cuda.onnx"
