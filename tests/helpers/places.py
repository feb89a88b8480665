"""Where the repository, the reference figures, the data sets and this machine are."""

import contextlib
import socket
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
GOLDEN = REPOSITORY / "tests" / "golden"
SHARED = REPOSITORY.parent / "shared"  # not part of the repository: tests that need it are skipped without
BCCD = SHARED / "data" / "bccd"


def own_address() -> str:
    """An address of this machine that others know."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe, contextlib.suppress(OSError):
        probe.connect(("192.0.2.1", 9))  # sends nothing
        return probe.getsockname()[0]
    return "127.0.0.1"
