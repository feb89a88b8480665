"""NPROC=2 bash infer.sh: the files of one process, whatever becomes of the processes."""

import json
import os
import re
import signal
import time
from collections import Counter
from pathlib import Path

import pytest
from small_data import run, shapes_folder, start, untrained_run

from ssd300_vgg16.detection.pipeline import DetectorProcesses
from ssd300_vgg16.errors import UserError

IMAGES = 5


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("processes")
    shapes_folder(folder, 1, IMAGES)
    (folder / "shapes" / "val" / "000003.jpg").write_bytes(b"no image")
    untrained_run(folder / "run")
    return folder


def arguments(place, output, *images):
    images = images or [place / "shapes" / "val"]
    return ("--weights", place / "run", "--device", "cpu", "--score-threshold", "0.1", "--output-dir", output, *images)


def files_in(folder):
    return {path.name: path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}


def test_the_same_files_as_with_one_process(place):
    outputs = []
    formats = ("--save-txt", "--save-csv", "--save-crop")
    for count, extra in ((1, formats), (2, formats), (2, (*formats, "-b", "2"))):
        done = run(
            "infer", *arguments(place, f"n{count}{len(extra)}"), *extra, folder=place, variables={"NPROC": count}
        )
        assert done.returncode == 1 and "not read: " in done.stderr and "000003.jpg" in done.stderr
        assert "Traceback" not in done.stderr
        outputs.append(files_in(place / f"n{count}{len(extra)}"))
    assert len(json.loads(outputs[0]["detections.json"])) > 10
    assert Counter(Path(name).suffix for name in outputs[0])[".txt"] == IMAGES - 1
    assert {"data.yaml", "detections.csv", "report.html", "000001.jpg", "000001-001.jpg"} <= outputs[0].keys()
    assert outputs[1] == outputs[0] and outputs[2].keys() == outputs[0].keys()


def test_the_threads_of_the_processes_are_not_the_callers(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    with pytest.raises(UserError, match="no such file"):
        DetectorProcesses(2, Path("nothing"), "cpu", 0.1, "auto")
    assert "OMP_NUM_THREADS" not in os.environ


def test_an_error_that_nobody_has_foreseen_is_raised_here(capfd):
    with pytest.raises(TypeError) as caught:
        DetectorProcesses(2, None, "cpu", 0.1, "auto")
    assert "in _work" in str(caught.value.__cause__), "where it came from"
    assert capfd.readouterr().err == ""


def begun(place, output):
    """A process with two of its own that has many images to go, and has begun."""
    many = place / "many"
    many.mkdir(exist_ok=True)
    for number in range(1500):
        copy = many / f"{number}.jpg"
        copy.exists() or copy.hardlink_to(place / "shapes" / "val" / "000001.jpg")
    process = start("infer", *arguments(place, output, many), folder=place, variables={"NPROC": 2})
    part, deadline = place / output / "detections.json.part", time.monotonic() + 60
    while not (part.exists() and part.stat().st_size > 1000) and time.monotonic() < deadline:
        time.sleep(0.05)
    return process


def test_what_is_wrong_with_several_processes(place):
    for variables, problem in (
        ({"NPROC": "two"}, "NPROC=two is not a whole number"),
        ({"NPROC": 2, "NNODES": 2, "NODE_RANK": 0, "MASTER_ADDR": "x"}, "NNODES=2: infer.sh is for one machine"),
    ):
        done = run("infer", *arguments(place, "wrong"), folder=place, variables=variables)
        assert done.returncode == 2 and problem in done.stderr and "Traceback" not in done.stderr
    bad = ("--weights", place / "shapes" / "val" / "000001.jpg", "--device", "cpu", place / "shapes" / "val")
    done = run("infer", *bad, folder=place, variables={"NPROC": 2})
    assert done.returncode == 2 and "Traceback" not in done.stderr and done.stderr.count("\n") == 1


def test_ctrl_c(place):
    process = begun(place, "stopped")
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in errors
    done = int(re.search(r"Stopped after (\d+) of 1500 images\. Go on with: the same, and --resume", output)[1])
    images = sorted(path.name for path in (place / "many").iterdir())
    pictures = {path.name for path in (place / "stopped").glob("*.jpg")}
    assert 0 < done < len(images) and pictures >= set(images[:done]), "none is left out"
    assert json.loads((place / "stopped" / "detections.json.part").read_text())


def test_one_that_is_killed_ends_all(place):
    process = begun(place, "killed")
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    own = [pid for pid in children if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    assert len(own) == 2
    os.kill(int(own[1]), signal.SIGKILL)
    errors = process.communicate(timeout=60)[1]
    assert process.returncode == 2 and "process 2 of 2 was killed by signal 9" in errors and "Traceback" not in errors
    assert not any(Path(f"/proc/{pid}").exists() for pid in own)
