"""The work around the network, on the CPU: time by size of the photograph, number of objects, number of classes.

    .venv/bin/python benchmarks/around_network.py

Reading and resizing a photograph, matching objects to default boxes, the loss with its gradients, post-processing, and
AP; the package against torchvision's parts of the same name, and for AP against pycocotools. Everything is made up, the
same for all. Each round runs either side in a process of its own; medians over all rounds.
"""

import argparse
import contextlib
import io
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import part
import peers
from coco_ap import SIDES as AP_TOOLS
from engines import ONEFLOW, environment, measure, random_objects

TITLE = "Around the network: by size of the photograph, by number of objects, by number of classes"
PACKAGE, PEERS = "this package", "torchvision"
PHOTOGRAPHS = ((320, 240), (640, 480), (1280, 960), (2560, 1920), (4000, 3000))
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
    READING: ("photograph", tuple(f"{width}x{height}" for width, height in PHOTOGRAPHS)),
    MATCHING: ("objects in an image", OBJECTS),
    LOSS: ("objects in an image", OBJECTS),
    POST_OBJECTS: ("objects in an image", OBJECTS),
    AP: ("objects in an image", OBJECTS),
    POST_CLASSES: ("classes", CLASSES),
}


def write_photograph(path: Path, width: int, height: int, seed: int = 0) -> None:
    """A JPEG with as much detail as a photograph has: smooth shapes, some noise; of about 1.5 bits a pixel."""
    import cv2
    import numpy as np

    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (height // 16, width // 16, 3), dtype=np.uint8)
    smooth = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC).astype(np.float32)
    pixels = np.clip(smooth + rng.normal(0, 4, smooth.shape), 0, 255).astype(np.uint8)
    cv2.imwrite(str(path), pixels, [cv2.IMWRITE_JPEG_QUALITY, 90])


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

    found = random_objects(images, 300, 91, objects)
    return [{"boxes": torch.tensor(boxes), "labels": torch.tensor(labels)} for boxes, labels in found]


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
    from coco_ap import made_up

    dataset, found = made_up(AP_IMAGES, min(2 * objects, 100), objects=objects)

    def evaluate() -> None:
        with contextlib.redirect_stdout(io.StringIO()):
            AP_TOOLS[tool](dataset, found, Path(os.devnull))

    return evaluate


def prepare(side: str, what: str, point, photographs: Path) -> Callable[[], object]:
    """What to time, of one side at one point of the axis."""
    ours = side == PACKAGE
    if what == READING:
        return (package_reading if ours else torchvision_reading)(photographs / f"{point}.jpg")
    if what == MATCHING:
        return (package_matching if ours else torchvision_matching)(point)
    if what == LOSS:
        return (package_loss if ours else torchvision_loss)(point)
    if what == AP:
        return average_precision("the package" if ours else "pycocotools", point)
    objects, classes = (point, 91) if what == POST_OBJECTS else (10, point)
    return (package_postprocess if ours else torchvision_postprocess)(objects, classes)


def run_side(side: str, photographs: Path, options: argparse.Namespace) -> list[dict]:
    """Everything once, in a fresh process: rows of what, point and seconds."""
    python = sys.executable if side == PACKAGE else options.peer_python
    command = [python, __file__, "--side", side, "--photographs", photographs, *["--quick"] * options.quick]
    done = subprocess.run(command, env=environment(ONEFLOW), check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def measure_side(side: str, photographs: Path, quick: bool) -> list[dict]:
    """The rows of one side; AP is pycocotools' in the peers' process."""
    if side == PACKAGE:
        import ssd300_vgg16  # noqa: F401 - before numpy, as in train.sh
    rows = []
    for what, (_, points) in AXES.items():
        for point in points[:1] if quick else points:
            seconds = measure(prepare(side, what, point, photographs), *((1, 0) if quick else (9, 1.5)))
            rows.append({"what": what, "point": point, "seconds": seconds})
    return rows


def measure_all(sides: Sequence[str], options: argparse.Namespace) -> dict[str, dict[tuple, float]]:
    """By side, then by what and point, median seconds."""
    times = {side: {} for side in sides}
    with tempfile.TemporaryDirectory() as name:
        for width, height in PHOTOGRAPHS:
            write_photograph(Path(name) / f"{width}x{height}.jpg", width, height)
        for number in range(options.rounds):
            for side in sides:
                for row in run_side(side, Path(name), options):
                    times[side].setdefault((row["what"], row["point"]), []).append(row["seconds"])
                print(f"round {number + 1}, {side}", flush=True)
    return {side: {at: part.median(rounds) for at, rounds in of_side.items()} for side, of_side in times.items()}


def figures_of(medians: dict[str, dict[tuple, float]], names: dict[str, str]) -> dict:
    """For each part its axis, points and, for each side, the seconds there (None: not had)."""
    figures = {}
    for what, (axis, points) in AXES.items():
        named = names | ({PEERS: names.get("pycocotools", "")} if what == AP else {})
        lines = {named[side]: [of_side.get((what, point)) for point in points] for side, of_side in medians.items()}
        figures[what] = {"axis": axis, "points": list(points), "lines": lines}
    return figures


def table_of(figures: dict, notes: Sequence[str], about: str) -> str:
    tables = []
    for what, part_of in figures.items():
        rows = []
        for place, point in enumerate(part_of["points"]):
            seconds = [values[place] for values in part_of["lines"].values()]
            ratio = f"{seconds[1] / seconds[0]:.1f}" if len(seconds) == 2 and all(seconds) else "-"
            rows.append([str(point), *map(part.milliseconds, seconds), ratio])
        header = [part_of["axis"], *(f"{what}: {name}, ms" for name in part_of["lines"]), "ratio"]
        tables.append(part.markdown(header, rows))
    return part.paragraphs(about, *tables, *notes)


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = part.parser(__doc__)
    parser.add_argument("--quick", action="store_true", help="the first point of each, once: a rehearsal")
    parser.add_argument("--side", choices=(PACKAGE, PEERS), help=argparse.SUPPRESS)
    parser.add_argument("--photographs", type=Path, help=argparse.SUPPRESS)
    peers.add_option(parser)
    return parser.parse_args(arguments)


def main() -> None:
    options = parse()
    if options.side:
        print(json.dumps(measure_side(options.side, options.photographs, options.quick)), flush=True)
        return
    installed = peers.find_peers(options.peer_python)
    names, sides = {PACKAGE: PACKAGE}, [PACKAGE]
    if set(installed.versions) >= TORCHVISION_AND_COCO:
        names |= {PEERS: installed.name("torchvision"), "pycocotools": installed.name("pycocotools")}
        sides.append(PEERS)
    figures = figures_of(measure_all(sides, options), names)
    about = (
        f"Milliseconds; medians over {part.rounds(options)}. The photographs are made up (JPEG, quality 90), and so "
        "are the network's answers, which are sure of 30 default boxes on each object. "
        f"AP: {AP_IMAGES} images with twice as many detections as objects, 100 at the most."
    )
    part.answer(options, TITLE, table_of(figures, installed.left_out(*sorted(TORCHVISION_AND_COCO)), about), figures)


TORCHVISION_AND_COCO = {"torchvision", "pycocotools"}

if __name__ == "__main__":
    main()
