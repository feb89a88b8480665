"""The benchmarks: their page, their peers, and what is done about one that fails."""

import ast
import json
import re
import sys
from pathlib import Path

import pytest
from places import REPOSITORY

sys.path.insert(0, str(REPOSITORY))  # the benchmarks are run from there, and never installed

from benchmarks import __main__ as command
from benchmarks import coco_ap, engines, made_up, page
from benchmarks.frame import MAKE_PEERS, Peers, ProcessFailed, find_peers, in_fresh_process

NOWHERE = Path("/nowhere/bin/python")
BENCHMARKS = command.benchmarks()


def record(name, **changed):
    """What was measured and is kept in the repository, or figures of narrow_step, with other circumstances."""
    kept = page.read_record(command.RESULTS, name) or {"figures": {"width 1, batch 4": {"this package, OneFlow": 0.1}}}
    about = {"date": "2026-01-02", "commit": "abc1234", "machine": {"cpu": "a CPU, 2 cores"}, "load": 0.1}
    return {**about, "rounds": 2, "left_out": [], "seconds": 90.0, "figures": kept["figures"], **changed}


def keep(folder, *names, device="cpu", **changed):
    for name in names:
        page.write_record(folder, name, device, record(name, **changed))


def page_of(folder):
    return page.write_page(BENCHMARKS, folder, folder).read_text()


def line_with(text, *words):
    [line] = [line for line in text.splitlines() if all(word in line for word in words)]
    return line


def test_page_holds_each_benchmark_with_its_table_picture_and_command(tmp_path):
    keep(tmp_path, *command.NAMES)
    text = page_of(tmp_path)
    for name, benchmark in BENCHMARKS.items():
        section = text.partition(f"\n## {benchmark.title}\n")[2].partition("\n## ")[0]
        assert f"`.venv/bin/python -m benchmarks {name}{' --data DIR' * benchmark.own_data}`" in section
        assert "\n|---" in section and (f"benchmarks-{name}.png" in section) == (benchmark.draw is not None)
        if benchmark.draw:
            assert (tmp_path / f"benchmarks-{name}.png").read_bytes().startswith(b"\x89PNG")
        assert f"| {name} | 2026-01-02 | abc1234 | 2 | 1.5 | 0.1 |" in text
    assert "cpu a CPU, 2 cores." in text and "Not yet run here" not in text


def test_summary_divides_the_peers_figure_by_ours(tmp_path):
    keep(tmp_path, "network", figures={"this package, OneFlow": {"forward": 0.4}, "torchvision 9.9": {"forward": 0.5}})
    lines = {"forward, peer": [2.0], "training step, this package, OneFlow": [1.0], "training step, peer": [0.8]}
    keep(tmp_path, "cost", figures={"classes": {"points": [1204], "lines": lines}})
    text = page_of(tmp_path)
    assert "| 0.400 s | 0.500 s, torchvision 9.9 | 1.25 | [network](#the-network) |" in text
    assert "| 1.00 s | 0.800 s, peer | 0.800 |" in line_with(text, "training step, 1204 classes")  # behind, and said


def test_the_page_in_the_repository_is_that_of_the_records(tmp_path):
    """So that no figure of it was written by hand."""
    text = page.write_page(BENCHMARKS, command.RESULTS, tmp_path).read_text()
    assert text == (command.DOCS / "benchmarks.md").read_text()


def test_commands_and_links_in_the_documentation_exist():
    anchors = {page.link(benchmark.title) for benchmark in BENCHMARKS.values()}
    for path in (REPOSITORY / "README.md", *command.DOCS.glob("*.md")):
        text = path.read_text()
        for names in re.findall(r"python -m benchmarks ([a-z_ ]+)", text):
            assert set(names.split()) <= {*command.NAMES, command.ALL, command.PAGE}, path
        assert set(re.findall(r"benchmarks\.md#([\w-]+)", text)) <= anchors, path


def test_without_a_gpu_its_section_says_so(tmp_path):
    keep(tmp_path, "network")
    assert "Not yet measured" in page_of(tmp_path).partition("## On a GPU")[2]
    keep(tmp_path, "network", device="cuda", machine={"gpus": "a GPU"})
    section = page_of(tmp_path).partition("## On a GPU")[2]
    assert "Not yet measured" not in section and "network --device cuda`" in section and "gpus a GPU" in section


def test_other_programs_and_other_machines_are_named(tmp_path):
    keep(tmp_path, "network", load=3.21)
    keep(tmp_path, "coco_ap", machine={"cpu": "another CPU"}, left_out=["pycocotools"])
    text = page_of(tmp_path)
    assert "| 3.2 |" in line_with(text, "| network |") and "other programs were running" in text
    assert "network: cpu a CPU" in text and "coco_ap: cpu another CPU" in text
    left_out = line_with(text, "Left out, as not installed: pycocotools.")
    assert all(made in left_out for made in MAKE_PEERS)


def arranged(monkeypatch, measure):
    """A command that knows this machine; measure(name): what a benchmark does in place of measuring."""
    monkeypatch.setattr(command, "machine_of", lambda peers: {"cpu": "a CPU"})
    monkeypatch.setattr(command, "find_peers", lambda python: Peers(python, {}))
    monkeypatch.setattr(command, "in_fresh_process", lambda *_: None)
    monkeypatch.setattr(command.signal, "signal", lambda *_: None)
    changed = {
        name: type(each)(**{**vars(each), "measure": lambda options, name=name: measure(name)})
        for name, each in BENCHMARKS.items()
    }
    monkeypatch.setattr(command, "benchmarks", lambda: changed)


def test_a_benchmark_that_fails_is_named_and_does_not_stop_the_others(tmp_path, monkeypatch, capsys):
    keep(tmp_path, "network")

    def measure(name):
        if name == "network":
            raise ProcessFailed("out of memory")
        return record(name)["figures"]

    arranged(monkeypatch, measure)
    assert command.main(["network", "coco_ap", "--record"], tmp_path, tmp_path) == 1
    told = capsys.readouterr().err
    assert "failed: network" in told and "out of memory" in told
    text = (tmp_path / "benchmarks.md").read_text()
    assert "| this package, OneFlow | 0.258 |" in text and "| pycocotools |" in text  # the former figures are kept
    assert "Left out, as not installed: pycocotools, faster-coco-eval" in text


def test_an_interrupted_run_keeps_what_had_ended(tmp_path, monkeypatch, capsys):
    def measure(name):
        if name == "memory":
            raise KeyboardInterrupt
        return record(name)["figures"]

    arranged(monkeypatch, measure)
    assert command.main(["memory", "coco_ap", "--record"], tmp_path, tmp_path) == 130
    assert "interrupted" in capsys.readouterr().err
    assert page.read_record(tmp_path, "coco_ap") and not page.read_record(tmp_path, "memory")


def test_without_record_nothing_is_written(tmp_path, monkeypatch, capsys):
    arranged(monkeypatch, lambda name: record(name)["figures"])
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


def test_what_the_benchmarks_import_from_the_package_exists():
    """Their imports are in functions, so that a name that was changed would be noticed at the next measurement only."""
    missing, seen = [], 0
    for path in (REPOSITORY / "benchmarks").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("ssd300_vgg16"):
                names = [alias.name for alias in node.names]
                module = __import__(node.module, fromlist=names)  # a module of a package is loaded with it
                missing += [f"{path.name}: {node.module}.{name}" for name in names if not hasattr(module, name)]
                seen += len(names)
    assert missing == [] and seen > 20


def test_peers_are_known_by_what_their_python_has():
    here = find_peers(Path(sys.executable))
    assert "pycocotools" in here and here.name("pycocotools") == "pycocotools 2.0.11"
    assert find_peers(NOWHERE).versions == {}


def test_the_first_call_is_not_counted_and_long_ones_are_not_repeated():
    calls = []
    assert len(engines.time_calls(lambda: calls.append(1), 3, 60)) == 3 and len(calls) == 4
    assert len(engines.time_calls(lambda: calls.append(1), 3, 0)) == 1 and len(calls) == 6
    assert len(engines.time_calls(lambda: calls.append(1), 2, 60, warm_up=False)) == 2 and len(calls) == 8


def test_one_benchmark_measures_here(capsys):
    """The smallest, with pycocotools as its peer."""
    run = command.parse(["coco_ap", "--quick"])
    options = type(run.options)(**{**vars(run.options), "rounds": 1, "peers": find_peers(Path(sys.executable))})
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
