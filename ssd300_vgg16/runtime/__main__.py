"""What was found on this machine, and with --self-test whether it computes what it should.

.venv/bin/python -I -m ssd300_vgg16.runtime --self-test
"""

import argparse
import os
import re
import sys
import time

from ssd300_vgg16 import start
from ssd300_vgg16.errors import UserError
from ssd300_vgg16.gpus import VISIBLE, gpu_driver, gpu_problem, visible_name
from ssd300_vgg16.runtime import cuda_problem, environment, flow


def matmul_rate(side: int = 1536, runs: int = 5) -> float:
    """Measured rate of a float32 matrix product on the CPU, the best of some runs, in GFLOP/s."""
    a, b = flow.randn(side, side), flow.randn(side, side)
    flow.matmul(a, b).numpy()
    times = []
    for _ in range(runs):
        since = time.perf_counter()
        flow.matmul(a, b).numpy()
        times.append(time.perf_counter() - since)
    return 2 * side**3 / min(times) / 1e9


def report() -> str:
    """What was found, a line each: versions, CPU and BLAS with a measured rate, GPUs and whether they can be used."""
    facts = environment()
    facts["blas"] += f", {matmul_rate():.0f} GFLOP/s in a float32 matrix product"
    lines = [f"{name:<9} {value}" for name, value in facts.items()]
    for index in range(len(gpu_driver().gpus)):
        lines.append(f"cuda:{index}    {gpu_problem(index) or cuda_problem() or 'this OneFlow has code for it'}")
    if problem := gpu_driver().problem:
        lines.append(f"driver    {problem}")
    device = "cpu" if gpu_problem(0) or cuda_problem() else "cuda"
    lines.append(f"device    {device} (the default of --device here)")
    return "\n".join(lines)


def main(arguments: list[str]) -> int:
    """The report; with --self-test what `self_test` finds too. Returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -I -m ssd300_vgg16.runtime", description="What was found here.")
    parser.add_argument("--self-test", action="store_true", help="check and measure a device")
    parser.add_argument("--device", help="of the self-test: cpu, cuda or cuda:N (default: cuda where it works)")
    options = parser.parse_args(arguments)
    number = re.fullmatch("cuda:([1-9][0-9]*)", options.device or "")
    if number and options.self_test and not gpu_problem(int(number[1])):
        # OneFlow has been imported, and compiled graphs run on the first GPU that it sees: begin again with one.
        visible = visible_name(int(number[1]))
        print(f"{options.device} alone, by {VISIBLE}={visible}", flush=True)
        command = [*start.command("ssd300_vgg16.runtime"), "--self-test", "--device", "cuda"]
        os.execve(command[0], command, os.environ | {VISIBLE: visible})
    try:
        print(report())
        if not options.self_test:
            return 0
        # Not at the top: a library that is broken would keep the report back.
        from ssd300_vgg16.self_test import self_test

        return self_test(options.device)
    except UserError as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
