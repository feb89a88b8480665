"""Forward pass and training step of SSD300: the package's engines, flowvision and torchvision, in turn.

    .venv/bin/python benchmarks/network.py                    on the CPU
    .venv/bin/python benchmarks/network.py --device cuda      on a GPU (never tried)

All have the same shape: 91 classes, width 1, random weights, images of 300x300. Each round runs every engine in a
process of its own. Times are medians over all rounds, seconds per image; the rate of matrix products is the best of any
library and round, and says what the machine can do.
"""

import argparse
from collections.abc import Sequence

import part
import peers
from engines import (
    FLOWVISION,
    FLOWVISION_MKL,
    FORWARD,
    MATMUL,
    NUMPY,
    ONEFLOW,
    ONNX_RUNTIME,
    PREPARE,
    TORCHVISION,
    TRAINING,
    Job,
    run,
)

TITLE = "The network: forward pass, training step, and the share of what the machine can multiply"
BATCH = {FORWARD: 1, TRAINING: 4}
PRODUCT_SIDES = (512, 1024, 2048)
OUR_ENGINES = {ONEFLOW: "this package, OneFlow", ONNX_RUNTIME: "this package, ONNX Runtime"}
# Products of what computes on the CPU only are of no interest on a GPU.
ENGINES = {
    "cpu": (ONEFLOW, ONNX_RUNTIME, TORCHVISION, FLOWVISION_MKL, FLOWVISION, NUMPY),
    "cuda": (ONEFLOW, TORCHVISION, FLOWVISION),
}


def jobs_of(engine: str, device: str, quick: bool) -> list[Job]:
    """What an engine is to do in a round."""
    sizes = {FORWARD: (1,), TRAINING: (1 if quick else BATCH[TRAINING],), MATMUL: PRODUCT_SIDES}
    jobs = []
    for what in (what for what in sizes if (engine, what) in PREPARE):
        # flowvision's step takes half a minute, in which starting up is next to nothing.
        warm_up = not quick and (engine, what) != (FLOWVISION, TRAINING)
        repeats = 1 if quick else 10 if what == MATMUL else 3
        jobs += [Job(what, size, device=device, repeats=repeats, seconds=10, warm_up=warm_up) for size in sizes[what]]
    return jobs


def multiply_adds() -> tuple[float, float]:
    """Multiplications of a forward pass and of a training step of one image, in units of 1e9.

    A training step computes each convolution thrice: forward, gradient of the weights, gradient of the input, which the
    first layer does not need.
    """
    from ssd300_vgg16.network.ssd import SSD300
    from ssd300_vgg16.network.vgg import Conv2d
    from ssd300_vgg16.runtime import flow

    def convolutions(model) -> dict:
        return {name: layer for name, layer in model.named_modules() if isinstance(layer, Conv2d)}

    narrow, cells = SSD300(91, width=0.02), {}  # its maps are as large as the full network's
    for name, layer in convolutions(narrow).items():
        layer.register_forward_hook(lambda _, taken, given, name=name: cells.update({name: given[0, 0].numel()}))
    with flow.no_grad():
        narrow(flow.zeros(1, 3, 300, 300))
    products = [cells[name] * layer.weight.numel() / 1e9 for name, layer in convolutions(SSD300(91)).items()]
    return sum(products), 3 * sum(products) - products[0]


def measure(engines: Sequence[str], options: argparse.Namespace) -> tuple[dict[str, dict], dict[str, float]]:
    """Seconds per image by engine, what it did and round; and the best rate of products of each, in GFLOP/s."""
    found, rates = {engine: {} for engine in engines}, {}
    for number in range(options.rounds):
        for engine in engines:
            jobs = jobs_of(engine, options.device, options.quick)
            for job, timing in zip(jobs, run(engine, jobs, options.peer_python), strict=True):
                if job.what == MATMUL:
                    rate = 2 * job.batch**3 / min(timing.seconds) / 1e9
                    rates[engine] = max(rates.get(engine, 0), rate)
                else:
                    found[engine].setdefault(job.what, []).append([seconds / job.batch for seconds in timing.seconds])
                    print(f"round {number + 1}, {engine}, {job.what}: {min(timing.seconds):.3f} s", flush=True)
    return found, rates


def figures_of(found: dict[str, dict], rates: dict[str, float], names: dict[str, str]) -> dict:
    """Medians by name, and their shares of the fastest rate."""
    work = dict(zip((FORWARD, TRAINING), multiply_adds(), strict=True))
    limit = max(rates.values())
    engines = {}
    for engine, times in found.items():
        medians = {what: part.median(rounds) for what, rounds in times.items()}
        shares = {f"{what}, share": 2 * work[what] / seconds / limit for what, seconds in medians.items()}
        if medians:
            engines[names[engine]] = medians | shares
    return {
        "engines": engines,
        "products": {names.get(engine, engine): rate for engine, rate in rates.items()},
        "limit": limit,
        "work": work,
    }


def table_of(figures: dict, notes: Sequence[str], about: str) -> str:
    ours = figures["engines"][OUR_ENGINES[ONEFLOW]]
    rows = []
    for name, found in figures["engines"].items():
        cells = [name]
        for what in (FORWARD, TRAINING):
            seconds, share = found.get(what), found.get(f"{what}, share")
            cells += [part.significant(seconds), "-" if seconds is None else f"{seconds / ours[what]:.2f}"]
            cells += ["-" if share is None else f"{share:.0%}"]
        rows.append(cells)
    header = ["", "forward, s per image", "times ours", "share of the limit"]
    header += ["training step, s per image", "times ours", "share of the limit"]
    rates = ", ".join(f"{name} {rate:.0f}" for name, rate in figures["products"].items())
    work = figures["work"]
    limit = (
        f"The limit is the fastest product of two square matrices ({', '.join(map(str, PRODUCT_SIDES))} numbers a "
        f"side, float32) that any library reached here, {figures['limit']:.0f} GFLOP/s ({rates}). A forward pass takes "
        f"{work[FORWARD]:.2f} GMAC (10^9 multiplications with an addition), a training step {work[TRAINING]:.1f}: an "
        "engine at 100 % would do nothing but multiply, at that rate. One that gets by with fewer multiplications "
        "(Winograd's convolution) can be above it."
    )
    return part.paragraphs(about, part.markdown(header, rows), limit, *notes)


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    return peers.options_of(part.parser(__doc__), "one call of one image each: a rehearsal", arguments)


def main() -> None:
    options = parse()
    installed = peers.find_peers(options.peer_python)
    names = OUR_ENGINES | {FLOWVISION: "flowvision 0.2.1 as installed", NUMPY: NUMPY}
    names |= {FLOWVISION_MKL: "flowvision 0.2.1 with MKL"}
    if TORCHVISION in installed:
        names[TORCHVISION] = installed.name(TORCHVISION)
    engines = [engine for engine in ENGINES[options.device.partition(":")[0]] if engine in names]
    if options.quick:
        engines = [engine for engine in engines if engine not in (FLOWVISION, FLOWVISION_MKL)]
    figures = figures_of(*measure(engines, options), names)
    sizes = dict.fromkeys(BATCH, 1) if options.quick else BATCH
    about = (
        f"SSD300, 91 classes. Forward: batch {sizes[FORWARD]}; training step: batch {sizes[TRAINING]}, "
        f'with loss, gradients and update. Medians over {part.rounds(options)}. "With MKL": with the matrix products '
        "that this package puts before OneFlow's own."
    )
    part.answer(options, TITLE, table_of(figures, installed.left_out(TORCHVISION), about), figures)


if __name__ == "__main__":
    main()
