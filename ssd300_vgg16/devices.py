"""Which device to compute on; chosen before OneFlow is imported, where it can be."""

import os
import re
import sys
from functools import cache

from ssd300_vgg16.errors import UserError
from ssd300_vgg16.gpus import VISIBLE, cuda_in_use, gpu_driver, gpu_problem, visible_name
from ssd300_vgg16.machine import is_one_of_several

# The cuda:N that this process has been reduced to, in which it is the only GPU.
_shown: str | None = None


def resolve_device(name: str | None, local_rank: int | None = None) -> str:
    """The device to use, "cpu", "cuda" or "cuda:N": what was asked for if it works here, the best one if nothing was.

    local_rank: which of this machine's processes this is, if there are several; each has a GPU to itself. A process
    alone that asks for cuda:N with N > 0 gets "cuda": a compiled graph runs on the first GPU only, so CUDA is shown
    that one alone. Raises UserError for an unknown name, or for cuda where it cannot work, with what to do.
    """
    if name is not None and not re.fullmatch("cpu|cuda(:[0-9]+)?", name):
        raise UserError(f"--device {name}: write cpu, cuda or cuda:N")
    asked = name or _default()
    if asked == "cpu":
        return "cpu"
    if local_rank is not None:
        asked = _own_gpu(asked, local_rank)
    elif asked == _shown:
        asked = "cuda"
    elif _shown and asked != "cuda":
        raise UserError(f"--device {asked}: this process shows OneFlow {_shown} only; take another process for it")
    index = int(asked.partition(":")[2] or 0)
    if problem := gpu_problem(index):
        raise UserError(f"--device {asked}: {problem}")
    if index and not is_one_of_several():
        _show(asked, index)
        asked = "cuda"
    # Not at the top: OneFlow is imported after what it is to see has been chosen, and takes longest of all.
    from ssd300_vgg16 import runtime

    if problem := runtime.cuda_problem():
        if name is None:
            return "cpu"
        raise UserError(f"--device {name}: {problem}")
    return asked


def local_rank() -> int | None:
    """The number of this process among those of its host in a job of several processes; None for a process alone."""
    return int(os.environ.get("LOCAL_RANK", 0)) if is_one_of_several() else None


def _default() -> str:
    """ "cuda" if the first GPU can be used. A GPU that cannot is worth a line: its user expects more than the CPU."""
    problem = gpu_problem(0)
    if problem and (gpu_driver().problem or gpu_driver().gpus):
        _say_once(f"computing on the CPU: {problem}")
    return "cpu" if problem else "cuda"


@cache
def _say_once(message: str) -> None:
    if os.environ.get("RANK", "0") == "0":
        print(message, file=sys.stderr)


def _own_gpu(asked: str, local_rank: int) -> str:
    if asked != "cuda":
        raise UserError(f"--device {asked}: several processes take GPUs 0, 1, ... in turn: write cuda")
    gpus = gpu_driver().gpus
    if gpus and local_rank >= len(gpus):
        raise UserError(
            f"not every process of this machine has a GPU of its own: each is shown {len(gpus)}. "
            "NPROC may not be more; srun has to show all to each (--gpus-per-node, not --gpus-per-task)"
        )
    return f"cuda:{local_rank}"


def _show(asked: str, index: int) -> None:
    """Have OneFlow see this GPU only."""
    global _shown
    visible = visible_name(index)
    if "oneflow" in sys.modules or cuda_in_use():  # which reads the variable once
        raise UserError(
            f"--device {asked}: OneFlow or CUDA is in use in this process already, with another GPU first: set "
            f"{VISIBLE}={visible} before the program starts, and take the device cuda"
        )
    os.environ[VISIBLE] = visible
    gpu_driver.cache_clear()
    _shown = asked
