"""Files are written whole or not at all, and never through a link that a stranger has laid in a folder of results."""

import ast
import os
from contextlib import closing

import pytest
from places import REPOSITORY

from ssd300_vgg16 import files
from ssd300_vgg16.errors import UserError
from ssd300_vgg16.files import GrowingFile, name_also, new_file, open_atomically, temporary, write_atomically
from ssd300_vgg16.folders import held, make_folder

PRECIOUS = b"precious\n"
PACKAGE = REPOSITORY / "ssd300_vgg16"


@pytest.fixture(params=["link", "hard link", "dangling link"])
def planted(request, tmp_path):
    """A name in a stranger's folder that leads to the user's file; in the end this one has to be as it was."""
    precious, place = tmp_path / "precious", tmp_path / "run" / "metrics.jsonl"
    place.parent.mkdir()
    if request.param != "dangling link":
        precious.write_bytes(PRECIOUS)
    if request.param == "hard link":
        place.hardlink_to(precious)
    else:
        place.symlink_to(precious)
    yield place
    assert (precious.read_bytes() == PRECIOUS) if request.param != "dangling link" else not precious.exists()


def add(path, end, content):
    with closing(GrowingFile(path, end)) as file:
        file.add(content)


@pytest.mark.parametrize(
    "write",
    [
        lambda path: write_atomically(path, b"new"),
        lambda path: new_file(path).write_bytes(b"new"),
        lambda path: add(path, 0, b"new"),
        lambda path: name_also(new_file(path.with_name("other")), path),
    ],
)
def test_nothing_is_written_through_a_link(planted, write):
    write(planted)
    assert not planted.is_symlink() and planted.read_bytes() in (b"new", b"")
    assert len(list(planted.parent.iterdir())) <= 2, "nor is anything else left"


def test_what_goes_on_growing_is_no_link(planted):
    if planted.is_symlink():
        with pytest.raises(UserError, match=r"metrics\.jsonl is a link .*remove it"):
            add(planted, 4, b"!")
        with pytest.raises(UserError, match=r"metrics\.jsonl is a link, .*remove it"), held(planted, "in use"):
            pass
    else:
        add(planted, 4, b"!")
        assert planted.read_bytes() in (b"prec!", b"!")


def test_the_name_of_a_temporary_file_is_new_and_short(tmp_path):
    assert len({temporary(tmp_path / "a") for _ in range(100)}) == 100
    assert len(os.fsencode(temporary(tmp_path / ("ü" * 120)).name)) < 255


def test_folders_are_made_below_a_link_that_was_named_and_not_through_others(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "named").symlink_to(tmp_path / "elsewhere")
    make_folder(tmp_path / "named" / "a" / "b", tmp_path / "named")
    assert (tmp_path / "elsewhere" / "a" / "b").is_dir()
    (tmp_path / "named" / "labels").symlink_to(tmp_path)
    with pytest.raises(UserError, match="labels is a link, and nothing is written through it: remove it"):
        make_folder(tmp_path / "named" / "labels" / "c", tmp_path / "named")
    assert not (tmp_path / "c").exists()
    (tmp_path / "named" / "crops").touch()
    with pytest.raises(UserError, match="crops is no folder: remove it, or name another folder"):
        make_folder(tmp_path / "named" / "crops", tmp_path / "named")


@pytest.mark.parametrize("inside", [None, "."])
def test_a_link_that_takes_the_place_of_a_folder_while_it_is_written_to_is_not_followed(tmp_path, inside):
    (tmp_path / "home").mkdir()
    (tmp_path / "labels").mkdir()
    with open_atomically(tmp_path / "labels" / "a.txt", inside=inside and tmp_path) as file:
        (tmp_path / "labels").rename(tmp_path / "moved")
        (tmp_path / "labels").symlink_to(tmp_path / "home")
        file.write(b"new")
    assert (tmp_path / "moved" / "a.txt").read_bytes() == b"new"
    assert list((tmp_path / "home").iterdir()) == []


def test_a_link_that_takes_the_place_of_a_file_that_grows_is_not_followed(tmp_path, monkeypatch):
    precious, place = tmp_path / "precious", tmp_path / "metrics.jsonl"
    precious.write_bytes(PRECIOUS), place.write_bytes(b"{}")

    class Replaced(files.FileIO):
        def __init__(self, *arguments, **how):
            place.unlink(), place.symlink_to(precious)
            super().__init__(*arguments, **how)

    monkeypatch.setattr(files, "FileIO", Replaced)
    with pytest.raises(OSError, match="symbolic links"):
        GrowingFile(place, 2)
    assert precious.read_bytes() == PRECIOUS


# What writes to a file, or makes one, whatever the object it is called on. And which file of the package may do so:
# what it writes to has a name that nobody knew, or lies in a new folder, or is the user's own cache.
WRITERS = {"write_text", "write_bytes", "touch", "imwrite", "copy2", "copyfile", "tofile", "savez", "FileIO", "mkstemp"}
WRITERS |= {"link", "symlink", "hardlink_to", "symlink_to", "rename", "VideoWriter", "EventsWriter", "mkdir", "fdopen"}
ALLOWED = {
    "reading.py": {"open", "fdopen"},  # to be read
    "folders.py": {"open", "mkdir"},
    "cli/command_line.py": {"open"},  # /dev/null
    "cli/streams.py": {"open"},  # /dev/null
    "errors.py": {"touch"},  # in a folder of our own
    "data/shapes.py": {"mkdir"},
    "deploy/cache.py": {"mkdir"},
    "data/decoder.py": {"fdopen"},  # memory
    "detection/video.py": {"VideoWriter"},
    "metrics/evaluation.py": {"savez"},  # a message
    "training/dry_run.py": {"mkstemp", "fdopen"},
    "training/run_folder.py": {"mkdir"},
    "training/run_log.py": {"EventsWriter"},
    "weights/download.py": {"open", "write_text", "mkdir"},
}


def writers(source):
    """The calls in a Python source that may write to a file by its path."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        method = isinstance(node.func, ast.Attribute)
        name = node.func.attr if method else getattr(node.func, "id", "")
        given = [*node.args[0 if method else 1 : 2], *(word.value for word in node.keywords if word.arg == "mode")]
        modes = [value.value for value in given if isinstance(value, ast.Constant) and isinstance(value.value, str)]
        by_number = ast.unparse(node.func) == "os.open"
        if name in WRITERS or (name == "open" and (by_number or any(set("wax+") & set(mode) for mode in modes))):
            yield name


def test_nothing_of_the_package_writes_files_in_another_way():
    for source in sorted(PACKAGE.rglob("*.py")):
        name = str(source.relative_to(PACKAGE))
        if name != "files.py":
            others = set(writers(source.read_text())) - ALLOWED.get(name, set())
            assert not others, f"{name}: write by ssd300_vgg16/files.py, which follows no links, not by {others}"


OTHER_WAYS = ["path.write_text('')", "open(p, 'w')", "path.open('r+b')", "os.open(p, 65)", "p.open(mode='xb')"]


@pytest.mark.parametrize("source", OTHER_WAYS)
def test_other_ways_would_be_found(source):
    assert list(writers(source))
