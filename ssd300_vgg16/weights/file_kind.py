"""What a file is by its first bytes, whatever its name; and what to say of a file that holds no weights."""

from enum import Enum, auto

from ssd300_vgg16.weights.torch_file import STREAM_MAGIC

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
