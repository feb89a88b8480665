"""Weights as other projects publish them, in files that PyTorch would have written; nothing here reads weights."""

import pickle
import struct
import zipfile
from itertools import islice
from pathlib import Path

import numpy as np
from foreign_detectors import NAMES, foreign_detector, published_order

FOREIGN_WIDTH = 1 / 16  # of the networks of foreign_detectors
TENSOR = b"ctorch._utils\n_rebuild_tensor_v2\n"
FLOATS = b"ctorch\nFloatStorage\n"


def random_detector(project: str, size: int = 300, num_classes: int = 21) -> dict[str, np.ndarray]:
    """A state dict by a project's names, in its order, with small numbers as a network may have them."""
    rng = np.random.default_rng(0)
    shapes = {name: array.shape for name, array in foreign_detector(project, size, num_classes).items()}
    return {name: rng.normal(0, 0.02, shape).astype(np.float32) for name, shape in shapes.items()}


def by_published_names(theirs: dict[str, np.ndarray], size: int = 300) -> dict[str, np.ndarray]:
    """The same tensors by this package's names."""
    return dict(zip(published_order(size), theirs.values(), strict=True))


def reduced_vgg16(project: str = "amdegroot") -> dict[str, np.ndarray]:
    """The trunk of `random_detector` alone, by the names of vgg16_reducedfc.pth."""
    prefix = f"{NAMES[project][0]}."
    theirs = random_detector(project)
    return {name.removeprefix(prefix): array for name, array in theirs.items() if name.startswith(prefix)}


def published_trunk() -> dict[str, np.ndarray]:
    """The tensors of `reduced_vgg16` by this package's names: 15 convolutions."""
    return dict(islice(by_published_names(random_detector("amdegroot")).items(), 30))


def _text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def _value(value: object) -> bytes:
    return pickle.dumps(value, 2)[2:-1]


def _tensor(number: int, array: np.ndarray) -> bytes:
    strides = tuple(stride // array.itemsize for stride in array.strides)
    stored = b"(" + _text("storage") + FLOATS + _text(str(number)) + _text("cpu") + _value(array.size) + b"tQ"
    return TENSOR + b"(" + stored + _value(0) + _value(array.shape) + _value(strides) + b"\x89}tR"


def write_pth(path: Path, tensors: dict[str, np.ndarray]) -> Path:
    """A file as torch.save writes it today: the instructions of its pickle by hand, the numbers beside it.

    Numbers are stored in the order in which they lie in memory, as there.
    """
    pairs = (_text(name) + _tensor(number, array) for number, (name, array) in enumerate(tensors.items()))
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02}(" + b"".join(pairs) + b"u.")
        for number, array in enumerate(tensors.values()):
            archive.writestr(f"archive/data/{number}", array.ravel("K").astype("<f4").tobytes())
    return path
