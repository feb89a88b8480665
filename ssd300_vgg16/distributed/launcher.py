"""The supervisor of a host: starts its rank processes, and ends them all when one of them, or another host, is lost.

A OneFlow process whose peer has died blocks in native code for ever; nothing but SIGKILL from outside ends it.
"""

import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from tempfile import TemporaryDirectory

from ssd300_vgg16.distributed.job import Job
from ssd300_vgg16.distributed.rendezvous import End, Links, open_links
from ssd300_vgg16.errors import SAID, UserError
from ssd300_vgg16.machine import refuse_tight_limits
from ssd300_vgg16.signals import REPEAT_SECONDS, STOP_SIGNALS, end_of, heeded

# Ended on request, or (2) with a message for the user: no other process needs to be killed on the spot.
ORDERLY = {2, *(128 + number for number in STOP_SIGNALS)}
POLL_SECONDS = 0.02  # short, so that the rank that is blamed is the one that ended first
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
    advice: Callable[[], str],
    options: list[str],
) -> int:
    """Run the job's processes of this host to their end; returns the exit status of the whole.

    `command` is run for each rank. On one host, when a rank is killed by a signal, all are started again with what
    `restart_command` returns then, `restarts` times at most. `advice` is asked for what to tell the user whose run has
    failed; it may be empty. `options` is what must be the same on all hosts. Raises UserError if they cannot begin.
    """
    refuse_tight_limits()  # which each of the processes would say
    port = job.port if job.host_rank else _free_port(job.port)
    with open_links(job, options) as links, _caught_signals() as signals, TemporaryDirectory() as said:
        for restart in range(restarts + 1):
            ranks = _Ranks(job, links, signals, said)
            status = ranks.run(command, port)
            if status in ORDERLY | {0}:
                return status
            if not ranks.crashed or job.hosts > 1 or restart == restarts:
                break
            _say(job, f"starting again from the last checkpoint ({restart + 1} of {restarts})")
            command, port = restart_command(), _free_port(0)
    if text := advice():
        _say(job, text)
    return 1


class _Ranks:
    """The rank processes of this host; how they end, or why they are ended, the other hosts are told."""

    def __init__(self, job: Job, links: Links, signals: list[int], said: str):
        self._job, self._links, self._signals, self._said = job, links, signals, said
        self._running: dict[int, subprocess.Popen[bytes]] = {}
        self._end: End | None = None
        self._stop, self._stopped_at = 0, 0.0
        self._deadline, self._grace = float("inf"), ""
        self.crashed = False  # starting again could help

    def run(self, command: list[str], port: int) -> int:
        """Their exit status; none is left then."""
        try:
            self._start(command, port)
            while self._running:
                self._look()
            if self._end is None:
                self._links.tell(End(0))
            # Host 0 passes on what the others say: it stays until all of them are at their end.
            while self._end is None and self._links.expected():
                self._look()
        finally:
            self._kill()
        return self._end.status if self._end else 0

    def _start(self, command: list[str], port: int) -> None:
        job, supervisor = self._job, os.getpid()
        one_host = {} if job.hosts > 1 else {"NCCL_SOCKET_IFNAME": "lo"}

        def die_with_supervisor() -> None:
            # Nobody is left to end the ranks when the supervisor is killed: the kernel does it.
            _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != supervisor:  # it died before that
                os._exit(1)

        for index in range(job.processes):
            rank = job.host_rank * job.processes + index
            environment = {
                # Else each process would start a thread for every core, and they would wait for one another.
                "OMP_NUM_THREADS": str(max(1, len(os.sched_getaffinity(0)) // job.processes)),
                **one_host,
                **os.environ,
                "RANK": str(rank),
                "WORLD_SIZE": str(job.processes * job.hosts),
                "LOCAL_RANK": str(job.first_local_rank + index),
                "LOCAL_WORLD_SIZE": str(job.processes),
                "MASTER_ADDR": job.address,
                "MASTER_PORT": str(port),
                SAID: self._said,
            }
            # In a session of its own: Ctrl-C at the terminal is for the supervisor alone.
            self._running[rank] = subprocess.Popen(
                command,
                env=environment,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
                preexec_fn=die_with_supervisor,
            )

    def _look(self) -> None:
        time.sleep(POLL_SECONDS)
        while self._signals:
            self._take_signal(self._signals.pop(0))
        for rank, process in list(self._running.items()):
            if (status := process.poll()) is not None:
                self._running.pop(rank, None)
                self._take_status(rank, process.pid, status)
        if (end := self._links.poll()) is not None:
            self._conclude(end)
        if self._running and time.monotonic() > self._deadline:
            if self._end is None or self._end.status != 2:  # which has said why
                left, all_here = len(self._running), self._job.processes
                _say(self._job, f"{left} of {all_here} processes were killed: they had not ended {self._grace}")
            self._conclude(End(128 + self._stop))
            self._kill()

    def _take_signal(self, number: int) -> None:
        now = time.monotonic()
        if self._stop == 0 and self._running:
            self._stop, self._stopped_at = number, now
            for process in self._running.values():
                process.send_signal(number)
            self._allow(STOP_GRACE, f"after {signal.Signals(number).name}")
        elif now - self._stopped_at > REPEAT_SECONDS:
            if self._end is None:
                self._links.tell(End(1, f"{self._links.here} was stopped at once"))
            self._end = End(128 + number)
            self._kill()

    def _take_status(self, rank: int, pid: int, status: int) -> None:
        # Once the end is decided, the others end because of it: their statuses say nothing new.
        if status == 0 or self._end is not None:
            return
        if status == -self._stop:  # it came before the rank could handle it
            status = 128 + self._stop
        name = f"process {rank + 1} of {self._job.processes * self._job.hosts} (rank {rank}, pid {pid})"
        if self._job.hosts > 1:
            name += f" on {self._links.here}"
        if status == 2:
            self._conclude(End(2, f"{name} ended with status 2: see what it says there"), said=True)
        elif status in ORDERLY:
            self._conclude(End(status))
        else:
            # A rank that a signal has killed (out of memory, a crash) may do better next time; an error comes again.
            self.crashed = status < 0 and not self._stop
            self._conclude(End(1, f"{name} {end_of(status)}"))

    def _conclude(self, end: End, said: bool = False) -> None:
        """The first reason to end is the one that counts."""
        if self._end is not None:
            return
        self._end = end
        self._links.tell(end)
        if end.text and not said:
            _say(self._job, end.text)
        if end.status in ORDERLY:
            # All ranks come to the same end by themselves; one that is late may be writing the checkpoint.
            self._allow(END_GRACE, "after the first")
        else:
            self._kill()

    def _allow(self, seconds: float, since: str) -> None:
        deadline = time.monotonic() + seconds
        if deadline < self._deadline:
            self._deadline, self._grace = deadline, f"{seconds:g} s {since}"

    def _kill(self) -> None:
        """End them now, and wait for it."""
        for process in self._running.values():
            process.kill()
        deadline = time.monotonic() + KILL_SECONDS
        for rank, process in self._running.items():
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                what = f"rank {rank} (pid {process.pid}) cannot be killed"
                _say(self._job, f"{what}: a device or a network drive does not answer")
        self._running.clear()


@contextmanager
def _caught_signals() -> Iterator[list[int]]:
    """The requests to stop that have come since this began, which do not end the supervisor by themselves."""
    numbers: list[int] = []
    former = {number: signal.signal(number, lambda number, _: numbers.append(number)) for number in heeded()}
    # Whoever started us may have had it ignored: then no process's status could be had.
    former[signal.SIGCHLD] = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    try:
        yield numbers
    finally:
        for number, handler in former.items():
            signal.signal(number, handler or signal.SIG_DFL)


def _free_port(wanted: int) -> int:
    """This port, or, for 0, any; UserError if it is taken, where OneFlow would abort."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # or a connection of a former job would hold it
        try:
            probe.bind(("", wanted))
        except OSError as error:
            raise UserError(f"cannot listen at port {wanted} ({error.strerror}): set another MASTER_PORT") from error
        return probe.getsockname()[1]


def _say(job: Job, message: str) -> None:
    print(f"{job.program}: {message}", file=sys.stderr, flush=True)
