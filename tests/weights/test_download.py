"""Downloads of published weights, from servers, proxies and disks that fail in every way there is."""

import io
import json
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import closing

import pytest
import requests
import urllib3
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

from ssd300_vgg16.errors import UserError
from ssd300_vgg16.weights import download, request
from ssd300_vgg16.weights.download import fetch
from ssd300_vgg16.weights.request import Refused


@pytest.fixture(autouse=True)
def at_once(monkeypatch):
    directly_and_at_once(monkeypatch)


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


def test_a_file_is_downloaded_once_and_kept_under_its_own_name(server, tmp_path):
    wanted = weights_at(server.url("a/weights.tar.gz"))
    path = fetch(wanted, tmp_path / "new" / "folder")
    assert path == tmp_path / "new" / "folder" / "weights.tar.gz" and path.read_bytes() == BODY
    assert names(path.parent) == ["weights.tar.gz", "weights.tar.gz.json"]
    about = json.loads(path.with_name("weights.tar.gz.json").read_text())
    assert (about["url"], about["size"], about["sha256"]) == (server.url("a/weights.tar.gz"), len(BODY), SHA256)
    assert fetch(wanted, path.parent) == path
    assert len(server.requests) == 1


def test_the_bytes_of_an_archive_are_not_unpacked_on_the_way(server, tmp_path):
    server.answers = [Answer(headers={"Content-Encoding": "gzip", "Content-Type": "application/x-gzip"})]
    assert fetch(weights_at(server.url("weights.tar.gz")), tmp_path).read_bytes() == BODY
    assert server.requests[0].headers["Accept-Encoding"] == "identity"


@pytest.mark.parametrize("known", [{}, {"size": len(BODY), "sha256": SHA256[:16]}])
def test_what_broke_off_goes_on_from_there(server, tmp_path, known):
    server.answers = [Answer(stop=HALF), Answer(stop=HALF // 2), Answer()]
    assert fetch(weights_at(server.url(), **known), tmp_path).read_bytes() == BODY
    assert ranges(server) == [None, f"bytes={HALF}-", f"bytes={HALF + HALF // 2}-"]
    assert [request.headers.get("If-Range") for request in server.requests] == [None, ETAG, ETAG]
    assert sum(request.sent for request in server.requests) == len(BODY)


def test_what_broke_off_for_good_goes_on_at_the_next_call(server, tmp_path, monkeypatch):
    monkeypatch.setattr(download, "TRIES", 1)
    server.answers = [Answer(stop=HALF), Answer()]
    with pytest.raises(UserError, match=r"broke off"):
        fetch(weights_at(server.url()), tmp_path)
    assert names(tmp_path) == ["weights.pth.part", "weights.pth.part.json"]
    assert fetch(weights_at(server.url()), tmp_path).read_bytes() == BODY
    assert ranges(server) == [None, f"bytes={HALF}-"]


@pytest.mark.parametrize(
    ("second", "sizes"),
    [
        pytest.param(Answer(OTHER, etag='"second"'), [HALF, 200_000], id="If-Range is minded"),
        pytest.param(Answer(OTHER, etag='"second"', if_range=False), [HALF, HALF, 200_000], id="If-Range is not"),
        pytest.param(Answer(OTHER, ranges=False), [HALF, 200_000], id="Range is not"),
        pytest.param(Answer(OTHER[:HALF], etag='"second"', if_range=False), [HALF, 0, HALF], id="now shorter"),
        pytest.param(Answer(OTHER + OTHER, if_range=False), [HALF, 300_000, 400_000], id="now longer, the same ETag"),
    ],
)
def test_a_file_that_changes_between_tries_is_not_glued_together(server, tmp_path, second, sizes):
    server.answers = [Answer(stop=HALF), second]
    assert fetch(weights_at(server.url()), tmp_path).read_bytes() == second.body
    assert [request.sent for request in server.requests] == sizes


def test_without_a_validator_only_a_known_hash_lets_it_go_on(server, tmp_path):
    for known, expected in (({}, [None, None]), ({"sha256": SHA256}, [None, f"bytes={HALF}-"])):
        server.requests.clear()
        server.answers = [Answer(etag=None, stop=HALF), Answer(etag=None)]
        assert fetch(weights_at(server.url(), **known), tmp_path / str(len(known))).read_bytes() == BODY
        assert ranges(server) == expected


def test_a_joint_with_the_wrong_hash_is_fetched_anew_from_the_same_source(server, tmp_path):
    server.answers = [Answer(OTHER, etag=None, stop=HALF), Answer(etag=None)]
    assert fetch(weights_at(server.url(), sha256=SHA256), tmp_path).read_bytes() == BODY
    assert ranges(server) == [None, f"bytes={HALF}-", None]


def test_a_weak_etag_is_no_validator_but_the_date_is(server, tmp_path):
    day = "Tue, 17 Nov 2015 17:27:45 GMT"
    server.answers = [Answer(etag='W/"weak"', headers={"Last-Modified": day}, stop=HALF), Answer(etag=day)]
    assert fetch(weights_at(server.url()), tmp_path).read_bytes() == BODY
    assert server.requests[1].headers["If-Range"] == day


def test_a_part_that_was_whole_is_only_checked(server, tmp_path):
    """Its process was killed before the check."""
    note = {"url": server.url(), "validator": ETAG, "total": len(BODY)}
    (tmp_path / "weights.pth.part.json").write_text(json.dumps(note))
    (tmp_path / "weights.pth.part").write_bytes(BODY)
    assert fetch(weights_at(server.url()), tmp_path).read_bytes() == BODY
    assert server.requests == []


def test_a_part_that_is_longer_than_the_file_is_fetched_anew(server, tmp_path):
    note = {"url": server.url(), "validator": ETAG, "total": None}
    (tmp_path / "weights.pth.part.json").write_text(json.dumps(note))
    (tmp_path / "weights.pth.part").write_bytes(BODY + OTHER)
    assert fetch(weights_at(server.url()), tmp_path).read_bytes() == BODY
    assert ranges(server) == [f"bytes={2 * len(BODY)}-", None]


WRONG = {
    "another file": (Answer(OTHER), "sends another file: its SHA-256 is"),
    "declares less": (Answer(length=HALF), "offers a file of 100,000 bytes; the published one has 200,000"),
    "declares more": (Answer(length=300_000), "offers a file of 300,000 bytes"),
    "declares nothing, sends less": (
        Answer(length=None, stop=HALF, ranges=False),
        "broke off after 100,000 of 200,000",
    ),
    "declares nothing, sends more": (Answer(BODY + BODY, length=None), "sends another file: it has 400,000 bytes"),
    "a web page": (Answer(headers={"Content-Type": "text/html; charset=utf-8"}), "sends a web page"),
    "denied": (Answer(status=403), r"answers HTTP 403 \(Forbidden\)"),
    "gone": (Answer(status=404), r"answers HTTP 404 \(Not Found\)"),
    "login to a proxy": (Answer(status=407), "answers HTTP 407 "),
    "a redirect to nowhere": (Answer(status=302), "HTTP 302"),
    "a redirect to a file": (Answer(status=302, headers={"Location": "file:///etc/hostname"}), "no http or https"),
    "redirects in a circle": (Answer(status=302, headers={"Location": "/weights.pth"}), "more than 5 times"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_source_with_the_wrong_file_or_none_is_followed_by_the_next(server, mirror, tmp_path, wrong):
    server.answers, reason = [WRONG[wrong][0]], WRONG[wrong][1]
    known = {"size": len(BODY), "sha256": SHA256[:16]}
    path = fetch(weights_at(server.url(), mirror.url("mirror.tar.gz"), **known), tmp_path)
    assert path == tmp_path / "mirror.tar.gz" and path.read_bytes() == BODY
    assert names(tmp_path) == ["mirror.tar.gz", "mirror.tar.gz.json"]
    with pytest.raises(UserError, match=reason):
        fetch(weights_at(server.url("again.pth"), **known), tmp_path)


def test_when_all_sources_fail_each_is_named_with_its_reason_and_what_to_do_by_hand(server, mirror, tmp_path):
    server.answers, mirror.answers = [Answer(status=403)], [Answer(status=503)]
    with pytest.raises(UserError) as error:
        fetch(weights_at(server.url("a.pth"), mirror.url("b.pth"), sha256=SHA256), tmp_path)
    first, *reasons, by_hand = str(error.value).splitlines()
    assert first == "some_weights could not be downloaded:"
    assert reasons == [
        f"  {server.url('a.pth')}: answers HTTP 403 (Forbidden)",
        f"  {mirror.url('b.pth')}: answers HTTP 503 (Service Unavailable) (3 tries)",
    ]
    assert server.url("a.pth") in by_hand and f"put it at {tmp_path / 'a.pth'}" in by_hand
    assert (len(server.requests), len(mirror.requests)) == (1, 3)


def test_a_fault_that_passes_is_waited_for(server, tmp_path):
    server.answers = [Answer(status=500), Answer(status=429), Answer()]
    assert fetch(weights_at(server.url()), tmp_path).read_bytes() == BODY


def test_a_server_that_changes_the_file_again_and_again_is_given_up(server, tmp_path, monkeypatch):
    files = [Answer(body, etag=etag, stop=HALF, if_range=False) for body, etag in ((BODY, '"a"'), (OTHER, '"b"'))]
    server.answers = files * 10
    with pytest.raises(UserError, match=r"broke off the connection \(3 tries\)"):
        fetch(weights_at(server.url()), tmp_path)
    assert len(server.requests) == 3


def test_a_length_that_is_never_sent_ends(server, tmp_path):
    server.answers = [Answer(length=300_000)]
    with pytest.raises(UserError, match=r"\(3 tries\)"):
        fetch(weights_at(server.url()), tmp_path)
    assert not (tmp_path / "weights.pth").exists()


def test_a_file_without_end_does_not_fill_the_disk(server, tmp_path, monkeypatch):
    monkeypatch.setattr(download, "MAX_BYTES", HALF)
    for answer in (Answer(length=None), Answer()):
        server.answers = [answer]
        with pytest.raises(UserError, match="more than weights of this network can have"):
            fetch(weights_at(server.url()), tmp_path)
        assert names(tmp_path) == []


def test_a_slow_server_is_waited_for(server, tmp_path, monkeypatch):
    monkeypatch.setattr(request, "TIMEOUT", (10, 0.3))
    server.answers = [Answer(piece=40_000, pause=0.12)]
    begin = time.monotonic()
    assert fetch(weights_at(server.url()), tmp_path).read_bytes() == BODY
    assert len(server.requests) == 1 and time.monotonic() - begin > 0.4, "longer than the timeout, in all"


def test_a_silent_server_is_not_waited_for(server, mirror, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(request, "TIMEOUT", (10, 0.5))
    server.answers = [Answer(piece=1000, pause=60)]
    assert fetch(weights_at(server.url(), mirror.url("mirror.pth")), tmp_path).read_bytes() == BODY
    assert ranges(server) == [None, "bytes=1000-", "bytes=2000-"]
    assert f"{server.url()}: fell silent" in capsys.readouterr().err


def test_a_redirect_is_followed_with_the_range(server, mirror, tmp_path):
    server.answers = [Answer(status=302, headers={"Location": mirror.url("signed?key=1")})]
    mirror.answers = [Answer(stop=HALF), Answer()]
    assert fetch(weights_at(server.url()), tmp_path).name == "weights.pth"
    assert ranges(mirror) == [None, f"bytes={HALF}-"]


def test_a_redirect_from_https_to_http_is_refused():
    class Downgrading(requests.adapters.BaseAdapter):
        def send(self, request, **_):
            response = requests.Response()
            response.status_code, response.url, response.request = 302, request.url, request
            response.headers["Location"] = "http://example.org/weights.pth"
            response.raw = urllib3.HTTPResponse(io.BytesIO(), preload_content=False)
            return response

        def close(self):
            pass

    with requests.Session() as session:
        session.mount("https://", Downgrading())
        with pytest.raises(Refused, match=r"redirects from https to http://example\.org"):
            request.ask(session, "https://example.org/weights.pth", {})


def test_a_proxy_is_used(server, tmp_path, monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", server.url(""))
    assert fetch(weights_at("http://weights.invalid/weights.pth"), tmp_path).read_bytes() == BODY
    assert server.requests[0].path == "http://weights.invalid/weights.pth"


def unused_port():
    with closing(socket.socket()) as unused:
        unused.bind(("127.0.0.1", 0))
        return unused.getsockname()[1]


def test_what_keeps_from_the_network_is_named(server, tmp_path, monkeypatch):
    closed = f"127.0.0.1:{unused_port()}"
    with pytest.raises(UserError, match=r": could not be reached.*refused\) \(3 tries\)"):
        fetch(weights_at(f"http://{closed}/a.pth"), tmp_path)
    with pytest.raises(UserError, match=r"could not be reached.*SSL"):
        fetch(weights_at(server.url().replace("http", "https")), tmp_path)
    monkeypatch.setenv("HTTP_PROXY", f"http://somebody:secret@{closed}")
    with pytest.raises(UserError, match=r"behind a proxy ") as error:
        fetch(weights_at("http://weights.invalid/a.pth"), tmp_path)
    assert "secret" not in str(error.value)


FETCH = """
import sys
from pathlib import Path
from ssd300_vgg16.weights import download, published
source = published.Source(sys.argv[1])
print(download.fetch(published.Published("w", "detector", "", (source,)), Path(sys.argv[2])))
"""


def other_process(server, folder):
    command = [sys.executable, "-c", FETCH, server.url(), str(folder)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_of_many_processes_one_downloads_and_the_others_wait(server, tmp_path):
    go = threading.Event()
    server.answers = [Answer(stop=HALF, at_stop=lambda: go.wait(20)), Answer()]
    processes = [other_process(server, tmp_path) for _ in range(3)]
    told = [process.stderr.readline() for process in processes]  # each says at once what it does
    go.set()
    said = [
        (told_first + process.communicate(timeout=20)[1]) for told_first, process in zip(told, processes, strict=True)
    ]
    assert [process.returncode for process in processes] == [0, 0, 0]
    kinds = Counter("waiting" if "another process is downloading w: waiting for it" in text else "own" for text in said)
    assert kinds == {"waiting": 2, "own": 1}
    assert ranges(server) == [None, f"bytes={HALF}-"]


def test_a_killed_process_leaves_no_lock_and_the_next_goes_on(server, tmp_path):
    hang = threading.Event()
    server.answers = [Answer(stop=HALF, at_stop=lambda: hang.wait(20)), Answer()]
    process = other_process(server, tmp_path)
    try:
        deadline = time.monotonic() + 20
        part = tmp_path / "weights.pth.part"
        while not part.exists() or part.stat().st_size < HALF:
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.01)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert fetch(weights_at(server.url()), tmp_path).read_bytes() == BODY
    assert ranges(server) == [None, f"bytes={HALF}-"]
    hang.set()


def test_ctrl_c_leaves_what_has_come(server, tmp_path):
    server.answers = [Answer(stop=HALF, at_stop=interrupt), Answer()]
    with pytest.raises(KeyboardInterrupt):
        fetch(weights_at(server.url()), tmp_path)
    assert fetch(weights_at(server.url()), tmp_path).read_bytes() == BODY
    assert ranges(server) == [None, f"bytes={HALF}-"]


def test_a_disk_that_fills_up_ends_it_and_keeps_what_has_come(server, mirror, tmp_path):
    refusal = r"weights\.pth\.part could not be read or written \(File too large\).* SSD_CACHE"
    with full_disk(at=HALF), pytest.raises(UserError, match=refusal):
        fetch(weights_at(server.url(), mirror.url("mirror.pth")), tmp_path)
    assert mirror.requests == [], "it is no better with another source"
    assert fetch(weights_at(server.url()), tmp_path).read_bytes() == BODY
    assert ranges(server) == [None, f"bytes={HALF}-"]


def test_a_disk_that_takes_no_byte_is_told_the_same_way(server, tmp_path):
    with full_disk(at=0), pytest.raises(UserError, match=r"weights\.pth\.part\.json could not be written .* SSD_CACHE"):
        fetch(weights_at(server.url()), tmp_path)


def test_a_disk_with_too_little_room_is_refused_beforehand(server, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9 - 1000, 1000))
    with pytest.raises(UserError, match=r"has 0 MB free and the download needs 0 MB: make room, or set SSD_CACHE"):
        fetch(weights_at(server.url()), tmp_path)
    assert not (tmp_path / "weights.pth.part").exists()


def test_without_progress_nothing_is_said(server, tmp_path, capsys):
    server.answers = [Answer(stop=HALF), Answer()]
    fetch(weights_at(server.url()), tmp_path, progress=False)
    assert capsys.readouterr() == ("", "")
