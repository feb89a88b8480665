"""What tests of the CPU's kernels are run with."""

import pytest

from ssd300_vgg16 import machine
from ssd300_vgg16.network.cpu import threads


@pytest.fixture(params=[1, 2, 5])
def thread_count(request, monkeypatch):
    """Runs the test with this many threads."""
    monkeypatch.setattr(machine, "thread_count", lambda: request.param)
    threads._executor.cache_clear()
    yield request.param
    threads._executor().shutdown()
    threads._executor.cache_clear()
