"""From files to training batches: stages on one core, the loader with its workers, large images.

torchvision's side has its transforms of the same names and its own JPEG decoder. Each side runs in a process of its
own, in turn. Stages are timed in seconds of the CPU, as other programs may be running; whole batches of the loader in
seconds of the clock. Large images are some of the folder's, enlarged, with noise as cameras have it.
"""

import statistics
import tempfile
import time
import xml.etree.ElementTree
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

from benchmarks.frame import TORCHVISION, Benchmark, Options, environment, in_fresh_process, in_turn
from benchmarks.tables import Claim, Figures, markdown, paragraphs

OURS, PEER = "this package", "torchvision v2"
STAGES = ("read and decode", "augment, resize, lay out", "match", "all of these")
WORKERS = (0, 1, 2)
BATCH, EPOCHS = 32, 4
IMAGES, QUICK_IMAGES = 205, 20
SIZES = ((2592, 1944), (4000, 3000))
LARGE_IMAGES, NOISE = 8, 8.0  # images of each size; levels


class Stages(defaultdict):
    """Seconds of CPU spent in each stage."""

    def time(self, stage: str, function: Callable, *arguments):
        since = time.process_time()
        result = function(*arguments)
        self[stage] += time.process_time() - since
        return result

    def rates(self, images: int) -> dict[str, float]:
        """Images per second of each stage, and of all."""
        return {stage: images / seconds for stage, seconds in {**self, STAGES[-1]: sum(self.values())}.items()}


def run_package(folder: str, large: str, images: int) -> dict[str, float]:
    """This package; for a fresh process."""
    import cv2

    cv2.setNumThreads(1)
    from ssd300_vgg16.data.loader import samples_with_objects
    from ssd300_vgg16.data.voc import load_voc
    from ssd300_vgg16.data.workers import WorkerPool

    WorkerPool(0)  # it says what this process does with freed memory
    samples = samples_with_objects(load_voc([Path(folder) / "ImageSets/Main/train.txt"]).samples)
    samples = (samples * (images // len(samples) + 1))[:images]
    for sample in samples:
        sample.path.read_bytes()  # so that no side reads the disk
    return {**stage_rates(samples), **loader_rates(samples), **large_seconds(Path(large))}


def stage_rates(samples) -> dict[str, float]:
    import numpy as np

    from ssd300_vgg16.data.augment import augment
    from ssd300_vgg16.data.matching import DefaultBoxIndex, write_targets
    from ssd300_vgg16.network.variants import default_boxes

    index = DefaultBoxIndex(default_boxes())  # made once for a batch
    for count in (10, len(samples)):  # the first few warm up
        stages = Stages(float)
        for number, sample in enumerate(samples[:count]):
            image = stages.time(STAGES[0], read_for_training, sample.path)
            objects = sample.objects(sample.height, sample.width)
            rng, out = np.random.default_rng([0, 0, number]), np.empty((3, 300, 300), dtype=np.uint8)
            boxes, labels = stages.time(STAGES[1], augment, image, *objects, rng, "ssd", out)
            targets = np.zeros((8732, 4), dtype=np.float32), np.zeros(8732, dtype=np.int64)
            stages.time(STAGES[2], write_targets, boxes, labels, index, *targets)
    return stages.rates(len(samples))


def read_for_training(path: Path):
    """What a data worker reads of a file: large JPEGs at a part of their size."""
    from ssd300_vgg16.data.augment import POLICIES
    from ssd300_vgg16.data.images import decode_image

    return decode_image(path, False, POLICIES["ssd"].min_side(300))


def loader_rates(samples) -> dict[str, float]:
    """Images per second of the clock, by the number of workers."""
    from ssd300_vgg16.data.workers import WorkerPool

    rates = {}
    for workers in WORKERS:
        with WorkerPool(workers) as pool:
            rates[f"{workers} workers"] = loader_rate(samples, pool)
    return rates


def loader_rate(samples, pool) -> float:
    """Images per second of the clock, after an epoch that starts the processes."""
    from ssd300_vgg16.data.loader import BatchConfig, training_batches
    from ssd300_vgg16.network.variants import default_boxes

    config = BatchConfig(BATCH, "ssd", 0, default_boxes(), 300)
    for _ in training_batches(samples, replace(config, batch_size=len(samples)), 0, pool):
        pass
    for _ in training_batches(samples, config, 0, pool):
        pass
    since, images = time.perf_counter(), 0
    for epoch in range(1, EPOCHS + 1):
        for batch in training_batches(samples, config, epoch, pool):
            images += len(batch.images)
    return images / (time.perf_counter() - since)


def large_seconds(folder: Path) -> dict[str, float]:
    """Seconds of CPU for a large image: read, augmented and resized."""
    import numpy as np

    from ssd300_vgg16.data.augment import augment

    def prepared(path: Path, number: int) -> None:
        rng, out = np.random.default_rng([0, number]), np.empty((3, 300, 300), dtype=np.uint8)
        augment(read_for_training(path), np.float32(boxes_of(path)), np.ones(3, dtype=np.int64), rng, "ssd", out)

    return seconds_by_size(folder, prepared)


def run_torchvision(folder: str, large: str, images: int) -> dict[str, float]:
    """torchvision's decoder and transforms; its matching belongs to its detector, and is not timed."""
    data = Path(folder)
    import torch
    from torchvision.io import decode_jpeg, read_file

    torch.set_num_threads(1)
    torch.manual_seed(0)
    transformed = torchvision_transforms()
    names = (data / "ImageSets/Main/train.txt").read_text().split()
    names = (names * (images // len(names) + 1))[:images]
    for name in names:
        (data / "JPEGImages" / f"{name}.jpg").read_bytes()
    examples = [(str(data / "JPEGImages" / f"{name}.jpg"), torch.tensor(voc_boxes(data, name))) for name in names]
    for count in (10, images):
        stages = Stages(float)
        for path, boxes in examples[:count]:
            pixels = stages.time(STAGES[0], lambda path=path: decode_jpeg(read_file(path)))
            stages.time(STAGES[1], transformed, pixels, boxes)

    def prepared(path: Path, _) -> None:
        transformed(decode_jpeg(read_file(str(path))), torch.tensor(boxes_of(path)))

    return {**stages.rates(images), **seconds_by_size(Path(large), prepared)}


def torchvision_transforms() -> Callable:
    """From pixels and boxes to both transformed."""
    import torch
    from torchvision import tv_tensors
    from torchvision.transforms import v2

    transforms = v2.Compose(
        [
            v2.RandomPhotometricDistort(),
            v2.RandomZoomOut({tv_tensors.Image: (123, 117, 104), "others": 0}),
            v2.RandomIoUCrop(),
            v2.RandomHorizontalFlip(),
            v2.Resize((300, 300), antialias=False),
        ]
    )

    def transformed(pixels, boxes):
        boxes = tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=pixels.shape[-2:])
        return transforms(tv_tensors.Image(pixels), {"boxes": boxes, "labels": torch.ones(len(boxes))})

    return transformed


def voc_boxes(data: Path, name: str) -> list[list[float]]:
    root = xml.etree.ElementTree.parse(data / "Annotations" / f"{name}.xml").getroot()
    sides = ("xmin", "ymin", "xmax", "ymax")
    return [[float(one.findtext(f"bndbox/{side}")) for side in sides] for one in root.findall("object")]


def seconds_by_size(folder: Path, prepared: Callable[[Path, int], object]) -> dict[str, float]:
    seconds = {}
    for size in map(name_of, SIZES):
        paths = sorted((folder / size).iterdir())
        prepared(paths[0], 0)
        since = time.process_time()
        for number, path in enumerate(2 * paths):
            prepared(path, number)
        seconds[size] = (time.process_time() - since) / (2 * len(paths))
    return seconds


def name_of(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"


def boxes_of(path: Path) -> list[list[float]]:
    """Some boxes in an image from `make_large`, by its folder's name."""
    width, height = map(int, path.parent.name.split("x"))
    parts = ((0.1, 0.1, 0.4, 0.5), (0.3, 0.2, 0.9, 0.9), (0.6, 0.5, 0.7, 0.7))
    return [[width * x1, height * y1, width * x2, height * y2] for x1, y1, x2, y2 in parts]


def make_large(data: str, folder: str) -> None:
    """Enlarged images of the data, in a folder for each size; for a fresh process."""
    import cv2
    import numpy as np

    rng = np.random.default_rng(0)
    for width, height in SIZES:
        target = Path(folder) / name_of((width, height))
        target.mkdir()
        for path in sorted((Path(data) / "JPEGImages").glob("*.jpg"))[:LARGE_IMAGES]:
            image = cv2.resize(cv2.imread(str(path)), (width, height), interpolation=cv2.INTER_CUBIC)
            noise = rng.normal(0, NOISE, (height, width, 1))
            cv2.imwrite(str(target / path.name), np.clip(image + noise, 0, 255).astype(np.uint8))


def differences(folder: str) -> dict[str, dict[str, float]]:
    """By size, how what the network sees of reduced images differs from that of plain ones; for a fresh process."""
    import numpy as np

    from ssd300_vgg16.data.augment import augment
    from ssd300_vgg16.data.images import decode_image

    levels = {}
    for size in map(name_of, SIZES):
        changes = []
        for number, path in enumerate(sorted((Path(folder) / size).iterdir())):
            pair = np.empty((2, 3, 300, 300), dtype=np.uint8)
            reduced = read_for_training(path)
            for out, decoded in zip(pair, (decode_image(path), reduced), strict=True):
                rng = np.random.default_rng([0, number])
                augment(decoded, np.float32(boxes_of(path)), np.ones(3, dtype=np.int64), rng, "ssd", out)
            changes.append(np.abs(pair[0].astype(int) - pair[1]))
        about = {"mean": np.mean(changes), "p99": np.percentile(changes, 99), "max": np.max(changes)}
        levels[size] = {"factor": reduced.factor, **{name: float(value) for name, value in about.items()}}
    return levels


def measure(options: Options) -> Figures:
    """Medians by side and what was timed, and the levels by which reduced images differ."""
    images, env = QUICK_IMAGES if options.quick else IMAGES, environment(OMP_NUM_THREADS="1")
    with tempfile.TemporaryDirectory() as large:
        in_fresh_process(make_large, options.data, large)
        arguments = options.data, large, images
        sides = {OURS: partial(in_fresh_process, run_package, *arguments, env=env)}
        if TORCHVISION in options.peers:
            sides[PEER] = partial(in_fresh_process, run_torchvision, *arguments, env=env, python=options.peers.python)
        rounds = in_turn(options.rounds, sides)
        levels = in_fresh_process(differences, large)
    medians = {
        side: {what: statistics.median(each[what] for each in of_side) for what in of_side[0]}
        for side, of_side in rounds.items()
    }
    return {"sides": medians, "levels": levels}


def table(figures: Figures) -> str:
    sides = figures["sides"]

    def grid(keys: Iterable[str], names: Iterable[str], digits: int = 0) -> str:
        rows = [
            [key, *(f"{sides[name][key]:.{digits}f}" if key in sides[name] else "-" for name in names)] for key in keys
        ]
        return markdown(["", *names], rows)

    levels = (
        f"{size}: decoded {found['factor']} times smaller; what the network sees differs from that of plain decoding "
        f"by {found['mean']:.2f} levels of 255 in the mean, {found['p99']:.0f} at the 99th percentile."
        for size, found in figures["levels"].items()
        if found["factor"] > 1
    )
    return paragraphs(
        "`ssd` augmentation, 300x300. On one core, images per second of CPU time (torchvision's matching is left out):",
        grid(STAGES, sides),
        f"The loader, images per second of the clock, in batches of {BATCH}:",
        grid([f"{workers} workers" for workers in WORKERS], [OURS]),
        f"Large images, {LARGE_IMAGES} of each size, with noise of {NOISE:g} levels, seconds of CPU an image:",
        grid(map(name_of, SIZES), sides, 4),
        *levels,
    )


def claims(figures: Figures) -> Iterator[Claim]:
    whole = {side: 1 / rates[STAGES[-1]] for side, rates in figures["sides"].items()}
    if PEER in whole:
        yield Claim("decode, augment, match, of one core", whole[OURS], PEER, whole[PEER], "ms")


BENCHMARK = Benchmark(
    "The input pipeline: from files to training batches", measure, table, claims, needs=(TORCHVISION,)
)
