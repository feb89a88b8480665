"""Published weights that are there already: downloaded before, or put there by hand; and which there are."""

import json
import os

import pytest
from file_server import BODY, HALF, OTHER, SHA256, Answer, directly_and_at_once, names, serving, weights_at

from ssd300_vgg16.errors import UserError
from ssd300_vgg16.weights import download
from ssd300_vgg16.weights.download import cache_folder, fetch
from ssd300_vgg16.weights.published import PUBLISHED, published


@pytest.fixture(autouse=True)
def at_once(monkeypatch):
    directly_and_at_once(monkeypatch)


@pytest.fixture
def server():
    with serving() as server:
        yield server


def test_a_changed_file_is_noticed(server, tmp_path):
    path = fetch(weights_at(server.url()), tmp_path)
    path.write_bytes(OTHER)
    with pytest.raises(
        UserError, match=r"weights\.pth has changed since it was checked on 20\d\d.* Delete it"
    ) as error:
        fetch(weights_at(server.url()), tmp_path)
    assert str(tmp_path / "weights.pth.json") in str(error.value)
    path.unlink()
    assert fetch(weights_at(server.url()), tmp_path).read_bytes() == BODY
    path.write_bytes(OTHER)
    (tmp_path / "weights.pth.json").unlink()
    assert fetch(weights_at(server.url()), tmp_path).read_bytes() == OTHER, "as the message says"
    assert len(server.requests) == 2


def test_what_is_remembered_of_a_file_that_is_gone_is_no_charge_against_the_next(server, tmp_path, monkeypatch):
    fetch(weights_at(server.url()), tmp_path).unlink()
    server.answers = [Answer(OTHER)]
    with monkeypatch.context() as patched, pytest.raises(TypeError):
        patched.setattr(download, "_remember", None)  # as if it were killed just before that
        fetch(weights_at(server.url()), tmp_path)
    assert fetch(weights_at(server.url()), tmp_path).read_bytes() == OTHER


def test_a_touched_file_is_read_again_and_only_once(server, tmp_path, monkeypatch):
    path = fetch(weights_at(server.url()), tmp_path)
    os.utime(path, (1, 1))
    assert fetch(weights_at(server.url()), tmp_path) == path
    monkeypatch.setattr("ssd300_vgg16.weights.download.sha256_of", None)
    assert fetch(weights_at(server.url()), tmp_path) == path


def test_a_file_put_there_by_hand_is_checked_and_remembered(server, tmp_path):
    wanted = weights_at(server.url("first.pth"), server.url("second.pth"))
    (tmp_path / "second.pth").write_bytes(BODY)
    assert fetch(wanted, tmp_path) == tmp_path / "second.pth"
    assert json.loads((tmp_path / "second.pth.json").read_text())["sha256"] == SHA256
    assert server.requests == []


@pytest.mark.parametrize(
    ("content", "known", "words"),
    [
        (BODY[:HALF], {"size": len(BODY)}, "it has 100,000 bytes and the published file 200,000"),
        (OTHER, {"sha256": SHA256[:8]}, rf"its SHA-256 is \w{{8}}\.\.\. and the published file's {SHA256[:8]}\.\.\."),
        (b"", {}, "it is empty"),
    ],
)
def test_a_wrong_file_put_there_by_hand_is_refused(server, tmp_path, content, known, words):
    (tmp_path / "weights.pth").write_bytes(content)
    with pytest.raises(UserError, match=rf"weights\.pth is not the published file: {words}\. Delete it"):
        fetch(weights_at(server.url(), **known), tmp_path)
    assert (tmp_path / "weights.pth").read_bytes() == content


def test_a_file_in_a_cache_that_cannot_be_written_is_used(server, tmp_path):
    """A folder stands where the JSON would: root, who may be running this, can write in any other."""
    (tmp_path / "weights.pth").write_bytes(BODY)
    (tmp_path / "weights.pth.json").mkdir()
    assert fetch(weights_at(server.url(), sha256=SHA256), tmp_path) == tmp_path / "weights.pth"
    assert names(tmp_path) == ["weights.pth", "weights.pth.json"]


def test_a_cache_that_cannot_be_written_is_named(server, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("SSD_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(UserError, match=r"file/cache could not be read or written \(Not a directory\).* set SSD_CACHE"):
        fetch(weights_at(server.url()))
    (tmp_path / ".some_weights.lock").mkdir()
    with pytest.raises(UserError, match=r"\.some_weights\.lock could not be read or written .* set SSD_CACHE"):
        fetch(weights_at(server.url()), tmp_path)
    assert server.requests == []


@pytest.mark.parametrize(
    ("environment", "folder"),
    [
        ({"SSD_CACHE": "/big/disk", "XDG_CACHE_HOME": "/xdg"}, "/big/disk"),
        ({"SSD_CACHE": "~/weights"}, "/home/somebody/weights"),
        ({"XDG_CACHE_HOME": "/xdg"}, "/xdg/ssd300_vgg16"),
        ({"XDG_CACHE_HOME": "not/absolute"}, "/home/somebody/.cache/ssd300_vgg16"),
        ({}, "/home/somebody/.cache/ssd300_vgg16"),
    ],
)
def test_where_the_cache_is(monkeypatch, environment, folder):
    for name in ("SSD_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"HOME": "/home/somebody", **environment}.items():
        monkeypatch.setenv(name, value)
    assert str(cache_folder()) == folder


def test_published_files_are_told_apart_by_their_names_and_come_by_https():
    sources = [source for entry in PUBLISHED.values() for source in entry.sources]
    assert len({source.file_name for source in sources}) == len(sources)
    assert all(source.url.startswith("https://") for source in sources)
    for source in sources:
        if source.file_name.startswith("vgg16-") or source.file_name[-12] == "-":  # torchvision's names end with it
            assert source.sha256.startswith(source.file_name[-12:-4])


def test_an_unknown_name_is_answered_with_those_there_are():
    assert published("ssd300_vgg16_coco") is PUBLISHED["ssd300_vgg16_coco"]
    with pytest.raises(UserError, match=r"Did you mean ssd300_vgg16_coco\? There are ssd300_vgg16_coco, ssd300_voc"):
        published("ssd300_vgg16_coc")
