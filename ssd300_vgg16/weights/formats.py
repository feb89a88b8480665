"""Weights from files of any origin: what format a file is by its content, and what tensors it holds.

All of them are read without running anything in them, and without the framework that wrote them.
"""

import re
from dataclasses import dataclass, field, replace
from io import BytesIO
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import BinaryIO, Literal

import numpy as np

from ssd300_vgg16 import reading
from ssd300_vgg16.errors import UserError
from ssd300_vgg16.files import temporary_files_told
from ssd300_vgg16.text import listed
from ssd300_vgg16.weights.archive import open_zip, read_tar, read_zip
from ssd300_vgg16.weights.oneflow_reader import DONE, PICKLE, Files, files_on_disk, read_flow_folder, roots
from ssd300_vgg16.weights.safetensors_file import read_safetensors
from ssd300_vgg16.weights.torch_reader import STREAM_MAGIC, is_torch_zip, read_torch_stream, read_torch_zip

HEAD_BYTES = 1024
READ_HERE = (
    "Weights are read from safetensors, PyTorch's .pth, and OneFlow's folders, also from a .tar.gz, .tar or .zip of one"
)
# How other files begin, for people who know formats by their names. The last three have no mark of their own.
OTHER_FILES = {
    rb"\Z": "it is empty, as files are whose copying or download was interrupted",
    rb"\s*<(!doctype|html|head|\?xml|error)": (
        "it is a web page, not weights: what was asked for was not there, or wants a login; download it again"
    ),
    rb"version https://git-lfs": "it is a Git LFS pointer, not the file it stands for: fetch that with `git lfs pull`",
    rb"\x89HDF\r\n\x1a\n": "it is HDF5 (.h5, as Keras writes it), which is not read here",
    rb"GGUF": "it is GGUF, which is not read here",
    rb"\x93NUMPY": "it is a single numpy array (.npy), not a network",
    rb"BZh|\xfd7zXZ|\x28\xb5\x2f\xfd|Rar!|7z\xbc\xaf": "it is packed (bzip2, xz, zstd, RAR or 7-Zip): unpack it first",
    rb"\x80[\x02-\x05]": (
        "it is a pickle, but not one that torch.save writes for a file; of a OneFlow folder, give the folder itself"
    ),
    rb"\x08.[\x12\x1a\x22\x3a]": "it looks like ONNX, which is not read here",
    rb"\n.\w{7}": "it looks like Caffe's (.caffemodel), which is not read here: convert it",
    rb"[\t\r\n -~]*\Z": "it is text, not weights; it begins {start!r}",
}


def kind_of(head: bytes) -> Literal["safetensors", "stream", "zip", "gzip", "tar"] | None:
    """The container that begins with these HEAD_BYTES; None for anything else."""
    if head[8:9] == b"{" and head[6:8] == b"\0\0":  # a length of less than 2^48 bytes, and JSON
        return "safetensors"
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return "zip"
    if head.startswith(b"\x1f\x8b"):
        return "gzip"
    if head[257:262] == b"ustar":  # behind the first member's name and numbers
        return "tar"
    return "stream" if STREAM_MAGIC in head[:32] else None


@dataclass(frozen=True)
class Contents:
    """What a file holds, before anyone asks whether it is an SSD.

    format: as people call it; tensors: by the names in the file, read-only where that saves a copy; ignored: names of
    what is no tensor of the network, as "epoch" or "optimizer"; header: this package's own, of files it wrote.
    """

    format: str
    tensors: dict[str, np.ndarray]
    ignored: list[str]
    header: dict = field(default_factory=dict)


def read_contents(path: Path) -> Contents:
    """Read a file or folder of weights in any format, told by its content.

    bfloat16 comes as float32. Raises UserError for a file that is missing, damaged, of another format, or that asks
    for anything but tensors.
    """
    try:
        if path.is_dir():
            if not any((path / mark).is_file() for mark in (PICKLE, DONE)):
                raise UserError(f"it is a folder without OneFlow's weights (neither {PICKLE} nor {DONE}). {READ_HERE}")
            return Contents("OneFlow folder", *read_flow_folder(files_on_disk(path), ""))
        with reading.opened(path, reading.WEIGHTS_BYTES) as file:
            return _of_file(file, path)
    except MemoryError as error:
        raise UserError(f"{path}: larger than the memory of this machine") from error
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file of weights") from error
    except (OSError, ValueError) as error:  # a null byte in its name
        raise UserError(f"{path} could not be read ({getattr(error, 'strerror', None) or error})") from error
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def _told(head: bytes) -> str:
    """What a file is that begins so, and holds no weights."""
    for beginning, sentence in OTHER_FILES.items():
        if re.match(beginning, head, re.IGNORECASE | re.DOTALL):
            return sentence.format(start=head[:40])
    return f"it is of no format that is known here, or damaged; it begins with the bytes {head[:8].hex(' ')}"


def _of_file(file: BinaryIO, path: Path | None) -> Contents:
    """The contents of an open file; path: where it lies, None for one in an archive, which may be no archive itself."""
    head = file.read(HEAD_BYTES)
    file.seek(0)
    kind = kind_of(head)
    if kind is None:
        raise UserError(f"{_told(head)}. {READ_HERE}")
    if kind == "safetensors":
        return _of_safetensors(file, path)
    if kind == "stream":
        return Contents("PyTorch stream (before 1.6)", *read_torch_stream(file))
    if kind == "zip":
        with open_zip(file) as archive:
            if is_torch_zip(archive):
                return Contents("PyTorch zip", *read_torch_zip(archive))
            if path:
                return _of_archive(read_zip(archive), ".zip")
    # One archive only is unpacked: archives in archives could multiply what is counted for each.
    if path is None:
        raise UserError("it is an archive in an archive: unpack the outer one first")
    gzipped = kind == "gzip"
    return _of_archive(read_tar(file, gzipped), ".tar.gz" if gzipped else ".tar")


def _of_safetensors(file: BinaryIO, path: Path | None) -> Contents:
    if path is None:
        with temporary_files_told(), NamedTemporaryFile() as copy:  # its reader wants a path
            copy.write(file.read())
            copy.flush()
            return _of_safetensors(file, Path(copy.name))
    try:
        tensors, header = read_safetensors(path)
    except (TypeError, AttributeError) as error:  # a type that numpy lacks
        raise UserError(f"it holds numbers that are not read here ({error}); save it as float32") from error
    return Contents("safetensors", tensors, [], header)


def _of_archive(contents: dict[str, bytes], suffix: str) -> Contents:
    """The one folder of OneFlow's in an archive, or the one file of weights in it."""
    files = Files({name: len(content) for name, content in contents.items()}, contents.__getitem__)
    folders = roots(files)
    # A folder of OneFlow's is many files, each of which could be taken for weights.
    candidates = folders or [name for name, content in contents.items() if kind_of(content[:HEAD_BYTES])]
    if not candidates:
        names = listed(sorted(contents), max_names=5) or "nothing"
        raise UserError(f"it is an archive without weights; it holds {names}. {READ_HERE}")
    if len(candidates) > 1:
        names = listed([name or "." for name in candidates], max_names=5)
        raise UserError(f"it is an archive with several files of weights: unpack it, and give one of them ({names})")
    if folders:
        inner = Contents("OneFlow folder", *read_flow_folder(files, folders[0]))
    else:
        inner = _of_file(BytesIO(contents[candidates[0]]), None)
    return replace(inner, format=f"{inner.format} in a {suffix}")
