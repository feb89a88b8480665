"""The input pipeline of a training on tiles: seconds of the CPU for a sample, with tiles and without.

    .venv/bin/python -m benchmarks tiles_input --data bccd

The images are mosaics of sixteen photographs, 4 x 4: 2560 x 1920 pixels from BCCD's. Batches are made in this process,
without workers, and no network is trained on them. Whole mosaics are decoded smaller, as training does it. "Each
decoded anew" is with tiles too, but only the last image is kept decoded.
"""

import json
import time
from itertools import chain, count, islice
from pathlib import Path

from benchmarks.frame import ROOT, Benchmark, Options, in_fresh_process
from benchmarks.tables import Figures, markdown, medians, paragraphs
from benchmarks.tiles_training import write_mosaics

RUNS = ROOT / "runs" / "tiles-training"
GRID = 4
SIDE = 640
BATCH, SAMPLES = 8, 320  # about those of an epoch of tiles
AUGMENTATIONS = ("hflip", "ssd")
WAYS = ("photographs", "mosaics", "tiles", "tiles, each decoded anew")


def measure(options: Options) -> Figures:
    """Seconds of the CPU for a sample, by augmentation and way, in each round."""
    mosaics = RUNS / f"mosaics-{GRID}"
    in_fresh_process(write_mosaics, options.data, mosaics, GRID)
    rounds = [in_fresh_process(seconds, options.data, mosaics) for _ in range(options.rounds)]
    return {augmentation: [each[augmentation] for each in rounds] for augmentation in AUGMENTATIONS}


def seconds(data: str, mosaics: str) -> Figures:
    """By augmentation, for each of WAYS; in this process."""
    from ssd300_vgg16.data import sizes
    from ssd300_vgg16.data.formats import DataSource
    from ssd300_vgg16.data.loader import BatchConfig, samples_with_objects, training_batches
    from ssd300_vgg16.data.workers import WorkerPool
    from ssd300_vgg16.network.variants import default_boxes
    from ssd300_vgg16.tile_samples import tile_samples
    from ssd300_vgg16.tiles import Tiling

    photographs, whole = (DataSource(path=Path(path)).load("train").samples for path in (data, mosaics))
    tiled = tile_samples(whole, Tiling(SIDE))
    kept = sizes.MAX_BYTES_KEPT
    figures: Figures = {augmentation: [] for augmentation in AUGMENTATIONS}
    for augmentation, of_ways in figures.items():
        for way in WAYS:
            samples = samples_with_objects(tiled if "tiles" in way else photographs if way == "photographs" else whole)
            config = BatchConfig(BATCH, augmentation, 0, default_boxes(), 300)
            sizes.MAX_BYTES_KEPT, sizes._kept = 0 if "anew" in way else kept, sizes._Kept()
            with WorkerPool(0) as pool:
                epochs = (training_batches(samples, config, epoch, pool) for epoch in count())
                since = time.process_time()
                for _ in islice(chain.from_iterable(epochs), SAMPLES // BATCH):
                    pass
                of_ways.append((time.process_time() - since) / SAMPLES)
    return json.loads(json.dumps(figures))


def table(figures: Figures) -> str:
    """Milliseconds for a sample: the medians of the rounds."""
    rows = [
        [augmentation, *(f"{value * 1e3:.1f} ms" for value in medians(rounds))]
        for augmentation, rounds in figures.items()
    ]
    about = (
        f"Mosaics of {GRID**2} photographs, tiles of {SIDE} pixels, batches of {BATCH}; time of the CPU for a sample, "
        "on one core."
    )
    return paragraphs(about, markdown(["augmentation", *WAYS], rows))


BENCHMARK = Benchmark("The input pipeline on tiles", measure, table, quick=False, own_data=True)
