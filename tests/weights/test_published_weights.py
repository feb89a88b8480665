"""The published detector, in a file of its own format and size, from the file to the published network's answers."""

import numpy as np
import pytest
from foreign_weights import write_pth
from formula_weights import CLOSE, formula_weights, weights_left_unset

from ssd300_vgg16.data.categories import COCO_CATEGORIES
from ssd300_vgg16.network.variants import SSD300_VGG16
from ssd300_vgg16.runtime import flow
from ssd300_vgg16.weights.model import load_model
from ssd300_vgg16.weights.recognise import read_as_ssd


@pytest.fixture(scope="module")
def detector_file(golden, tmp_path_factory):
    reference = golden("state_dict")
    shapes = [tuple(map(int, text.split(","))) for text in reference["shapes"]]
    path = tmp_path_factory.mktemp("published") / "ssd300_vgg16_coco.pth"
    write_pth(path, formula_weights(dict(zip(reference["names"].tolist(), shapes, strict=True))))
    return path


def test_what_it_is(detector_file):
    assert 142_500_000 < detector_file.stat().st_size < 142_700_000
    weights = read_as_ssd(detector_file)
    assert (weights.format, weights.names, weights.unused) == ("PyTorch zip", "torchvision", ())
    assert weights.description.variant is SSD300_VGG16
    assert (weights.description.num_classes, weights.description.width) == (91, 1)
    assert weights.description.categories == COCO_CATEGORIES


def test_it_answers_as_the_published_network(golden, detector_file):
    with weights_left_unset():
        model, _ = load_model(detector_file)
    reference = golden("forward")
    images = np.random.default_rng(int(reference["image_seed"])).random((2, 3, 300, 300), dtype=np.float32)
    with flow.no_grad():
        offsets, logits = model(flow.from_numpy(images * 255))
    for name, answer in (("offsets", offsets), ("logits", logits)):
        found = answer.numpy().reshape(-1)[reference[f"{name}_index"]]
        np.testing.assert_allclose(found, reference[name], **CLOSE)
