"""The network to train: its outputs, its width and its default boxes."""

from ssd300_vgg16.data.dataset import Dataset, usual_side
from ssd300_vgg16.data.fitting import fit, objects_seen
from ssd300_vgg16.data.loader import samples_with_objects
from ssd300_vgg16.data.matching import MATCH_IOU
from ssd300_vgg16.distributed.world import World
from ssd300_vgg16.inspection.figures import best_iou
from ssd300_vgg16.inspection.report import share_fitting
from ssd300_vgg16.network.variants import BOX_SIZES, FITTED, SSD300_VGG16, Variant, default_boxes, variant_of
from ssd300_vgg16.tile_samples import tile_samples
from ssd300_vgg16.training.checkpoint import Checkpoint
from ssd300_vgg16.training.config import TrainOptions
from ssd300_vgg16.weights.recognise import Weights
from ssd300_vgg16.weights.safetensors_file import ModelDescription


def description_of(
    options: TrainOptions, train_set: Dataset, weights: Weights | None, checkpoint: Checkpoint | None, world: World
) -> ModelDescription:
    """That of the checkpoint or as the options say, else as in the weights to start from, else as the data needs.

    Every process gives the same: fitted default boxes are a function of the data and of the options.
    """
    theirs = weights.description if weights else None
    width = theirs.width if theirs else 1.0
    return ModelDescription(
        options.num_classes or train_set.num_classes,
        width if options.width is None else options.width,
        train_set.categories,
        (checkpoint and checkpoint.variant) or _variant(options, train_set, theirs.variant if theirs else None, world),
        min(filter(None, (options.tiles, usual_side(train_set.samples))), default=None),
    )


def _variant(options: TrainOptions, train_set: Dataset, theirs: Variant | None, world: World) -> Variant:
    model = options.model or (theirs or SSD300_VGG16).model
    if theirs and options.default_boxes is None and model == theirs.model:
        return theirs
    boxes = options.default_boxes or (theirs.boxes if theirs else "voc" if train_set.kind == "voc" else "coco")
    if boxes != FITTED:
        return variant_of(model, boxes)
    size = variant_of(model, "coco").layout.image_size
    samples = samples_with_objects(tile_samples(train_set.samples, options.tiling))
    objects, labels = objects_seen(samples, size, options.data_augmentation, options.seed)
    variant = fit(objects, labels, model)
    compared = variant, *(variant_of(model, name) for name in BOX_SIZES)
    shares = (share_fitting(best_iou(objects, default_boxes(each.layout))) for each in compared)
    told = ", ".join(f"{share:.0%} by {each.boxes}" for each, share in zip(compared, shares, strict=True))
    world.say(f"Objects as training sees them with a default box of IoU >= {MATCH_IOU}: {told}.")
    return variant
