"""From files to training batches: images/s of one core by stage, against a former commit and torchvision's v2.

    .venv/bin/python benchmarks/input_pipeline.py --data VOC_FOLDER                      a table on the terminal
    .venv/bin/python benchmarks/input_pipeline.py --data VOC_FOLDER --before COMMIT \\
        --peer-python VENV/bin/python --write                           and in benchmarks/input_pipeline.md

The folder is in VOC's layout. The former commit is checked out in a git worktree of its own. torchvision 0.21 is run by
a Python of its own, that has it, with its transforms of the same names and its own JPEG decoder; without one it is left
out. Each side runs in a process of its own, in turn. Stages are timed in seconds of the CPU, as other programs may be
running; whole batches of the loader in seconds of the clock.
"""

import argparse
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree
from collections import defaultdict
from collections.abc import Callable
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
STAGES = ("read and decode", "augment, resize, lay out", "match", "all of these")
WORKERS = (0, 1, 2)
BATCH = 16
CPU = "images per second of CPU"


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


def run_package(data: Path, images: int) -> dict[str, float]:
    """This package, of whichever commit PYTHONPATH holds."""
    import cv2

    cv2.setNumThreads(1)
    from ssd300_vgg16.data.loader import samples_with_objects
    from ssd300_vgg16.data.voc import load_voc

    samples = samples_with_objects(load_voc([data / "ImageSets/Main/train.txt"]).samples)
    samples = (samples * (images // len(samples) + 1))[:images]
    for sample in samples:
        sample.path.read_bytes()  # so that no side reads the disk
    for count in (10, images):  # the first few warm up
        stages = Stages()
        for index, sample in enumerate(samples[:count]):
            stage_by_stage(sample, index, stages)
    rates = stages.rates(images)
    for workers in WORKERS:
        clock, parent, together = loader_rates(samples, workers)
        rates[f"loader, {workers} workers"] = clock
        rates[f"{CPU}, {workers} workers and parent"] = together
        if workers:
            rates[f"{CPU}, parent of {workers} workers alone"] = parent
    return rates


def stage_by_stage(sample, index: int, stages: Stages) -> None:
    import numpy as np

    from ssd300_vgg16.data import augment, matching
    from ssd300_vgg16.data.images import read_image
    from ssd300_vgg16.network.default_boxes import default_boxes

    def former_augment(image, boxes, labels, rng):
        image, boxes, labels = augment.augment(image, boxes, labels, rng, "ssd")
        image, boxes = augment.resize(image, boxes)
        return np.ascontiguousarray(image.transpose(2, 0, 1)), boxes, labels

    def new_augment(image, boxes, labels, rng):
        out = np.empty((3, 300, 300), dtype=np.uint8)
        return out, *augment.augment(image, boxes, labels, rng, "ssd", out)

    rng = np.random.default_rng([0, 0, index])
    image = stages.time(STAGES[0], read_image, sample.path)
    objects = sample.objects(*image.shape[:2])
    augment_it = former_augment if hasattr(augment, "resize") else new_augment
    _, boxes, labels = stages.time(STAGES[1], augment_it, image, *objects, rng)
    targets = np.zeros((8732, 4), dtype=np.float32), np.zeros(8732, dtype=np.int64)
    if hasattr(matching, "DefaultBoxIndex"):  # made once for a batch
        stages.time(STAGES[2], matching.write_targets, boxes, labels, box_index(), *targets)
    else:
        stages.time(STAGES[2], matching.training_targets, boxes, labels, default_boxes())


@cache
def box_index():
    from ssd300_vgg16.data.matching import DefaultBoxIndex
    from ssd300_vgg16.network.default_boxes import default_boxes

    return DefaultBoxIndex(default_boxes())


def cpu_seconds_of_workers() -> float:
    """CPU time that the processes begun by this one have used so far."""
    ticks = 0
    for process in multiprocessing.active_children():
        fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def loader_rates(samples, workers: int) -> tuple[float, float, float]:
    """Images per second of the clock, of this process's CPU time, and of this one's and its workers' together.

    The batches that start the processes are not counted.
    """
    from ssd300_vgg16.data.loader import TrainingRecipe, training_batches
    from ssd300_vgg16.data.workers import WorkerPool
    from ssd300_vgg16.network.default_boxes import default_boxes

    recipe = TrainingRecipe(BATCH, "ssd", 0, default_boxes(), 300)
    with WorkerPool(workers) as pool:
        for _ in training_batches(samples[: 2 * BATCH * max(1, workers)], recipe, 0, pool):
            pass
        clock, cpu, theirs, images = time.perf_counter(), time.process_time(), cpu_seconds_of_workers(), 0
        for epoch in (1, 2, 3):
            images += sum(len(batch.images) for batch in training_batches(samples, recipe, epoch, pool))
        clock, cpu = time.perf_counter() - clock, time.process_time() - cpu
        return images / clock, images / cpu, images / (cpu + cpu_seconds_of_workers() - theirs)


def run_torchvision(data: Path, images: int) -> dict[str, float]:
    """torchvision's decoder and transforms; its matching belongs to its detector, and is not timed."""
    import torch
    from torchvision import tv_tensors
    from torchvision.io import decode_jpeg, read_file
    from torchvision.transforms import v2

    torch.set_num_threads(1)
    torch.manual_seed(0)
    fill = {tv_tensors.Image: (123, 117, 104), "others": 0}
    transforms = v2.Compose(
        [
            v2.RandomPhotometricDistort(),
            v2.RandomZoomOut(fill),
            v2.RandomIoUCrop(),
            v2.RandomHorizontalFlip(),
            v2.Resize((300, 300), antialias=False),
        ]
    )

    def transformed(pixels, boxes):
        boxes = tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=pixels.shape[-2:])
        return transforms(tv_tensors.Image(pixels), {"boxes": boxes, "labels": torch.ones(len(boxes))})

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
    return stages.rates(images)


def voc_boxes(data: Path, name: str) -> list[list[float]]:
    root = xml.etree.ElementTree.parse(data / "Annotations" / f"{name}.xml").getroot()
    sides = ("xmin", "ymin", "xmax", "ymax")
    return [[float(one.findtext(f"bndbox/{side}")) for side in sides] for one in root.findall("object")]


def run_side(side: str, python: str, tree: Path, data: Path, images: int) -> dict[str, float]:
    """Run one side in a fresh process."""
    command = [python, __file__, "--side", side, "--data", str(data), "--images", str(images)]
    env = os.environ | {"PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=env, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def table(rates: dict[str, list[dict[str, float]]], options: argparse.Namespace) -> str:
    """The results as Markdown."""
    from ssd300_vgg16.runtime import cpu_name

    medians = {
        side: {part: statistics.median(found[part] for found in rounds) for part in rounds[0]}
        for side, rounds in rates.items()
    }
    lines = [
        "# The input pipeline: from files to training batches",
        "",
        f"CPU: {cpu_name()}, {len(os.sched_getaffinity(0))} cores. {options.about}. `ssd` augmentation, 300x300. "
        f"Medians of {options.rounds} rounds over {options.images} images, the sides in turn; "
        f"other programs were running (load {os.getloadavg()[1]:.1f}), which the rows of the loader show. "
        "Stages: images per second of CPU time, one thread. Loader: whole batches of "
        f"{BATCH}, images per second of the clock, and of CPU time, which says more where other programs run. "
        "Of torchvision, matching is not timed. "
        "Repeat with `.venv/bin/python benchmarks/input_pipeline.py --data "
        f"VOC_FOLDER --before {options.before} --peer-python VENV/bin/python --rounds {options.rounds} "
        f"--images {options.images} --write`.",
        "",
        f"| images/s | {' | '.join(medians)} |",
        f"|---|{'---|' * len(medians)}",
    ]
    for part in medians["this commit"]:
        cells = (f"{found[part]:.0f}" if part in found else "-" for found in medians.values())
        lines.append(f"| {part} | {' | '.join(cells)} |")
    ours = medians["this commit"][STAGES[-1]]
    for side, found in medians.items():
        if side != "this commit":
            lines += ["", f"{STAGES[-1].capitalize()}: {ours / found[STAGES[-1]]:.1f} times {side}."]
    if "torchvision v2" not in medians:
        lines += ["", "torchvision was left out: no --peer-python was given."]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="a folder in VOC's layout, with an image set `train`")
    parser.add_argument("--about", default="Images of a folder in VOC's layout", help="what is in it, for the table")
    parser.add_argument("--before", help="a former commit to compare with")
    parser.add_argument("--peer-python", help="a Python that has torchvision")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, default=205)
    parser.add_argument("--write", action="store_true", help="write benchmarks/input_pipeline.md")
    parser.add_argument("--side", choices=("package", "torchvision"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        run = run_package if options.side == "package" else run_torchvision
        print(json.dumps(run(options.data, options.images)), flush=True)
        return
    with tempfile.TemporaryDirectory() as folder:
        sides = {"this commit": ("package", sys.executable, ROOT)}
        if options.before:
            tree = Path(folder) / "before"
            git = ["git", "-C", str(ROOT), "worktree"]
            subprocess.run([*git, "add", "--detach", str(tree), options.before], check=True, capture_output=True)
            sides[f"commit {options.before}"] = ("package", sys.executable, tree)
        if options.peer_python:
            sides["torchvision v2"] = ("torchvision", options.peer_python, ROOT)
        try:
            compare(sides, options)
        finally:
            if options.before:
                subprocess.run([*git, "remove", "--force", str(tree)], check=True)


def compare(sides: dict[str, tuple[str, str, Path]], options: argparse.Namespace) -> None:
    rates = {name: [] for name in sides}
    for number in range(options.rounds):
        for name, side in sides.items():
            rates[name].append(run_side(*side, options.data, options.images))
            found = ", ".join(f"{part} {rate:.0f}" for part, rate in rates[name][-1].items())
            print(f"round {number + 1}, {name}: {found}", flush=True)
    sys.path.insert(0, str(ROOT))
    text = table(rates, options)
    print(text)
    if options.write:
        (ROOT / "benchmarks" / "input_pipeline.md").write_text(text + "\n")


if __name__ == "__main__":
    main()
