"""What a training starts from: the network that options and weights describe, its weights, or a checkpoint.

As in train.py, imports that bring OneFlow are made inside functions.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from ssd300_vgg16.cli.train_parser import NO_WEIGHTS
from ssd300_vgg16.data.dataset import Dataset, Sample
from ssd300_vgg16.errors import UserError
from ssd300_vgg16.training import run_folder


def starting_weights(options: argparse.Namespace):
    """The weights that --load, --pretrained or --weights-backbone name; None to start from nothing."""
    from ssd300_vgg16.weights.recognise import read_as_ssd
    from ssd300_vgg16.weights.transfer import trunk_of

    named = _named_weights(options)
    if named is None:
        return None
    weights = read_as_ssd(_found(named, options))
    return weights if options.load or _load_of(options) else trunk_of(weights)


def download_weights(options: argparse.Namespace) -> None:
    """Have the published weights that a training starts from in the folder of downloads."""
    resumed = options.resume and (run_folder.run_of(Path(options.resume)) / run_folder.LAST).exists()
    if options.resume and (resumed or options.test_only):
        return  # its own weights are there
    named = _named_weights(options)
    if named and run_folder.is_published_name(named):
        _found(named, options)


def _found(named: Path, options: argparse.Namespace) -> Path:
    try:
        return run_folder.find_weights(named)
    except UserError as error:
        if str(named) != options.weights_backbone:
            raise
        raise UserError(f"{error}\nOr train without them: --weights-backbone {NO_WEIGHTS}") from error


def _named_weights(options: argparse.Namespace) -> Path | None:
    named = options.load or _load_of(options) or options.weights_backbone
    return None if named in (None, NO_WEIGHTS) else Path(named)


def _load_of(options: argparse.Namespace) -> str | None:
    """What --load said when the run was begun, which was killed before its first checkpoint."""
    return run_folder.read_options(run_folder.run_of(Path(options.resume))).get("load") if options.resume else None


def settle_network(options: argparse.Namespace, weights) -> None:
    """What was left open of the network is as in the weights that it starts from."""
    from ssd300_vgg16.network.variants import SSD300_VGG16

    theirs = weights.description if weights else None
    options.model = options.model or (theirs.variant.model if theirs else SSD300_VGG16.model)
    if options.default_boxes is None:
        boxes = "voc" if options.dataset == "voc" else "coco"
        options.default_boxes = theirs.variant.boxes if theirs else boxes
    if options.width is None:
        options.width = theirs.width if theirs else 1.0


def describe_network(options: argparse.Namespace, train_set: Dataset):
    """The description of the network to train, once `settle_network` has settled it."""
    from ssd300_vgg16.network.variants import variant_of
    from ssd300_vgg16.weights.safetensors_file import ModelDescription

    variant = variant_of(options.model, options.default_boxes)
    return ModelDescription(options.num_classes, options.width, train_set.categories, variant)


def make_network(options: argparse.Namespace, description, checkpoint, weights, world):
    """The network with the weights of the checkpoint, else with those it starts from, else with fresh ones."""
    from ssd300_vgg16.runtime import flow
    from ssd300_vgg16.training.optimizer import initialise_from_nothing
    from ssd300_vgg16.weights.model import build_model, load_tensors, model_tensors
    from ssd300_vgg16.weights.transfer import start_from

    flow.manual_seed(options.seed)
    model = build_model(description)
    if checkpoint.model:
        load_tensors(model, checkpoint.model, Path(options.resume))
    elif weights := weights or starting_weights(options):
        start = start_from(weights, description, model_tensors(model))
        load_tensors(model, start.tensors, weights.path)
        world.say(start.table)
    else:
        initialise_from_nothing(model)
    return model


def checkpoint_to_go_on_from(options: argparse.Namespace, train_set: Dataset, world):
    """The checkpoint that --resume means, if there is one and it is of a training on this data."""
    from ssd300_vgg16.training.checkpoint import newest_checkpoint

    if not options.resume:
        return None
    found = newest_checkpoint(Path(options.resume))
    if found is None:
        world.say(f"{options.resume} has no checkpoint yet: starting it from the beginning.")
        return None
    path, checkpoint, problems = found
    world.say(*(f"{problem}: going on from {path.name}, the one before." for problem in problems))
    before, now = checkpoint.progress.data, train_set.fingerprint()
    if before and before != now:
        raise UserError(
            f"--resume {options.resume}: the training data differs. The run had {before['images']} images with "
            f"{before['objects']} objects (sha256 {before['sha256'][:8]}), now there are {now['images']} with "
            f"{now['objects']} ({now['sha256'][:8]}). Bring it back, or begin a new run with --load {path}"
        )
    return checkpoint


def image_cache(options: argparse.Namespace, samples: Sequence[Sample], least_side: int, world):
    """Where --cache has decoded images kept; None for nowhere. Every process has to call it. Raises UserError."""
    from ssd300_vgg16.data.image_cache import DiskCache
    from ssd300_vgg16.weights.download import cache_folder

    if options.cache == "ram":
        return _shared_memory(samples, least_side, world)
    if options.cache == "disk" and not options.check:  # which writes nothing
        return DiskCache.create(cache_folder() / "images")
    return None


def _shared_memory(samples: Sequence[Sample], least_side: int, world):
    """Memory that the first process of each host has made for all of them."""
    from ssd300_vgg16.data.image_cache import RamCache

    host = Path("/proc/sys/kernel/random/boot_id").read_text(), str(Path("/proc/self/ns/pid").readlink())
    mine, trouble = None, ""
    if world.local_rank == 0:
        try:
            mine = RamCache.create(samples, least_side)
        except UserError as error:
            trouble = str(error)
    told = {"host": host, "memory": mine and [mine.path, mine.inode], "trouble": trouble}
    everyones = [json.loads(message) for message in world.gathered(json.dumps(told).encode())]
    if troubles := [one["trouble"] for one in everyones if one["trouble"]]:
        raise UserError(troubles[0])  # in all processes, or some would wait for the others
    shared = [RamCache(*one["memory"]) for one in everyones if one["memory"] and one["host"] == list(host)]
    return mine or next((cache for cache in shared if cache.can_be_opened()), None)
