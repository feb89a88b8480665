"""The processes that share one training, as each of them sees the others: who it is, and what they tell one another.

All messages travel in main memory, whatever device the network is on: on OneFlow's own transport, where they come
after the running step, or by plain sockets. Every function with a message in it has to be called by all processes, in
the same order.
"""

import ctypes
import os
import secrets
import socket
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from multiprocessing.connection import wait

import numpy as np

from ssd300_vgg16.errors import SAID, UserError
from ssd300_vgg16.ports import Door, enter, listen
from ssd300_vgg16.runtime import flow

# C++'s own names of oneflow::GrpcCtrlClient::StopHeartbeat and of what points to the process's one client.
STOP_HEARTBEAT = "_ZN7oneflow14GrpcCtrlClient13StopHeartbeatEv"
CONTROL_CLIENT = "_ZZN7oneflow9SingletonINS_10CtrlClientEvE7GetPPtrEvE3ptr"

CONNECT_SECONDS = 60
SUPERVISOR_SECONDS = 60  # after which a lost process has been told of
SECRET = 16  # bytes


@dataclass(frozen=True)
class World:
    """rank: 0..world_size-1 among all processes; local_rank: among those on this host, the index of the GPU to use."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    sockets: tuple[socket.socket, ...] = ()  # to all others in the first process, to that one elsewhere; or none

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

    def sum_at_once(self, *values: float) -> list[float]:
        """Sums over all processes of a `connected` world, beside the running step."""
        own = np.array(values, dtype=np.float64)
        try:
            if self.is_first:
                own += sum(np.frombuffer(_receive(other, own.nbytes)) for other in self.sockets)
            for other in self.sockets:
                other.sendall(own.tobytes())
            return own.tolist() if self.is_first else np.frombuffer(_receive(self.sockets[0], own.nbytes)).tolist()
        except OSError as error:
            # A process that is lost is the supervisor's to tell of, which ends all. A connection alone is not: the
            # others would wait for each other without end.
            time.sleep(SUPERVISOR_SECONDS)
            raise UserError(
                f"process {self.rank} has lost its connection to another ({error}): go on with --resume"
            ) from error

    def connected(self) -> "World":
        """This world with sockets to the first process, at MASTER_ADDR; UserError if it cannot be reached there."""
        if self.world_size == 1:
            return self
        if SAID in os.environ:  # a supervisor of ours sees who is lost, and says it in words
            _stop_heartbeat()
        address = os.environ["MASTER_ADDR"]
        sockets: list[socket.socket] = []
        try:
            if self.is_first:
                secret, deadline = secrets.token_bytes(SECRET), time.monotonic() + CONNECT_SECONDS
                with Door(listen(address, 0), secret) as door:
                    port = door.sockets[0].getsockname()[1]
                    self.broadcast(np.frombuffer(port.to_bytes(2, "big") + secret, dtype=np.uint8))
                    while len(sockets) < self.world_size - 1:
                        if time.monotonic() > deadline:
                            raise TimeoutError(f"{len(sockets)} of {self.world_size - 1} came")
                        wait(door.sockets, timeout=1)
                        sockets += [connection for connection, _ in door.newcomers()]
            else:
                told = self.broadcast(np.zeros(2 + SECRET, dtype=np.uint8)).tobytes()
                port, secret = int.from_bytes(told[:2], "big"), told[2:]
                sockets = [enter((address, port), secret, b"", CONNECT_SECONDS)]
        except OSError as error:
            raise UserError(
                f"processes cannot reach the first of them at MASTER_ADDR={address}, port {port} ({error}): open "
                "all ports between them"
            ) from error
        return replace(self, sockets=tuple(sockets))

    def all_reduce_array(self, array: np.ndarray) -> np.ndarray:
        """The sum of an array of each process; the array itself where there is one process."""
        if self.world_size == 1:
            return array
        tensor = flow.from_numpy(np.ascontiguousarray(array))
        flow.comm.all_reduce(tensor)
        return tensor.numpy()

    def last_barrier(self) -> None:
        """Return when all processes have called this, the last that they do together: each may end from then on."""
        self.all_reduce(0)
        if self.sockets:
            _stop_heartbeat()
            # OneFlow's messages are answered by a thread, which a process that ends at once would take along.
            self.sum_at_once(0)

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


def _receive(connection: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        part = connection.recv(size - len(data))
        if not part:
            raise ConnectionError("the other side is gone")
        data += part
    return data


ALONE = World()


def this_world() -> World:
    """What OneFlow was started with: RANK, WORLD_SIZE and LOCAL_RANK in the environment, or one process alone."""
    return World(flow.env.get_rank(), flow.env.get_world_size(), int(os.environ.get("LOCAL_RANK", 0)))
