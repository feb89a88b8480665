"""The processes that share one training, as each of them sees the others: who it is, and what they tell one another.

All messages travel in main memory on OneFlow's own transport, whatever device the network is on. Every function with
a message in it has to be called by all processes, in the same order.
"""

import ctypes
import os
from contextlib import suppress
from dataclasses import dataclass

import numpy as np

from ssd300_vgg16.errors import UserError
from ssd300_vgg16.runtime import flow

# C++'s own names of oneflow::GrpcCtrlClient::StopHeartbeat and of what points to the process's one client.
STOP_HEARTBEAT = "_ZN7oneflow14GrpcCtrlClient13StopHeartbeatEv"
CONTROL_CLIENT = "_ZZN7oneflow9SingletonINS_10CtrlClientEvE7GetPPtrEvE3ptr"


@dataclass(frozen=True)
class World:
    """rank: 0..world_size-1 among all processes; local_rank: among those on this host, the index of the GPU to use."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0

    @property
    def is_first(self) -> bool:
        """Whether this is the process that prints and writes files."""
        return self.rank == 0

    def say(self, *lines: str) -> None:
        """Print lines, once for all processes."""
        if self.is_first:
            for line in lines:
                print(line)

    def refuse_shared_gpu(self, device: str) -> None:
        """UserError if OneFlow would compute this process's part on a GPU that is another process's.

        OneFlow takes it that ranks are numbered host by host, as many on each. Numbered in turns over the hosts, as
        srun may do, or where several "hosts" are one machine, two of them would meet on one GPU.
        """
        if device == "cpu" or self.world_size == 1:
            return
        hosts = flow.env.get_node_size()
        taken = self.rank % (self.world_size // hosts)
        if taken != self.local_rank:
            raise UserError(
                f"process {self.rank} is number {self.local_rank} on its host and would share GPU {taken} with another "
                f"of the {self.world_size} processes on {hosts} host{'s' * (hosts > 1)}: number them host by host, "
                "with srun by --distribution=block, and give each host one NODE_RANK"
            )

    def share(self, rows: int) -> slice:
        """This process's part of so many rows, as OneFlow splits a tensor: as even as can be, larger parts first."""
        size, larger = divmod(rows, self.world_size)
        start = self.rank * size + min(self.rank, larger)
        return slice(start, start + size + (self.rank < larger))

    def all_reduce(self, *values: float) -> list[float]:
        """Sums over all processes."""
        return self.all_reduce_array(np.array(values, dtype=np.float64)).tolist()

    def all_reduce_array(self, array: np.ndarray) -> np.ndarray:
        """The sum of an array of each process; the array itself where there is one process."""
        if self.world_size == 1:
            return array
        tensor = flow.from_numpy(np.ascontiguousarray(array))
        flow.comm.all_reduce(tensor)
        return tensor.numpy()

    def last_barrier(self) -> None:
        """Return when all processes have called this, the last that they do together: each may end from then on."""
        self.all_reduce(0)  # while one is waited for, the heartbeat tells whether it is lost
        if self.world_size > 1:
            _stop_heartbeat()
        self.all_reduce(0)

    def broadcast(self, array: np.ndarray) -> np.ndarray:
        """The first process's array; every process gives one of the same shape and type."""
        if self.world_size == 1:
            return array
        tensor = flow.from_numpy(np.array(array, order="C", ndmin=1))
        flow.comm.broadcast(tensor, 0)
        return tensor.numpy().reshape(np.shape(array))

    def all_gather(self, message: bytes) -> list[bytes]:
        """The messages of all processes, in order of rank."""
        if self.world_size == 1:
            return [message]
        # OneFlow gathers tensors of one shape only: all are padded to the longest.
        lengths = np.zeros(self.world_size, dtype=np.int64)
        lengths[self.rank] = len(message)
        lengths = self.all_reduce_array(lengths)
        padded = np.zeros(max(1, lengths.max()), dtype=np.uint8)
        padded[: len(message)] = np.frombuffer(message, dtype=np.uint8)
        everyones = [flow.zeros(len(padded), dtype=flow.uint8) for _ in range(self.world_size)]
        flow.comm.all_gather(everyones, flow.from_numpy(padded))
        return [part.numpy()[:length].tobytes() for part, length in zip(everyones, lengths, strict=True)]


def _stop_heartbeat() -> None:
    """Have OneFlow call the other processes no more, as it does every 7 to 13 s: it aborts if one of them has ended.

    Its own way out begins with that too, and then waits for the others, dead ones too.
    """
    library = ctypes.CDLL(flow._oneflow_internal.__file__)
    with suppress(AttributeError, ValueError):  # builds that hide their C++ names
        stop = library[STOP_HEARTBEAT]
        stop.argtypes, stop.restype = [ctypes.c_void_p], None
        stop(ctypes.c_void_p.in_dll(library, CONTROL_CLIENT))


ALONE = World()


def this_world() -> World:
    """What OneFlow was started with: RANK, WORLD_SIZE and LOCAL_RANK in the environment, or one process alone."""
    return World(flow.env.get_rank(), flow.env.get_world_size(), int(os.environ.get("LOCAL_RANK", 0)))
