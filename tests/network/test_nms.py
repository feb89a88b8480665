"""Non-maximum suppression: what is kept, in which order."""

import numpy as np
import pytest

from ssd300_vgg16.network import postprocess as nms_module
from ssd300_vgg16.network.postprocess import nms

BOX = [0, 0, 10, 10]
HALF = [0, 0, 10, 5]  # IoU 0.5 with BOX
APART = [50, 50, 60, 60]
# Each overlaps the next by IoU 1/3, and the one after that not at all.
CHAIN = [[0, 0, 10, 10], [5, 0, 15, 10], [10, 0, 20, 10], [15, 0, 25, 10]]


def run(boxes, scores, labels=None, iou_threshold=0.45, max_boxes=200):
    boxes = np.array(boxes, dtype=np.float32).reshape(-1, 4)
    labels = np.ones(len(boxes), dtype=np.int64) if labels is None else np.array(labels)
    columns = boxes, np.array(scores, dtype=np.float32), labels
    for column in columns:
        column.setflags(write=False)
    kept = nms(*columns, iou_threshold, max_boxes)
    assert kept.dtype == np.int64
    return kept.tolist()


@pytest.mark.parametrize(
    ("boxes", "scores", "options", "kept"),
    [
        pytest.param([], [], {}, [], id="empty"),
        pytest.param([BOX], [0.5], {}, [0], id="single"),
        pytest.param([BOX, BOX, BOX], [0.5, 0.9, 0.7], {}, [1], id="identical"),
        pytest.param([BOX, APART], [0.5, 0.9], {}, [1, 0], id="apart, in order of score"),
        pytest.param([BOX, BOX, BOX], [0.5, 0.5, 0.5], {}, [0], id="ties: the earlier is better"),
        pytest.param([APART, BOX, APART], [0.5, 0.5, 0.5], {}, [0, 1], id="ties keep their order"),
        pytest.param([BOX, HALF], [0.9, 0.8], {"iou_threshold": 0.5}, [0, 1], id="at the threshold"),
        pytest.param([BOX, HALF], [0.9, 0.8], {"iou_threshold": 0.4999}, [0], id="above the threshold"),
        pytest.param([BOX, HALF], [0.9, 0.8], {"iou_threshold": 0.5001}, [0, 1], id="below the threshold"),
        pytest.param([BOX, [10, 0, 20, 10]], [0.9, 0.8], {"iou_threshold": 0.0}, [0, 1], id="touching"),
        pytest.param([BOX, BOX, BOX], [0.9, 0.8, 0.7], {"labels": [1, 2, 1]}, [0, 1], id="labels apart"),
        pytest.param(CHAIN, [0.9, 0.8, 0.7, 0.6], {"iou_threshold": 0.3}, [0, 2], id="chain from its end"),
        pytest.param(CHAIN, [0.8, 0.9, 0.7, 0.6], {"iou_threshold": 0.3}, [1, 3], id="chain from its middle"),
        pytest.param([[5, 5, 5, 5]] * 2, [0.9, 0.8], {}, [0, 1], id="no area: no overlap"),
        pytest.param([BOX, APART, HALF], [0.7, 0.8, 0.9], {"max_boxes": 1}, [2], id="most: the best"),
        pytest.param([BOX, APART, HALF], [0.7, 0.8, 0.9], {"max_boxes": 2}, [2, 1], id="most: the two best"),
        pytest.param([BOX, BOX, APART], [0.9, 0.8, 0.7], {"max_boxes": 2}, [0, 2], id="most counts kept boxes"),
        pytest.param([BOX], [0.9], {"max_boxes": 0}, [], id="most: none"),
    ],
)
@pytest.mark.parametrize("block", [1, 2, 1024])
def test_rows(monkeypatch, block, boxes, scores, options, kept):
    monkeypatch.setattr(nms_module, "BLOCK", block)
    assert run(boxes, scores, **options) == kept


def random_candidates(seed, count, labels):
    """Boxes in clusters, so that chains are long; scores with ties."""
    rng = np.random.default_rng(seed)
    corner = rng.uniform(0, 60, (count, 2))
    boxes = np.concatenate((corner, corner + rng.uniform(5, 40, (count, 2))), axis=1).astype(np.float32)
    return boxes, rng.integers(0, count, count) / np.float32(count), rng.integers(1, labels + 1, count)


@pytest.mark.parametrize("block", [1, 7, 64, 1024])
@pytest.mark.parametrize(
    ("count", "labels", "iou_threshold", "max_boxes"),
    [
        (1, 1, 0.45, 200),
        (40, 1, 0.45, 200),
        (150, 3, 0.45, 200),
        (150, 3, 0.1, 200),
        (200, 90, 0.45, 25),
        (150, 2, 0.8, 30),
    ],
)
def test_equal_to_box_by_box(monkeypatch, greedy_nms, block, count, labels, iou_threshold, max_boxes):
    monkeypatch.setattr(nms_module, "BLOCK", block)
    for seed in range(3):
        candidates = random_candidates(seed, count, labels)
        assert run(*candidates, iou_threshold, max_boxes) == greedy_nms(*candidates, iou_threshold, max_boxes)
