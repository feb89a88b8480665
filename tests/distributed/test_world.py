"""Which GPU OneFlow computes a process's part on, and sums by plain sockets."""

import contextlib
import queue
import socket
from concurrent.futures import ThreadPoolExecutor

import pytest

from ssd300_vgg16 import ports
from ssd300_vgg16.distributed import world as world_module
from ssd300_vgg16.distributed.world import ALONE, World, flow
from ssd300_vgg16.errors import UserError


@pytest.mark.parametrize(
    ("hosts", "local_ranks", "ranks"),
    [
        (1, [0, 1, 2, 3], []),
        (2, [0, 1, 0, 1], []),  # host by host
        (2, [0, 0, 1, 1], [1, 2]),  # in turns, as srun --distribution=cyclic does
        (4, [0, 0, 0, 0], []),
        (1, [0, 0], [1]),  # two "hosts" on one machine
    ],
)
def test_two_ranks_on_one_gpu_are_refused(monkeypatch, hosts, local_ranks, ranks):
    monkeypatch.setattr(flow.env, "get_node_size", lambda: hosts)
    refused = []
    for rank, local_rank in enumerate(local_ranks):
        World(rank, len(local_ranks), local_rank).refuse_shared_gpu("cpu")
        try:
            World(rank, len(local_ranks), local_rank).refuse_shared_gpu("cuda:0")
        except UserError as error:
            refused.append(rank)
            words = f"process {rank} is number {local_rank} on its host and would share GPU "
            assert str(error).startswith(words) and "--distribution=block" in str(error)
    assert refused == ranks
    ALONE.refuse_shared_gpu("cuda")


@pytest.fixture
def processes(monkeypatch):
    """Calls a function of a world in three of them at a time, threads in place of processes; the results by rank."""
    told = [queue.Queue() for _ in range(3)]

    class OneOfThreads(World):
        def broadcast(self, array):
            for other in told[1:] if self.is_first else ():
                other.put(array)
            return array if self.is_first else told[self.rank].get(timeout=10)

    def call(function):
        with ThreadPoolExecutor(3) as pool:
            return list(pool.map(lambda rank: function(OneOfThreads(rank, 3)), range(3)))

    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    return call


def test_sums_by_plain_sockets(processes):
    worlds = processes(World.connected)
    assert [len(world.sockets) for world in worlds] == [2, 1, 1]
    with ThreadPoolExecutor(3) as pool:
        sums = pool.map(lambda world: world.sum_at_once(world.rank, True, 0.5), worlds)
        assert list(sums) == [[3, 3, 1.5]] * 3
    for ours in (ours for world in worlds for ours in world.sockets):
        ours.close()
    assert ALONE.connected().sum_at_once(True, 0.5) == [1, 0.5]


def test_strangers_do_not_keep_processes_apart(processes, monkeypatch):
    with contextlib.ExitStack() as strangers:

        def listen(address, port):
            server = ports.listen(address, port)
            for said in (b"", b"GET / HTTP/1.1\r\n\r\n"):
                stranger = strangers.enter_context(socket.create_connection(("127.0.0.1", server.getsockname()[1])))
                stranger.sendall(said)
                stranger.shutdown(socket.SHUT_WR)
            return server

        monkeypatch.setattr(world_module, "listen", listen)
        worlds = processes(World.connected)
    assert [len(world.sockets) for world in worlds] == [2, 1, 1]
    for ours in (ours for world in worlds for ours in world.sockets):
        ours.close()


def test_processes_that_cannot_reach_the_first_are_refused(processes, monkeypatch):
    monkeypatch.setenv("MASTER_ADDR", "nowhere.invalid")
    monkeypatch.setattr(world_module, "CONNECT_SECONDS", 0.1)

    def refusal(world):
        with pytest.raises(UserError, match="cannot reach the first of them at MASTER_ADDR=nowhere"):
            world.connected()
        return True

    assert processes(refusal) == [True] * 3


def test_a_lost_connection_ends_the_process_once_the_supervisor_had_its_time(monkeypatch):
    ours, theirs = socket.socketpair()
    theirs.close()
    waited = []
    monkeypatch.setattr(world_module.time, "sleep", waited.append)
    with ours:
        for rank in (0, 1):
            with pytest.raises(UserError, match=f"process {rank} has lost its connection to another .*: go on with"):
                World(rank, 2, sockets=(ours,)).sum_at_once(1, 2)
    assert waited == [world_module.SUPERVISOR_SECONDS] * 2
