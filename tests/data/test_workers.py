"""Worker processes: order, look-ahead, exceptions, deaths, and nothing left behind."""

import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import time
from multiprocessing.connection import Connection
from pathlib import Path

import cv2
import numpy as np
import pytest
from small_data import environment, shapes, shapes_folder

from ssd300_vgg16.data.loader import BatchConfig, epoch_order, training_batches
from ssd300_vgg16.data.workers import TASKS_AHEAD_PER_WORKER, WorkerPool
from ssd300_vgg16.errors import UserError
from ssd300_vgg16.network.variants import default_boxes

pytestmark = pytest.mark.usefixtures("no_hang")

# Pipes hold 64 KB: of more than that, a part has been sent when the other end dies.
SMALL, LARGE = 10, 1_000_000


@pytest.fixture(scope="module")
def pools():
    """Pools of 0, 1 and 2 workers, for tests that leave them alive."""
    with WorkerPool(0) as inline, WorkerPool(1) as single, WorkerPool(2) as pair:
        yield inline, single, pair


@pytest.fixture(params=[0, 1, 2])
def pool(request, pools):
    return pools[request.param]


def square(number):
    return number * number


def square_later(number):
    time.sleep(0.05 * (5 - number))
    return number * number


def process_id(_):
    return os.getpid()


def fail_at_three(number):
    if number == 3:
        raise ValueError("three is bad")
    return number


def exit_at_three(task):
    if task[0] == 3:
        os._exit(1)
    return task


def killed_at_three(task):
    if task[0] == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return task


def killed_while_answering(task):
    def half(connection, message):
        os.write(connection.fileno(), len(message).to_bytes(4, "big") + bytes(message[:100]))
        os.kill(os.getpid(), signal.SIGKILL)

    if task[0] == 3:
        Connection._send_bytes = half
    return task


def state_of_process(_):
    return "oneflow" in sys.modules, cv2.getNumThreads()


def sleep_for_ever(_):
    time.sleep(3600)


def test_results_come_in_the_order_of_the_tasks(pool):
    assert list(pool.map(square_later, range(5))) == [0, 1, 4, 9, 16]
    assert list(pool.map(square, [])) == []
    assert list(pool.map(square, range(30))) == [number * number for number in range(30)]


def test_work_is_done_in_other_processes_only_if_there_are_workers(pool):
    processes = set(pool.map(process_id, range(8)))
    assert (os.getpid() in processes) == (pool.workers == 0)
    assert len(processes) <= max(1, pool.workers)


def test_tasks_are_taken_a_few_ahead_only(pool):
    taken = []
    results = pool.map(square, (taken.append(number) or number for number in range(100)))
    for number in range(3):
        next(results)
        # As each result is handed out, the task that takes its place has been taken.
        ahead = TASKS_AHEAD_PER_WORKER * pool.workers
        assert len(taken) == number + 1 + ahead


def mark(path):
    path.touch()
    return path.name


def test_a_process_goes_on_while_nobody_asks(pools, tmp_path):
    """As a training step may take long, and hold Python's lock."""
    results = pools[1].map(mark, [tmp_path / str(number) for number in range(9)])
    assert next(results) == "0"
    while len(list(tmp_path.iterdir())) < 1 + TASKS_AHEAD_PER_WORKER:
        pass  # no_hang ends it
    assert list(results) == list(map(str, range(1, 9)))


def large_answer(task):
    return task[0], "x" * LARGE


def test_tasks_and_answers_that_fill_the_pipe_do_not_wait_for_one_another(pool):
    tasks = [(number, "x" * LARGE) for number in range(9)]
    assert [number for number, _ in pool.map(large_answer, tasks)] == list(range(9))


def test_two_rounds_can_be_under_way_and_one_be_given_up(pool):
    ones, others = pool.map(square, range(9)), pool.map(square_later, range(5))
    found = [(next(ones), next(others)) for _ in range(3)]
    assert found == [(number * number, number * number) for number in range(3)]
    others.close()
    assert list(ones) == [9, 16, 25, 36, 49, 64]


def test_exceptions_of_the_function_arrive(pool):
    results = pool.map(fail_at_three, range(10))
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ValueError, match="three is bad") as caught:
        next(results)
    if pool.workers:
        assert "in fail_at_three" in str(caught.value.__cause__), "the place in the worker is not told"
    assert list(pool.map(square, [2])) == [4]


@pytest.mark.parametrize(
    ("die", "size", "workers", "restarts"),
    [
        (exit_at_three, SMALL, 2, 0),
        (exit_at_three, LARGE, 1, 0),
        (killed_at_three, LARGE, 2, 0),
        (killed_at_three, SMALL, 2, 2),
        (killed_while_answering, SMALL, 1, 0),
        (killed_while_answering, LARGE, 2, 0),
    ],
)
def test_a_death_is_an_error_and_not_a_hang(die, size, workers, restarts):
    tasks = [(number, np.zeros(size, dtype=np.uint8)) for number in range(20)]
    received, notices, others = [], [], set(multiprocessing.active_children())
    end = "ended with status 1" if die is exit_at_three else "was killed by SIGKILL"
    told = pytest.raises(UserError, match=rf"process {end} while .*\(3, array.* -j 1")
    with WorkerPool(workers, restarts, notices.append) as pool, told:
        for number, _ in pool.map(die, tasks):
            received.append(number)
    assert received == [0, 1, 2] and len(notices) == restarts
    assert set(multiprocessing.active_children()) == others


def killed_the_first_time(task):
    """Tasks are a folder, for marks that outlive a process, and a number; 3 and 7 kill the process, once."""
    folder, number = task
    mark = folder / str(number)
    if number in (3, 7) and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return number


@pytest.mark.parametrize("workers", [1, 2])
def test_a_killed_process_is_replaced_and_its_task_done_again(tmp_path, workers):
    notices, others = [], set(multiprocessing.active_children())
    with WorkerPool(workers, restarts=2, notify=notices.append) as pool:
        assert list(pool.map(killed_the_first_time, [(tmp_path, number) for number in range(12)])) == list(range(12))
        assert len(set(multiprocessing.active_children()) - others) == workers
        assert list(pool.map(square, range(3))) == [0, 1, 4]
    assert set(multiprocessing.active_children()) == others
    assert notices == [
        f"a data loading process was killed by SIGKILL while it prepared {(tmp_path, number)!r}; "
        f"another takes its place ({times} of 2)"
        for times, number in ((1, 3), (2, 7))
    ]


def log_and_be_killed_once(task):
    number, folder = task
    if number == 1 and not (folder / "killed").exists():
        (folder / "killed").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    with (folder / "log").open("a") as log:
        log.write(str(number))


def test_after_a_death_tasks_are_done_in_their_order(tmp_path):
    with WorkerPool(1, restarts=1, notify=lambda _: None) as pool:
        list(pool.map(log_and_be_killed_once, [(number, tmp_path) for number in range(5)]))
    assert (tmp_path / "log").read_text() == "01234"


def test_the_files_of_a_task_are_named(tmp_path):
    samples = shapes(shapes_folder(tmp_path, 2, 1), "train").samples
    batch_config = BatchConfig(1, "none", 0, default_boxes(), 300)
    files = [str(samples[index].path) for (index,) in epoch_order(2, 1, seed=0, epoch=0)]
    story = f"a data loading process was killed by SIGKILL while it prepared {files[0]}"
    notices, others = [], set(multiprocessing.active_children())
    with WorkerPool(1, restarts=1, notify=notices.append) as pool:

        def kill_and_train():
            (worker,) = set(multiprocessing.active_children()) - others
            os.kill(worker.pid, signal.SIGKILL)
            return [batch.files for batch in training_batches(samples, batch_config, 0, pool)]

        assert kill_and_train() == [[file] for file in files]
        assert notices == [f"{story}; another takes its place (1 of 1)"]
        with pytest.raises(UserError) as caught:
            kill_and_train()
    assert str(caught.value).startswith(f"{story}: if memory is short, run again with fewer")


@pytest.mark.parametrize("signal_number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP])
def test_what_asks_for_an_end_is_left_to_the_parent(signal_number):
    others = set(multiprocessing.active_children())
    with WorkerPool(1) as pool:
        (worker,) = set(multiprocessing.active_children()) - others
        for _ in range(2):  # as it starts, and at work
            os.kill(worker.pid, signal_number)
            assert list(pool.map(square, [3])) == [9]
    assert signal_number not in signal.pthread_sigmask(signal.SIG_BLOCK, [])


def test_workers_use_one_core_and_no_oneflow(pools):
    for pool in pools[1:]:
        assert set(pool.map(state_of_process, range(8))) == {(False, 1)}


def page_faults(size):
    """Of the second half of some rounds, in which arrays are made and dropped as those of images are."""
    counts = []
    for _ in range(2):
        for _ in range(20):
            [np.ones(size, dtype=np.uint8) for _ in range(4)]
        counts.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
    return counts[1] - counts[0]


@pytest.mark.parametrize("workers", [0, 1])
def test_the_memory_of_former_images_is_kept(workers):
    with WorkerPool(workers) as pool:
        assert max(pool.map(page_faults, [1 << 20, 20 << 20])) < 100, "new pages for each image"


def test_close_drops_what_is_not_finished_and_starts_nothing():
    notices, others = [], set(multiprocessing.active_children())
    with WorkerPool(1, restarts=9, notify=notices.append) as pool:
        results = pool.map(sleep_for_ever, range(10))
        signal.signal(signal.SIGALRM, signal.default_int_handler)
        signal.setitimer(signal.ITIMER_REAL, 1)
        with pytest.raises(KeyboardInterrupt):
            next(results)
    assert set(multiprocessing.active_children()) == others and notices == []


def test_workers_do_not_outlive_a_killed_parent(tmp_path):
    script = tmp_path / "parent.py"
    script.write_text(
        "import multiprocessing, time\n"
        "from ssd300_vgg16.data.workers import WorkerPool\n"
        "if __name__ == '__main__':\n"
        "    pool = WorkerPool(2)\n"
        "    list(pool.map(str, range(4)))\n"
        "    print(*[child.pid for child in multiprocessing.active_children()], flush=True)\n"
        "    time.sleep(3600)\n"
    )
    with subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True, env=environment()) as parent:
        pids = parent.stdout.readline().split()
        parent.kill()
    assert len(pids) == 2
    while any(_is_alive(pid) for pid in pids):
        time.sleep(0.01)


def _is_alive(pid: str) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"
