"""A detector on a data set: all its detections, and their AP."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from tqdm import tqdm

from ssd300_vgg16.data.dataset import Dataset
from ssd300_vgg16.data.loader import evaluation_batches
from ssd300_vgg16.data.workers import WorkerPool
from ssd300_vgg16.errors import UserError
from ssd300_vgg16.metrics.coco_ap import CocoMetrics, coco_ap, coco_results

# From images uint8 [B, 3, S, S] and sizes_hw [B, 2] to what `postprocess` returns.
Detect = Callable[[np.ndarray, np.ndarray], list[dict[str, np.ndarray]]]


@dataclass(frozen=True)
class Evaluation:
    """metrics of the readable images; results: detections in COCO's format; unreadable: messages about the others."""

    metrics: CocoMetrics
    results: list[dict]
    unreadable: list[str]


def evaluate(
    detect: Detect, dataset: Dataset, image_size: int, batch_size: int, pool: WorkerPool, strict: bool = False
) -> Evaluation:
    """Detect on every image of the data set and compute COCO's numbers.

    Images that cannot be read are left out of the numbers and named; with strict they raise UserError.
    """
    positions, detections, unreadable = [], [], []
    with tqdm(total=len(dataset.samples), desc="evaluate", unit="image", disable=None, leave=False) as bar:
        for batch in evaluation_batches(dataset.samples, batch_size, image_size, pool, strict):
            unreadable += batch.unreadable
            if len(batch.positions):
                detections += detect(batch.images, batch.sizes_hw)
                positions += batch.positions.tolist()
            bar.update(len(batch.positions) + len(batch.unreadable))
    if not positions:
        raise UserError(f"{dataset.name}: not one of its {len(dataset.samples)} images could be read: {unreadable[:3]}")
    results = coco_results(dataset, positions, detections)
    return Evaluation(coco_ap(dataset, positions, results), results, unreadable)
