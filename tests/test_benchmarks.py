"""The benchmarks: their page, their peers, and what is done about one that fails."""

import ast
import json
import re
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from places import REPOSITORY

sys.path.insert(0, str(REPOSITORY))  # the benchmarks are run from there, and never installed

from benchmarks import __main__ as command
from benchmarks import coco_ap, engines, made_up, page, same_labels, tiles
from benchmarks.frame import MAKE_PEERS, Peers, ProcessFailed, find_peers, in_fresh_process, in_turn, trained
from ssd300_vgg16.data.dataset import Category
from ssd300_vgg16.tiles import Tiling

BENCHMARKS = command.benchmarks()


def keep(folder, name, device="cpu", **changed):
    """Keep the figures of the repository's record, with other circumstances."""
    about = {"date": "2026-01-02", "commit": "abc1234", "machine": {"cpu": "a CPU, 2 cores"}, "load": 0.1}
    about |= {"rounds": 2, "left_out": [], "seconds": 90.0, "figures": figures_of(name)}
    page.write_record(folder, name, device, about | changed)


def figures_of(name):
    return page.read_record(command.RESULTS, name)["figures"]


def page_of(folder):
    return page.write_page(BENCHMARKS, folder, folder).read_text()


def line_with(text, *words):
    [line] = [line for line in text.splitlines() if all(word in line for word in words)]
    return line


def test_the_page_in_the_repository_is_made_of_the_records_and_holds_all(tmp_path):
    """So that no figure of it was written by hand."""
    text = page.write_page(BENCHMARKS, command.RESULTS, tmp_path).read_text()
    assert text == (command.DOCS / "benchmarks.md").read_text()
    for name, benchmark in BENCHMARKS.items():
        section = text.partition(f"\n## {benchmark.title}\n")[2].partition("\n## ")[0]
        assert f"`.venv/bin/python -m benchmarks {name}{' --data DIR' * benchmark.own_data}`" in section
        assert "\n|---" in section and (f"benchmarks-{name}.png" in section) == (benchmark.draw is not None)
        if benchmark.draw:
            assert (tmp_path / f"benchmarks-{name}.png").read_bytes().startswith(b"\x89PNG")


def test_summary_divides_the_peers_figure_by_ours(tmp_path):
    keep(tmp_path, "network", figures={"this package, OneFlow": {"forward": 0.4}, "torchvision 9.9": {"forward": 0.5}})
    lines = {"forward, peer": [2.0], "training step, this package, OneFlow": [1.0], "training step, peer": [0.8]}
    keep(tmp_path, "cost", figures={"classes": {"points": [1204], "lines": lines}})
    text = page_of(tmp_path)
    assert "| 0.400 s | 0.500 s, torchvision 9.9 | 1.25 | [network](#the-network) |" in text
    assert "| 1.00 s | 0.800 s, peer | 0.800 |" in line_with(text, "training step, 1204 classes")  # behind, and said


def test_commands_and_links_in_the_documentation_exist():
    anchors = {page.link(benchmark.title) for benchmark in BENCHMARKS.values()}
    for path in (REPOSITORY / "README.md", *command.DOCS.glob("*.md")):
        text = path.read_text()
        for names in re.findall(r"python -m benchmarks ([a-z_ ]+)", text):
            assert set(names.split()) <= {*command.NAMES, command.ALL, command.PAGE}, path
        assert set(re.findall(r"benchmarks\.md#([\w-]+)", text)) <= anchors, path


def test_the_page_says_how_and_where_all_was_measured(tmp_path):
    keep(tmp_path, "network", load=3.21)
    text = page_of(tmp_path)
    assert "| network | 2026-01-02 | abc1234 | 2 | 1.5 | 3.2 |" in text and "other programs were running" in text
    assert "\ncpu a CPU, 2 cores." in text and "Not yet measured" in text.partition("## On a GPU")[2]
    keep(tmp_path, "coco_ap", machine={"cpu": "another CPU"}, left_out=["pycocotools"])
    keep(tmp_path, "network", device="cuda", machine={"gpus": "a GPU"})
    text = page_of(tmp_path)
    assert "network: cpu a CPU" in text and "coco_ap: cpu another CPU" in text
    left_out = line_with(text, "Left out, as not installed: pycocotools.")
    assert all(made in left_out for made in MAKE_PEERS)
    section = text.partition("## On a GPU")[2]
    assert "Not yet measured" not in section and "network --device cuda`" in section and "gpus a GPU" in section


@pytest.fixture
def arranged(monkeypatch):
    """Has the command know this machine, and each benchmark give its figures, or raise what is in the dict."""
    ends = {}

    def measure(name):
        if name in ends:
            raise ends[name]
        return figures_of(name)

    changed = {
        name: replace(each, measure=lambda _, name=name: measure(name), rounds=1) for name, each in BENCHMARKS.items()
    }
    monkeypatch.setattr(command, "machine_of", lambda peers: {"cpu": "a CPU"})
    monkeypatch.setattr(command, "find_peers", lambda python: Peers(python, {}))
    monkeypatch.setattr(command, "in_fresh_process", lambda *_: None)
    monkeypatch.setattr(command.signal, "signal", lambda *_: None)
    monkeypatch.setattr(command, "benchmarks", lambda: changed)
    return ends


def test_a_benchmark_that_fails_is_named_and_does_not_stop_the_others(tmp_path, arranged, capsys):
    keep(tmp_path, "network")
    arranged["network"] = ProcessFailed("out of memory")
    assert command.main(["network", "coco_ap", "--record"], tmp_path, tmp_path) == 1
    told = capsys.readouterr().err
    assert "failed: network" in told and "out of memory" in told
    text = (tmp_path / "benchmarks.md").read_text()
    assert "| this package, OneFlow | 0.258 |" in text and "| pycocotools |" in text  # the former figures are kept
    assert "Left out, as not installed: pycocotools, faster-coco-eval" in text


def test_an_interrupted_run_keeps_what_had_ended(tmp_path, arranged, capsys):
    arranged["memory"] = KeyboardInterrupt()
    assert command.main(["memory", "coco_ap", "--record"], tmp_path, tmp_path) == 130
    assert "interrupted" in capsys.readouterr().err
    assert page.read_record(tmp_path, "coco_ap") and not page.read_record(tmp_path, "memory")


def test_without_record_nothing_is_written(tmp_path, arranged, capsys):
    assert command.main(["coco_ap"], tmp_path, tmp_path) == 0
    assert "| pycocotools |" in capsys.readouterr().out and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["netwrok"], "netwrok: the benchmarks are network, cost"),
        (["scaling", "--quick"], "of scaling, none goes with --quick"),
        (["network", "--quick", "--record"], "the figures of a dry run mean nothing"),
        (["coco_ap", "--peer-python", "/nowhere/python"], "/nowhere/python: there is no such file"),
        (["network", "--data", "/nowhere"], "/nowhere: there is no such file"),
        (["fine_tuning"], "it learns from --data DIR"),
        (["network", "--device", "tpu"], "--device tpu: write cpu, cuda or cuda:N"),
    ],
)
def test_what_cannot_be_is_refused_in_a_sentence(arguments, message, capsys):
    with pytest.raises(SystemExit) as ended:
        command.parse(arguments)
    assert message in f"{capsys.readouterr().err} {ended.value}"


def test_a_fresh_process_answers_or_leaves_its_last_words():
    assert in_fresh_process(page.link, "A, B") == "a-b"
    with pytest.raises(ProcessFailed, match="KeyError"):
        in_fresh_process(engines.do_jobs, "no such engine", [{"what": "forward"}])


def test_sides_take_turns():
    calls = []
    answers = in_turn(2, {side: lambda side=side: calls.append(side) or len(calls) for side in "ab"})
    assert "".join(calls) == "abab" and answers == {"a": [1, 3], "b": [2, 4]}


@pytest.mark.parametrize("kept", ["benchmark.json", "learning.json", "schedules.json"])
def test_a_training_that_was_kept_is_not_repeated(tmp_path, kept):
    """By this version or an earlier one; what trains would fail here."""
    (tmp_path / kept).write_text('{"seconds": 7, "AP": 0.1}')
    rows = {"kind": "training", "step": 1}, {"kind": "evaluation", "AP": 0.5}
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert trained(tmp_path, "--no-such-option") == {"seconds": 7, "evaluations": [rows[1]]}


def test_what_the_benchmarks_import_from_the_package_exists():
    """Their imports are in functions, so that a name that was changed would be noticed at the next measurement only."""
    trees = [ast.parse(path.read_text()) for path in (REPOSITORY / "benchmarks").glob("*.py")]
    imports = [node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    names = [(node.module, alias.name) for node in imports for alias in node.names if "ssd300" in (node.module or "")]
    # With fromlist, a module of a package is loaded with it.
    missing = [name for name in names if not hasattr(__import__(name[0], fromlist=name[1:]), name[1])]
    assert missing == [] and len(names) > 20


def test_objects_on_seams_are_told_and_each_is_found_once():
    """A picture of 300 x 300, whose tiles of 200 begin at 0 and 100."""
    image, names = np.zeros((300, 300, 3), dtype=np.uint8), ["cat", "cat", "cat"]
    boxes = np.array([(10, 10, 50, 50), (90, 10, 110, 40), (210, 210, 290, 290)], dtype=np.float64)
    dataset = tiles.dataset_of([(image, boxes, names)], (Category(1, 1, "cat"),))
    seams = tiles.on_seams(dataset.samples[0], 0, 1, Tiling(200))
    assert seams.tolist() == [False, True, False]
    scores, labels = np.array([0.9, 0.8, 0.7, 0.2], dtype=np.float32), np.ones(4, dtype=np.int64)
    found = {"boxes": boxes[[0, 0, 1, 2]].astype(np.float32), "scores": scores, "labels": labels}
    assert tiles.found_by_seam(dataset, [found], [seams]) == [[1, 1], [1, 2]]


def test_peers_are_known_by_what_their_python_has():
    here = find_peers(Path(sys.executable))
    assert "pycocotools" in here and here.name("pycocotools") == "pycocotools 2.0.11"
    assert find_peers(Path("/nowhere/bin/python")).versions == {}


@pytest.mark.parametrize(
    ("repeats", "seconds", "warm_up", "counted", "called"),
    [(3, 60, True, 3, 4), (3, 0, True, 1, 2), (2, 60, False, 2, 2)],
)
def test_the_first_call_is_not_counted_and_long_ones_are_not_repeated(repeats, seconds, warm_up, counted, called):
    calls = []
    assert len(engines.time_calls(lambda: calls.append(1), repeats, seconds, warm_up)) == counted
    assert len(calls) == called


def test_one_benchmark_measures_here():
    """The smallest, with pycocotools as its peer."""
    options = replace(command.parse(["coco_ap", "--quick"]).options, rounds=1, peers=find_peers(Path(sys.executable)))
    figures = json.loads(json.dumps(coco_ap.measure(options)))
    assert list(figures) == ["pycocotools", "the package"] and figures["the package"]["difference"] < 1e-12
    assert "| the package |" in coco_ap.table(figures)


def test_made_up_images_are_a_data_set(tmp_path):
    from ssd300_vgg16.data.formats import DataSource
    from ssd300_vgg16.data.images import read_image

    for _ in range(2):  # the second time they are there
        made_up.write_images(str(tmp_path / "images"))
    train, val = (DataSource("voc", tmp_path / "images").load(split) for split in ("train", "val"))
    assert (len(train.samples), len(val.samples)) == (205, 40)
    assert not train.problems and len(train.samples[0].labels) == made_up.OBJECTS_PER_IMAGE
    assert read_image(val.samples[-1].path).shape == (480, 640, 3)


def test_smoothed_labels_are_pytorchs():
    """Of one default box that counts, and of one that does not: cross_entropy(..., label_smoothing=0.1) in float64."""
    logits = np.array([[[1.0, -2.0, 0.5, 3.0], [9.0, 0.0, 0.0, 0.0]]], dtype=np.float32)
    labels = np.array([[2, 0]])
    arrays = np.zeros((1, 2, 4), dtype=np.float32), logits, np.zeros((1, 2, 4), dtype=np.float32), labels
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=2, keepdims=True)
    gradient = (probabilities - np.eye(4, dtype=np.float32)[labels]) * np.array([[[1], [0]]], dtype=np.float32)
    sums, _, gradient = same_labels.smoothed(arrays, (np.array([7.0, -np.log(probabilities[0, 0, 2])]), None, gradient))
    assert sums == pytest.approx([7.0, 2.689753])
    np.testing.assert_allclose(gradient[0], [[0.0856, -0.0195, -0.8579, 0.7919], [0, 0, 0, 0]], atol=1e-4)


def test_boxes_of_a_mosaic_are_on_its_objects():
    canvas, size = np.zeros((3, 600, 600), dtype=np.uint8), 300
    boxes = np.array([[50, 60, 150, 130], [400, 80, 500, 200], [20, 420, 90, 590], [330, 340, 520, 450]], np.float32)
    for number, (left, top, right, bottom) in enumerate(boxes.astype(int)):
        canvas[:, top:bottom, left:right] = 60 * (number + 1)
    seen = set()
    for seed in range(20):
        out = np.empty((3, size, size), dtype=np.uint8)
        placed, labels = same_labels.cut_out(canvas, boxes, np.arange(1, 5), np.random.default_rng(seed), out)
        for box, label in zip(placed, labels, strict=True):
            left, top, right, bottom = box.round().astype(int)
            assert (abs(out[:, top + 2 : bottom - 2, left + 2 : right - 2] - 60.0 * label) <= 1).all()
            grey = abs(out[0] - 60.0 * label) <= 1
            assert grey.sum() == pytest.approx((bottom - top) * (right - left), rel=0.1)
        seen.add(tuple(labels))
    assert {(1, 2, 3, 4)} < seen, "all four, and windows that leave some out"


# Offsets, target offsets, 1 - GIoU and its gradient by the offsets: torchvision 0.29's generalized_box_iou_loss with
# eps=0, in float64, of the boxes that they make of a default box of 40 x 80 pixels.
GIOU_LOSSES = [
    ((0.06, -0.07, 0.32, 0.05), (-0.27, 0.18, 0.65, 0.47), 0.139292, (0.0, 0.0, -0.172142, -0.172142)),
    ((-0.7, -1.27, -0.62, 0.04), (-2.33, -0.22, -1.25, -0.73), 0.475094, (0.145521, -0.131776, -0.030215, -0.018987)),
    ((-1.63, -0.95, 1.23, 3.13), (-0.39, 4.1, -2.0, 1.05), 0.764393, (0.0, -0.055093, 0.062509, -0.057898)),
    ((7.23, 0.75, -5.95, -7.37), (-3.66, 1.76, -8.08, -1.67), 1.779189, (0.016473, 0.0, -0.009505, -0.014517)),
]


def test_giou_is_torchvisions():
    offsets, targets, losses, gradients = (np.array(column) for column in zip(*GIOU_LOSSES, strict=True))
    found, gradient = same_labels.giou_losses(offsets, targets)
    np.testing.assert_allclose(found, losses, atol=1e-6)
    np.testing.assert_allclose(gradient, gradients, atol=1e-6)
