"""run.html and the comparison of runs: what is read, what is shown in a real browser, and that no run is disturbed."""

import json
import shlex
import time
from dataclasses import replace

import numpy as np
import pytest
from browser import CHROMIUM
from PIL import Image
from safetensors.numpy import load_file
from small_data import WIDTH, shapes, shapes_folder

from ssd300_vgg16 import train
from ssd300_vgg16.boxes import xywh_to_xyxy
from ssd300_vgg16.cli import report
from ssd300_vgg16.data.augment import augment
from ssd300_vgg16.data.images import decode_image
from ssd300_vgg16.data.loader import BatchConfig, epoch_order
from ssd300_vgg16.data.workers import WorkerPool
from ssd300_vgg16.errors import UserError
from ssd300_vgg16.files import write_atomically
from ssd300_vgg16.metrics.coco_results import coco_results
from ssd300_vgg16.network.variants import SSD300_VGG16, default_boxes
from ssd300_vgg16.report.run_page import MAX_POINTS, line, of
from ssd300_vgg16.training import run_page
from ssd300_vgg16.training.run_page import ALBUM, EVALUATIONS, PAGE, RunPage, read_run
from ssd300_vgg16.weights.locate import LAST

in_browser = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium here")
HOSTILE = "</script><img src=x onerror=alert(1)>"
SETTINGS = ("--width", WIDTH, "-b", 2, "-j", 0, "--device", "cpu", "--print-freq", 1, "--warmup-steps", 0)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return shapes_folder(tmp_path_factory.mktemp("run-page"), 4, 2)


@pytest.fixture(scope="module")
def trained(data):
    """The folder of a run of two epochs."""
    folder = data.parent / "run"
    train_run(data, folder, "--epochs", 2)
    return folder


def train_run(data, folder, *options):
    arguments = ("--data-path", data, "--output-dir", folder, *SETTINGS, *options)
    assert train.main([str(argument) for argument in arguments]) == 0


def made_run(folder, points=3, name="circle", factor=1.0, state="finished", **options):
    """A run's folder, made up: so many reports and evaluations of a class."""
    folder.mkdir()
    given = {
        "model": "ssd300_vgg16", "width": 0.125, "default_boxes": "coco", "num_classes": 2, "load": None, "lr": 0.001,
        "weights_backbone": None, "trainable_backbone_layers": 5, "data_augmentation": "ssd", "epochs": points,
        "iterations": None, "batch_size": 8, "accumulate": 1, "warmup_steps": 0, "lr_scheduler": "cosine", "seed": 0,
        "optimizer": "sgd", "momentum": 0.9, "weight_decay": 5e-4, "clip_norm": None, "bias_lr_factor": 1.0,
        "bias_wd": None, "ema": None, "amp": False, "lr_steps": [2, 3],
        "commands": [{"step": 0, "command": shlex.join(["/house/train.py", "--load", name])}],
    }  # fmt: skip
    rows = []
    for step in range(1, points + 1):
        losses = {"localization": factor / step, "classification": 2 * factor / step}
        speed = {"lr": 0.001 / step, "images_per_second": 10.0, "data_wait": 0.01, "seconds_left": 61}
        rows.append({"kind": "training", "step": step, **losses, **speed})
        rows.append({"kind": "evaluation", "step": step, "epoch": step, "AP": 0.5 * factor, "AP50": 0.8 * factor})
    picture = {"file": name, "jpeg": "", "size": [64, 48], "marks": [[name, 1.0, 2.0, 30.0, 20.0, None]]}
    found = {"step": points, "epoch": points, "images": [[[name, 2.0, 3.0, 30.0, 20.0, 0.75]]]}
    album = {"samples": [picture], "validation": [picture], "detections": [found], "classes": [name], "state": state}
    about = {"name": name, "images": 4, "objects": 9, "sha256": "0123456789"}
    (folder / "options.json").write_text(json.dumps(given | options))
    (folder / "environment.json").write_text(json.dumps({"data": {"train": about, "val": about}, "steps": points}))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    per_class = {name: {"AP": 0.5 * factor, "AP50": 0.8 * factor, "objects": 9}}
    (folder / "coco_metrics.json").write_text(json.dumps({"per_class": per_class}))
    (folder / ALBUM).write_text(json.dumps(album))
    return folder


def test_a_training_leaves_its_page_and_what_it_shows(trained):
    run = read_run(trained)
    assert (run.album["state"], run.album["classes"][:2]) == ("finished", ["circle", "square"])
    assert [one["step"] for one in run.album["detections"]] == [2, 4]
    assert [len(one["images"]) for one in run.album["detections"]] == [2, 2]
    assert [picture["file"] for picture in run.album["validation"]] == sorted(
        path.name for path in (trained.parent / "shapes" / "val").iterdir()
    )
    assert len(run.album["samples"]) == 4
    assert run.environment["steps"] == 4
    assert (trained / PAGE).stat().st_size < 3_000_000


def test_training_pictures_are_what_the_network_gets(data, trained):
    """The first images of the first epoch, drawn and cut as in training, with their boxes to a pixel's tenth."""
    samples, layout = shapes(data, "train").samples, SSD300_VGG16.layout
    names = ["circle", "square", "triangle", "star", "ring"]
    pictures = read_run(trained).album["samples"]
    for index, picture in zip(epoch_order(4, 4, 0, 0)[0], pictures, strict=True):
        sample, pixels = samples[index], np.empty((3, layout.image_size, layout.image_size), np.uint8)
        decoded, rng = decode_image(sample.path), np.random.default_rng([0, 0, int(index)])
        boxes, labels = augment(decoded, *sample.objects(*decoded.size), rng, "ssd", pixels)
        assert picture["file"] == sample.path.name
        marks = sorted(picture["marks"], key=lambda mark: mark[1:5])
        expected = sorted(zip(boxes.tolist(), [names[label - 1] for label in labels], strict=True))
        assert [mark[0] for mark in marks] == [name for _, name in expected]
        corners = xywh_to_xyxy(np.array([mark[1:5] for mark in marks]))
        np.testing.assert_allclose(corners, [box for box, _ in expected], atol=0.11)


def test_trouble_with_the_page_is_told_once_and_changes_no_weight(data, trained, tmp_path, monkeypatch, capsys):
    def fail(*_):
        raise ValueError("no page today")

    for broken in ("write_run_page", "_training_pictures", "_detections"):
        monkeypatch.setattr(run_page, broken, fail)
    train_run(data, tmp_path / "run", "--epochs", 2)
    told = [row for row in capsys.readouterr().out.splitlines() if row.startswith("warning")]
    path = tmp_path / "run" / PAGE
    assert told == [f"warning: {path} is not kept up to date (no page today); the run goes on"]
    for file in (LAST, "best.safetensors"):
        tensors, others = load_file(trained / file), load_file(tmp_path / "run" / file)
        assert all((others[name] == array).all() for name, array in tensors.items())


def test_a_page_takes_little_of_the_time(tmp_path, monkeypatch):
    """After a page that took two seconds, the next one is written a thousand seconds later at the soonest."""
    clock, written = [0.0], []

    def write(_):
        written.append(clock[0])
        clock[0] += 2

    monkeypatch.setattr(run_page, "write_run_page", write)
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    page = RunPage(tmp_path)
    while clock[0] < 2500:
        page.renew()
        clock[0] += 1
    assert written == [0, 1002, 2004]


def evaluated(data, scores=(0.9, 0.29)):
    dataset = shapes(data, "val")
    count = len(dataset.samples)
    found = {"boxes": np.array([[10, 20, 110, 70]] * len(scores), np.float32), "labels": np.ones(len(scores), int)}
    return coco_results(dataset, list(range(count)), [found | {"scores": np.array(scores, np.float32)}] * count)


def test_evaluations_that_are_far_apart_are_kept(data, tmp_path):
    page = RunPage(tmp_path)
    results = evaluated(data)
    kept = []
    for step in range(1, 21):
        page.add_evaluation(results, step, step)
        kept = [one["step"] for one in json.loads((tmp_path / ALBUM).read_text())["detections"]]
        assert len(kept) == min(step, EVALUATIONS) and (kept[0], kept[-1]) == (1, step)
    assert max(np.diff(kept)) <= 10
    page.add_evaluation(results, 10, 10)  # of a run that went back
    album = json.loads((tmp_path / ALBUM).read_text())
    assert [one["step"] for one in album["detections"]] == [step for step in kept if step < 10] + [10]
    (picture, *_), (marks, *_) = album["validation"], album["detections"][-1]["images"]
    (name, *box, score), *more = marks
    with Image.open(results.samples[0].path) as image:
        assert max(picture["size"]) == 256
        expected = np.array([10, 20, 100, 50]) * 256 / max(image.size)
    assert (name, score, more) == ("circle", 0.9, []), "the other one is not scored enough"
    np.testing.assert_allclose(box, expected, rtol=0.01, atol=0.06)


def test_a_page_of_the_worst_pictures_is_small(data, tmp_path):
    """Noise, which no JPEG makes small."""
    dataset, rng = shapes(data, "val"), np.random.default_rng(0)
    sample = dataset.samples[0]
    noisy = []
    for number in range(20):
        noisy.append(replace(sample, path=tmp_path / f"{number}.png", height=600, width=600))
        Image.fromarray(rng.integers(0, 256, (600, 600, 3), np.uint8)).save(noisy[-1].path)
    run = made_run(tmp_path / "run", 2000)
    (run / ALBUM).unlink()
    page, boxes = RunPage(run), default_boxes(SSD300_VGG16.layout)
    page.begin(dataset.categories, noisy, BatchConfig(2, "none", 0, boxes, 300), WorkerPool(0))
    found = {"boxes": rng.uniform(0, 600, (200, 4)), "labels": np.ones(200, int), "scores": np.ones(200)}
    results = coco_results(replace(dataset, samples=noisy), list(range(20)), [found] * 20)
    for step in range(1, 9):
        page.add_evaluation(results, step, step)
    page.end("finished")
    assert 500_000 < (run / PAGE).stat().st_size < 3_000_000


def test_long_curves_are_thinned_by_means():
    rows = [{"step": step, "lr": step % 2} for step in range(40 * MAX_POINTS)]
    points = line("lr", rows, of("lr"))["points"]
    assert len(points) == MAX_POINTS and {value for _, value in points} == {0.5}
    rows = [{"step": 1, "AP": -1.0}, {"step": 2}, {"step": 3, "AP": float("nan")}, {"step": 4, "AP": 0.25}]
    assert line("AP", rows, of("AP"))["points"] == [[4, 0.25]], "what is not known is left out"


CHARTS = "[...document.querySelectorAll('svg.chart')].map((svg) => svg.getAttribute('aria-label'))"


def made_page(tmp_path, *arguments, **options):
    folder = made_run(tmp_path / "run", *arguments, **options)
    assert report.main([str(folder)]) == 0
    return folder / PAGE


@in_browser
@pytest.mark.parametrize(("width", "dark"), [(1280, False), (390, True)])
def test_a_page_shows_curves_configuration_and_pictures(opened, tmp_path, width, dark):
    page = opened(made_page(tmp_path), width=width, dark=dark)
    assert page.js("document.documentElement.scrollWidth") <= width
    assert page.js(CHARTS) == [
        "Loss by step. Last: total 1, localization 0.333, classification 0.667.",
        "Average precision on the validation data by step. Last: AP50 0.8, AP 0.5.",
        "Learning rate by step. Last: lr 3.33e-4.",
        "Speed by step. Last: images/s 10.",
    ]
    assert page.js("document.querySelectorAll('path.line').length") == 7
    assert page.js("document.querySelector('path.line').getAttribute('d').match(/[ML]/g).length") == 3
    text = page.js("document.body.innerText")
    words = (
        "finished",
        "3 of 3",
        "an eighth of the channels",
        "circle: 4 images with 9 objects",
        "0.001, falls to 0 along",
        "bash train.sh --load circle",
    )
    assert [word for word in words if word not in text] == []
    alts = page.js("[...document.images].map((image) => image.alt)")
    assert alts == ["circle, labels: circle", "circle, after epoch 3: circle 75%", "circle, objects: circle"]
    assert page.js("document.querySelectorAll('.picture rect.mark').length") == 3
    # A pointer on a chart reads its values.
    place = (
        "(({ x, y, width }) => [x + width / 3, y + 80])(document.querySelector('svg.chart').getBoundingClientRect())"
    )
    x, y = page.js(place)
    page.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
    page.settle()
    shown = page.js("document.querySelector('.panel').innerText").replace("\n", " ")
    assert "at step 1" in shown and "total 3" in shown


@in_browser
def test_a_page_renews_itself_until_the_run_has_ended(opened, tmp_path):
    path = made_page(tmp_path, state="running")
    path.write_text(path.read_text().replace('"renewed_after":10', '"renewed_after":0.2'))
    page = opened(path)
    page.wait("document.getElementById('state')?.textContent.startsWith('running; written at')")  # between two renewals
    page.js("scrollTo(0, 300)")
    done = path.read_text().replace('"running":true', '"running":false').replace('"state":"running"', '"state":"done"')
    write_atomically(path, done)  # as a run does: a page that is read meanwhile is whole
    page.wait("document.readyState === 'complete' && document.getElementById('state').textContent === 'done'")
    page.settle()
    assert page.js("scrollY") == 300, "where one was"
    page.js("window.mark = 1")
    time.sleep(0.5)
    assert page.js("window.mark") == 1, "the page of a run that has ended stays"


@in_browser
def test_no_name_does_anything(opened, tmp_path):
    page = opened(made_page(tmp_path, 3, HOSTILE, load=HOSTILE))
    assert page.js("document.querySelectorAll('[onerror], img[src=x]').length") == 0
    assert page.js("document.scripts.length") == 2
    assert HOSTILE in page.js("document.querySelector('.picture img').alt")
    assert page.js("document.querySelector('.picture text').textContent").startswith("<"), "cut, and no element"


@in_browser
def test_runs_are_compared(opened, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    made_run(tmp_path / "a")
    made_run(tmp_path / HOSTILE.replace("/", "-"), factor=0.5, lr=0.01, seed=7)
    assert report.main(["a", HOSTILE.replace("/", "-")]) == 0
    rows = {row.split("  ")[0]: row.split()[-3:] for row in capsys.readouterr().out.splitlines()}
    assert rows["--lr"][-2:] == ["0.001", "0.01"] and rows["--seed"][-2:] == ["0", "7"]
    assert "--epochs" not in rows
    assert rows["circle"] == ["0.500", "*", "0.250"]
    page = opened(tmp_path / "comparison.html")
    assert page.js("document.querySelectorAll('path.line').length") == 8, "four charts of two runs"
    assert page.js(CHARTS)[0] == "Loss by step. Last: a 1, <-script><img src=x onerror=alert(1)> 0.5."
    cells = page.js("[...document.querySelectorAll('tr')].map((row) => row.innerText.split('\\t'))")
    assert ["--lr", "0.001", "0.01"] in cells and ["circle", "0.500", "0.250"] in cells
    assert page.js("document.querySelectorAll('td.best').length") == 4
    assert page.js("document.querySelectorAll('[onerror]').length") == 0


@pytest.mark.parametrize("different", [None, "name", "data"])
def test_of_runs_that_cannot_be_compared_none_is_the_best(tmp_path, capsys, different):
    """They reach the same, or have no class in common, or were evaluated on different data."""
    made_run(tmp_path / "a")
    made_run(tmp_path / "b", name="star" if different == "name" else "circle", factor=0.5 if different == "data" else 1)
    if different == "data":
        about = tmp_path / "b" / "environment.json"
        about.write_text(about.read_text().replace("0123456789", "9876543210"))
    assert report.main([str(tmp_path / "a"), str(tmp_path / "b"), "--to", str(tmp_path / "comparison.html")]) == 0
    output = capsys.readouterr().out
    assert "best AP" in output and "*" not in output


def test_what_is_no_run_is_refused(tmp_path):
    run, other = str(made_run(tmp_path / "a")), tmp_path / "other"
    other.mkdir()
    (tmp_path / "mine.html").touch()

    def refused(message, *arguments):
        with pytest.raises(UserError, match=message):
            report.main([str(argument) for argument in arguments])

    refused(r"nowhere: no run \(options\.json is missing or damaged\)", run, tmp_path / "nowhere")
    (other / "options.json").write_text('{"lr": 1}')
    refused("of another version of this package", other)
    (other / ALBUM).write_text("{")
    refused(r"other/run_page\.json is damaged", other)
    refused("stays in its folder", run, "--to", "page.html")
    refused("such a file already", run, run, "--to", tmp_path / "mine.html")
