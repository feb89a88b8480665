"""Training on the CPU with 1 and 2 processes, op by op and compiled: images/s, and the time outside the network.

    .venv/bin/python benchmarks/scaling.py                  at full width
    .venv/bin/python benchmarks/scaling.py --width 0.125    with an eighth of the channels

Each case is `train.sh` itself on generated shapes, in processes of its own, with its step timed; the cases take turns,
and the table gives medians over the rounds. The first steps, in which a graph is compiled, are not counted.
"""

import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

import part

BATCH = 4
WARM_UP = 1
# Width of the network, and steps to time: about as long for either.
SIZES = {0.125: 15, 1.0: 3}
CASES = [(processes, threads, kind) for kind in ("eager", "compiled") for processes, threads in ((1, 2), (2, 1))]


def drive(times_file: Path, arguments: list[str]) -> None:
    """Be one process of a training, and write down the seconds of its steps and of the network in them."""
    from ssd300_vgg16 import train
    from ssd300_vgg16.training import step, trainer

    os.dup2(
        os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno()
    )  # reports and tables of a training that means nothing
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
    from ssd300_vgg16.distributed.job import Job
    from ssd300_vgg16.distributed.launcher import supervise

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
    if supervise(Job(processes), command, lambda: command, restarts=0, advice="", options=arguments) != 0:
        sys.exit("a training failed")
    times = json.loads(times_file.read_text())
    network, whole = (sum(times[part][WARM_UP:]) for part in ("network", "whole"))
    return SIZES[width] * BATCH / whole, 1 - network / whole


def table_of(found: dict, rounds: str) -> str:
    about = (
        f"Batch {BATCH} in all, generated shapes. Data workers: as train.sh chooses them, one where a process has two "
        f"cores, none where it has one. Medians over {rounds}. Outside the network: waiting for data, talk "
        "between processes, and, op by op, the update of the weights (which a compiled step has inside)."
    )
    rows = [
        [kind, str(processes), str(threads), f"{rate:.2f}", f"{outside:.0%}"]
        for (processes, threads, kind), (rate, outside) in found.items()
    ]
    header = ["step", "processes", "threads each", "images/s", "outside the network"]
    return part.paragraphs(about, part.markdown(header, rows))


def main() -> None:
    parser = part.parser(__doc__)
    parser.add_argument("--width", type=float, choices=SIZES, default=1.0)
    options = parser.parse_args()
    from ssd300_vgg16.data.shapes import write_shapes

    runs = {case: [] for case in CASES}
    steps = SIZES[options.width] + WARM_UP
    with tempfile.TemporaryDirectory() as name:
        write_shapes(Path(name) / f"shapes{steps}", steps * BATCH, 2, seed=0)
        for number in range(options.rounds):
            for case, results in runs.items():
                results.append(run_case(Path(name), options.width, *case))
                print(f"round {number + 1}, {case}: {results[-1][0]:.2f} images/s", flush=True)
    found = {case: [statistics.median(column) for column in zip(*of, strict=True)] for case, of in runs.items()}
    figures = {
        f"{kind}, {processes} x {threads}": {"images/s": rate, "outside": outside}
        for (processes, threads, kind), (rate, outside) in found.items()
    }
    title = f"Training on the CPU: processes, threads, and how a step is computed, at width {options.width:g}"
    part.answer(options, title, table_of(found, part.rounds(options)), figures)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--drive"]:
        drive(Path(sys.argv[2]), sys.argv[3:])
    main()
