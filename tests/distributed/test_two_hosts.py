"""Two hosts, each with an address of its own (network namespaces on one machine), one of which is cut off."""

import os
import re
import subprocess
import sys
import time

import pytest
from small_data import WIDTH, environment, shapes_folder

from ssd300_vgg16.training.run_folder import read_metrics
from ssd300_vgg16.weights.locate import LAST
from ssd300_vgg16.weights.model import load_model

ADDRESSES = ("10.99.0.1", "10.99.0.2")
PEER_TIMEOUT = 3
END_SECONDS = 30.0  # after the cut, on a machine with other things to do


def ip(*arguments) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, timeout=30)


@pytest.fixture
def hosts():
    """Names of two network namespaces that reach each other, and of the first one's interface."""
    names = [f"ssd{os.getpid()}{letter}" for letter in "ab"]
    made = []
    try:
        for name in names:
            ip("netns", "add", name)
            made.append(name)
        ip("link", "add", "ends", "netns", names[0], "type", "veth", "peer", "name", "ends", "netns", names[1])
        for name, address in zip(names, ADDRESSES, strict=True):
            ip("-n", name, "addr", "add", f"{address}/24", "dev", "ends")
            ip("-n", name, "link", "set", "lo", "up")
            ip("-n", name, "link", "set", "ends", "up")
    except (OSError, subprocess.SubprocessError) as error:
        for name in made:
            subprocess.run(["ip", "netns", "del", name], check=False)
        pytest.skip(f"no network namespaces here: {error} {getattr(error, 'stderr', '')}")
    yield names
    for name in names:
        ip("netns", "del", name)


@pytest.fixture
def start(hosts, tmp_path):
    """Starts the same training on both hosts."""
    processes = []

    def start(*arguments) -> list[subprocess.Popen]:
        common = {"NNODES": "2", "NPROC": "1", "MASTER_ADDR": ADDRESSES[0], "SSD_PEER_TIMEOUT": str(PEER_TIMEOUT)}
        for rank, host in enumerate(hosts):
            command = ["ip", "netns", "exec", host, sys.executable, "-m", "ssd300_vgg16.train", *map(str, arguments)]
            variables = {**environment(), **common, "NODE_RANK": str(rank)}
            pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
            processes.append(subprocess.Popen(command, cwd=tmp_path, env=variables, **pipes))
        return processes[-2:]

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def test_a_host_that_is_cut_off_ends_both_with_a_word_and_a_checkpoint(hosts, start, tmp_path):
    shapes_folder(tmp_path, 8, 2)
    settings = ("--preset", "narrow", "--width", WIDTH, "-b", 4, "-j", 0, "--device", "cpu", "--data-path", "shapes")
    often = ("--epochs", 999, "--eval-every", 999, "--save-every", 1, "--print-freq", 1)
    begun = start(*settings, *often, "--output-dir", "run")
    for line in begun[0].stdout:
        if "epoch 2/999 step 2/2" in line:
            break
    cut_at = time.monotonic()
    ip("-n", hosts[1], "link", "set", "ends", "down")
    ends = [process.communicate(timeout=END_SECONDS + PEER_TIMEOUT) for process in begun]
    assert time.monotonic() - cut_at < END_SECONDS
    for process, (_, errors), other in zip(begun, ends, (1, 0), strict=True):
        assert process.returncode == 1, errors
        lost = rf"train\.sh: host {other} \({ADDRESSES[other]}\) has not been heard from for {PEER_TIMEOUT} s"
        assert re.search(lost, errors)
        assert f"MASTER_ADDR={ADDRESSES[0]} NPROC=1 bash train.sh --resume" in errors
    assert load_model(tmp_path / "run" / LAST)[1].width == WIDTH
    done = read_metrics(tmp_path / "run")[-1]["step"]

    ip("-n", hosts[1], "link", "set", "ends", "up")
    epochs = done // 2 + 1
    resumed = start("--resume", "run", "--epochs", epochs, "-j", 0, "--device", "cpu")
    outputs = [process.communicate(timeout=120) for process in resumed]
    assert [process.returncode for process in resumed] == [0, 0], outputs
    steps = [row["step"] for row in read_metrics(tmp_path / "run") if row["kind"] == "training"]
    assert steps == list(range(1, 2 * epochs + 1)), "every step is told once"
