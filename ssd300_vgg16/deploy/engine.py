"""What computes the network when it detects: OneFlow, or ONNX Runtime. Imports neither, unless a GPU is in question."""

from ssd300_vgg16.errors import UserError
from ssd300_vgg16.gpu_driver import has_gpu_driver

ONEFLOW, ONNX_RUNTIME, AUTO = "oneflow", "onnxruntime", "auto"
ENGINES = (AUTO, ONEFLOW, ONNX_RUNTIME)


def resolve_engine(name: str, device: str) -> str:
    """ONEFLOW or ONNX_RUNTIME for one of ENGINES on a device: of itself the latter on the CPU, where it is faster.

    Raises UserError for another name, and for what cannot be had together.
    """
    if name not in ENGINES:
        raise UserError(f"--engine {name}: write one of {', '.join(ENGINES)}")
    if name == AUTO:
        return ONNX_RUNTIME if device == "cpu" else ONEFLOW
    if name == ONNX_RUNTIME and device != "cpu":
        raise UserError(f"--engine {ONNX_RUNTIME} computes on the CPU here, not on {device}: add --device cpu")
    return name


def resolve_device(name: str | None) -> str:
    """As `runtime.resolve_device`, but where that is the CPU anyway, OneFlow's import is spared, the longest of all."""
    if name == "cpu" or (name is None and not has_gpu_driver()):
        return "cpu"
    from ssd300_vgg16 import runtime

    return runtime.resolve_device(name)
