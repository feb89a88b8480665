"""Archives made to write elsewhere or to fill memory: each is refused with its reason, and nothing is unpacked."""

import gzip
import io
import stat
import struct
import tarfile
import tracemalloc
import zipfile

import pytest

from ssd300_vgg16.errors import UserError
from ssd300_vgg16.weights import archive as archives
from ssd300_vgg16.weights.formats import read_contents


def refusal(path):
    before = sorted(path.parent.rglob("*"))
    with pytest.raises(UserError) as caught:
        read_contents(path)
    assert str(caught.value).startswith(str(path))
    assert sorted(path.parent.rglob("*")) == before
    return str(caught.value)


def add_to_tar(archive, name, content=b"", **attributes):
    member = tarfile.TarInfo(name)
    member.size = len(content)
    for attribute, value in attributes.items():
        setattr(member, attribute, value)
    archive.addfile(member, io.BytesIO(content))


def hostile_tar(path, name, **attributes):
    with tarfile.open(path, "w:gz") as archive:
        add_to_tar(archive, "w/pickled_data", b"}.")
        add_to_tar(archive, name, **attributes)
    return path


def hostile_zip(path, name, mode=stat.S_IFREG):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("w/pickled_data", b"}.")
        entry = zipfile.ZipInfo(name)
        entry.external_attr = mode << 16
        archive.writestr(entry, b"/etc/passwd")
    return path


@pytest.mark.parametrize("write", [hostile_tar, hostile_zip])
@pytest.mark.parametrize("name", ["../x", "w/../../x", "/etc/x", "w/..", "..\\x", "\\x", "C:\\x", "__MACOSX/../x"])
def test_a_name_that_leads_outside_the_archive_is_refused(tmp_path, write, name):
    message = refusal(write(tmp_path / "a", name))
    assert f"{name!r} would lie outside" in message


@pytest.mark.parametrize(
    ("kind", "word"),
    [
        (tarfile.SYMTYPE, "a link to '/etc/passwd'"),
        (tarfile.LNKTYPE, "a link to '/etc/passwd'"),
        (tarfile.CHRTYPE, "device"),
        (tarfile.BLKTYPE, "device"),
        (tarfile.FIFOTYPE, "device"),
        (tarfile.GNUTYPE_SPARSE, "sparse"),
    ],
)
def test_what_is_no_file_in_a_tar_is_refused(tmp_path, kind, word):
    message = refusal(hostile_tar(tmp_path / "a", "w/out", type=kind, linkname="/etc/passwd"))
    assert "'w/out'" in message and word in message


@pytest.mark.parametrize("mode", [stat.S_IFLNK, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFIFO, stat.S_IFSOCK])
def test_what_is_no_file_in_a_zip_is_refused(tmp_path, mode):
    assert "'w/out' is a link or a device" in refusal(hostile_zip(tmp_path / "a", "w/out", mode))


def members(path, count):
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as archive:
            for index in range(count):
                archive.writestr(f"{index}", b"")
    else:
        with tarfile.open(path, "w:gz") as archive:
            for index in range(count):
                add_to_tar(archive, f"{index}")
    return path


@pytest.mark.parametrize("suffix", [".zip", ".tar.gz"])
def test_an_archive_of_too_many_members_is_refused(tmp_path, monkeypatch, suffix):
    monkeypatch.setattr(archives, "MAX_MEMBERS", 20)
    assert "without weights" in refusal(members(tmp_path / f"few{suffix}", 20))
    assert "20 members" in refusal(members(tmp_path / f"many{suffix}", 21))


def zeros(path, count):
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("a", bytes(count))
    else:
        with tarfile.open(path, "w:gz") as archive:
            add_to_tar(archive, "a", bytes(count))
    return path


@pytest.mark.parametrize("suffix", [".zip", ".tar.gz"])
def test_an_archive_that_unpacks_to_too_much_is_refused(tmp_path, monkeypatch, suffix):
    monkeypatch.setattr(archives, "MAX_UNPACKED_BYTES", 1 << 20)
    assert "without weights" in refusal(zeros(tmp_path / f"small{suffix}", 1 << 19))
    path = zeros(tmp_path / f"bomb{suffix}", 50 << 20)
    assert path.stat().st_size < 100_000
    tracemalloc.start()
    assert "unpacks to more than 1,048,576 bytes" in refusal(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10 << 20


def test_zeros_after_the_end_of_a_tar_count_too(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "MAX_UNPACKED_BYTES", 1 << 20)
    path = tmp_path / "a.tar.gz"
    path.write_bytes(zeros(path, 10).read_bytes() + gzip.compress(bytes(50 << 20)))
    assert "unpacks to more" in refusal(path)


@pytest.mark.parametrize("declared", [10, 2000])
def test_a_zip_whose_sizes_are_false_is_refused(tmp_path, declared):
    """Both in the list at the end and before the content."""
    path = zeros(tmp_path / "a.zip", 1000)
    false = path.read_bytes().replace(struct.pack("<I", 1000), struct.pack("<I", declared))
    assert false.count(struct.pack("<I", declared)) == 2
    path.write_bytes(false)
    assert "copy" in refusal(path)


def test_a_zip_that_needs_a_password_or_rare_packing_is_refused(tmp_path):
    path = zeros(tmp_path / "a.zip", 1000)
    content = bytearray(path.read_bytes())
    content[content.index(b"PK\1\2") + 8] |= 1
    path.write_bytes(content)
    assert "encrypted" in refusal(path)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("a", bytes(100))
    assert "rare way" in refusal(path)


def test_a_tar_with_an_endless_name_is_refused(tmp_path):
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as archive:
        add_to_tar(archive, "x", b"9" * 100_000, type=tarfile.XHDTYPE)
    assert "name of 100000 bytes" in refusal(path)


def test_a_tar_with_headers_upon_headers_is_refused(tmp_path):
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as archive:
        for _ in range(2000):
            add_to_tar(archive, "x", b"11 path=ab\n", type=tarfile.XHDTYPE)
    assert "damaged" in refusal(path)


def test_a_part_of_pytorchs_zip_that_unpacks_to_too_much_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "a.pth"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"}.")
        archive.writestr("archive/data/0", bytes(4 << 20))
    assert "no mapping" in refusal(path)
    monkeypatch.setattr(archives, "MAX_UNPACKED_BYTES", 1 << 20)
    assert "unpacks to more" in refusal(path)


def test_a_zip_with_two_pickles_is_refused(tmp_path):
    path = tmp_path / "a.pth"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", b"}.")
        archive.writestr("other/data.pkl", b"}.")
    assert "several pickles" in refusal(path)
