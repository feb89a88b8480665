"""The model that ONNX Runtime computes, made once and kept beside the weights it was made from.

A file `.NAME.KEY-CRC.onnx`, hidden. KEY is a digest of all that it depends on: the weights, the code of this package,
ONNX Runtime and the processor's instructions, for which it is optimised. CRC is a checksum of the file itself, so that
a damaged one is not used. Who can put another in its place can change the weights too.
"""

import glob
import hashlib
import json
import os
import stat
import time
import zlib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import onnxruntime

from ssd300_vgg16.deploy.session import OnnxRuntimeNetwork
from ssd300_vgg16.machine import processor_flags
from ssd300_vgg16.weights.safetensors_file import ModelDescription

DESCRIPTION, NOTES = "description", "notes"
KEY_LETTERS = 16
BLOCK = 1 << 20
LEFT_OVER = 3600.0  # seconds after which an unfinished file is that of a process that was killed


def onnx_runtime_network(weights: Path) -> tuple[OnnxRuntimeNetwork, ModelDescription]:
    """The network of a detector's file (or folder of OneFlow's) in ONNX Runtime, and its description.

    The model is kept for the next time, where that can be: a folder that is read-only or full is no error. Raises
    UserError for a file that does not hold a whole detector.
    """
    key = _key(weights) if weights.name else None  # a folder that is called "." has nothing beside it
    return _kept(weights, key) or _made(weights, key)


def _key(weights: Path) -> str | None:
    """A digest of all that the model depends on; None if the weights cannot be read, which the loader will report."""
    digest = hashlib.sha256()
    package = Path(__file__).parents[1]
    sources = [path for path in sorted(package.rglob("*.py")) if path.is_file()]
    settings = [weights.name, onnxruntime.__version__, *sorted(processor_flags())]
    try:
        for path in (*sources, *_files_of(weights)):
            digest.update(f"{path.name} {path.stat().st_size} ".encode(errors="surrogateescape"))
            for block in _blocks(path):
                digest.update(block)
    except OSError:
        return None
    digest.update(" ".join(settings).encode(errors="surrogateescape"))
    return digest.hexdigest()[:KEY_LETTERS]


def _files_of(weights: Path) -> list[Path]:
    if not weights.is_dir():
        return [weights]
    return [path for path in sorted(weights.rglob("*")) if path.is_file()]


def _blocks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            yield block


def _kept(weights: Path, key: str | None) -> tuple[OnnxRuntimeNetwork, ModelDescription] | None:
    """The model that was kept under this key, if there is one and it is whole."""
    for path in _kept_files(weights, f"{key}-*") if key else ():
        with suppress(Exception):  # whatever is wrong with it, it is made anew
            content = path.read_bytes()
            if path == _place(weights, key, content):
                network = OnnxRuntimeNetwork(content, optimised=True)
                return network, _description_in(network.metadata)
    return None


def _description_in(metadata: dict[str, str]) -> ModelDescription:
    description = ModelDescription.from_json(json.loads(metadata[DESCRIPTION]))
    return replace(description, notes=tuple(json.loads(metadata[NOTES])))


def _made(weights: Path, key: str | None) -> tuple[OnnxRuntimeNetwork, ModelDescription]:
    # Only here: they bring OneFlow and onnx, whose import takes longer than to read what was kept.
    from ssd300_vgg16.deploy.model import RAW, as_bytes, onnx_model
    from ssd300_vgg16.weights.model import load_model

    model, description = load_model(weights)
    made = onnx_model(model, description, RAW)
    for name, value in ((DESCRIPTION, description.as_json()), (NOTES, description.notes)):
        made.metadata_props.add(key=name, value=json.dumps(value))
    content = as_bytes(made)
    if key and _key(weights) == key:  # and not other weights since
        with suppress(Exception):
            return _made_and_kept(content, weights, key), description
    return OnnxRuntimeNetwork(content), description


def _made_and_kept(content: bytes, weights: Path, key: str) -> OnnxRuntimeNetwork:
    """The network, and its optimised model in its place; raises an exception of any kind if it cannot be written."""
    aside = weights.with_name(f".{weights.name}.{os.getpid()}.tmp")
    os.close(os.open(aside, os.O_CREAT | os.O_EXCL | os.O_WRONLY, stat.S_IRUSR | stat.S_IWUSR))
    try:
        network = OnnxRuntimeNetwork(content, write_to=aside)
        aside.chmod(stat.S_IMODE(weights.stat().st_mode) & 0o666)  # who may not read the weights may not read it
        place = _place(weights, key, aside.read_bytes())
        aside.replace(place)
    finally:
        aside.unlink(missing_ok=True)
    _clear(weights, place)
    return network


def _clear(weights: Path, current: Path) -> None:
    """Remove what was kept of former weights, and what killed processes left behind."""
    unfinished = weights.parent.glob(f".{glob.escape(weights.name)}.*.tmp")
    old = [path for path in unfinished if path.stat().st_mtime < time.time() - LEFT_OVER]
    for path in (*_kept_files(weights, "*-*"), *old):
        if path != current:
            with suppress(OSError):
                path.unlink(missing_ok=True)


def _kept_files(weights: Path, name: str) -> list[Path]:
    return [path for path in weights.parent.glob(f".{glob.escape(weights.name)}.{name}.onnx") if path.is_file()]


def _place(weights: Path, key: str, content: bytes) -> Path:
    return weights.with_name(f".{weights.name}.{key}-{zlib.crc32(content):08x}.onnx")
