"""The supervisor of rank processes: what they are given, how they end, signals, restarts, and several hosts."""

import contextlib
import errno
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from small_data import environment

from ssd300_vgg16.distributed import launcher
from ssd300_vgg16.distributed.job import Job
from ssd300_vgg16.distributed.rendezvous import End, Link, Links
from ssd300_vgg16.errors import UserError
from ssd300_vgg16.ports import UNFINISHED, Door, enter, listen

ADVICE = "go on with --resume"
SECRET = "of the hosts"


def supervise(job, command, again=(), restarts=0, advice=ADVICE):
    """The status of a job that is started with one command, and again with another."""
    return launcher.supervise(job, command, lambda: list(again), restarts, lambda: advice, [])


# Runs the supervisor as the command line does, with the constants given, and without the imports of its options.
DRIVER = """
import json, sys
from ssd300_vgg16.cli.streams import print_plainly
from ssd300_vgg16.distributed import launcher
from ssd300_vgg16.distributed.job import Job
from ssd300_vgg16.errors import UserError

print_plainly()
job, constants, command, restarts, advice, options = json.loads(sys.argv[1])
vars(launcher).update(constants)
try:
    status = launcher.supervise(Job(**job), command, lambda: command, restarts, lambda: advice, options)
except UserError as error:
    status = 2
    print(f"train.sh: {error}", file=sys.stderr)
sys.exit(status)
"""
# A rank appends its process id to a file named after it, once it is ready.
RANK = """
import os, signal, sys, time
rank = int(os.environ["RANK"])
folder = sys.argv[1]
def ready():
    with open(f"{folder}/{rank}", "a") as file:
        file.write(f"{os.getpid()}\\n")
def note(text):
    with open(f"{folder}/notes", "a") as file:
        file.write(f"{rank} {text}\\n")
def wait_for(name):
    while not os.path.exists(f"{folder}/{name}"):
        time.sleep(0.01)
"""
SLEEP = "ready(); time.sleep(60)"
FINISH = "ready()"
LISTEN = """
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP):
    signal.signal(number, on_signal)
ready()
while True:
    time.sleep(0.01)
"""
SAVE = "def on_signal(number, _): note(number); wait_for('saved'); sys.exit(128 + number)" + LISTEN
DEAF = "def on_signal(number, _): note(number)" + LISTEN


def until(condition, seconds=10):
    """The condition's value as soon as it is true."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, "it has not come true"
        time.sleep(0.01)
    return value


def rank_command(folder, body):
    return [sys.executable, "-S", "-c", RANK + body, str(folder)]


def pids(folder, ranks):
    """Process ids of all that have run, once each of the ranks is ready."""
    files = [folder / str(rank) for rank in ranks]
    until(lambda: all(file.exists() and file.read_text().endswith("\n") for file in files))
    return [int(line) for file in files for line in file.read_text().split()]


def alive(pid):
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    return False


def notes(folder):
    file = folder / "notes"
    return sorted(file.read_text().splitlines()) if file.exists() else []


@pytest.fixture
def start(tmp_path):
    """start(job, body, ...) begins a supervisor of such ranks in a process of its own, as the leader of a group."""
    started = []

    def start(job, body, restarts=0, options=(), constants=None):
        command = rank_command(tmp_path, body)
        settings = json.dumps([job, constants or {}, command, restarts, ADVICE, options])
        process = subprocess.Popen(
            [sys.executable, "-c", DRIVER, settings],
            env=environment(),
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()
        process.stderr.close()


def end(process, seconds=15):
    """Exit status and what was said."""
    _, said = process.communicate(timeout=seconds)
    return process.returncode, said


# One host.


@pytest.mark.parametrize(
    ("job", "threads", "first"),
    [(Job(2), None, 0), (Job(2, port=4321, first_local_rank=4), "7", 4)],
    ids=["as it is", "with settings"],
)
def test_ranks_know_their_place(tmp_path, capfd, monkeypatch, job, threads, first):
    body = """
import json
names = "RANK WORLD_SIZE LOCAL_RANK LOCAL_WORLD_SIZE MASTER_ADDR MASTER_PORT OMP_NUM_THREADS".split()
values = {name: os.environ[name] for name in names}
values |= {"stdin": os.readlink("/proc/self/fd/0"), "leader": os.getsid(0) == os.getpid()}
with open(f"{folder}/{rank}", "w") as file:
    json.dump(values, file)
"""
    if threads:
        monkeypatch.setenv("OMP_NUM_THREADS", threads)
    assert supervise(job, rank_command(tmp_path, body)) == 0
    ranks = [json.loads((tmp_path / str(rank)).read_text()) for rank in range(2)]
    port = ranks[0]["MASTER_PORT"]
    assert int(port) == job.port or (job.port == 0 and 1024 < int(port) < 65536)
    common = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    common |= {"OMP_NUM_THREADS": threads or str(max(1, len(os.sched_getaffinity(0)) // 2))}
    common |= {"stdin": "/dev/null", "leader": True}
    assert ranks == [common | {"RANK": str(rank), "LOCAL_RANK": str(first + rank)} for rank in range(2)]
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    ("last", "restarts", "advice", "how"),
    [
        ("os.kill(os.getpid(), 9)", 0, ADVICE, "was killed by SIGKILL"),
        ("os.kill(os.getpid(), 40)", 0, ADVICE, "was killed by signal 40"),  # which has no name
        ("sys.exit(3)", 3, ADVICE, "ended with status 3"),  # an error would come again
        ("sys.exit(3)", 3, "", "ended with status 3"),
    ],
)
def test_a_failed_rank_ends_all(tmp_path, capfd, last, restarts, advice, how):
    body = f"ready()\nif rank == 1: wait_for(0); wait_for(2); {last}\ntime.sleep(60)"
    began = time.monotonic()
    assert (
        supervise(
            Job(3, program="eval.sh"), rank_command(tmp_path, body), rank_command(tmp_path, FINISH), restarts, advice
        )
        == 1
    )
    assert time.monotonic() - began < 5
    ranks = pids(tmp_path, range(3))
    assert len(ranks) == 3 and not any(map(alive, ranks))
    lines = [f"process 2 of 3 (rank 1, pid {ranks[1]}) {how}", advice]
    assert capfd.readouterr().err.splitlines() == [f"eval.sh: {line}" for line in lines if line]


@pytest.mark.parametrize("status", [2, 130, 138, 143])
def test_after_an_orderly_end_the_others_may_end_by_themselves(tmp_path, capfd, status):
    body = f"""
if rank == 1: sys.exit({status})
time.sleep(0.3)
note("saved")
sys.exit({status})
"""
    assert supervise(Job(2), rank_command(tmp_path, body), restarts=3) == status
    assert notes(tmp_path) == ["0 saved"]
    assert capfd.readouterr().err == ""


def test_after_an_orderly_end_the_others_are_not_waited_for_for_ever(tmp_path, start):
    body = "ready()\nif rank == 1: sys.exit(2)\ntime.sleep(60)"
    status, said = end(start({"processes": 2}, body, constants={"END_GRACE": 0.3}))
    assert (status, said) == (2, ""), "the first has said why"
    assert not any(map(alive, pids(tmp_path, range(2))))


def test_a_port_that_is_taken_is_named(tmp_path):
    with socket.create_server(("", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(UserError, match=rf"cannot listen at port {port} \(.*\): set another MASTER_PORT"):
            supervise(Job(2, port=port), rank_command(tmp_path, FINISH))
    assert not (tmp_path / "0").exists()


def test_crashes_start_the_job_again_with_a_fresh_port(tmp_path, capfd):
    first = 'note(os.environ["MASTER_PORT"]); ready()\nif rank: os.kill(os.getpid(), signal.SIGSEGV)\ntime.sleep(60)'
    again = 'note(os.environ["MASTER_PORT"]); ready()'
    job = Job(2, port=4321)
    assert supervise(job, rank_command(tmp_path, first), rank_command(tmp_path, again), 3, ADVICE) == 0
    said = capfd.readouterr().err
    assert "killed by SIGSEGV\ntrain.sh: starting again from the last checkpoint (1 of 3)\n" in said
    assert ADVICE not in said
    ports = {note.split()[1] for note in notes(tmp_path)}
    assert len(ports) == 2 and "4321" in ports


def test_restarts_come_to_an_end(tmp_path, capfd):
    crash = rank_command(tmp_path, "ready(); os.kill(os.getpid(), signal.SIGABRT)")
    assert supervise(Job(1), crash, crash, 2, ADVICE) == 1
    said = capfd.readouterr().err
    assert len(pids(tmp_path, [0])) == said.count("killed by SIGABRT") == 3
    assert said.count("starting again") == 2 and "(2 of 2)" in said
    assert said.endswith(f"train.sh: {ADVICE}\n")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP])
def test_a_signal_is_passed_on_once(tmp_path, start, number):
    constants = {"REPEAT_SECONDS": 60}
    supervisor = start({"processes": 2}, SAVE, restarts=3, constants=constants)
    ranks = pids(tmp_path, range(2))
    os.killpg(supervisor.pid, number)  # as the terminal does it
    until(lambda: len(notes(tmp_path)) == 2)
    os.killpg(supervisor.pid, number)  # and `timeout`, twice
    with pytest.raises(subprocess.TimeoutExpired):
        supervisor.wait(0.3)
    assert all(map(alive, ranks))  # they have the time to save
    (tmp_path / "saved").touch()
    assert end(supervisor) == (128 + number, "")
    assert notes(tmp_path) == [f"0 {number}", f"1 {number}"]
    assert not any(map(alive, ranks))


def test_a_signal_before_the_ranks_can_handle_it_is_a_clean_stop_too(tmp_path, start):
    supervisor = start({"processes": 2}, SLEEP, restarts=3)
    pids(tmp_path, range(2))
    supervisor.send_signal(signal.SIGTERM)
    assert end(supervisor) == (143, "")


def test_a_crash_after_a_signal_does_not_start_the_job_again(tmp_path, start):
    body = SAVE.replace("sys.exit(128 + number)", "os.kill(os.getpid(), signal.SIGSEGV)")
    supervisor = start({"processes": 1}, body, restarts=3)
    pids(tmp_path, range(1))
    (tmp_path / "saved").touch()
    supervisor.send_signal(signal.SIGTERM)
    status, said = end(supervisor)
    assert status == 1
    assert "killed by SIGSEGV" in said and "starting again" not in said and said.endswith(f"train.sh: {ADVICE}\n")


def test_ranks_that_do_not_stop_are_killed(tmp_path, start):
    supervisor = start({"processes": 2}, DEAF, constants={"STOP_GRACE": 0.3})
    ranks = pids(tmp_path, range(2))
    supervisor.send_signal(signal.SIGUSR1)
    message = "train.sh: 2 of 2 processes were killed: they had not ended 0.3 s after SIGUSR1\n"
    assert end(supervisor, 5) == (138, message)
    assert not any(map(alive, ranks))


def test_ranks_die_with_their_supervisor(tmp_path, start):
    supervisor = start({"processes": 2}, DEAF)
    ranks = pids(tmp_path, range(2))
    supervisor.kill()
    assert until(lambda: not any(map(alive, ranks)), 3)


def test_deaths_are_seen_when_the_caller_ignored_them_and_handlers_are_given_back(tmp_path, capfd):
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP, signal.SIGCHLD)
    former = [signal.getsignal(number) for number in numbers]
    try:
        assert supervise(Job(1), rank_command(tmp_path, "sys.exit(3)")) == 1
        assert [signal.getsignal(number) for number in numbers] == former
    finally:
        signal.signal(signal.SIGCHLD, before)
    assert "ended with status 3" in capfd.readouterr().err


# Several hosts.


@pytest.fixture
def port():
    """A port that is free, as is the one above."""
    while True:
        with socket.socket() as one, socket.socket() as next_one:
            one.bind(("127.0.0.1", 0))
            with contextlib.suppress(OSError, OverflowError):
                next_one.bind(("127.0.0.1", one.getsockname()[1] + 1))
                return one.getsockname()[1]


@pytest.fixture
def host(start, port):
    """host(rank, body, ...) begins the supervisor of a host, with one rank."""

    def host(rank, body=FINISH, hosts=2, processes=1, join_timeout=60, secret=SECRET, **settings):
        job = {"processes": processes, "hosts": hosts, "host_rank": rank, "port": port, "join_timeout": join_timeout}
        return start(job | {"peer_timeout": 2, "secret": secret}, body, **settings)

    return host


def listening(port):
    """A connection to host 0, once it listens; with nothing said."""

    def connect():
        with contextlib.suppress(ConnectionRefusedError):
            return socket.create_connection(("127.0.0.1", port + 1))

    return until(connect)


def test_hosts_begin_together_and_finish_one_by_one(tmp_path, host, port):
    body = "note(os.environ['WORLD_SIZE']); ready()\nwait_for(f'end{rank}')"
    others = [host(rank, body, 3) for rank in (2, 0)]
    listening(port).close()
    assert notes(tmp_path) == []
    others.append(host(1, body, 3))
    pids(tmp_path, range(3))
    (tmp_path / "end0").touch()
    (tmp_path / "end2").touch()
    assert end(others[0]) == (0, "")
    with pytest.raises(subprocess.TimeoutExpired):  # host 0 stays, longer than the 2 s that make a host lost
        others[1].wait(2.5)
    assert others[2].poll() is None
    (tmp_path / "end1").touch()
    assert [end(each) for each in others[1:]] == [(0, "")] * 2
    assert notes(tmp_path) == ["0 3", "1 3", "2 3"]


def test_a_rank_that_dies_elsewhere_ends_all_with_one_explanation(tmp_path, host):
    """By way of host 0, to which alone the others have a link."""
    hosts = [host(rank, SLEEP, 3) for rank in range(3)]
    ranks = pids(tmp_path, range(3))
    os.kill(ranks[1], signal.SIGKILL)
    said = (
        f"train.sh: process 2 of 3 (rank 1, pid {ranks[1]}) on host 1 (127.0.0.1) was killed by SIGKILL\n"
        f"train.sh: {ADVICE}\n"
    )
    assert [end(each, 5) for each in hosts] == [(1, said)] * 3
    assert not any(map(alive, ranks))


@pytest.mark.parametrize("lost", [0, 1])
def test_a_supervisor_that_is_killed_ends_the_others(tmp_path, host, lost):
    hosts = [host(rank, SLEEP) for rank in (0, 1)]
    ranks = pids(tmp_path, range(2))
    hosts[lost].kill()
    status, said = end(hosts[1 - lost], 5)
    assert status == 1
    assert said.startswith(f"train.sh: host {lost} (127.0.0.1) is gone")
    assert said.endswith(f"train.sh: {ADVICE}\n")
    until(lambda: not any(map(alive, ranks)))


def test_a_host_that_falls_silent_is_named(monkeypatch):
    """By the kernel, which a test cannot cut off from itself; test_two_hosts.py does so where it may."""
    job = Job(1, hosts=2, peer_timeout=7)
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as theirs:
        link = Link(server.accept()[0], job.peer_timeout, host=1)
        asked = link.connection.getsockopt
        assert asked(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        assert asked(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 7000
        seconds = [asked(socket.IPPROTO_TCP, name) for name in (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL)]
        assert max(seconds) < job.peer_timeout
        with Links(job, [link]) as links:
            assert links.poll() is None
            theirs.sendall(b" ")  # something to read, as an error is
            monkeypatch.setattr(link, "receive_end", lambda: (_ for _ in ()).throw(TimeoutError(errno.ETIMEDOUT, "")))
            assert links.poll() == End(1, "host 1 (127.0.0.1) has not been heard from for 7 s")
            assert links.poll() is None and not links.expected()


@pytest.mark.parametrize("told", [0, 1])
def test_a_stop_on_one_host_is_a_clean_stop_on_all(tmp_path, host, told):
    """The ranks agree to stop among themselves: here by a file."""
    body = SAVE.replace("while True:", "wait_for('saved'); sys.exit(143)\nwhile True:")
    hosts = [host(rank, body) for rank in (0, 1)]
    ranks = pids(tmp_path, range(2))
    hosts[told].send_signal(signal.SIGTERM)
    until(lambda: notes(tmp_path) == [f"{told} 15"])
    assert all(map(alive, ranks))
    (tmp_path / "saved").touch()
    assert [end(each) for each in hosts] == [(143, "")] * 2


def test_a_message_for_the_user_on_one_host_is_pointed_to_on_the_other(tmp_path, host):
    body = "ready()\nwait_for('go')\nif rank == 1: sys.exit(2)\ntime.sleep(60)"
    hosts = [host(rank, body, constants={"END_GRACE": 0.3}) for rank in (0, 1)]
    pids(tmp_path, range(2))
    (tmp_path / "go").touch()
    status, said = end(hosts[0])
    assert status == 2
    assert "(rank 1, pid" in said and "on host 1 (127.0.0.1) ended with status 2: see what it says there" in said
    assert end(hosts[1]) == (2, "")


def test_a_second_signal_on_one_host_ends_all(tmp_path, host):
    hosts = [host(rank, DEAF, constants={"REPEAT_SECONDS": 0}) for rank in (0, 1)]
    ranks = pids(tmp_path, range(2))
    hosts[1].send_signal(signal.SIGINT)
    until(lambda: notes(tmp_path))
    hosts[1].send_signal(signal.SIGINT)
    assert end(hosts[1], 5) == (130, "")
    message = f"train.sh: host 1 (127.0.0.1) was stopped at once\ntrain.sh: {ADVICE}\n"
    assert end(hosts[0], 5) == (1, message)
    assert not any(map(alive, ranks))


@pytest.mark.parametrize(
    ("wrong", "word"),
    [({"options": ["--lr", "2"]}, "other options"), ({"processes": 2}, "other NPROC"), ({"hosts": 3}, "other NNODES")],
)
def test_a_host_that_was_started_otherwise_is_refused(host, wrong, word):
    first = host(0, options=["--lr", "1"])
    status, said = end(host(1, **{"options": ["--lr", "1"], **wrong}))
    assert status == 2
    refused = f"host 1 (127.0.0.1) was started with {word} than host 0"
    assert said.startswith(f"train.sh: {refused}")
    # The command may differ: host 0's has the folder for the run, which the others do not know.
    assert end(host(1, FINISH + " ", options=["--lr", "1"])) == (0, "")
    status, said = end(first)
    assert status == 0
    assert said.startswith(f"train.sh: refused: {refused}")


def test_a_host_rank_given_twice_is_refused_and_one_that_leaves_may_come_back(host):
    first, second, third = (host(rank, hosts=3) for rank in (0, 1, 1))
    until(lambda: second.poll() == 2 or third.poll() == 2)
    refused, other = (second, third) if second.poll() == 2 else (third, second)
    assert "host 1 (127.0.0.1) is there already, at 127.0.0.1" in end(refused)[1]
    other.kill()
    other.wait()
    hosts = first, host(1, hosts=3), host(2, hosts=3)
    assert [end(each)[0] for each in hosts] == [0, 0, 0]


def test_hosts_that_do_not_come_are_named(tmp_path, host, port):
    ends = [end(each, 6) for each in [host(rank, hosts=4, join_timeout=2) for rank in (0, 2)]]
    assert ends[0] == ends[1]  # the one that came is told as well
    assert ends[0][0] == 2
    assert "Missing: host 1, 3 of 0 to 3" in ends[0][1]
    assert f"MASTER_PORT={port}" in ends[0][1]
    assert not (tmp_path / "0").exists()


def test_a_host_0_that_does_not_come_is_named(host, port):
    status, said = end(host(1, join_timeout=2), 6)
    assert status == 2
    assert f"host 0 could not be reached at 127.0.0.1 port {port + 1} within 2 s (Connection refused)" in said


GARBAGE = [
    b"GET / HTTP/1.1\r\n\r\n",
    b"\x16\x03\x01\x00\xff" * 40 + b"\n",
    b"x" * 100_000,
    b"1 2 [1, {}]\n",
    b"\n",
    b"",
]
NO_HELLO = [b"", b"null", b"[" * 3000, b'[0, ""]', b'["1", {}]', b"[7, {}]", b"\xff"]


def test_strangers_do_no_harm(host, port):
    first = host(0)
    listening(port).close()
    with contextlib.ExitStack() as strangers:
        silent = strangers.enter_context(listening(port))
        for line in [*GARBAGE, *[b"x"] * (2 * UNFINISHED)]:
            connection = strangers.enter_context(listening(port))
            with contextlib.suppress(ConnectionError):
                connection.sendall(line)
        for words in NO_HELLO:  # by somebody who knows the secret
            enter(("127.0.0.1", port + 1), SECRET.encode(), words, 10).close()
        assert end(host(1)) == (0, "")
        status, said = end(first)
        assert status == 0
        (line,) = said.splitlines()
        assert line.startswith("train.sh: refused: host 7 (127.0.0.1) was started with other NNODES, NPROC, options")
        with contextlib.suppress(ConnectionResetError):
            assert silent.recv(100)[:1] not in (b"[", b"r")


@pytest.mark.parametrize("secret", ["", "another"])
def test_a_host_without_the_secret_takes_no_place(host, port, secret):
    first = host(0)
    status, said = end(host(1, secret=secret))
    assert status == 2
    assert said == "train.sh: host 0 at 127.0.0.1 has another SSD_JOB_SECRET, or none: give all hosts the same\n"
    assert [end(host(1)), end(first)] == [(0, "")] * 2


def test_hosts_without_a_secret_are_warned(host, port):
    first, other = host(0, secret=""), host(1, secret="")
    assert end(other) == (0, "")
    status, said = end(first)
    assert status == 0
    assert said.startswith(f"train.sh: SSD_JOB_SECRET is not set: whoever reaches port {port + 1} here can")


def test_what_another_host_says_cannot_write_on_the_terminal(host, port):
    process = host(1)
    with Door(listen("127.0.0.1", port + 1), SECRET.encode()) as door, contextlib.ExitStack() as host_0:
        connection = host_0.enter_context(until(lambda: list(door.newcomers()))[0][0])
        connection.sendall(json.dumps([2, "no\x1b[2J\n" + "x" * 3000]).encode() + b"\n")
        status, said = end(process)
    assert status == 2
    assert said == f"train.sh: no?[2J?{'x' * 490}...\n"
