"""Forward and training step of SSD300 against flowvision 0.2.1 as installed, in turn, on this machine's CPU.

    .venv/bin/python benchmarks/network.py               a table on the terminal
    .venv/bin/python benchmarks/network.py --write       and in benchmarks/network.md

Each round runs either network in a process of its own (they need different libraries), with a warm-up. Both have the
same shape: 91 classes, width 1, random weights, 300x300 images. The table gives medians over all rounds.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PARTS = ("forward", "training step")
SIDES = ("ssd300_vgg16", "flowvision")
OBJECT = [30.0, 40.0, 200.0, 220.0]


def measure(run, repeats: int, batch: int) -> list[float]:
    """Seconds per image of each of some runs, after one that is not counted."""
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        run()
        times.append((time.perf_counter() - start) / batch)
    return times[1:]


def run_ours(batch: int, repeats: int) -> dict[str, list[float]]:
    import ssd300_vgg16  # noqa: F401, I001 - before numpy, as in train.sh
    import numpy as np

    from ssd300_vgg16.data.loader import TrainingBatch
    from ssd300_vgg16.data.matching import training_targets
    from ssd300_vgg16.network.default_boxes import default_boxes
    from ssd300_vgg16.network.ssd import SSD300
    from ssd300_vgg16.processes.world import ALONE
    from ssd300_vgg16.runtime import flow
    from ssd300_vgg16.training.plan import UpdateRule
    from ssd300_vgg16.training.schedule import Schedule
    from ssd300_vgg16.training.step import EagerStep

    model = SSD300()
    step = EagerStep(model, UpdateRule("sgd"), Schedule("multistep", 1e-5, 1000, 1), ALONE)
    offsets, labels = training_targets(np.array([OBJECT], dtype=np.float32), np.array([1]), default_boxes())
    images = np.random.default_rng(0).integers(0, 255, (batch, 3, 300, 300), dtype=np.uint8)
    made = TrainingBatch(images, np.stack([offsets] * batch), np.stack([labels] * batch), [], [])

    def forward():
        with flow.no_grad():
            for tensor in model(flow.from_numpy(images)):
                tensor.numpy()

    def train():
        step(made, int(np.count_nonzero(made.labels))).numpy()
        model.backbone.scale_weight.numpy()

    return {"forward": measure(forward, repeats, batch), "training step": measure(train, repeats, batch)}


def run_flowvision(batch: int, repeats: int) -> dict[str, list[float]]:
    import oneflow as flow
    from flowvision.models.detection import ssd300_vgg16

    model = ssd300_vgg16(pretrained=False, pretrained_backbone=False)
    model.train()
    optimizer = flow.optim.SGD(model.parameters(), lr=1e-5, momentum=0.9, weight_decay=5e-4)
    images = flow.rand(batch, 3, 300, 300)
    targets = [{"boxes": flow.tensor([OBJECT]), "labels": flow.tensor([1])} for _ in range(batch)]

    def forward():
        # The network alone: what follows it needs an NMS that OneFlow does not have on the CPU.
        with flow.no_grad():
            for tensor in model.head(list(model.backbone(images).values())).values():
                tensor.numpy()

    def train():
        losses = sum(model(list(images), targets).values())
        optimizer.zero_grad()
        losses.backward()
        optimizer.step()
        model.backbone.scale_weight.numpy()

    return {"forward": measure(forward, repeats, batch), "training step": measure(train, repeats, batch)}


def run_side(side: str, batch: int, repeats: int) -> dict[str, list[float]]:
    """Run one side in a fresh process."""
    libraries = Path(sysconfig.get_path("purelib")) / "nvidia"
    env = {name: value for name, value in os.environ.items() if name != "OPENBLAS_CORETYPE"}
    env |= {"PYTHONPATH": str(ROOT), "GLOG_minloglevel": "3"}
    # flowvision as installed, but for the libraries without which `import oneflow` fails.
    env["LD_LIBRARY_PATH"] = f"{libraries / 'cublas' / 'lib'}:{libraries / 'cudnn' / 'lib'}"
    command = [sys.executable, __file__, "--side", side, "--batch", str(batch), "--repeats", str(repeats)]
    done = subprocess.run(command, env=env, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def table(times: dict[str, dict[str, list[float]]], batch: int, rounds: int, repeats: int) -> str:
    """The results as Markdown."""
    sys.path.insert(0, str(ROOT))
    from ssd300_vgg16.runtime import environment

    found = environment()
    lines = [
        f"CPU: {found['cpu']}. OneFlow {found['oneflow']}, flowvision 0.2.1. Batch {batch}; medians of "
        f"{rounds} rounds of {repeats}, the two in turn. Repeat with `.venv/bin/python benchmarks/network.py "
        f"--batch {batch} --rounds {rounds} --repeats {repeats} --write`.",
        "",
        "| seconds per image | ssd300_vgg16 | flowvision as installed | ratio |",
        "|---|---|---|---|",
    ]
    for part in PARTS:
        ours, theirs = (statistics.median(times[side][part]) for side in SIDES)
        lines.append(f"| {part} | {ours:.2f} | {theirs:.2f} | {theirs / ours:.1f} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--write", action="store_true", help="write benchmarks/network.md")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        run = run_ours if options.side == "ssd300_vgg16" else run_flowvision
        print(json.dumps(run(options.batch, options.repeats)))
        return
    times = {side: {part: [] for part in PARTS} for side in SIDES}
    for number in range(options.rounds):
        for side in SIDES:
            for part, values in run_side(side, options.batch, options.repeats).items():
                times[side][part] += values
                print(f"round {number + 1}, {side}, {part}: {statistics.median(values):.2f} s per image", flush=True)
    text = table(times, options.batch, options.rounds, options.repeats)
    print(text)
    if options.write:
        (Path(__file__).parent / "network.md").write_text(f"# SSD300 on the CPU, against flowvision\n\n{text}")


if __name__ == "__main__":
    main()
