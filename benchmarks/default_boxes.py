"""Published default boxes against fitted ones, on three kinds of objects: AP, seed by seed.

    .venv/bin/python -m benchmarks default_boxes --data bccd

The photographs of --data; generated shapes a tenth as large as those of `train.sh`; and upright bars, 5 to 9 times as
high as wide. All start from nothing, and those of a set differ in their default boxes alone. Every run is `train.sh`
itself, in runs/default-boxes; those that are there already are not repeated.
"""

from pathlib import Path
from statistics import mean

from benchmarks.frame import ROOT, Benchmark, Options, in_fresh_process, trained
from benchmarks.made_up import write_odd_shapes
from benchmarks.tables import Figures, markdown, paragraphs

RUNS = ROOT / "runs" / "default-boxes"
BOXES = ("coco", "voc", "fit")
SEEDS = (0, 1, 2)
MADE_UP = {"small": "shapes of 6 to 17 pixels", "thin": "upright bars"}
IMAGES, VAL_IMAGES = 200, 100
STEPS = 400


def measure(options: Options) -> Figures:
    """By set: the share of objects with a default box of IoU 0.5 and the mean of their best, and [AP, AP50] of each
    seed, by default boxes."""
    sets = {"photographs": (options.data, "voc")}
    for kind, name in MADE_UP.items():
        in_fresh_process(write_odd_shapes, RUNS / f"data-{kind}", kind, IMAGES, VAL_IMAGES)
        sets[name] = RUNS / f"data-{kind}", "coco"
    figures: Figures = {}
    for name, (data, dataset) in sets.items():
        figures[name] = {boxes: in_fresh_process(fit_of, data, dataset, boxes) for boxes in BOXES}
    # Seed by seed, so that a benchmark that is stopped has whole tables.
    for seed in SEEDS:
        for name, (data, dataset) in sets.items():
            for boxes in BOXES:
                run = RUNS / f"{name}-{boxes}-{seed}".replace(" ", "-")
                given = ("--data-path", data, "--dataset", dataset, "--default-boxes", boxes, "--seed", seed)
                length = ("--preset", "narrow", "--iterations", STEPS, "--eval-every", 1000)
                last = trained(run, *length, *given)["evaluations"][-1]
                figures[name][boxes].setdefault("runs", []).append([last["AP"], last["AP50"]])
    return figures


def fit_of(data: str, dataset: str, boxes: str) -> Figures:
    """How the training set fits the default boxes; for a fresh process."""
    from ssd300_vgg16.data.fitting import fit
    from ssd300_vgg16.data.formats import DataSource
    from ssd300_vgg16.inspection.figures import best_iou, objects_at_input
    from ssd300_vgg16.inspection.report import share_fitting
    from ssd300_vgg16.network.variants import default_boxes, variant_of

    objects = objects_at_input(DataSource(dataset, Path(data)).load("train"), 300)
    variant = (
        fit(objects.boxes, objects.labels, "ssd300_vgg16") if boxes == "fit" else variant_of("ssd300_vgg16", boxes)
    )
    ious = best_iou(objects.boxes, default_boxes(variant.layout))
    return {"share": share_fitting(ious), "mean IoU": float(ious.mean())}


def table(figures: Figures) -> str:
    """A row for each set and kind of default boxes: how they fit, and what each seed gives."""
    rows = []
    for name, kinds in figures.items():
        for boxes, found in kinds.items():
            columns = list(zip(*found["runs"], strict=True))
            shown = [f"{' '.join(f'{value:.3f}' for value in values)} (mean {mean(values):.3f})" for values in columns]
            rows.append([name, boxes, f"{found['share']:.1%}", f"{found['mean IoU']:.2f}", *shown])
    about = (
        f"`--preset narrow`, {STEPS} steps from nothing, seeds {', '.join(map(str, SEEDS))}. Generated sets have "
        f"{IMAGES} images to learn from and {VAL_IMAGES} others "
        "to be measured on; the shapes are 5 to 12 in an image, the bars 2 to 8, and 5 to 9 times as high as wide. "
        "IoU: of the objects to learn from, without augmentation, each with its best default box."
    )
    return paragraphs(about, markdown(["objects", "`--default-boxes`", "IoU ≥ 0.5", "IoU", "AP", "AP50"], rows))


BENCHMARK = Benchmark("Fitted default boxes", measure, table, rounds=1, quick=False, own_data=True)
