"""The benchmark suite: its page, its peers, and what it does about a part that fails."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from places import REPOSITORY

BENCHMARKS = REPOSITORY / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))  # its scripts are no package: they import one another by name

import around_network  # noqa: E402
import coco_ap  # noqa: E402
import cost  # noqa: E402
import engines  # noqa: E402
import made_up_data  # noqa: E402
import memory  # noqa: E402
import network  # noqa: E402
import page  # noqa: E402
import peers  # noqa: E402
import plots  # noqa: E402
import records  # noqa: E402
import suite  # noqa: E402
from parts import PARTS  # noqa: E402

OURS, RUNTIME, THEIRS = "this package, OneFlow", "this package, ONNX Runtime", "torchvision 9.9"
NOWHERE = Path("/nowhere/bin/python")


def network_figures():
    def engine(forward, training=None):
        found = {"forward": forward, "forward, share": 0.1 / forward}
        return found | ({} if training is None else {"training step": training, "training step, share": 0.3 / training})

    return {
        "engines": {OURS: engine(0.4, 1.0), RUNTIME: engine(0.2), THEIRS: engine(0.5, 0.8)},
        "products": {OURS: 200.0, RUNTIME: 400.0},
        "limit": 400.0,
        "work": {"forward": 34.86, "training step": 104.4},
    }


def memory_figures():
    return {
        "training step": {OURS: {"1": 1000.0, "4": 1500.0}, THEIRS: {"1": 1200.0, "4": 2250.0}},
        "forward": {OURS: {"1": 500.0}, THEIRS: {"1": 1000.0}},
        "evaluation": {RUNTIME: {"8": 900.0}},
    }


def cost_figures():
    lines = {f"{what}, {name}": [1.0, 2.0] for what in ("forward", "training step") for name in (OURS, THEIRS)}
    lines[f"forward, {THEIRS}"] = [None, 3.0]
    return {"input": {"points": ["SSD512", "SSD512 highres"], "lines": lines}}


def around_figures():
    def lines(points):
        return {"this package": [2e-3] * len(points), "peer": [5e-3] * len(points)}

    return {
        what: {"axis": axis, "points": list(points), "lines": lines(points)}
        for what, (axis, points) in around_network.AXES.items()
    }


def coco_figures():
    def side(seconds, peak):
        return {"AP, seconds": seconds, "file of detections, seconds": 1.0, "peak memory, MiB": peak, "difference": 0.0}

    return {"pycocotools": side(60.0, 2000.0), "the package": side(1.5, 200.0)}


FIGURES = {
    "network": network_figures(),
    "cost": cost_figures(),
    "around_network": around_figures(),
    "memory": memory_figures(),
    "coco_ap": coco_figures(),
    "input_pipeline": {"sides": {"this commit": {"all of these": 500.0}, "torchvision v2": {"all of these": 25.0}}},
    "postprocess": {
        "random, 3 classes": {"above": 5, "ours": {"seconds": 0.1, "found": 2}},
        "the worst: all above": {
            "above": 9,
            "ours": {"seconds": 0.01, "found": 2},
            "torchvision": {"seconds": 0.05, "found": 2},
        },
    },
    "deployment": {"torchvision 9.9, PyTorch 8": 0.3, "`--engine onnxruntime`": 0.2, "exported, int8": 0.1},
    "scaling": {"eager, 1 x 2": {"images/s": 1.0, "outside": 0.0}},
}


def record(name, **changed):
    return {
        "date": "2026-01-02",
        "commit": "abc1234",
        "machine": {"cpu": "a CPU, 2 cores"},
        "load": 0.1,
        "seconds": 90.0,
        "title": f"Title of {name}",
        "table": f"| table of {name} |",
        "figures": FIGURES[name],
        **changed,
    }


def keep(folder, *names, device="cpu", **changed):
    for name in names:
        records.write(folder / "results", name, device, record(name, **changed))


def page_of(folder):
    return page.write_page(folder / "results", folder).read_text()


def line_with(text, *words):
    [line] = [line for line in text.splitlines() if all(word in line for word in words)]
    return line


def test_page_holds_each_part_with_its_table_picture_and_command(tmp_path):
    keep(tmp_path, *FIGURES)
    text = page_of(tmp_path)
    for name in FIGURES:
        section = text.partition(f"## Title of {name}")[2].partition("\n## ")[0]
        assert f"| table of {name} |" in section
        assert f"suite.py --only {name}`: 2026-01-02, commit abc1234, 1.5 minutes." in section
        assert (f"benchmarks-{name}.png" in section) == (name in plots.DRAW)
    for name in plots.DRAW:
        assert (tmp_path / f"benchmarks-{name}.png").read_bytes().startswith(b"\x89PNG")
    assert "Not yet run here: folder, start." in text
    assert "| cpu | a CPU, 2 cores |" in text


def test_summary_divides_the_peers_figure_by_ours(tmp_path):
    keep(tmp_path, *FIGURES)
    summary = page_of(tmp_path).partition("## Summary")[2].partition("\n## ")[0]
    assert "| 0.400 s | 0.500 s, torchvision 9.9 | 1.25 |" in line_with(summary, "forward of an image, OneFlow")
    assert "| 0.200 s | 0.500 s, torchvision 9.9 | 2.50 |" in line_with(summary, "forward of an image, ONNX")
    assert "| 0.800 |" in line_with(summary, "training step of an image")  # behind, and said
    assert "| 1.50 |" in line_with(summary, "memory, training step, batch 4")
    assert "| 40.0 | [`--only coco_ap`](#title-of-coco_ap) |" in line_with(summary, "COCO's numbers")
    assert "| 1.50 |" in line_with(summary, "forward, SSD512 highres")
    assert "| 2.00 ms | 5.00 ms, peer | 2.50 |" in line_with(summary, "match, 10 objects")
    assert "| 2.00 ms | 40.0 ms, torchvision v2 | 20.0 |" in line_with(summary, "decode, augment")
    assert "| 10.0 ms | 50.0 ms, torchvision | 5.00 |" in line_with(summary, "post-process, the worst")
    assert "| 3.00 |" in line_with(summary, "from file to detections, exported, int8")


def test_headings_of_a_part_go_below_its_own(tmp_path):
    keep(tmp_path, "scaling", table="# Its own title\n\n| first |\n\n## One core\n\n| second |\n")
    text = page_of(tmp_path)
    assert "Its own title" not in text
    assert "## Title of scaling\n\n| first |\n\n### One core\n\n| second |\n\n" in text


def test_without_a_gpu_its_section_says_so(tmp_path):
    keep(tmp_path, "network")
    section = page_of(tmp_path).partition("## On a GPU")[2]
    assert "Not yet measured" in section and "suite.py --device cuda" in section
    keep(tmp_path, "network", device="cuda", table="| of a GPU |")
    section = page_of(tmp_path).partition("## On a GPU")[2]
    assert "Not yet measured" not in section and "| of a GPU |" in section


def test_other_programs_and_other_machines_are_named(tmp_path):
    keep(tmp_path, "network", load=3.21)
    keep(tmp_path, "coco_ap", machine={"cpu": "another CPU"})
    text = page_of(tmp_path)
    assert "Other programs were running when it began (load 3.2)" in text
    assert "Of network:" in text and "Of coco_ap:" in text


def arranged(monkeypatch, run_part):
    """A suite that knows this machine and does not start its parts."""
    monkeypatch.setattr(suite, "run_part", run_part)
    monkeypatch.setattr(records, "machine", lambda found: {"cpu": "a CPU"})
    monkeypatch.setattr(peers, "find_peers", lambda python: peers.Peers(python, {}))
    monkeypatch.setattr(suite.signal, "signal", lambda *_: None)


def test_a_part_that_fails_is_named_and_does_not_stop_the_others(tmp_path, monkeypatch, capsys):
    keep(tmp_path, "network")

    def run_part(command):
        if "network.py" in command[0]:
            raise suite.PartFailed("out of memory")
        return {"title": "AP", "table": "| new |", "figures": coco_figures()}

    arranged(monkeypatch, run_part)
    assert suite.main(["--only", "network,coco_ap", "--output", str(tmp_path)]) == 1
    assert "failed: network" in capsys.readouterr().err
    text = (tmp_path / "benchmarks.md").read_text()
    assert "**Failed** on" in line_with(text, "out of memory")
    assert "| table of network |" in text and "| new |" in text  # the former figures are kept
    assert "Left out, as not installed: pycocotools, faster-coco-eval" in text.partition("| new |")[2]


def test_an_interrupted_run_keeps_what_had_ended(tmp_path, monkeypatch, capsys):
    def run_part(command):
        if "coco_ap.py" in command[0]:
            raise KeyboardInterrupt
        return {"title": "M", "table": "| of memory |", "figures": memory_figures()}

    arranged(monkeypatch, run_part)
    assert suite.main(["--only", "memory,coco_ap", "--output", str(tmp_path)]) == 130
    assert "interrupted" in capsys.readouterr().err
    assert "| of memory |" in (tmp_path / "benchmarks.md").read_text()


def test_an_answer_is_the_line_of_json_whatever_else_is_said(tmp_path):
    script = tmp_path / "part.py"
    says = ["print('[1]')", 'print(\'{"table": "t"}\')', "print('{\"a\": 1}')", "print('bye', file=sys.stderr)"]
    script.write_text("\n".join(["import sys", *says]))
    assert suite.run_part([str(script)]) == {"table": "t"}
    script.write_text("import sys; print('round 1'); sys.exit('no such weights')")
    with pytest.raises(suite.PartFailed, match="round 1 no such weights"):
        suite.run_part([str(script)])
    script.write_text("")
    with pytest.raises(suite.PartFailed, match="status 0"):
        suite.run_part([str(script)])


def test_ending_a_part_ends_what_it_has_started():
    command = ["sh", "-c", "sh -c 'trap \"\" INT; echo $$; exec sleep 100' & wait"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True) as process:
        child = int(process.stdout.readline())
        suite.end(process)
    state, deadline = Path(f"/proc/{child}/stat"), time.monotonic() + 5
    while state.exists() and not state.read_text().rpartition(") ")[2].startswith("Z"):
        assert time.monotonic() < deadline, "it goes on"
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--only", "netwrok"], "--only netwrok: the parts are network, cost"),
        (["--only", "scaling", "--quick"], "none goes with --quick"),
        (["--only", "coco_ap", "--peer-python", "/nowhere/python"], "/nowhere/python: there is no such file"),
        (["--data", "/nowhere"], "/nowhere: there is no such file"),
        (["--only", "network", "--device", "tpu"], "--device tpu: write cpu, cuda or cuda:N"),
    ],
)
def test_what_cannot_be_is_refused_in_a_sentence(arguments, message, capsys):
    with pytest.raises(SystemExit) as ended:
        suite.parse(arguments)
    assert message in f"{capsys.readouterr().err} {ended.value}"


@pytest.mark.parametrize("quick", [False, True])
def test_parts_take_the_arguments_they_are_given(quick):
    modules = {"network": network, "cost": cost, "memory": memory, "around_network": around_network, "coco_ap": coco_ap}
    installed = peers.find_peers(Path(sys.executable))
    options = suite.parse(["--quick", "--rounds", "2"] if quick else [])
    for part in PARTS:
        if part.name in modules:
            script, *arguments = suite.command_of(part, options, installed)
            parsed = modules[part.name].parse([*arguments, "--json"])
            assert parsed.json and parsed.rounds == (2 if quick else 1 if part.name == "memory" else 3)
            takes_peers = any(package in installed for package in part.needs)
            assert parsed.peer_python == (Path(sys.executable) if takes_peers else peers.DEFAULT_PYTHON)
            assert (REPOSITORY / script).is_file()


def test_photographs_and_weights_are_given_to_the_parts_that_need_them(tmp_path):
    (tmp_path / "JPEGImages").mkdir()
    for name in ("best.safetensors", "JPEGImages/b.jpg", "JPEGImages/a.jpg"):
        (tmp_path / name).touch()
    options = suite.parse(["--data", str(tmp_path), "--weights", str(tmp_path / "best.safetensors")])
    commands = {part.name: suite.command_of(part, options, peers.Peers(NOWHERE, {})) for part in PARTS}
    assert commands["input_pipeline"][1:3] == ["--data", str(tmp_path)]
    assert commands["folder"][1] == str(tmp_path / "JPEGImages")
    assert commands["start"][1] == str(tmp_path / "JPEGImages" / "a.jpg")
    weights = [name for name, command in commands.items() if "--weights" in command]
    assert weights == ["deployment", "folder", "start"]
    assert not any(str(NOWHERE) in command for command in commands.values())


def test_a_part_without_its_peers_says_so_and_how_to_install_them():
    command = [sys.executable, BENCHMARKS / "coco_ap.py", "--images", "5", "--rounds", "1", "--json"]
    done = subprocess.run([*command, "--peer-python", NOWHERE], check=True, capture_output=True, text=True)
    answer = json.loads(done.stdout.splitlines()[-1])
    assert list(answer["figures"]) == ["the package"]
    assert "Left out, as not installed: pycocotools, faster-coco-eval." in answer["table"]
    assert all(command in answer["table"] for command in peers.MAKE)


def test_peers_are_known_by_what_their_python_has():
    here = peers.find_peers(Path(sys.executable))
    assert "pycocotools" in here and here.name("pycocotools") == "pycocotools 2.0.11"
    assert here.left_out("pycocotools") == []
    assert peers.find_peers(NOWHERE).versions == {}


def test_the_first_call_is_not_counted_and_long_ones_are_not_repeated():
    calls = []
    assert len(engines.measure(lambda: calls.append(1), 3, 60)) == 3 and len(calls) == 4
    assert len(engines.measure(lambda: calls.append(1), 3, 0)) == 1 and len(calls) == 6
    assert len(engines.measure(lambda: calls.append(1), 2, 60, warm_up=False)) == 2 and len(calls) == 8


def test_multiplications_are_those_published_for_this_network():
    forward, training = network.multiply_adds()
    assert forward == pytest.approx(34.858, abs=5e-4)
    assert training == pytest.approx(3 * forward - 300 * 300 * 64 * 27 / 1e9)


def test_made_up_photographs_are_a_data_set(tmp_path):
    from ssd300_vgg16.data.formats import DataSource
    from ssd300_vgg16.data.images import read_image

    folder = made_up_data.photographs(tmp_path / "photographs")
    assert made_up_data.photographs(folder) == folder
    train, val = (DataSource("voc", folder).load(split) for split in ("train", "val"))
    assert (len(train.samples), len(val.samples)) == (205, 40)
    assert not train.problems and len(train.samples[0].labels) == engines.OBJECTS_PER_IMAGE
    assert read_image(val.samples[-1].path).shape == (480, 640, 3)
