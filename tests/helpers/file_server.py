"""A server on the loopback that gives one file, in the ways that servers on the internet do and do not."""

import hashlib
import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from random import Random
from types import SimpleNamespace

import pytest

from ssd300_vgg16.weights import download
from ssd300_vgg16.weights.published import Published, Source

BODY = Random(1).randbytes(200_000)
OTHER = Random(2).randbytes(200_000)
HALF = 100_000
SHA256 = hashlib.sha256(BODY).hexdigest()
ETAG = '"first"'


@dataclass
class Request:
    """What was asked for, and how many bytes of the body were sent."""

    path: str
    headers: dict[str, str]
    sent: int = 0


@dataclass
class Answer:
    """How one request is answered: by default as a good server does."""

    body: bytes = BODY
    status: int = 200
    etag: str | None = ETAG
    headers: dict[str, str] = field(default_factory=dict)
    length: int | None = -1  # what is declared; -1 for the truth, None for nothing
    stop: int | None = None  # the connection is cut after so many bytes of the body
    ranges: bool = True  # whether Range is minded
    if_range: bool = True  # whether If-Range is
    piece: int = 1 << 20
    pause: float = 0.0  # seconds after each piece
    at_stop: Callable[[], None] | None = None


class FileServer(ThreadingHTTPServer):
    """Answers requests with the prepared answers, one after the other, and then with the last of them for ever."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answers: list[Answer] = [Answer()]
        self.requests: list[Request] = []
        self.closing = threading.Event()

    def url(self, name: str = "weights.pth") -> str:
        return f"http://127.0.0.1:{self.server_port}/{name}"

    def next_answer(self) -> Answer:
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]

    def handle_error(self, request, client_address):
        """A client that hangs up is no fault of the server."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        request = Request(self.path, dict(self.headers))
        self.server.requests.append(request)
        answer = self.server.next_answer()
        status, start = self._status(answer)
        self.send_response(status)
        body = answer.body[start:] if status < 300 else b""
        length = len(body) if answer.length == -1 else answer.length
        headers = {"Connection": "close", "ETag": answer.etag, "Content-Length": length, **answer.headers}
        if status == 206:
            headers["Content-Range"] = f"bytes {start}-{len(answer.body) - 1}/{len(answer.body)}"
        if status == 416:
            headers["Content-Range"] = f"bytes */{len(answer.body)}"
        for name, value in headers.items():
            if value is not None:
                self.send_header(name, str(value))
        self.end_headers()
        self.close_connection = True
        self._send(answer, body if answer.stop is None else body[: answer.stop], request)

    def _status(self, answer: Answer) -> tuple[int, int]:
        """The status, and from which byte on."""
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        same = self.headers.get("If-Range") in (None, answer.etag) or not answer.if_range
        if answer.status != 200 or not answer.ranges or not asked or not same:
            return answer.status, 0
        return (206, int(asked[1])) if int(asked[1]) < len(answer.body) else (416, 0)

    def _send(self, answer: Answer, body: bytes, request: Request) -> None:
        for start in range(0, len(body), answer.piece):
            piece = body[start : start + answer.piece]
            request.sent += len(piece)  # before it is, or the client could be done first
            self.wfile.write(piece)
            self.server.closing.wait(answer.pause)
        if answer.at_stop:
            answer.at_stop()

    def log_message(self, *_):
        """Not to standard error."""


@contextmanager
def serving() -> Iterator[FileServer]:
    """A server that runs in a thread."""
    with FileServer() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.closing.set()
        server.shutdown()
        thread.join()


def directly_and_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Downloads go round this machine's proxy, and do not pause between tries."""
    monkeypatch.setattr(download, "TRIES", 3)
    monkeypatch.setattr("pooch.core.time", SimpleNamespace(sleep=lambda _: None))
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


def weights_at(*urls: str, size: int | None = None, sha256: str | None = None) -> Published:
    """Published weights at those addresses; size and hash are known of the first one."""
    first, *others = urls
    sources = (Source(first, size, sha256), *map(Source, others))
    return Published("some_weights", "detector", "for tests", sources)


def names(folder: Path) -> list[str]:
    """The files there, but for locks."""
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))


def interrupt() -> None:
    """Ctrl-C, once what was sent has arrived."""
    time.sleep(0.1)
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(0.1)
