"""The supervisor of a host: starts its rank processes, and ends them all when one of them, or another host, is lost.

A OneFlow process whose peer has died blocks in native code for ever; nothing but SIGKILL from outside ends it.
"""

import contextlib
import ctypes
import hashlib
import os
import select
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable

from ssd300_vgg16.distributed.job import Job
from ssd300_vgg16.distributed.rendezvous import POLL_SECONDS, End, Links, open_links
from ssd300_vgg16.signals import REPEAT_SECONDS, STOP_SIGNALS

# Ended on request, or (2) with a message for the user: no other process needs to be killed on the spot.
ORDERLY = {2, *(128 + number for number in STOP_SIGNALS)}
STOP_GRACE = 120.0  # for all to end after a signal
END_GRACE = 5.0
KILL_SECONDS = 10.0
PR_SET_PDEATHSIG = 1  # of sys/prctl.h

_libc = ctypes.CDLL(None)


def supervise(
    job: Job,
    command: list[str],
    restart_command: Callable[[], list[str]],
    restarts: int,
    advice: str,
    options: list[str],
) -> int:
    """Run the job's processes of this host to their end; returns the exit status of the whole.

    `command` is run for each rank. On one host, when a rank is killed by a signal, all are started again with what
    `restart_command` returns then, `restarts` times at most. `advice` is for the user whose run has failed; it may be
    empty. `options` is what must be the same on all hosts.
    """
    fingerprint = hashlib.sha256(shlex.join(options).encode(errors="surrogateescape")).hexdigest()
    with open_links(job, fingerprint) as links, _Signals() as signals:
        port = job.port or _free_port()
        for restart in range(restarts + 1):
            with _Ranks(job, port, command) as ranks:
                watch = _Watch(job, ranks, links)
                status = watch.run(signals)
            if status in ORDERLY | {0}:
                return status
            if not watch.crashed or job.hosts > 1 or restart == restarts:
                break
            _say(f"starting again from the last checkpoint ({restart + 1} of {restarts})")
            command, port = restart_command(), _free_port()
    if advice:
        _say(advice)
    return 1


class _Ranks:
    """The rank processes of this host; none is left at the end of the `with` block."""

    def __init__(self, job: Job, port: int, command: list[str]):
        self._running: dict[int, subprocess.Popen[bytes]] = {}
        # Else each process would start a thread for every core, and they would wait for one another.
        threads = max(1, len(os.sched_getaffinity(0)) // job.processes)
        shared = {
            "OMP_NUM_THREADS": str(threads),
            **os.environ,
            "WORLD_SIZE": str(job.processes * job.hosts),
            "LOCAL_WORLD_SIZE": str(job.processes),
            "MASTER_ADDR": job.address,
            "MASTER_PORT": str(port),
        }
        try:
            for index in range(job.processes):
                rank = job.host_rank * job.processes + index
                own = {"RANK": str(rank), "LOCAL_RANK": str(job.first_local_rank + index)}
                self._running[rank] = _start(command, shared | own)
        except BaseException:
            self.kill()
            raise

    def __len__(self) -> int:
        return len(self._running)

    def ended(self) -> list[tuple[int, int, int]]:
        """Rank, process id and status (negative: of the signal) of those that have ended since the last call."""
        ended = [
            (rank, process.pid, status)
            for rank, process in self._running.items()
            if (status := process.poll()) is not None
        ]
        for rank, _, _ in ended:
            del self._running[rank]
        return ended

    def send(self, number: int) -> None:
        """Send them all a signal."""
        for process in self._running.values():
            process.send_signal(number)

    def kill(self) -> None:
        """End them now, and wait for it."""
        self.send(signal.SIGKILL)
        deadline = time.monotonic() + KILL_SECONDS
        for rank, process in self._running.items():
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                _say(f"rank {rank} (pid {process.pid}) cannot be killed: a device or a network drive does not answer")
        self._running.clear()

    def __enter__(self) -> "_Ranks":
        return self

    def __exit__(self, *exception: object) -> None:
        self.kill()


def _start(command: list[str], environment: dict[str, str]) -> subprocess.Popen[bytes]:
    supervisor = os.getpid()

    def die_with_supervisor() -> None:
        # Nobody is left to end the ranks when the supervisor is killed: the kernel does it.
        _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != supervisor:  # it died before that
            os._exit(1)

    # In a session of its own: Ctrl-C at the terminal is for the supervisor alone.
    return subprocess.Popen(
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
        start_new_session=True,
        preexec_fn=die_with_supervisor,
    )


class _Watch:
    """The wait for the ranks to end, or for a reason to end them, which the other hosts are told."""

    def __init__(self, job: Job, ranks: _Ranks, links: Links):
        self._job, self._ranks, self._links = job, ranks, links
        self._end: End | None = None
        self._over = False
        self._stop, self._stopped_at = 0, 0.0
        self._deadline, self._grace = float("inf"), ""
        self.crashed = False  # starting again could help

    def run(self, signals: "_Signals") -> int:
        """The exit status; ranks may still run when it is known."""
        while len(self._ranks) and not self._over:
            self._look(signals)
        if self._end is None:
            self._links.tell(End(0))
            # Host 0 passes on what the others say: it stays until all of them are at their end.
            while self._links.expected() and not self._over:
                self._look(signals)
        return self._end.status if self._end else 0

    def _look(self, signals: "_Signals") -> None:
        for number in signals.wait(POLL_SECONDS):
            self._take_signal(number)
        for rank, pid, status in self._ranks.ended():
            self._take_rank(rank, pid, status)
        if (end := self._links.poll()) is not None:
            self._conclude(end, end.text)
        if len(self._ranks) and time.monotonic() > self._deadline:
            _say(f"{len(self._ranks)} of {self._job.processes} processes were killed: they had not ended {self._grace}")
            self._conclude(End(128 + self._stop))
            self._over = True

    def _take_signal(self, number: int) -> None:
        now = time.monotonic()
        if self._stop == 0 and len(self._ranks):
            self._stop, self._stopped_at = number, now
            self._ranks.send(number)
            self._allow(STOP_GRACE, f"after {signal.Signals(number).name}")
        elif now - self._stopped_at > REPEAT_SECONDS:
            self._ranks.send(signal.SIGKILL)
            if self._end is None:
                self._links.tell(End(1, f"{self._links.here} was stopped at once"))
            self._end, self._over = End(128 + number), True

    def _take_rank(self, rank: int, pid: int, status: int) -> None:
        # Once the end is decided, the others end because of it: their statuses say nothing new.
        if status == 0 or self._end is not None:
            return
        if status == -self._stop:  # it came before the rank could handle it
            status = 128 + self._stop
        name = f"process {rank + 1} of {self._job.processes * self._job.hosts} (rank {rank}, pid {pid})"
        if self._job.hosts > 1:
            name += f" on {self._links.here}"
        if status == 2:
            self._conclude(End(2, f"{name} ended with status 2: see what it says there"))
        elif status in ORDERLY:
            self._conclude(End(status))
        else:
            # A rank that a signal has killed (out of memory, a crash) may do better next time; an error comes again.
            self.crashed = status < 0 and not self._stop
            how = f"was killed by {_signal_name(-status)}" if status < 0 else f"ended with status {status}"
            self._conclude(End(1, f"{name} {how}"), f"{name} {how}")

    def _conclude(self, end: End, message: str = "") -> None:
        """The first reason to end is the one that counts."""
        if self._end is not None:
            return
        self._end = end
        if end.status in ORDERLY:
            # All ranks come to the same end by themselves; one that is late may be writing the checkpoint.
            self._allow(END_GRACE, "after the first")
        else:
            self._ranks.send(signal.SIGKILL)
            self._over = True
        self._links.tell(end)
        if message:
            _say(message)

    def _allow(self, seconds: float, since: str) -> None:
        deadline = time.monotonic() + seconds
        if deadline < self._deadline:
            self._deadline, self._grace = deadline, f"{seconds:g} s {since}"


class _Signals:
    """Catches what asks the supervisor to stop, and wakes it when a rank ends."""

    def __enter__(self) -> "_Signals":
        # Python writes a signal's number to one end: a wait on the other cannot miss it, as one between two checks can.
        self._ours, self._theirs = socket.socketpair()
        self._ours.setblocking(False)
        self._theirs.setblocking(False)
        caught = (*STOP_SIGNALS, signal.SIGCHLD)
        self._former = {number: signal.signal(number, lambda *_: None) for number in caught}
        self._former_fd = signal.set_wakeup_fd(self._theirs.fileno(), warn_on_full_buffer=False)
        return self

    def wait(self, seconds: float) -> list[int]:
        """The requests to stop that have come; at once if there is any, or if a rank has ended."""
        select.select([self._ours], [], [], seconds)
        with contextlib.suppress(BlockingIOError):
            return [number for number in self._ours.recv(4096) if number in STOP_SIGNALS]
        return []

    def __exit__(self, *exception: object) -> None:
        signal.set_wakeup_fd(self._former_fd)
        for number, handler in self._former.items():
            signal.signal(number, handler or signal.SIG_DFL)
        self._ours.close()
        self._theirs.close()


def _signal_name(number: int) -> str:
    try:
        return f"signal {number} ({signal.Signals(number).name})"
    except ValueError:
        return f"signal {number}"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _say(message: str) -> None:
    print(f"train.sh: {message}", file=sys.stderr, flush=True)
