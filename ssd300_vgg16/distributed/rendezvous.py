"""How the supervisors of several hosts come together: the others connect to host 0, which lets all begin at once."""

import contextlib
import json
import os
import socket
import sys
import time
from dataclasses import dataclass
from typing import Any, NoReturn

from ssd300_vgg16.distributed.job import Job
from ssd300_vgg16.errors import UserError
from ssd300_vgg16.text import printable

POLL_SECONDS = 0.05
BEAT_SECONDS = 1
HELLO_SECONDS = 10  # for a connection to say who it is
CONNECT_SECONDS = 5
RETRY_SECONDS = 0.5
GOODBYE_SECONDS = 2  # for the other side to read our last words
MAX_LINE = 4096
MAX_TEXT = 500


@dataclass(frozen=True)
class End:
    """How a host's part ended: the exit status, and what users on all hosts need to know about it, if anything."""

    status: int
    text: str = ""


class Link:
    """A connection on which neither side ever waits for the other."""

    def __init__(self, connection: socket.socket):
        connection.setblocking(False)
        self._socket = connection
        self._unread = b""
        self._beat_at = self.heard_at = time.monotonic()
        # A socket for both families shows IPv4 addresses as ::ffff:10.0.0.1.
        self.address = connection.getpeername()[0].removeprefix("::ffff:")
        self.own_address = connection.getsockname()[0].removeprefix("::ffff:")
        self.open = True
        self.said_end = False

    def send(self, kind: str, **content: object) -> None:
        """Failures are not reported: reading notices them, after what the other side had to say."""
        with contextlib.suppress(OSError):
            self._socket.send(json.dumps({"type": kind, **content}).encode() + b"\n")

    def receive(self) -> list[dict[str, Any]]:
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
        # Anybody may connect: a line without end must not fill the memory.
        if data and all(len(line) <= MAX_LINE for line in (*lines, self._unread)):
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
        """Say no more, and keep listening: closed at once, the other side could lose what it has not read yet."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        """End the link; a second time is harmless."""
        self.open = False
        self._socket.close()


class Links:
    """This host's links by host: to all the others on host 0, elsewhere to host 0 only; none if there is one host."""

    def __init__(self, job: Job, links: dict[int, Link], silence_timeout: float = 0):
        self._job = job
        self._links = links
        self._silence_timeout = silence_timeout
        own_address = links[0].own_address if 0 in links else job.address
        self.here = f"host {job.host_rank} ({own_address})"

    def poll(self) -> End | None:
        """Keep the links alive; the first bad news that has come over them, or about them."""
        news = []
        for host, link in self._links.items():
            for message in link.receive():
                if message["type"] == "end":
                    link.said_end = True
                    news.append(_end(message))
            link.beat()
            # A killed process closes its link; a host without power or network just falls silent.
            silent = link.silent_for() > self._silence_timeout
            if not link.said_end and (silent or not link.open):
                link.said_end = True
                link.close()
                how = (
                    f"has not been heard from for {self._silence_timeout:g} s"
                    if silent
                    else "is gone: train.sh was killed there, or the host went down"
                )
                news.append(End(1, f"host {host} ({link.address}) {how}"))
        return next((end for end in news if end.status != 0), None)

    def tell(self, end: End) -> None:
        """Tell the others how it ended here, or, on host 0, elsewhere."""
        for link in self._links.values():
            link.send("end", status=end.status, text=end.text[:MAX_TEXT])

    def expected(self) -> bool:
        """On host 0: whether there are hosts that have not told their end, and need this one's ear."""
        return self._job.host_rank == 0 and not all(link.said_end for link in self._links.values())

    def close(self) -> None:
        """Leave, once the others have read what was sent, or have had the time for it."""
        links = self._links.values()
        for link in links:
            link.finish()
        deadline = time.monotonic() + GOODBYE_SECONDS
        while any(link.open for link in links) and time.monotonic() < deadline:
            for link in links:
                link.receive()
            time.sleep(POLL_SECONDS / 5)
        for link in links:
            link.close()

    def __enter__(self) -> "Links":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _message(line: bytes) -> dict[str, Any]:
    message = json.loads(line)
    if not isinstance(message, dict) or not isinstance(message.get("type"), str):
        raise ValueError("not a message of ours")
    return message


def _end(message: dict[str, Any]) -> End:
    status = message.get("status")
    return End(status if type(status) is int and 0 <= status < 256 else 1, _text(message))


def _text(message: dict[str, Any]) -> str:
    return printable(str(message.get("text", "")), MAX_TEXT)


def open_links(job: Job, fingerprint: str) -> Links:
    """Meet the supervisors of the other hosts, which must have been started alike; returns when all are there.

    Raises UserError if they are not within SSD_JOIN_TIMEOUT seconds, or if this one is refused.
    """
    if job.hosts == 1:
        return Links(job, {})
    join_timeout, silence_timeout = _seconds("SSD_JOIN_TIMEOUT", 300), _seconds("SSD_PEER_TIMEOUT", 30)
    if job.host_rank == 0:
        links = _gather(job, fingerprint, join_timeout, silence_timeout)
    else:
        links = {0: _join(job, fingerprint, join_timeout, silence_timeout)}
    return Links(job, links, silence_timeout)


def _gather(job: Job, fingerprint: str, join_timeout: float, silence_timeout: float) -> dict[int, Link]:
    """Host 0: wait for the others, then let all begin."""
    deadline = time.monotonic() + join_timeout
    strangers: list[Link] = []
    joined: dict[int, Link] = {}
    with _listen(job) as listener:
        while len(joined) < job.hosts - 1:
            if time.monotonic() > deadline:
                _give_up(job, joined, join_timeout)
            with contextlib.suppress(OSError):  # nobody there, or gone again
                strangers.append(Link(listener.accept()[0]))
            for link in list(strangers):
                messages = link.receive()
                if not messages and link.silent_for() <= HELLO_SECONDS:
                    continue
                strangers.remove(link)
                host = _host_of(messages[0], link, job, fingerprint, joined) if messages else None
                if host is None:
                    link.close()
                else:
                    joined[host] = link
            strangers = [link for link in strangers if link.open]
            # They wait for the last host: beats tell both sides that the other is still there.
            for link in joined.values():
                link.receive()
                link.beat()
            # One that leaves again may come back.
            joined = {host: link for host, link in joined.items() if link.open and link.silent_for() < silence_timeout}
            time.sleep(POLL_SECONDS)
    for link in strangers:
        link.close()
    for link in joined.values():
        link.send("start")
    return joined


def _listen(job: Job) -> socket.socket:
    try:
        family = socket.getaddrinfo(job.address, job.port + 1, type=socket.SOCK_STREAM)[0][0]
        both = family == socket.AF_INET6 and socket.has_dualstack_ipv6()
        listener = socket.create_server(("", job.port + 1), family=family, backlog=128, dualstack_ipv6=both)
    except OSError as error:
        raise UserError(
            f"cannot wait for the other hosts at {job.address} port {job.port + 1} ({_reason(error)}): "
            "see MASTER_ADDR and MASTER_PORT"
        ) from error
    listener.setblocking(False)
    return listener


def _host_of(message: dict[str, Any], link: Link, job: Job, fingerprint: str, joined: dict[int, Link]) -> int | None:
    """The host whose hello this message is; None if it does not belong to the job, of which a host is told why."""
    host = message.get("host")
    if message["type"] != "hello" or type(host) is not int:
        return None
    if message.get("hosts") != job.hosts:
        problem = f"was started with another NNODES than host 0's {job.hosts}"
    elif message.get("processes") != job.processes:
        problem = f"was started with another NPROC than host 0's {job.processes}"
    elif message.get("fingerprint") != fingerprint:
        problem = "was started with other options than host 0: give all hosts the same"
    elif not 0 < host < job.hosts:
        problem = f"does not exist: NODE_RANK goes from 0 to {job.hosts - 1}"
    elif host in joined:
        problem = f"is there already, at {joined[host].address}: each host needs a NODE_RANK of its own"
    else:
        return host
    text = f"host {host} ({link.address}) {problem}"
    print(f"train.sh: refused: {text}", file=sys.stderr)
    link.send("refuse", text=text)
    return None


def _give_up(job: Job, joined: dict[int, Link], join_timeout: float) -> NoReturn:
    missing = [str(host) for host in range(1, job.hosts) if host not in joined]
    text = (
        f"not all hosts have joined within {join_timeout:g} s. Missing: host {', '.join(missing)} of 0 to "
        f"{job.hosts - 1}. Run there the same command as on host 0, with NODE_RANK={missing[0]} and so on, "
        f"NNODES={job.hosts} NPROC={job.processes} MASTER_ADDR={job.address} MASTER_PORT={job.port}; "
        f"port {job.port + 1} of {job.address} must be open to them"
    )
    for link in joined.values():
        link.send("refuse", text=text)
    Links(job, joined).close()
    raise UserError(text)


def _join(job: Job, fingerprint: str, join_timeout: float, silence_timeout: float) -> Link:
    """Another host: reach host 0, trying again until the timeout, and wait for it to say when to begin.

    That has no timeout of its own: host 0 has one, and is seen to be alive.
    """
    deadline = time.monotonic() + join_timeout
    problem = "no answer"
    while (remaining := deadline - time.monotonic()) > 0:
        try:
            link = Link(socket.create_connection((job.address, job.port + 1), timeout=min(CONNECT_SECONDS, remaining)))
        except OSError as error:
            problem = _reason(error)
        else:
            about = {"hosts": job.hosts, "processes": job.processes, "fingerprint": fingerprint}
            link.send("hello", host=job.host_rank, **about)
            if _started(link, silence_timeout):
                return link
            link.close()
            problem = "the connection was closed again"
        time.sleep(RETRY_SECONDS)
    raise UserError(
        f"host 0 could not be reached at {job.address} port {job.port + 1} within {join_timeout:g} s ({problem}): "
        "see that train.sh runs there, that MASTER_ADDR and MASTER_PORT are the same there, and that no firewall is "
        "between"
    )


def _started(link: Link, silence_timeout: float) -> bool:
    """Wait for host 0's sign to begin; False if the link breaks before."""
    while link.open and link.silent_for() < silence_timeout:
        for message in link.receive():
            if message["type"] == "start":
                return True
            if message["type"] == "refuse":
                link.close()
                raise UserError(_text(message))
        link.beat()
        time.sleep(POLL_SECONDS)
    return False


def _reason(error: OSError) -> str:
    return error.strerror or str(error)


def _seconds(name: str, default: float) -> float:
    try:
        value = float(os.environ.get(name) or default)
    except ValueError:
        value = 0
    if not 2 * BEAT_SECONDS <= value < float("inf"):
        raise UserError(f"{name}={os.environ[name]} is not a number of seconds from {2 * BEAT_SECONDS} up")
    return value
