"""Ports: who is let in by a door, where a socket listens, and what is kept on this machine."""

import contextlib
import socket
import threading
import time

import pytest
from places import own_address

from ssd300_vgg16 import ports
from ssd300_vgg16.errors import UserError

SECRET = b"known to all of us"


@pytest.fixture
def door():
    with ports.Door(ports.listen("127.0.0.1", 0), SECRET) as door:
        yield door


def connect(door) -> socket.socket:
    connection = socket.create_connection(door.sockets[0].getsockname(), timeout=10)
    assert not list(door.newcomers())  # it is greeted
    return connection


def seen(door, connection) -> list[bytes]:
    """What newcomers said, once the door has looked at all that the connection has sent."""
    time.sleep(0.05)
    found = []
    for newcomer, words in door.newcomers():
        found.append(words)
        newcomer.close()
    return found


def hello(connection, secret=SECRET, words=b"hello") -> bytes:
    number = connection.recv(100).strip()
    return b"0 %s %s\n" % (ports._proof(secret, number, b"0", words), words)


def test_who_knows_the_secret_is_let_in_by_pieces_too(door):
    with connect(door) as connection:
        said = hello(connection)
        connection.sendall(said[:40])
        assert seen(door, connection) == []
        connection.sendall(said[40:])
        assert seen(door, connection) == [b"hello"]
        assert len(door.sockets) == 1


@pytest.mark.parametrize("change", ["secret", "words", "replay"])
def test_who_does_not_know_it_is_not(door, change):
    with connect(door) as connection, contextlib.ExitStack() as again:
        said = hello(connection, secret=b"guessed" if change == "secret" else SECRET)
        if change == "replay":
            connection.sendall(said)
            assert seen(door, connection) == [b"hello"]
            connection = again.enter_context(connect(door))
        connection.sendall(said.replace(b"hello", b"help") if change == "words" else said)
        assert seen(door, connection) == []
        connection.settimeout(10)
        assert connection.recv(1000).endswith(ports.REFUSED)


def test_who_says_nothing_makes_room(door, monkeypatch):
    with contextlib.ExitStack() as strangers:
        first = strangers.enter_context(connect(door))
        for stranger in [strangers.enter_context(connect(door)) for _ in range(ports.UNFINISHED + 5)]:
            with contextlib.suppress(OSError):  # it had to make room already
                stranger.sendall(b"x")
        newest = strangers.enter_context(connect(door))
        assert seen(door, newest) == []
        assert len(door.sockets) == 1 + ports.UNFINISHED
        newest.sendall(hello(newest))
        assert seen(door, newest) == [b"hello"]
        first.recv(100)
        assert first.recv(100) == b""
        monkeypatch.setattr(ports, "HELLO_SECONDS", -1)
        assert list(door.newcomers()) == []
        assert len(door.sockets) == 1


def test_who_has_answered_makes_room_for_nobody(door):
    with connect(door) as connection, contextlib.ExitStack() as strangers:
        connection.sendall(hello(connection))
        for _ in range(ports.UNFINISHED + 5):
            strangers.enter_context(socket.create_connection(door.sockets[0].getsockname(), timeout=10))
        assert seen(door, connection) == [b"hello"]


def test_a_line_without_end_is_cut_off(door):
    with connect(door) as connection:
        connection.sendall(b"x" * ports.MAX_LINE)
        assert seen(door, connection) == []
        assert len(door.sockets) == 1


def test_a_false_door_is_left():
    """It cannot give the proof back."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = server.getsockname()

        def answer():
            connection = server.accept()[0]
            with connection:
                connection.sendall(b"1234\n")
                connection.recv(1000)
                connection.sendall(b"f" * 64 + b"\n")

        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(PermissionError):
            ports.enter(address, SECRET, b"hello", 10)
        thread.join()


def test_it_listens_at_the_address_alone():
    with ports.listen("127.0.0.1", 0) as server:
        assert server.getsockname()[0] == "127.0.0.1"
        taken = server.getsockname()[1]
    for elsewhere in ("192.0.2.77", "nowhere.invalid", "localhost"):
        with ports.listen(elsewhere, 0) as server:
            assert server.getsockname()[0] in ("::", "0.0.0.0")
    with (
        socket.create_server(("", taken)),
        pytest.raises(UserError, match=f"cannot listen at port {taken} .*MASTER_PORT"),
    ):
        ports.listen("127.0.0.1", taken)


@pytest.fixture
def outside():
    """An address of this machine from which strangers seem to come."""
    address = own_address()
    if address.startswith("127."):
        pytest.skip("this machine has no network")
    return address


def answers(address, port) -> bool:
    with contextlib.suppress(TimeoutError), socket.create_connection((address, port), timeout=0.2):
        return True
    return False


def has_ipv6() -> bool:
    with contextlib.suppress(OSError), socket.create_server(("::1", 0), family=socket.AF_INET6):
        return True
    return False


BOTH = {"family": socket.AF_INET6, "dualstack_ipv6": True} if has_ipv6() else {}
HERE = ("127.0.0.1", "::1") if BOTH else ("127.0.0.1",)


def test_what_is_kept_on_loopback_answers_nobody_else(outside):
    """Those who came in before are heard no more."""
    with contextlib.ExitStack() as opened:
        former = opened.enter_context(socket.create_server(("", 0), **BOTH))
        with ports.kept_on_loopback(None):
            server = opened.enter_context(socket.create_server(("", 0), **BOTH))
            port = server.getsockname()[1]
            stranger = opened.enter_context(socket.create_connection((outside, port), timeout=5))
            theirs = opened.enter_context(server.accept()[0])
        assert answers(outside, former.getsockname()[1]), "it is not of the block"
        with stranger, theirs:
            stranger.send(b"x")
            theirs.settimeout(0.2)
            with pytest.raises(TimeoutError):
                theirs.recv(1)
        for address in HERE:
            with socket.create_connection((address, port), timeout=5) as own, server.accept()[0] as accepted:
                own.sendall(b"x" * 100_000)
                assert accepted.recv(1) == b"x"
        assert not answers(outside, port)


def test_a_port_that_is_known_before_answers_nobody_else_at_any_time(outside):
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    with ports.kept_on_loopback(port):
        assert not answers("127.0.0.1", port), "nobody is there yet"
        with socket.create_server(("", port), reuse_port=True, **BOTH):
            found = {address: answers(address, port) for address in (outside, *HERE)}
    assert found == {outside: False, **dict.fromkeys(HERE, True)}
