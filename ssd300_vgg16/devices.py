"""Which device to compute on; OneFlow is imported only where it has to be asked."""

from ssd300_vgg16.machine import has_gpu_driver


def resolve_device(name: str | None, local_rank: int | None = None) -> str:
    """The device to use, "cpu", "cuda" or "cuda:N": what was asked for if it works here, the best one if nothing was.

    local_rank: which of this machine's processes this is, if there are several; each has a GPU to itself. Raises
    UserError for an unknown name, or for cuda where it cannot work, with what to do.
    """
    if name == "cpu" or (name is None and not has_gpu_driver()):
        return "cpu"
    # Here, because OneFlow's import takes longest of all: it is spared where the answer is "cpu" anyway.
    from ssd300_vgg16 import runtime

    return runtime.usable_device(name, local_rank)
