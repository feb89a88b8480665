"""The self-test: what is right is ok, and what is broken is seen, named, and does not end the rest."""

import faulthandler
import multiprocessing
import os
from types import SimpleNamespace

import numpy as np
import pytest

from ssd300_vgg16 import self_test
from ssd300_vgg16.network.cpu import loss as loss_kernels
from ssd300_vgg16.network.cpu import narrow
from ssd300_vgg16.runtime import __main__ as runtime_command
from ssd300_vgg16.self_test import Speed, checks
from ssd300_vgg16.self_test.checks import FLOAT32, HALF, TF32, Check, Way
from ssd300_vgg16.training.step import GraphStep

TRAINING = ["loss of step 1", "loss of step 2", "gradients", "update", "resumed step"]
COMPILED = Way("cpu", eager=False, amp=False, tolerance=FLOAT32)


@pytest.fixture(autouse=True)
def few_channels(monkeypatch):
    """A network of a few channels, and no figures of another test's."""
    for name in ("FULL_WIDTH", "CPU_TRAINING_WIDTH"):
        monkeypatch.setattr(checks, name, 0.02)
    for cached in (checks._expected_answers, checks._expected_training, checks._given_answers):
        cached.cache_clear()


def failed(found):
    return [check.name for check in found if not check.ok]


def broken(function):
    """Its answer, a tenth too large."""
    return lambda *arguments, **options: function(*arguments, **options) * np.float32(1.1)


def test_the_network_agrees_with_flowvision():
    found = list(checks.beside_flowvision("cpu"))
    assert [check.name for check in found] == ["offsets", "class logits"]
    assert max(check.difference for check in found) < 1e-5


@pytest.mark.long
def test_what_is_compiled_agrees_with_single_operations():
    assert not failed(checks.network(COMPILED)) and not failed(checks.loss(COMPILED))
    assert not failed(checks.postprocessing("cpu"))
    trained = list(checks.training(COMPILED))
    assert [check.name for check in trained] == TRAINING and not failed(trained)
    half = Way("cpu", eager=False, amp=True, tolerance=HALF)  # which changes nothing on the CPU, but takes its way
    assert not failed(checks.training(half))


def test_a_broken_kernel_is_seen(monkeypatch):
    monkeypatch.setattr(narrow.Convolution, "forward", broken(narrow.Convolution.forward))
    assert failed(checks.network(COMPILED)) == ["offsets", "class logits"]


def test_a_broken_loss_is_seen(monkeypatch):
    kernel = loss_kernels.multibox_loss
    monkeypatch.setattr(
        loss_kernels, "multibox_loss", lambda *tensors: (kernel(*tensors)[0] * 1.1, *kernel(*tensors)[1:])
    )
    assert failed(checks.loss(COMPILED)) == ["localization", "classification"]


def test_a_training_that_does_not_go_on_where_it_stopped_is_seen(monkeypatch):
    monkeypatch.setattr(GraphStep, "restore", lambda step, state: None)
    assert failed(checks.training(COMPILED)) == ["resumed step"]


def test_the_command_reports_everything_and_names_what_failed(monkeypatch, capfd):
    def raises():
        yield Check("first", 0.0, 1.0)
        raise RuntimeError("no kernel\nimage")

    def aborts():
        yield Check("second", 0.0, 1.0)
        faulthandler.disable()  # which is pytest's
        os.write(2, b"Check failed: stream\n")
        os.abort()

    groups = [
        ("broken", raises),
        ("differs", lambda: [Check("logits", 0.5, 0.1)]),
        ("aborts", aborts),
        ("ends at once", lambda: os._exit(3)),
        ("speed of training", lambda: [Speed("9.0 images/s")]),
        ("speed of detection", lambda: 1 / 0),
        ("right", lambda: [Check("x", 0, 1)]),
    ]
    monkeypatch.setattr(self_test, "groups", lambda device: iter(groups))
    monkeypatch.setattr(self_test, "PROCESSES", multiprocessing.get_context("fork"))  # which know these groups
    assert runtime_command.main(["--self-test", "--device", "cpu"]) == 1
    report = capfd.readouterr().out
    assert "oneflow   0.9.0" in report and "package   0.1.0" in report
    assert "RuntimeError: no kernel image (self_test/__init__.py, line " in report
    assert "FAILED  ZeroDivisionError" in report
    assert "Check failed: stream\n" in report and "FAILED  the process was killed by SIGABRT\n" in report
    assert "FAILED  the process ended with status 3\n" in report
    lines = report.splitlines()
    places = [lines.index(title) for title, _ in groups]
    assert places == sorted(places) and "  9.0 images/s" in lines
    verdict = lines[-6:]
    assert verdict[0].startswith("9 checks on cpu in ") and verdict[0].endswith("s: FAILED")
    failed = ["broken", "differs", "aborts", "ends at once", "speed of detection"]
    assert [line.strip().partition(":")[0] for line in verdict[1:]] == failed
    del groups[:-1]
    assert runtime_command.main(["--self-test", "--device", "cpu"]) == 0
    assert capfd.readouterr().out.endswith("s: ok\n")


@pytest.mark.parametrize(
    ("found", "expected"), [([1.0, 2.1], 0.05), ([1.0, np.nan], np.nan), ([1.0, 2.0, 3.0], np.inf)]
)
def test_differences_are_parts_of_the_largest_value(found, expected):
    difference = checks.difference(np.array(found, np.float32), np.array([1.0, 2.0], np.float32))
    np.testing.assert_allclose(difference, expected, rtol=1e-5)
    assert not Check("x", difference, 1e-2).ok


def test_float32_is_tf32_on_gpus_that_have_it(monkeypatch):
    monkeypatch.delenv("NVIDIA_TF32_OVERRIDE", raising=False)
    capabilities = {"cuda:0": (7, 5), "cuda:1": (8, 6)}
    monkeypatch.setattr(checks.flow.cuda, "get_device_capability", capabilities.get)
    assert [checks.float32_of(device) for device in ("cpu", "cuda:0", "cuda:1")] == [FLOAT32, FLOAT32, TF32]
    assert [way.name for way in checks.ways_of("cuda:1")] == [
        "in single operations, TF32",
        "compiled, TF32",
        "compiled, half",
    ]
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "0")
    assert checks.float32_of("cuda:1") is FLOAT32


def test_gpu_and_driver_are_named(monkeypatch, tmp_path):
    gpu = SimpleNamespace(name="NVIDIA T4", total_memory=15 << 30, major=7, minor=5)
    monkeypatch.setattr(self_test.flow.cuda, "get_device_properties", lambda device: gpu)
    (tmp_path / "version").write_text("NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.104.05  Sat Aug 19\n")
    monkeypatch.setattr(self_test, "DRIVER", tmp_path / "version")
    library = SimpleNamespace(cuDriverGetVersion=lambda version: setattr(version._obj, "value", 12020))
    monkeypatch.setattr(self_test.ctypes, "CDLL", lambda name: library)
    assert self_test._facts("cuda").splitlines()[1:] == [
        "gpu       NVIDIA T4, 15.0 GiB, compute capability 7.5",
        "driver    535.104.05, CUDA 12.2",
    ]


def test_an_unknown_device_is_refused(capsys):
    assert runtime_command.main(["--self-test", "--device", "tpu"]) == 2
    assert "--device tpu: write cpu, cuda or cuda:N" in capsys.readouterr().err
