"""Run the benchmarks, part by part, and write docs/benchmarks.md with its plots.

    .venv/bin/python benchmarks/suite.py                          all parts, about 45 minutes on two cores
    .venv/bin/python benchmarks/suite.py --only network,memory    these parts; the page keeps the others as they were
    .venv/bin/python benchmarks/suite.py --quick                  a rehearsal of a minute or two, into runs/
    .venv/bin/python benchmarks/suite.py --page                   the page alone, from what was measured before
    .venv/bin/python benchmarks/suite.py --device cuda            the parts that say something of a GPU, on one

Every part is a script of this folder, in processes of its own. What it found is kept in benchmarks/results/ as soon as
it has ended, and the page is made from what is there: a run may be stopped at any time, and done part by part. A part
that fails is named in the page and does not stop the others. Peers that are not installed are left out with a note.
"""

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import made_up_data
import page
import part
import peers
import records
from parts import IMAGES, PARTS, PHOTOGRAPH, PHOTOGRAPHS, Part

ROOT = Path(__file__).resolve().parent.parent
QUICK_FOLDER = ROOT / "runs" / "benchmarks-quick"


class PartFailed(Exception):
    """A part that did not answer; the message is its last words."""


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The options; ends the program with a sentence about those that cannot be."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = ", ".join(each.name for each in PARTS)
    parser.add_argument("--only", metavar="A,B", help=f"these parts: {names}")
    parser.add_argument("--quick", action="store_true", help="a rehearsal: few and small, its figures mean nothing")
    parser.add_argument("--page", action="store_true", help="run nothing: make the page from what was measured before")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N (default: cpu)")
    parser.add_argument("--data", type=Path, help="photographs in VOC's layout (default: made-up ones)")
    parser.add_argument("--weights", type=Path, help="a run's folder or file of weights (default: random ones)")
    parser.add_argument("--rounds", type=int, help="how often all sides take their turn (default: the parts' own, 3)")
    parser.add_argument("--output", type=Path, help="a folder for results and page, in place of the repository's own")
    parser.add_argument("--peer-python", type=Path, help="the Python of the peers' environment (default: .peers)")
    options = parser.parse_args(arguments)
    options.parts = chosen_parts(parser, options)
    for path in (options.data, options.weights, options.peer_python):
        if path is not None and not path.exists():
            parser.error(f"{path}: there is no such file or folder")
    options.device = part.checked_device(options.device)
    if options.output is None and options.quick:
        options.output = QUICK_FOLDER
    return options


def chosen_parts(parser: argparse.ArgumentParser, options: argparse.Namespace) -> list[Part]:
    """Those asked for that make sense with the other options."""
    names = [each.name for each in PARTS]
    wanted = names if options.only is None else [name.strip() for name in options.only.split(",")]
    unknown = [name for name in wanted if name not in names]
    if unknown:
        parser.error(f"--only {','.join(unknown)}: the parts are {', '.join(names)}")
    chosen = [each for each in PARTS if each.name in wanted]
    if options.quick:
        chosen = [each for each in chosen if each.quick is not None]
    if options.device != "cpu":
        chosen = [each for each in chosen if each.device]
    if not chosen:
        parser.error("of the parts in --only, none goes with --quick or --device here")
    return chosen


def run_part(command: list[str]) -> dict:
    """The answer of a part; its other lines are shown. Raises PartFailed."""
    answer, last_words = None, []
    with subprocess.Popen(
        [sys.executable, "-u", *command, "--json"],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,  # so that it can be ended with all it has started
    ) as process:
        try:
            for line in process.stdout:
                found = answer_in(line)
                if found is None:
                    print(f"    {line.rstrip()}", flush=True)
                    last_words = [*last_words, line.strip()][-3:]
                answer = found or answer
            status = process.wait()
        except BaseException:
            end(process)
            raise
    if status or answer is None:
        raise PartFailed(" ".join(filter(None, last_words)) or f"it ended with status {status}")
    return answer


def answer_in(line: str) -> dict | None:
    """A part's answer, if that is what the line is."""
    with contextlib.suppress(ValueError):
        found = json.loads(line)
        if isinstance(found, dict) and "table" in found:
            return found
    return None


def end(process: subprocess.Popen) -> None:
    """End a part and what it has started: let it clear up, but not for long."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=20)
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def command_of(each: Part, options: argparse.Namespace, installed: peers.Peers) -> list[str]:
    """The script and its arguments; photographs are made up if there are none."""
    command = [f"benchmarks/{each.script}", *each.always, *((each.quick or ()) if options.quick else each.full)]
    if options.rounds is not None:
        command += ["--rounds", str(options.rounds)]
    if each.device:
        command += ["--device", options.device]
    if each.weights and options.weights:
        command += ["--weights", str(options.weights.absolute())]
    if each.peer_option and any(package in installed for package in each.needs):
        command += [each.peer_option, str(installed.python)]
    if {PHOTOGRAPHS, IMAGES, PHOTOGRAPH} & set(command):
        data = (options.data or made_up_data.photographs(ROOT / "runs" / "benchmarks" / "photographs")).absolute()
        images = data / "JPEGImages"
        places = {PHOTOGRAPHS: str(data), IMAGES: str(images), PHOTOGRAPH: str(min(images.iterdir()))}
        command = [places.get(word, word) for word in command]
    return command


def run_all(options: argparse.Namespace, results: Path) -> list[str]:
    """Run the parts chosen, keeping each one's record; returns the names of those that failed."""
    installed = peers.find_peers((options.peer_python or peers.DEFAULT_PYTHON).absolute())
    machine = records.machine(installed)
    started, failed = time.monotonic(), []
    for number, each in enumerate(options.parts):
        left = sum(expected_minutes(later, options, results) for later in options.parts[number:])
        print(
            f"[{number + 1}/{len(options.parts)}] {each.name}: {(time.monotonic() - started) / 60:.1f} min so far, "
            f"about {left:.0f} min to go",
            flush=True,
        )
        record = record_of(each, options, installed, machine)
        if "failure" in record:
            failed.append(each.name)
            print(f"    failed: {record['failure']['error']}", flush=True)
            record = records.read(results, each.name, options.device) | record
        records.write(results, each.name, options.device, record)
    return failed


def record_of(each: Part, options: argparse.Namespace, installed: peers.Peers, machine: dict) -> dict:
    """Run a part: its answer, with what is to be known of it; or a "failure"."""
    about = {"date": records.now(), "commit": records.commit(), "machine": machine, "load": os.getloadavg()[0]}
    since = time.monotonic()
    try:
        answer = run_part(command_of(each, options, installed))
    except PartFailed as error:
        return {"failure": about | {"error": str(error)}}
    # The scripts that know the peers' environment say so themselves.
    if installed.left_out(*each.needs) and "Left out" not in answer["table"]:
        answer["table"] = part.paragraphs(answer["table"].strip(), *installed.left_out(*each.needs))
    return about | answer | {"seconds": time.monotonic() - since}


def expected_minutes(each: Part, options: argparse.Namespace, results: Path) -> float:
    """How long a part takes: what it took the last time, else about."""
    seconds = records.read(results, each.name, options.device).get("seconds")
    return seconds / 60 if seconds else 0.2 if options.quick else each.minutes


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    results = options.output / "results" if options.output else ROOT / "benchmarks" / "results"
    folder = options.output or ROOT / "docs"
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # to end as with Ctrl-C
    failed, status = [], 0
    try:
        if not options.page:
            failed = run_all(options, results)
    except KeyboardInterrupt:
        print("interrupted: what had ended is kept; --only goes on with the others", file=sys.stderr)
        status = 130
    print(f"written: {page.write_page(results, folder)}")
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return status or int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
