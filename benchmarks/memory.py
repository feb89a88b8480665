"""Peak memory of a training step by batch, and of a forward pass; each in a process of its own.

The peak is the largest resident memory of the process, libraries included, after two steps or passes; on a GPU it is
that of the GPU, in use by whomever.
"""

from collections.abc import Iterator

from benchmarks.engines import FLOWVISION, FORWARD, ONEFLOW, ONNX_RUNTIME, OURS, TRAINING, Job, names_here, run
from benchmarks.frame import TORCHVISION, Benchmark, Options
from benchmarks.tables import Claim, Figures, markdown, paragraphs

BATCHES = (1, 2, 4, 8)
# flowvision's step takes eight seconds an image: one batch says enough.
CASES = {
    TRAINING: {ONEFLOW: BATCHES, TORCHVISION: BATCHES, FLOWVISION: (2,)},
    FORWARD: {ONEFLOW: (1, 8), ONNX_RUNTIME: (1, 8), TORCHVISION: (1, 8), FLOWVISION: (1,)},
}
QUICK = {FORWARD: {ONEFLOW: (1,), TORCHVISION: (1,)}}


def measure(options: Options) -> Figures:
    """By what is done and engine, MiB by batch; the highest of all rounds."""
    figures: dict[str, dict[str, dict[str, float]]] = {}
    kind = "peak_mib" if options.device == "cpu" else "gpu_mib"
    for what, batches_of in (QUICK if options.quick else CASES).items():
        figures[what] = {}
        for engine, name in names_here(options, *batches_of).items():
            peaks = figures[what][name] = {}
            for batch in batches_of[engine]:
                job = Job(what, batch, device=options.device, repeats=1, seconds=600)
                timings = [run(engine, [job], options.peers)[0] for _ in range(options.rounds)]
                peaks[str(batch)] = max(getattr(timing, kind) for timing in timings)
                print(f"{what}, batch {batch}, {engine}: {peaks[str(batch)]:.0f} MiB", flush=True)
    return figures


def table(figures: Figures) -> str:
    about = "SSD300, 91 classes, float32, libraries included."
    tables = []
    for what, engines in figures.items():
        batches = sorted({int(batch) for by_batch in engines.values() for batch in by_batch})
        rows = [
            [name, *(f"{by_batch[str(batch)]:,.0f}" if str(batch) in by_batch else "-" for batch in batches)]
            for name, by_batch in engines.items()
        ]
        tables.append(markdown([f"{what}, MiB", *(f"batch {batch}" for batch in batches)], rows))
    return paragraphs(about, *tables)


def claims(figures: Figures) -> Iterator[Claim]:
    """A training step of four images, a forward pass of one, against torchvision."""
    for what, batch in ((TRAINING, "4"), (FORWARD, "1")):
        engines = {name: found[batch] for name, found in figures.get(what, {}).items() if batch in found}
        for engine in (ONNX_RUNTIME, ONEFLOW):
            ours = engines.get(OURS[engine])
            for peer, theirs in engines.items():
                if ours and peer.startswith(TORCHVISION):
                    yield Claim(f"memory, {what}, batch {batch}, {engine}", ours, peer, theirs, "MiB")


# Memory hardly varies: one round is enough.
BENCHMARK = Benchmark("Peak memory", measure, table, claims, needs=(TORCHVISION,), rounds=1, on_gpu=True)
