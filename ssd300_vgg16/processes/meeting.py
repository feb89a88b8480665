"""How the supervisors of several hosts come together: the others connect to host 0, which lets all begin at once."""

import os
import socket
import sys
import time

from ssd300_vgg16.errors import UserError
from ssd300_vgg16.processes.job import Job
from ssd300_vgg16.processes.links import BEAT_SECONDS, POLL_SECONDS, Link, Links, clean_text

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
