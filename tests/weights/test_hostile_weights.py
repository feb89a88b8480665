"""Files made to harm whoever loads them: each is refused with its reason, runs nothing, and costs next to nothing."""

import io
import os
import pickle
import struct
import tarfile
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
from foreign_weights import asked, less_memory_than, refusal, saved, storage, tensor, text, value

from ssd300_vgg16 import reading
from ssd300_vgg16.weights import restricted_pickle
from ssd300_vgg16.weights.formats import read_contents
from ssd300_vgg16.weights.oneflow_reader import parts_on_disk

STREAM_HEAD = pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(1001, 2) + pickle.dumps({}, 2)
NUMBERS = np.arange(6, dtype=np.float32).tobytes()
META = "shape {\n  dim: 2\n  dim: 3\n}\ndata_type: kFloat\n"


def torch_zip(path, pickled, numbers=NUMBERS):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickled)
        archive.writestr("archive/data/0", numbers)
    return path


def torch_stream(path, pickled, numbers=NUMBERS, count=6):
    path.write_bytes(STREAM_HEAD + pickled + pickle.dumps(["0"], 2) + struct.pack("<q", count) + numbers)
    return path


def flow_folder(path, pickled, numbers=NUMBERS, meta=META):
    (path / "tensor_1").mkdir(parents=True)
    (path / "pickled_data").write_bytes(pickled)
    (path / "tensor_1" / "out").write_bytes(numbers)
    (path / "tensor_1" / "meta").write_text(meta)
    return path


def tar_gz_of_flow(path, pickled):
    with tarfile.open(path, "w:gz") as archive:
        member = tarfile.TarInfo("w/pickled_data")
        member.size = len(pickled)
        archive.addfile(member, io.BytesIO(pickled))
    return path


CONTAINERS = pytest.mark.parametrize("write", [torch_zip, torch_stream, flow_folder, tar_gz_of_flow])


def flow_tensor(folder="tensor_1"):
    return asked("oneflow.Tensor") + b")\x81}" + text("path") + text(folder) + b"sb"


def saved_by_flow(described):
    return saved(("protocol_version", b"K\x01"), ("data", saved(("w", described))[2:-1]))


def test_the_files_made_here_load_when_nothing_is_wrong_with_them(tmp_path):
    expected = np.arange(6, dtype=np.float32).reshape(2, 3)
    for path in (
        torch_zip(tmp_path / "zip", saved(("w", tensor()))),
        torch_stream(tmp_path / "stream", saved(("w", tensor()))),
        flow_folder(tmp_path / "flow", saved_by_flow(flow_tensor())),
    ):
        np.testing.assert_array_equal(read_contents(path).tensors["w"], expected)


class Reduced:
    """Pickled as a call."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def calls(command):
    """Pickles that run a shell command as soon as Python's own pickle loads them, by the way they do it."""
    line = text(command)
    code = text(f"__import__('os').system({command!r})")
    registered = b"}" + text("x") + asked("posix.system") + b"s"
    return {
        "os.system": b"cos\nsystem\n(" + line + b"tR.",
        "posix.system": pickle.dumps(Reduced(os.system, command), 4),
        "builtins.eval": b"cbuiltins\neval\n(" + code + b"tR.",
        "builtins.exec": b"\x80\x04\x8c\x08builtins\x8c\x04exec\x93(" + code + b"tR.",
        "INST": b"(" + line + b"ios\nsystem\n.",
        "subprocess.getoutput": b"(csubprocess\ngetoutput\n" + line + b"o.",
        "subprocess.Popen": b"csubprocess\nPopen\n(" + line + b"I-1\nNNNNNI01\nI01\ntR.",
        "types.SimpleNamespace": b"ctypes\nSimpleNamespace\n)R" + registered + b"b0cos\nsystem\n(" + line + b"tR.",
    }


@CONTAINERS
@pytest.mark.parametrize("way", list(calls("")))
def test_a_pickle_that_runs_a_command_is_refused_by_name_and_runs_nothing(tmp_path, write, way):
    marker = tmp_path / "ran"
    pickled = calls(f"touch {marker}")[way]
    result = pickle.loads(pickled)  # our own: that it is a working one
    if hasattr(result, "wait"):
        result.wait()
    assert marker.exists()
    marker.unlink()
    assert way in refusal(write(tmp_path / "hostile", pickled))
    assert not marker.exists()


NOT_NEEDED = """
torch.hub.load torch.load torch.storage._load_from_bytes torch._utils._import_dotted_name torch.serialization.os.system
oneflow.load oneflow.Tensor.__init__ collections.OrderedDict.__reduce__ builtins.getattr importlib.import_module
pickle.loads copyreg._reconstructor argparse.FileType numpy.core.multiarray.fromfile
ssd300_vgg16.weights.restricted_pickle.StandIn
"""


@CONTAINERS
@pytest.mark.parametrize("name", NOT_NEEDED.split())
def test_a_name_that_weights_do_not_need_is_refused(tmp_path, write, name):
    assert f"{name!r}, which could run code" in refusal(write(tmp_path / "a", b"\x80\x02" + asked(name) + b")R."))


@CONTAINERS
@pytest.mark.parametrize(
    ("pickled", "word"),
    [
        (b"\x80\x02\x82\x01.", "instruction EXT1"),
        (b"\x80\x02\x83\x01\x00.", "instruction EXT2"),
        (b"\x80\x02\x84\x01\x00\x00\x00.", "instruction EXT4"),
        (b"\x80\x04cargparse\nNamespace\n)}\x92.", "instruction NEWOBJ_EX"),
        (b"\x80\x05\x97.", "instruction NEXT_BUFFER"),
        (b"\x80\x02\x8b\x01\x00\x00\x00\x01.", "instruction LONG4"),
        (b"L" + b"9" * 4000 + b"L\n.", "instruction LONG"),
        (b"P0\n.", "instruction PERSID"),
        (b"I1\np4000000000\n.", "instruction INT"),
        (b"\x80\x02" + text("module") + b"Q.", "outside it"),
        (b"\x80\x02(" + text("module") + b"NNNNtQ.", "outside it"),
        (b"\x80\x02}((K\x01tK\x02tK\x03s.", "key of the type tuple"),
        (b"\x80\x02}" + value(2**61) + b"K\x03s.", "key of the type int"),
        (b"\x80\x02K\x01)R.", "damaged"),
        (b"\x80\x02cargparse\nNamespace\n(" + b"N" * 17 + b"tR.", "too many arguments"),
        (b"\x80\x02K\x01}b.", "damaged"),
        (b"\x80\x02]K\x01K\x02s.", "damaged"),
        (b"\x80\x02}K\x01a.", "damaged"),
        (b"\x80\x02h\x07.", "damaged"),
        (b"\x80\x02t.", "damaged"),
        (b"\x80\x02.", "damaged"),
        (b"\x80\x02X\xff\xff\xff\xff.", "damaged"),
        (b"\x80\x04\x8d" + b"\xff" * 7 + b"\x7f.", "damaged"),
        (b"\x80\x02}", "damaged"),
    ],
)
def test_instructions_that_weights_do_not_need_are_refused(tmp_path, write, pickled, word):
    assert word in refusal(write(tmp_path / "a", pickled))


DEEP = 30_000


@CONTAINERS
@pytest.mark.parametrize(
    "pickled",
    [
        b"\x80\x02)" + b"\x85" * DEEP + b".",
        b"\x80\x02" + b"]" * DEEP + b"a" * (DEEP - 1) + b".",
        b"\x80\x02" + b"}" * DEEP + b".",
        b"\x80\x02" + b"(" * DEEP + b"t" * DEEP + b".",
        b"\x80\x02)" + b"q\x01h\x01\x86" * DEEP + b".",
        b"\x80\x02" + asked("torch._utils._rebuild_tensor_v2") + b"(" + storage() + b"K\x00)"
        b"" + b"q\x01h\x01\x86" * 300 + b")\x89}tR.",
    ],
    ids=["tuples", "lists", "many", "marks", "doubled", "shape"],
)
def test_values_within_values_end_in_a_message(tmp_path, write, pickled):
    assert refusal(write(tmp_path / "a", saved_by_flow(pickled[2:-1])))
    if write in (torch_zip, torch_stream):
        assert refusal(write(tmp_path / "b", saved(("w", pickled[2:-1]))))


def test_a_mapping_that_holds_itself_is_looked_at_once(tmp_path):
    itself = b"\x80\x02}q\x01(" + b"".join(text(f"{index}") + b"h\x01" for index in range(1000)) + b"u."
    start = time.perf_counter()
    assert "no mapping" in refusal(torch_zip(tmp_path / "a", itself))
    assert time.perf_counter() - start < 1


def calls_of(name, arguments, count):
    """A pickle that calls a function again and again with the same pickled arguments."""
    again = b"h\x01h\x02R" * count
    return b"\x80\x02" + asked(name) + b"q\x01" + arguments + b"q\x02" + again + b"."


MANY = 20_000


@pytest.mark.parametrize(
    "pickled",
    [
        calls_of(
            "collections.OrderedDict", b"}(" + b"".join(text(f"{n}") + b"N" for n in range(MANY)) + b"u\x85", MANY
        ),
        calls_of(
            "collections.OrderedDict", b"](" + b"".join(text(f"{n}") + b"N\x86" for n in range(MANY)) + b"e\x85", MANY
        ),
        saved(("x" * MANY, saved(*[(f"{n}", b"N") for n in range(MANY)])[2:-1])),
        saved(("x" * MANY, saved(*[(f"{n}", tensor()) for n in range(500)])[2:-1])),
    ],
    ids=["mapping", "pairs", "long_name", "long_name_of_tensors"],
)
def test_a_small_pickle_does_not_grow(tmp_path, pickled):
    path = torch_zip(tmp_path / "a", pickled)
    with less_memory_than(60 << 20):
        assert refusal(path)


def test_a_folder_named_by_many_tensors_is_read_once(tmp_path, monkeypatch):
    tensors = saved(*[(f"w{n}", flow_tensor()) for n in range(20)])[2:-1]
    path = flow_folder(tmp_path / "a", saved(("protocol_version", b"K\x01"), ("data", tensors)))
    opened, before = [], reading.opened
    monkeypatch.setattr(reading, "opened", lambda path, *a: opened.append(Path(path).name) or before(path, *a))
    assert len(read_contents(path).tensors) == 20
    assert opened.count("out") == 1


def test_a_place_far_off_in_the_memo_takes_no_memory(tmp_path):
    path = torch_zip(tmp_path / "a", b"\x80\x02K\x01r\xff\xff\xff\x7f" + saved(("w", tensor()))[2:])
    with less_memory_than(20 << 20):
        assert list(read_contents(path).tensors) == ["w"]


def test_a_pickle_longer_than_weights_need_is_refused(tmp_path, monkeypatch):
    pickled = saved(*[(f"w{index}", tensor()) for index in range(50)])
    read_contents(torch_zip(tmp_path / "a", pickled))
    monkeypatch.setattr(restricted_pickle, "OPCODES", 500)
    assert "500 instructions" in refusal(tmp_path / "a")
    monkeypatch.undo()
    monkeypatch.setattr(restricted_pickle, "PICKLE_BYTES", len(pickled) - 1)
    assert "longer than" in refusal(tmp_path / "a")


SHAPES = ((2, 4), (3, 3), (-2, -3), (2**40, 2**40), (2**62, 0), None, (2.0, 3.0), (True, 3))
BEYOND = [
    *(tensor(shape=shape) for shape in SHAPES),
    *(tensor(strides=strides) for strides in ((4, 1), (3, 2), (-3, 1), (3,))),
    # Numbers that are shown again and again, to fill the memory.
    tensor(strides=(0, 0), shape=(1000, 1000)),
    tensor(strides=(0, 1), shape=(3, 3)),
    tensor(shape=(2**30, 2**30, 0), strides=(0, 0, 0)),
    tensor(shape=(1,) * 40, strides=(1,) * 40),
    *(tensor(offset=offset) for offset in (1, -1, 2**62)),
    tensor(stored=b"K\x01"),
    *(tensor(stored=storage(count=count)) for count in (7, 5, -6, 2**62)),
    *(tensor(stored=storage(key=key)) for key in ("1", "../data.pkl")),
    *(tensor(stored=storage(f"torch.{kind}")) for kind in ("DoubleStorage", "Size", "float32")),
]


@pytest.mark.parametrize("write", [torch_zip, torch_stream])
@pytest.mark.parametrize("described", BEYOND)
def test_a_tensor_that_reaches_beyond_its_numbers_is_refused(tmp_path, write, described):
    assert refusal(write(tmp_path / "a", saved(("w", described))))


def seen_by(view):
    return tensor((2,), (1,), stored=storage()[:-2] + value(view) + b"tQ")


@pytest.mark.parametrize("view", [("v", 4, 3), ("v", -1, 2), ("v", 0, 7), ("v", 0), "view"])
def test_a_view_of_a_storage_as_older_releases_wrote_it_may_not_reach_beyond_its_end(tmp_path, view):
    path = torch_stream(tmp_path / "good", saved(("w", seen_by(("v", 4, 2)))))
    np.testing.assert_array_equal(read_contents(path).tensors["w"], np.array([4, 5], np.float32))
    assert refusal(torch_stream(tmp_path / "a", saved(("w", seen_by(view)))))


@pytest.mark.parametrize("other", [storage(count=7), storage("torch.HalfStorage"), storage("torch.IntStorage")])
@pytest.mark.parametrize("write", [torch_zip, torch_stream])
def test_a_storage_described_in_two_ways_is_refused(tmp_path, write, other):
    one, two = tensor(), tensor((6,), (1,), stored=other)
    assert refusal(write(tmp_path / "a", saved(("one", one), ("two", two))))
    assert refusal(write(tmp_path / "b", saved(("two", two), ("one", one))))


@pytest.mark.parametrize("count", [5, 7, -6, 2**62])
def test_a_stream_with_another_count_than_its_pickle_says_is_refused(tmp_path, count):
    assert "numbers" in refusal(torch_stream(tmp_path / "a", saved(("w", tensor())), count=count))


DIMENSIONS = ("dim: 3", "dim: 999999999999999999", "dim: -2", "dim: 1\n" * 100, "dim: 2e0")
FALSE_METAS = [META.replace("dim: 2", dimension) for dimension in DIMENSIONS]
FALSE_METAS += [META.replace("kFloat", "kTensorBuffer"), META + "data_type: kFloat\n", " " * 5000 + META, ""]


@pytest.mark.parametrize(
    ("numbers", "meta"),
    [(NUMBERS[:-1], META), (NUMBERS + b"\0", META), (b"", META), *((NUMBERS, meta) for meta in FALSE_METAS)],
)
def test_numbers_of_oneflow_that_are_not_as_said_are_refused(tmp_path, numbers, meta):
    path = flow_folder(tmp_path / "a", saved_by_flow(flow_tensor()), numbers, meta)
    assert "its tensor 'w'" in refusal(path)
    (path / "pickled_data").unlink()
    (path / "snapshot_done").touch()
    assert "its tensor 'tensor_1'" in refusal(path)


@pytest.mark.parametrize("folder", ["../a/tensor_1", "/etc", ".", "..", "", "a/b", "a\\b", "tensor_1\n"])
def test_a_tensor_of_oneflow_outside_its_folder_is_refused(tmp_path, folder):
    assert "plain folder" in refusal(flow_folder(tmp_path / "a", saved_by_flow(flow_tensor(folder))))


@pytest.mark.parametrize(
    ("pickled", "word"),
    [
        (saved_by_flow(flow_tensor("tensor_2")), "meta is missing"),
        (saved_by_flow(asked("oneflow.Tensor") + b")\x81"), "plain folder"),
        (saved(("data", saved(("w", flow_tensor()))[2:-1])), "protocol_version"),
    ],
)
def test_a_pickle_of_oneflow_that_does_not_say_where_its_tensor_is_is_refused(tmp_path, pickled, word):
    assert word in refusal(flow_folder(tmp_path / "a", pickled))


@pytest.mark.parametrize("name", ["/proc/self/status", "/dev/zero", "/dev/null"])
def test_what_only_looks_like_a_file_is_not_read(tmp_path, name):
    """Links that a hostile archive leaves on disk: to a file without a size, and to devices."""
    folder = flow_folder(tmp_path / "a", saved_by_flow(flow_tensor()))
    (folder / "tensor_1" / "out").unlink()
    (folder / "tensor_1" / "out").symlink_to(name)
    assert "out" in refusal(folder)


def test_a_folder_of_sparse_files_takes_no_more_memory_than_weights_do(tmp_path, monkeypatch):
    monkeypatch.setenv("SSD_MAX_WEIGHTS_BYTES", str(1 << 20))
    (tmp_path / "snapshot_done").touch()
    for name in "abc":
        (tmp_path / name).mkdir()
        (tmp_path / name / "meta").write_text(META.replace("dim: 2", "dim: 33333"))
        with (tmp_path / name / "out").open("wb") as file:
            file.truncate(33333 * 3 * 4)
    assert "(has 1,200,1" in refusal(tmp_path) and "SSD_MAX_WEIGHTS_BYTES moves it" in refusal(tmp_path)
    with pytest.raises(OSError, match="SSD_MAX_WEIGHTS_BYTES moves it"):  # nor are they hashed
        parts_on_disk(tmp_path)


def test_a_file_larger_than_memory_ends_in_a_message(tmp_path, monkeypatch):
    def too_large(*_):
        raise MemoryError

    monkeypatch.setattr("ssd300_vgg16.weights.formats.read_torch_zip", too_large)
    assert "larger than the memory" in refusal(torch_zip(tmp_path / "a", saved()))
