"""Which GPU OneFlow computes a process's part on."""

import pytest

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
