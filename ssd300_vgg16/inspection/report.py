"""The figures of an inspection as text, and what they advise."""

from collections.abc import Mapping, Sequence

import numpy as np

from ssd300_vgg16 import boxes as box_math
from ssd300_vgg16.data.matching import MATCH_IOU
from ssd300_vgg16.inspection.figures import Candidate, ClassCount, Contents, InputObjects, SizeRow, fitting_count
from ssd300_vgg16.text import listed, printable

PERCENTILES = (1, 5, 25, 50, 75, 95, 99)
BAR_LENGTH = 40
MAX_CLASSES = 100
MAX_LETTERS = 30  # of the name of a class or file, in a column or a caption

# From what share of the objects on something is advised.
MISFITS_WORTH_ADVICE = 0.15
LOST_WORTH_ADVICE = 0.01
GAIN_WORTH_ADVICE = 0.03
SMALL_FOR_DEFAULT_BOXES = 1.5  # sides of the smallest default box: below, neighbouring ones miss an object
NARROW = 3.0  # the longest default boxes are 3 to 1


def describe_contents(counts: Contents) -> str:
    """Counts of images, objects and image sizes, a line each."""
    notes = [
        f"; {count:,} {kind}"
        for count, kind in (
            (counts.difficult, "difficult: trained on, not evaluated"),
            (counts.crowds, "crowds: not trained on"),
            (counts.flat, "of no area within the image: not trained on"),
        )
        if count
    ]
    return "\n".join(
        [
            f"  images              {counts.images:,}, {counts.images_without_objects:,} of them without objects",
            f"  objects             {counts.objects:,}{''.join(notes)}",
            f"  objects per image   median {counts.median_per_image:g}, at most {counts.max_per_image:,}",
            f"  image sizes         {_describe_sizes(counts.sizes)}",
        ]
    )


def _describe_sizes(sizes: Sequence[tuple[tuple[int, int], int]]) -> str:
    (width, height), count = sizes[0]
    if len(sizes) == 1:
        return f"all {width} x {height}"
    widths, heights = zip(*(size for size, _ in sizes), strict=True)
    ranges = f"widths {min(widths)} to {max(widths)}, heights {min(heights)} to {max(heights)}"
    most = f", most often {width} x {height} ({count:,})" if count > 1 else ""
    return f"{len(sizes):,} different: {ranges}{most}"


def describe_classes(rows: Sequence[ClassCount]) -> str:
    """A table of the classes with bars; those without objects are named below it."""
    present = [row for row in rows if row.objects]
    shown = present[:MAX_CLASSES]
    column = max([len("class"), *(len(printable(row.name, MAX_LETTERS)) for row in shown)])
    total, most = sum(row.objects for row in rows), max((row.objects for row in rows), default=0)
    lines = [f"  {'class':{column}}  {'objects':>9}  {'images':>9}   share"]
    for row in shown:
        bar = "#" * max(1, round(BAR_LENGTH * row.objects / most))
        name, share = printable(row.name, MAX_LETTERS), row.objects / total
        lines.append(f"  {name:{column}}  {row.objects:9,}  {row.images:9,}  {share:6.1%}  {bar}")
    if len(present) > len(shown):
        rest = sum(row.objects for row in present[len(shown) :])
        lines.append(f"  and {len(present) - len(shown):,} classes with {rest:,} objects together")
    absent = [row.name for row in rows if not row.objects]
    if absent:
        lines.append(f"  without objects: {listed(absent, MAX_CLASSES)}")
    return "\n".join(lines)


def describe_unseen(names: Sequence[str]) -> str:
    """A line about the classes that val has objects of and train has none of."""
    if not names:
        return "\nevery class of val has objects in train"
    return f"\nclasses of val that train has no object of: {listed(names, MAX_CLASSES)}"


def describe_rotated(files: Sequence[str]) -> str:
    """A line about images whose EXIF rotation is not applied, named with their orientations."""
    return (
        f"images with an EXIF rotation: {len(files):,} of these, such as {files[0]}; their boxes are taken to refer to "
        "the pixels as stored: where they lie wrong, they were drawn on the upright image, and the files should be "
        "turned (mogrify -auto-orient)"
    )


def describe_boxes(objects: InputObjects, image_size: int) -> str:
    """Percentiles of size and shape of one object or more at the network's input."""
    head = "".join(f"{f'{percent} %':>8}" for percent in PERCENTILES)
    sides, ratios = (np.percentile(values, PERCENTILES) for values in (objects.sides, objects.ratios))
    return "\n".join(
        [
            f"  at {image_size} x {image_size}: percentiles of {len(objects):,} objects",
            f"  {'':22}{head}",
            f"  {'side, sqrt(area), px':22}" + "".join(f"{value:8.1f}" for value in sides),
            f"  {'width / height':22}" + "".join(f"{value:8.2f}" for value in ratios),
        ]
    )


def describe_fit(rows: Sequence[SizeRow]) -> str:
    """The table of objects by size against the default boxes, and its sum."""
    enough = f"IoU >= {MATCH_IOU}"
    lines = [f"  {'side, px':>10}  {'objects':>9}  {'best IoU':>8}  {enough:>16}  {'below':>16}  {'lost':>6}"]
    total = sum(row.objects for row in rows)
    mean = sum(row.objects * row.mean_iou for row in rows) / max(total, 1)
    all_rows = SizeRow(0, float("inf"), total, mean, sum(row.fitting for row in rows), sum(row.lost for row in rows))
    lines += [_fit_line(interval(row), row) for row in rows if row.objects]
    lines += [
        _fit_line("all", all_rows),
        "  best IoU: mean of each object's highest; below: learnt by the one default box that is forced on it;",
        "  lost: by none, since another object has the default box",
    ]
    return "\n".join(lines)


def interval(row: SizeRow) -> str:
    """A row's limits, as "32 - 64"."""
    if row.low == 0:
        return f"< {row.high:g}"
    return f">= {row.low:g}" if row.high == float("inf") else f"{row.low:g} - {row.high:g}"


def _fit_line(interval: str, row: SizeRow) -> str:
    fitting, below = (
        f"{count:,} ({count / max(row.objects, 1):4.0%})" for count in (row.fitting, row.objects - row.fitting)
    )
    return f"  {interval:>10}  {row.objects:9,}  {row.mean_iou:8.2f}  {fitting:>16}  {below:>16}  {row.lost:6,}"


def describe_candidates(ious: Mapping[Candidate, np.ndarray], chosen: Candidate) -> str:
    """How the default boxes of several networks fit the same objects: their highest IoUs [N]."""
    lines = [f"  {'--model':22}  {'--default-boxes':15}  {f'IoU >= {MATCH_IOU}':>10}  {'best IoU':>8}"]
    for candidate, values in ious.items():
        mark = "  (as above)" if candidate is chosen else ""
        figures = f"{_share_fitting(values):10.1%}  {values.mean():8.2f}"
        lines.append(f"  {candidate.model:22}  {candidate.box_sizes:15}  {figures}{mark}")
    return "\n".join(lines)


def _share_fitting(ious: np.ndarray) -> float:
    return fitting_count(ious) / len(ious)


def advice(
    objects: InputObjects, ious: Mapping[Candidate, np.ndarray], lost: np.ndarray, chosen: Candidate
) -> list[str]:
    """What the figures suggest before training with the chosen default boxes, a line each.

    objects: one or more at the chosen one's input, with their highest IoUs [N] for each candidate, and which of them
    are lost there, bool [N].
    """
    misfit = ious[chosen] < MATCH_IOU
    lines = []
    if misfit.mean() >= MISFITS_WORTH_ADVICE:
        reason = _cause(objects, misfit, chosen) + _remedy(ious, chosen)
        lines.append(f"{misfit.mean():.0%} of the objects have no default box with IoU >= {MATCH_IOU}: {reason}")
    lines += _other_box_sizes(ious, chosen)
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
    if (np.maximum(ratios, 1 / ratios) > NARROW).mean() > 0.5:
        return f"most are longer than {NARROW:g} to 1, as no default box is"
    return "their shapes and places lie between those of the default boxes"


def _remedy(ious: Mapping[Candidate, np.ndarray], chosen: Candidate) -> str:
    """The network with a larger input that fits best, where that is noticeably better."""
    larger = {other: _share_fitting(ious[other]) for other in ious if other.image_size > chosen.image_size}
    best = max(larger, key=larger.__getitem__, default=chosen)
    if not larger or larger[best] < _share_fitting(ious[chosen]) + GAIN_WORTH_ADVICE:
        return ""
    return f"; --model {best.model} --default-boxes {best.box_sizes} fits {larger[best]:.0%}"


def _other_box_sizes(ious: Mapping[Candidate, np.ndarray], chosen: Candidate) -> list[str]:
    """Other box sizes of the same model, if they fit noticeably more objects."""
    shares = {other: _share_fitting(ious[other]) for other in ious if other.model == chosen.model}
    better = max(shares, key=shares.__getitem__)
    if shares[better] < shares[chosen] + GAIN_WORTH_ADVICE:
        return []
    fits = f"fits {shares[better]:.0%} of the objects, {chosen.box_sizes} {shares[chosen]:.0%}"
    return [f"--default-boxes {better.box_sizes} {fits}: {better.box_sizes} is the better choice"]
