"""What images without objects are good for in training: AP, and false alarms on such images, seed by seed.

    .venv/bin/python -m benchmarks backgrounds             30 minutes on two cores

Generated shapes, with as many images that hold no object of the classes: "distractors" hold crosses, half-discs,
crescents and blobs in the classes' colours, "empty" ones nothing. One network learns the shapes alone; all runs begin
with it, and have the same number of steps. Every run is `train.sh` itself, in runs/backgrounds; those that are there
already are not repeated.
"""

import json
import os
import subprocess
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING

from benchmarks.frame import ROOT, Benchmark, Options, in_fresh_process, trained
from benchmarks.tables import Figures, markdown, paragraphs

if TYPE_CHECKING:
    import numpy as np

RUNS = ROOT / "runs" / "backgrounds"
IMAGES = {"train": 200, "val": 100}  # with objects; and as many without
KINDS = ("distractors", "empty")
FRACTIONS = (0.0, 0.1, 1.0)
SEEDS = (0, 1, 2)
FIRST_STEPS, STEPS = 700, 300
THINGS = (1, 5)  # in an image, as many as there are shapes in others
THING_SIDES = (60, 170)
SCORE = 0.5


def write_data(path: str, kind: str) -> None:
    """Shapes in COCO's layout, and images without; for a fresh process."""
    import cv2

    from ssd300_vgg16.data.shapes import write_shapes

    folder = Path(path)
    if folder.is_dir():
        return
    aside = folder.with_name(f"{folder.name}.{os.getpid()}")
    write_shapes(aside, IMAGES["train"], IMAGES["val"], seed=0)
    for number, (split, count) in enumerate(IMAGES.items()):
        annotations = aside / "annotations" / f"instances_{split}.json"
        content = json.loads(annotations.read_text())
        for index in range(count):
            image = draw(number, index, with_things=kind == "distractors")
            name = f"without-{index:06}.jpg"
            cv2.imwrite(str(aside / split / name), image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 90])
            height, width = image.shape[:2]
            content["images"].append({"id": count + index + 1, "file_name": name, "height": height, "width": width})
        annotations.write_text(json.dumps(content))
    aside.rename(folder)


def draw(split: int, index: int, with_things: bool) -> "np.ndarray":
    """An image uint8 [H, W, 3] RGB as those of the shapes, with other things on it or with nothing."""
    import numpy as np

    from ssd300_vgg16.data.shapes import HUES, IMAGE_SIDES, _background, _colour, _paint

    rng = np.random.default_rng([7, split, index])
    height, width = (int(side) for side in rng.integers(IMAGE_SIDES[0], IMAGE_SIDES[1] + 1, 2))
    image = _background(height, width, rng)
    for _ in range(rng.integers(THINGS[0], THINGS[1] + 1) if with_things else 0):
        side = int(rng.integers(*THING_SIDES))
        top, left = rng.integers(0, height - side), rng.integers(0, width - side)
        window = slice(top, top + side), slice(left, left + side)
        image[window] = _paint(image[window], _thing(side, rng), _colour(str(rng.choice(list(HUES))), rng), rng)
    return np.rint(np.clip(image, 0, 255)).astype(np.uint8)


def _thing(side: int, rng: "np.random.Generator") -> "np.ndarray":
    """Coverage float32 [side, side] in 0..1 of a cross, a half-disc, a crescent or a blob, turned anyhow."""
    import cv2
    import numpy as np

    y, x = np.mgrid[-1 : 1 : 4j * side, -1 : 1 : 4j * side]
    angle = rng.uniform(0, 2 * np.pi)
    x, y = np.cos(angle) * x + np.sin(angle) * y, np.cos(angle) * y - np.sin(angle) * x
    radius, lobes = np.hypot(x, y), rng.integers(3, 6)
    inside = (
        lambda: (np.minimum(abs(x), abs(y)) < 0.2) & (radius < 0.95),
        lambda: (y > 0) & (radius < 0.95),
        lambda: (radius < 0.95) & (np.hypot(x - 0.5, y) > 0.8),
        lambda: radius < 0.7 + 0.22 * np.sin(lobes * np.arctan2(y, x)),
    )[rng.integers(4)]()
    return cv2.resize(inside.astype(np.float32), (side, side), interpolation=cv2.INTER_AREA)


def measured(run: Path, data: Path) -> dict[str, float]:
    """AP and AP50 of a run on the validation set of this data, and its false alarms there on an image without objects.

    A false alarm is a detection scored above SCORE.
    """
    output = run / data.name
    if not (output / "coco_metrics.json").exists():
        given = ("--weights", run, "--data-path", data, "--dataset", "coco", "--output-dir", output)
        subprocess.run(["bash", ROOT / "eval.sh", *map(str, given)], check=True)
    numbers = json.loads((output / "coco_metrics.json").read_text())
    rows = json.loads((output / "detections.json").read_text())
    alarms = sum(row["score"] > SCORE and row["image_id"] > IMAGES["val"] for row in rows)
    return {"AP": numbers["AP"], "AP50": numbers["AP50"], "alarms": alarms / IMAGES["val"]}


def measure(options: Options) -> Figures:
    """AP, AP50 and false alarms by kind of image and fraction, for each seed."""
    figures: Figures = {kind: {f"{fraction:g}": [] for fraction in FRACTIONS} for kind in KINDS}
    for kind in KINDS:
        in_fresh_process(write_data, RUNS / f"data-{kind}", kind)
    train("first", KINDS[0], 0.0, "--iterations", FIRST_STEPS)
    for seed in SEEDS:
        for kind in KINDS:
            for fraction in FRACTIONS:
                # Without them it is the same training, whatever they show.
                name = f"{kind}-{fraction:g}-{seed}" if fraction else f"without-{seed}"
                run = train(name, kind, fraction, "--iterations", STEPS, "--seed", seed, "--load", RUNS / "first")
                figures[kind][f"{fraction:g}"].append(measured(run, RUNS / f"data-{kind}"))
    return figures


def train(name: str, kind: str, fraction: float, *arguments: object) -> Path:
    """A run of this name on the data of a kind; its folder."""
    data = ("--data-path", RUNS / f"data-{kind}", "--dataset", "coco", "--background-images", fraction)
    trained(RUNS / name, *data, "--preset", "narrow", "--eval-every", 1000, *arguments)
    return RUNS / name


def table(figures: Figures) -> str:
    """A row for each kind and fraction: what each seed gives."""
    rows = []
    for kind, fractions in figures.items():
        for fraction, runs in fractions.items():
            columns = ([run[name] for run in runs] for name in ("AP", "AP50", "alarms"))
            shown = [f"{' '.join(f'{value:.3f}' for value in values)} (mean {mean(values):.3f})" for values in columns]
            rows.append([kind, fraction, *shown])
    about = (
        f"`--preset narrow`, {STEPS} steps, seeds {', '.join(map(str, SEEDS))}, from a network that learnt the "
        f"{IMAGES['train']} images of shapes alone in {FIRST_STEPS} steps. There are as many images without objects to "
        f"learn from, of which an epoch takes FRACTION (1: all). AP on {IMAGES['val']} other images of shapes and as "
        f"many without objects; false alarms: detections scored above {SCORE:g} on one of the latter."
    )
    return paragraphs(about, markdown(["images without objects", "FRACTION", "AP", "AP50", "false alarms"], rows))


BENCHMARK = Benchmark("Images without objects", measure, table, rounds=1, quick=False)
