"""Measure the package against its peers.

    .venv/bin/python -m benchmarks network cost             print the tables of these benchmarks
    .venv/bin/python -m benchmarks all --record             all, into benchmarks/results and docs/benchmarks.md
    .venv/bin/python -m benchmarks all --quick              a dry run of a minute or two
    .venv/bin/python -m benchmarks page                     docs/benchmarks.md anew, from what was recorded
    .venv/bin/python -m benchmarks all --device cuda        those that say something of a GPU, on one (never tried)

A benchmark's record is written as soon as it has ended, so that `all` may be stopped at any time, and done in parts. A
benchmark that fails keeps its former record, and does not stop the others. Peers that are not installed are left out.
"""

import argparse
import datetime
import importlib
import importlib.metadata
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks import page
from benchmarks.frame import (
    DEFAULT_PEER_PYTHON,
    ROOT,
    Benchmark,
    Options,
    Peers,
    find_peers,
    in_fresh_process,
    package_environment,
)
from benchmarks.made_up import write_images
from ssd300_vgg16.errors import UserError

RESULTS, DOCS = ROOT / "benchmarks" / "results", ROOT / "docs"
MADE_UP_IMAGES = ROOT / "runs" / "benchmarks" / "images"
# In the order in which they are run and shown.
NAMES = (
    "network",
    "cost",
    "narrow_step",
    "narrow_layers",
    "deployment",
    "start",
    "input_pipeline",
    "around_network",
    "coco_ap",
    "gpu_numbers",
    "memory",
    "scaling",
    "fine_tuning",
    "learning",
    "schedules",
    "backgrounds",
    "same_labels",
    "default_boxes",
    "tiles",
    "tiles_input",
    "tiles_training",
)
ALL, PAGE = "all", "page"
OWN_PACKAGES = ("numpy", "numba", "onnxruntime", "flowvision")


def benchmarks() -> dict[str, Benchmark]:
    """All of them, by name."""
    return {name: importlib.import_module(f"benchmarks.{name}").BENCHMARK for name in NAMES}


@dataclass(frozen=True)
class Run:
    """What is asked for."""

    names: tuple[str, ...]
    options: Options
    rounds_given: int | None
    record: bool


def parse(arguments: Sequence[str] | None = None) -> Run:
    """The options; ends the program with a sentence about those that cannot be."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="+", metavar="NAME", help=f"{', '.join(NAMES)}; {ALL}; {PAGE}")
    parser.add_argument("--record", action="store_true", help="keep the figures, and write docs/benchmarks.md")
    parser.add_argument("--quick", action="store_true", help="a dry run: few and small, its figures mean nothing")
    parser.add_argument(
        "--rounds", type=int, help="how often all sides take their turn (default: 3; memory 1, narrow_step 5)"
    )
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N (default: cpu)")
    parser.add_argument("--data", type=Path, help="images in VOC's layout (default: made-up ones)")
    parser.add_argument("--weights", type=Path, help="a run's folder or file of weights (default: made-up ones)")
    parser.add_argument(
        "--peer-python",
        type=Path,
        default=DEFAULT_PEER_PYTHON,
        help="the Python of the peers' environment (default: benchmarks/.peers)",
    )
    given = parser.parse_args(arguments)
    for path in (given.data, given.weights, None if given.peer_python == DEFAULT_PEER_PYTHON else given.peer_python):
        if path is not None and not path.exists():
            parser.error(f"{path}: there is no such file or folder")
    if given.quick and given.record:
        parser.error("--quick --record: the figures of a dry run mean nothing")
    for name in given.names:
        if name not in (*NAMES, ALL, PAGE):
            parser.error(f"{name}: the benchmarks are {', '.join(NAMES)}")
    options = Options(
        rounds=given.rounds or 3,
        quick=given.quick,
        device=_checked_device(given.device),
        data=(given.data or MADE_UP_IMAGES).absolute(),
        data_given=given.data is not None,
        weights=given.weights and given.weights.absolute(),
        peers=find_peers(given.peer_python.absolute()),
    )
    names = _chosen(parser, given.names, options)
    return Run(names, options, given.rounds, given.record or given.names == [PAGE])


def _chosen(parser: argparse.ArgumentParser, asked: Sequence[str], options: Options) -> tuple[str, ...]:
    """Those asked for that make sense with the other options."""
    found = benchmarks()
    chosen = tuple(
        name
        for name in NAMES
        if (name in asked or (ALL in asked and not found[name].own_data))
        and (found[name].quick or not options.quick)
        and (found[name].on_gpu or options.device == "cpu")
    )
    if not chosen and list(asked) != [PAGE]:
        parser.error(f"of {', '.join(asked)}, none goes with --quick or --device here")
    for name in chosen:
        if found[name].own_data and not options.data_given:
            parser.error(f"{name}: it learns from --data DIR, such as BCCD")
    return chosen


def _checked_device(name: str) -> str:
    """The device if it can be used; ends the program with a sentence if not."""
    if name == "cpu":
        return name
    # Only here: it may load OneFlow, which the processes of a benchmark load by themselves.
    from ssd300_vgg16.devices import resolve_device

    try:
        return resolve_device(name)
    except UserError as error:
        raise SystemExit(str(error)) from error


def measured(name: str, run: Run, machine: dict[str, str]) -> dict:
    """Run a benchmark; returns its record: the figures, with what is to be known of them."""
    benchmark = benchmarks()[name]
    rounds = run.rounds_given or (1 if run.options.quick else benchmark.rounds)
    options = replace(run.options, rounds=rounds)
    today = datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d")
    about = {"date": today, "commit": commit(), "machine": machine, "load": os.getloadavg()[0], "rounds": rounds}
    since = time.monotonic()
    figures = benchmark.measure(options)
    left_out = [package for package in benchmark.needs if package not in options.peers]
    return about | {"left_out": left_out, "figures": figures, "seconds": time.monotonic() - since}


def run_all(run: Run, results: Path) -> list[str]:
    """Run what is asked for, print the tables, keep the records if asked; returns the names of those that failed."""
    in_fresh_process(write_images, MADE_UP_IMAGES)
    machine, failed, device = machine_of(run.options.peers), [], run.options.device
    for number, name in enumerate(run.names, start=1):
        print(f"[{number}/{len(run.names)}] {name}", flush=True)
        try:
            record = measured(name, run, machine)
        except Exception:  # whatever it is: the others go on
            traceback.print_exc()
            failed.append(name)
            continue
        print(f"\n{page.section(name, benchmarks()[name], record, device)}\n", flush=True)
        if run.record:
            page.write_record(results, name, device, record)
    return failed


def machine_of(peers: Peers) -> dict[str, str]:
    """Hardware and versions, as texts by name."""
    found = in_fresh_process(package_environment)
    found["memory"] = f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB"
    return found | {name: importlib.metadata.version(name) for name in OWN_PACKAGES} | peers.versions


def commit() -> str:
    """The commit of this tree, and whether anything differs from it."""

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", "-C", ROOT, *arguments], capture_output=True, text=True)
        return done.stdout.strip()

    changed = git("status", "--porcelain", "--untracked-files=no", "--", "ssd300_vgg16", "benchmarks/*.py")
    return (git("rev-parse", "--short", "HEAD") or "unknown") + (" with changes" if changed else "")


def main(arguments: Sequence[str] | None = None, results: Path = RESULTS, docs: Path = DOCS) -> int:
    run = parse(arguments)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # to end as with Ctrl-C
    failed, status = [], 0
    try:
        failed = run_all(run, results) if run.names else []
    except KeyboardInterrupt:
        print("interrupted: what had ended and was to be recorded is kept", file=sys.stderr)
        status = 130
    if run.record:
        print(f"written: {page.write_page(benchmarks(), results, docs)}")
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return status or int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
