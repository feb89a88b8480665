"""Training steps of the published network on the GPU stand-in, with marks in its log: python marked_steps.py KIND..."""

import ctypes
import os
import sys
import time
from pathlib import Path

import numpy as np

from ssd300_vgg16.data.loader import TrainingBatch
from ssd300_vgg16.distributed.world import ALONE
from ssd300_vgg16.network.ssd import SSD300
from ssd300_vgg16.network.vgg import parameters_left_empty
from ssd300_vgg16.training.config import OptimizerConfig, Schedule
from ssd300_vgg16.training.step import make_step

BATCH, STEPS = 4, 3
QUIET = 0.3  # seconds
# The arguments of make_step that differ: optimizer, passes, amp, eager.
KINDS = {
    "float32": ("sgd", 1, False, False),
    "amp": ("sgd", 1, True, False),
    "amp adamw in two passes": ("adamw", 2, True, False),
    "eager": ("sgd", 1, False, True),
}


def batch() -> TrainingBatch:
    """Of the shapes that a step takes; what is in it does not matter."""
    images = np.zeros((BATCH, 3, 300, 300), np.uint8)
    return TrainingBatch(images, np.zeros((BATCH, 8732, 4), np.float32), np.ones((BATCH, 8732), np.int64), [], [])


def settle() -> None:
    """Until nothing more is logged: a step's results may be there before its last kernel is launched."""
    log, sizes = Path(os.environ["GPU_STAND_IN_LOG"] + ".0"), [-1, -2, -3]
    while len(set(sizes[-3:])) > 1:
        time.sleep(QUIET)
        sizes.append(log.stat().st_size)


def marked_steps(kind: str) -> None:
    """Two steps to warm up, of which the first compiles, then STEPS of them between the marks "begin" and "end"."""
    mark = ctypes.CDLL(None).gpu_stand_in_mark
    optimizer, passes, amp, eager = KINDS[kind]
    with parameters_left_empty():
        model = SSD300().to("cuda")
    schedule = Schedule("multistep", 1e-3, total_steps=100, warmup_steps=10, milestones=(50,))
    step = make_step(model, OptimizerConfig(optimizer), schedule, ALONE, passes, amp, eager)

    def steps(count: int) -> None:
        batches = [batch() for _ in range(count)]
        results = [step(*pair) for pair in zip(batches, [8] * count, [*batches[1:], None], strict=True)]
        # The weights are there when all of the steps is done; the metrics may be there before.
        next(model.parameters()).numpy()
        results[-1].numpy()

    steps(2)
    settle()
    mark(b"begin")
    steps(STEPS)
    settle()
    mark(b"end")


if __name__ == "__main__":
    for name in sys.argv[1:]:
        marked_steps(name)
