"""Training step of narrow networks: the package's own against the same layers in PyTorch, in channels-last.

Both sides begin with uint8 images and targets in main memory: normalise, network, loss, gradients, AdamW, and the loss
read. Each setting runs in a fresh process of either side, in turn; the ratio is the median of the rounds' own, so that
other programs' load falls on both. PyTorch's loss is written as cheaply as it can be: gradients only for the default
boxes that count.
"""

import os
import statistics
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict

from benchmarks.engines import ONEFLOW, OURS, TRAINING, Job, random_images, random_targets, run, time_calls
from benchmarks.frame import Benchmark, Options, in_fresh_process, in_turn
from benchmarks.tables import Claim, Figures, markdown, paragraphs, significant

# Width, images, and the busy processes of lower priority that share the machine.
SETTINGS = ((0.125, 4, 0), (0.125, 8, 0), (0.25, 4, 0), (0.25, 8, 0), (0.125, 4, 6))
CLASSES = 21
REPEATS, SECONDS = 15, 4.0


def torch_network(width: float, classes: int):
    """SSD300-VGG16 of ssd300_vgg16.network, layer by layer; images [B, 3, 300, 300] to offsets and logits."""
    import torch
    from torch import nn

    from ssd300_vgg16.network.variants import SQUARED_NORM_FLOOR, variant_of

    variant = variant_of("ssd300_vgg16", "coco")

    def scaled(channels: int) -> int:
        return max(1, round(channels * width))

    def conv(before: int, after: int, kernel: int, **options) -> list[nn.Module]:
        return [nn.Conv2d(scaled(before) if before > 3 else 3, scaled(after), kernel, **options), nn.ReLU(inplace=True)]

    trunk, channels = [], 3
    for block, pool in (((64, 64), 0), ((128, 128), 0), ((256,) * 3, 1), ((512,) * 3, None)):
        for after in block:
            trunk += conv(channels, after, 3, padding=1)
            channels = after
        trunk += [] if pool is None else [nn.MaxPool2d(2, 2, ceil_mode=bool(pool))]
    conv5 = [nn.MaxPool2d(2, 2), *(layer for _ in range(3) for layer in conv(512, 512, 3, padding=1))]
    fc = [*conv(512, 1024, 3, padding=6, dilation=6), *conv(1024, 1024, 1)]
    blocks, channels = [nn.Sequential(*conv5, nn.MaxPool2d(3, 1, 1), *fc)], 1024
    for layer in variant.extra_layers:
        last = conv(layer.between, layer.channels, layer.kernel, stride=layer.stride, padding=layer.padding)
        blocks.append(nn.Sequential(*conv(channels, layer.between, 1), *last))
        channels = layer.channels
    sizes = (512, 1024, *(layer.channels for layer in variant.extra_layers))

    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.trunk, self.blocks = nn.Sequential(*trunk), nn.ModuleList(blocks)
            self.scale = nn.Parameter(torch.full((1, scaled(512), 1, 1), 20.0))
            pairs = list(zip(sizes, variant.layout.boxes_per_cell, strict=True))
            self.offsets = nn.ModuleList([nn.Conv2d(scaled(c), n * 4, 3, padding=1) for c, n in pairs])
            self.logits = nn.ModuleList([nn.Conv2d(scaled(c), n * classes, 3, padding=1) for c, n in pairs])

        def forward(self, x):
            x = self.trunk(x)
            norm = torch.rsqrt((x * x).sum(dim=1, keepdim=True) + SQUARED_NORM_FLOOR)
            maps = [x * norm * self.scale]
            for block in self.blocks:
                x = block(x)
                maps.append(x)
            # In channels-last the permutation moves nothing.
            rows = []
            for heads, values in ((self.offsets, 4), (self.logits, classes)):
                found = [head(each).permute(0, 2, 3, 1) for head, each in zip(heads, maps, strict=True)]
                rows.append(torch.cat([each.reshape(len(each), -1, values) for each in found], dim=1))
            return rows[0], rows[1]

    return Network().to(memory_format=torch.channels_last)


def torch_loss(offsets, logits, target_offsets, labels):
    """The multibox loss; negatives are chosen by topk, without gradients."""
    import torch
    from torch.nn import functional

    positive = labels > 0
    counts = positive.sum(dim=1, keepdim=True)
    with torch.no_grad():
        # The loss of a background box, whose label is 0; positives come last, as a loss is never below zero.
        ranked = (logits.logsumexp(dim=2) - logits[..., 0]).masked_fill_(positive, -1.0)
        values, places = ranked.topk(min(ranked.shape[1], 3 * int(counts.max())), dim=1)
        hard = (torch.arange(values.shape[1]) < 3 * counts) & (values >= 0)
        counted = positive.scatter(1, places, hard | positive.gather(1, places))
    entropy = functional.cross_entropy(logits[counted], labels[counted], reduction="sum")
    distance = functional.smooth_l1_loss(offsets[positive], target_offsets[positive], reduction="sum")
    return (entropy + distance) / counts.sum().clamp(min=1)


def count_parameters(width: float) -> int:
    """Of the package's network; for a fresh process."""
    from ssd300_vgg16.network.ssd import SSD300

    return sum(parameter.numel() for parameter in SSD300(CLASSES, width).parameters())


def time_torch(fields: dict, parameters: int) -> float:
    """Median seconds of a step as `engines.oneflow_training` does it; for a fresh process of the peers' Python.

    parameters: how many the package's network has.
    """
    import torch

    from ssd300_vgg16.network.variants import PIXEL_MEAN

    job = Job(**fields)
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    model = torch_network(job.width, job.classes).train()
    if sum(parameter.numel() for parameter in model.parameters()) != parameters:
        raise RuntimeError("the two networks differ in size: these are not the same layers")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, weight_decay=5e-4, fused=True)
    images, side = random_images(job)
    arrays = [torch.from_numpy(array) for array in (images, *random_targets(job, side))]
    mean = torch.tensor(PIXEL_MEAN).reshape(1, 3, 1, 1)

    def train() -> None:
        pixels, offsets, labels = arrays
        x = pixels.to(torch.float32, memory_format=torch.channels_last).sub_(mean)
        loss = torch_loss(*model(x), offsets, labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        loss.item()

    return statistics.median(time_calls(train, job.repeats, job.seconds))


@contextmanager
def busy(processes: int) -> Iterator[None]:
    """So many processes that compute without end, at a lower priority."""
    endless = ["nice", "-n", "10", sys.executable, "-I", "-c", "while True: pass"]
    started = [subprocess.Popen(endless) for _ in range(processes)]
    try:
        yield
    finally:
        for process in started:
            process.kill()
            process.wait()


def measure(options: Options) -> Figures:
    """By setting, median seconds of a step of either side, and the median of the rounds' ratios."""
    figures: Figures = {}
    for width, batch, processes in SETTINGS[:1] if options.quick else SETTINGS:
        name = f"width {width:g}, batch {batch}" + (f", beside {processes} busy processes" if processes else "")
        with busy(processes):
            figures[name] = measure_setting(width, batch, options)
    return figures


def measure_setting(width: float, batch: int, options: Options) -> dict[str, float]:
    """Median seconds of a step of either side, and the median of the rounds' ratios."""
    repeats = 2 if options.quick else REPEATS
    job = Job(TRAINING, batch, CLASSES, width=width, update="adamw", repeats=repeats, seconds=SECONDS)
    sides = {OURS[ONEFLOW]: lambda: statistics.median(run(ONEFLOW, [job], options.peers)[0].seconds)}
    if "torch" in options.peers:
        parameters = in_fresh_process(count_parameters, width)
        name = f"PyTorch {options.peers.versions['torch']}, channels-last"
        sides[name] = lambda: in_fresh_process(time_torch, asdict(job), parameters, python=options.peers.python)
    rounds = in_turn(options.rounds, sides)
    setting = {name: statistics.median(times) for name, times in rounds.items()}
    ours, *theirs = rounds.values()
    for times in theirs:
        setting["ratio"] = statistics.median(their / our for their, our in zip(times, ours, strict=True))
    return setting


def table(figures: Figures) -> str:
    names = [name for name in next(iter(figures.values())) if name != "ratio"]
    rows = [
        [setting, *(significant(found[name], 1e3) for name in names), significant(found.get("ratio"))]
        for setting, found in figures.items()
    ]
    about = f"SSD300, {CLASSES} outputs, AdamW; milliseconds a step. Above 1, the ratio says that the package is ahead."
    return paragraphs(about, markdown(["", *names, "ratio"], rows))


def claims(figures: Figures) -> Iterator[Claim]:
    for setting, found in figures.items():
        for peer in (name for name in found if name.startswith("PyTorch")):
            yield Claim(f"{TRAINING}, {setting}", found[OURS[ONEFLOW]], peer, found[peer], "ms")


BENCHMARK = Benchmark("Training step of narrow networks", measure, table, claims, needs=("torch",), rounds=5)
