"""The ports of this process, which strangers can reach too: who is let in, and how long anybody may take.

Who connects to a `Door` is sent a number that was never used before, and has to answer with a proof that it knows the
job's secret; it gets one back. What is said afterwards is neither signed nor secret.
"""

import contextlib
import ctypes
import hmac
import ipaddress
import os
import secrets
import socket
import stat
import struct
import time
from collections.abc import Iterator
from pathlib import Path

from ssd300_vgg16.errors import UserError

LOOPBACK = "127.0.0.1"
MAX_LINE = 4096
# Connections whose first line has not come. Whoever has waited longest makes room: strangers may come at any rate
# without keeping out those who answer at once.
UNFINISHED = 64
HELLO_SECONDS = 5.0
NUMBER = 16  # bytes
REFUSED = b"refused\n"

# struct sock_filter[] of linux/filter.h, for packets from 127.0.0.0/8 and ::1: code, jumps if true and false, value.
_NET = 0xFFF00000  # SKF_NET_OFF: from the network header on
_BYTE, _WORD, _RIGHT, _EQUAL, _RETURN = 0x30, 0x20, 0x74, 0x15, 0x06
_ALL = 0xFFFFFFFF
_NONE = (_RETURN, 0, 0, 0)
_FROM_LOOPBACK = [
    (_BYTE, 0, 0, _NET), (_RIGHT, 0, 0, 4), (_EQUAL, 0, 2, 4),  # the version; IPv4's first byte of the source:
    (_BYTE, 0, 0, _NET + 12), (_EQUAL, 8, 9, 127),
    (_WORD, 0, 0, _NET + 8), (_EQUAL, 0, 7, 0), (_WORD, 0, 0, _NET + 12), (_EQUAL, 0, 5, 0),
    (_WORD, 0, 0, _NET + 16), (_EQUAL, 0, 3, 0), (_WORD, 0, 0, _NET + 20), (_EQUAL, 0, 1, 1),
]  # fmt: skip
_SO_ATTACH_FILTER, _SO_ATTACH_REUSEPORT_CBPF = 26, 51


@contextlib.contextmanager
def kept_on_loopback(port: int | None) -> Iterator[None]:
    """At the end of the block, the sockets that were made in it are made to hear this machine alone.

    For the import of OneFlow, which listens at all of the machine's addresses, believes whoever calls, and has no
    option for it. port: where it is about to listen, if that is known: nobody else is heard there within the block.
    """
    before = set(_inodes())
    with contextlib.nullcontext() if port is None else _guard(port):
        yield
        with contextlib.suppress(OSError):  # a sandbox without /proc or filters
            for own in internet_sockets():
                if os.fstat(own.fileno()).st_ino not in before:
                    _attach(own, _SO_ATTACH_FILTER, *_FROM_LOOPBACK, (_RETURN, 0, 0, _ALL), _NONE)


def _inodes() -> Iterator[int]:
    with contextlib.suppress(OSError):
        for own in internet_sockets():
            yield os.fstat(own.fileno()).st_ino


def _guard(port: int) -> socket.socket:
    """A socket to which the kernel gives what comes to the port from elsewhere, and which drops all that it gets.

    What comes from this machine is for the next one that listens there with SO_REUSEPORT, as gRPC does.
    """
    family = socket.AF_INET
    with contextlib.suppress(OSError), socket.create_server(("::1", 0), family=socket.AF_INET6):
        family = socket.AF_INET6  # so chooses gRPC; only sockets of one family share a port so
    guard = socket.socket(family)
    with contextlib.suppress(OSError):  # a sandbox again, or the port is taken, which OneFlow says
        if family == socket.AF_INET6:
            guard.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        guard.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        _attach(guard, _SO_ATTACH_FILTER, _NONE)
        # What it returns is a place in the order of listening.
        _attach(guard, _SO_ATTACH_REUSEPORT_CBPF, *_FROM_LOOPBACK, (_RETURN, 0, 0, 1), _NONE)
        # gVisor says yes to both and does nothing: there the guard would take what is for OneFlow. This it refuses.
        guard.getsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, 64)
        guard.bind(("", port))
        guard.listen()
    return guard


def _attach(own: socket.socket, option: int, *lines: tuple[int, int, int, int]) -> None:
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *line) for line in lines))
    own.setsockopt(socket.SOL_SOCKET, option, struct.pack("HP", len(lines), ctypes.addressof(code)))


def internet_sockets() -> Iterator[socket.socket]:
    """Those of this process, OneFlow's included; each is good for one turn of a loop."""
    for file in list(Path("/proc/self/fd").iterdir()):
        with contextlib.suppress(OSError):  # closed by now, as the list itself is
            if stat.S_ISSOCK(os.fstat(int(file.name)).st_mode):
                with socket.socket(fileno=os.dup(int(file.name))) as own:
                    if own.family in (socket.AF_INET, socket.AF_INET6):
                        yield own


def listen(address: str, port: int) -> socket.socket:
    """A socket at this address of the machine; at all of its addresses, if it is not known to be one.

    port 0: any free one. Raises UserError if it cannot be had.
    """
    places = []
    with contextlib.suppress(OSError):
        for family, *_, place in socket.getaddrinfo(address, port, type=socket.SOCK_STREAM):
            # Many machines call themselves 127.0.1.1, where no other reaches them.
            if place[0] == address or not ipaddress.ip_address(str(place[0]).partition("%")[0]).is_loopback:
                places.append((family, place))
    for family, place in places:
        with contextlib.suppress(OSError):  # an address of a router in front, say
            return socket.create_server(place, family=family)
    both = socket.has_dualstack_ipv6()
    try:
        return socket.create_server(("", port), family=socket.AF_INET6 if both else socket.AF_INET, dualstack_ipv6=both)
    except OSError as error:
        raise UserError(f"cannot listen at port {port} ({error.strerror}): set another MASTER_PORT") from error


class Door:
    """A listener whose newcomers are let in once they have proved that they know the secret."""

    def __init__(self, listener: socket.socket, secret: bytes):
        self._listener, self._secret = listener, secret
        self._unfinished: dict[socket.socket, tuple[float, bytes, bytearray]] = {}

    @property
    def sockets(self) -> list[socket.socket]:
        """Those at which `newcomers` may have something to read."""
        return [self._listener, *self._unfinished]

    def newcomers(self) -> Iterator[tuple[socket.socket, bytes]]:
        """Those who have come in since the last call, with what they said; the sockets block. Waits for nobody."""
        self._listener.setblocking(False)
        with contextlib.suppress(OSError):
            while True:
                self._greet(self._listener.accept()[0])
        for connection, (since, number, said) in list(self._unfinished.items()):
            gone = time.monotonic() - since > HELLO_SECONDS
            try:
                part = connection.recv(MAX_LINE)
                said += part
                gone |= not part or len(said) >= MAX_LINE
            except BlockingIOError:
                pass
            except OSError:
                gone = True
            if said.endswith(b"\n"):
                words = self._proved(connection, number, bytes(said))
            elif gone:
                words = None  # and nothing is said: it may be slow, and come again
            else:
                continue
            del self._unfinished[connection]
            if words is None:
                connection.close()
            else:
                yield connection, words
        while len(self._unfinished) > UNFINISHED:
            oldest = next(iter(self._unfinished))
            del self._unfinished[oldest]
            oldest.close()

    def _greet(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        number = secrets.token_bytes(NUMBER)
        self._unfinished[connection] = time.monotonic(), number, bytearray()
        with contextlib.suppress(OSError):
            connection.send(number.hex().encode() + b"\n")

    def _proved(self, connection: socket.socket, number: bytes, said: bytes) -> bytes | None:
        """What a newcomer says besides its proof, which is answered; None if the proof is wrong."""
        theirs, _, rest = said.removesuffix(b"\n").partition(b" ")
        proof, _, words = rest.partition(b" ")
        with contextlib.suppress(OSError):
            connection.setblocking(True)
            if not hmac.compare_digest(proof, _proof(self._secret, number.hex().encode(), theirs, words)):
                connection.send(REFUSED)
                return None
            connection.send(_proof(self._secret, theirs, number.hex().encode()) + b"\n")
            return words
        return None

    def __enter__(self) -> "Door":
        return self

    def __exit__(self, *exception: object) -> None:
        for each in self.sockets:
            each.close()


def enter(address: tuple[str, int], secret: bytes, words: bytes, seconds: float) -> socket.socket:
    """Connect to another process's door and say words (no line feed); the socket blocks.

    seconds: for each step. Raises OSError if it cannot be reached, PermissionError if it has another secret.
    """
    connection = socket.create_connection(address, timeout=seconds)
    try:
        with connection.makefile("rb", buffering=0) as lines:  # unbuffered: what follows is not for here
            number, own = lines.readline(MAX_LINE).strip(), secrets.token_hex(NUMBER).encode()
            connection.sendall(b"%s %s %s\n" % (own, _proof(secret, number, own, words), words))
            answer = lines.readline(MAX_LINE)
        if not answer:
            raise ConnectionResetError("the connection was closed again")
        if not hmac.compare_digest(answer, _proof(secret, own, number) + b"\n"):
            raise PermissionError("another secret")
        connection.settimeout(None)
        return connection
    except OSError:
        connection.close()
        raise


def _proof(secret: bytes, *parts: bytes) -> bytes:
    return hmac.new(secret, b" ".join(parts), "sha256").hexdigest().encode()
