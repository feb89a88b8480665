"""A disk that fills up, for the tests of whatever writes files."""

import contextlib
import resource
from collections.abc import Iterator


@contextlib.contextmanager
def full_disk(at: int) -> Iterator[None]:
    """Within it no file of this process gets longer than `at` bytes; writing more is an OSError.

    That holds for the file to which pytest writes as well, if its output goes to one: what is within a test is
    captured, but a test may not end in here, as it would in a fixture.
    """
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (at, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
