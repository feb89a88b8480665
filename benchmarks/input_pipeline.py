"""From files to training batches: stages on one core, the loader with its workers, large photographs.

    .venv/bin/python benchmarks/input_pipeline.py --data VOC_FOLDER                      a table on the terminal
    .venv/bin/python benchmarks/input_pipeline.py --data VOC_FOLDER --before COMMIT \\
        --peer-python VENV/bin/python --write                           and in benchmarks/input_pipeline.md

The folder is in VOC's layout. The former commit (8e8fe1b or later) is checked out in a git worktree of its own.
torchvision 0.26 is run by a Python of its own, that has it, with its transforms of the same names and its own JPEG
decoder; without one it is left out. Each side runs in a process of its own, in turn. Stages are timed in seconds of the
CPU, as other programs may be running; whole batches of the loader in seconds of the clock. Large photographs are some
of the folder's, enlarged, with noise as cameras have it. --json prints the result as JSON too, in the last line.
"""

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from large_photographs import FILES, NOISE, SIZES, boxes_of, differences, make_large, name_of, seconds_by_size

ROOT = Path(__file__).resolve().parent.parent
TITLE = "The input pipeline: from files to training batches"
OURS, PEER = "this commit", "torchvision v2"
STAGES = ("read and decode", "augment, resize, lay out", "match", "all of these")
WORKERS = (0, 1, 2)
BATCH, EPOCHS, STEP_SECONDS = 32, 4, 0.05


class Stages:
    """Seconds of CPU spent in each stage."""

    def __init__(self):
        self.seconds = defaultdict(float)

    def time(self, stage: str, function: Callable, *arguments):
        since = time.process_time()
        result = function(*arguments)
        self.seconds[stage] += time.process_time() - since
        return result

    def rates(self, images: int) -> dict[str, float]:
        """Images per second of each stage, and of all."""
        whole = {STAGES[-1]: sum(self.seconds.values())}
        return {stage: images / seconds for stage, seconds in {**self.seconds, **whole}.items()}


def run_package(data: Path, large: Path, images: int) -> dict[str, float]:
    """This package, of whichever commit PYTHONPATH holds."""
    import cv2

    cv2.setNumThreads(1)
    from ssd300_vgg16.data.loader import samples_with_objects
    from ssd300_vgg16.data.voc import load_voc
    from ssd300_vgg16.data.workers import WorkerPool

    WorkerPool(0)  # it says what this process does with freed memory
    samples = samples_with_objects(load_voc([data / "ImageSets/Main/train.txt"]).samples)
    samples = (samples * (images // len(samples) + 1))[:images]
    for sample in samples:
        sample.path.read_bytes()  # so that no side reads the disk
    return {**stage_rates(samples), **loader_rates(samples), **large_seconds(large)}


def stage_rates(samples) -> dict[str, float]:
    import numpy as np

    from ssd300_vgg16.data.matching import DefaultBoxIndex, write_targets
    from ssd300_vgg16.network.variants import default_boxes

    read, augment = steps_of_the_package()
    index = DefaultBoxIndex(default_boxes())  # made once for a batch
    for count in (10, len(samples)):  # the first few warm up
        stages = Stages()
        for number, sample in enumerate(samples[:count]):
            photograph = stages.time(STAGES[0], read, sample.path)
            objects = sample.objects(sample.height, sample.width)
            rng, out = np.random.default_rng([0, 0, number]), np.empty((3, 300, 300), dtype=np.uint8)
            boxes, labels = stages.time(STAGES[1], augment, photograph, *objects, rng, "ssd", out)
            targets = np.zeros((8732, 4), dtype=np.float32), np.zeros(8732, dtype=np.int64)
            stages.time(STAGES[2], write_targets, boxes, labels, index, *targets)
    return stages.rates(len(samples))


def steps_of_the_package() -> tuple[Callable, Callable]:
    """What reads a file for training, and augments it."""
    from ssd300_vgg16.data import images
    from ssd300_vgg16.data.augment import POLICIES, augment

    decode = getattr(images, "decode_image", None) or getattr(images, "read_photograph", None)
    if decode is None:  # a former commit, as one with the other name
        return images.read_image, augment
    policy = POLICIES["ssd"]
    min_side = getattr(policy, "min_side", None) or policy.least_side  # a former commit's name
    return lambda path: decode(path, False, min_side(300)), augment


def loader_rates(samples) -> dict[str, float]:
    """Images per second of the clock, by the number of workers; and with a step to be waited for."""
    from ssd300_vgg16.data.workers import WorkerPool

    rates = {}
    for workers in WORKERS:
        with WorkerPool(workers) as pool:
            rates[f"{workers} workers"] = loader_rate(samples, pool)
            if workers == 1:
                rates["1 workers, step"] = loader_rate(samples, pool, step=lambda: time.sleep(STEP_SECONDS))
                rates["1 workers, busy step"] = loader_rate(samples, pool, step=busy)
    return rates


def busy() -> None:
    """A step that holds Python's lock, as one does that is made op by op."""
    end = time.perf_counter() + STEP_SECONDS
    while time.perf_counter() < end:
        pass


def loader_rate(samples, pool, step: Callable = lambda: None) -> float:
    """Images per second of the clock, after an epoch that starts the processes."""
    from ssd300_vgg16.data import loader
    from ssd300_vgg16.data.loader import training_batches
    from ssd300_vgg16.network.variants import default_boxes

    config_class = getattr(loader, "BatchConfig", None) or loader.TrainingRecipe  # a former commit's name
    config = config_class(BATCH, "ssd", 0, default_boxes(), 300)
    for _ in training_batches(samples, replace(config, batch_size=len(samples)), 0, pool):
        pass
    for _ in training_batches(samples, config, 0, pool):
        pass
    since, images = time.perf_counter(), 0
    for epoch in range(1, EPOCHS + 1):
        for batch in training_batches(samples, config, epoch, pool):
            images += len(batch.images)
            step()
    return images / (time.perf_counter() - since)


def large_seconds(folder: Path) -> dict[str, float]:
    """Seconds of CPU for a large photograph: read, augmented and resized."""
    import numpy as np

    read, augment = steps_of_the_package()

    def prepared(path: Path, number: int) -> None:
        rng, out = np.random.default_rng([0, number]), np.empty((3, 300, 300), dtype=np.uint8)
        augment(read(path), np.float32(boxes_of(path)), np.ones(3, dtype=np.int64), rng, "ssd", out)

    return seconds_by_size(folder, prepared)


def run_torchvision(data: Path, large: Path, images: int) -> dict[str, float]:
    """torchvision's decoder and transforms; its matching belongs to its detector, and is not timed."""
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
        stages = Stages()
        for path, boxes in examples[:count]:
            pixels = stages.time(STAGES[0], lambda path=path: decode_jpeg(read_file(path)))
            stages.time(STAGES[1], transformed, pixels, boxes)

    def prepared(path: Path, _) -> None:
        transformed(decode_jpeg(read_file(str(path))), torch.tensor(boxes_of(path)))

    return {**stages.rates(images), **seconds_by_size(large, prepared)}


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


def run_side(side: str, python: str, tree: Path, large: Path, options: argparse.Namespace) -> dict[str, float]:
    """Run one side in a fresh process."""
    command = [python, __file__, "--side", side, "--data", options.data, "--large", large, "--images", options.images]
    env = os.environ | {"PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(list(map(str, command)), env=env, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def table(medians: dict[str, dict[str, float]], levels: dict[str, dict], options: argparse.Namespace) -> str:
    """The results as Markdown."""
    from ssd300_vgg16.runtime import cpu_name

    before = f"--before {options.before} " if options.before else ""
    repeat = f"--data VOC_FOLDER {before}--peer-python VENV/bin/python --rounds {options.rounds}"
    lines = [
        f"CPU: {cpu_name()}, {len(os.sched_getaffinity(0))} cores; load {os.getloadavg()[1]:.1f} at the end, in which "
        f"this script has a part. {options.about}. `ssd` augmentation, 300x300. Medians of {options.rounds} rounds "
        f"over {options.images} images, the sides in turn. Repeat with `.venv/bin/python benchmarks/input_pipeline.py "
        f"{repeat} --images {options.images} --write`.",
        "",
        "## One core: images per second of CPU time",
        "",
        *grid(medians, {stage: stage for stage in STAGES}, list(medians)),
        "",
        *(f"All of these: {ratio(medians, STAGES[-1], side):.1f} times {side}." for side in medians if side != OURS),
        "Of torchvision, matching is not timed.",
        "",
        f"## The loader: images per second of the clock, in batches of {BATCH}",
        "",
        *grid(medians, loader_rows(medians), [side for side in medians if side != PEER]),
        "",
        *ratios_of_workers(medians[OURS]),
        "",
        f"## Large photographs: {FILES} of each size, enlarged, with noise of {NOISE:g} levels",
        "",
        *grid(medians, {size: f"{size}: seconds of CPU an image" for size in map(name_of, SIZES)}, list(medians), 4),
        "",
        *(
            f"{size}: decoded {found['factor']} times smaller; what the network sees differs from that of plain "
            f"decoding by {found['mean']:.2f} levels in the mean, {found['p99']:.0f} at the 99th percentile, "
            f"{found['max']:.0f} at the most."
            for size, found in levels.items()
        ),
    ]
    return "\n".join(lines)


def loader_rows(medians: dict[str, dict[str, float]]) -> dict[str, str]:
    about = {f"{workers} workers": f"{workers} workers" for workers in WORKERS}
    about["1 workers, step"] = f"1 workers, and a step of {STEP_SECONDS * 1e3:.0f} ms after each batch (a sleep)"
    about["1 workers, busy step"] = "1 workers, and a step as long that holds Python's lock"
    return about


def ratios_of_workers(rates: dict[str, float]) -> list[str]:
    one, two, none = (rates[f"{workers} workers"] for workers in (1, 2, 0))
    return [f"One worker is {one / none:.2f} times as fast as none, two are {two / one:.2f} times as fast as one."]


def grid(medians: dict, rows: dict[str, str], sides: list[str], digits: int = 0) -> list[str]:
    """A table with a row for each key of `rows`, by its text."""
    lines = [f"| | {' | '.join(sides)} |", f"|---|{'---|' * len(sides)}"]
    for key, text in rows.items():
        cells = (f"{medians[side][key]:.{digits}f}" if key in medians[side] else "-" for side in sides)
        lines.append(f"| {text} | {' | '.join(cells)} |")
    return lines


def ratio(medians: dict[str, dict[str, float]], part: str, side: str) -> float:
    return medians[OURS][part] / medians[side][part]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="a folder in VOC's layout, with an image set `train`")
    parser.add_argument("--about", default="Images of a folder in VOC's layout", help="what is in it, for the table")
    parser.add_argument("--before", help="a former commit to compare with")
    parser.add_argument("--peer-python", help="a Python that has torchvision")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, default=205)
    parser.add_argument("--write", action="store_true", help="write benchmarks/input_pipeline.md")
    parser.add_argument("--json", action="store_true", help="print title, table and figures as JSON in the last line")
    parser.add_argument("--side", choices=("package", "torchvision"), help=argparse.SUPPRESS)
    parser.add_argument("--large", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        run = run_package if options.side == "package" else run_torchvision
        print(json.dumps(run(options.data, options.large, options.images)), flush=True)
        return
    with tempfile.TemporaryDirectory() as folder, former_tree(options.before, Path(folder)) as tree:
        sides = {OURS: ("package", sys.executable, ROOT)}
        if options.before:
            sides[f"commit {options.before}"] = ("package", sys.executable, tree)
        if options.peer_python:
            sides[PEER] = ("torchvision", options.peer_python, ROOT)
        large = Path(folder) / "large"
        large.mkdir()
        make_large(options.data, large)
        compare(sides, large, options)


@contextlib.contextmanager
def former_tree(commit: str | None, folder: Path) -> Iterator[Path]:
    """The package as it was, in a worktree that goes in the end."""
    tree = folder / "before"
    git = ["git", "-C", str(ROOT), "worktree"]
    if commit:
        subprocess.run([*git, "add", "--detach", str(tree), commit], check=True, capture_output=True)
    try:
        yield tree
    finally:
        if commit:
            subprocess.run([*git, "remove", "--force", str(tree)], check=True)


def compare(sides: dict[str, tuple[str, str, Path]], large: Path, options: argparse.Namespace) -> None:
    rates = {name: [] for name in sides}
    for number in range(options.rounds):
        for name, side in sides.items():
            rates[name].append(run_side(*side, large, options))
            found = ", ".join(f"{part} {rate:.3g}" for part, rate in rates[name][-1].items())
            print(f"round {number + 1}, {name}: {found}", flush=True)
    sys.path.insert(0, str(ROOT))
    medians = {
        side: {part: statistics.median(found[part] for found in rounds) for part in rounds[0]}
        for side, rounds in rates.items()
    }
    levels = differences(large)
    text = table(medians, levels, options)
    print(text)
    if options.write:
        (ROOT / "benchmarks" / "input_pipeline.md").write_text(f"# {TITLE}\n\n{text}\n")
    if options.json:
        print(json.dumps({"title": TITLE, "table": text, "figures": {"sides": medians, "levels": levels}}))


if __name__ == "__main__":
    main()
