"""Downloads of published weights, from servers, proxies and disks that fail; and weights that are there already."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from types import SimpleNamespace

import pytest
from file_server import (
    BODY,
    ETAG,
    HALF,
    OTHER,
    SHA256,
    Answer,
    directly_and_at_once,
    interrupt,
    names,
    serving,
    weights_at,
)
from full_disk import full_disk
from requests.exceptions import SSLError

from ssd300_vgg16 import reading
from ssd300_vgg16.errors import UserError
from ssd300_vgg16.weights import download
from ssd300_vgg16.weights.download import fetch
from ssd300_vgg16.weights.published import PUBLISHED, published


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """The folder of downloads."""
    directly_and_at_once(monkeypatch)
    monkeypatch.setenv("SSD_CACHE", str(tmp_path))
    return tmp_path


@pytest.fixture
def server():
    with serving() as server:
        yield server


@pytest.fixture
def mirror():
    with serving() as server:
        yield server


def ranges(server):
    return [request.headers.get("Range") for request in server.requests]


def test_a_file_is_downloaded_once_and_kept_under_its_own_name(server, tmp_path, monkeypatch):
    folder = tmp_path / "new" / "folder"
    monkeypatch.setenv("SSD_CACHE", str(folder))
    wanted = weights_at(server.url("a/weights.tar.gz"))
    assert fetch(wanted) == fetch(wanted) == folder / "weights.tar.gz"
    assert (folder / "weights.tar.gz").read_bytes() == BODY
    assert json.loads((folder / "weights.tar.gz.json").read_text())["sha256"] == SHA256
    assert names(folder) == ["weights.tar.gz", "weights.tar.gz.json"]
    assert len(server.requests) == 1


def test_the_bytes_of_an_archive_are_not_unpacked_on_the_way(server):
    server.answers = [Answer(headers={"Content-Encoding": "gzip", "Content-Type": "application/x-gzip"})]
    assert fetch(weights_at(server.url("weights.tar.gz"))).read_bytes() == BODY
    assert server.requests[0].headers["Accept-Encoding"] == "identity"


def test_what_broke_off_goes_on_from_there(server, monkeypatch):
    monkeypatch.setattr(download, "TRIES", 5)
    server.answers = [Answer(status=500), Answer(stop=HALF), Answer(status=429), Answer(stop=HALF // 2), Answer()]
    assert fetch(weights_at(server.url(), size=len(BODY), sha256=SHA256[:16])).read_bytes() == BODY
    assert ranges(server) == [None, None, f"bytes={HALF}-", f"bytes={HALF}-", f"bytes={HALF + HALF // 2}-"]
    assert [request.headers.get("If-Range") for request in server.requests] == [None, None, ETAG, ETAG, ETAG]
    assert sum(request.sent for request in server.requests) == len(BODY)


@pytest.mark.parametrize("etag", [None, 'W/"weak"'])
def test_it_begins_anew_where_nothing_tells_the_file_surely(server, etag):
    server.answers = [Answer(etag=etag, stop=HALF), Answer(OTHER, etag=etag)]
    assert fetch(weights_at(server.url())).read_bytes() == OTHER
    assert ranges(server) == [None, None]


@pytest.mark.parametrize(
    ("second", "requests"),
    [
        pytest.param(Answer(OTHER, etag='"second"'), 2, id="If-Range is minded"),
        pytest.param(Answer(OTHER, etag='"second"', if_range=False), 3, id="If-Range is not"),
        pytest.param(Answer(OTHER, ranges=False), 2, id="Range is not"),
        pytest.param(Answer(OTHER[:HALF], etag='"second"', if_range=False), 3, id="now shorter"),
    ],
)
def test_a_file_that_changes_between_tries_is_not_glued_together(server, second, requests):
    server.answers = [Answer(stop=HALF), second]
    assert fetch(weights_at(server.url())).read_bytes() == second.body
    assert len(server.requests) == requests


def test_a_part_that_was_damaged_on_the_disk_is_not_used_again(server, cache):
    (cache / "weights.pth.part").write_bytes(OTHER[:HALF])
    (cache / "weights.pth.validator").write_text(ETAG)
    with pytest.raises(UserError, match="sends another file: its SHA-256"):
        fetch(weights_at(server.url(), sha256=SHA256))
    assert fetch(weights_at(server.url(), sha256=SHA256)).read_bytes() == BODY
    assert ranges(server) == [f"bytes={HALF}-", None]


@pytest.mark.parametrize("part", [BODY, BODY + OTHER])
def test_a_part_that_nothing_can_be_added_to_is_fetched_anew(server, cache, part):
    """Its process was killed before it took its name, or it is too long."""
    (cache / "weights.pth.part").write_bytes(part)
    (cache / "weights.pth.validator").write_text(ETAG)
    assert fetch(weights_at(server.url())).read_bytes() == BODY
    assert ranges(server) == [f"bytes={len(part)}-", None]


WRONG = {
    "another file": (Answer(OTHER), "sends another file: its SHA-256 is"),
    "less": (Answer(length=HALF), "sends another file: it has 100,000 bytes and the published file 200,000"),
    "less than it says": (Answer(length=300_000), r"broke off the connection .*100000 more expected.* \(3 tries\)"),
    "more": (Answer(BODY + BODY, length=None), "sends another file: it has 400,000 bytes"),
    "nothing": (Answer(b""), "sends another file: it is empty"),
    "a web page": (Answer(headers={"Content-Type": "text/html; charset=utf-8"}), "sends a web page"),
    "denied": (Answer(status=403), r"answers HTTP 403 \(Forbidden\)\n"),
    "out of order": (Answer(status=503), r"answers HTTP 503 \(Service Unavailable\) \(3 tries\)"),
    "a part nobody asked for": (Answer(status=206), "has another file than before"),
    "such a part of any file": (Answer(status=206, etag=None), "has another file than before"),
    "no part": (Answer(status=416), "has another file than before"),
    "a redirect to a file": (
        Answer(status=302, headers={"Location": "file:///etc/hostname"}),
        "No connection adapters",
    ),
    "redirects in a circle": (Answer(status=302, headers={"Location": "/weights.pth"}), "Exceeded 30 redirects"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_source_with_the_wrong_file_or_none_is_followed_by_the_next(server, mirror, cache, wrong):
    server.answers, reason = [WRONG[wrong][0]], WRONG[wrong][1]
    known = {"size": len(BODY), "sha256": SHA256[:16]}
    path = fetch(weights_at(server.url(), mirror.url("mirror.tar.gz"), **known))
    assert path == cache / "mirror.tar.gz" and path.read_bytes() == BODY
    assert names(cache) == ["mirror.tar.gz", "mirror.tar.gz.json"]
    with pytest.raises(UserError, match=reason):
        fetch(weights_at(server.url("again.pth"), **known))
    assert not (cache / "again.pth").exists()


def test_when_all_sources_fail_each_is_named_with_its_reason_and_what_to_do_by_hand(server, mirror, cache):
    server.answers, mirror.answers = [Answer(status=403)], [Answer(status=503)]
    with pytest.raises(UserError) as error:
        fetch(weights_at(server.url("a.pth"), mirror.url("b.pth"), sha256=SHA256))
    first, *reasons, by_hand = str(error.value).splitlines()
    assert first == "some_weights could not be downloaded:"
    assert reasons == [
        f"  {server.url('a.pth')}: answers HTTP 403 (Forbidden)",
        f"  {mirror.url('b.pth')}: answers HTTP 503 (Service Unavailable) (3 tries)",
    ]
    assert server.url("a.pth") in by_hand and f"put it at {cache / 'a.pth'}" in by_hand
    assert (len(server.requests), len(mirror.requests)) == (1, 3)


def test_a_file_without_end_does_not_fill_the_disk(server, cache, monkeypatch):
    monkeypatch.setattr(download, "MAX_BYTES", HALF)
    server.answers = [Answer(length=None)]
    with pytest.raises(UserError, match="sends more than 100,000 bytes, and weights"):
        fetch(weights_at(server.url()))
    assert len(server.requests) == 1
    assert not (cache / "weights.pth.part").exists()


def test_a_slow_server_is_waited_for_and_a_silent_one_is_not(server, mirror, monkeypatch):
    monkeypatch.setattr(download, "TIMEOUT", (10, 0.3))
    server.answers = [Answer(piece=40_000, pause=0.12)]
    begin = time.monotonic()
    assert fetch(weights_at(server.url())).read_bytes() == BODY
    assert len(server.requests) == 1 and time.monotonic() - begin > 0.4, "longer than the timeout, in all"
    server.answers = [Answer(piece=1000, pause=60)]
    assert fetch(weights_at(server.url("silent.pth"), mirror.url("mirror.pth"))).read_bytes() == BODY
    assert ranges(server)[1:] == [None, "bytes=1000-", "bytes=2000-"]


def test_a_redirect_is_followed_with_the_range(server, mirror):
    server.answers = [Answer(status=302, headers={"Location": mirror.url("signed?key=1")})]
    mirror.answers = [Answer(stop=HALF), Answer()]
    assert fetch(weights_at(server.url())).name == "weights.pth"
    assert ranges(mirror) == [None, f"bytes={HALF}-"]


@pytest.mark.parametrize("hops", [("http://b",), ("https://b", "http://c"), ("http://b", "https://c")])
def test_a_redirect_from_https_to_http_is_refused(hops):
    *history, last = [SimpleNamespace(url=url, status_code=200, headers={}) for url in ("https://a", *hops)]
    last.history = history
    with pytest.raises(UserError, match="redirects from https to"):
        download._refuse_answer(last)


def test_a_proxy_is_used_and_its_password_not_told(server, monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", server.url(""))
    assert fetch(weights_at("http://weights.invalid/weights.pth")).read_bytes() == BODY
    assert server.requests[0].path == "http://weights.invalid/weights.pth"
    monkeypatch.setenv("HTTP_PROXY", "http://somebody:secret@127.0.0.1:9")
    with pytest.raises(UserError, match="behind a proxy ") as error:
        fetch(weights_at("http://weights.invalid/a.pth"))
    assert "secret" not in str(error.value)


def test_what_keeps_from_the_network_is_named(server):
    with pytest.raises(UserError, match=r": could not be reached.*refused.* \(3 tries\)"):
        fetch(weights_at("http://127.0.0.1:9/a.pth"))
    with pytest.raises(UserError, match=r"could not be reached.*SSL"):
        fetch(weights_at(server.url().replace("http", "https")))


def test_a_certificate_that_is_not_trusted_is_told_at_once(monkeypatch):
    """As requests says it; which it does is seen with a server that has made its own."""
    untrusted, asked = SSLError("[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed"), []
    monkeypatch.setattr(download.requests, "get", lambda url, **_: asked.append(url) or raise_(untrusted))
    with pytest.raises(UserError, match=r"has an untrusted certificate: .*REQUESTS_CA_BUNDLE .*failed\)\n"):
        fetch(weights_at("https://weights.invalid/a.pth"))
    assert len(asked) == 1


def raise_(error):
    raise error


FETCH = """
import sys
from ssd300_vgg16.weights import download, published
source = published.Source(sys.argv[1])
print(download.fetch(published.Published("w", "detector", "", (source,))))
"""


def other_process(server):
    command = [sys.executable, "-c", FETCH, server.url()]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_of_many_processes_one_downloads_and_the_others_wait(server):
    go = threading.Event()
    server.answers = [Answer(stop=HALF, at_stop=lambda: go.wait(20)), Answer()]
    processes = [other_process(server) for _ in range(3)]
    told = [process.stderr.readline() for process in processes]  # each says at once what it does
    go.set()
    for process in processes:
        process.communicate(timeout=20)
    assert [process.returncode for process in processes] == [0, 0, 0]
    assert Counter("another process is downloading w: waiting for it" in line for line in told) == {True: 2, False: 1}
    assert ranges(server) == [None, f"bytes={HALF}-"]


def test_a_killed_process_leaves_no_lock_and_the_next_goes_on(server, cache):
    hang = threading.Event()
    server.answers = [Answer(stop=HALF, at_stop=lambda: hang.wait(20)), Answer()]
    process = other_process(server)
    try:
        deadline = time.monotonic() + 20
        part = cache / "weights.pth.part"
        while not part.exists() or part.stat().st_size < HALF:
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.01)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert fetch(weights_at(server.url())).read_bytes() == BODY
    assert ranges(server) == [None, f"bytes={HALF}-"]
    assert names(cache) == ["weights.pth", "weights.pth.json"]
    hang.set()


def test_ctrl_c_leaves_what_has_come(server):
    server.answers = [Answer(stop=HALF, at_stop=interrupt), Answer()]
    with pytest.raises(KeyboardInterrupt):
        fetch(weights_at(server.url()))
    assert fetch(weights_at(server.url())).read_bytes() == BODY
    assert ranges(server) == [None, f"bytes={HALF}-"]


def test_a_disk_that_fills_up_ends_it_and_keeps_what_has_come(server, mirror):
    with full_disk(at=HALF), pytest.raises(UserError, match=r"could not be .* written \(File too large\).* SSD_CACHE"):
        fetch(weights_at(server.url(), mirror.url("mirror.pth")))
    assert mirror.requests == [], "it is no better with another source"
    assert fetch(weights_at(server.url())).read_bytes() == BODY
    assert ranges(server) == [None, f"bytes={HALF}-"]


def test_a_disk_with_too_little_room_is_refused_beforehand(server, mirror, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1_400_000))
    server.answers = [Answer(length=1_600_000), Answer()]
    with pytest.raises(UserError, match=r"\(1 MB free, 2 MB to come\): make room .*, or set SSD_CACHE"):
        fetch(weights_at(server.url(), mirror.url("mirror.pth")))
    assert mirror.requests == []
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=len(BODY)))
    assert fetch(weights_at(server.url())).read_bytes() == BODY


def test_a_changed_file_is_noticed(server):
    path = fetch(weights_at(server.url()))
    path.write_bytes(OTHER)
    with pytest.raises(UserError, match=r"weights\.pth has changed since .* Delete it.* delete .*weights\.pth\.json"):
        fetch(weights_at(server.url()))
    path.unlink()
    assert fetch(weights_at(server.url())).read_bytes() == BODY
    path.write_bytes(OTHER)
    path.with_name("weights.pth.json").unlink()
    assert fetch(weights_at(server.url())).read_bytes() == OTHER, "as the message says"
    assert len(server.requests) == 2


def write_as_before(path, content, **record):
    """Change a kept file so that neither its size nor its time tells; and its record, if one is given."""
    before = path.stat()
    path.write_bytes(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    if record:
        about = {"size": before.st_size, "mtime_ns": before.st_mtime_ns, **record}
        path.with_name(f"{path.name}.json").write_text(json.dumps(about))


def test_what_a_stranger_changed_is_not_used_whatever_size_time_and_record_say(server, cache):
    known = weights_at(server.url("known.pth"), sha256=SHA256[:16])
    write_as_before(fetch(known), OTHER, sha256=hashlib.sha256(OTHER).hexdigest())
    with pytest.raises(UserError, match=r"known\.pth is not the published file: its SHA-256 is"):
        fetch(known)
    write_as_before(fetch(weights_at(server.url("other.pth"))), OTHER)
    with pytest.raises(UserError, match=r"other\.pth has changed since"):
        fetch(weights_at(server.url("other.pth")))
    # Where no hash is published, the record is all there is: it must be nobody else's to write.
    fetch(weights_at(server.url()))
    cache.chmod(0o777)
    with pytest.raises(UserError, match="can be written by other users"):
        fetch(weights_at(server.url()))


def test_a_file_is_hashed_at_each_use_but_in_one_process_only_if_it_was_changed(server, monkeypatch):
    known, hashed = weights_at(server.url(), sha256=SHA256), []
    path = fetch(known)
    counting = SimpleNamespace(sha256=lambda: hashed.append(path) or hashlib.sha256())
    monkeypatch.setattr(reading, "hashlib", counting)
    monkeypatch.setattr(reading, "_SETTLED_NS", 10**15)
    fetch(known), fetch(known)
    assert len(hashed) == 2, "so soon after the download it could have changed with no new time of change"
    monkeypatch.setattr(reading, "_SETTLED_NS", -1)
    fetch(known), fetch(known)
    assert len(hashed) == 3
    time.sleep(0.02)
    write_as_before(path, OTHER)
    with pytest.raises(UserError, match="is not the published file: its SHA-256 is"):
        fetch(known)


def test_a_file_put_there_by_hand_is_checked_and_used(server, cache):
    (cache / "second.pth").write_bytes(BODY)
    assert fetch(weights_at(server.url("first.pth"), server.url("second.pth"))) == cache / "second.pth"
    for content, known, words in (
        (BODY[:HALF], {"size": len(BODY)}, "it has 100,000 bytes and the published file 200,000"),
        (OTHER, {"sha256": SHA256[:8]}, rf"its SHA-256 is \w{{8}}\.\.\. and the published file's {SHA256[:8]}\.\.\."),
        (b"", {}, "it is empty"),
    ):
        (cache / "weights.pth").write_bytes(content)
        with pytest.raises(UserError, match=rf"weights\.pth is not the published file: {words}\. Delete it"):
            fetch(weights_at(server.url(), **known))
        assert (cache / "weights.pth").read_bytes() == content
    assert server.requests == []


def test_a_file_in_a_cache_that_cannot_be_written_is_used(server, cache):
    """A folder stands where the lock would: root, who may be running this, can write in any other."""
    (cache / ".some_weights.lock").mkdir()
    with pytest.raises(UserError, match=r"\.some_weights\.lock could not be read or written .* set SSD_CACHE"):
        fetch(weights_at(server.url()))
    (cache / "weights.pth").write_bytes(BODY)
    with full_disk(at=0):
        assert fetch(weights_at(server.url(), sha256=SHA256)) == cache / "weights.pth"
    assert server.requests == [] and names(cache) == ["weights.pth"]


def test_published_files_are_told_apart_by_their_names_and_come_by_https():
    sources = [source for entry in PUBLISHED.values() for source in entry.sources]
    assert len({source.file_name for source in sources}) == len(sources)
    assert all(source.url.startswith("https://") for source in sources)
    for source in sources:
        if source.file_name.startswith("vgg16-") or source.file_name[-12] == "-":  # torchvision's names end with it
            assert source.sha256.startswith(source.file_name[-12:-4])


def test_an_unknown_name_is_answered_with_those_there_are():
    with pytest.raises(UserError, match=r"Did you mean ssd300_vgg16_coco\? There are ssd300_vgg16_coco, ssd300_voc"):
        published("ssd300_vgg16_coc")
