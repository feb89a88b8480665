"""TCP links between the supervisors of several hosts: who takes part, who is still there, and how it all ended.

Every host has a link to host 0, which passes the news on. Messages are short lines of JSON. TCP notices a host that is
switched off after minutes or never, so each side also sends a line a second and watches for the other's.
"""

import contextlib
import json
import socket
import time
from dataclasses import dataclass

from ssd300_vgg16.processes.job import Job

POLL_SECONDS = 0.05
BEAT_SECONDS = 1
GOODBYE_SECONDS = 2  # for the other side to read our last words
LONGEST_LINE = 4096
LONGEST_TEXT = 500


@dataclass(frozen=True)
class End:
    """How a host's part ended: the exit status, and what users on all hosts need to know about it, if anything."""

    status: int
    text: str = ""


class Link:
    """A connection on which neither side ever waits for the other."""

    def __init__(self, connection: socket.socket, host: int | None = None):
        connection.setblocking(False)
        self._socket = connection
        self._unread = b""
        self._beat_at = self.heard_at = time.monotonic()
        self.host = host
        self.address = _plain(connection.getpeername()[0])
        self.own_address = _plain(connection.getsockname()[0])
        self.open = True
        self.said_end = False

    def send(self, kind: str, **content) -> None:
        """Failures are not reported: reading notices them, after what the other side had to say."""
        with contextlib.suppress(OSError):
            self._socket.send(json.dumps({"type": kind, **content}).encode() + b"\n")

    def receive(self) -> list[dict]:
        """What has come since. The link closes when the other side does, or sends anything but our messages."""
        if not self.open:
            return []
        try:
            data = self._socket.recv(1 << 16)
        except BlockingIOError:
            return []
        except OSError:
            data = b""
        *lines, self._unread = (self._unread + data).split(b"\n")
        if data and all(len(line) <= LONGEST_LINE for line in (*lines, self._unread)):
            with contextlib.suppress(ValueError, RecursionError):
                messages = [_message(line) for line in lines]
                self.heard_at = time.monotonic()
                return messages
        self.close()
        return []

    def beat(self) -> None:
        """Let the other side know that we are there, once in a while."""
        now = time.monotonic()
        if now - self._beat_at >= BEAT_SECONDS:
            self._beat_at = now
            self.send("beat")

    def silent_for(self) -> float:
        """Seconds since the other side was heard."""
        return time.monotonic() - self.heard_at

    def finish(self) -> None:
        """Say no more."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        """End the link; a second time is harmless."""
        self.open = False
        self._socket.close()


class Links:
    """This host's links: to all the others on host 0, elsewhere to host 0 only, and none if there is one host."""

    def __init__(self, job: Job, links: list[Link], silence_timeout: float = 0):
        self._job = job
        self._links = links
        self._silence_timeout = silence_timeout
        own_address = job.address if job.host_rank == 0 or not links else links[0].own_address
        self.here = f"host {job.host_rank} ({own_address})"

    def poll(self) -> End | None:
        """Keep the links alive; the first bad news that has come over them, or about them."""
        news = []
        for link in self._links:
            for message in link.receive():
                if message["type"] == "end":
                    link.said_end = True
                    news.append(_end(message))
            link.beat()
            silent = link.silent_for() > self._silence_timeout
            if not link.said_end and (silent or not link.open):
                link.said_end = True
                link.close()
                news.append(End(1, self._loss(link, silent)))
        return next((end for end in news if end.status != 0), None)

    def _loss(self, link: Link, silent: bool) -> str:
        name = f"host {link.host} ({link.address})"
        if silent:
            return f"{name} has not been heard from for {self._silence_timeout:g} s"
        return f"{name} is gone: train.sh was killed there, or the host went down"

    def tell(self, end: End) -> None:
        """Tell the others how it ended here, or, on host 0, elsewhere."""
        for link in self._links:
            link.send("end", status=end.status, text=end.text[:LONGEST_TEXT])

    def expected(self) -> bool:
        """On host 0: whether there are hosts that have not told their end, and need this one's ear."""
        return self._job.host_rank == 0 and not all(link.said_end for link in self._links)

    def close(self) -> None:
        """Leave, once the others have read what was sent, or have had the time for it."""
        for link in self._links:
            link.finish()
        deadline = time.monotonic() + GOODBYE_SECONDS
        while any(link.open for link in self._links) and time.monotonic() < deadline:
            for link in self._links:
                link.receive()
            time.sleep(POLL_SECONDS / 5)
        for link in self._links:
            link.close()

    def __enter__(self):
        return self

    def __exit__(self, *exception) -> None:
        self.close()


def _message(line: bytes) -> dict:
    message = json.loads(line)
    if not isinstance(message, dict) or not isinstance(message.get("type"), str):
        raise ValueError("not a message of ours")
    return message


def _end(message: dict) -> End:
    status = message.get("status")
    return End(status if type(status) is int and 0 <= status < 256 else 1, clean_text(message))


def clean_text(message: dict) -> str:
    """Fit to be shown on a terminal, whoever sent it."""
    text = str(message.get("text", ""))[:LONGEST_TEXT]
    return "".join(character if character.isprintable() else "?" for character in text)


def _plain(address: str) -> str:
    return address.removeprefix("::ffff:")
