"""run.html: a training as it goes on, and the figures that it shares with the page that compares runs."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ssd300_vgg16.report.configuration import in_words
from ssd300_vgg16.report.html_page import html_page
from ssd300_vgg16.text import duration

MAX_POINTS = 400  # of a curve: more are not seen
LOSSES = ("localization", "classification")
AP_NAMES = ("AP50", "AP", "VOC_mAP")
RUNNING = "running"
RENEWED_AFTER = 10  # seconds
SHOWN_SCORE = 0.3


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
    def class_aps(self) -> dict[str, float]:
        return {name: row["AP"] for name, row in self.metrics.get("per_class", {}).items()}


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
    album, evaluations = run.album, run.evaluations
    losses = [line("total", run.training, loss), *(line(name, run.training, of(name)) for name in LOSSES)]
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
            {"title": "Loss", "log": True, "lines": losses},
            {"title": "Average precision on the validation data", "lines": aps},
            {"title": "Learning rate", "lines": [line("lr", run.training, of("lr"))]},
            {"title": "Speed", "lines": [line("images/s", run.training, of("images_per_second"))]},
        ],
        "configuration": in_words(run.options, run.environment),
        "classes": album.get("classes", []),
        "samples": album.get("samples", []),
        "validation": album.get("validation", []),
        # Those that a checkpoint did not know of are gone from metrics.jsonl.
        "detections": [one for one in album.get("detections", []) if one["step"] in steps],
        "per_class": [
            [name, f"{row['objects']:,}", ap(row["AP50"]), ap(row["AP"])]
            for name, row in run.metrics.get("per_class", {}).items()
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
