"""How the supervisors of several hosts come together: the others connect to host 0, which lets all begin at once.

A message is a line of JSON, a list. None is sent to show that a host is there: TCP's keepalive asks its kernel.
"""

import contextlib
import hashlib
import json
import socket
import sys
import time
from dataclasses import dataclass
from multiprocessing.connection import wait
from typing import Any, NoReturn

from ssd300_vgg16.distributed.job import Job
from ssd300_vgg16.errors import UserError
from ssd300_vgg16.ports import HELLO_SECONDS, MAX_LINE, Door, enter, listen
from ssd300_vgg16.text import printable

CONNECT_SECONDS = 5
RETRY_SECONDS = 0.1
PROBE_SECONDS = 1
MAX_TEXT = 500


@dataclass(frozen=True)
class End:
    """How a host's part ended: the exit status, and what users on all hosts need to know about it, if anything."""

    status: int
    text: str = ""


START = End(0)  # as host 0's first message


class Link:
    """A connection to another host's supervisor."""

    def __init__(self, connection: socket.socket, peer_timeout: int, host: int = 0):
        self.connection, self.host = connection, host
        # A host without power or network falls silent: after the timeout its link is an error to read from.
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, PROBE_SECONDS)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, PROBE_SECONDS)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 1000 * peer_timeout)
        connection.settimeout(None)
        # Unbuffered: what has come and is not read yet is for `wait` to see.
        self._lines = connection.makefile("rb", buffering=0)
        # A socket for both families shows IPv4 addresses as ::ffff:10.0.0.1.
        self.address = connection.getpeername()[0].removeprefix("::ffff:")
        self.own_address = connection.getsockname()[0].removeprefix("::ffff:")

    def send(self, *values: object) -> None:
        """Failures are not reported: reading notices them, after what the other side had to say."""
        with contextlib.suppress(OSError):
            self.connection.sendall(json.dumps(values).encode() + b"\n")

    def send_end(self, end: End) -> None:
        """Tell how it ended here; failures as of `send`."""
        self.send(end.status, end.text[:MAX_TEXT])

    def receive_end(self) -> End:
        """How it ended there; OSError if the other side has gone, or sends anything else."""
        status, text = _values(self._lines.readline(MAX_LINE), int, str)
        return End(status, printable(text, MAX_TEXT))

    def close(self) -> None:
        """End the link."""
        self._lines.close()
        self.connection.close()


class Links:
    """This host's links: to all the others on host 0, elsewhere to host 0 only; none if there is one host."""

    def __init__(self, job: Job, links: list[Link]):
        self._links, self._open, self._unended = links, set(links), set(links)
        self._is_hub, self._peer_timeout, self._program = job.host_rank == 0, job.peer_timeout, job.program
        self.here = f"host {job.host_rank} ({job.address if self._is_hub else links[0].own_address})"

    def poll(self) -> End | None:
        """The first bad news that has come over the links, or about them."""
        ready = wait([link.connection for link in self._open], timeout=0)
        for link in [link for link in self._open if link.connection in ready]:
            try:
                end = link.receive_end()
            except OSError as error:
                self._open.remove(link)
                if link not in self._unended:
                    continue
                how = f"has not been heard from for {self._peer_timeout} s"
                if isinstance(error, ConnectionError):  # a killed process closes its link
                    how = f"is gone: {self._program} was killed there, or the host went down"
                end = End(1, f"host {link.host} ({link.address}) {how}")
            self._unended.discard(link)
            if end.status:
                return end
        return None

    def tell(self, end: End) -> None:
        """Tell the others how it ended here, or, on host 0, elsewhere."""
        for link in self._links:
            link.send_end(end)

    def expected(self) -> bool:
        """On host 0: whether there are hosts that have not told their end, and need this one's ear."""
        return self._is_hub and bool(self._unended)

    def __enter__(self) -> "Links":
        return self

    def __exit__(self, *exception: object) -> None:
        for link in self._links:
            link.close()


def open_links(job: Job, options: list[str]) -> Links:
    """Meet the supervisors of the other hosts, which must have been started alike; returns when all are there.

    Raises UserError if they are not within the job's join_timeout, or if this one is refused.
    """
    if job.hosts == 1:
        return Links(job, [])
    deadline = time.monotonic() + job.join_timeout
    settings = {
        "NNODES": str(job.hosts),
        "NPROC": str(job.processes),
        "options": hashlib.sha256(json.dumps(options).encode()).hexdigest(),
    }
    if job.host_rank == 0:
        return Links(job, _gather(job, settings, deadline))
    return Links(job, [_join(job, settings, deadline)])


def _gather(job: Job, settings: dict[str, str], deadline: float) -> list[Link]:
    """Host 0: wait for the others, then let all begin."""
    if not job.secret:
        print(
            f"{job.program}: SSD_JOB_SECRET is not set: whoever reaches port {job.port + 1} here can take a host's "
            "place. Give all hosts the same, of 16 characters or more",
            file=sys.stderr,
            flush=True,
        )
    joined: dict[int, Link] = {}
    with Door(listen(job.address, job.port + 1), job.secret.encode()) as door:
        while len(joined) < job.hosts - 1:
            remaining = deadline - time.monotonic()
            if remaining < 0:
                _give_up(job, joined)
            ready = wait([*door.sockets, *(link.connection for link in joined.values())], min(remaining, HELLO_SECONDS))
            for host, link in list(joined.items()):
                if link.connection in ready:  # it has nothing to say before the start: it has left, and may come back
                    joined.pop(host).close()
            for connection, words in door.newcomers():
                if newcomer := _welcome(connection, words, job, settings, joined):
                    joined[newcomer.host] = newcomer
    for link in joined.values():
        link.send_end(START)
    return list(joined.values())


def _values(line: bytes, *types: type) -> list[Any]:
    """What a message holds; OSError if it is anything but such values."""
    with contextlib.suppress(ValueError, RecursionError):
        values = json.loads(line)
        if isinstance(values, list) and [type(value) for value in values] == list(types):
            return values
    raise ConnectionResetError("the connection was closed again")


def _welcome(
    connection: socket.socket, words: bytes, job: Job, settings: dict[str, str], joined: dict[int, Link]
) -> Link | None:
    """The link of a host that has connected; None if it does not belong to the job, which a host is told."""
    try:
        link = Link(connection, job.peer_timeout)
        link.host, theirs = _values(words, int, dict)
    except OSError:  # a stranger
        connection.close()
        return None
    different = [name for name, value in settings.items() if theirs.get(name) != value]
    if different:
        problem = f"was started with other {', '.join(different)} than host 0: give all hosts the same"
    elif link.host in joined:
        problem = f"is there already, at {joined[link.host].address}: each host needs a NODE_RANK of its own"
    else:
        return link
    refusal = End(2, f"host {link.host} ({link.address}) {problem}")
    print(f"{job.program}: refused: {refusal.text}", file=sys.stderr)
    link.send_end(refusal)
    link.close()
    return None


def _give_up(job: Job, joined: dict[int, Link]) -> NoReturn:
    missing = [str(host) for host in range(1, job.hosts) if host not in joined]
    text = (
        f"not all hosts have joined within {job.join_timeout} s. Missing: host {', '.join(missing)} of 0 to "
        f"{job.hosts - 1}. Run there the same command as on host 0, with NODE_RANK={missing[0]} and so on, "
        f"NNODES={job.hosts} NPROC={job.processes} MASTER_ADDR={job.address} MASTER_PORT={job.port}; "
        f"port {job.port + 1} of {job.address} must be open to them"
    )
    with Links(job, list(joined.values())) as links:
        links.tell(End(2, text))
    raise UserError(text)


def _join(job: Job, settings: dict[str, str], deadline: float) -> Link:
    """Another host: reach host 0, trying again until the deadline, and wait for it to say when to begin."""
    while True:
        try:
            hello = json.dumps([job.host_rank, settings]).encode()
            place = (job.address, job.port + 1)
            link = Link(enter(place, job.secret.encode(), hello, CONNECT_SECONDS), job.peer_timeout)
            answer = link.receive_end()  # without a timeout: host 0 has one, and is seen to be alive
        except PermissionError as error:
            raise UserError(
                f"host 0 at {job.address} has another SSD_JOB_SECRET, or none: give all hosts the same"
            ) from error
        except OSError as error:
            if time.monotonic() > deadline:
                raise UserError(
                    f"host 0 could not be reached at {job.address} port {job.port + 1} within {job.join_timeout} s "
                    f"({error.strerror or error}): see that {job.program} runs there with the same MASTER_ADDR and "
                    "MASTER_PORT, and that no firewall is between"
                ) from error
            time.sleep(RETRY_SECONDS)
        else:
            if answer == START:
                return link
            raise UserError(answer.text)
