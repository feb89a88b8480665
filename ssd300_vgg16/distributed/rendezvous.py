"""How the supervisors of several hosts come together: the others connect to host 0, which lets all begin at once."""

import contextlib
import json
import os
import socket
import sys
import time
from dataclasses import dataclass

from ssd300_vgg16.distributed.job import Job
from ssd300_vgg16.errors import UserError

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


HELLO_SECONDS = 10  # for a connection to say who it is
CONNECT_SECONDS = 5
RETRY_SECONDS = 0.5


def open_links(job: Job, fingerprint: str) -> Links:
    """Meet the supervisors of the other hosts, which must have been started alike; returns when all are there.

    Raises UserError if they are not within SSD_JOIN_TIMEOUT seconds, or if this one is refused.
    """
    if job.hosts == 1:
        return Links(job, [])
    join_timeout, silence_timeout = _seconds("SSD_JOIN_TIMEOUT", 300), _seconds("SSD_PEER_TIMEOUT", 30)
    hello = {"host": job.host_rank, "hosts": job.hosts, "processes": job.processes, "fingerprint": fingerprint}
    if job.host_rank == 0:
        return Links(job, _gather(job, hello, join_timeout, silence_timeout), silence_timeout)
    return Links(job, [_join(job, hello, join_timeout, silence_timeout)], silence_timeout)


def _gather(job: Job, hello: dict, join_timeout: float, silence_timeout: float) -> list[Link]:
    """Host 0: wait for the others, then let all begin."""
    deadline = time.monotonic() + join_timeout
    strangers: list[Link] = []
    joined: dict[int, Link] = {}
    with _listen(job) as listener:
        while len(joined) < job.hosts - 1:
            if time.monotonic() > deadline:
                _give_up(job, joined, join_timeout)
            strangers += _accept(listener)
            for link in list(strangers):
                messages = link.receive()
                if messages and _welcome(messages[0], link, hello, joined):
                    joined[link.host] = link
                elif messages or link.silent_for() > HELLO_SECONDS:
                    link.close()
            strangers = [link for link in strangers if link.open and link.host is None]
            for link in joined.values():
                link.receive()
                link.beat()
            # One that leaves again may come back.
            joined = {host: link for host, link in joined.items() if link.open and link.silent_for() < silence_timeout}
            time.sleep(POLL_SECONDS)
    for link in (*strangers, *joined.values()):
        link.send("start") if link.host is not None else link.close()
    return [joined[host] for host in sorted(joined)]


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


def _accept(listener: socket.socket) -> list[Link]:
    try:
        return [Link(listener.accept()[0])]
    except OSError:  # nobody there, or gone again
        return []


def _welcome(message: dict, link: Link, hello: dict, joined: dict[int, Link]) -> bool:
    """Whether the message is the hello of a host that belongs to the job; one that does not is told why."""
    host, hosts = message.get("host"), hello["hosts"]
    if message["type"] != "hello" or type(host) is not int:
        return False
    problem = ""
    if message.get("hosts") != hosts:
        problem = f"was started with another NNODES than host 0's {hosts}"
    elif message.get("processes") != hello["processes"]:
        problem = f"was started with another NPROC than host 0's {hello['processes']}"
    elif message.get("fingerprint") != hello["fingerprint"]:
        problem = "was started with other options than host 0: give all hosts the same"
    elif not 0 < host < hosts:
        problem = f"does not exist: NODE_RANK goes from 0 to {hosts - 1}"
    elif host in joined:
        problem = f"is there already, at {joined[host].address}: each host needs a NODE_RANK of its own"
    if not problem:
        link.host = host
        return True
    text = f"host {host} ({link.address}) {problem}"
    print(f"train.sh: refused: {text}", file=sys.stderr)
    link.send("refuse", text=text)
    return False


def _give_up(job: Job, joined: dict[int, Link], join_timeout: float) -> None:
    missing = [str(host) for host in range(1, job.hosts) if host not in joined]
    text = (
        f"not all hosts have joined within {join_timeout:g} s. Missing: host {', '.join(missing)} of 0 to "
        f"{job.hosts - 1}. Run there the same command as on host 0, with NODE_RANK={missing[0]} and so on, "
        f"NNODES={job.hosts} NPROC={job.processes} MASTER_ADDR={job.address} MASTER_PORT={job.port}; "
        f"port {job.port + 1} of {job.address} must be open to them"
    )
    for link in joined.values():
        link.send("refuse", text=text)
    Links(job, list(joined.values())).close()
    raise UserError(text)


def _join(job: Job, hello: dict, join_timeout: float, silence_timeout: float) -> Link:
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
            link.send("hello", **hello)
            if _started(link, silence_timeout):
                link.host = 0
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
                raise UserError(clean_text(message))
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
