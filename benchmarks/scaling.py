"""Training on the CPU with 1 and 2 processes, op by op and compiled: images/s, and the time outside the network.

    .venv/bin/python benchmarks/scaling.py               a table on the terminal
    .venv/bin/python benchmarks/scaling.py --write       and in benchmarks/scaling-WIDTH.md

Each case is `train.sh` itself on generated shapes, in processes of its own, with its step timed; the cases take turns,
and the table gives medians over the rounds. The first steps, in which a graph is compiled, are not counted.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
BATCH = 4
WARM_UP = 1
# Width of the network, and steps to time: about as long for either.
SIZES = {0.125: 15, 1.0: 3}
CASES = [(processes, threads, kind) for kind in ("eager", "compiled") for processes, threads in ((1, 2), (2, 1))]


def drive(times_file: Path, arguments: list[str]) -> None:
    """Be one process of a training, and write down the seconds of its steps and of the network in them."""
    from ssd300_vgg16 import train
    from ssd300_vgg16.training import step, trainer

    network = timed(step.EagerStep, "_backward") if "--eager" in arguments else timed(step.GraphStep, "__call__")
    whole = timed(trainer.Trainer, "train_step")
    status = train.main(arguments)
    if os.environ.get("RANK", "0") == "0":
        times_file.write_text(json.dumps({"network": network, "whole": whole}))
    sys.stdout.flush()
    os._exit(status)  # as train.sh does where there are several processes


def timed(owner: type, name: str) -> list[float]:
    """Have a method note the seconds of its calls, up to the moment when all it has begun is done."""
    from ssd300_vgg16.runtime import flow

    seconds, method = [], getattr(owner, name)

    def measure(*arguments):
        since = time.perf_counter()
        result = method(*arguments)
        flow._oneflow_internal.eager.Sync()
        seconds.append(time.perf_counter() - since)
        return result

    setattr(owner, name, measure)
    return seconds


def run_case(folder: Path, width: float, processes: int, threads: int, kind: str) -> tuple[float, float]:
    """Images per second, and the share of the time outside the network."""
    from ssd300_vgg16.processes.job import Job
    from ssd300_vgg16.processes.supervisor import supervise

    steps = SIZES[width] + WARM_UP
    arguments = ["--data-path", str(folder / f"shapes{steps}"), "--preset", "narrow", "--width", str(width)]
    arguments += ["-b", str(BATCH), "--epochs", "1", "--print-freq", "1", "--device", "cpu", "--lr", "1e-6"]
    arguments += [
        "--eager" if kind == "eager" else "--no-eager",
        "--save-every",
        "100000",
        "--data-augmentation",
        "ssd",
    ]
    times_file, run = folder / "times.json", Path(tempfile.mkdtemp(dir=folder))
    os.environ["OMP_NUM_THREADS"] = str(threads)
    command = [sys.executable, __file__, "--drive", str(times_file), *arguments, "--output-dir", str(run)]
    if supervise(Job(processes), command, lambda: command, restarts=0, advice="") != 0:
        sys.exit("a training failed")
    times = json.loads(times_file.read_text())
    network, whole = (sum(times[part][WARM_UP:]) for part in ("network", "whole"))
    return SIZES[width] * BATCH / whole, 1 - network / whole


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--width", type=float, choices=SIZES, default=1.0)
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    from ssd300_vgg16.data.shapes import write_shapes

    found = {(options.width, *case): [] for case in CASES}
    with tempfile.TemporaryDirectory() as name:
        for steps in SIZES.values():
            write_shapes(Path(name) / f"shapes{steps + WARM_UP}", (steps + WARM_UP) * BATCH, 2, seed=0)
        for _ in range(options.rounds):
            for case, results in found.items():
                results.append(run_case(Path(name), *case))
    report = table(found, options.width, options.rounds)
    print(report)
    if options.write:
        (ROOT / "benchmarks" / f"scaling-{options.width:g}.md").write_text(report + "\n")


def table(found: dict, width: float, rounds: int) -> str:
    from ssd300_vgg16.runtime import cpu_name

    lines = [
        f"# Training on the CPU: processes, threads, and how a step is computed, at width {width:g}",
        "",
        f"CPU: {cpu_name()}, {len(os.sched_getaffinity(0))} cores. Batch {BATCH} in all, generated shapes. Data "
        "workers: one where a process has two cores, none where it has one. "
        f"Medians of {rounds} rounds in turn. Repeat with "
        f"`.venv/bin/python benchmarks/scaling.py --width {width:g} --rounds {rounds} --write`.",
        "",
        "Outside the network: waiting for data, talk between processes, and, op by op, the update of the weights "
        "(which a compiled step has inside).",
        "",
        "| step | processes | threads each | images/s | outside the network |",
        "|---|---|---|---|---|",
    ]
    for (_, processes, threads, kind), results in found.items():
        rate, outside = (statistics.median(column) for column in zip(*results, strict=True))
        lines.append(f"| {kind} | {processes} | {threads} | {rate:.2f} | {outside:.0%} |")
    return "\n".join(lines)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--drive"]:
        drive(Path(sys.argv[2]), sys.argv[3:])
    main()
