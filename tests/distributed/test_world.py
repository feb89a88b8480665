"""Which GPU OneFlow computes a process's part on, and sums by plain sockets."""

import queue
import socket
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from ssd300_vgg16.distributed import world as world_module
from ssd300_vgg16.distributed.world import ALONE, World, flow
from ssd300_vgg16.errors import UserError


@pytest.fixture
def hosts(monkeypatch):
    """Sets on how many hosts OneFlow finds the processes."""
    return lambda count: monkeypatch.setattr(flow.env, "get_node_size", lambda: count)


def refused(local_ranks, device="cuda:0"):
    """The ranks that are refused, where the ranks 0, 1, ... have these numbers on their hosts."""
    found = []
    for rank, local_rank in enumerate(local_ranks):
        try:
            World(rank, len(local_ranks), local_rank).refuse_shared_gpu(device)
        except UserError:
            found.append(rank)
    return found


@pytest.mark.parametrize(
    ("count", "local_ranks", "ranks"),
    [
        (1, [0, 1, 2, 3], []),
        (2, [0, 1, 0, 1], []),  # host by host
        (2, [0, 0, 1, 1], [1, 2]),  # in turns, as srun --distribution=cyclic does
        (4, [0, 0, 0, 0], []),
        (1, [0, 0], [1]),  # two "hosts" on one machine
    ],
)
def test_two_ranks_on_one_gpu_are_refused(hosts, count, local_ranks, ranks):
    hosts(count)
    assert refused(local_ranks) == ranks
    assert refused(local_ranks, "cpu") == []


def test_the_refusal_names_process_gpu_and_cure(hosts):
    hosts(2)
    with pytest.raises(UserError) as caught:
        World(2, 4, 1).refuse_shared_gpu("cuda:1")
    assert str(caught.value).startswith("process 2 is number 1 on its host and would share GPU 0 with another of the 4")
    assert "--distribution=block" in str(caught.value)
    ALONE.refuse_shared_gpu("cuda")


@pytest.fixture
def processes(monkeypatch):
    """Calls a function of a world in three of them at a time, threads in place of processes; the results by rank."""
    barrier, told = threading.Barrier(3, timeout=10), [queue.Queue() for _ in range(3)]

    class OneOfThreads(World):
        def broadcast(self, array):
            for other in told[1:] if self.is_first else ():
                other.put(array)
            return array if self.is_first else told[self.rank].get(timeout=10)

        def all_reduce(self, *values):
            told[0].put(values)
            barrier.wait()
            sums = np.sum(list(told[0].queue), axis=0).tolist()
            barrier.wait()
            told[0].get()
            return sums

    def call(function):
        with ThreadPoolExecutor(3) as pool:
            return list(pool.map(lambda rank: function(OneOfThreads(rank, 3)), range(3)))

    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    return call


def test_sums_by_plain_sockets(processes, monkeypatch):
    worlds = processes(World.connected)
    assert [len(world.sockets) for world in worlds] == [2, 1, 1]
    monkeypatch.setattr(type(worlds[0]), "all_reduce", None)
    with ThreadPoolExecutor(3) as pool:
        sums = pool.map(lambda world: world.sum_at_once(world.rank, True, 0.5), worlds)
        assert list(sums) == [[3, 3, 1.5]] * 3
    for ours in (ours for world in worlds for ours in world.sockets):
        ours.close()


def test_processes_that_cannot_reach_the_first_have_oneflows_sums(processes, monkeypatch):
    monkeypatch.setenv("MASTER_ADDR", "nowhere.invalid")
    monkeypatch.setattr(world_module, "CONNECT_SECONDS", 0.1)
    assert processes(lambda world: world.connected().sum_at_once(world.rank)) == [[3]] * 3


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
