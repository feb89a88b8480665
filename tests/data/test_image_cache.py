"""Caches of decoded images: the same batches as without one, whatever happens to files, memory and disk."""

import errno
import fcntl
import os
import shutil
from argparse import Namespace
from collections import namedtuple
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from threading import Barrier
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from batches import assert_same, recipe, spoiled
from small_data import shapes, shapes_folder

from ssd300_vgg16.data import free_memory, image_cache
from ssd300_vgg16.data.image_cache import DiskCache, RamCache, decoded_bytes
from ssd300_vgg16.data.images import read_photograph
from ssd300_vgg16.data.loader import training_batches
from ssd300_vgg16.data.workers import WorkerPool
from ssd300_vgg16.distributed.world import World
from ssd300_vgg16.errors import UserError
from ssd300_vgg16.training import run
from ssd300_vgg16.training.trainer import Trainer

SAMPLES, LEAST_SIDE = 6, 1000


@pytest.fixture
def samples(tmp_path):
    """Some that can be read, and one that cannot."""
    good = shapes(shapes_folder(tmp_path / "shapes", SAMPLES, 1), "train").samples
    return [*good, spoiled(good[0], tmp_path, "truncated")]


@pytest.fixture(scope="module")
def pair():
    with WorkerPool(2) as pool:
        yield pool


@pytest.fixture(params=["ram", "disk"])
def cache(request, samples, tmp_path):
    return RamCache.create(samples, LEAST_SIDE) if request.param == "ram" else DiskCache.create(tmp_path / "cache")


@pytest.fixture
def decoded(monkeypatch):
    """Names of the files that this process decodes."""
    names = []

    def read(path, *arguments):
        names.append(path.name)
        return read_photograph(path, *arguments)

    monkeypatch.setattr(image_cache, "read_photograph", read)
    return names


def epochs(samples, cache, pool, count=3, start=0):
    policy = recipe(cache=cache)
    return [batch for epoch in range(count) for batch in training_batches(samples, policy, epoch, pool, start)]


def read(cache, samples, index=0):
    """The photograph, which has to be what the file holds, and the notices."""
    notices, sample = [], samples[index]
    found = cache.read(index, sample, LEAST_SIDE, notices)
    expected = read_photograph(sample.path, sample.upright, LEAST_SIDE)
    np.testing.assert_array_equal(found.pixels, expected.pixels)
    assert found[1:] == expected[1:]
    return found, notices


def test_batches_are_those_without_a_cache(samples, cache, decoded):
    expected = epochs(samples, None, WorkerPool(0))
    assert any(batch.unreadable for batch in expected)
    assert_same(epochs(samples, cache, WorkerPool(0)), expected)
    assert sorted(set(decoded)) == sorted({sample.path.name for sample in samples})
    again = [name for name in set(decoded) if decoded.count(name) > 1]
    assert again == ["truncated.jpg"], "what could be read is decoded once"


def test_workers_share_what_they_keep(samples, cache, pair, decoded):
    expected = epochs(samples, None, WorkerPool(0), start=1)
    for _ in range(2):  # the second time as a run that goes on
        assert_same(epochs(samples, cache, pair, start=1), expected)
    assert_same(epochs(samples, cache, WorkerPool(0), start=1), expected)
    assert set(decoded) <= {"truncated.jpg"}, "this process finds what others have kept"


def test_another_training_finds_the_files(samples, tmp_path, decoded):
    for _ in range(2):
        read(DiskCache.create(tmp_path / "cache"), samples)
    assert len(decoded) == 1


def test_a_file_that_changes_is_read_anew(samples, cache):
    read(cache, samples)
    shutil.copy(samples[1].path, samples[0].path)
    found, _ = read(cache, samples)
    os.utime(samples[0].path, (1, 1))
    read(cache, samples)
    samples[0].path.unlink()
    with pytest.raises(UserError, match="no such file"):
        cache.read(0, samples[0], LEAST_SIDE, [])
    assert found.size == found.pixels.shape[:2]


def test_large_photographs_are_kept_reduced(samples, tmp_path, cache, decoded):
    path = tmp_path / "large.jpg"
    cv2.imwrite(str(path), np.random.default_rng(0).integers(0, 99, (2004, 2011, 3), dtype=np.uint8))
    samples[0] = replace(samples[0], path=path, height=2004, width=2011)
    cache = RamCache.create(samples, LEAST_SIDE) if isinstance(cache, RamCache) else cache
    for _ in range(2):
        found, _ = read(cache, samples)
        assert found.pixels.shape == (1002, 1006, 3) and found[1:] == ((2004, 2011), 2)
    assert len(decoded) == 1 and decoded_bytes(samples[0], LEAST_SIDE) == found.pixels.nbytes


def test_turned_photographs_are_kept_turned(samples, cache):
    shapes = []
    for upright in (False, True):
        samples[0] = replace(samples[0], upright=upright)
        made = RamCache.create(samples, LEAST_SIDE) if isinstance(cache, RamCache) else cache
        shapes.append([read(made, samples)[0].pixels.shape for _ in range(2)])
    assert shapes[0][0] == shapes[0][1] and shapes[1][0] == shapes[1][1]


def test_what_is_kept_in_memory_cannot_be_changed(samples):
    cache = RamCache.create(samples, LEAST_SIDE)
    read(cache, samples)
    found, _ = read(cache, samples)
    with pytest.raises(ValueError, match="read-only"):
        found.pixels[0] = 0


def test_an_image_larger_than_declared_is_not_kept(samples, decoded):
    samples[0] = replace(samples[0], height=10, width=10)
    cache = RamCache.create(samples, LEAST_SIDE)
    for number in range(3):
        read(cache, samples)
        read(cache, samples, 1)
        assert decoded == [samples[0].path.name, samples[1].path.name, *[samples[0].path.name] * number]


def test_images_that_do_not_fit_are_refused_before_any_is_read(samples, monkeypatch):
    need = sum(decoded_bytes(sample, LEAST_SIDE) for sample in samples)
    missing = [replace(sample, path=Path("nowhere.jpg")) for sample in samples]
    monkeypatch.setattr(image_cache, "available_memory", lambda: int(need / image_cache.SHARE_OF_MEMORY) + 1)
    RamCache.create(missing, LEAST_SIDE)
    monkeypatch.setattr(image_cache, "available_memory", lambda: int(need / image_cache.SHARE_OF_MEMORY) - 1)
    with pytest.raises(UserError, match=r"--cache ram: the 7 training images take 0\.\d GB decoded, .*--cache disk"):
        RamCache.create(missing, LEAST_SIDE)


def test_memory_goes_with_the_cache(samples):
    image_cache._opened.cache_clear()
    before = set(os.listdir("/proc/self/fd"))  # noqa: PTH208 - a Path for each of them is no use
    cache = RamCache.create(samples, LEAST_SIDE)
    other = RamCache(cache.path, cache.inode)
    assert other.can_be_opened() and not RamCache(cache.path, cache.inode + 1).can_be_opened()
    image_cache._opened.cache_clear()
    del cache
    assert not other.can_be_opened()
    assert set(os.listdir("/proc/self/fd")) == before  # noqa: PTH208


def test_a_row_that_another_process_writes_is_left_to_it(samples, decoded):
    cache = RamCache.create(samples, LEAST_SIDE)
    with WorkerPool(1) as pool:
        results = pool.map(lock_first_row, [cache, cache])
        assert next(results)
        read(cache, samples)
        read(cache, samples)
        assert len(decoded) == 2
    read(cache, samples)  # the other has died, and left nothing
    read(cache, samples)
    assert len(decoded) == 3


def lock_first_row(cache):
    fcntl.lockf(image_cache._opened(cache)._descriptor, fcntl.LOCK_EX, 1, 0)
    return True


def test_memory_that_runs_out_is_told_and_harms_nothing(samples, monkeypatch):
    def fail(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    cache = RamCache.create(samples, LEAST_SIDE)
    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", fail)
        _, notices = read(cache, samples)
    assert notices == ["--cache ram: no more images are kept (No space left on device)"]
    assert read(cache, samples)[1] == []


Usage = namedtuple("Usage", ["free"])


def test_a_disk_that_is_full_is_told_and_harms_nothing(samples, tmp_path, monkeypatch):
    cache = DiskCache.create(tmp_path / "cache")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(image_cache.LEAST_FREE))
    found = epochs(samples, cache, WorkerPool(0))
    assert_same(found, epochs(samples, None, WorkerPool(0)))
    assert {notice for batch in found for notice in batch.notices} == {
        f"--cache disk: {tmp_path / 'cache'}: less than 2.1 GB are free: no more images are kept there"
    }
    assert not list(Path(cache.folder).rglob("*"))


def test_a_write_that_fails_leaves_nothing(samples, tmp_path, monkeypatch):
    cache = DiskCache.create(tmp_path / "cache")

    def fail(*_):
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", fail)
        _, notices = read(cache, samples)
    assert notices == [f"--cache disk: {cache.folder}: Input/output error: no more images are kept there"]
    assert not [path for path in Path(cache.folder).rglob("*") if path.is_file()]


@pytest.mark.parametrize("damage", ["cut", "empty", "other", "blank"])
def test_a_damaged_file_of_the_cache_is_written_anew(samples, tmp_path, decoded, damage):
    cache = DiskCache.create(tmp_path / "cache")
    read(cache, samples)
    (file,) = (path for path in Path(cache.folder).rglob("*") if path.is_file())
    whole = file.read_bytes()
    middle = len(whole) // 2
    file.write_bytes(
        {
            "cut": whole[:-1],
            "empty": b"",
            "other": b"x" * len(whole),
            "blank": whole[:middle] + bytes(4 * 4096) + whole[middle + 4 * 4096 :],  # as a loss of power leaves it
        }[damage]
    )
    read(cache, samples)
    assert file.read_bytes() == whole and len(decoded) == 2


def test_a_folder_that_cannot_be_written_to_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"--cache disk: .*file/images cannot be written to .*SSD_CACHE"):
        DiskCache.create(tmp_path / "file" / "images")


def test_memory_within_the_limits_of_containers(tmp_path, monkeypatch):
    monkeypatch.setattr(free_memory, "_CGROUPS", tmp_path)
    free = free_memory.available_memory()
    assert free > 1e8
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers in ("", "memory"):
            names = ("memory.max", "memory.current") if not controllers else free_memory._LIMITS[1][:2]
            group = tmp_path / controllers / path.lstrip("/")
            group.mkdir(parents=True, exist_ok=True)
            (group / names[0]).write_text("5000000\n")
            (group / names[1]).write_text("3000000\n")
            (group / "memory.stat").write_text("anon 1\ninactive_file 500000\ntotal_inactive_file 500000\n")
    assert free_memory.available_memory() == 2500000
    for file in (*tmp_path.rglob("memory.max"), *tmp_path.rglob("memory.limit*")):
        file.write_text("max\n")
    assert free_memory.available_memory() > 1e8


class Ranks:
    """Worlds of two processes, each a thread here."""

    def __init__(self, local_ranks):
        self.barrier = Barrier(len(local_ranks))
        self.messages = [None] * len(local_ranks)
        self.worlds = []
        for rank, local_rank in enumerate(local_ranks):
            world = World(rank, len(local_ranks), local_rank)
            object.__setattr__(world, "gathered", lambda message, rank=rank: self.gathered(rank, message))
            self.worlds.append(world)

    def gathered(self, rank, message):
        self.messages[rank] = message
        self.barrier.wait(30)
        return self.messages

    def caches(self, samples):
        with ThreadPoolExecutor(len(self.worlds)) as threads:
            options = Namespace(cache="ram", check=False)
            futures = [threads.submit(run.image_cache, options, samples, LEAST_SIDE, w) for w in self.worlds]
            return futures


def test_processes_of_a_host_share_memory(samples):
    first, second = (future.result() for future in Ranks([0, 1]).caches(samples))
    assert first == second
    first, second = (future.result() for future in Ranks([0, 0]).caches(samples))  # as those of two hosts
    assert first != second


def test_memory_that_is_short_ends_all_processes(samples, monkeypatch):
    monkeypatch.setattr(image_cache, "available_memory", lambda: 1000)
    for future in Ranks([0, 1]).caches(samples):
        with pytest.raises(UserError, match="--cache ram: the 7 training images"):
            future.result()


def test_what_the_option_asks_for(samples, tmp_path, monkeypatch):
    monkeypatch.setenv("SSD_CACHE", str(tmp_path / "downloads"))
    made = {
        (kind, check): run.image_cache(Namespace(cache=kind, check=check), samples, LEAST_SIDE, World())
        for kind in image_cache.KINDS
        for check in (True, False)
    }
    assert made["none", False] is made["none", True] is made["disk", True] is None
    assert made["disk", False] == DiskCache(str(tmp_path / "downloads" / "images"))
    assert isinstance(made["ram", False], RamCache) and isinstance(made["ram", True], RamCache)


def test_a_notice_is_said_once_by_the_first_process(samples):
    (batch, *_) = epochs(samples, None, WorkerPool(0))
    batch = replace(batch, notices=["full", "full"], unreadable=["a.jpg: empty"])
    first, second = (SimpleNamespace(world=World(rank, 2), _said=set()) for rank in (0, 1))
    assert Trainer._messages(first, batch) == ["skipped: a.jpg: empty", "full"]
    assert Trainer._messages(first, batch) == Trainer._messages(second, batch) == ["skipped: a.jpg: empty"]
