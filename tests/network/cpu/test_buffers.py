"""Memory of large arrays is used again once nobody holds it, and not before."""

import gc

import numpy as np
import pytest

from ssd300_vgg16.network.cpu import threads
from ssd300_vgg16.network.cpu.threads import LEAST_REUSED, reused
from ssd300_vgg16.runtime import flow

SHAPE = (2, LEAST_REUSED)


@pytest.fixture(autouse=True)
def nothing_left_by_others():
    gc.collect()
    threads._free.clear()


def place(array):
    return array.__array_interface__["data"][0]


def test_memory_that_nobody_holds_is_used_again():
    first = reused(SHAPE)
    at = place(first)
    assert (first.shape, first.dtype) == (SHAPE, np.float32)
    del first
    assert place(reused((SHAPE[1], SHAPE[0]))) == at


@pytest.mark.parametrize(
    "part",
    [
        pytest.param(lambda array: array, id="the array"),
        pytest.param(lambda array: array[1, 5:9].reshape(2, 2), id="a part"),
        pytest.param(lambda array: flow.from_numpy(array), id="a tensor"),
        pytest.param(lambda array: flow.from_numpy(array).reshape(-1), id="a view of a tensor"),
        pytest.param(lambda array: flow.from_numpy(array).numpy(), id="an array of a tensor"),
    ],
)
def test_whoever_holds_a_part_holds_all(part):
    array = reused(SHAPE)
    array.fill(1)
    held = part(array)
    del array
    others = [reused(SHAPE) for _ in range(3)]
    for other in others:
        other.fill(2)
    assert (np.asarray(held if isinstance(held, np.ndarray) else held.numpy()) == 1).all()


def test_a_result_that_is_still_computed_keeps_what_it_is_computed_from():
    """OneFlow computes while Python goes on."""
    ones = reused((1 << 22,))
    ones.fill(1)
    tensor = flow.from_numpy(ones)
    result = tensor
    for _ in range(20):
        result = result + tensor
    del ones, tensor
    reused((1 << 22,)).fill(5)
    assert (result.numpy() == 21).all()


def test_small_arrays_are_left_to_numpy():
    before = dict(threads._used)
    small, larger = reused((3, 4)), reused((LEAST_REUSED - 1,))
    assert small.shape == (3, 4) and len(larger) == LEAST_REUSED - 1
    assert threads._used == before


def test_memory_of_sizes_that_are_no_longer_asked_for_is_given_up():
    # More than all that other tests may still hold, which could be asked for again.
    least = max(LEAST_REUSED, sum(threads._used.values()))
    for more in range(4):
        reused((least + more,))
    assert sum(map(len, threads._free.values())) <= 1


def test_one_size_more_costs_nobody_his_memory():
    kept = reused(SHAPE)
    at = place(kept)
    del kept
    reused((2 * LEAST_REUSED + 1,))  # once, as when two threads meet that did not before
    assert place(reused(SHAPE)) == at
