"""Train SSD300-VGG16: `bash train.sh --help`.

OneFlow comes in by one import, once it is needed: --help and wrong options answer at once, and the data workers, which
import the module they were started from, stay free of it.
"""

import os
from pathlib import Path

from ssd300_vgg16 import start
from ssd300_vgg16.cli import command_line
from ssd300_vgg16.cli.streams import outlive_readers
from ssd300_vgg16.cli.train_options import parse
from ssd300_vgg16.devices import local_rank, resolve_device
from ssd300_vgg16.distributed.job import Job, job_from
from ssd300_vgg16.distributed.launcher import supervise
from ssd300_vgg16.errors import UserError
from ssd300_vgg16.training import run_folder
from ssd300_vgg16.training.config import TrainOptions
from ssd300_vgg16.weights.locate import LAST


def main(arguments: list[str]) -> int:
    """Train, or what --check or --test-only ask for instead; returns the exit status."""
    options = parse(arguments)
    outlive_readers("train.sh")
    if job := job_from(os.environ):
        return _supervise(job, options, arguments)
    resolve_device(options.device, local_rank())  # before OneFlow is imported, which then sees what is chosen
    from ssd300_vgg16.training.run import run

    return run(options)


def _supervise(job: Job, options: TrainOptions, arguments: list[str]) -> int:
    """Start this command line once for each process of the job, and see them to their end."""
    if options.batch_size < job.hosts * job.processes:
        raise UserError(f"--batch-size {options.batch_size}: less than one image for each of the processes")
    for split in ("val",) if options.test_only else ("train", "val"):
        options.source().locate(split)  # what is missing is said once; what is generated, generated once
    run = run_folder.run_of(Path(options.resume)) if options.resume else None
    if not (run and (options.test_only or (run / LAST).exists())):
        options.find_starting_weights()  # downloaded once for all
    module = start.command("ssd300_vgg16.train")
    begin = [*module, *arguments]
    if options.test_only or options.check:
        return supervise(job, begin, lambda: begin, restarts=0, advice=str, options=arguments)
    folder = run_folder.folder_of(options.resume, options.output_dir) if job.host_rank == 0 else None
    if folder:
        with run_folder.held(folder):  # or the first process would say it, and the others wait for that one
            pass
    if folder and not options.resume:
        begin += ["--output-dir", str(folder)]
    folder = folder or Path(options.resume or "RUN")
    workers = [] if options.workers is None else ["--workers", str(options.workers)]
    go_on = [*module, "--resume", str(folder), *workers]

    def again() -> list[str]:
        return go_on if (folder / run_folder.OPTIONS).exists() else begin

    def advice() -> str:
        # On other hosts than the first, what there is to go on with is not known.
        there = job.host_rank > 0 or (folder / run_folder.OPTIONS).exists()
        return run_folder.how_to_go_on(folder) if there else ""

    return supervise(job, begin, again, options.restarts, advice, arguments)


if __name__ == "__main__":
    command_line.run(main, "train.sh")
