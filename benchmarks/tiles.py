"""Objects that are small in a large image, with tiles and without: AP on pictures, on mosaics of them, and on scenes.

    .venv/bin/python -m benchmarks tiles --data bccd

Three networks of narrow layers learn generated shapes, and from there the photographs of --data. The mosaics put
pictures of the validation set side by side, 3 x 3 and 4 x 4, without a mark between them; what is found is measured in
the pictures, so that the same objects are looked for in the same pixels. Scenes are large pictures of the shapes, which
lie anywhere. The rules of joining were chosen on BCCD's mosaics of nine alone. Trainings are in runs/tiles; those that
are there already are not repeated.
"""

import json
import time
from pathlib import Path
from statistics import mean

from benchmarks import joining, made_up
from benchmarks.frame import ROOT, Benchmark, Options, in_fresh_process, trained
from benchmarks.tables import Figures, markdown, paragraphs

RUNS = ROOT / "runs" / "tiles"
SEEDS = (0, 1, 2)
SHAPES_EPOCHS, EPOCHS = 3, 16
GRIDS = (3, 4)
PICTURES, PICTURE = 144, (400, 300)  # of shapes
SCENES, SCENE, OBJECTS = 4, (2400, 1800), 130
SHOWN = 0.25  # the score from which infer.sh shows a detection
PHOTOGRAPHS, SHAPES, LARGE = "photographs", "shapes", "scenes of shapes"


def measure(options: Options) -> Figures:
    """By seed, set and way of detecting: AP and what is found on seams; and the first seed's boxes, joined by SAHI."""
    seeds = []
    for seed in SEEDS:
        shapes, photographs = RUNS / f"shapes-{seed}", RUNS / f"photographs-{seed}"
        usual = ("--preset", "narrow", "--seed", seed)
        trained(shapes, *usual, "--dataset", "shapes", "--epochs", SHAPES_EPOCHS)
        own = ("--data-path", options.data, "--default-boxes", "coco", "--epochs", EPOCHS, "--load", shapes)
        trained(photographs, *usual, *own)
        seeds.append(in_fresh_process(detect, photographs, shapes, options.data, RUNS / f"windows-{seed}.npz"))
        print(f"seed {seed}: done", flush=True)
    first = RUNS / f"windows-{SEEDS[0]}.npz"
    return {"seeds": seeds, "sahi": joining.compared(first, RUNS / "photographs-0", options)}


def detect(photographs: str, shapes: str, data: str, kept: str) -> dict[str, dict[str, Figures]]:
    """By set and way, the figures of one seed; kept: a file for what all windows of the mosaics of nine have found."""
    from ssd300_vgg16 import tiles
    from ssd300_vgg16.data.formats import DataSource
    from ssd300_vgg16.data.images import read_image
    from ssd300_vgg16.detector import Detector

    windows, join = joining.Windows(), tiles.join
    found = {}
    dataset = DataSource(path=Path(data)).load("val", Detector.load(photographs, "cpu").description.categories)
    images = [read_image(sample.path) for sample in dataset.samples]
    tiles.join = windows.keeping(join)
    found[PHOTOGRAPHS] = on_mosaics(photographs, dataset, images, GRIDS)
    windows.write(kept)
    tiles.join = join
    categories = Detector.load(shapes, "cpu").description.categories
    pictures = [made_up.shapes_scene(*PICTURE, 1 + seed % 5, seed) for seed in range(PICTURES)]
    found[SHAPES] = on_mosaics(shapes, dataset_of(pictures, categories), [image for image, *_ in pictures], GRIDS)
    scenes = [made_up.shapes_scene(*SCENE, OBJECTS, 1000 + seed) for seed in range(SCENES)]
    found[LARGE] = on_mosaics(shapes, dataset_of(scenes, categories), [image for image, *_ in scenes], (1,))
    # The scenes' objects are in no smaller pictures: those of the same kind are what AP is held against.
    del found[LARGE]["pictures"]
    found[LARGE]["1, tiles"]["AP of pictures"] = found[SHAPES]["pictures"]["AP"]
    return json.loads(json.dumps(found, default=float))


def dataset_of(pictures: list, categories: tuple):
    """A data set of what `shapes_scene` has made."""
    import numpy as np

    from ssd300_vgg16.boxes import area
    from ssd300_vgg16.data.dataset import Dataset, Problems, Sample

    labels_of = {category.name: category.label for category in categories}
    samples = []
    for number, (image, boxes, names) in enumerate(pictures):
        labels = np.array([labels_of[name] for name in names], dtype=np.int64)
        no = np.zeros(len(boxes), dtype=bool)
        samples.append(Sample(number, Path(f"{number}"), *image.shape[:2], boxes, labels, no, area(boxes), no))
    return Dataset("shapes", categories, tuple(samples), Problems("shapes"))


def on_mosaics(run: str, dataset, images: list, grids: tuple[int, ...]) -> dict[str, Figures]:
    """The figures of pictures by themselves, and of mosaics by grid, with the model's own tiles and without.

    Each mosaic's AP is held against that of its pictures; a grid of 1 is of the pictures themselves.
    """
    from ssd300_vgg16 import Detector

    plain, tiled = Detector.load(run, "cpu"), Detector.load(run, "cpu", tiles="auto")
    single, seconds = seen(plain, images, 1)
    figures = {"pictures": {**ap(dataset, single), **seconds}}
    for grid in grids:
        count = len(images) // grid**2 * grid**2
        without, _ = seen(plain, images[:count], grid)
        detections, seconds = seen(tiled, images[:count], grid)
        seams = [on_seams(dataset.samples[index], index, grid, tiled.tiling) for index in range(count)]
        figures[f"{grid}"] = ap(dataset, without)
        figures[f"{grid}, tiles"] = {
            **ap(dataset, detections),
            **seconds,
            "AP of pictures": ap(dataset, single[:count])["AP"],
            "found": found_by_seam(dataset, detections, seams),
            "found in pictures": found_by_seam(dataset, single[:count], seams) if grid > 1 else None,
        }
    return figures


def seen(detector, images: list, grid: int) -> tuple[list[dict], Figures]:
    """What is found in each picture of mosaics; and the seconds: all, and those of the network."""
    network, seconds, detections = _Timed(detector), 0.0, []
    for start in range(0, len(images), grid**2):
        pictures = images[start : start + grid**2]
        mosaic = mosaic_of(pictures, grid)
        since = time.perf_counter()
        (found,) = detector.begin_on([mosaic], 1)()
        seconds += time.perf_counter() - since
        detections += in_pictures(found, grid, *pictures[0].shape[:2])
    return detections, {"inside": network.seconds, "all": seconds, "images": len(images) // grid**2}


def mosaic_of(pictures: list, grid: int):
    """Pictures [H, W, 3] of one size side by side, row by row, without a mark between them."""
    import numpy as np

    return np.concatenate([np.concatenate(pictures[row : row + grid], axis=1) for row in range(0, grid**2, grid)])


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


def in_pictures(found: dict, grid: int, height: int, width: int) -> list[dict]:
    """Detections of each picture of a mosaic, in its pixels: those whose centre is there."""
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


def ap(dataset, detections: list[dict]) -> Figures:
    """AP and AP50 of the first images of the data set."""
    from ssd300_vgg16.metrics.coco_ap import coco_ap
    from ssd300_vgg16.metrics.coco_results import coco_results

    statistics = coco_ap(coco_results(dataset, list(range(len(detections))), detections)).statistics
    return {name: statistics[name] for name in ("AP", "AP50")}


def on_seams(sample, index: int, grid: int, tiling):
    """Whether each object of a picture is cut by an edge of a tile of its mosaic: bool [N]."""
    import numpy as np

    row, column = divmod(index % grid**2, grid)
    boxes = sample.boxes + np.array([column * sample.width, row * sample.height] * 2)
    tiles = np.array(tiling.windows(grid * sample.height, grid * sample.width)[1:])
    meets = (boxes[:, None, :2] < tiles[:, 2:]).all(axis=2) & (boxes[:, None, 2:] > tiles[:, :2]).all(axis=2)
    inside = (boxes[:, None, :2] >= tiles[:, :2]).all(axis=2) & (boxes[:, None, 2:] <= tiles[:, 2:]).all(axis=2)
    return (meets & ~inside).any(axis=1)


def found_by_seam(dataset, detections: list[dict], seams: list) -> list[list[int]]:
    """Objects on seams, and off them: how many are found at IoU 0.5 by what is shown, and how many there are."""
    import numpy as np

    from ssd300_vgg16.boxes import iou

    counts = np.zeros((2, 2), dtype=int)
    for sample, found, cut in zip(dataset.samples, detections, seams, strict=False):
        overlaps = iou(sample.boxes, found["boxes"].astype(np.float64))
        overlaps *= sample.labels[:, None] == found["labels"]
        is_found = np.zeros(len(sample.boxes), dtype=bool)
        for column in np.flatnonzero(found["scores"] > SHOWN):  # the best first, and each finds one object
            free = np.where(is_found, 0, overlaps[:, column])
            if len(free) and free.max() >= 0.5:
                is_found[free.argmax()] = True
        for row, chosen in enumerate((cut, ~cut)):
            counts[row] += is_found[chosen].sum(), chosen.sum()
    return counts.tolist()


def table(figures: Figures) -> str:
    """The same as text: means of the seeds, and of what is kept the AP of each."""
    seeds, rows = figures["seeds"], []
    header = ["", "AP", "AP50", "AP kept, by seed", "objects on seams"]
    header += ["found of them", "in single pictures", "found of the others", "in single pictures"]

    def milliseconds(way: str) -> float:
        those = [seed[PHOTOGRAPHS][way] for seed in seeds]
        return sum(one["all"] for one in those) / sum(one["images"] for one in those) * 1000

    def share(of_seeds: list, row: int) -> str:
        return f"{mean(found[row][0] / found[row][1] for found in of_seeds):.3f}" if all(of_seeds) else "-"

    for kind, ways in seeds[0].items():
        for way in ways:
            those = [seed[kind][way] for seed in seeds]
            cells = [f"{mean(one[name] for one in those):.3f}" for name in ("AP", "AP50")]
            if "found" in those[0]:
                cells.append(", ".join(f"{one['AP'] / one['AP of pictures']:.0%}" for one in those))
                cells.append(f"{those[0]['found'][0][1]} of {sum(count for _, count in those[0]['found'])}")
                found = [[one[name] for one in those] for name in ("found", "found in pictures")]
                cells += [share(of_seeds, row) for row in (0, 1) for of_seeds in found]
            rows.append([_name(kind, way), *cells, *[""] * (len(header) - 1 - len(cells))])
    inside, everything = (sum(seed[PHOTOGRAPHS]["3, tiles"][name] for seed in seeds) for name in ("inside", "all"))
    told = (
        f"A photograph seen once takes {milliseconds('pictures'):.0f} ms, a mosaic of nine with tiles "
        f"{milliseconds('3, tiles'):.0f} ms, of which {1 - inside / everything:.1%} are outside the network and its "
        "post-processing."
    )
    about = (
        f"An eighth of the channels, {EPOCHS} epochs; means of {len(seeds)} seeds. Tiles are those of `--tiles auto`. "
        f"Found: at IoU 0.5 by a detection scored above {SHOWN}. An object is on a seam if an edge of a tile cuts it. "
        "The AP of scenes is held against that of the small pictures of shapes."
    )
    return paragraphs(about, markdown(header, rows), told, joining.table(figures["sahi"]))


def _name(kind: str, way: str) -> str:
    grid, _, tiles = way.partition(", ")
    mosaics = {"pictures": "", "1": ""}.get(grid, f", {grid} x {grid}")
    return f"{kind}{mosaics}{', tiles' if tiles else ''}"


BENCHMARK = Benchmark(
    "Tiles for small objects in large images",
    measure,
    table,
    needs=(joining.SAHI,),
    rounds=1,
    quick=False,
    own_data=True,
)
