"""The names users import, and what importing them costs."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import ssd300_vgg16 as ssd
from ssd300_vgg16.runtime import flow

ROOT = Path(ssd.__file__).parents[1]
NAMES = (
    "Detector",
    "SSD300",
    "SSD512",
    "UserError",
    "default_boxes",
    "match",
    "multibox_loss",
    "postprocess",
    "training_targets",
)


def printed(program):
    """The words that a program prints in a fresh interpreter, for which no user has chosen BLAS kernels."""
    environment = {name: value for name, value in os.environ.items() if name != "OPENBLAS_CORETYPE"}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    return done.stdout.split()


def modules_after(statement):
    return set(printed(f"{statement}; import sys; print(*sys.modules)"))


@pytest.mark.parametrize("name", NAMES)
def test_names_resolve(name):
    found = getattr(ssd, name)
    assert callable(found) and found.__name__ == name
    assert found.__doc__ or issubclass(found, Exception)
    assert name in dir(ssd) and tuple(ssd.__all__) == NAMES


@pytest.mark.parametrize("name", ["SSD1024", "flow", "__version_info__"])
def test_unknown_names_raise_attribute_error(name):
    with pytest.raises(AttributeError, match=f"'ssd300_vgg16' has no attribute '{name}'"):
        getattr(ssd, name)


def test_importing_the_package_loads_next_to_nothing_and_leaves_the_environment_alone():
    loaded = modules_after(
        "import os; before = dict(os.environ); import ssd300_vgg16; assert dict(os.environ) == before"
    )
    assert "ssd300_vgg16" in loaded
    assert not loaded & {"oneflow", "numpy", "cv2", "argparse", "ssd300_vgg16.runtime"}


STARTS = ("train", "infer", "evaluate", "export", "weights.__main__", "data.__main__", "detector")


@pytest.mark.parametrize("start", [f"import ssd300_vgg16.{name}" for name in STARTS] + ["ssd300_vgg16.Detector"])
def test_numpy_is_loaded_with_its_kernels_chosen(start):
    """By the command lines, and for those who take the names from the package, or the detector from its module."""
    program = (
        "import sys, os, ssd300_vgg16, ssd300_vgg16.machine as machine\n"
        "machine.processor_flags = lambda: {'avx2'}\n"
        "def look(event, values):\n"
        "    if event == 'import' and values[0] == 'numpy':\n"
        "        print(os.environ.get('OPENBLAS_CORETYPE'))\n"
        "sys.addaudithook(look)\n"
        f"{start}"
    )
    assert printed(program)[0] == "Haswell"


def test_type_checkers_see_the_names_where_they_are():
    tree = ast.parse(Path(ssd.__file__).read_text())
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    assert {alias.asname: node.module for node in block.body for alias in node.names} == {
        name: f"ssd300_vgg16.{home}" for name, home in ssd._HOME_OF.items()
    }


@pytest.mark.parametrize(
    "statement",
    [
        f"import ssd300_vgg16; ssd300_vgg16.{name}"
        for name in ("default_boxes", "match", "training_targets", "UserError")
    ]
    # What data workers load: their processes stay small.
    + ["import ssd300_vgg16.data.loader, ssd300_vgg16.data.coco, ssd300_vgg16.boxes"],
)
def test_what_is_numpy_only_does_not_load_oneflow(statement):
    assert "oneflow" not in modules_after(statement)


def test_the_detector_loads_what_it_detects_with_alone():
    """Starting must not cost what is not used."""
    loaded = modules_after("import ssd300_vgg16.detector")
    assert "onnxruntime" in loaded
    assert not loaded & {f"ssd300_vgg16.data.{name}" for name in ("augment", "workers", "loader")}
    assert not loaded & {"ssd300_vgg16.weights.download", "requests", "pooch", "oneflow", "numba", "onnx", "matplotlib"}


def test_from_images_to_losses_and_detections():
    """The calls of the public interface, one after another."""
    model = ssd.SSD300(num_classes=4, width=0.05)
    images = np.random.default_rng(0).integers(0, 256, (2, 3, 300, 300), dtype=np.uint8)
    offsets, logits = model(flow.from_numpy(images))
    boxes = ssd.default_boxes()
    objects = np.array([[20, 30, 200, 180]], dtype=np.float32)
    matched = ssd.match(objects, boxes)
    target_offsets, target_labels = ssd.training_targets(objects, np.array([3]), boxes)
    assert set(target_labels[matched == 0]) == {3}
    targets = (flow.from_numpy(np.stack([array, array])) for array in (target_offsets, target_labels))
    losses = ssd.multibox_loss(offsets, logits, *targets)
    assert {name: (loss.shape, bool(loss.item() > 0)) for name, loss in losses.items()} == {
        "localization": ((), True),
        "classification": ((), True),
    }
    found = ssd.postprocess(offsets, logits, [(480, 640), (300, 300)])
    assert [set(entry) for entry in found] == [{"boxes", "scores", "labels"}] * 2
