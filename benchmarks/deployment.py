"""Time per image of a detector with either engine, as exported models, and of torchvision, on this machine's CPU.

From the file to detections, one image at a time. With --weights FILE it is a trained detector, and AP on the val split
of --data is told too; torchvision takes part where the network has its shape. Ranges for int8 are measured on the train
split.
"""

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from benchmarks.frame import TORCHVISION, Benchmark, Options, in_fresh_process, in_turn
from benchmarks.made_up import write_weights
from benchmarks.tables import Claim, Figures, markdown, paragraphs

ENGINES = {"`--engine oneflow`": "oneflow", "`--engine onnxruntime`": "onnxruntime"}
EXPORTED = {"exported, float32": "float32.onnx", "exported, int8": "int8.onnx"}
IMAGES, QUICK_IMAGES, WARM_UP_IMAGES = 10, 2, 2
# Images for the ranges of int8: as many as docs/onnx.md tells of, fewer where only time is measured.
CALIBRATION, CALIBRATION_WITHOUT_AP = 200, 50


def image_files(data: str) -> dict[str, list[str]]:
    """Paths of the images of both splits; for a fresh process."""
    from ssd300_vgg16.data.formats import DataSource

    source = DataSource("voc", Path(data))
    return {split: [str(each.path.resolve()) for each in source.load(split).samples] for split in ("val", "train")}


def export_models(folder: str, weights: str, calibration: list[str]) -> dict:
    """Write the exported models, and torchvision's weights; returns sizes and shape. For a fresh process."""
    import numpy as np

    from ssd300_vgg16 import export
    from ssd300_vgg16.detector import Detector
    from ssd300_vgg16.weights.model import model_tensors

    images = Path(folder) / "calibration"
    images.mkdir()
    for number, path in enumerate(calibration):
        (images / f"{number}{Path(path).suffix}").symlink_to(path)
    files = [Path(folder) / name for name in EXPORTED.values()]
    for file, options in zip(files, ([], ["--int8", "--calibrate", str(images)]), strict=True):
        export.main([weights, "--to", str(file), *options])
    detector = Detector.load(weights, "cpu", engine="oneflow")
    np.savez(Path(folder) / "torchvision.npz", **model_tensors(detector.model))
    float32 = sum(tensor.numel() for tensor in detector.model.parameters()) * 4 / 1e6
    about = detector.description
    return {
        "MB": dict(zip(EXPORTED, [file.stat().st_size / 1e6 for file in files], strict=True)) | {"": float32},
        "network": f"{about.variant.name}, width {about.width:g}, {about.num_classes} outputs",
        "torchvision's": (about.variant.name, about.width, about.num_classes) == ("ssd300_vgg16_coco", 1, 91),
    }


def detector_of(name: str, folder: str, weights: str) -> tuple[Callable, int]:
    """What `Detector.detect` is of a row of the table, and the side of its input."""
    import numpy as np

    if name in ENGINES:
        from ssd300_vgg16.detector import Detector

        detector = Detector.load(weights, "cpu", engine=ENGINES[name])
        return detector.detect, detector.image_size
    import onnxruntime

    session = onnxruntime.InferenceSession(Path(folder) / EXPORTED[name], providers=["CPUExecutionProvider"])

    def detect(images: np.ndarray, sizes_hw: np.ndarray) -> list[dict[str, np.ndarray]]:
        names = ["boxes", "scores", "labels", "batch_index"]
        boxes, scores, labels, batch_index = session.run(names, {"images": images})
        detections = []
        for number, (height, width) in enumerate(sizes_hw):
            rows = batch_index == number
            in_pixels = boxes[rows] * np.array([width, height, width, height], dtype=np.float32)
            detections.append({"boxes": in_pixels, "scores": scores[rows], "labels": labels[rows]})
        return detections

    return detect, int(session.get_modelmeta().custom_metadata_map["image_size"])


def seconds_per_image(call: Callable[[str], object], images: Sequence[str]) -> float:
    """After some images that are not counted."""
    for path in images[:WARM_UP_IMAGES]:
        call(path)
    start = time.perf_counter()
    for path in images:
        call(path)
    return (time.perf_counter() - start) / len(images)


def time_ours(name: str, folder: str, weights: str, images: list[str]) -> float:
    """Seconds per image of a row; for a fresh process."""
    detect, side = detector_of(name, folder, weights)
    import numpy as np

    from ssd300_vgg16.data.images import network_input, read_image

    def call(path: str) -> None:
        image = read_image(Path(path), upright=True)
        detect(network_input(image, side)[None], np.array([image.shape[:2]]))

    return seconds_per_image(call, images)


def time_torchvision(folder: str, images: list[str]) -> float:
    """Seconds per image of torchvision's SSD300 with the same weights; for a fresh process of the peers' Python."""
    import numpy as np
    import torch
    from torchvision.io import ImageReadMode, read_image
    from torchvision.models.detection import ssd300_vgg16

    model = ssd300_vgg16(weights=None, weights_backbone=None, num_classes=91).eval()
    with np.load(Path(folder) / "torchvision.npz") as arrays:
        model.load_state_dict({name: torch.from_numpy(arrays[name]) for name in arrays})
    with torch.inference_mode():
        return seconds_per_image(lambda path: model([read_image(path, ImageReadMode.RGB).float() / 255]), images)


def average_precision(name: str, folder: str, weights: str, data: str) -> list[float]:
    """AP and AP50 on the val split; for a fresh process."""
    detect, side = detector_of(name, folder, weights)
    from ssd300_vgg16.data.formats import DataSource
    from ssd300_vgg16.data.workers import WorkerPool
    from ssd300_vgg16.detector import Detector
    from ssd300_vgg16.metrics.evaluation import evaluate

    categories = Detector.load(weights, "cpu").description.categories
    with WorkerPool(0) as pool:
        dataset = DataSource("voc", Path(data)).load("val", categories)
        numbers = evaluate(lambda *batch: partial(detect, *batch), dataset, side, 1, pool).metrics.statistics
    return [numbers["AP"], numbers["AP50"]]


def measure(options: Options) -> Figures:
    """By row: seconds per image, megabytes, and with --weights AP and AP50."""
    files = in_fresh_process(image_files, options.data)
    images = files["val"][: QUICK_IMAGES if options.quick else IMAGES]
    calibration = files["train"][: CALIBRATION if options.weights else CALIBRATION_WITHOUT_AP]
    with tempfile.TemporaryDirectory() as folder:
        weights = options.weights or Path(folder) / "made-up.safetensors"
        if not options.weights:
            in_fresh_process(write_weights, weights, images)
        made = in_fresh_process(export_models, folder, weights, calibration)
        sides = {}
        if TORCHVISION in options.peers and made["torchvision's"]:
            torchvision = partial(in_fresh_process, time_torchvision, folder, images, python=options.peers.python)
            sides[options.peers.name(TORCHVISION)] = torchvision
        for name in (*ENGINES, *EXPORTED):
            sides[name] = partial(in_fresh_process, time_ours, name, folder, weights, images)
        detectors = {
            name: {"seconds": statistics.median(times), "MB": made["MB"].get(name, made["MB"][""])}
            for name, times in in_turn(options.rounds, sides).items()
        }
        for name in (*ENGINES, *EXPORTED) if options.weights else ():
            ap, ap50 = in_fresh_process(average_precision, name, folder, weights, options.data)
            detectors[name] |= {"AP": ap, "AP50": ap50}
    return {"detectors": detectors, "network": made["network"]}


def table(figures: Figures) -> str:
    detectors = figures["detectors"]
    first = next(iter(detectors.values()))["seconds"]
    with_ap = any("AP" in row for row in detectors.values())
    rows = []
    for name, row in detectors.items():
        ap = [f"{row[key]:.4f}" if key in row else "-" for key in ("AP", "AP50")] if with_ap else []
        times = [f"{1e3 * row['seconds']:.1f}", f"{first / row['seconds']:.2f}", f"{row['MB']:.1f}"]
        rows.append([name, *ap, *times])
    header = ["", *(["AP", "AP50"] if with_ap else []), "ms per image", "times as fast as the first", "weights, MB"]
    about = f"{figures['network']}. From the file to detections, one image at a time."
    return paragraphs(about, markdown(header, rows))


def claims(figures: Figures) -> Iterator[Claim]:
    seconds = {name: row["seconds"] for name, row in figures["detectors"].items()}
    for peer in (name for name in seconds if name.startswith(TORCHVISION)):
        for name in (name for name in seconds if name != peer):
            yield Claim(f"file to detections, {name}", seconds[name], peer, seconds[peer], "ms")


BENCHMARK = Benchmark("Detecting, from file to detections", measure, table, claims, needs=(TORCHVISION,))
