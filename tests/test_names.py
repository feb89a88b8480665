"""Names of files and classes that rule a terminal, or are no text at all: no command stumbles over or shows them."""

import errno
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import cv2
import pytest
from small_data import WIDTH, colours, environment

from ssd300_vgg16.data.images import ImageError
from ssd300_vgg16.errors import told

FILES = [b"caf\xe9", b"a\nb", b"\x1b[31mred", "\u202egpj.exe".encode(), b"=cmd", b"<img src=x>"]
CLASSES = ["\x1b[2Jevil\ntwo", "\u202e=<b>"]
SHORT = ("--preset", "narrow", "--width", WIDTH, "-b", 3, "-j", 0, "--iterations", 2, "--warmup-steps", 0)
RULES = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202e\ud800-\udfff]|^two|^b.png", re.MULTILINE)


# The command lines in one process.
ONE_BY_ONE = """
import importlib, json, sys
from ssd300_vgg16.cli import command_line
for module, *sys.argv[1:] in json.loads(sys.argv[1]):
    try:
        command_line.run(importlib.import_module(f"ssd300_vgg16.{module}").main, module)
    except SystemExit as end:
        print(f"status {end.code} of {module}")
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a data set in YOLO's layout, and a file that is no image."""
    folder = tmp_path_factory.mktemp("names")
    data = folder / os.fsdecode(b"set\xe9")
    for split in ("train", "val"):
        for kind in ("images", "labels"):
            (data / kind / split).mkdir(parents=True)
        for number, name in enumerate(map(os.fsdecode, FILES)):
            png = cv2.imencode(".png", colours(seed=number))[1]
            (data / "images" / split / f"{name}.png").write_bytes(png.tobytes())
            (data / "labels" / split / f"{name}.txt").write_text("0 .4 .4 .3 .4\n1 .7 .7 .3 .4\n")
    (data / "data.yaml").write_text(f"train: images/train\nval: images/val\nnames: {json.dumps(CLASSES)}")
    (data / "images" / "val" / "a\nb\x1b[8m.jpg").write_text("no image")
    return folder


def test_no_command_stumbles_over_them_or_prints_them(place):
    data = next(place.glob("set*"))
    on_data = ("--data-path", data, "--device", "cpu")
    commands = [
        ("train", *SHORT, *on_data, "--output-dir", "run"),
        ("evaluate", "--weights", "run", "--output-dir", "evaluated", *on_data),
        ("infer", "--weights", "run", "--save-txt", "--save-csv", "--save-crop", data / "images" / "val"),
        ("data.__main__", "inspect", data, "--output-dir", "inspected"),
        ("report.__main__", "run", "run"),
    ]
    command = [sys.executable, "-c", ONE_BY_ONE, json.dumps([[*map(str, command)] for command in commands])]
    process = subprocess.run(command, cwd=place, env=environment(), capture_output=True, text=True, timeout=300)
    said = process.stdout + process.stderr
    assert process.returncode == 0, said
    assert [line for line in said.splitlines() if line.startswith("status ")] == [
        f"status {int(module == 'infer')} of {module}"  # which tells so that a file is broken
        for module, *_ in commands
    ]
    assert not RULES.search(said), said
    rows = json.loads((place / "detections" / "detections.json").read_text())
    assert {row["category_name"] for row in rows} <= set(CLASSES)
    assert {Path(row["file_name"]).name for row in rows} == {f"{os.fsdecode(name)}.png" for name in FILES}


def test_an_error_names_a_file_in_one_line():
    assert str(ImageError("a\nb\x1b[8m.jpg", "the file is empty")) == "a?b?[8m.jpg: the file is empty"
    assert told(OSError(errno.ENOENT, "No such file", b"a\nb\xe9")) == "a?b?: No such file"
    assert len(told(OSError(errno.ENAMETOOLONG, "File name too long", "x" * 10**6))) < 600
