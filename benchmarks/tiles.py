"""Objects that are small in a large image, with tiles and without: AP on photographs, and on mosaics of nine.

    .venv/bin/python -m benchmarks tiles --data bccd

A network of narrow layers learns the photographs, shapes first. The mosaics put nine of the validation set side by
side, 3 x 3, without a mark between them. What is found in a mosaic is measured in its photographs, so that the same
objects are looked for in the same pixels. Trainings are in runs/tiles; those that are there already are not repeated.
"""

import json
import time
from pathlib import Path

from benchmarks.frame import ROOT, Benchmark, Options, in_fresh_process, trained
from benchmarks.tables import Figures, markdown, paragraphs

RUNS = ROOT / "runs" / "tiles"
EPOCHS = 16
GRID = 3
SIDE = 640  # pixels: that of BCCD's photographs
WAYS = {"photographs": None, "mosaics": None, "mosaics, tiles": SIDE}
METRICS = ("AP", "AP50", "AP_small", "AP_medium", "AP_large", "AR_100")


def measure(options: Options) -> Figures:
    """By way of detecting, COCO's numbers, and the seconds: all, and without cutting and joining."""
    trained(RUNS / "shapes", "--preset", "narrow", "--dataset", "shapes")
    data = ["--preset", "narrow", "--data-path", options.data, "--default-boxes", "coco", "--epochs", EPOCHS]
    trained(RUNS / "photographs", *data, "--load", RUNS / "shapes")
    return in_fresh_process(detect, RUNS / "photographs", options.data)


def detect(run: str, data: str) -> Figures:
    """The figures, in this process."""
    import numpy as np

    from ssd300_vgg16 import Detector
    from ssd300_vgg16.data.formats import DataSource
    from ssd300_vgg16.data.images import read_image
    from ssd300_vgg16.metrics.coco_ap import coco_ap
    from ssd300_vgg16.metrics.coco_results import coco_results

    figures: Figures = {}
    for way, tiles in WAYS.items():
        detector = Detector.load(run, "cpu", tiles=tiles)
        dataset = DataSource(path=Path(data)).load("val", detector.description.categories)
        samples = dataset.samples[: len(dataset.samples) // GRID**2 * GRID**2]
        grid = 1 if way == "photographs" else GRID
        begin, seconds, detections = _Timed(detector), 0.0, []
        for start in range(0, len(samples), grid**2):
            photographs = [read_image(sample.path) for sample in samples[start : start + grid**2]]
            rows = [np.concatenate(photographs[row : row + grid], axis=1) for row in range(0, grid**2, grid)]
            mosaic = np.concatenate(rows)
            since = time.perf_counter()
            (found,) = detector.begin_on([mosaic], 1)()
            seconds += time.perf_counter() - since
            detections += _in_photographs(found, grid, *photographs[0].shape[:2])
        metrics = coco_ap(coco_results(dataset, list(range(len(samples))), detections))
        figures[way] = {name: metrics.statistics[name] for name in METRICS}
        figures[way] |= {"images": len(samples) // grid**2, "inside": begin.seconds, "all": seconds}
    return json.loads(json.dumps(figures, default=float))


class _Timed:
    """The seconds that a detector's network and post-processing take."""

    def __init__(self, detector) -> None:
        self.seconds = 0.0
        self._begin, detector.begin = detector.begin, self

    def __call__(self, images, sizes_hw):
        since = time.perf_counter()
        answers = self._begin(images, sizes_hw)()
        self.seconds += time.perf_counter() - since
        return lambda: answers


def _in_photographs(found: dict, grid: int, height: int, width: int) -> list[dict]:
    """Detections of each photograph of a mosaic, in its pixels: those whose centre is there."""
    import numpy as np

    centres = (found["boxes"][:, :2] + found["boxes"][:, 2:]) / 2
    columns, rows = (centres // [width, height]).clip(0, grid - 1).astype(int).T
    parts = []
    for number in range(grid**2):
        row, column = divmod(number, grid)
        there = (rows == row) & (columns == column)
        boxes = found["boxes"][there] - np.array([column * width, row * height] * 2)
        boxes = boxes.clip(0, [width, height, width, height]).astype(np.float32)
        parts.append({"boxes": boxes, "scores": found["scores"][there], "labels": found["labels"][there]})
    return parts


def table(figures: Figures) -> str:
    """The same as text."""
    rows = []
    for way, row in figures.items():
        per_image = row["all"] / row["images"] * 1000
        outside = f"{1 - row['inside'] / row['all']:.0%}"
        rows.append([way, *(f"{row[name]:.3f}" for name in METRICS), f"{per_image:.0f} ms", outside])
    header = ["", *METRICS, "time an image", "of it cutting and joining"]
    kept = figures["mosaics, tiles"]["AP"] / figures["photographs"]["AP"]
    told = f"With tiles of {SIDE} pixels, {kept:.0%} of the AP on single photographs are kept on mosaics of {GRID**2}."
    return paragraphs(f"An eighth of the channels, {EPOCHS} epochs.", markdown(header, rows), told)


BENCHMARK = Benchmark("Tiles for small objects in large images", measure, table, rounds=1, quick=False, own_data=True)
