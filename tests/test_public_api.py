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


def modules_after(statement):
    """The modules that a fresh interpreter has loaded after the statement."""
    program = f"{statement}; import sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_all():
    assert tuple(ssd.__all__) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_names_resolve(name):
    found = getattr(ssd, name)
    assert callable(found)
    assert found.__name__ == name
    assert found.__doc__ or issubclass(found, Exception)
    assert name in dir(ssd)


@pytest.mark.parametrize("name", ["SSD1024", "flow", "__version_info__"])
def test_unknown_names_raise_attribute_error(name):
    with pytest.raises(AttributeError, match=f"'ssd300_vgg16' has no attribute '{name}'"):
        getattr(ssd, name)
    assert not hasattr(ssd, name)


def test_importing_the_package_loads_next_to_nothing():
    loaded = modules_after("import ssd300_vgg16")
    assert "ssd300_vgg16" in loaded
    assert not loaded & {"oneflow", "numpy", "cv2", "argparse", "ssd300_vgg16.runtime"}


def test_importing_the_package_leaves_the_environment_alone():
    program = "import os; before = dict(os.environ); import ssd300_vgg16; assert dict(os.environ) == before"
    environment = {name: value for name, value in os.environ.items() if name != "OPENBLAS_CORETYPE"}
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=environment, check=True)


COMMANDS = ("train", "infer", "evaluate", "export", "weights.__main__", "data.__main__")


@pytest.mark.parametrize("start", [f"import ssd300_vgg16.{name}" for name in COMMANDS] + ["ssd300_vgg16.Detector"])
def test_numpy_is_loaded_with_its_kernels_chosen(start):
    """By the command lines, and by who takes the names from the package."""
    program = (
        "import sys, os, ssd300_vgg16, ssd300_vgg16.machine as machine\n"
        "machine.processor_flags = lambda: {'avx2'}\n"
        "def look(event, values):\n"
        "    if event == 'import' and values[0] == 'numpy':\n"
        "        print(os.environ.get('OPENBLAS_CORETYPE'))\n"
        "sys.addaudithook(look)\n"
        f"{start}"
    )
    environment = {name: value for name, value in os.environ.items() if name != "OPENBLAS_CORETYPE"}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split()[0] == "Haswell"


def test_type_checkers_see_the_names_where_they_are():
    tree = ast.parse(Path(ssd.__file__).read_text())
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    assert {alias.asname: node.module for node in block.body for alias in node.names} == {
        name: f"ssd300_vgg16.{home}" for name, home in ssd._HOME_OF.items()
    }


@pytest.mark.parametrize("name", ["default_boxes", "match", "training_targets", "UserError"])
def test_what_is_numpy_only_does_not_load_oneflow(name):
    assert "oneflow" not in modules_after(f"import ssd300_vgg16; ssd300_vgg16.{name}")


def test_data_and_boxes_do_not_load_oneflow():
    """The data workers' processes stay small."""
    loaded = modules_after("import ssd300_vgg16.data.loader, ssd300_vgg16.data.coco, ssd300_vgg16.boxes")
    assert "numpy" in loaded
    assert "oneflow" not in loaded


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
