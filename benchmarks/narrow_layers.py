"""Layers of narrow networks, an image on one core: the package's convolutions beside oneDNN's, which are PyTorch's.

    .venv/bin/python -m benchmarks narrow_layers

Forwards with the ReLU; backwards to the images, the weights and the biases, through the ReLU.
"""

import statistics
import time
from collections.abc import Callable
from functools import partial

from benchmarks.frame import Benchmark, Options, in_fresh_process, in_turn
from benchmarks.tables import Figures, markdown, medians, paragraphs, significant

WIDTHS = (0.125, 0.25)
# 3x3 convolutions of an SSD300: channels of the published network, and the side of their maps.
LAYERS = {"conv1_2": (64, 300), "conv2_2": (128, 150), "conv3_2": (256, 75), "conv4_2": (512, 38), "conv5_2": (512, 19)}
REPEATS = 15


def seconds(call: Callable[[], object]) -> float:
    """Of a call, the median of some."""
    times = []
    for _ in range(REPEATS + 2):
        since = time.perf_counter()
        call()
        times.append(time.perf_counter() - since)
    return statistics.median(times[2:])


def time_ours(width: float) -> dict[str, list[float]]:
    """Seconds forwards and backwards, by layer; for a fresh process."""
    import numpy as np

    from ssd300_vgg16.network.cpu.narrow_layers import Convolution

    rng, found = np.random.default_rng(0), {}
    for name, (full, side) in LAYERS.items():
        channels = round(full * width)
        layer = Convolution(1, tiled=True)
        weight = rng.standard_normal((channels, channels, 3, 3), dtype=np.float32)
        x, gradient = (rng.standard_normal((side, side, channels), dtype=np.float32) for _ in range(2))
        x, bias = np.maximum(x, 0), np.zeros(channels, dtype=np.float32)
        kernels, rotated, total = layer.kernels(weight, False), layer.kernels(weight, True), layer.total(weight)
        forward = seconds(lambda: layer.forward(x, kernels, bias))  # noqa: B023 - called at once
        backward = seconds(lambda: layer.backward(x, gradient, rotated, total, bias))  # noqa: B023
        found[name] = [forward, backward]
    return found


def time_torch(width: float) -> dict[str, list[float]]:
    """The same of PyTorch's, channels last; for a fresh process of the peers' Python."""
    import torch

    torch.set_num_threads(1)
    found = {}
    for name, (full, side) in LAYERS.items():
        channels = round(full * width)
        layer = torch.nn.Sequential(torch.nn.Conv2d(channels, channels, 3, padding=1), torch.nn.ReLU())
        layer = layer.to(memory_format=torch.channels_last)
        x = torch.rand(1, channels, side, side).to(memory_format=torch.channels_last).requires_grad_()
        gradient = torch.rand_like(x)
        with torch.no_grad():
            forward = seconds(lambda: layer(x))  # noqa: B023 - called at once
        y = layer(x)
        found[name] = [forward, seconds(lambda: y.backward(gradient, retain_graph=True))]  # noqa: B023
    return found


def measure(options: Options) -> Figures:
    """By width, side and layer, median seconds forwards and backwards."""
    peer = f"oneDNN in PyTorch {options.peers.versions['torch']}" if "torch" in options.peers else None
    figures: Figures = {}
    for width in WIDTHS:
        sides = {"this package": partial(in_fresh_process, time_ours, width)}
        if peer:
            sides[peer] = partial(in_fresh_process, time_torch, width, python=options.peers.python)
        figures[f"width {width:g}"] = {
            side: {name: medians(found[name] for found in rounds) for name in LAYERS}
            for side, rounds in in_turn(options.rounds, sides).items()
        }
    return figures


def table(figures: Figures) -> str:
    """A row for each layer."""
    names = list(next(iter(figures.values())))
    rows = []
    for width, sides in figures.items():
        for layer in LAYERS:
            times = [" + ".join(significant(value, 1e3) for value in sides[name][layer]) for name in names]
            rows.append([f"{layer}, {width}", *times])
    about = "Milliseconds of one core for an image, forwards + backwards."
    return paragraphs(about, markdown(["layer", *names], rows))


BENCHMARK = Benchmark("Layers of narrow networks", measure, table, needs=("torch",))
