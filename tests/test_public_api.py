"""The names users import, and what importing them costs."""

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
