"""run.html: a training as it goes on, and the figures that it shares with the page that compares runs."""

import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

import numpy as np

from ssd300_vgg16.network.variants import FITTED
from ssd300_vgg16.report.html_page import html_page
from ssd300_vgg16.text import duration

MAX_POINTS = 400  # of a curve: more are not seen
LOSSES = ("localization", "classification")
AP_NAMES = ("AP50", "AP", "VOC_mAP")
RUNNING = "running"
RENEWED_AFTER = 10  # seconds
SHOWN_SCORE = 0.3
AUGMENTATIONS = {
    "ssd": "zoom-out, crops, mirroring and changes of colour (ssd)",
    "ssdlite": "crops and mirroring (ssdlite)",
    "hflip": "mirroring (hflip)",
}
SHARES = {1: "all", 0.5: "half", 0.25: "a quarter", 0.125: "an eighth"}


class _Data(TypedDict, total=False):
    name: str
    images: int
    objects: int
    sha256: str


class Environment(TypedDict, total=False):
    """Of environment.json, what is read again."""

    data: dict[str, _Data]
    processes: int
    steps: int
    device: str
    cpu: str
    gpus: str
    oneflow: str
    git_commit: str | None


class _ClassFigures(TypedDict, total=False):
    AP: float
    AP50: float
    objects: int


class _Best(TypedDict, total=False):
    score_threshold: float | None


class _Tiles(TypedDict, total=False):
    side: int
    overlap: float


class Metrics(TypedDict, total=False):
    """Of coco_metrics.json, what is read again."""

    per_class: dict[str, _ClassFigures]
    best_f1: _Best
    tiles: _Tiles
    mirror: bool


_Marks = list[list[float | str | None]]


class _Picture(TypedDict, total=False):
    file: str
    path: str
    jpeg: str
    size: list[int]
    scale: list[float]
    marks: _Marks


class _Detected(TypedDict, total=False):
    step: int
    epoch: int
    images: list[_Marks]


class Album(TypedDict, total=False):
    """run_page.json."""

    state: str
    classes: list[str]
    samples: list[_Picture]
    validation: list[_Picture]
    detections: list[_Detected]


@dataclass(frozen=True)
class Run:
    """What a run's folder says of it.

    rows: the lines of metrics.jsonl; metrics: of coco_metrics.json; album: state and pictures (`training.run_page`).
    What was not written yet is empty.
    """

    name: str
    options: dict
    environment: dict
    rows: list[dict]
    metrics: dict
    album: dict

    @property
    def training(self) -> list[dict]:
        return [row for row in self.rows if row["kind"] == "training"]

    @property
    def evaluations(self) -> list[dict]:
        return [row for row in self.rows if row["kind"] == "evaluation"]

    @property
    def per_class(self) -> dict[str, dict]:
        return self.metrics.get("per_class", {})


def loss(row: dict) -> float:
    """The loss as a whole."""
    return sum(row[name] for name in LOSSES)


def line(name: str, rows: list[dict], value: Callable[[dict], float]) -> dict:
    """A curve of this value of each row by its step, thinned by means; what is not known is left out."""
    points = np.array([(row["step"], value(row)) for row in rows], dtype=np.float64).reshape(-1, 2)
    points = points[np.isfinite(points[:, 1]) & (points[:, 1] >= 0)]  # an AP of nothing is -1
    if len(points) > MAX_POINTS:
        points = np.array([part.mean(axis=0) for part in np.array_split(points, MAX_POINTS)])
    return {"name": name, "points": [[round(step), float(f"{number:.6g}")] for step, number in points]}


def of(name: str) -> Callable[[dict], float]:
    """What gives a row's value of that name."""
    return lambda row: row.get(name, np.nan)


def ap(value: float | None) -> str:
    """An AP for people."""
    return "-" if value is None or value < 0 else f"{value:.3f}"


def run_page(run: Run, written: float) -> str:
    """The page of one run; written: seconds since 1970. It renews itself as long as the run is at work."""
    album, training, evaluations = run.album, run.training, run.evaluations
    losses = [line("total", training, loss), *(line(name, training, of(name)) for name in LOSSES)]
    aps = [line(name, evaluations, of(name)) for name in AP_NAMES if any(name in row for row in evaluations)]
    steps = {row["step"] for row in evaluations}
    content = {
        "heading": run.name,
        "state": album.get("state", ""),
        "running": album.get("state") == RUNNING,
        "written": written,
        "renewed_after": RENEWED_AFTER,
        "shown_score": SHOWN_SCORE,
        "numbers": _numbers(run),
        "charts": [
            {"title": "Loss", "unit": "loss", "log": True, "lines": losses},
            {"title": "Average precision on the validation data", "unit": "AP", "lines": aps},
            {"title": "Learning rate", "unit": "", "lines": [line("lr", training, of("lr"))]},
            {"title": "Speed", "unit": "images/s", "lines": [line("images/s", training, of("images_per_second"))]},
        ],
        "configuration": configuration(run.options, run.environment),
        "classes": album.get("classes", []),
        "samples": album.get("samples", []),
        "validation": album.get("validation", []),
        # Those that a checkpoint did not know of are gone from metrics.jsonl.
        "detections": [one for one in album.get("detections", []) if one["step"] in steps],
        "per_class": [
            [name, f"{row['objects']:,}", ap(row["AP50"]), ap(row["AP"])] for name, row in run.per_class.items()
        ],
    }
    return html_page("run", "Training", content)


def _numbers(run: Run) -> list[list[str]]:
    """What to look at first: pairs of a name and a figure."""
    training, evaluations = run.training, run.evaluations
    total = run.environment.get("steps")
    step = max((row["step"] for row in run.rows), default=0)
    numbers = [["step", f"{step:,} of {total:,}" if total else f"{step:,}"]]
    if training:
        last = training[-1]
        numbers.append(["loss", f"{loss(last):.3f}"])
        if run.album.get("state") == RUNNING:
            numbers.append(["time left", duration(last["seconds_left"])])
        numbers += [["images/s", f"{last['images_per_second']:.3g}"], ["waiting for data", f"{last['data_wait']:.0%}"]]
    if evaluations:
        best = max(evaluations, key=lambda row: row["AP"])
        numbers += [["AP50, last", ap(evaluations[-1]["AP50"])], ["AP, last", ap(evaluations[-1]["AP"])]]
        numbers.append([f"best AP, epoch {best['epoch']}", ap(best["AP"])])
    return numbers


def configuration(options: dict, environment: dict) -> dict[str, str]:
    """What is trained, on what and how, from options.json and environment.json: by heading, a text."""
    network = options["model"].removesuffix("_vgg16").upper()
    width = f"{SHARES.get(options['width'], format(options['width'], 'g'))} of the channels"
    named = options["default_boxes"]  # fitted ones that came with weights have no name
    boxes = "fitted default boxes" if named in (None, FITTED) else f"default boxes for {named.upper()}"
    outputs = f"{options['num_classes']} outputs, background included"
    data = {
        split: f"{about['name']}: {about['images']:,} images with {about['objects']:,} objects"
        for split, about in environment.get("data", {}).items()
    }
    device = environment.get("device", "")
    machine = [
        device,
        environment.get("cpu" if device == "cpu" else "gpus", ""),
        "products in half precision" if options["amp"] else "",
        f"OneFlow {environment['oneflow']}" if "oneflow" in environment else "",
    ]
    commands = [
        (f"after step {one['step']:,}: " if one["step"] else "") + _as_typed(one["command"])
        for one in options.get("commands", [])
    ]
    words = {
        "Network": f"{network} with VGG16, {width}; {boxes}; {outputs}",
        "Starts from": _start(options),
        "Training data": data.get("train"),
        "Validation data": data.get("val"),
        "Augmentation": AUGMENTATIONS.get(options["data_augmentation"], options["data_augmentation"]),
        "Length": _length(options, environment),
        "Learning rate": _learning_rate(options),
        "Update": _update(options),
        "Machine": ", ".join(filter(None, machine)),
        "Command": "; ".join(commands),
    }
    return {heading: text for heading, text in words.items() if text}


def _as_typed(command: str) -> str:
    """Without the path of the program that train.sh starts."""
    program, *arguments = shlex.split(command)
    return shlex.join(["bash", "train.sh", *arguments] if Path(program).name == "train.py" else [program, *arguments])


def _start(options: dict) -> str:
    backbone = options["weights_backbone"]
    trunk = f"VGG16 of {backbone}, the rest from nothing" if backbone not in (None, "none") else "nothing"
    layers = options["trainable_backbone_layers"]
    frozen = "" if layers == 5 else f"; of VGG's 5 stages the last {layers} learn" if layers else "; VGG does not learn"
    return (options["load"] or trunk) + frozen


def _length(options: dict, environment: dict) -> str:
    processes = environment.get("processes", 1)
    images = f"batches of {options['batch_size']} images"
    parts = [
        f"{options['epochs']} epochs" if options["epochs"] else "",
        f"{environment['steps']:,} steps" if "steps" in environment else "",
        f"{images}, each in {options['accumulate']} passes" if options["accumulate"] > 1 else images,
        f"shared by {processes} processes" if processes > 1 else "",
    ]
    return ", ".join(filter(None, parts))


def _learning_rate(options: dict) -> str:
    warmup = f"rises for {options['warmup_steps']:,} steps to " if options["warmup_steps"] else ""
    if options["lr_scheduler"] == "cosine":
        falls = "falls to 0 along a cosine"
    else:
        unit = "steps" if options["iterations"] else "epochs"
        falls = f"times {options['lr_gamma']:g} after {' and '.join(f'{at:,}' for at in options['lr_steps'])} {unit}"
    return f"{warmup}{options['lr']:g}, {falls}"


def _update(options: dict) -> str:
    momentum = f"SGD with momentum {options['momentum']:g}" if options["optimizer"] == "sgd" else "AdamW"
    parts = [momentum, f"weight decay {options['weight_decay']:g}"]
    if options["clip_norm"] is not None:
        parts.append(f"gradients no longer than {options['clip_norm']:g}")
    if options["bias_lr_factor"] != 1:
        parts.append(f"biases {options['bias_lr_factor']:g} times as fast")
    if options["bias_wd"] is not None:
        parts.append(f"weight decay of biases {options['bias_wd']:g}")
    if options["ema"] is not None:
        parts.append(f"evaluated: a moving average of the weights, {options['ema']:g}")
    return ", ".join([*parts, f"seed {options['seed']}"])
