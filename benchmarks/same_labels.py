"""More from the same labels: what other augmentation, losses and averages gain on few images, seed by seed.

    .venv/bin/python -m benchmarks same_labels --data bccd

Generated shapes, and these photographs. One network learns the shapes; all runs begin with it, and have the same number
of steps. Every run is `train.sh` with one option of its own. What the package does not have, as it gains nothing here,
is put into it by this file: a mosaic of four images, GIoU, and label smoothing. The runs stay in runs/same_labels;
those that are there already are not repeated.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.frame import ROOT, Benchmark, Options, in_fresh_process, trained
from benchmarks.made_up import write_shapes
from benchmarks.tables import Figures, markdown, paragraphs

if TYPE_CHECKING:
    import numpy as np

RUNS = ROOT / "runs" / "same_labels"
IMAGES = 200, 100  # shapes to train on, and to evaluate on
FIRST_STEPS, STEPS = 500, 300
SEEDS = (0, 1, 2)
MOSAIC_SHARE, MOSAIC_SCALES = 0.5, (0.5, 1.0)
SMOOTHING = 0.1
GIOU_WEIGHT = 5.0  # an offset that is 1 off, where smooth L1 has its full slope, takes about 0.2 of IoU
EMA = "0.99"  # an average over about 100 steps
METRICS = ("AP", "AP50", "AP75")


def train_on_mosaics() -> None:
    """`train.sh` with MOSAIC_SHARE of its examples cut out of four images side by side; with one process of data."""
    import numpy as np

    from ssd300_vgg16 import train
    from ssd300_vgg16.data import loader

    known: list = []
    tasks_of, augment = loader._tasks, loader.augment

    def tasks(samples, rows):  # type: ignore[no-untyped-def]
        known[:] = samples
        return tasks_of(samples, rows)

    def augment_four(decoded, boxes, labels, rng, policy, out):  # type: ignore[no-untyped-def]
        boxes, labels = augment(decoded, boxes, labels, rng, policy, out)
        if rng.random() >= MOSAIC_SHARE:
            return boxes, labels
        size, tiles, places = out.shape[-1], [out.copy()], [boxes]
        kinds = [labels]
        for number, index in enumerate(rng.integers(0, len(known), 3), start=1):
            decoded, annotated = loader.read_as_annotated(known[index], None)
            boxes, labels = known[index].objects(*annotated)
            tiles.append(np.empty_like(out))
            boxes, labels = augment(
                decoded, loader.scaled(boxes, annotated, decoded.size), labels, rng, policy, tiles[-1]
            )
            places.append(boxes + size * np.array([number % 2, number // 2] * 2, dtype=np.float32))
            kinds.append(labels)
        canvas = np.concatenate([np.concatenate(tiles[row : row + 2], axis=2) for row in (0, 2)], axis=1)
        return cut_out(canvas, np.concatenate(places), np.concatenate(kinds), rng, out)

    loader._tasks, loader.augment = tasks, augment_four  # type: ignore[assignment]
    sys.exit(train.main([*sys.argv[1:], "--workers", "0"]))


def cut_out(
    canvas: "np.ndarray", boxes: "np.ndarray", labels: "np.ndarray", rng: "np.random.Generator", out: "np.ndarray"
) -> "tuple[np.ndarray, np.ndarray]":
    """Write a window of the canvas [3, 2S, 2S], which sees all four images, into out [3, S, S]; boxes as of a crop."""
    import cv2
    import numpy as np

    size = out.shape[-1]
    side = int(size / rng.uniform(*MOSAIC_SCALES))
    # A fifth of an image at least is seen of each.
    low, high = max(0, size - side + size // 5), min(2 * size - side, size - size // 5)
    left, top = rng.integers(low, high + 1, 2)
    window = canvas[:, top : top + side, left : left + side].transpose(1, 2, 0)
    out[:] = cv2.resize(np.ascontiguousarray(window), (size, size)).transpose(2, 0, 1)
    boxes = boxes - np.array([left, top] * 2, dtype=np.float32)
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    boxes = np.clip(boxes, 0, side) * np.float32(size / side)
    keep = ((centres > 0) & (centres < side)).all(axis=1) & ((boxes[:, 2:] - boxes[:, :2]) > 0).all(axis=1)
    return boxes[keep], labels[keep]


def train_with(changed: Callable) -> None:
    """`train.sh` with what the kernel of the loss returns changed."""
    from ssd300_vgg16 import train
    from ssd300_vgg16.network.cpu import loss

    kernel = loss.multibox_loss
    loss.multibox_loss = lambda *arrays: changed(arrays, kernel(*arrays))
    sys.exit(train.main(sys.argv[1:]))


def train_smoothed() -> None:
    """`train.sh` with labels of which SMOOTHING is spread over all classes."""
    train_with(smoothed)


def smoothed(arrays: tuple, found: "tuple[np.ndarray, ...]") -> "tuple[np.ndarray, ...]":
    """What the kernel of the loss returns, for smoothed labels: of the same default boxes as without."""
    import numpy as np

    _, logits, _, labels, *_ = arrays
    sums, offsets_gradient, gradient = found
    counted = gradient.any(axis=2)
    rows, labels = logits[counted], labels[counted]
    sums[1] += SMOOTHING * (rows[np.arange(len(rows)), labels] - rows.mean(axis=1)).sum()
    target = np.eye(rows.shape[1], dtype=np.float32)[labels]
    gradient[counted] += np.float32(SMOOTHING) * (target - target.mean(axis=1, keepdims=True))
    return sums, offsets_gradient, gradient


def train_by_giou() -> None:
    """`train.sh` with GIOU_WEIGHT times 1 - GIoU (Rezatofighi et al. 2019) in place of smooth L1."""
    train_with(by_giou)


def by_giou(arrays: tuple, found: "tuple[np.ndarray, ...]") -> "tuple[np.ndarray, ...]":
    """What the kernel of the loss returns, for GIoU."""
    import numpy as np

    offsets, _, target_offsets, labels, *_ = arrays
    sums, offsets_gradient, gradient = found
    positive = labels > 0
    losses, by_offsets = giou_losses(offsets[positive], target_offsets[positive])
    sums[0] = GIOU_WEIGHT * losses.sum()
    offsets_gradient[positive] = np.float32(GIOU_WEIGHT) * by_offsets
    return sums, offsets_gradient, gradient


def giou_losses(offsets: "np.ndarray", targets: "np.ndarray") -> "tuple[np.ndarray, np.ndarray]":
    """1 - GIoU [N] of the boxes that two offsets [N, 4] make of a default box, and its gradient [N, 4] by the first.

    In units of the default box's sides, on which GIoU does not depend. Rows are by axis, then by box.
    """
    import numpy as np

    from ssd300_vgg16.boxes import CENTRE_VARIANCE, SIZE_VARIANCE

    offsets, targets = offsets.T.astype(np.float64), targets.T.astype(np.float64)
    sides, target_sides = np.exp(SIZE_VARIANCE * offsets[2:]), np.exp(SIZE_VARIANCE * targets[2:])
    centres, target_centres = CENTRE_VARIANCE * offsets[:2], CENTRE_VARIANCE * targets[:2]
    starts, stops = centres - sides / 2, centres + sides / 2
    target_starts, target_stops = target_centres - target_sides / 2, target_centres + target_sides / 2
    meets = np.minimum(stops, target_stops) > np.maximum(starts, target_starts)
    shared = meets * (np.minimum(stops, target_stops) - np.maximum(starts, target_starts))
    spans = np.maximum(stops, target_stops) - np.minimum(starts, target_starts)
    overlap, around = shared.prod(axis=0), spans.prod(axis=0)
    union = sides.prod(axis=0) + target_sides.prod(axis=0) - overlap
    # The loss is 2 - overlap / union - union / around; its gradient by what two boxes share along an axis, ...
    by_union = overlap / union**2 - 1 / around
    by_shared, by_spans = (-1 / union - by_union) * shared[::-1], union / around**2 * spans[::-1]
    # ... by where they start and stop, and by centre and side.
    by_starts = -by_shared * meets * (starts > target_starts) - by_spans * (starts < target_starts)
    by_stops = by_shared * meets * (stops < target_stops) + by_spans * (stops > target_stops)
    by_sides = (by_stops - by_starts) / 2 + by_union * sides[::-1]
    gradient = np.concatenate((CENTRE_VARIANCE * (by_starts + by_stops), SIZE_VARIANCE * by_sides * sides))
    return 2 - overlap / union - union / around, gradient.T


def evaluate_twice(weights: str, data: str, kind: str) -> list[list[float]]:
    """METRICS of what is detected on the images, and on their mirror images too."""
    from ssd300_vgg16.data.formats import DataSource
    from ssd300_vgg16.data.workers import WorkerPool
    from ssd300_vgg16.detector import Detector
    from ssd300_vgg16.metrics.evaluation import evaluate

    found = []
    for mirror in (False, True):
        detector = Detector.load(weights, "cpu", mirror=mirror)
        dataset = DataSource(kind, Path(data)).load("val", detector.description.categories)
        with WorkerPool(0) as pool:
            evaluation = evaluate(detector.begin, dataset, detector.image_size, 8, pool)
        assert evaluation is not None  # of the only process
        found.append([evaluation.metrics.statistics[metric] for metric in METRICS])
    return found


# By variant: what it is called, the options of train.sh, and what of this file trains in its place.
VARIANTS: dict[str, tuple[str, tuple[str, ...], str]] = {
    "flips": ("mirror images, as `narrow` does", ("--ema", EMA), ""),
    "ssd": ("`--data-augmentation ssd`", ("--data-augmentation", "ssd"), ""),
    "mosaic": ("mosaic of four images", (), "train_on_mosaics"),
    "giou": ("GIoU in place of smooth L1", (), "train_by_giou"),
    "smoothing": ("label smoothing", (), "train_smoothed"),
}
# Where a step, or detecting on an image, is more work than with the first.
COSTS = {"mosaic": "2.5 images read for each", "mirrored": "the network twice"}
# What the weights of the first give besides: by a moving average of them, and seeing each image mirrored too.
BESIDES = {"average": f"`--ema {EMA}`", "mirrored": "`--mirror` in detection"}


def measure(options: Options) -> Figures:
    """Lists of [AP, AP50, AP75] by set and variant, one for each seed."""
    in_fresh_process(write_shapes, RUNS / "data-shapes", *IMAGES)
    data = {
        "photographs": ("--data-path", options.data, "--dataset", "voc"),
        "shapes": ("--data-path", RUNS / "data-shapes", "--dataset", "coco"),
    }
    preset = "--preset", "narrow", "--default-boxes", "coco", "--eval-every", 1000
    trained(RUNS / "first", *data["shapes"], *preset, "--iterations", FIRST_STEPS)
    figures: Figures = {name: {variant: [] for variant in (*VARIANTS, *BESIDES)} for name in data}
    for seed in SEEDS:
        for variant, (_, arguments, function) in VARIANTS.items():
            for name, source in data.items():
                run = RUNS / f"{variant}-{name}-{seed}"
                given = *source, *preset, *arguments, "--load", RUNS / "first", "--iterations", STEPS, "--seed", seed
                found = trained(run, *given, command=patched(function) if function else None)["evaluations"][-1]
                if variant == "flips":
                    figures[name]["average"].append([found[metric] for metric in METRICS])
                    found, mirrored = in_fresh_process(evaluate_twice, run / "last.safetensors", *source[1::2])
                    figures[name]["mirrored"].append(mirrored)
                    found = dict(zip(METRICS, found, strict=True))
                figures[name][variant].append([found[metric] for metric in METRICS])
    return figures


def patched(function: str) -> tuple[str, ...]:
    """The command that stands for `bash train.sh`, and is a function of this file."""
    call = f"import ssd300_vgg16.cli; from benchmarks.same_labels import {function}; {function}()"
    return sys.executable, "-c", call


def table(figures: Figures) -> str:
    """A row for each variant: AP of each seed on each set, and how far it is from that of the same seed by flips."""
    names = {variant: called for variant, (called, *_) in VARIANTS.items()} | BESIDES
    rows = []
    for variant, called in names.items():
        row = [called]
        for by_variant in figures.values():
            aps = [ap for ap, *_ in by_variant[variant]]
            # A benchmark that was stopped has fewer seeds of some.
            changes = [ap - flips for ap, (flips, *_) in zip(aps, by_variant["flips"], strict=False)]
            shown = (f"{change:+.3f}" for change in changes if variant != "flips")
            row += [" ".join(f"{ap:.3f}" for ap in aps), " ".join(shown)]
        if any(row[1:]):
            rows.append([*row, COSTS.get(variant, "the same")])
    about = (
        f"`--preset narrow`, {STEPS} steps, from a network that learnt {IMAGES[0]} images of shapes in {FIRST_STEPS} "
        f"steps. AP on the photographs' own validation set, and on {IMAGES[1]} other images of shapes, by seed; then "
        "how far it is from that of mirror images alone. Each other row changes one thing of the first."
    )
    heads = ["what", *(head for name in figures for head in (f"AP, {name}", "change")), "cost"]
    return paragraphs(about, markdown(heads, rows))


BENCHMARK = Benchmark("More from the same labels", measure, table, rounds=1, quick=False, own_data=True)
