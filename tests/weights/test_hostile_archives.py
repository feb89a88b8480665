"""Archives made to write elsewhere or to fill memory: each is refused with its reason, and nothing is unpacked."""

import gzip
import io
import stat
import struct
import tarfile
import zipfile

import pytest
from foreign_weights import less_memory_than, refusal

from ssd300_vgg16.weights import archive as archives


def tar(path, *members):
    """Of members: a name, content, and attributes of a TarInfo."""
    with tarfile.open(path, "w:gz" if path.suffix == ".gz" else "w") as archive:
        for name, content, *attributes in members:
            member = tarfile.TarInfo(name)
            for attribute, value in {"size": len(content), **dict(*attributes)}.items():
                setattr(member, attribute, value)
            archive.addfile(member, io.BytesIO(content))
    return path


def zipped(path, *members, packing=zipfile.ZIP_DEFLATED):
    """Of members: a name, content, and the mode that says what kind of file it is."""
    with zipfile.ZipFile(path, "w", packing) as archive:
        for name, content, *mode in members:
            entry = zipfile.ZipInfo(name)
            entry.external_attr, entry.compress_type = (mode[0] if mode else stat.S_IFREG) << 16, packing
            archive.writestr(entry, content)
    return path


BOTH = pytest.mark.parametrize(("write", "suffix"), [(tar, ".tar.gz"), (zipped, ".zip")])
WEIGHTS = ("w/pickled_data", b"}.")


@BOTH
@pytest.mark.parametrize("name", ["../x", "w/../../x", "/etc/x", "w/..", "..\\x", "\\x", "C:\\x", "__MACOSX/../x"])
def test_a_name_that_leads_outside_the_archive_is_refused(tmp_path, write, suffix, name):
    assert f"{name!r} would lie outside" in refusal(write(tmp_path / f"a{suffix}", WEIGHTS, (name, b"")))


KINDS_IN_TAR = (b"1", b"2", b"3", b"4", b"6", b"S")  # hard link, link, two devices, pipe, sparse file
KINDS_IN_ZIP = (stat.S_IFLNK, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFIFO, stat.S_IFSOCK)
NO_FILES = [(tar, {"type": kind, "linkname": "/etc/passwd"}) for kind in KINDS_IN_TAR]
NO_FILES += [(zipped, mode) for mode in KINDS_IN_ZIP]


@pytest.mark.parametrize(("write", "kind"), NO_FILES)
def test_links_and_devices_are_refused(tmp_path, write, kind):
    content = b"/etc/passwd" if write is zipped else b""
    assert "'w/out' is a link, a device" in refusal(write(tmp_path / "a", WEIGHTS, ("w/out", content, kind)))


@BOTH
def test_an_archive_of_too_many_members_is_refused(tmp_path, monkeypatch, write, suffix):
    monkeypatch.setattr(archives, "MAX_MEMBERS", 20)
    members = [(f"{index}", b"") for index in range(21)]
    assert "without weights" in refusal(write(tmp_path / f"few{suffix}", *members[:20]))
    assert "20 members" in refusal(write(tmp_path / f"many{suffix}", *members))


@BOTH
def test_an_archive_that_unpacks_to_too_much_is_refused(tmp_path, monkeypatch, write, suffix):
    monkeypatch.setattr(archives, "MAX_UNPACKED_BYTES", 1 << 20)
    assert "without weights" in refusal(write(tmp_path / f"small{suffix}", ("a", bytes(1 << 19))))
    path = write(tmp_path / f"bomb{suffix}", ("a", bytes(50 << 20)))
    assert path.stat().st_size < 100_000
    with less_memory_than(10 << 20):
        assert "unpacks to more than 1,048,576 bytes" in refusal(path)


@BOTH
def test_an_archive_that_shrinks_as_no_weights_do_is_refused(tmp_path, monkeypatch, write, suffix):
    monkeypatch.setattr(archives, "FREE_BYTES", 1 << 20)
    path = write(tmp_path / f"bomb{suffix}", ("a", bytes(4 << 20)))
    assert "unpacks to more than 1," in refusal(path)


def test_a_zip_that_claims_to_be_packed_less_than_it_is_is_refused(tmp_path, monkeypatch):
    """As one whose members are the same bytes of the file does, each of which counts them."""
    monkeypatch.setattr(archives, "FREE_BYTES", 1 << 20)
    path = zipped(tmp_path / "bomb.zip", ("a", bytes(4 << 20)))
    packed = struct.pack("<II", zipfile.ZipFile(path).infolist()[0].compress_size, 4 << 20)
    path.write_bytes(path.read_bytes().replace(packed, struct.pack("<II", 4 << 20, 4 << 20)))
    assert zipfile.ZipFile(path).infolist()[0].compress_size == 4 << 20
    assert "unpacks to more than 1," in refusal(path)


SPARSE = [
    {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "w", "GNU.sparse.realsize": "9"},
    {"GNU.sparse.map": "0,1" * 5000, "GNU.sparse.size": "9"},
    {"GNU.sparse.size": "9", "GNU.sparse.numblocks": "1"},
]


@pytest.mark.parametrize("headers", SPARSE)
def test_the_map_of_a_sparse_file_is_not_read(tmp_path, headers):
    """In the first form it is in the file itself, of any length: 314 million entries took 1.2 MB when packed."""
    content = b"3000000\n" + b"0\n" * 6_000_000
    path = tar(tmp_path / "a.tar.gz", ("w", content, {"pax_headers": headers}))
    assert path.stat().st_size < 100_000
    with less_memory_than(5 << 20):
        assert "a sparse file" in refusal(path)


def test_zeros_after_the_end_of_a_tar_count_too(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "MAX_UNPACKED_BYTES", 1 << 20)
    path = tar(tmp_path / "a.tar.gz", ("a", bytes(10)))
    path.write_bytes(path.read_bytes() + gzip.compress(bytes(50 << 20)))
    assert "unpacks to more" in refusal(path)


@pytest.mark.parametrize("declared", [10, 2000])
def test_a_zip_whose_sizes_are_false_is_refused(tmp_path, declared):
    """Both in the list at the end and before the content."""
    path = zipped(tmp_path / "a.zip", ("a", bytes(1000)))
    false = path.read_bytes().replace(struct.pack("<I", 1000), struct.pack("<I", declared))
    assert false.count(struct.pack("<I", declared)) == 2
    path.write_bytes(false)
    assert "copy" in refusal(path)


@pytest.mark.parametrize("suffix", [".zip", ".pth"])
def test_a_zip_with_a_member_without_a_name_is_refused(tmp_path, suffix):
    name = "archive/data.pkl" if suffix == ".pth" else "w"
    assert "no name" in refusal(zipped(tmp_path / f"a{suffix}", (name, b"}."), ("", b"x")))


def test_a_zip_that_needs_a_password_or_rare_packing_is_refused(tmp_path):
    path = zipped(tmp_path / "a.zip", ("a", bytes(1000)))
    content = bytearray(path.read_bytes())
    content[content.index(b"PK\1\2") + 8] |= 1
    path.write_bytes(content)
    assert "encrypted" in refusal(path)
    assert "rare way" in refusal(zipped(tmp_path / "b.zip", ("a", bytes(100)), packing=zipfile.ZIP_LZMA))


@pytest.mark.parametrize(
    ("content", "count", "words"), [(b"9" * 100_000, 1, "name of 100000 bytes"), (b"11 path=ab\n", 2000, "damaged")]
)
def test_a_tar_with_an_endless_name_or_headers_upon_headers_is_refused(tmp_path, content, count, words):
    assert words in refusal(tar(tmp_path / "a.tar", *[("x", content, {"type": tarfile.XHDTYPE})] * count))


def test_parts_of_pytorchs_zip_that_unpack_to_too_much_or_are_there_twice_are_refused(tmp_path, monkeypatch):
    path = zipped(tmp_path / "a.pth", ("archive/data.pkl", b"}."), ("archive/data/0", bytes(4 << 20)))
    assert "no mapping" in refusal(path)
    monkeypatch.setattr(archives, "MAX_UNPACKED_BYTES", 1 << 20)
    assert "unpacks to more" in refusal(path)
    twice = zipped(tmp_path / "b.pth", ("archive/data.pkl", b"}."), ("other/data.pkl", b"}."))
    assert "several pickles" in refusal(twice)
