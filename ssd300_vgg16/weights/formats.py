"""Weights from files of any origin: what format a file is by its content, and what tensors it holds.

All of them are read without running anything in them, and without the framework that wrote them.
"""

import gzip
import zlib
from dataclasses import dataclass, replace
from enum import Enum, auto
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import BinaryIO

import numpy as np

from ssd300_vgg16.errors import UserError
from ssd300_vgg16.text import listed
from ssd300_vgg16.weights.archive import open_zip, read_tar, read_zip
from ssd300_vgg16.weights.oneflow_reader import DONE, PICKLE, Files, files_on_disk, read_flow_folder, roots
from ssd300_vgg16.weights.safetensors_file import read_weights
from ssd300_vgg16.weights.torch_reader import STREAM_MAGIC, TAR_MEMBERS, is_torch_zip, read_torch_stream, read_torch_zip

HEAD_BYTES = 1024
READ_HERE = (
    "Weights are read from safetensors, PyTorch's .pth, and OneFlow's folders, also from a .tar.gz, .tar or .zip of one"
)


class Kind(Enum):
    """The containers that are read."""

    SAFETENSORS = auto()
    TORCH_STREAM = auto()
    ZIP = auto()
    GZIP = auto()
    TAR = auto()


def kind_of(head: bytes) -> Kind | None:
    """The container that begins with these HEAD_BYTES; None for anything else."""
    if head[8:9] == b"{" and head[6:8] == b"\0\0":  # a length of less than 2^48 bytes, and JSON
        return Kind.SAFETENSORS
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return Kind.ZIP
    if head.startswith(b"\x1f\x8b"):
        return Kind.GZIP
    # A tar has its mark behind the first member's name and numbers.
    if head[257:262] == b"ustar":
        return Kind.TAR
    return Kind.TORCH_STREAM if STREAM_MAGIC in head[:32] else None


def not_weights(head: bytes) -> str:
    """A sentence on a file that begins with these bytes, and is of no kind that is read."""
    return f"{_what(head)}. {READ_HERE}"


# Formats by their first bytes, for people who know them by their names.
OTHER_FORMATS = {
    b"\x89HDF\r\n\x1a\n": "it is HDF5 (.h5, as Keras writes it), which is not read here",
    b"GGUF": "it is GGUF, which is not read here",
    b"\x93NUMPY": "it is a single numpy array (.npy), not a network",
    b"BZh": "it is packed with bzip2: unpack it first",
    b"\xfd7zXZ": "it is packed with xz: unpack it first",
    b"\x28\xb5\x2f\xfd": "it is packed with zstd: unpack it first",
    b"Rar!": "it is a RAR archive: unpack it first",
    b"7z\xbc\xaf": "it is a 7-Zip archive: unpack it first",
}


def _what(head: bytes) -> str:
    text = head.lstrip().lower()
    if not head:
        return "it is empty, as files are whose copying or download was interrupted"
    if text.startswith((b"<!doctype", b"<html", b"<head", b"<?xml", b"<error")):
        return "it is a web page, not weights: what was asked for was not there, or wants a login; download it again"
    if head.startswith(b"version https://git-lfs"):
        return "it is a Git LFS pointer, not the file it stands for: fetch that with `git lfs pull`"
    for start, sentence in OTHER_FORMATS.items():
        if head.startswith(start):
            return sentence
    # The protocol of a pickle stands in its second byte.
    if head[:1] == b"\x80" and 2 <= head[1] <= 5:
        return (
            "it is a pickle, but not one that torch.save writes for a file; of a OneFlow folder, give the folder itself"
        )
    return _guess(head)


def _guess(head: bytes) -> str:
    """For formats that have no mark of their own."""
    if head[:1] == b"\x08" and head[2:3] in (b"\x12", b"\x1a", b"\x22", b"\x3a"):
        return "it looks like ONNX, which is not read here"
    if head[:1] == b"\n" and head[2:9].replace(b"_", b"").isalnum():
        return "it looks like Caffe's (.caffemodel), which is not read here: convert it"
    if head.isascii() and head.decode("ascii").replace("\n", "").replace("\r", "").replace("\t", "").isprintable():
        return f"it is text, not weights; it begins {head[:40]!r}"
    return f"it is of no format that is known here, or damaged; it begins with the bytes {head[:8].hex(' ')}"


@dataclass(frozen=True)
class Contents:
    """What a file holds, before anyone asks whether it is an SSD.

    format: as people call it; tensors: by the names in the file, read-only where that saves a copy; header: this
    package's own, of files it wrote; ignored: names of what is no tensor of the network, as "epoch" or "optimizer".
    """

    format: str
    tensors: dict[str, np.ndarray]
    header: dict
    ignored: list[str]


def read_contents(path: Path) -> Contents:
    """Read a file or folder of weights in any format, told by its content.

    bfloat16 comes as float32. Raises UserError for a file that is missing, damaged, of another format, or that asks
    for anything but tensors.
    """
    try:
        return _read(path)
    except MemoryError as error:
        raise UserError(f"{path}: larger than the memory of this machine") from error


def _read(path: Path) -> Contents:
    try:
        if path.is_dir():
            return _of_folder(path)
        if not path.is_file():
            raise UserError("no such file of weights")
        with path.open("rb") as file:
            kind = _kind_in(file)
            if kind is not Kind.SAFETENSORS:
                return _of_file(file, kind)
    except OSError as error:
        raise UserError(f"{path} could not be read ({error.strerror or error})") from error
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    # The reader of safetensors opens the path itself, and its messages name the path already.
    return _of_safetensors(path)


def _kind_in(file: BinaryIO) -> Kind:
    head = file.read(HEAD_BYTES)
    file.seek(0)
    kind = kind_of(head)
    if kind is None:
        raise UserError(not_weights(head))
    return kind


def _of_safetensors(path: Path) -> Contents:
    try:
        tensors, header = read_weights(path)
    except (TypeError, AttributeError) as error:  # a type that numpy lacks
        raise UserError(f"{path}: it holds numbers that are not read here ({error}); save it as float32") from error
    return Contents("safetensors", tensors, header, [])


def _of_folder(path: Path) -> Contents:
    if not any((path / mark).is_file() for mark in (PICKLE, DONE)):
        raise UserError(f"it is a folder without OneFlow's weights (it has neither {PICKLE} nor {DONE}). {READ_HERE}")
    return _foreign("OneFlow folder", read_flow_folder(files_on_disk(path), ""))


def _foreign(form: str, read: tuple[dict[str, np.ndarray], list[str]]) -> Contents:
    """What a reader gave, of a format that has no header of this package's."""
    tensors, ignored = read
    return Contents(form, tensors, {}, ignored)


def _of_file(file: BinaryIO, kind: Kind, in_archive: bool = False) -> Contents:
    """The contents of a file that is no safetensors file; in an archive, of one that is no archive itself."""
    if kind is Kind.TORCH_STREAM:
        return _foreign("PyTorch stream (before 1.6)", read_torch_stream(file))
    if kind is Kind.ZIP:
        with open_zip(file) as archive:
            if is_torch_zip(archive):
                return _foreign("PyTorch zip", read_torch_zip(archive))
            if not in_archive:
                return _of_archive(read_zip(archive), ".zip")
    # One archive only is unpacked: archives in archives could multiply what is counted for each.
    if in_archive:
        raise UserError("it is an archive in an archive: unpack the outer one first")
    if kind is Kind.TAR:
        return _of_archive(read_tar(file, gzipped=False), ".tar")
    if _kind_in_gzip(file) is not Kind.TAR:
        raise UserError("it is packed with gzip, but no .tar.gz: unpack it first (gunzip)")
    return _of_archive(read_tar(file, gzipped=True), ".tar.gz")


def _kind_in_gzip(file: BinaryIO) -> Kind | None:
    try:
        return kind_of(gzip.GzipFile(fileobj=file).read(HEAD_BYTES))
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"it is a gzip that is damaged or cut short ({error}); copy or download it again") from error
    finally:
        file.seek(0)


def _of_archive(contents: dict[str, bytes], suffix: str) -> Contents:
    """The one folder of OneFlow's in an archive, or the one file of weights in it."""
    if contents.keys() >= TAR_MEMBERS:
        raise UserError(
            "it is in the format of PyTorch's first releases (a tar); load it with torch.load, and torch.save it again"
        )
    files = Files({name: len(content) for name, content in contents.items()}, contents.__getitem__)
    folders = roots(files)
    # A folder of OneFlow's is many files, each of which could be taken for weights.
    candidates = folders or [name for name, content in contents.items() if kind_of(content[:HEAD_BYTES])]
    if not candidates:
        raise UserError(
            f"it is an archive without weights; it holds {listed(sorted(contents), max_names=5)}. {READ_HERE}"
        )
    if len(candidates) > 1:
        names = listed([name or "." for name in candidates], max_names=5)
        raise UserError(f"it is an archive with several files of weights: unpack it, and give one of them ({names})")
    if folders:
        inner = _foreign("OneFlow folder", read_flow_folder(files, candidates[0]))
    else:
        inner = _of_member(contents[candidates[0]])
    return replace(inner, format=f"{inner.format} in a {suffix}")


def _of_member(content: bytes) -> Contents:
    """The weights in an archive's one file of weights."""
    kind = _kind_in(BytesIO(content))
    if kind is not Kind.SAFETENSORS:
        return _of_file(BytesIO(content), kind, in_archive=True)
    with TemporaryDirectory() as folder:  # the reader of safetensors wants a path
        path = Path(folder) / "weights"
        path.write_bytes(content)
        try:
            return _of_safetensors(path)
        except UserError as error:
            raise UserError(str(error).removeprefix(f"{path}: ")) from error
