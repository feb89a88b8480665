"""Files of weights: what is published, what a file holds, and its conversion.

    .venv/bin/python -I -m ssd300_vgg16.weights list             names that --load and --weights take
    .venv/bin/python -I -m ssd300_vgg16.weights download NAME    to SSD_CACHE, else ~/.cache/ssd300_vgg16
    .venv/bin/python -I -m ssd300_vgg16.weights inspect FILE     what it is: format, network, classes, tensors
    .venv/bin/python -I -m ssd300_vgg16.weights convert IN OUT   to a safetensors file

FILE and IN: a file of any format that can be read, a folder of OneFlow's, a run's folder, or a published name.
"""

import argparse
from dataclasses import replace
from pathlib import Path
from types import ModuleType

from ssd300_vgg16.cli import command_line
from ssd300_vgg16.data.categories import same_name
from ssd300_vgg16.data.dataset import Category
from ssd300_vgg16.errors import UserError
from ssd300_vgg16.network.variants import BOX_SIZES, FITTED, MODELS, Variant, variant_of
from ssd300_vgg16.text import listed, printable
from ssd300_vgg16.weights.download import fetch
from ssd300_vgg16.weights.locate import find_weights
from ssd300_vgg16.weights.parameter_names import AMDEGROOT, CONV1_1, LUFFICC, PUBLISHED
from ssd300_vgg16.weights.published import PUBLISHED as PUBLISHED_WEIGHTS
from ssd300_vgg16.weights.published import published
from ssd300_vgg16.weights.recognise import Weights, read_as_ssd, with_rgb
from ssd300_vgg16.weights.safetensors_file import save_weights

PROGRAM = "python -I -m ssd300_vgg16.weights"
WRITABLE = {project.name: project for project in (PUBLISHED, AMDEGROOT, LUFFICC)}
MAX_UNUSED = 20


def build_parser() -> argparse.ArgumentParser:
    """The command line's four verbs."""
    parser = command_line.Parser(prog=PROGRAM, description=__doc__)
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    verbs.add_parser("list", help="published weights")
    download = verbs.add_parser("download", help="download published weights")
    download.add_argument("name", metavar="NAME")
    inspect = verbs.add_parser("inspect", help="show what a file holds")
    inspect.add_argument("file", metavar="FILE")
    convert = verbs.add_parser("convert", help="write weights of any format as safetensors")
    convert.add_argument("source", metavar="IN")
    convert.add_argument("target", metavar="OUT", type=Path)
    convert.add_argument(
        "--names",
        choices=tuple(WRITABLE),
        default=PUBLISHED.name,
        help="whose parameter names to write; torchvision's are this package's own (default: %(default)s)",
    )
    convert.add_argument("--bgr", action="store_true", help="its first layer takes BGR, as Caffe's do: turn it")
    convert.add_argument("--model", choices=MODELS, help="say which network it is, where the file does not")
    convert.add_argument("--default-boxes", choices=BOX_SIZES, help="say whose sizes its default boxes have")
    convert.add_argument(
        "--classes", nargs="+", metavar="NAME", help="say what its outputs are called, without the background"
    )
    return parser


def main(arguments: list[str]) -> int:
    """Do what the verb says; returns the exit status."""
    options = build_parser().parse_args(arguments)
    if options.verb == "list":
        print("\n".join(_listing()))
    elif options.verb == "download":
        print(fetch(published(options.name)))
    elif options.verb == "inspect":
        weights = read_as_ssd(find_weights(Path(options.file)))
        print("\n".join([*_summary(weights), *_tensor_rows(weights)]))
    else:
        _convert(options)
    return 0


def _listing() -> list[str]:
    rows = []
    for entry in PUBLISHED_WEIGHTS.values():
        rows += [f"{entry.name} ({entry.kind})", f"    {entry.about}"]
        rows += [f"    {source.url}" for source in entry.sources]
    return rows


def _summary(weights: Weights) -> list[str]:
    """Rows on the file and its network."""
    parameters = sum(array.size for array in weights.tensors.values())
    rows = [f"{weights.path}", f"  format   {weights.format}", f"  names    {weights.names}'s"]
    if weights.description:
        variant, num_classes = weights.description.variant, weights.description.num_classes
        names = [printable(category.name) for category in weights.description.categories]
        side = weights.description.tile_side
        learnt = f", learnt in images of {side} pixels" if side else ""
        model = _model()
        problems = model.misfits(model.empty_model(weights.description), weights.tensors)
        fit = f"DOES NOT FIT the network: {'; '.join(problems)}" if problems else "all there, none too much"
        rows += [
            f"  network  {variant.model}, default boxes {_whose(variant)}, width {weights.description.width:g}{learnt}",
            f"  classes  {num_classes} outputs: background, {', '.join(names)}",
        ]
    else:  # a trunk alone has no network to be compared with
        fit = f"{len(weights.tensors[f'{CONV1_1}.weight'])} channels in conv1_1"
        rows.append("  network  VGG16 without SSD's heads: for --weights-backbone or --load, not for detecting")
    rows += [f"  note     {note}" for note in weights.notes]
    rows.append(f"  tensors  {len(weights.tensors)} of an SSD-VGG16, {parameters:,} parameters; {fit}")
    if weights.unused:
        rows.append(f"  not used {listed(weights.unused, MAX_UNUSED)}")
    return rows


def _whose(variant: Variant) -> str:
    return "fitted to a data set" if variant.boxes == FITTED else f"of {variant.boxes.upper()}'s sizes"


def _tensor_rows(weights: Weights) -> list[str]:
    longest = max(map(len, weights.tensors))
    return [
        f"    {name:<{longest}}  {array.dtype}  {' x '.join(map(str, array.shape)) or 'single'}"
        for name, array in weights.tensors.items()
    ]


def _model() -> ModuleType:
    # Only where a network is compared with: OneFlow is not loaded to list or download.
    from ssd300_vgg16.weights import model

    return model


def _convert(options: argparse.Namespace) -> None:
    target = options.target
    command_line.refuse_as_target(target, ".safetensors", "a safetensors file")
    weights = _as_said(read_as_ssd(find_weights(Path(options.source))), options)
    if options.bgr:
        weights = replace(weights, tensors=with_rgb(weights.tensors))
    if weights.description:
        model = _model()
        model.refuse_misfits(model.empty_model(weights.description), weights.tensors, weights.path)
    project = WRITABLE[options.names]
    tensors = {}
    for name, array in weights.tensors.items():
        own = project.own(name)
        if own is None:
            raise UserError(f"--names {project.name}: there is no name for {name}")
        tensors[own] = array
    save_weights(target, tensors, weights.description)
    print("\n".join(_summary(weights)))
    print(f"written: {target}, {len(tensors)} tensors by {project.name}'s names")


def _as_said(weights: Weights, options: argparse.Namespace) -> Weights:
    """The weights with what the user says of them."""
    if not (options.model or options.default_boxes or options.classes):
        return weights
    description = weights.description
    if description is None:
        raise UserError(f"{weights.path} has no heads: --model, --default-boxes and --classes say nothing of it")
    if options.classes:
        if len(options.classes) != description.num_classes - 1:
            raise UserError(
                f"--classes: {len(options.classes)} names, and {description.num_classes - 1} outputs without background"
            )
        for number, name in enumerate(options.classes):
            if same_name(name) in map(same_name, options.classes[:number]):
                raise UserError(f"--classes: {name!r} is given twice")
        named = tuple(Category(label, label, name) for label, name in enumerate(options.classes, start=1))
        description = replace(description, categories=named)
    variant = description.variant
    if options.model or options.default_boxes:
        boxes = options.default_boxes or variant.boxes
        if boxes == FITTED:
            raise UserError(f"--model: {weights.path} has default boxes of its own, fitted for {variant.model}")
        variant = variant_of(options.model or variant.model, boxes)
    return replace(weights, description=replace(description, variant=variant))
