"""Files of strangers by hypothesis: a good file with a few changes, and what may come of it."""

import copy
import time
from contextlib import contextmanager
from pathlib import Path

from hypothesis import strategies as some

from ssd300_vgg16.errors import UserError

# Far above what any takes, to tell what has no end.
MAX_SECONDS, MAX_MEMORY_MB = 10, 500
ODD_NUMBERS = (0, 1, 2, 127, 128, 255, 256, 65535, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**64 - 1)
ODD_VALUES = (
    *(None, True, -1, 0, 0.5, 1e9, 1e308, -1e308, float("nan"), float("inf"), 2**31, 2**63, -(2**70), 10**400),
    *("", " ", "x" * 3000, "\0", "\ud800", "..", "../a.jpg", "\x1b[2J", "7", "1e999", [], {}, [[]], [None], {"id": 1}),
)
TOKENS = (
    *(b"0", b"-1", b"1e999", b"nan", b"9" * 20, b"\0", b"\xff", b"\xff\xfe", b"\xef\xbb\xbf", b"\n", b" ", b"x" * 5000),
    *(b"[", b"]", b"{", b"}", b'"', b":", b",", b"&a ", b"*a", b"<<", b"!!binary ", b"<", b">", b"&#0;", b"<!DOCTYPE"),
    *(b"utf-16", b"punycode", b"PK\3\4", b"II*\0", b"\xff\xd8", b"\xff\xda", b"ustar", b"GNU.sparse.map", b"\x80\2"),
)


@some.composite
def changed(draw, good: bytes) -> bytes:
    """The bytes with some overwritten, cut out, put in, doubled or cut off."""
    data = bytearray(good)
    for _ in range(draw(some.integers(1, 5))):
        place = draw(some.integers(0, len(data)))
        length = draw(some.integers(0, 40))
        match draw(some.integers(0, 5)):
            case 0:
                data[place : place + 1] = bytes([draw(some.integers(0, 255))])
            case 1:
                number, size = draw(some.sampled_from(ODD_NUMBERS)), draw(some.sampled_from((1, 2, 4, 8)))
                order = draw(some.sampled_from(("big", "little")))
                data[place : place + size] = (number % 256**size).to_bytes(size, order)
            case 2:
                del data[place : place + length]
            case 3:
                data[place:place] = draw(some.sampled_from(TOKENS))
            case 4:
                data[place:place] = data[place : place + length] * draw(some.sampled_from((1, 3, 1000)))
            case 5:
                del data[place + draw(some.integers(0, max(0, len(data) - place))) :]
    return bytes(data)


@some.composite
def changed_values(draw, good: object) -> object:
    """A JSON document with some of its values replaced, left out or doubled."""
    document = copy.deepcopy(good)
    for _ in range(draw(some.integers(1, 3))):
        places = list(_places(document))
        parent, key = places[draw(some.integers(0, len(places) - 1))] if places else (None, None)
        match draw(some.integers(0, 3)):
            case _ if parent is None:
                return draw(some.sampled_from(ODD_VALUES))
            case 0:
                del parent[key]
            case 1 if isinstance(parent, list):
                parent.append(copy.deepcopy(parent[key]))
            case _:
                parent[key] = copy.deepcopy(draw(some.sampled_from(ODD_VALUES)))
    return document


def _places(document):
    pairs = document.items() if isinstance(document, dict) else enumerate(document)
    for key, value in list(pairs):
        yield document, key
        if isinstance(value, dict | list):
            yield from _places(value)


@contextmanager
def right_or_refused():
    """What is read within it may end in the package's own error, in time and without much memory; in nothing else."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak of memory begins anew
    before, since = _memory_mb("VmRSS"), time.monotonic()
    try:
        yield
    except UserError as error:
        assert str(error)
    assert time.monotonic() - since < MAX_SECONDS
    assert _memory_mb("VmHWM") - before < MAX_MEMORY_MB


def _memory_mb(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(f"{name}:")).split()[1]) >> 10
