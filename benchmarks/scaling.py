"""Training on the CPU with 1 and 2 processes, op by op and compiled: images/s, and the time outside the network.

Each case is `train.sh` itself on generated shapes, in processes of its own, with its step timed; the cases take turns.
The first step, in which a graph is compiled, is not counted.
"""

import json
import os
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

from benchmarks.frame import Benchmark, Options, in_fresh_process, in_turn
from benchmarks.made_up import write_shapes
from benchmarks.tables import Figures, markdown, medians, paragraphs

BATCH, STEPS, WARM_UP, WIDTH = 4, 15, 1, 0.125
# Kind of step, processes, threads of each.
CASES = (("eager", 1, 2), ("eager", 2, 1), ("compiled", 1, 2), ("compiled", 2, 1))
# The launcher starts every process with this; it ends by os._exit, as train.sh does where there are several processes.
TRAIN = "import sys; from benchmarks.scaling import train; train(sys.argv[1], sys.argv[2:])"


def train(times_file: str, arguments: list[str]) -> None:
    """Be one process of a training, and write down the seconds of its steps and of the network in them."""
    from ssd300_vgg16 import train
    from ssd300_vgg16.training import step, trainer

    # Reports and tables of a training that means nothing.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    network = timed(step.EagerStep, "_backward") if "--eager" in arguments else timed(step.GraphStep, "__call__")
    whole = timed(trainer.Trainer, "train_step")
    status = train.main(arguments)
    if os.environ.get("RANK", "0") == "0":
        Path(times_file).write_text(json.dumps({"network": network, "whole": whole}))
    sys.stdout.flush()
    os._exit(status)


def timed(owner: type, name: str) -> list[float]:
    """Have a method note the seconds of its calls, up to the moment when all it has begun is done."""
    from ssd300_vgg16.runtime import flow

    seconds, method = [], getattr(owner, name)

    def measured(*arguments):
        since = time.perf_counter()
        result = method(*arguments)
        flow._oneflow_internal.eager.Sync()
        seconds.append(time.perf_counter() - since)
        return result

    setattr(owner, name, measured)
    return seconds


def run_case(folder: str, kind: str, processes: int, threads: int) -> list[float]:
    """Images per second, and the share of the time outside the network; for a fresh process."""
    from ssd300_vgg16.distributed.job import Job
    from ssd300_vgg16.distributed.launcher import supervise

    times_file, run = Path(folder) / "times.json", tempfile.mkdtemp(dir=folder)
    command = [sys.executable, "-c", TRAIN, str(times_file), "--data-path", f"{folder}/shapes"]
    command += f"--preset narrow --width {WIDTH} -b {BATCH} --epochs 1 --print-freq 1 --device cpu --lr 1e-6".split()
    command += f"--save-every 100000 --data-augmentation ssd --output-dir {run}".split()
    command += ["--eager" if kind == "eager" else "--no-eager"]
    os.environ["OMP_NUM_THREADS"] = str(threads)
    if supervise(Job(processes), command, lambda: command, restarts=0, advice="", options=command[4:]) != 0:
        raise SystemExit("a training failed")
    times = json.loads(times_file.read_text())
    network, whole = (sum(times[part][WARM_UP:]) for part in ("network", "whole"))
    return [STEPS * BATCH / whole, 1 - network / whole]


def measure(options: Options) -> Figures:
    """Medians by case."""
    with tempfile.TemporaryDirectory() as folder:
        in_fresh_process(write_shapes, f"{folder}/shapes", (STEPS + WARM_UP) * BATCH, 2)
        cases = {"{}, {} x {}".format(*case): partial(in_fresh_process, run_case, folder, *case) for case in CASES}
        rounds = in_turn(options.rounds, cases)
    return {name: dict(zip(("images/s", "outside"), medians(found), strict=True)) for name, found in rounds.items()}


def table(figures: Figures) -> str:
    about = (
        f"Width {WIDTH:g}, batch {BATCH} in all, generated shapes. Outside the network: waiting for data, talk between "
        "processes, and, op by op, the update of the weights (which a compiled step has inside)."
    )
    rows = [[name, f"{found['images/s']:.2f}", f"{found['outside']:.0%}"] for name, found in figures.items()]
    return paragraphs(about, markdown(["step, processes x threads", "images/s", "outside the network"], rows))


BENCHMARK = Benchmark("Training on the CPU: processes and threads", measure, table, quick=False)
