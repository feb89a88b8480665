"""The self-test: SSD300 here and flowvision's own agree, and it notices where they do not."""

import numpy as np
import pytest

from ssd300_vgg16 import runtime, self_test

STAGES = ["image", "conv4_3", "fc7", "conv8_2", "conv9_2", "conv10_2", "conv11_2"]
STAGES += ["offsets", "class logits", "default boxes"]


@pytest.fixture(scope="module")
def comparisons():
    return self_test.compare("cpu")


def test_every_stage_agrees_with_flowvision(comparisons):
    assert [each.stage for each in comparisons] == STAGES
    for each in comparisons:
        assert each.largest_value > 1, each
        assert each.difference <= 1e-5 * each.largest_value, each
    assert len(self_test.table(comparisons).splitlines()) == 1 + len(STAGES)


def test_the_command_ends_with_status_0_if_all_agree(comparisons, monkeypatch, capsys):
    monkeypatch.setattr(self_test, "compare", lambda device: comparisons)
    assert runtime.main(["--self-test", "--device", "cpu"]) == 0
    assert capsys.readouterr().out.endswith("self-test on cpu: equal to flowvision\n")


@pytest.mark.parametrize(
    "wrong", [np.array([1.0, 2.1], np.float32), np.array([1.0, np.nan], np.float32), np.ones(3, np.float32)]
)
def test_the_command_names_the_stage_that_differs(monkeypatch, capsys, wrong):
    right = np.array([1.0, 2.0], dtype=np.float32)
    made = [self_test._comparison("fc7", right, right), self_test._comparison("offsets", wrong, right)]
    monkeypatch.setattr(self_test, "compare", lambda device: made)
    assert runtime.main(["--self-test", "--device", "cpu"]) == 1
    *_, row, last = capsys.readouterr().out.splitlines()
    assert row.startswith("offsets") and row.endswith("DIFFERENT")
    assert last == "self-test on cpu: DIFFERENT from flowvision: offsets"


def test_an_unknown_device_is_refused(capsys):
    assert runtime.main(["--self-test", "--device", "tpu"]) == 2
    assert "--device tpu: write cpu, cuda or cuda:N" in capsys.readouterr().err
