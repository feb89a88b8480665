"""Files of weights of every format: the tensors in them, whatever the file is called and packed in."""

import gzip
import json
import struct
import tarfile
import zipfile

import numpy as np
import pytest
from foreign_weights import less_memory_than, refusal
from places import GOLDEN
from safetensors.numpy import save_file

from ssd300_vgg16.data.dataset import Category
from ssd300_vgg16.errors import UserError
from ssd300_vgg16.runtime import flow
from ssd300_vgg16.weights.formats import read_contents
from ssd300_vgg16.weights.safetensors_file import ModelDescription, save_weights

FILES = GOLDEN / "weight_files"
VERSIONS = ("torch1.12", "torch2.6")
LAYOUTS = {"zip": "PyTorch zip", "stream": "PyTorch stream (before 1.6)"}
BESIDE_THE_NETWORK = ["iteration", "optimizer", "scheduler", "model_ema", "args", "best", "history"]
TENSORS = {
    "conv.weight": np.arange(24, dtype=np.float32).reshape(2, 3, 2, 2),
    "conv.bias": np.array([0.5, -1], np.float32),
    "count": np.array(3, np.int64),
}

every_torch_file = pytest.mark.parametrize(
    ("version", "layout"), [(version, layout) for version in VERSIONS for layout in LAYOUTS]
)


def assert_same(tensors, expected):
    assert list(tensors) == list(expected)
    for name, array in expected.items():
        assert tensors[name].dtype == array.dtype, name
        assert tensors[name].shape == array.shape, name
        np.testing.assert_array_equal(tensors[name], array, err_msg=name)


def expected_of(version, name):
    with np.load(FILES / version / f"{name}.npz") as file:
        return {key.removeprefix("module."): file[key] for key in file}


@every_torch_file
@pytest.mark.parametrize(("file", "ignored"), [("plain", []), ("checkpoint", BESIDE_THE_NETWORK)])
def test_the_network_of_pytorch_is_found_alone_and_among_optimizer_and_average(version, layout, file, ignored):
    contents = read_contents(FILES / version / f"{file}_{layout}.pth")
    assert (contents.format, contents.header, contents.ignored) == (LAYOUTS[layout], {}, ignored)
    assert_same(contents.tensors, expected_of(version, "network"))


@every_torch_file
def test_every_type_view_and_shared_storage_of_pytorch(version, layout):
    contents = read_contents(FILES / version / f"mixed_{layout}.pth")
    assert_same(contents.tensors, expected_of(version, "mixed"))
    assert contents.tensors["bfloat16"].dtype == np.float32
    assert np.shares_memory(contents.tensors["whole"], contents.tensors["transposed"])


def test_a_stream_written_by_python_2(tmp_path):
    """As its pickles differ: bytes for text, an OrderedDict from a list of pairs, counts as long integers."""
    stored = b"(U\x07storagectorch\nFloatStorage\nU\x010U\x03cpu\x8a\x01\x06NtQ"
    tensor = b"ctorch._utils\n_rebuild_tensor\n(" + stored + b"K\x00(\x8a\x01\x02\x8a\x01\x03tK\x03K\x01\x86tR"
    pickled = b"\x80\x02ccollections\nOrderedDict\n](](U\x05vgg.0" + tensor + b"e](U\x05vgg.1" + tensor + b"ee\x85R."
    head = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.\x80\x02}."
    numbers = np.arange(6, dtype=np.float32)
    path = tmp_path / "w.pth"
    path.write_bytes(head + pickled + b"\x80\x02]U\x010a." + struct.pack("<q", 6) + numbers.tobytes())
    assert_same(read_contents(path).tensors, {"vgg.0": numbers.reshape(2, 3), "vgg.1": numbers.reshape(2, 3)})


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(
    ("name", "word"),
    [("module", "asks for 'torch.nn.modules.container.Sequential'"), ("script", "TorchScript program")],
)
def test_a_whole_network_of_pytorch_is_code_and_refused(version, name, word):
    message = refusal(FILES / version / f"{name}_zip.pth")
    assert word in message
    assert "state_dict()" in message


def test_numbers_from_a_machine_of_the_other_byte_order_are_refused(tmp_path):
    path = tmp_path / "w.pth"
    with zipfile.ZipFile(FILES / "torch2.6" / "plain_zip.pth") as before, zipfile.ZipFile(path, "w") as after:
        for name in before.namelist():
            after.writestr(name, b"big" if name.endswith("/byteorder") else before.read(name))
    assert "big-endian" in refusal(path)


@pytest.fixture
def safetensors(tmp_path):
    path = tmp_path / "w.safetensors"
    save_file(TENSORS, path)
    return path


def write_flow_folder(folder, data=None):
    """By OneFlow itself."""
    flow.save({name: flow.tensor(array) for name, array in TENSORS.items()} if data is None else data, str(folder))
    return folder


def write_older_flow_folder(folder, tensors=TENSORS):
    """As OneFlow 0.4 and before wrote it."""
    kinds = {np.dtype(np.float32): "kFloat", np.dtype(np.int64): "kInt64"}
    for name, array in tensors.items():
        (folder / name).mkdir(parents=True)
        (folder / name / "out").write_bytes(array.tobytes())
        dims = "".join(f"  dim: {size}\n" for size in array.shape)
        (folder / name / "meta").write_text(f"shape {{\n{dims}}}\ndata_type: {kinds[array.dtype]}\n")
    (folder / "snapshot_done").touch()
    return folder


def test_safetensors_of_others_have_no_header(safetensors):
    contents = read_contents(safetensors)
    assert (contents.format, contents.header, contents.ignored) == ("safetensors", {}, [])
    assert_same(dict(sorted(contents.tensors.items())), dict(sorted(TENSORS.items())))


def test_our_own_safetensors_keep_their_header(tmp_path):
    save_weights(tmp_path / "ours", TENSORS, ModelDescription(2, 1.0, (Category(1, 1, "cat"),)), {"epoch": 3})
    header = read_contents(tmp_path / "ours").header
    assert (header["epoch"], header["model"]["num_classes"]) == (3, 2)


def test_safetensors_of_a_type_that_numpy_lacks_are_refused(tmp_path):
    header = json.dumps({"a": {"dtype": "F8_E4M3", "shape": [2], "data_offsets": [0, 2]}}).encode()
    path = tmp_path / "w.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + b"\0\0")
    assert "float32" in refusal(path)


def test_a_header_that_fills_the_memory_is_refused(tmp_path):
    path = tmp_path / "w.safetensors"
    header = b'{"__metadata__":{' + b",".join(b'"%d":""' % number for number in range(1_000_000)) + b"}}"
    path.write_bytes(struct.pack("<Q", len(header)) + header)
    with less_memory_than(50 << 20):
        assert "not a whole safetensors file (a header of more than 8 MiB)" in refusal(path)


def test_a_folder_as_oneflow_saves_it(tmp_path):
    contents = read_contents(write_flow_folder(tmp_path / "w"))
    assert (contents.format, contents.header, contents.ignored) == ("OneFlow folder", {}, [])
    assert_same(contents.tensors, TENSORS)


def test_a_checkpoint_as_oneflow_saves_it(tmp_path):
    model = flow.nn.Sequential(flow.nn.Conv2d(3, 2, 1), flow.nn.BatchNorm2d(2))
    optimizer = flow.optim.SGD(model.parameters(), lr=0.5, momentum=0.5)
    data = {
        "epoch": 3,
        "state_dict": {f"module.{name}": tensor for name, tensor in model.state_dict().items()},
        "optimizer": optimizer.state_dict(),
        "extra": [flow.float32, flow.zeros(2, 3).shape, np.float64(0.5), np.zeros(2), flow.zeros(2)],
    }
    contents = read_contents(write_flow_folder(tmp_path / "w", data))
    assert contents.ignored == ["epoch", "optimizer", "extra"]
    assert_same(contents.tensors, {name: tensor.numpy() for name, tensor in model.state_dict().items()})


def test_a_few_tensors_under_a_networks_name_are_no_network(tmp_path):
    data = {"model": {"mean": flow.zeros(3)}, "parts": {"a": {name: flow.zeros(1) for name in "xyz"}, "b": 1}}
    contents = read_contents(write_flow_folder(tmp_path / "w", data))
    assert (list(contents.tensors), contents.ignored) == (["x", "y", "z"], ["model", "parts.b"])


def test_types_of_oneflow(tmp_path):
    types = ("float32", "float64", "float16", "int64", "int32", "int8", "uint8", "bool")
    expected = {dtype: (np.arange(6).reshape(2, 3) % 2).astype(dtype) for dtype in types}
    data = {name: flow.tensor(array.astype(np.float32)).to(getattr(flow, name)) for name, array in expected.items()}
    folder = write_flow_folder(tmp_path / "w", {**data, "none": flow.zeros(0, 2)})
    assert_same(read_contents(folder).tensors, {**expected, "none": np.zeros((0, 2), np.float32)})


def test_the_older_layout_of_oneflow(tmp_path):
    folder = write_older_flow_folder(tmp_path / "w")
    (folder / "notes.txt").write_text("of someone")
    contents = read_contents(folder)
    assert (contents.format, contents.ignored) == ("OneFlow folder", ["notes.txt"])
    assert_same(contents.tensors, dict(sorted(TENSORS.items())))


def pack(source, path, inside="", junk=True):
    """The file or folder in an archive, by Python's own writers, below `inside`; with what macOS adds."""
    members = [source, *sorted(source.rglob("*"))]
    names = {member: inside + member.relative_to(source.parent).as_posix() for member in members}
    extra = ("__MACOSX/._w", f"{inside}._w", f"{inside}.DS_Store") if junk else ()
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for member, name in names.items():
                archive.write(member, name)
            for name in extra:
                archive.writestr(name, b"\0\5\26\7")
        return path
    with tarfile.open(path, "w:gz" if path.suffix == ".gz" else "w") as archive:
        for member, name in names.items():
            archive.add(member, name, recursive=False)
        for name in extra:
            archive.addfile(tarfile.TarInfo(name))
    return path


ARCHIVES = pytest.mark.parametrize("suffix", [".tar.gz", ".tar", ".zip"])


@ARCHIVES
@pytest.mark.parametrize("inside", ["", "./", "some/folders/", "long" * 60 + "/"], ids=["top", "dot", "deep", "long"])
@pytest.mark.parametrize("write", [write_flow_folder, write_older_flow_folder])
def test_a_folder_of_oneflow_in_an_archive(tmp_path, suffix, inside, write):
    path = pack(write(tmp_path / "w"), tmp_path / f"w{suffix}", inside)
    contents = read_contents(path)
    assert contents.format == f"OneFlow folder in a {suffix}"
    assert_same(dict(sorted(contents.tensors.items())), dict(sorted(TENSORS.items())))


@ARCHIVES
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_file_of_pytorch_in_an_archive(tmp_path, suffix, layout):
    source = FILES / "torch2.6" / f"plain_{layout}.pth"
    contents = read_contents(pack(source, tmp_path / f"w{suffix}", "folder/"))
    assert contents.format == f"{LAYOUTS[layout]} in a {suffix}"
    assert_same(contents.tensors, expected_of("torch2.6", "network"))


@ARCHIVES
def test_safetensors_in_an_archive(tmp_path, safetensors, suffix):
    path = pack(safetensors, tmp_path / f"archive{suffix}")
    assert sorted(read_contents(path).tensors) == sorted(TENSORS)
    safetensors.write_bytes(safetensors.read_bytes()[:-1])
    assert "whole" in refusal(pack(safetensors, tmp_path / f"damaged{suffix}"))


def test_names_of_files_say_nothing(tmp_path, safetensors):
    archive = pack(write_flow_folder(tmp_path / "w"), tmp_path / "w.tar.gz")
    stream = FILES / "torch1.12" / "plain_stream.pth"
    for source, form in [(safetensors, "safetensors"), (archive, "OneFlow"), (stream, "PyTorch stream")]:
        path = tmp_path / "model.bin"
        path.write_bytes(source.read_bytes())
        assert read_contents(path).format.startswith(form)


@ARCHIVES
def test_an_archive_must_hold_one_file_of_weights(tmp_path, safetensors, suffix):
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "readme").write_text("nothing yet")
    assert "without weights" in refusal(pack(folder, tmp_path / f"none{suffix}"))
    for name in ("a", "b"):
        (folder / name).write_bytes(safetensors.read_bytes())
    assert "several" in refusal(pack(folder, tmp_path / f"two{suffix}"))
    archive = pack(safetensors, tmp_path / f"inner{suffix}")
    if suffix != ".tar.gz":
        assert "archive in an archive" in refusal(pack(archive, tmp_path / f"outer{suffix}"))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (b"\n<!DOCTYPE html><html><title>404</title>", "web page"),
        (b"<HTML><body>Not found", "web page"),
        (b"<?xml version='1.0'?><Error><Code>NoSuchKey</Code></Error>", "web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 142594222\n", "Git LFS pointer"),
        (b'{"message": "Not Found"}', "is text"),
        (b"import torch\n", "is text, not weights; it begins b'import torch"),
        (b"\x89HDF\r\n\x1a\n" + bytes(64), "HDF5"),
        (b"\x08\x07\x12\x07pytorch\x1a\x05", "ONNX"),
        (b"\n\x0fVGG_ILSVRC_16_layers", "Caffe"),
        (b"\x80\x04\x95\x05\x00\x00\x00\x00\x00\x00\x00}\x94.", "pickle"),
        (b"\xfd7zXZ\0\0", "xz"),
        (b"\xff\xd8\xff\xe0" + bytes(16), "no format"),
        (b"PK\x03\x04" + bytes(64), "zip that is damaged"),
        (b"\x1f\x8b\x08\x00", "damaged or cut short"),
        (gzip.compress(b"a file that is no tar", mtime=0), "packed with gzip, but no .tar.gz"),
        (b"\x10\0\0\0\0\0\0\0{", "safetensors"),
    ],
)
def test_what_holds_no_weights_is_named(tmp_path, content, words):
    path = tmp_path / "w.pth"
    path.write_bytes(content)
    assert words in refusal(path)


def test_what_is_missing_or_holds_no_network_is_named(tmp_path):
    assert "no such file" in refusal(tmp_path / "none.pth")
    (tmp_path / "images").mkdir()
    assert "pickled_data" in refusal(tmp_path / "images")
    assert "no mapping of names" in refusal(write_flow_folder(tmp_path / "list", [flow.zeros(2)]))
    assert "no mapping of names" in refusal(write_flow_folder(tmp_path / "epoch", {"epoch": 3}))


@pytest.fixture(
    params=["plain_zip.pth", "checkpoint_stream.pth", "mixed_stream.pth", "flow.tar.gz", "flow.tar", "flow.zip"]
)
def whole(request, tmp_path):
    """The bytes of a good file."""
    source = FILES / "torch2.6" / request.param
    if not source.exists():
        source = pack(write_flow_folder(tmp_path / "w"), tmp_path / request.param, junk=False)
    return source.read_bytes()


def test_files_cut_short_are_refused(tmp_path, whole):
    # The end of a tar is filled up with zeros, without which it is whole, too.
    end = len(whole.rstrip(b"\0"))
    for cut in np.linspace(0, end - 1, 50).astype(int):
        (tmp_path / "cut").write_bytes(whole[:cut])
        assert refusal(tmp_path / "cut")


def test_damaged_files_never_fail_with_anything_but_a_message(tmp_path, whole):
    random = np.random.default_rng(0)
    path, refused = tmp_path / "damaged", 0
    for _ in range(150):
        content = bytearray(whole)
        for place in random.integers(0, min(len(whole), 3000), 2):
            content[place] = random.integers(0, 256)
        path.write_bytes(content)
        try:
            read_contents(path)
        except UserError:
            refused += 1
    assert refused > 10
