"""SSD-VGG16 in the package's engines and in its peers: one forward pass, one training step.

Each engine runs in a process of its own, as they need different libraries; `run` starts it. The networks have random
weights. What is timed begins with images in main memory and ends with the answer, or the updated weights, there.
"""

import os
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cache, partial
from pathlib import Path

from benchmarks.frame import TORCHVISION, Options, Peers, environment, in_fresh_process, in_turn
from benchmarks.made_up import random_objects
from benchmarks.tables import median

ONEFLOW, ONNX_RUNTIME = "OneFlow", "ONNX Runtime"
FLOWVISION, FLOWVISION_MKL = "flowvision", "flowvision with MKL"
FORWARD, TRAINING = "forward", "training step"
# What the package's own environment runs; TORCHVISION needs that of the peers.
OWN = (ONEFLOW, ONNX_RUNTIME, FLOWVISION, FLOWVISION_MKL)
OURS = {ONEFLOW: "this package, OneFlow", ONNX_RUNTIME: "this package, ONNX Runtime"}
NAMES = OURS | {FLOWVISION: "flowvision 0.2.1 as installed", FLOWVISION_MKL: "flowvision 0.2.1 with MKL"}


@dataclass(frozen=True)
class Job:
    """What to time: FORWARD or TRAINING of `batch` images.

    model: "ssd300_vgg16", "ssd512_vgg16" or "ssd512_vgg16_highres" (torchvision: not the second). width, update:
    OneFlow's alone; update is "sgd" or "adamw". The rest: see `time_calls`.
    """

    what: str
    batch: int = 1
    classes: int = 91
    model: str = "ssd300_vgg16"
    width: float = 1.0
    update: str = "sgd"
    device: str = "cpu"
    repeats: int = 3
    seconds: float = 20.0
    warm_up: bool = True


@dataclass(frozen=True)
class Timing:
    """Seconds of each call of a job; in MiB the process's peak of memory so far, and what all users have of the GPU."""

    seconds: list[float]
    peak_mib: float
    gpu_mib: float | None = None


def names_here(options: Options, *engines: str) -> dict[str, str]:
    """Of these engines those that can be had here, and what the tables call them."""
    names = NAMES | ({TORCHVISION: options.peers.name(TORCHVISION)} if TORCHVISION in options.peers else {})
    cpu_only = () if options.device == "cpu" else (ONNX_RUNTIME, FLOWVISION_MKL)
    return {engine: names[engine] for engine in engines if engine in names and engine not in cpu_only}


def seconds_per_image(jobs: dict[str, list[Job]], options: Options) -> dict[str, dict[Job, float]]:
    """Medians of each engine's jobs; in each round an engine does all of its own in a process."""
    sides = {engine: partial(run, engine, of_engine, options.peers) for engine, of_engine in jobs.items()}
    return {
        engine: {
            job: median(timing.seconds for timing in timings) / job.batch
            for job, timings in zip(jobs[engine], zip(*rounds, strict=True), strict=True)
        }
        for engine, rounds in in_turn(options.rounds, sides).items()
    }


def run(engine: str, jobs: list[Job], peers: Peers) -> list[Timing]:
    """Do jobs one after the other in a fresh process; raises ProcessFailed with its last words if it fails."""
    python = sys.executable if engine in OWN else peers.python
    env = environment()
    if engine == FLOWVISION:  # as installed, but for the libraries without which `import oneflow` fails
        libraries = Path(sysconfig.get_path("purelib")) / "nvidia"
        env["LD_LIBRARY_PATH"] = f"{libraries / 'cublas' / 'lib'}:{libraries / 'cudnn' / 'lib'}"
    fields = [asdict(job) for job in jobs]
    answers = in_fresh_process(do_jobs, engine, fields, python=python, env=env, package=engine in OURS)
    return [Timing(**timing) for timing in answers]


def do_jobs(engine: str, jobs: list[dict]) -> list[dict]:
    """The fresh process of `run`."""
    timings = []
    for job in (Job(**fields) for fields in jobs):
        call = PREPARE[engine, job.what](job)
        seconds = time_calls(call, job.repeats, job.seconds, job.warm_up)
        timings.append(asdict(Timing(seconds, peak_mib(), gpu_mib(job.device))))
    return timings


def random_images(job: Job) -> tuple:
    """Images uint8 [B, 3, S, S], and S."""
    import numpy as np

    side = int(job.model[3:6])
    return np.random.default_rng(0).integers(0, 256, (job.batch, 3, side, side), dtype=np.uint8), side


def random_targets(job: Job, side: int) -> tuple:
    """Offsets float32 [B, D, 4] and labels int64 [B, D] that training aims at; needs numpy, but not OneFlow."""
    import numpy as np

    from ssd300_vgg16.data.matching import training_targets
    from ssd300_vgg16.network.variants import default_boxes, variant_of

    boxes = default_boxes(variant_of(job.model, "coco").layout)
    targets = [training_targets(*objects, boxes) for objects in random_objects(job.batch, side, job.classes)]
    offsets, labels = map(np.stack, zip(*targets, strict=True))
    return offsets, labels


def our_model(job: Job):
    """The package's network on the device."""
    from ssd300_vgg16.network.ssd import SSD
    from ssd300_vgg16.network.variants import variant_of

    return SSD(variant_of(job.model, "coco"), job.classes, job.width).to(job.device)


def oneflow_forward(job: Job) -> Callable[[], None]:
    model = our_model(job).eval()
    from ssd300_vgg16.runtime import flow

    images, _ = random_images(job)

    def forward() -> None:
        with flow.no_grad():
            for tensor in model(flow.from_numpy(images).to(job.device)):
                tensor.numpy()

    return forward


def oneflow_training(job: Job) -> Callable[[], None]:
    """As train.sh does it: op by op on the CPU, as a compiled graph on a GPU."""
    model = our_model(job)
    import numpy as np

    from ssd300_vgg16.data.loader import TrainingBatch
    from ssd300_vgg16.distributed.world import ALONE
    from ssd300_vgg16.training.config import OptimizerConfig, Schedule
    from ssd300_vgg16.training.step import make_step

    schedule = Schedule("multistep", 1e-6, 1000, 1)
    step = make_step(model, OptimizerConfig(job.update), schedule, ALONE, 1, amp=False, eager=job.device == "cpu")
    images, side = random_images(job)
    offsets, labels = random_targets(job, side)
    batch = TrainingBatch(images, offsets, labels, [], [])
    positives = int(np.count_nonzero(labels))

    def train() -> None:
        step(batch, positives).numpy()
        model.backbone.scale_weight.numpy()

    return train


def write_random_weights(path: str, model: str, classes: int) -> None:
    """A file of weights, with what ONNX Runtime makes of it beside it; for a fresh process."""
    made = our_model(Job(FORWARD, classes=classes, model=model))
    from ssd300_vgg16.data.dataset import Category
    from ssd300_vgg16.detector import Detector
    from ssd300_vgg16.weights.model import model_tensors
    from ssd300_vgg16.weights.safetensors_file import ModelDescription, save_weights

    categories = tuple(Category(label, label, f"class {label}") for label in range(1, classes))
    save_weights(Path(path), model_tensors(made), ModelDescription(classes, 1.0, categories, made.variant))
    Detector.load(path, "cpu", engine="onnxruntime")


@cache
def onnx_runtime_network(model: str, classes: int) -> Callable:
    """What `--engine onnxruntime` computes; the weights are made by another process, whose memory is not this one's."""
    from ssd300_vgg16.detector import Detector

    with tempfile.TemporaryDirectory() as folder:
        weights = f"{folder}/random.safetensors"
        in_fresh_process(write_random_weights, weights, model, classes)
        return Detector.load(weights, "cpu", engine="onnxruntime")._network


def onnx_runtime_forward(job: Job) -> Callable[[], None]:
    network = onnx_runtime_network(job.model, job.classes)
    images, _ = random_images(job)
    return lambda: network(images)


def library_of(engine: str):
    """OneFlow or PyTorch; for this package, and for flowvision with MKL, with what the package puts before it."""
    if engine == TORCHVISION:
        import torch

        torch.set_num_threads(len(os.sched_getaffinity(0)))
        return torch
    if engine != FLOWVISION:
        import ssd300_vgg16.runtime  # noqa: F401
    import oneflow

    return oneflow


def zoo_model(job: Job, engine: str):
    """The model zoo's network on the device."""
    if engine != TORCHVISION:
        if job.model != "ssd300_vgg16":
            raise ValueError(f"flowvision has no {job.model}")
        from flowvision.models.detection import ssd300_vgg16

        return ssd300_vgg16(pretrained=False, pretrained_backbone=False, num_classes=job.classes).to(job.device)
    from torchvision.models import vgg16
    from torchvision.models.detection import ssd, ssd300_vgg16
    from torchvision.models.detection.anchor_utils import DefaultBoxGenerator

    if job.model == "ssd300_vgg16":
        return ssd300_vgg16(weights=None, weights_backbone=None, num_classes=job.classes).to(job.device)
    if job.model != "ssd512_vgg16_highres":
        raise ValueError(f"torchvision has no {job.model}")
    backbone = ssd._vgg_extractor(vgg16(weights=None), True, 5)
    boxes = DefaultBoxGenerator([[2], *[[2, 3]] * 4, [2], [2]])
    return ssd.SSD(backbone, boxes, (512, 512), job.classes).to(job.device)


def zoo_forward(job: Job, engine: str) -> Callable[[], None]:
    """The network alone, of flowvision and torchvision alike: what follows it needs an NMS that OneFlow's CPU lacks."""
    library, model = library_of(engine), zoo_model(job, engine).eval()
    images, _ = random_images(job)
    images = library.from_numpy(images)

    def forward() -> None:
        with library.no_grad():
            features = model.backbone(images.to(job.device).to(library.float32))
            for tensor in model.head(list(features.values())).values():
                tensor.cpu().numpy()

    return forward


def zoo_training(job: Job, engine: str) -> Callable[[], None]:
    """The step of the model zoos' own train.py; it matches objects to default boxes, which takes milliseconds."""
    library, model = library_of(engine), zoo_model(job, engine).train()
    optimizer = library.optim.SGD(model.parameters(), lr=1e-6, momentum=0.9, weight_decay=5e-4)
    images, side = random_images(job)
    images = library.from_numpy(images)
    objects = random_objects(job.batch, side, job.classes)
    targets = [
        {"boxes": library.tensor(boxes).to(job.device), "labels": library.tensor(labels).to(job.device)}
        for boxes, labels in objects
    ]

    def train() -> None:
        losses = sum(model(list(images.to(job.device).to(library.float32) / 255), targets).values())
        optimizer.zero_grad()
        losses.backward()
        optimizer.step()
        model.backbone.scale_weight.detach().cpu().numpy()

    return train


PREPARE: dict[tuple[str, str], Callable[[Job], Callable[[], None]]] = {
    (ONEFLOW, FORWARD): oneflow_forward,
    (ONEFLOW, TRAINING): oneflow_training,
    (ONNX_RUNTIME, FORWARD): onnx_runtime_forward,
    (FLOWVISION, FORWARD): partial(zoo_forward, engine=FLOWVISION),
    (FLOWVISION, TRAINING): partial(zoo_training, engine=FLOWVISION),
    (FLOWVISION_MKL, FORWARD): partial(zoo_forward, engine=FLOWVISION_MKL),
    (TORCHVISION, FORWARD): partial(zoo_forward, engine=TORCHVISION),
    (TORCHVISION, TRAINING): partial(zoo_training, engine=TORCHVISION),
}


def peak_mib() -> float:
    """This process's peak of resident memory (not ru_maxrss, which begins with that of the parent)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))


def gpu_mib(device: str) -> float | None:
    """Memory of the GPU that is in use, by whomever; libraries keep what they once had, so it is a peak."""
    if device == "cpu":
        return None
    if "torch" in sys.modules:
        import torch

        free, total = torch.cuda.mem_get_info(device)
        return (total - free) / 2**20
    import oneflow

    return oneflow._oneflow_internal.GetCUDAMemoryUsed()


def time_calls(call: Callable[[], None], repeats: int, seconds: float, warm_up: bool = True) -> list[float]:
    """Seconds of each of some calls, one at least, after one that is not counted; fewer if `seconds` are over."""
    if warm_up:
        call()
    times, since = [], time.perf_counter()
    while not times or (len(times) < repeats and time.perf_counter() - since < seconds):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return times
