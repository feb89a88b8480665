"""The records of the benchmarks, and docs/benchmarks.md, which is made from nothing else."""

import json
from collections.abc import Mapping
from pathlib import Path

from benchmarks import plots
from benchmarks.frame import MAKE_PEERS, Benchmark
from benchmarks.tables import markdown, paragraphs
from ssd300_vgg16.files import write_atomically

COMMAND = ".venv/bin/python -m benchmarks"
HOW = f"""```bash
{MAKE_PEERS[0]}                   # once: the peers
{MAKE_PEERS[1]}
{COMMAND} network cost                   # the tables of some, on the terminal
{COMMAND} all --record                   # all, and this page
{COMMAND} all --quick                    # a dry run of a minute or two
```"""
ABOUT = (
    "# Benchmarks",
    "All sides of a table ran in turn on the same machine, each in a process of its own; times and rates are medians. "
    "To repeat them:",
    HOW,
    "torchvision, pycocotools and faster-coco-eval have an environment of their own. flowvision, the model zoo that "
    "this package replaces, runs in the package's, in processes without the package and the libraries that it loads. "
    "A peer that is missing is left out, with a note. Images and weights are made up; `--data DIR` takes images in "
    "VOC's layout, `--weights FILE` trained weights.",
)
NOT_MEASURED = (
    "Not yet measured: no machine with a GPU that OneFlow 0.9.0 has code for could be had. The benchmarks that say "
    "something of a GPU have never been tried on one:"
)
IDLE = 0.8  # a load above says that others were computing too


def _path_of(folder: Path, name: str, device: str) -> Path:
    return folder / f"{name}.json" if device == "cpu" else folder / "cuda" / f"{name}.json"


def read_record(folder: Path, name: str, device: str = "cpu") -> dict:
    """A benchmark's record on a kind of device; empty if it has never been run."""
    path = _path_of(folder, name, device)
    return json.loads(path.read_text()) if path.exists() else {}


def write_record(folder: Path, name: str, device: str, record: dict) -> None:
    """Keep a record, whole or not at all."""
    path = _path_of(folder, name, device)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(record, indent=1) + "\n")


def link(title: str) -> str:
    """What GitHub makes of a heading."""
    return "".join(letter for letter in title.lower().replace(" ", "-") if letter.isalnum() or letter in "-_")


def section(name: str, benchmark: Benchmark, record: dict, device: str, picture: str = "") -> str:
    """A benchmark with its command, table and picture."""
    heading, options = ("##", "") if device == "cpu" else ("###", " --device cuda")
    if benchmark.own_data:
        options += " --data DIR"
    made, left_out = " and ".join(f"`{command}`" for command in MAKE_PEERS), ", ".join(record["left_out"])
    return paragraphs(
        f"{heading} {benchmark.title}",
        f"`{COMMAND} {name}{options}`",
        benchmark.table(record["figures"]),
        f"Left out, as not installed: {left_out}. {made} installs the peers." if left_out else "",
        f"![{benchmark.title}]({picture})" if picture else "",
    )


def _summary(benchmarks: Mapping[str, Benchmark], found: dict[str, dict]) -> str:
    """What all benchmarks say, a line each."""
    rows = []
    for name, record in found.items():
        title = benchmarks[name].title
        for claim in benchmarks[name].claims(record["figures"]):
            rows.append([*claim.cells(), f"[{name}](#{link(title)})"])
    told = (
        "Less is better. The last figure is the peer's divided by ours: above 1 the package is ahead, below 1 behind."
    )
    header = ["", "this package", "peer", "times ours", "table"]
    return paragraphs("## Summary", told, markdown(header, rows)) if rows else ""


def _origins(found: dict[str, dict], heading: str) -> str:
    """When, of what and on which machine each was measured."""
    rows = []
    for name, record in found.items():
        minutes, load = f"{record['seconds'] / 60:.1f}", f"{record['load']:.1f}"
        rows.append([name, record["date"], record["commit"], str(record["rounds"]), minutes, load])
    header = ["benchmark", "date", "commit", "rounds", "minutes", "load at the start"]
    loads = [record["load"] for record in found.values()]
    busy = (
        f"Where the load was above {IDLE}, other programs were running: times are too long, and unevenly. Minutes are "
        "those of the last call: trainings that an earlier one had made are used again."
    )
    groups: dict[tuple, list[str]] = {}
    for name, record in found.items():
        groups.setdefault(tuple(record["machine"].items()), []).append(name)
    machines = []
    for machine, names in groups.items():
        of_these = f"{', '.join(names)}: " if len(groups) > 1 else ""
        machines.append(of_these + ", ".join(f"{name} {value}" for name, value in machine) + ".")
    return paragraphs(heading, *machines, markdown(header, rows), busy if max(loads, default=0) > IDLE else "")


def _text(benchmarks: Mapping[str, Benchmark], results: Path, folder: Path) -> str:
    """The page; its pictures are written to the folder."""

    def records(device: str) -> dict[str, dict]:
        found = {name: read_record(results, name, device) for name in benchmarks}
        return {name: record for name, record in found.items() if record}

    found, on_gpu = records("cpu"), records("cuda")
    sections = []
    for name, record in found.items():
        draw, picture = benchmarks[name].draw, ""
        if draw:
            picture = f"benchmarks-{name}.png"
            plots.save(draw, record["figures"], folder / picture)
        sections.append(section(name, benchmarks[name], record, "cpu", picture))
    missing = [name for name in benchmarks if name not in found]
    gpu = [NOT_MEASURED, f"```bash\n{COMMAND} all --record --device cuda\n```"]
    if on_gpu:
        gpu = [section(name, benchmarks[name], record, "cuda") for name, record in on_gpu.items()]
        gpu.append(_origins(on_gpu, "### How these were measured"))
    return paragraphs(
        *ABOUT,
        _summary(benchmarks, found),
        f"Not yet run here: {', '.join(missing)}." if missing else "",
        *sections,
        "## On a GPU",
        *gpu,
        _origins(found, "## How these were measured") if found else "",
    )


def write_page(benchmarks: Mapping[str, Benchmark], results: Path, folder: Path) -> Path:
    """Write benchmarks.md and its pictures into a folder; returns its path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "benchmarks.md"
    write_atomically(path, _text(benchmarks, results, folder) + "\n")
    return path
