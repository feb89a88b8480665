"""What a file's tensors are to an SSD: a whole detector or a trunk, by whose names, and for which variant."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ssd300_vgg16.data.categories import COCO_CATEGORIES, VOC_CATEGORIES
from ssd300_vgg16.data.dataset import Category
from ssd300_vgg16.errors import UserError
from ssd300_vgg16.network.variants import PIXEL_MEAN, variant_of
from ssd300_vgg16.text import listed
from ssd300_vgg16.weights.formats import Contents, read_contents
from ssd300_vgg16.weights.parameter_names import CLASSIFICATION, CONV1_1, FC6, FC7, MAX_MAPS, PROJECTS, VGG16, Project
from ssd300_vgg16.weights.published import TAKE_BGR
from ssd300_vgg16.weights.safetensors_file import ModelDescription
from ssd300_vgg16.weights.tensors import refuse_not_finite

TRUNK_CHANNELS = 64  # of conv1_1 at width 1
BOXES_OF_LAST_MAP = 4
# The state of a training in this package's own checkpoints, beside the network.
STATE_OF_TRAINING = ("optimizer/", "average/")
# COCO's 80 classes without gaps, as most projects other than torchvision number them.
COCO_WITHOUT_GAPS = tuple(replace(category, label=label) for label, category in enumerate(COCO_CATEGORIES, start=1))
# About those of SSD300 at width 1, without class scores; and those that score a class.
PARAMETERS, PARAMETERS_PER_CLASS = 23_000_000, 130_000
FEW_PARAMETERS = 100_000_000  # a network of no more is built for comparison even if most of it is missing
# Outputs, background included, to whose classes these are, and how long in pixels most of its photographs are.
KNOWN_CLASSES = {91: (COCO_CATEGORIES, 640), 81: (COCO_WITHOUT_GAPS, 640), 21: (VOC_CATEGORIES, 500)}
# What torchvision's and flowvision's classifiers take: RGB in 0..1, minus this mean, divided by this deviation.
CLASSIFIER_MEAN = np.array((0.485, 0.456, 0.406), dtype=np.float64)
CLASSIFIER_DEVIATION = np.array((0.229, 0.224, 0.225), dtype=np.float64)
MAX_LAYERS = 32  # of a classifier, looked at
CONV5_3 = "backbone.extra.0.5"


@dataclass(frozen=True)
class Weights:
    """Tensors of a file by their published names.

    format: how the file is written; names: by whose names; description: None for a trunk without SSD's heads;
    unused: names in the file that are no parameters of an SSD; notes: what was assumed or changed, as sentences.
    """

    path: Path
    format: str
    names: str
    tensors: Mapping[str, np.ndarray]
    description: ModelDescription | None
    unused: tuple[str, ...]
    notes: tuple[str, ...]


def read_as_ssd(path: Path) -> Weights:
    """Read a file of weights of any known format, by any known names.

    Raises UserError if the file cannot be read, or holds neither an SSD-VGG16 nor a VGG16.
    """
    return recognise(read_contents(path), path)


def recognise(contents: Contents, path: Path) -> Weights:
    """What the contents of a file are to an SSD; raises UserError if they are nothing to it."""
    given = {name: array for name, array in contents.tensors.items() if not name.startswith(STATE_OF_TRAINING)}
    project = _project_of(given)
    if project is None:
        names = listed(list(given), max_names=8) or "none"
        raise UserError(f"{path}: neither an SSD-VGG16 nor a VGG16. It is a {contents.format}; its tensors: {names}")
    tensors = {project.table[name]: array for name, array in given.items() if name in project.table}
    try:
        refuse_not_finite({name: array for name, array in given.items() if name in project.table})
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    unused = [name for name in given if name not in project.table]
    notes: list[str] = []
    description: ModelDescription | None = None
    try:
        if project is VGG16 and _is_classifier(given):
            tensors, used, notes = _classifier_as_trunk(tensors, given)
            unused = [name for name in unused if name not in used]
        if path.name in TAKE_BGR:
            tensors = with_rgb(tensors)
            notes = [*notes, "conv1_1 was turned from BGR, which these weights take, to RGB"]
        if "model" in contents.header:
            description = ModelDescription.from_json(contents.header["model"])
        elif any(name.startswith(CLASSIFICATION) for name in tensors):
            description, assumed = _description_from_shapes(tensors, project)
            notes = [*notes, *assumed]
        if description:
            _refuse_impossible(description, tensors)
    except (KeyError, TypeError, ValueError, IndexError, ArithmeticError) as error:
        raise UserError(f"{path}: what it says of its network, or its heads, make no SSD-VGG16 ({error!r})") from error
    return Weights(
        path, contents.format, project.name, tensors, description, (*unused, *contents.ignored), tuple(notes)
    )


def _refuse_impossible(description: ModelDescription, tensors: Mapping[str, np.ndarray]) -> None:
    """Raises ValueError for what no network is, or none with these tensors: it is not to be built to find that out."""
    description.refuse_impossible()
    classes, width = description.num_classes, description.width
    biases = [array for name, array in tensors.items() if name.startswith(CLASSIFICATION) and name.endswith(".bias")]
    if not any(bias.size and bias.size % classes == 0 for bias in biases):
        raise ValueError(f"{classes} outputs, of which no class scores are")
    held = sum({id(root): root.size for root in map(_root, tensors.values())}.values())
    if PARAMETERS * width**2 + PARAMETERS_PER_CLASS * width * classes > max(FEW_PARAMETERS, 2 * held):
        raise ValueError(f"width {width:g} and {classes} outputs, for which {held:,} parameters are too few")


def _root(array: np.ndarray) -> np.ndarray:
    """The array that others are views of, so that numbers which serve many tensors are counted once."""
    while isinstance(array.base, np.ndarray):
        array = array.base
    return array


def with_rgb(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """A network that took BGR, as Caffe's do, made to take RGB."""
    return {**tensors, f"{CONV1_1}.weight": tensors[f"{CONV1_1}.weight"][:, ::-1]}


def _project_of(tensors: Mapping[str, np.ndarray]) -> Project | None:
    for project in PROJECTS:
        name = project.own(f"{CONV1_1}.weight")
        if name and name in tensors and tensors[name].ndim == 4 and tensors[name].shape[1] == 3:
            return project
    return None


def _is_classifier(tensors: Mapping[str, np.ndarray]) -> bool:
    """Whether there are fully connected layers, and their numbers finite: a network for normalised pixels.

    They are not finite in the trunk that torchvision published for training SSDs, which is made for SSD's pixels.
    """
    weights = [array for name, array in tensors.items() if name.startswith("classifier.") and array.size]
    weights = weights[:MAX_LAYERS]  # of a file made up of a million, each of which is the same numbers
    return bool(weights) and all(np.isfinite(array).all() for array in weights)


def _classifier_as_trunk(
    trunk: Mapping[str, np.ndarray], tensors: Mapping[str, np.ndarray]
) -> tuple[dict[str, np.ndarray], list[str], list[str]]:
    """A classifier's trunk for SSD's pixels, with fc6 and fc7 of VGG16's; which of its layers these are; what was done.

    Liu et al. 2016, section 3, "Base network". Without fc6 and fc7 if it has others, as networks for small images do.
    """
    trunk = {**trunk, **_for_unscaled_pixels(trunk[f"{CONV1_1}.weight"], trunk[f"{CONV1_1}.bias"])}
    notes = ["a classifier: conv1_1 was changed to take pixels in 0..255 where the classifier took normalised ones"]
    channels = len(trunk.get(f"{CONV5_3}.weight", ()))
    wide = 8 * channels  # 4096 for 512, of which decimating leaves SSD's 1024
    shapes = {"0.weight": (wide, channels * 7 * 7), "0.bias": (wide,), "3.weight": (wide, wide), "3.bias": (wide,)}
    layers = {f"classifier.{name}": shape for name, shape in shapes.items()}
    if any(name not in tensors or tensors[name].shape != shape for name, shape in layers.items()):
        return trunk, [], notes
    weight6, bias6, weight7, bias7 = (tensors[name] for name in layers)
    # Subsampled as in DeepLab-LargeFOV: a quarter of the outputs, and of 7x7 positions the 3x3 three apart.
    decimated = {
        f"{FC6}.weight": weight6.reshape(wide, channels, 7, 7)[::4, :, ::3, ::3],
        f"{FC6}.bias": bias6[::4],
        f"{FC7}.weight": weight7[::4, ::4, None, None],
        f"{FC7}.bias": bias7[::4],
    }
    trunk |= {name: np.ascontiguousarray(array) for name, array in decimated.items()}
    return trunk, list(layers), [*notes, "its fc6 and fc7 were decimated to 3x3 and 1x1 convolutions"]


def _for_unscaled_pixels(weight: np.ndarray, bias: np.ndarray) -> dict[str, np.ndarray]:
    """conv1_1 of a classifier, [64, 3, 3, 3] and [64], for pixels in 0..255 minus SSD's mean, not normalised ones.

    With it the trunk answers as the classifier's would, but for the border, where padding stands for another grey.
    """
    kernels = weight.astype(np.float64) / (255 * CLASSIFIER_DEVIATION).reshape(1, 3, 1, 1)
    # The classifier sees (p - its mean); here p - SSD's mean goes in.
    # The difference of the two means, seen through the kernels, goes into the bias.
    shift = np.asarray(PIXEL_MEAN) - 255 * CLASSIFIER_MEAN
    shifted = bias + (kernels.sum(axis=(2, 3)) * shift).sum(axis=1)
    return {f"{CONV1_1}.weight": kernels.astype(np.float32), f"{CONV1_1}.bias": shifted.astype(np.float32)}


def _description_from_shapes(tensors: Mapping[str, np.ndarray], project: Project) -> tuple[ModelDescription, list[str]]:
    """What the heads of a detector say of it, and what had to be assumed beyond that."""
    maps = 1 + max(level for level in range(MAX_MAPS) if f"{CLASSIFICATION}.{level}.bias" in tensors)
    num_classes = len(tensors[f"{CLASSIFICATION}.{maps - 1}.bias"]) // BOXES_OF_LAST_MAP
    model = "ssd300_vgg16" if maps < MAX_MAPS else project.ssd512
    boxes = project.boxes.get(num_classes, project.boxes[None])
    width = len(tensors[f"{CONV1_1}.weight"]) / TRUNK_CHANNELS
    categories, tile_side = KNOWN_CLASSES.get(num_classes, (None, None))
    names = {VOC_CATEGORIES: "VOC's", None: "unknown"}.get(categories, "COCO's")
    notes = [
        f"{num_classes} outputs by {project.name}'s names: class names taken to be {names}, default boxes to be of "
        f"{boxes.upper()}'s sizes"
    ]
    if model != "ssd300_vgg16":
        notes.append(f"seven feature maps by {project.name}'s names: taken for {model}")
    variant = variant_of(model, boxes)
    return ModelDescription(num_classes, width, categories or _unnamed(num_classes), variant, tile_side), notes


def is_unnamed(categories: tuple[Category, ...]) -> bool:
    """Whether these are the stand-ins for categories whose names are not known."""
    return categories == _unnamed(len(categories) + 1)


def _unnamed(num_classes: int) -> tuple[Category, ...]:
    return tuple(Category(label, label, f"class {label}") for label in range(1, num_classes))
