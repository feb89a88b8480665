"""The network's numbers on a GPU of any kind: its own sources on torch in OneFlow's place, beside OneFlow on the CPU.

OneFlow 0.9.0 has no code for GPUs after Ada. `ssd300_vgg16/network/*.py`, unmodified, runs on torch as well, whose
operations have nearly the same names, and takes the way that it takes on a GPU: on the GPU if torch finds one, and on
the CPU. This says whether that way is right, and how far TF32 and half precision are from float32. It says nothing of
OneFlow's own kernels: `python -m ssd300_vgg16.runtime --self-test` does, on a GPU that OneFlow has code for.
"""

import contextlib
import sys
import tempfile
import types
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from benchmarks.frame import Benchmark, Options, in_fresh_process
from benchmarks.tables import Figures, markdown, paragraphs

TORCH = "torch"
# So narrow that hardly any ReLU turns over: one in conv1 is a part of 1e-4 to 1e-3 of a gradient.
VARIANT, CLASSES, WIDTH = "ssd300_vgg16_coco", 21, 0.0625
IMAGES, SIZE_HW = 3, (480, 640)
LOGITS_DEVIATION = 1.5
FORWARD, LOSS, GRADIENTS, POSTPROCESSING = "forward", "loss", "gradients", "post-processing"
# The loss is scaled up by this for half precision, whose smallest number is 6e-8, and its gradients down again.
HALF_SCALE = 1024.0
IN_HALF = "in half"
# Each of 24 convolutions from the image to the last map rounds its input, weights and output to 10 bits, by HALF_ERROR
# at most. Such errors of either sign add up like the root of their number, forwards. Of the gradients of all parameters
# it is the worst one that is told, so that all errors of the way back and forth may add up.
HALF_ERROR, ROUNDED = 2.0**-11, 3 * 24
ALLOWED = {
    FORWARD: ROUNDED**0.5 * HALF_ERROR,
    LOSS: ROUNDED**0.5 * HALF_ERROR,
    GRADIENTS: 2 * ROUNDED * HALF_ERROR,
    POSTPROCESSING: 1e-5,  # which has no products
}

# What the network asks of OneFlow that torch has under the same name, with the same meaning.
SAME_NAMES = {
    *("cat", "float32", "from_numpy", "logical_and", "logical_not", "logical_or", "no_grad", "ones", "sqrt", "tensor"),
    *("nn.Conv2d", "nn.Identity", "nn.MaxPool2d", "nn.Module", "nn.ModuleList", "nn.Parameter", "nn.Sequential"),
    *("nn.init.kaiming_normal_", "nn.init.xavier_uniform_", "nn.init.zeros_"),
}
# And what is another function there: from torch, what stands in.
OTHER_NAMES: dict[str, Callable[[Any], Any]] = {
    "argsort": lambda torch: (
        lambda x, dim, descending=False: torch.argsort(x, dim=dim, descending=descending, stable=True)
    ),
    "autograd.Function": lambda torch: torch.autograd.Function,
    "relu": lambda torch: lambda x, inplace=False: torch.relu_(x) if inplace else torch.relu(x),
    "_C.amp_black_identity": lambda torch: lambda x: x.float(),
    "_C.conv2d": lambda torch: (
        lambda x, weight, bias, *sizes_and_layout: torch.nn.functional.conv2d(x, weight, bias, *sizes_and_layout[:-1])
    ),
    "_C.smooth_l1_loss": lambda torch: torch.nn.functional.smooth_l1_loss,
    "_C.sparse_softmax_cross_entropy": lambda torch: (
        lambda logits, labels: torch.nn.functional.cross_entropy(logits, labels, reduction="none")
    ),
}


def put_torch_in_oneflows_place(torch: Any) -> None:
    """Let the package's network find torch under the name of OneFlow; in a process where it is not imported yet."""
    flow = types.SimpleNamespace(_C=types.SimpleNamespace(), autograd=types.SimpleNamespace(), nn=torch.nn)
    for name in (name for name in SAME_NAMES if "." not in name):
        setattr(flow, name, getattr(torch, name))
    for name, stand_in in OTHER_NAMES.items():
        place, _, last = name.rpartition(".")
        setattr(getattr(flow, place) if place else flow, last, stand_in(torch))
    runtime = types.ModuleType("ssd300_vgg16.runtime")
    runtime.flow = flow
    sys.modules[runtime.__name__] = runtime
    # As in a compiled step on a GPU, wherever the tensor is: the package's kernels for the CPU need OneFlow's arrays.
    torch.Tensor.is_cuda = torch.Tensor.is_lazy = property(lambda tensor: True)
    numpy = torch.Tensor.numpy
    torch.Tensor.numpy = lambda tensor: numpy(tensor.detach().cpu())  # OneFlow's copies from the GPU by itself


def write_oneflows(path: str) -> None:
    """What OneFlow gives on the CPU, and of what, as a file of arrays; for a fresh process."""
    import numpy as np

    from ssd300_vgg16.network.ssd import SSD
    from ssd300_vgg16.network.variants import VARIANTS, default_boxes
    from ssd300_vgg16.runtime import flow
    from ssd300_vgg16.self_test.made_up import random_weights

    model = SSD(VARIANTS[VARIANT], CLASSES, WIDTH)
    weights = random_weights({name: tuple(tensor.shape) for name, tensor in model.state_dict().items()})
    rng = np.random.default_rng(0)
    side, boxes = model.layout.image_size, len(default_boxes(model.layout))
    # A few objects, none, and so many that all background boxes count.
    positive = rng.random((IMAGES, boxes)) < np.array([0.01, 0, 0.3])[:, None]
    inputs = {
        "images": rng.integers(0, 256, (IMAGES, 3, side, side), dtype=np.uint8),
        "target offsets": rng.standard_normal((IMAGES, boxes, 4), dtype=np.float32),
        "target labels": np.where(positive, rng.integers(1, CLASSES, (IMAGES, boxes)), 0),
    }
    found = answers(flow, model, weights, inputs, "cpu")
    # Scaled, so that the best scores are not all 1: which comes first would hang on the last bit.
    logits = found["forward/logits"]
    given = {"offsets": found["forward/offsets"], "logits": logits * np.float32(LOGITS_DEVIATION / logits.std())}
    found |= detections(flow, given, "cpu")
    groups = {"weights": weights, "inputs": inputs, "given": given, "found": found}
    np.savez(path, **{f"{group}/{name}": array for group, arrays in groups.items() for name, array in arrays.items()})


def compare_torch(path: str) -> Figures:
    """How far torch's numbers are from OneFlow's in that file, on each device and in each precision; a fresh process.

    Largest differences as parts of the largest value: of any array, or of an array of its own for each parameter.
    """
    import numpy as np
    import torch

    put_torch_in_oneflows_place(torch)
    from ssd300_vgg16.network.ssd import SSD
    from ssd300_vgg16.network.variants import VARIANTS
    from ssd300_vgg16.runtime import flow

    with np.load(path) as file:
        arrays = {name: file[name] for name in file}

    def group(prefix: str) -> dict:
        return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}

    expected, figures = group("found/"), {}
    for name, device, tf32, half in ways(torch):
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
        model = SSD(VARIANTS[VARIANT], CLASSES, WIDTH)
        worst: dict[str, Any] = {}
        with torch.autocast(device, torch.float16) if half else contextlib.nullcontext():
            scale = HALF_SCALE if half else 1.0
            with types_listed(torch) as given:
                found = answers(flow, model, group("weights/"), group("inputs/"), device, scale)
            found |= detections(flow, group("given/"), device)
        if half:
            worst[IN_HALF] = sorted({name for name, dtype in given if dtype == torch.float16} - MOVES)
        for key, array in expected.items():
            what = key.partition("/")[0]
            worst[what] = max(worst.get(what, 0.0), difference(found[key], array))
        figures[name] = worst
    return figures


def ways(torch: Any) -> list[tuple[str, str, bool, bool]]:
    """What can be tried here: its name, the device, whether float32 may be TF32, whether products are in half."""
    name = f"torch {torch.__version__.partition('+')[0]}"
    found = [(f"{name} on the CPU", "cpu", False, False), (f"{name} on the CPU, half", "cpu", False, True)]
    if torch.cuda.is_available():
        gpu = f"{name} on {torch.cuda.get_device_name()}"
        found.append((f"{gpu}, float32 without TF32", "cuda", False, False))
        found.append((f"{gpu}, float32 with TF32", "cuda", True, False))
        found.append((f"{gpu}, half", "cuda", True, True))
    return found


# Operations that change no value but by rounding it.
MOVES = {"_to_copy", "_unsafe_view", "cat", "clone", "copy_", "detach", "permute", "slice", "transpose", "view"}


@contextlib.contextmanager
def types_listed(torch: Any) -> Iterator[set[tuple[str, Any]]]:
    """Collects the names of torch's operations in the block with the type of each tensor that they give."""
    from torch.utils._python_dispatch import TorchDispatchMode

    found: set[tuple[str, Any]] = set()

    class Listing(TorchDispatchMode):
        def __torch_dispatch__(self, operation, _, arguments=(), options=None):
            given = operation(*arguments, **(options or {}))
            for tensor in given if isinstance(given, tuple) else [given]:
                found.add((operation.__name__.partition(".")[0], getattr(tensor, "dtype", None)))
            return given

    with Listing():
        yield found


def answers(flow: Any, model: Any, weights: Mapping, inputs: Mapping, device: str, scale: float = 1.0) -> dict:
    """The network's answers, the loss, and the gradients of all parameters, as arrays; the same lines for OneFlow."""
    from ssd300_vgg16.network.loss import multibox_loss

    model.load_state_dict({name: flow.tensor(array) for name, array in weights.items()})
    model.to(device)
    images, *targets = (flow.from_numpy(array).to(device) for array in inputs.values())
    offsets, logits = model(images)
    losses = multibox_loss(offsets, logits, *targets)
    ((losses["localization"] + losses["classification"]) * scale).backward()
    found = {f"{FORWARD}/offsets": offsets.detach().numpy(), f"{FORWARD}/logits": logits.detach().numpy()}
    found |= {f"{LOSS}/{name}": loss.detach().numpy() for name, loss in losses.items()}
    return found | {f"{GRADIENTS}/{name}": each.grad.numpy() / scale for name, each in model.named_parameters()}


def detections(flow: Any, given: Mapping, device: str) -> dict:
    """What is detected in given answers of the network: the same for all, else other detections would be compared."""
    from ssd300_vgg16.network.postprocess import postprocess
    from ssd300_vgg16.network.variants import VARIANTS

    tensors = (flow.from_numpy(given[name]).to(device) for name in ("offsets", "logits"))
    images = postprocess(*tensors, [SIZE_HW] * IMAGES, layout=VARIANTS[VARIANT].layout)
    return {f"{POSTPROCESSING}/{n} {part}": array for n, found in enumerate(images) for part, array in found.items()}


def difference(found: Any, expected: Any) -> float:
    """The largest difference as a part of the largest value; infinite where it is of another shape or not finite."""
    import numpy as np

    if found.shape != expected.shape or not np.isfinite(found).all():
        return float("inf")
    expected = expected.astype(np.float64)
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def measure(options: Options) -> Figures:
    """Differences by torch's device and precision, and what they are of; nothing where there is no torch."""
    if TORCH not in options.peers:
        return {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "oneflow.npz"
        in_fresh_process(write_oneflows, path)
        return in_fresh_process(compare_torch, path, python=options.peers.python)


def table(figures: Figures) -> str:
    about = (
        "Largest difference from OneFlow on the CPU, as a part of the largest value (of gradients: the worst of all "
        f"parameters). {VARIANT} at width {WIDTH:g}, {CLASSES} classes, {IMAGES} images. The package's network, loss "
        "and post-processing run unmodified on torch, by the way that they take on a GPU. The latter gets OneFlow's "
        "answers, scaled."
    )
    header = ["", *ALLOWED]
    rows = [[name, *(f"{found[what]:.1e}" for what in ALLOWED)] for name, found in figures.items()]
    rows.append(["allowed in TF32 and half", *(f"{allowed:.1e}" for allowed in ALLOWED.values())])
    in_half = {", ".join(found[IN_HALF]) for found in figures.values() if IN_HALF in found}
    lists = [f"What torch computes in half precision: {names}. All else is in float32." for names in sorted(in_half)]
    return paragraphs(about, markdown(header, rows) if figures else "", *lists)


BENCHMARK = Benchmark("Numbers on a GPU", measure, table, needs=(TORCH,), rounds=1)
