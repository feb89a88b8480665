"""Trainings of several processes: the result that one process has, and an end in good order when one of them dies."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from places import REPOSITORY, own_address
from safetensors.numpy import load_file
from small_data import (
    WIDTH,
    emptied,
    environment,
    metrics_without_times,
    run,
    shapes,
    shapes_folder,
    start,
    untrained_run,
)

from ssd300_vgg16 import evaluate, train
from ssd300_vgg16.cli import command_line
from ssd300_vgg16.errors import UserError
from ssd300_vgg16.network.ssd import SSD300
from ssd300_vgg16.training import run as run_module
from ssd300_vgg16.training.run_folder import read_metrics
from ssd300_vgg16.weights.locate import LAST

# A batch that neither 2 nor 3 processes can share evenly, for 5 steps an epoch.
SETTINGS = ("--data-path", "shapes", "--preset", "narrow", "--width", WIDTH, "-b", 5, "-j", 0, "--device", "cpu")
SETTINGS += ("--optimizer", "sgd", "--lr", 1e-4, "--print-freq", 1, "--epochs", 4, "--eval-every", 4)
SETTINGS += ("--background-images", 0.25)
END_SECONDS = 60.0  # within which a job of which a process was killed has to be at its end


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with generated shapes in it, to run commands in; a fifth of the training images hold no object."""
    folder = tmp_path_factory.mktemp("processes")
    emptied(shapes_folder(folder, 25, 5), 5)
    return folder


@pytest.fixture(scope="module")
def trained(place):
    """Makes the run's folder of a whole training by so many processes, once."""

    def train(processes, kind, epochs=2):
        folder = place / f"run{processes}{kind}{epochs}"
        if not folder.exists():
            arguments = (*SETTINGS, kind, "--epochs", epochs, "--output-dir", folder.name)
            process = run("train", *arguments, folder=place, variables={"NPROC": processes})
            assert process.returncode == 0, process.stderr
            assert f"batch 5 over {processes} processes" in process.stdout or processes == 1
        return folder

    return train


def assert_same_training(found: Path, expected: Path):
    """Losses of every step, and how the weights have changed, to float32 rounding."""
    rows, expected_rows = (
        [row for row in read_metrics(folder) if row["kind"] == "training"] for folder in (found, expected)
    )
    assert [row["step"] for row in rows] == list(range(1, 11))
    for name, tolerance in (("localization", 1e-4), ("classification", 1e-4), ("gradient_norm", 5e-3), ("lr", 0)):
        np.testing.assert_allclose([row[name] for row in rows], [row[name] for row in expected_rows], rtol=tolerance)
    # A rounded number may fall on the other side of a ReLU's 0: the gradient has a step there, the loss has none.
    # Few of the steps meet one.
    norms, expected_norms = (np.array([row["gradient_norm"] for row in of]) for of in (rows, expected_rows))
    assert np.count_nonzero(np.abs(norms / expected_norms - 1) > 1e-3) <= 2
    weights, expected_weights = (load_file(folder / LAST) for folder in (found, expected))
    for name, array in expected_weights.items():
        if not name.startswith("optimizer/"):
            np.testing.assert_allclose(weights[name], array, rtol=1e-4, atol=1e-5, err_msg=name)


long = pytest.mark.long


@pytest.mark.parametrize(
    ("processes", "kind"),
    [
        (2, "--no-eager"),
        pytest.param(2, "--eager", marks=long),
        pytest.param(3, "--eager", marks=long),
        pytest.param(3, "--no-eager", marks=long),
    ],
)
def test_any_number_of_processes_gives_the_same_training(trained, processes, kind):
    assert_same_training(trained(processes, kind), trained(1, kind))


def test_a_check_of_compiled_steps_ends_well_in_all(place):
    process = run("train", *SETTINGS, "--check", "--no-eager", folder=place, variables={"NPROC": 2})
    assert (process.returncode, process.stderr) == (0, "")
    assert process.stdout.count("checkpoints: 2 of ") == 1, "one process prints"
    assert process.stdout.splitlines()[-1] == "everything works; nothing was written but that picture"


@pytest.mark.parametrize("processes", [2, pytest.param(3, marks=long)])
def test_a_shared_evaluation_is_exactly_that_of_one_process(place, processes):
    weights = untrained_run(place / f"untrained{processes}")
    numbers = []
    for count in (1, processes):
        arguments = ("--weights", weights, "--data-path", "shapes", "-b", 1, "-j", 0, "--device", "cpu")
        # As many threads for each: products are rounded in another way by more of them.
        process = run("evaluate", *arguments, folder=place, variables={"NPROC": count, "OMP_NUM_THREADS": 1})
        assert process.returncode == 0, process.stderr
        names = ("coco_metrics.json", "detections.json")
        numbers.append([json.loads((weights / name).read_text()) for name in names])
    assert numbers[0] == numbers[1]
    images = [detection["image_id"] for detection in numbers[1][1]]
    assert len(set(images)) == 5, "every image has its detections"
    assert process.stdout.count("AP50 ") == 1, "one process prints"


class Spoken:
    """A world in which the others have said this."""

    def __init__(self, *messages):
        self.messages = messages

    def all_gather(self, message):
        return [message, *(json.dumps({**json.loads(message), **told}).encode() for told in self.messages)]


def test_processes_that_would_not_do_the_same_are_refused(place):
    """Those of other hosts have files and GPUs of their own."""
    train_set, val_set = (shapes(place / "shapes", split) for split in ("train", "val"))
    setup = SimpleNamespace(train_set=train_set, val_set=val_set, eager=False)
    model = SSD300(num_classes=2, width=WIDTH)
    trainer = SimpleNamespace(device="cuda:1", progress=SimpleNamespace(step=7), model=model)
    run_module._refuse_unlike(Spoken({}, {}), trainer, setup)
    for told, message in (
        ({"kind of device": "cpu"}, "process 2 has another kind of device than process 0: cpu instead of cuda"),
        ({"kind of step": "eager"}, "another kind of step than process 0: eager instead of compiled"),
        ({"checkpoint (its step)": 5}, r"another checkpoint \(its step\) than process 0: 5 instead of 7"),
        ({"checksum of the weights": 0}, "another checksum of the weights than process 0: 0 instead of"),
        ({"training data": val_set.fingerprint()}, "another training data than process 0: {'images': 5"),
        ({"validation data": {}}, "another validation data"),
    ):
        with pytest.raises(UserError, match=message):
            run_module._refuse_unlike(Spoken({}, told), trainer, setup)


@pytest.fixture
def asked(monkeypatch):
    """What `supervise` was last asked for, on the first of two hosts; it does nothing."""
    asked = {}

    def supervise(job, command, again, restarts, advice, options):
        asked.update(command=command[4:], again=again, restarts=restarts, advice=advice, options=options)
        return 0

    for module in (train, evaluate):
        monkeypatch.setattr(module, "supervise", supervise)
    for name, value in {"NPROC": "2", "NNODES": "2", "NODE_RANK": "0", "MASTER_ADDR": "10.0.0.1"}.items():
        monkeypatch.setenv(name, value)
    return asked


def test_a_job_is_started_again_from_where_it_is(place, tmp_path, asked):
    """From the beginning as long as there is no run to go on with; with each process's own number of workers."""
    arguments = ["--data-path", str(place / "shapes"), "--output-dir", str(tmp_path / "run"), "--restarts", "5"]
    arguments += ["--weights-backbone", "none"]
    assert train.main(arguments) == 0
    folder = str(tmp_path / "run")
    assert asked["command"] == [*arguments, "--output-dir", folder]
    assert asked["restarts"] == 5
    command = "NNODES=2 NODE_RANK=0 MASTER_ADDR=10.0.0.1 NPROC=2 bash train.sh --resume"
    assert (asked["again"]()[4:], asked["advice"]()) == (asked["command"], "")
    (tmp_path / "run" / "options.json").touch()
    assert asked["advice"]() == f"Go on with:\n  {command} {folder}"
    assert asked["again"]()[4:] == ["--resume", folder]
    (tmp_path / "run" / "options.json").unlink()
    assert train.main([*arguments, "-j", "9"]) == 0
    (tmp_path / "run" / "options.json").touch()
    assert asked["again"]()[4:] == ["--resume", folder, "--workers", "9"]


@pytest.mark.parametrize(("module", "more"), [(train, ["--check", "--weights-backbone", "none"]), (evaluate, [])])
def test_hosts_may_have_the_package_in_different_folders(place, tmp_path, asked, module, more):
    """What has to be the same on all hosts are the options, not the command, which names the package's folder."""
    more = [*more, "--weights", str(tmp_path)] if module is evaluate else more
    arguments = ["--data-path", str(place / "shapes"), *more]
    assert module.main(arguments) == 0
    assert asked["options"] == arguments


def test_a_loss_that_is_not_finite_ends_all_with_its_images_drawn(place):
    arguments = (*SETTINGS, "--lr", 1e30, "--warmup-steps", 0, "--output-dir", "wild")
    process = run("train", *arguments, folder=place, variables={"NPROC": 2})
    assert process.returncode == 2
    (file,) = (place / "wild").glob("not-finite-step-*.jpg")
    (line,) = process.stderr.splitlines()
    assert "is not finite" in line and file.name in line


def test_what_all_processes_refuse_is_said_once(place):
    """Here it is what each finds out of its device."""
    weights = untrained_run(place / "untrained")
    arguments = ("--weights", weights, "--data-path", "shapes", "--amp", "--device", "cpu")
    process = run("evaluate", *arguments, folder=place, variables={"NPROC": 2})
    assert process.returncode == 2
    assert re.fullmatch("eval.sh: --amp: .*\n", process.stderr)


def test_a_broken_image_ends_an_evaluation_of_all(place):
    shapes_copy = shutil.copytree(place / "shapes", place / "broken val")
    (shapes_copy / "val" / "000003.jpg").write_bytes(b"no image")
    weights = untrained_run(place / "untrained")
    arguments = ("--weights", weights, "--data-path", shapes_copy, "-b", 1, "-j", 0, "--device", "cpu")
    process = run("evaluate", *arguments, "--strict-data", folder=place, variables={"NPROC": 2})
    assert process.returncode == 2
    assert "000003.jpg: not an image" in process.stderr
    assert "were killed" not in process.stderr


@pytest.fixture
def job(place):
    """Starts a training of two processes that takes long, and waits for its first steps."""
    processes = []

    def begin(name, *arguments):
        shutil.rmtree(place / name, ignore_errors=True)
        arguments = (*SETTINGS, "--epochs", 999, "--save-every", 1, "--output-dir", name, *arguments)
        process = start("train", *arguments, folder=place, variables={"NPROC": 2}, start_new_session=True)
        processes.append(process)
        for line in process.stdout:
            if " step 3/" in line:
                return process
        pytest.fail(process.stderr.read())

    yield begin
    for process in processes:
        process.kill()
        process.communicate()


def ranks_of(process) -> list[int]:
    """The processes that the supervisor has started: by rank, as Linux lists children by when they began."""
    ranks = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    assert len(ranks) == 2
    return list(map(int, ranks))


def assert_gone(pids):
    deadline = time.monotonic() + 10
    while any(Path(f"/proc/{pid}").exists() for pid in pids):
        assert time.monotonic() < deadline, "processes are left"
        time.sleep(0.02)


@pytest.mark.parametrize("victim", [pytest.param(0, marks=long), 1])
def test_a_killed_process_ends_the_job_with_a_word_and_a_checkpoint(job, place, victim):
    process = job("killed", "--restarts", 0)
    ranks = ranks_of(process)
    os.kill(ranks[victim], signal.SIGKILL)
    _, errors = process.communicate(timeout=END_SECONDS)
    assert process.returncode == 1
    assert re.search(rf"train\.sh: process .*rank {victim}.* was killed by SIGKILL", errors)
    assert "NPROC=2 bash train.sh --resume killed" in errors
    assert_gone(ranks)
    step = read_metrics(place / "killed")[-1]["step"]
    going_on = run("train", "--resume", "killed", "--epochs", 1, "-j", 0, "--device", "cpu", folder=place)
    assert going_on.returncode == 0, going_on.stderr
    assert f"Going on after step {step - 1}." in going_on.stdout or f"Going on after step {step}." in going_on.stdout


# One of several processes, which calls its own OneFlow's port at an address that others know.
CALLED = """
import os, socket, sys
from ssd300_vgg16.distributed.world import this_world
from ssd300_vgg16.ports import internet_sockets
world = this_world()
waits = lambda own: own.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
ports = [each.getsockname()[1] for each in internet_sockets() if waits(each)]
assert ports, "OneFlow listens no more"
for port in ports:
    try:
        socket.create_connection((sys.argv[1], port), timeout=0.5)
        print("answers", file=sys.stderr)
    except TimeoutError:
        socket.create_connection(("127.0.0.1", port), timeout=5)
world.connected().last_barrier()
os._exit(0)
"""


def test_ports_of_processes_on_one_machine_answer_nobody_else():
    """That of OneFlow's start, which is known before, at no time."""
    address = own_address()
    if address.startswith("127."):
        pytest.skip("this machine has no network")
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    command = [sys.executable, REPOSITORY / "tests" / "helpers" / "as_two.py", sys.executable, "-c", CALLED, address]
    silent = 0
    with subprocess.Popen(command, env=environment() | {"MASTER_PORT": str(port)}, stderr=subprocess.PIPE) as job:
        while job.poll() is None:
            try:
                socket.create_connection((address, port), timeout=0.01).close()
                pytest.fail("MASTER_PORT answers")
            except ConnectionRefusedError:
                time.sleep(0.001)
            except TimeoutError:
                silent += 1
        assert (job.returncode, job.stderr.read()) == (0, b"")
    assert silent, "nobody has listened there"


# One of several processes; the one of this rank ends 14 s later: OneFlow's heartbeats are 13 s apart at most. Or the
# other fails before the end.
LEAVING = """
import os, sys, time
from ssd300_vgg16.distributed.world import this_world
world = this_world().connected()
if sys.argv[2] == "in order":
    world.last_barrier()
if world.rank == int(sys.argv[1]):
    time.sleep(14)
os._exit(0)
"""


# The last process fails in a way that nobody has foreseen; the first waits for it.
FAILING = """
import sys
from ssd300_vgg16.cli import command_line
def main(arguments):
    from ssd300_vgg16.distributed.world import this_world
    world = this_world().connected()
    if not world.is_first:
        raise eval(arguments[0])
    world.sum_at_once(0)
command_line.run(main, "train.sh")
"""


@pytest.mark.parametrize(
    ("error", "told"),
    [
        pytest.param("MemoryError('no room')", ["train.sh: memory is short (no room): "], marks=long),
        ("OSError(24, 'Too many open files')", ["train.sh: Too many open files"]),
        ("TypeError('odd')", [f"train.sh: {command_line.BUG}", "Traceback", "TypeError: odd"]),
    ],
)
def test_whatever_ends_a_process_ends_the_job(error, told):
    command = [sys.executable, REPOSITORY / "tests" / "helpers" / "as_two.py", sys.executable, "-c", FAILING, error]
    job = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=END_SECONDS)
    assert job.returncode == 1
    lines = [line for line in job.stderr.splitlines() if not line.startswith("  ")]
    for line, expected in zip(lines, [*told, "train.sh: process 2 of 2 (rank 1, pid "], strict=True):
        assert line.startswith(expected)


@long
def test_processes_may_end_long_after_one_another():
    """Longer than OneFlow waits between two calls of each by each, after which it aborted."""
    command = [sys.executable, REPOSITORY / "tests" / "helpers" / "as_two.py", sys.executable, "-c", LEAVING]
    ways = [(late, how) for late in "01" for how in ("in order", "at once")]
    jobs = [subprocess.Popen([*command, *way], env=environment(), stderr=subprocess.PIPE) for way in ways]
    ends = [(job.communicate(timeout=END_SECONDS)[1], job.returncode) for job in jobs]
    assert ends == [(b"", 0)] * 4


@long
def test_a_killed_process_is_replaced_and_the_training_ends_as_if_nothing_had_been(trained, job, place):
    process = job("replaced", "--eager", "--epochs", 4)
    os.kill(ranks_of(process)[1], signal.SIGKILL)
    output, errors = process.communicate(timeout=2 * END_SECONDS)
    assert process.returncode == 0, errors
    assert "starting again from the last checkpoint (1 of 3)" in errors
    assert "Going on after step" in output
    assert metrics_without_times(place / "replaced") == metrics_without_times(trained(2, "--eager", 4))


@pytest.mark.parametrize("name", ["SIGTERM", *(pytest.param(name, marks=long) for name in ("SIGINT", "SIGUSR1"))])
def test_a_signal_stops_all_processes_after_the_same_step(job, place, name):
    process = job("stopped")
    ranks = ranks_of(process)
    process.send_signal(signal.Signals[name])
    output, _ = process.communicate(timeout=END_SECONDS)
    assert process.returncode == 128 + signal.Signals[name]
    stopped, command = output.splitlines()[-2:]
    assert re.fullmatch(r"Stopped after step \d+\. Go on with:", stopped)
    assert command == "  NPROC=2 bash train.sh --resume stopped"
    assert int(stopped.split()[3].rstrip(".")) == read_metrics(place / "stopped")[-1]["step"]
    assert_gone(ranks)


@long
def test_a_process_that_stands_still_for_a_minute_is_waited_for(job, place):
    """As one that a debugger or a scheduler has stopped; OneFlow's heartbeats are 13 s apart at most."""
    process = job("still")
    ranks = ranks_of(process)
    os.kill(ranks[1], signal.SIGSTOP)
    time.sleep(60)
    before = read_metrics(place / "still")[-1]["step"]
    os.kill(ranks[1], signal.SIGCONT)
    for line in process.stdout:
        if f" step {before % 5 + 1}/" in line:
            break
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=END_SECONDS)
    assert process.returncode == 143, errors
    assert read_metrics(place / "still")[-1]["step"] > before


def test_an_image_that_breaks_in_one_process_is_named_and_ends_all(place):
    shapes = shutil.copytree(place / "shapes", place / "broken")
    (shapes / "train" / "000002.jpg").write_bytes(b"no image")
    arguments = (*SETTINGS, "--data-path", "broken", "--strict-data", "--output-dir", "strict", "--save-every", 1)
    process = run("train", *arguments, folder=place, variables={"NPROC": 2})
    assert process.returncode == 2
    assert "000002.jpg: not an image" in process.stderr
    assert "Traceback" not in process.stderr
    assert (place / "strict" / LAST).exists()
