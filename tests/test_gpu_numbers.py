"""The network on torch in OneFlow's place: every name is mapped, and where there is a torch, the numbers agree."""

import ast
import os
import sys
from pathlib import Path

import pytest
from places import REPOSITORY

sys.path.insert(0, str(REPOSITORY))  # the benchmarks are run from there, and never installed

from benchmarks import gpu_numbers
from benchmarks.frame import DEFAULT_PEER_PYTHON, Options, find_peers

NETWORK = REPOSITORY / "ssd300_vgg16" / "network"
MODULES = {"flow", "nn"}


def names_used(path):
    """What a file asks of OneFlow, outside of types: "_C.conv2d", "nn.Module"."""
    tree = ast.parse(path.read_text())
    if_types = [node for node in ast.walk(tree) if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)]
    skipped = {id(child) for node in if_types for part in node.body for child in ast.walk(part)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and id(node) not in skipped:
            chain = ast.unparse(node)
            root, _, rest = chain.partition(".")
            if root in MODULES and chain.replace(".", "_").isidentifier():
                yield rest if root == "flow" else chain


def test_every_name_that_the_network_asks_of_oneflow_has_its_counterpart():
    mapped = gpu_numbers.SAME_NAMES | gpu_numbers.OTHER_NAMES.keys()
    used = {name for path in NETWORK.glob("*.py") for name in names_used(path)}
    assert {"_C.conv2d", "nn.Conv2d", "nn.init.zeros_", "argsort", "cat"} <= used
    parts = {".".join(name.split(".")[:end]) for name in mapped for end in range(1, name.count(".") + 1)}
    missing = {name for name in used if name.removesuffix(".forward") not in mapped | parts}
    assert missing == set()
    assert mapped - used == {"autograd.Function"}  # what cpu/ops.py is made of


def test_differences_are_parts_of_the_largest_value():
    import numpy as np

    expected = np.array([1.0, -4.0], dtype=np.float32)
    assert gpu_numbers.difference(np.array([1.0, -4.2], dtype=np.float32), expected) == pytest.approx(0.05)
    assert gpu_numbers.difference(np.ones(3), expected) == float("inf")
    assert gpu_numbers.difference(np.array([np.nan, -4.0]), expected) == float("inf")


def test_without_torch_nothing_is_measured():
    options = Options(1, True, "cpu", Path(), False, None, find_peers(Path("/nowhere/bin/python")))
    assert gpu_numbers.measure(options) == {}
    assert gpu_numbers.table({}).startswith("Largest difference from OneFlow")


def python_with_torch():
    """SSD_PEER_PYTHON, the benchmarks' own environment, or this one."""
    candidates = (os.environ.get("SSD_PEER_PYTHON"), DEFAULT_PEER_PYTHON, sys.executable)
    return next((peers for path in candidates if path and "torch" in (peers := find_peers(Path(path)))), None)


def test_torch_agrees_with_oneflow():
    peers = python_with_torch()
    if peers is None:
        pytest.skip("no torch: SSD_PEER_PYTHON=/path/to/python names a Python that has it")
    figures = gpu_numbers.measure(Options(1, True, "cpu", Path(), False, None, peers))
    float32, half = (
        next(found for name, found in figures.items() if name.endswith(end))
        for end in ("on the CPU", "on the CPU, half")
    )
    assert list(float32) == list(gpu_numbers.ALLOWED)
    assert max(float32.values()) < 1e-5
    # As on the stand-in (gpu/test_gpu_steps.py): cuDNN's, sums of gradients, ReLU and pooling.
    forward = {"convolution", "relu_", "max_pool2d_with_indices"}
    backward = {"convolution_backward", "threshold_backward", "max_pool2d_with_indices_backward", "add"}
    assert set(half.pop(gpu_numbers.IN_HALF)) == forward | backward
    assert all(difference <= gpu_numbers.ALLOWED[what] for what, difference in half.items())
    assert half["forward"] > 100 * float32["forward"], "it has been in half"
    assert "| forward |" in gpu_numbers.table(figures)
