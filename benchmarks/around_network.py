"""The work around the network, on the CPU: time by size of the image, number of objects, number of classes.

Reading and resizing an image, matching objects to default boxes, the loss with its gradients, post-processing, and AP;
the package against torchvision's parts of the same name, and for AP against pycocotools. Each round runs either side in
a process of its own.
"""

import contextlib
import io
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks import plots
from benchmarks.engines import time_calls
from benchmarks.frame import Benchmark, Options, in_fresh_process, in_turn
from benchmarks.made_up import random_objects, write_image
from benchmarks.tables import Claim, Figures, claims_at, markdown, median, paragraphs, significant

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PACKAGE, PEERS = "this package", "torchvision"
IMAGES = ((320, 240), (640, 480), (1280, 960), (2560, 1920), (4000, 3000))
OBJECTS = (1, 10, 100)
CLASSES = (2, 21, 91, 1204)
# A trained network's answers: it is sure of a few default boxes on each object, and of background elsewhere.
SURE_BOXES, SURE, BACKGROUND, NOISE = 30, 9.0, 8.0, 0.7
LOSS_BATCH = 4
AP_IMAGES = 300
READING, MATCHING, LOSS = "read and resize", "match", f"loss and gradients, batch {LOSS_BATCH}"
POST_OBJECTS, POST_CLASSES = "post-process, 91 classes", "post-process, 10 objects"
AP = f"AP of {AP_IMAGES} images"
# What varies in each, and the values it takes.
AXES = {
    READING: ("image", tuple(f"{width}x{height}" for width, height in IMAGES)),
    MATCHING: ("objects in an image", OBJECTS),
    LOSS: ("objects in an image", OBJECTS),
    POST_OBJECTS: ("objects in an image", OBJECTS),
    AP: ("objects in an image", OBJECTS),
    POST_CLASSES: ("classes", CLASSES),
}


def answers(objects: int, classes: int, boxes: int = 8732) -> tuple:
    """Offsets float32 [1, D, 4] and logits float32 [1, D, C] of an image with so many objects in it."""
    import numpy as np

    rng = np.random.default_rng(0)
    offsets = rng.normal(0, 0.5, (1, boxes, 4)).astype(np.float32)
    logits = rng.standard_normal((1, boxes, classes), dtype=np.float32) * np.float32(NOISE)
    logits[0, :, 0] += BACKGROUND
    for label in rng.integers(1, classes, objects):
        first = rng.integers(0, boxes - SURE_BOXES)
        logits[0, first : first + SURE_BOXES, label] += SURE
    return offsets, logits


def package_reading(path: Path) -> Callable[[], object]:
    from ssd300_vgg16.data.images import network_input, read_image

    return lambda: network_input(read_image(path, upright=True), 300)


def package_matching(objects: int) -> Callable[[], object]:
    """As a data worker does it: the default boxes are sorted into blocks once."""
    import numpy as np

    from ssd300_vgg16.data.matching import DefaultBoxIndex, write_targets
    from ssd300_vgg16.network.variants import default_boxes

    index, [(boxes, labels)] = DefaultBoxIndex(default_boxes()), random_objects(1, 300, 91, objects)
    targets = np.zeros((8732, 4), dtype=np.float32), np.zeros(8732, dtype=np.int64)
    return lambda: write_targets(boxes, labels, index, *targets)


def package_loss(objects: int) -> Callable[[], object]:
    import numpy as np

    from ssd300_vgg16.data.matching import training_targets
    from ssd300_vgg16.network.loss import multibox_loss
    from ssd300_vgg16.network.variants import default_boxes
    from ssd300_vgg16.runtime import flow

    targets = [training_targets(*each, default_boxes()) for each in random_objects(LOSS_BATCH, 300, 91, objects)]
    target_offsets, target_labels = (flow.from_numpy(np.stack(arrays)) for arrays in zip(*targets, strict=True))
    outputs = [np.repeat(array, LOSS_BATCH, axis=0) for array in answers(objects, 91)]

    def loss() -> None:
        offsets, logits = (flow.from_numpy(array).requires_grad_() for array in outputs)
        sum(multibox_loss(offsets, logits, target_offsets, target_labels).values()).backward()
        offsets.grad.numpy(), logits.grad.numpy()

    return loss


def package_postprocess(objects: int, classes: int) -> Callable[[], object]:
    from ssd300_vgg16.network.postprocess import postprocess
    from ssd300_vgg16.runtime import flow

    offsets, logits = map(flow.from_numpy, answers(objects, classes))
    return lambda: postprocess(offsets, logits, [(480, 640)])


def torchvision_reading(path: Path) -> Callable[[], object]:
    """With its decoder, and the resizing of its detectors."""
    from torch.nn.functional import interpolate
    from torchvision.io import ImageReadMode, decode_jpeg, read_file

    def read():
        pixels = decode_jpeg(read_file(str(path)), ImageReadMode.RGB)[None].float() / 255
        return interpolate(pixels, size=(300, 300), mode="bilinear", align_corners=False)

    return read


def torchvision_model(classes: int):
    """The detector, for its parts after the network, and its default boxes [8732, 4]."""
    import torch
    from torchvision.models.detection import ssd300_vgg16
    from torchvision.models.detection.image_list import ImageList

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    model = ssd300_vgg16(weights=None, weights_backbone=None, num_classes=2)
    model.head.classification_head.num_columns = classes
    images = ImageList(torch.zeros(1, 3, 300, 300), [(300, 300)])
    return model, model.anchor_generator(images, [torch.zeros(1, 1, side, side) for side in (38, 19, 10, 5, 3, 1)])[0]


def torchvision_targets(images: int, objects: int) -> list[dict]:
    import torch

    made = random_objects(images, 300, 91, objects)
    return [{"boxes": torch.tensor(boxes), "labels": torch.tensor(labels)} for boxes, labels in made]


def torchvision_matching(objects: int) -> Callable[[], object]:
    from torchvision.ops.boxes import box_iou

    model, boxes = torchvision_model(91)
    [target] = torchvision_targets(1, objects)

    def match():
        matched = model.proposal_matcher(box_iou(target["boxes"], boxes))
        rows = matched.clamp(min=0)
        return model.box_coder.encode_single(target["boxes"][rows], boxes), target["labels"][rows]

    return match


def torchvision_loss(objects: int) -> Callable[[], object]:
    import torch
    from torchvision.ops.boxes import box_iou

    model, boxes = torchvision_model(91)
    targets = torchvision_targets(LOSS_BATCH, objects)
    matched = [model.proposal_matcher(box_iou(target["boxes"], boxes)) for target in targets]
    outputs = [torch.tensor(array).repeat(LOSS_BATCH, 1, 1) for array in answers(objects, 91)]

    def loss() -> None:
        offsets, logits = (tensor.clone().requires_grad_() for tensor in outputs)
        predicted = {"bbox_regression": offsets, "cls_logits": logits}
        sum(model.compute_loss(targets, predicted, [boxes] * LOSS_BATCH, matched).values()).backward()

    return loss


def torchvision_postprocess(objects: int, classes: int) -> Callable[[], object]:
    import torch

    model, boxes = torchvision_model(classes)
    offsets, logits = map(torch.tensor, answers(objects, classes))
    predicted = {"bbox_regression": offsets, "cls_logits": logits}

    def postprocess():
        with torch.inference_mode():
            return model.postprocess_detections(predicted, [boxes], [(480, 640)])

    return postprocess


def average_precision(tool: str, objects: int) -> Callable[[], object]:
    """Twice as many detections as objects, 100 at the most; what it prints is held back."""
    # Only here: it imports numpy, before which the package has to come.
    from benchmarks.coco_ap import SIDES, made_up

    dataset, found = made_up(AP_IMAGES, min(2 * objects, 100), objects=objects)

    def evaluate() -> None:
        with contextlib.redirect_stdout(io.StringIO()):
            SIDES[tool](dataset, found, Path(os.devnull))

    return evaluate


def prepare(side: str, what: str, point, images: Path) -> Callable[[], object]:
    """What to time, of one side at one point of the axis."""
    ours = side == PACKAGE
    if what == READING:
        return (package_reading if ours else torchvision_reading)(images / f"{point}.jpg")
    if what == MATCHING:
        return (package_matching if ours else torchvision_matching)(point)
    if what == LOSS:
        return (package_loss if ours else torchvision_loss)(point)
    if what == AP:
        return average_precision("the package" if ours else "pycocotools", point)
    objects, classes = (point, 91) if what == POST_OBJECTS else (10, point)
    return (package_postprocess if ours else torchvision_postprocess)(objects, classes)


def measure_side(side: str, images: str, quick: bool) -> list[tuple]:
    """What, point and seconds of everything; AP is pycocotools' on the peers' side. For a fresh process."""
    rows = []
    for what, (_, points) in AXES.items():
        for point in points[:1] if quick else points:
            call = prepare(side, what, point, Path(images))
            rows.append((what, point, time_calls(call, *((1, 0) if quick else (9, 1.5)))))
    return rows


def measure(options: Options) -> Figures:
    """For each part its axis, points and, for each side, the seconds there (None: not had)."""
    # What each side is called, and what in the table of AP.
    names, pythons = {PACKAGE: (PACKAGE, PACKAGE)}, {PACKAGE: Path(sys.executable)}
    if "torchvision" in options.peers and "pycocotools" in options.peers:
        names[PEERS] = (options.peers.name("torchvision"), options.peers.name("pycocotools"))
        pythons[PEERS] = options.peers.python
    with tempfile.TemporaryDirectory() as folder:
        for width, height in IMAGES:
            write_image(Path(folder) / f"{width}x{height}.jpg", width, height)
        sides = {
            side: partial(in_fresh_process, measure_side, side, folder, options.quick, python=python)
            for side, python in pythons.items()
        }
        rounds = in_turn(options.rounds, sides)
    # In each round the same rows in the same order.
    seconds = {
        side: {tuple(rows[0][:2]): median(row[2] for row in rows) for rows in zip(*of_side, strict=True)}
        for side, of_side in rounds.items()
    }
    figures: Figures = {}
    for what, (axis, points) in AXES.items():
        lines = {}
        for side, (name, ap_name) in names.items():
            lines[ap_name if what == AP else name] = [seconds[side].get((what, point)) for point in points]
        figures[what] = {"axis": axis, "points": list(points), "lines": lines}
    return figures


def table(figures: Figures) -> str:
    tables = []
    for what, found in figures.items():
        rows = []
        for place, point in enumerate(found["points"]):
            seconds = [values[place] for values in found["lines"].values()]
            ratio = f"{seconds[1] / seconds[0]:.1f}" if len(seconds) == 2 and all(seconds) else "-"
            rows.append([str(point), *(significant(each, 1e3) for each in seconds), ratio])
        header = [found["axis"], *(f"{what}: {name}, ms" for name in found["lines"]), "ratio"]
        tables.append(markdown(header, rows))
    about = (
        f"The network's answers are sure of {SURE_BOXES} default boxes on each object. AP: {AP_IMAGES} images with "
        "twice as many detections as objects, 100 at the most."
    )
    return paragraphs(about, *tables)


def claims(figures: Figures) -> Iterator[Claim]:
    """One point of each axis; `coco_ap` says more of AP."""
    points: dict[str, tuple] = {"image": ("4000x3000", "{}"), "objects in an image": (10, "{} objects")}
    points["classes"] = (1204, "{} classes")
    for what, found in figures.items():
        point, text = points[found["axis"]]
        if what != AP:
            yield from claims_at(found, point, f"{what}, {text.format(point)}", "ms")


def draw(figure: "Figure", figures: Figures) -> None:
    figure.set_size_inches(15, 8)
    for axes, (what, found) in zip(figure.subplots(2, 3).ravel(), figures.items(), strict=True):
        values = {name: [second and 1e3 * second for second in row] for name, row in found["lines"].items()}
        plots.lines(axes, found["points"], values, what, found["axis"], "milliseconds")
        axes.legend(fontsize=9)


BENCHMARK = Benchmark("Around the network", measure, table, claims, draw, needs=("torchvision", "pycocotools"))
