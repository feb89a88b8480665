"""Weights as other projects publish them, in files that PyTorch would have written, and how such files are refused.

SSDs by the names that other projects give their tensors, in the order in which their code lists them.
"""

import pickle
import struct
import tracemalloc
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from ssd300_vgg16.errors import UserError
from ssd300_vgg16.weights.formats import read_contents

FOREIGN_WIDTH = 1 / 16  # of these networks
# The lists that ssd.pytorch and lufficc/SSD build their networks from. C: pooling that rounds up; S: stride 2 follows.
VGG = [64, 64, "M", 128, 128, "M", 256, 256, 256, "C", 512, 512, 512, "M", 512, 512, 512]
EXTRAS = {
    300: [256, "S", 512, 128, "S", 256, 128, 256, 128, 256],
    512: [256, "S", 512, 128, "S", 256, 128, "S", 256, 128, "S", 256],
}
BOXES = {300: [4, 6, 6, 6, 4, 4], 512: [4, 6, 6, 6, 6, 4, 4]}
# How the projects call the parts: trunk, extra layers, scale, offsets, scores.
NAMES = {
    "amdegroot": ("vgg", "extras", "L2Norm", "loc", "conf"),
    "lufficc": (
        "backbone.vgg",
        "backbone.extras",
        "backbone.l2_norm",
        "box_head.predictor.reg_headers",
        "box_head.predictor.cls_headers",
    ),
}


def thin(channels):
    return channels // 16


def convolutions(size):
    """(index in vgg, output, input, kernel) of the trunk, then (index in extras, ...) of the extra layers."""
    trunk, index, before = [], 0, 3
    for layer in VGG:
        if layer in ("M", "C"):
            index += 1
            continue
        trunk.append((index, thin(layer), before, 3))
        index, before = index + 2, thin(layer)
    trunk += [(index + 1, thin(1024), before, 3), (index + 3, thin(1024), thin(1024), 1)]
    extras, before, kernel = [], thin(1024), 1
    for layer in EXTRAS[size]:
        if layer != "S":
            extras.append((len(extras), thin(layer), before, kernel))
            before, kernel = thin(layer), 4 - kernel
    if size == 512:
        extras += [(len(extras), thin(128), before, 1), (len(extras) + 1, thin(256), thin(128), 4)]
    return trunk, extras


def foreign_detector(project, size, num_classes):
    """A state dict as the project's code would give it, each tensor filled with its own number."""
    vgg, extra, scale, loc, conf = NAMES[project]
    trunk, extras = convolutions(size)
    shapes = {}
    for prefix, layers in ((vgg, trunk), (extra, extras)):
        for index, after, before, kernel in layers:
            shapes[f"{prefix}.{index}.weight"] = (after, before, kernel, kernel)
            shapes[f"{prefix}.{index}.bias"] = (after,)
    shapes[f"{scale}.weight"] = (thin(512),)
    sources = [thin(512), thin(1024), *(layer[1] for layer in extras[1::2])]
    for prefix, values in ((loc, 4), (conf, num_classes)):
        for level, (channels, boxes) in enumerate(zip(sources, BOXES[size], strict=True)):
            shapes[f"{prefix}.{level}.weight"] = (boxes * values, channels, 3, 3)
            shapes[f"{prefix}.{level}.bias"] = (boxes * values,)
    return {name: np.full(shape, number, np.float32) for number, (name, shape) in enumerate(shapes.items())}


def published_order(size):
    """The published names in the order in which the projects above list theirs."""
    places = [f"features.{n}" for n in (0, 2, 5, 7, 10, 12, 14, 17, 19, 21)]
    places += [f"extra.0.{n}" for n in (1, 3, 5, "7.1", "7.3")]
    extras = len(BOXES[size]) - 2
    places += [f"extra.{layer}.{half}" for layer in range(1, extras + 1) for half in (0, 2)]
    names = [f"backbone.{place}.{part}" for place in places for part in ("weight", "bias")] + ["backbone.scale_weight"]
    for head in ("regression", "classification"):
        for level in range(len(BOXES[size])):
            names += [f"head.{head}_head.module_list.{level}.{part}" for part in ("weight", "bias")]
    return names


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


# What PyTorch's pickles are made of: a few of a stack machine's instructions.


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def value(plain: object) -> bytes:
    """Numbers, or tuples of them."""
    return pickle.dumps(plain, 2)[2:-1]


def asked(name: str) -> bytes:
    """The instruction that asks for a name (module.name)."""
    module, _, last = name.rpartition(".")
    return f"c{module}\n{last}\n".encode()


def storage(kind: str = "torch.FloatStorage", key: str = "0", count: int = 6) -> bytes:
    """Numbers stored outside the pickle."""
    return b"(" + text("storage") + asked(kind) + text(key) + text("cpu") + value(count) + b"tQ"


def tensor(shape: object = (2, 3), strides: object = (3, 1), offset: int = 0, stored: bytes = storage()) -> bytes:
    rest = value(offset) + value(shape) + value(strides) + b"\x89}"
    return asked("torch._utils._rebuild_tensor_v2") + b"(" + stored + rest + b"tR"


def saved(*pairs: tuple[str, bytes]) -> bytes:
    """A pickle of a mapping with these names and pickled values."""
    return b"\x80\x02}(" + b"".join(text(name) + pickled for name, pickled in pairs) + b"u."


def _pickled(number: int, array: np.ndarray) -> bytes:
    strides = tuple(stride // array.itemsize for stride in array.strides)
    return tensor(array.shape, strides, stored=storage(key=str(number), count=array.size))


def write_pth(path: Path, tensors: dict[str, np.ndarray]) -> Path:
    """A file as torch.save writes it today: the instructions of its pickle by hand, the numbers beside it.

    Numbers are stored in the order in which they lie in memory, as there.
    """
    pairs = [(name, _pickled(number, array)) for number, (name, array) in enumerate(tensors.items())]
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", saved(*pairs))
        for number, array in enumerate(tensors.values()):
            archive.writestr(f"archive/data/{number}", array.ravel("K").astype("<f4").tobytes())
    return path


def refusal(path: Path) -> str:
    """Why a file is not read; nothing may have been written beside it."""
    before = sorted(path.parent.rglob("*"))
    with pytest.raises(UserError) as caught:
        read_contents(path)
    assert str(caught.value).startswith(str(path))
    assert sorted(path.parent.rglob("*")) == before
    return str(caught.value)


@contextmanager
def less_memory_than(limit: int) -> Iterator[None]:
    """What is done within it may not take more bytes at any time."""
    tracemalloc.start()
    yield
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < limit
