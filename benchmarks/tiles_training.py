"""Training on tiles of large images, against training on them whole and on what they are made of: AP, seed by seed.

    .venv/bin/python -m benchmarks tiles_training --data bccd

The images are mosaics of nine photographs, 3 x 3, of the training and of the validation set; objects have a third of
their sides there. One network of narrow layers learns shapes; all runs begin with it, and have the same number of
steps. AP is measured in each photograph of a mosaic, so that the same objects are looked for in the same pixels. Data
and trainings are in runs/tiles-training; those that are there already are not made again.
"""

import json
import os
from pathlib import Path
from statistics import mean

from benchmarks.frame import ROOT, Benchmark, Options, in_fresh_process, trained
from benchmarks.tables import Figures, markdown, paragraphs
from benchmarks.tiles import ap, mosaic_of, seen

RUNS = ROOT / "runs" / "tiles-training"
GRID = 3
SIDE = 640  # pixels: that of BCCD's photographs
FIRST_EPOCHS, STEPS = 3, 400
SEEDS = (0, 1, 2)
METRICS = ("AP", "AP50")
# By what is trained on: with tiles or not, and the ways of detecting.
WAYS = {"mosaics, tiles": (SIDE,), "mosaics": (SIDE, None), "photographs": (SIDE,)}


def write_mosaics(data: str, path: str, grid: int) -> None:
    """Both splits of a data set of photographs of one size, as mosaics in COCO's layout; for a fresh process."""
    import cv2
    import numpy as np

    from ssd300_vgg16.data.formats import DataSource
    from ssd300_vgg16.data.images import read_image

    folder = Path(path)
    if folder.is_dir():
        return
    aside = folder.with_name(f"{folder.name}.{os.getpid()}")
    (aside / "annotations").mkdir(parents=True)
    for split in ("train", "val"):
        dataset = DataSource(path=Path(data)).load(split)
        (aside / split).mkdir()
        images, annotations = [], []
        for number in range(len(dataset.samples) // grid**2):
            parts = dataset.samples[number * grid**2 : (number + 1) * grid**2]
            height, width = parts[0].height, parts[0].width
            pixels = [read_image(part.path) for part in parts]
            name = f"{number:06}.jpg"
            quality = [cv2.IMWRITE_JPEG_QUALITY, 95]
            cv2.imwrite(str(aside / split / name), mosaic_of(pixels, grid)[..., ::-1], quality)
            images.append({"id": number, "file_name": name, "height": height * grid, "width": width * grid})
            for place, part in enumerate(parts):
                row, column = divmod(place, grid)
                boxes, labels = part.objects(height, width)
                corners = boxes + np.array([column * width, row * height] * 2)
                for (x1, y1, x2, y2), label in zip(corners.tolist(), labels.tolist(), strict=True):
                    annotations.append(
                        {
                            "id": len(annotations) + 1,
                            "image_id": number,
                            "category_id": label,
                            "bbox": [x1, y1, x2 - x1, y2 - y1],
                            "area": (x2 - x1) * (y2 - y1),
                            "iscrowd": 0,
                        }
                    )
        categories = [{"id": category.label, "name": category.name} for category in dataset.categories]
        content = {"images": images, "annotations": annotations, "categories": categories}
        (aside / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
    aside.rename(folder)


def measured(run: str, data: str, side: int | None, grid: int) -> Figures:
    """AP and AP50 of a run in the photographs of mosaics, with tiles of this side or none; for a fresh process."""
    from ssd300_vgg16 import Detector
    from ssd300_vgg16.data.formats import DataSource
    from ssd300_vgg16.data.images import read_image

    detector = Detector.load(run, "cpu", tiles=side)
    dataset = DataSource(path=Path(data)).load("val", detector.description.categories)
    count = len(dataset.samples) // grid**2 * grid**2
    detections, _ = seen(detector, [read_image(sample.path) for sample in dataset.samples[:count]], grid)
    return {name: float(number) for name, number in ap(dataset, detections).items()}


def measure(options: Options) -> Figures:
    """AP and AP50 by what is trained on and the side of the tiles in detection, for each seed."""
    mosaics = RUNS / f"mosaics-{GRID}"
    in_fresh_process(write_mosaics, options.data, mosaics, GRID)
    first = ("--preset", "narrow", "--dataset", "shapes", "--epochs", FIRST_EPOCHS)
    trained(RUNS / "shapes", *first)
    figures: Figures = {f"{name}|{side or 0}": [] for name, sides in WAYS.items() for side in sides}
    for seed in SEEDS:
        for name, sides in WAYS.items():
            run = RUNS / f"{name.replace(', ', '-')}-{seed}"
            data = ("--data-path", options.data if name == "photographs" else mosaics, "--default-boxes", "coco")
            length = ("--preset", "narrow", "--iterations", STEPS, "--eval-every", 1000, "--seed", seed)
            tiles = ("--tiles", SIDE) if "tiles" in name else ()
            trained(run, *data, *length, "--load", RUNS / "shapes", *tiles)
            for side in sides:
                figures[f"{name}|{side or 0}"].append(in_fresh_process(measured, run, options.data, side, GRID))
    return figures


def table(figures: Figures) -> str:
    """A row for each training and way of detecting: the mean of each number, and AP of each seed."""
    rows = []
    for name, seeds in figures.items():
        trained_on, side = name.split("|")
        each = " ".join(f"{seed['AP']:.3f}" for seed in seeds)
        numbers = [f"{mean(seed[metric] for seed in seeds):.3f}" for metric in METRICS]
        rows.append([trained_on, side if side != "0" else "none", *numbers, each])
    header = ["trained on", "tiles in detection", *METRICS, "AP of each seed"]
    about = (
        f"`--preset narrow`, {STEPS} steps after {FIRST_EPOCHS} epochs of shapes, seeds {', '.join(map(str, SEEDS))}; "
        f"tiles of {SIDE} pixels. Mosaics of {GRID**2} photographs; AP in the photographs of the validation set's."
    )
    return paragraphs(about, markdown(header, rows))


BENCHMARK = Benchmark("Training on tiles", measure, table, rounds=1, quick=False, own_data=True)
