"""What others have made is opened by one function: nothing but regular files, and no more of them than a limit."""

import ast
import os
import re
import socket
from pathlib import Path

import pytest
from foreign_weights import less_memory_than

import ssd300_vgg16
from ssd300_vgg16 import reading
from ssd300_vgg16.data.foreign import foreign_format
from ssd300_vgg16.data.images import image_size, read_image
from ssd300_vgg16.data.layout import read_json, read_lines
from ssd300_vgg16.data.voc import load_voc
from ssd300_vgg16.data.yolo_layout import read_description
from ssd300_vgg16.deploy.session import exported_network
from ssd300_vgg16.errors import UserError, told
from ssd300_vgg16.reading import sha256_of
from ssd300_vgg16.training.run_folder import read_metrics, read_options
from ssd300_vgg16.weights.formats import read_contents
from ssd300_vgg16.weights.safetensors_file import read_weights

PACKAGE = Path(ssd300_vgg16.__file__).parent
# Files that nobody else has written: this package's own, the system's, those of its own processes.
OWN = {
    "reading.py",
    "machine.py",
    "cli/streams.py",
    "report/html_page.py",
    "self_test/__init__.py",
    "weights/download.py",
    "deploy/cache.py",
    "deploy/model.py",
    "metrics/evaluation.py",
}
WHOLE = ("json.load", "np.load", "onnx.load", "ElementTree.parse", "np.fromfile", "cv2.imread")
NO_FILES = ("archive.open", "tarfile.open", "Image.open", "self._writer.open")


def reads_a_file(call: ast.Call) -> bool:
    function, arguments = ast.unparse(call.func), ast.unparse(call)
    if function.startswith("reading.") or function in NO_FILES:
        return False
    if function.endswith((".read_text", ".read_bytes")) or function in WHOLE:
        return True
    if function.rpartition(".")[2] == "open":
        to_write = r"""['"]r?[wax+]\+?b?['"]|['"]r\+b['"]|O_(WRONLY|RDWR|CREAT|DIRECTORY|NOFOLLOW)"""
        return not re.search(to_write, arguments)
    return False


@pytest.mark.parametrize("code", ["p.open('rb')", "open(p)", "p.read_text()", "np.load(p)", "p.open(encoding='utf-8')"])
def test_a_reader_is_told(code):
    assert reads_a_file(ast.parse(code).body[0].value)


def test_every_reader_goes_through_one_function():
    found = {}
    for path in PACKAGE.rglob("*.py"):
        name = path.relative_to(PACKAGE).as_posix()
        calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
        if name not in OWN and (lines := [call.lineno for call in calls if reads_a_file(call)]):
            found[name] = lines
    assert not found, "open what comes from outside by ssd300_vgg16.reading"


def run(read, name):
    return lambda path: read(path.rename(path.with_name(name)).parent)


def voc_xml(path):
    (path.parent / "a.jpg").touch()
    load_voc([path.rename(path.with_name("a.xml")).parent])


READERS = {
    "image": read_image,
    "size": image_size,
    "JSON": read_json,
    "lines": read_lines,
    "yaml": lambda path: read_description(path.rename(path.with_name("data.yaml"))),
    "weights": read_contents,
    "safetensors": read_weights,
    "ONNX": lambda path: exported_network(path, "cpu"),
    "options": run(read_options, "options.json"),
    "metrics": run(read_metrics, "metrics.jsonl"),
}


def pipe(path):
    os.mkfifo(path)


def endless(path):
    path.symlink_to("/dev/zero")


def large(path):
    with path.open("wb") as file:
        file.truncate(1 << 42)  # without taking any place


def unix_socket(path):
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))


@pytest.mark.parametrize("make", [pipe, endless, unix_socket, large])
@pytest.mark.parametrize("reader", READERS)
def test_no_reader_waits_for_what_is_no_file(tmp_path, monkeypatch, make, reader):
    monkeypatch.chdir(tmp_path)  # a socket's name has to be short
    path = tmp_path / "x"
    make(Path("x"))
    with pytest.raises(UserError) as caught:
        READERS[reader](path)
    assert str(tmp_path) in str(caught.value)
    if make is large and reader not in ("yaml", "options"):
        assert re.search(r"has 4,398,046,511,104 bytes, where .* SSD_MAX_\w+_BYTES moves it", str(caught.value))


@pytest.mark.parametrize("make", [pipe, endless, unix_socket])
def test_neither_does_what_only_looks_at_it(tmp_path, monkeypatch, make):
    monkeypatch.chdir(tmp_path)
    for name in ("a.json", "a.xml", "a.csv", "a.txt", "a.yaml", "data.yaml", "obj.data", "classes.txt"):
        make(Path(name))
    assert foreign_format(tmp_path) is None
    with pytest.raises(OSError):
        sha256_of(tmp_path / "a.txt")
    with pytest.raises(UserError):
        read_description(tmp_path)
    with pytest.raises(UserError):
        load_voc([tmp_path])


def test_a_hash_has_an_end(tmp_path):
    large(tmp_path / "w")
    with pytest.raises(OSError) as caught:
        sha256_of(tmp_path / "w")
    assert re.search(r"has 4,398,046,511,104 bytes, where .* SSD_MAX_WEIGHTS_BYTES moves it$", told(caught.value))


def test_a_limit_is_moved_by_the_variable_that_it_names(tmp_path, monkeypatch):
    (tmp_path / "list.json").write_text("[1, 2, 3]")
    assert read_json(tmp_path / "list.json") == [1, 2, 3]
    monkeypatch.setenv("SSD_MAX_ANNOTATION_BYTES", "8")
    with pytest.raises(UserError, match="has 9 bytes, where 8 is the limit; SSD_MAX_ANNOTATION_BYTES moves it"):
        read_json(tmp_path / "list.json")
    monkeypatch.setenv("SSD_MAX_ANNOTATION_BYTES", "many")
    with pytest.raises(UserError, match="SSD_MAX_ANNOTATION_BYTES=many: write a whole number"):
        read_json(tmp_path / "list.json")


def test_the_holes_of_a_sparse_file_are_no_text(tmp_path):
    path = tmp_path / "a.json"
    path.write_bytes(b'{"images": [')
    with path.open("ab") as file:
        file.truncate(3 << 30)
    with less_memory_than(10 << 20), pytest.raises(UserError, match=r"a\.json: cannot be read: it is not UTF-8 text"):
        read_json(path)


def test_a_file_of_the_system_that_says_it_has_no_size_is_read_up_to_the_limit():
    limit = reading.Limit(100, "bytes", "SSD_MAX_NOTHING")
    with pytest.raises(OSError, match="has more than"):
        reading.read_bytes("/proc/self/smaps", limit)
    assert reading.read_bytes("/proc/self/comm", limit)
