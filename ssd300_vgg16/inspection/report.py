"""What an inspection found in few lines, and what it advises."""

from collections.abc import Mapping, Sequence

import numpy as np

from ssd300_vgg16 import boxes as box_math
from ssd300_vgg16.data.dataset import Sample
from ssd300_vgg16.data.matching import MATCH_IOU
from ssd300_vgg16.inspection.figures import Candidate, ClassCount, Contents, InputObjects
from ssd300_vgg16.network.variants import FITTED
from ssd300_vgg16.text import listed, printable

MAX_CLASSES = 10  # that are named in the line
MAX_LETTERS = 30  # of such a name

# From what share of the objects on something is advised.
MISFITS_WORTH_ADVICE = 0.15
LOST_WORTH_ADVICE = 0.01
GAIN_WORTH_ADVICE = 0.03
# From what gain in the mean of the best IoUs on fitted default boxes are advised: benchmarks/default_boxes.py.
MEAN_GAIN_WORTH_ADVICE = 0.05
SMALL_FOR_DEFAULT_BOXES = 1.5  # sides of the smallest default box: below, neighbouring ones miss an object
TILED_TO = 2.0  # sides of the smallest default box that the median object gets on the tiles that are advised
TILE_STEP = 32  # pixels: such tiles have multiples of it
NARROW = 3.0  # the longest default boxes are 3 to 1


def describe_contents(counts: Contents) -> str:
    """Counts of images, objects and image sizes, a line each."""
    others = {
        "difficult: trained on, not evaluated": counts.difficult,
        "crowds: not trained on": counts.crowds,
        "of no area within the image: not trained on": counts.flat,
    }
    notes = "".join(f"; {count:,} {kind}" for kind, count in others.items() if count)
    empty = f"{counts.images_without_objects:,} of them without objects"
    if counts.images_without_objects:
        empty += " (where nothing is annotated, trained on by train.sh --background-images)"
    return (
        f"  images              {counts.images:,}, {empty}\n"
        f"  objects             {counts.objects:,}{notes}\n"
        f"  objects per image   median {counts.median_per_image:g}, at most {counts.max_per_image:,}\n"
        f"  image sizes         {describe_sizes(counts.sizes)}"
    )


def describe_sizes(sizes: Sequence[tuple[tuple[int, int], int]]) -> str:
    """The sizes of the images, (width, height) with how many have it, in a few words."""
    (width, height), count = sizes[0]
    if len(sizes) == 1:
        return f"all {width} x {height}"
    widths, heights = zip(*(size for size, _ in sizes), strict=True)
    ranges = f"widths {min(widths)} to {max(widths)}, heights {min(heights)} to {max(heights)}"
    most = f", most often {width} x {height} ({count:,})" if count > 1 else ""
    return f"{len(sizes):,} different: {ranges}{most}"


def describe_classes(rows: Sequence[ClassCount]) -> str:
    """A line on the classes, `class_counts`: the most and the least frequent, and those without objects."""
    present = [f"{printable(row.name, MAX_LETTERS)} {row.objects:,}" for row in rows if row.objects]
    absent = [row.name for row in rows if not row.objects]
    shown = present if len(present) <= MAX_CLASSES else [*present[: MAX_CLASSES - 1], "...", present[-1]]
    without = f"; without objects: {listed(absent)}" if absent else ""
    return f"  classes             {len(rows):,}: {', '.join(shown)}{without}"


def describe_fit(ious: np.ndarray, lost: np.ndarray, chosen: Candidate) -> str:
    """A line on how objects fit the default boxes: their highest IoUs [N], and which of them are lost, bool [N]."""
    unlearnt = f", {lost.mean():.1%} are learnt by none" if lost.any() else ""
    return (
        f"  default boxes       {chosen.model} with {chosen.box_sizes}: {share_fitting(ious):.1%} of the objects have "
        f"one with IoU >= {MATCH_IOU}{unlearnt}"
    )


def describe_tiles(
    side: int, image_size: int, objects: tuple[InputObjects, InputObjects], shares: tuple[float, float]
) -> str:
    """A line on what tiles of this side do: the objects on them and in whole images, and which share of each fits."""
    windows = len(np.unique(objects[0].images))
    medians = [f"{np.median(each.sides):.0f} pixels" for each in objects]
    return (
        f"  tiles of {side:<6}     {windows:,} of them, or whole images, have {len(objects[0]):,} objects to learn. At "
        f"{image_size} x {image_size} the median side is {medians[0]}, without tiles {medians[1]}; {shares[0]:.1%} fit "
        f"a default box, without tiles {shares[1]:.1%}"
    )


def tile_advice(objects: InputObjects, samples: Sequence[Sample], chosen: Candidate, train: str) -> list[str]:
    """Where most objects are too small for the default boxes: the tiles on which the median one fits, in a line.

    It gets TILED_TO sides of the smallest default box there. Tiles that would be shown at more than twice their size
    are not advised. train: the command to train.
    """
    smallest = float(np.sqrt(box_math.area(chosen.default_boxes).min()))
    if (objects.sides < SMALL_FOR_DEFAULT_BOXES * smallest).mean() <= 0.5:
        return []
    longer = np.array([max(sample.height, sample.width) for sample in samples])[objects.images]
    wanted = float(np.median(objects.sides * longer)) / (TILED_TO * smallest)
    side = max(int(wanted), chosen.image_size // 2) // TILE_STEP * TILE_STEP
    if side > np.median(longer) / 2:
        return []
    size, median = chosen.image_size, np.median(objects.sides)
    there = float(np.median(objects.sides * np.maximum(longer / side, 1)))
    return [
        f"the median side is {median:.0f} pixels at {size} x {size}, on tiles of {side} pixels {there:.0f}: "
        f"{train} --tiles {side} (with inspect, --tiles {side} shows what that does)"
    ]


def describe_others(ious: Mapping[Candidate, np.ndarray], chosen: Candidate) -> str:
    """A line on the other default boxes that the chosen network may have, if there are any."""
    told = [
        f"{other.box_sizes} {share_fitting(values):.1%} ({values.mean():.2f})"
        for other, values in ious.items()
        if other.model == chosen.model and other is not chosen
    ]
    mean = f"mean of the best IoUs {ious[chosen].mean():.2f}"
    return f"                      {mean}; {', '.join(told)}" if told else ""


def describe_unseen(names: Sequence[str]) -> str:
    """A line about the classes that val has objects of and train has none of."""
    if not names:
        return "every class of val has objects in train"
    return f"classes of val that train has no object of: {listed(names)}"


def describe_rotated(files: Sequence[str]) -> str:
    """A line about images whose EXIF rotation is not applied, named with their orientations."""
    return (
        f"images with an EXIF rotation: {len(files):,} of these, such as {files[0]}; their boxes are taken to refer to "
        "the pixels as stored: where they lie wrong, they were drawn on the upright image, and the files should be "
        "turned (mogrify -auto-orient)"
    )


def share_fitting(ious: np.ndarray) -> float:
    """The share of these highest IoUs [N] that are enough for a match of more than the one that is forced."""
    return int((ious >= MATCH_IOU).sum()) / len(ious)


def advice(
    objects: InputObjects, ious: Mapping[Candidate, np.ndarray], lost: np.ndarray, chosen: Candidate
) -> list[str]:
    """What the figures suggest before training with the chosen default boxes, a line each.

    objects: one or more at the chosen one's input, with their highest IoUs [N] for each candidate, and which of them
    are lost there, bool [N].
    """
    misfit = ious[chosen] < MATCH_IOU
    shares = {candidate: share_fitting(of_candidate) for candidate, of_candidate in ious.items()}
    larger = [other for other in ious if other.image_size > chosen.image_size]
    lines = []
    if misfit.mean() >= MISFITS_WORTH_ADVICE:
        best = max(larger, key=shares.__getitem__, default=chosen)
        remedy = f"; --model {best.model} --default-boxes {best.box_sizes} fits {shares[best]:.0%}"
        lines.append(
            f"{misfit.mean():.0%} of the objects have no default box with IoU >= {MATCH_IOU}: "
            f"{_cause(objects, misfit, chosen)}{remedy if shares[best] >= shares[chosen] + GAIN_WORTH_ADVICE else ''}"
        )
    same = [other for other in ious if other.model == chosen.model]
    published = [other for other in same if other.box_sizes != FITTED]
    fitted = next((other for other in same if other.box_sizes == FITTED), chosen)
    mean, their_mean = (max(ious[other].mean() for other in some) for some in ([fitted], published or [chosen]))
    better = max(published, key=shares.__getitem__, default=chosen)
    # Fitted ones fit best, if by little: the published are as good then.
    if fitted is not chosen and mean >= their_mean + MEAN_GAIN_WORTH_ADVICE:
        lines.append(
            f"--default-boxes {FITTED}: the mean of the best IoUs is {mean:.2f}, with published ones at most "
            f"{their_mean:.2f}: {FITTED} is the better choice for a network that starts from nothing"
        )
    elif shares[better] >= shares[chosen] + GAIN_WORTH_ADVICE:
        fits = f"fits {shares[better]:.0%} of the objects, {chosen.box_sizes} {shares[chosen]:.0%}"
        lines.append(f"--default-boxes {better.box_sizes} {fits}: {better.box_sizes} is the better choice")
    if lost.mean() >= LOST_WORTH_ADVICE:
        lines.append(
            f"{lost.mean():.0%} of the objects are not learnt, since others have their only default box: "
            "they are too small or too close; larger crops or a larger input would help"
        )
    return lines


def _cause(objects: InputObjects, misfit: np.ndarray, chosen: Candidate) -> str:
    """Why most of the objects that do not fit, bool [N], do not."""
    size, smallest = chosen.image_size, float(np.sqrt(box_math.area(chosen.default_boxes).min()))
    ratios = objects.ratios[misfit]
    if (objects.sides[misfit] < SMALL_FOR_DEFAULT_BOXES * smallest).mean() > 0.5:
        return f"most are small at {size} x {size}; larger crops of the images would help"
    if chosen.box_sizes != FITTED and (np.maximum(ratios, 1 / ratios) > NARROW).mean() > 0.5:
        return f"most are longer than {NARROW:g} to 1, as no default box is"
    return "their shapes and places lie between those of the default boxes"
