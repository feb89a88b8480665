"""Forward pass and training step of SSD300: the package's engines, flowvision and torchvision, in turn.

All have the same shape: 91 classes, width 1, random weights, images of 300x300. Each round runs every engine in a
process of its own. The rate of matrix products is the best of any library and round, and says what the machine can do.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from benchmarks import plots
from benchmarks.engines import (
    FLOWVISION,
    FLOWVISION_MKL,
    FORWARD,
    MATMUL,
    NUMPY,
    ONEFLOW,
    ONNX_RUNTIME,
    OURS,
    PREPARE,
    TORCHVISION,
    TRAINING,
    Job,
    run,
)
from benchmarks.frame import (
    Benchmark,
    Claim,
    Figures,
    Options,
    in_fresh_process,
    markdown,
    median,
    paragraphs,
    significant,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BATCH = {FORWARD: 1, TRAINING: 4}
PRODUCT_SIDES = (512, 1024, 2048)
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


def multiply_adds() -> list[float]:
    """Multiplications of a forward pass and of a training step of one image, in units of 1e9; for a fresh process.

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
    return [sum(products), 3 * sum(products) - products[0]]


def measure(options: Options) -> Figures:
    """Median seconds per image by engine and what it did, and their shares of the fastest rate of products."""
    names = OURS | {FLOWVISION: "flowvision 0.2.1 as installed", FLOWVISION_MKL: "flowvision 0.2.1 with MKL"}
    names |= {NUMPY: NUMPY}
    if TORCHVISION in options.peers:
        names[TORCHVISION] = options.peers.name(TORCHVISION)
    slow = (FLOWVISION, FLOWVISION_MKL) if options.quick else ()
    engines = [each for each in ENGINES[options.device.partition(":")[0]] if each in names and each not in slow]
    times: dict[str, dict[str, list]] = {engine: {} for engine in engines}
    rates: dict[str, float] = {}
    for number in range(options.rounds):
        for engine in engines:
            jobs = jobs_of(engine, options.device, options.quick)
            for job, timing in zip(jobs, run(engine, jobs, options.peers), strict=True):
                if job.what == MATMUL:
                    rate = 2 * job.batch**3 / min(timing.seconds) / 1e9
                    rates[names[engine]] = max(rates.get(names[engine], 0), rate)
                else:
                    times[engine].setdefault(job.what, []).append([seconds / job.batch for seconds in timing.seconds])
                    print(f"round {number + 1}, {engine}, {job.what}: {min(timing.seconds):.3f} s", flush=True)
    work = dict(zip((FORWARD, TRAINING), in_fresh_process(multiply_adds), strict=True))
    limit, found = max(rates.values()), {}
    for engine in filter(times.get, engines):
        medians = {what: median(rounds) for what, rounds in times[engine].items()}
        shares = {f"{what}, share": 2 * work[what] / seconds / limit for what, seconds in medians.items()}
        found[names[engine]] = medians | shares
    return {"engines": found, "products": rates, "limit": limit, "work": work}


def table(figures: Figures) -> str:
    ours = figures["engines"][OURS[ONEFLOW]]
    rows = []
    for name, found in figures["engines"].items():
        cells = [name]
        for what in (FORWARD, TRAINING):
            seconds, share = found.get(what), found.get(f"{what}, share")
            cells += [significant(seconds), "-" if seconds is None else f"{seconds / ours[what]:.2f}"]
            cells += ["-" if share is None else f"{share:.0%}"]
        rows.append(cells)
    header = ["", "forward, s per image", "times ours", "share of the limit"]
    header += ["training step, s per image", "times ours", "share of the limit"]
    rates = ", ".join(f"{name} {rate:.0f}" for name, rate in figures["products"].items())
    about = (
        f"SSD300, 91 classes. Forward: batch 1; training step: batch {BATCH[TRAINING]}, with loss, gradients and update. "
        '"With MKL": with the matrix products that this package puts before OneFlow\'s own.'
    )
    limit = (
        f"The limit is the fastest float32 product of square matrices that any library reached here, "
        f"{figures['limit']:.0f} GFLOP/s ({rates}). A forward pass takes {figures['work'][FORWARD]:.2f} GMAC (10^9 "
        f"multiplications with an addition), a training step {figures['work'][TRAINING]:.1f}. Winograd's convolution "
        "gets by with fewer, so it can be above the limit."
    )
    return paragraphs(about, markdown(header, rows), limit)


def claims(figures: Figures) -> Iterator[Claim]:
    """Both engines against the model zoos as they are installed."""
    engines = figures["engines"]
    for what in (FORWARD, TRAINING):
        for engine in (ONNX_RUNTIME, ONEFLOW):
            ours = engines.get(OURS[engine], {}).get(what)
            for peer, found in engines.items():
                if ours and peer not in OURS.values() and what in found and "MKL" not in peer:
                    yield Claim(f"{what} of an image, {engine}", ours, peer, found[what], "s")


def draw(figure: "Figure", figures: Figures) -> None:
    engines = figures["engines"]
    figure.set_size_inches(14, 6)
    for axes, what in zip(figure.subplots(2, 2).T, (FORWARD, TRAINING), strict=True):
        seconds = {name: found[what] for name, found in engines.items() if what in found}
        shares = {name: 100 * engines[name][f"{what}, share"] for name in seconds}
        plots.bars(axes[0], seconds, what, "seconds per image")
        plots.bars(axes[1], shares, "", f"% of {figures['limit']:.0f} GFLOP/s", "{:.0f} %")
        axes[1].axvline(100, color="black", linewidth=0.8, linestyle=":")


BENCHMARK = Benchmark("The network", measure, table, claims, draw, needs=(TORCHVISION,), on_gpu=True)
