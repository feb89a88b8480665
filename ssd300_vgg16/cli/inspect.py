"""What is in a labelled data set, before training on it.

python -I -m ssd300_vgg16.data inspect DIR
"""

import argparse
import shlex
from pathlib import Path

from ssd300_vgg16.cli import command_line
from ssd300_vgg16.cli.streams import outlive_readers
from ssd300_vgg16.data.dataset import Dataset, shared_images
from ssd300_vgg16.data.fitting import fit
from ssd300_vgg16.data.formats import DEFAULT_COCO, TOLD_BY_CONTENT, DataSource, split_location
from ssd300_vgg16.errors import UserError
from ssd300_vgg16.files import write_atomically
from ssd300_vgg16.folders import make_folder
from ssd300_vgg16.fonts import missing_font
from ssd300_vgg16.inspection import report
from ssd300_vgg16.inspection.figures import Candidate, objects_at_input, unseen_classes
from ssd300_vgg16.inspection.page import PAGE, inspection_page
from ssd300_vgg16.inspection.split import Inspected, Settings, inspect_split, on_tiles
from ssd300_vgg16.network.variants import BOX_SIZES, FITTED, MODELS, VARIANTS, default_boxes, variant_of
from ssd300_vgg16.tiles import DEFAULT_OVERLAP, Tiling

PROGRAM = "python -I -m ssd300_vgg16.data"
DESCRIPTION = """A page (inspection.html) about a labelled data set: images, classes, sizes of objects, how they fit the
network's default boxes, and what is wrong with it.

python -I -m ssd300_vgg16.data inspect DIR                          a folder in a layout that training takes
python -I -m ssd300_vgg16.data inspect DIR --model ssd512_vgg16     against another network's default boxes
python -I -m ssd300_vgg16.data inspect DIR --tiles 640              as training on tiles sees it
python -I -m ssd300_vgg16.data inspect DIR --read-all               and decode every image

Without --dataset, the kind of data set is found by its content. Sizes are those of images resized as they are, without
the crops of data augmentation.
"""
FOLDER = "inspection"
MAX_IMAGES = 100


def build_parser() -> argparse.ArgumentParser:
    """The commands and their options."""
    parser = command_line.Parser(prog=PROGRAM, description=__doc__)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    inspect = commands.add_parser(
        "inspect", help="figures and pictures of a data set, as a page", description=DESCRIPTION
    )
    inspect.add_argument("folder", nargs="?", metavar="DIR", help="the data set (default: data/coco)")
    inspect.add_argument("--split", choices=("train", "val", "both"), help="(default: those that are there)")
    inspect.add_argument("--model", choices=MODELS, default=MODELS[0], help="(default: %(default)s)")
    inspect.add_argument(
        "--default-boxes",
        choices=(*BOX_SIZES, FITTED),
        help=f"their sizes; {FITTED}: chosen for these objects (default: voc for VOC, else coco, as in training)",
    )
    inspect.add_argument("--images", type=_images, default=12, metavar="N", help="samples shown (default: %(default)s)")
    inspect.add_argument("--read-all", action="store_true", help="decode every image, not just the samples")
    tiles = "see objects on tiles of larger images, so many pixels of the image long, as training with --tiles does"
    inspect.add_argument("--tiles", type=command_line.tile_side, metavar="SIDE", help=tiles)
    overlap = "part of a tile that the next one shares (default: %(default)s)"
    inspect.add_argument(
        "--tile-overlap", type=command_line.tile_overlap, default=DEFAULT_OVERLAP, metavar="X", help=overlap
    )
    inspect.add_argument("--seed", type=command_line.natural, default=0, help="of the samples (default: %(default)s)")
    inspect.add_argument(
        "--output-dir", type=command_line.folder, metavar="DIR", help=f"the page's folder (default: {FOLDER})"
    )
    command_line.add_data_options(inspect)
    return parser


def _images(text: str) -> int:
    count = command_line.positive_int(text)
    if count > MAX_IMAGES:
        raise argparse.ArgumentTypeError(f"not more than {MAX_IMAGES} go on one page")
    return count


def main(arguments: list[str]) -> int:
    """Inspect; returns the exit status: 0, or 1 if images that were read are broken or not as annotated."""
    parser = build_parser()
    options = parser.parse_args(arguments)
    if options.command is None:
        parser.print_help()
        return 0
    outlive_readers(PROGRAM)
    source = _source(options)
    splits = _splits(source, options.split)
    output = _output(options, source)
    box_sizes = options.default_boxes or ("voc" if source.format == "voc" else "coco")
    tiling = None if options.tiles is None else Tiling(options.tiles, options.tile_overlap)
    named = options.folder or options.data_path
    train = f"bash train.sh --data-path {shlex.quote(named)}" if named else "train.sh with"
    inspected: list[Inspected] = []
    for split in splits:
        dataset = source.load(split)
        if not inspected:
            chosen, candidates = _candidates(options.model, box_sizes, on_tiles(dataset, tiling))
            settings = Settings(chosen, options.images, options.seed, options.read_all, tiling, train)
        others = [] if inspected else candidates  # val is held against the chosen ones alone
        inspected.append(inspect_split(split, dataset, settings, others))
        _print(inspected[-1], chosen)
    remarks = _remarks(*inspected) if len(inspected) == 2 else []
    print("", *remarks, sep="\n")
    if notice := missing_font(dict.fromkeys(row.name for split in inspected for row in split.classes)):
        print(notice)
    write_atomically(output / PAGE, inspection_page(inspected, remarks, chosen, output))
    print(f"written: {output / PAGE}")
    return 1 if any(split.faults for split in inspected) else 0


def _print(inspected: Inspected, chosen: Candidate) -> None:
    """What matters of a split; the page has the rest."""
    print(f"\n{inspected.split}: {inspected.dataset.name}")
    print(report.describe_contents(inspected.contents))
    print(report.describe_classes(inspected.classes))
    if inspected.tiles:
        print(inspected.tiles)
    if found := inspected.fit:
        print(report.describe_fit(found.ious[chosen], found.lost, chosen))
        if others := report.describe_others(found.ious, chosen):
            print(others)
        for line in found.advice:
            print(f"  advice: {line}")
    problems = inspected.dataset.problems
    print(problems.message() if problems else "no problems in the annotations")
    print(f"images read: {inspected.read:,}; broken, or of another size than annotated: {len(inspected.faults):,}")
    for line in inspected.remarks():
        print(f"  {line}")


def _remarks(train: Inspected, val: Inspected) -> list[str]:
    """Sentences on how the two go together."""
    shared = shared_images(train.dataset, val.dataset)
    return [report.describe_unseen(unseen_classes(train.classes, val.classes)), *([shared] if shared else [])]


def _source(options: argparse.Namespace) -> DataSource:
    """Where the data is, by the options; UserError if it is not there."""
    if options.folder and options.data_path:
        raise UserError("the data set is named twice, as DIR and with --data-path: leave one out")
    train = split_location("train", options.train_annotations, options.train_images)
    val = split_location("val", options.val_annotations, options.val_images)
    named = options.folder or options.data_path
    path = Path(named) if named else None
    if not (path or train or val) and options.dataset in (TOLD_BY_CONTENT, "coco"):
        path = DEFAULT_COCO
    return DataSource(options.dataset, path, train, val, options.strict_data, options.val_fraction)


def _splits(source: DataSource, asked: str | None) -> list[str]:
    """The splits to inspect: those asked for, else those that are there. UserError if one asked for, or any, is not."""
    wanted = ["train", "val"] if asked in (None, "both") else [asked]
    if asked is None and not source.path and (source.train or source.val):
        wanted = [split for split in wanted if getattr(source, split)]
    there, missing = [], []
    for split in wanted:
        try:
            source.locate(split)
            there.append(split)
        except UserError as error:
            missing.append(error)
    if missing and (asked or not there):
        raise missing[0]
    for reason in missing:
        print(f"not inspected: {reason}")
    return there


def _output(options: argparse.Namespace, source: DataSource) -> Path:
    """The folder for the page; UserError if it would be in the data set without having been named."""
    here = Path.cwd()
    given = (place for split in (source.train, source.val) for place in split or () if place and place.is_dir())
    places = [source.path, *given]
    folders = [place.parent if place.is_file() else place for place in places if place]
    if not options.output_dir and any(here.is_relative_to(folder.resolve()) for folder in folders):
        raise UserError("the current folder is the data set's own: name one for the page with --output-dir")
    output = Path(options.output_dir or FOLDER)
    make_folder(output, output)
    return output


def _candidates(model: str, box_sizes: str, dataset: Dataset) -> tuple[Candidate, list[Candidate]]:
    """The chosen network's default boxes, and what they are compared with, themselves among it: both sizes of boxes of
    one network for each size of the input, and those fitted to the objects, if there are any, for the chosen one."""
    models = {variant.layout.image_size: variant.model for variant in reversed(VARIANTS.values())}
    size = variant_of(model, "coco").layout.image_size
    models[size] = model
    variants = [variant for variant in VARIANTS.values() if variant.model in models.values()]
    objects = objects_at_input(dataset, size)
    if len(objects):
        variants.append(fit(objects.boxes, objects.labels, model))
    elif box_sizes == FITTED:
        raise UserError(f"--default-boxes {FITTED}: {dataset.name} has no objects to fit default boxes to")
    compared = [
        Candidate(variant.model, variant.boxes, variant.layout.image_size, default_boxes(variant.layout))
        for variant in variants
    ]
    chosen = next(one for one in compared if (one.model, one.box_sizes) == (model, box_sizes))
    return chosen, compared
