"""docs/benchmarks.md, from the records of the parts."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import part
import peers
import plots
import records
from claims import claims
from parts import PARTS

SUITE = ".venv/bin/python benchmarks/suite.py"
HOW = f"""```bash
{peers.MAKE[0]}                   # once: the peers
{peers.MAKE[1]}
{SUITE}                        # everything, and this page
{SUITE} --only network,cost    # some parts; the page keeps the others
{SUITE} --quick                # a rehearsal of a minute or two, into runs/
```"""
ABOUT = (
    "# Benchmarks",
    f"Every figure of this page was measured by `{SUITE}`, against the peers that are named, all sides of a part in "
    "turn on the same machine; times and rates are medians. To repeat all of it, or a part:",
    HOW,
    "torchvision, pycocotools and faster-coco-eval run in an environment of their own. flowvision, the model zoo that "
    "this package replaces, needs the same OneFlow and the same numpy, and is installed with the package, whose tests "
    "compare with it; it runs in a process of its own, without the package and the libraries that the package loads, "
    "which is as if it were installed alone. A peer that is missing is left out, with a note. `--data DIR` measures "
    "with photographs in VOC's layout, `--weights FILE` with trained weights, in place of made-up ones; `--help` tells "
    "the rest.",
)
NOT_MEASURED = (
    "Not yet measured: no machine with a GPU that OneFlow 0.9.0 has code for could be had. The same suite runs there, "
    "which has never been tried, and puts its tables here:"
)


def link(title: str) -> str:
    """What GitHub makes of a heading."""
    return "".join(letter for letter in title.lower().replace(" ", "-") if letter.isalnum() or letter in "-_")


def origin(record: dict, device: str, name: str) -> str:
    """When and of what a record is, and the command that makes it anew."""
    command = f"{SUITE} --only {name}" + ("" if device == "cpu" else " --device cuda")
    text = f"`{command}`: {record['date']}, commit {record['commit']}, {record['seconds'] / 60:.1f} minutes."
    if record["load"] > 0.8:
        load = f"load {record['load']:.1f}"
        text += f" Other programs were running when it began ({load}), so times are too long, and unevenly."
    return text


def failure(record: dict) -> str:
    """A sentence about a last run that failed; empty if it did not."""
    if "failure" not in record:
        return ""
    about = record["failure"]
    kept = "What follows is from before." if "table" in record else "There are no figures from before."
    error = about["error"].replace("`", "'")
    return f"**Failed** on {about['date']} at commit {about['commit']}: `{error}`. {kept}"


def section(name: str, record: dict, device: str, folder: Path) -> str:
    """A part with its table and plot; a part that has only failed, by name."""
    if "table" not in record:
        return part.paragraphs(f"## {name}", failure(record))
    picture = f"benchmarks-{name}.png"
    drawn = device == "cpu" and plots.draw(name, record["figures"], folder / picture)
    shown = f"![{record['title']}]({picture})" if drawn else ""
    level = "##" if device == "cpu" else "###"
    heading = f"{level} {record['title']}"
    # Some tables bring a heading of their own, and others for their parts.
    table = re.sub(r"^#", level[1:] + "#", re.sub(r"\A# .*\n+", "", record["table"]), flags=re.MULTILINE)
    return part.paragraphs(heading, failure(record), table.strip(), shown, origin(record, device, name))


def summary(found: dict[str, dict]) -> str:
    """What all parts say, a line each."""
    rows = []
    for name, record in found.items():
        for claim in claims(name, record.get("figures", {})) if "table" in record else ():
            rows.append([*claim.cells(), f"[`--only {name}`](#{link(record['title'])})"])
    header = ["", "this package", "peer", "times ours", f"`{SUITE}` ..."]
    told = (
        "Less is better in all of these; the last figure is the peer's divided by ours, so that above 1 the package is "
        "ahead, and below 1 behind."
    )
    return part.paragraphs("## Summary", told, part.markdown(header, rows)) if rows else ""


def machines(found: dict[str, dict], heading: str) -> str:
    """Hardware and versions; where parts were measured on several machines, which where."""
    groups: dict[tuple, list[str]] = {}
    for name, record in found.items():
        if "machine" in record:
            groups.setdefault(tuple(record["machine"].items()), []).append(name)
    tables = []
    for machine, names in groups.items():
        of_parts = f"Of {', '.join(names)}:" if len(groups) > 1 else ""
        tables.append(part.paragraphs(of_parts, part.markdown(["", ""], [list(row) for row in machine])))
    return part.paragraphs(heading, *tables) if tables else ""


def on_a_gpu(results: Path, folder: Path) -> str:
    """The tables of a GPU, or that there are none."""
    found = _records(results, "cuda")
    command = f"```bash\n{SUITE} --device cuda\n```"
    if not found:
        return part.paragraphs("## On a GPU", NOT_MEASURED, command)
    sections = [section(name, record, "cuda", folder) for name, record in found.items()]
    where = machines(found, "### Its machine and versions")
    return part.paragraphs("## On a GPU", command, where, *sections)


def _records(results: Path, device: str) -> dict[str, dict]:
    """By part, those that there are."""
    found = {each.name: records.read(results, each.name, device) for each in PARTS}
    return {name: record for name, record in found.items() if record}


def missing(found: dict[str, dict]) -> Iterator[str]:
    """A sentence about parts that have never been run."""
    names = [each.name for each in PARTS if each.name not in found]
    if names:
        yield f"Not yet run here: {', '.join(names)}."


def text_of(results: Path, folder: Path) -> str:
    """The page; its pictures are written to the folder."""
    found = _records(results, "cpu")
    sections = [section(name, record, "cpu", folder) for name, record in found.items()]
    parts: Sequence[str] = (*ABOUT, summary(found), *missing(found))
    parts = (*parts, machines(found, "## Machine and versions"), *sections)
    return part.paragraphs(*parts, on_a_gpu(results, folder)) + "\n"


def write_page(results: Path, folder: Path) -> Path:
    """Write benchmarks.md and its pictures into a folder; returns its path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "benchmarks.md"
    aside = path.with_suffix(".tmp")
    aside.write_text(text_of(results, folder))
    aside.replace(path)
    return path
