"""One split of a data set inspected: its figures printed, its pictures written."""

import io
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from tqdm import tqdm

from ssd300_vgg16.data.dataset import Dataset, Sample
from ssd300_vgg16.data.images import AS_STORED, ImageError, exif_orientation, image_size
from ssd300_vgg16.data.sizes import read_as_annotated
from ssd300_vgg16.files import write_atomically
from ssd300_vgg16.inspection import report
from ssd300_vgg16.inspection.figures import (
    Candidate,
    ClassCount,
    InputObjects,
    SizeRow,
    best_iou,
    by_size,
    class_counts,
    contents,
    lost_objects,
    objects_at_input,
    some_images,
)
from ssd300_vgg16.inspection.pictures import choose_samples, draw_sheet, plot_inspection, png_of

SAMPLES_PER_TURN = 8


class Finding(NamedTuple):
    """What is wrong with a sample's image file.

    fault: a line that names the file and says what is wrong, or None. ignored_rotation: the file and its EXIF
    orientation, if it has one that is not applied since the boxes refer to the pixels as stored; or None.
    """

    fault: str | None
    ignored_rotation: str | None


def read_checked(sample: Sample) -> tuple[np.ndarray | None, Finding]:
    """The pixels that the boxes refer to, uint8 [H, W, 3] RGB or None, and what is wrong with the file."""
    try:
        decoded, annotated = read_as_annotated(sample)
        stored = image_size(sample.path, sample.upright)
        orientation = AS_STORED if sample.upright or decoded.size != stored else exif_orientation(sample.path)
    except ImageError as error:
        return None, Finding(str(error), None)
    rotation = None if orientation == AS_STORED else f"{sample.path} (orientation {orientation})"
    damage = next((str(note) for note in decoded.notes if note.harmful), None)
    image = decoded.pixels
    if annotated != decoded.size:
        image = cv2.resize(image, annotated[::-1], interpolation=cv2.INTER_AREA)
    return image, Finding(damage or _wrong_size(sample, *decoded.size), rotation)


def check_images(samples: Sequence[Sample]) -> Iterator[Finding]:
    """What is wrong with each sample's file, in order; all are read, by as many threads as there are cores."""
    # Threads will do: decoders let go of Python's lock.
    with ThreadPool(len(os.sched_getaffinity(0))) as threads:
        yield from threads.imap(lambda sample: read_checked(sample)[1], samples, chunksize=SAMPLES_PER_TURN)


def _wrong_size(sample: Sample, height: int, width: int) -> str | None:
    if (height, width) == (sample.height, sample.width):
        return None
    declared = f"{sample.width} x {sample.height}"
    turned = ", as if turned" if (width, height) == (sample.height, sample.width) else ""
    return f"{sample.path}: {width} x {height} pixels, by the annotations {declared}{turned}"


OBJECTS_MATCHED = 10_000  # all of COCO's would take minutes, and change no figure by more than a percent
FAULTS_SHOWN = 20


@dataclass(frozen=True)
class Settings:
    """What to inspect with: the chosen network's default boxes, how many sample images, the seed they are drawn with,
    whether to read all images, and the folder for the pictures."""

    chosen: Candidate
    images: int
    seed: int
    read_all: bool
    output: Path


@dataclass(frozen=True)
class Inspected:
    """The classes of a split, what is wrong with the image files that were read, and the pictures written."""

    classes: list[ClassCount]
    faults: list[str]
    pictures: list[Path]


def inspect_split(split: str, dataset: Dataset, settings: Settings, candidates: Sequence[Candidate]) -> Inspected:
    """Print the figures of a split ("train" or "val") and write its pictures.

    candidates: networks that the chosen one is compared with, itself among them; none: no comparison, no advice.
    """
    objects = objects_at_input(dataset, settings.chosen.image_size)
    classes = class_counts(dataset, objects)
    print(f"\n{split}: {dataset.name}")
    print(report.describe_contents(contents(dataset, objects)))
    print(f"\n{report.describe_classes(classes)}")
    size_rows = _print_fit(objects, settings, candidates) if len(objects) else []
    print(f"\n{dataset.problems.message() if dataset.problems else 'no problems in the annotations'}")
    figures, sheet = (settings.output / f"{split}_{name}.png" for name in ("figures", "images"))
    figure = plot_inspection(classes, objects, size_rows, settings.chosen, f"{split}: {dataset.name}")
    write_atomically(figures, png_of(figure))
    findings = _write_sheet(sheet, dataset, objects, settings)
    if settings.read_all:
        findings = list(tqdm(check_images(dataset.samples), total=len(dataset.samples), unit="image", disable=None))
    faults = [finding.fault for finding in findings if finding.fault]
    _print_faults(faults, len(findings))
    rotated = [finding.ignored_rotation for finding in findings if finding.ignored_rotation]
    if rotated:
        print(report.describe_rotated(rotated))
    return Inspected(classes, faults, [figures, sheet])


def _print_fit(all_objects: InputObjects, settings: Settings, candidates: Sequence[Candidate]) -> list[SizeRow]:
    """Print sizes, the fit to default boxes, the comparison and the advice; returns the table by size."""
    chosen = settings.chosen
    print(f"\n{report.describe_boxes(all_objects, chosen.image_size)}")
    objects = some_images(all_objects, OBJECTS_MATCHED, settings.seed)
    drawn = f", of {len(objects):,} objects in images drawn at random, seed {settings.seed}"
    print(f"\n  {chosen.model} with {chosen.box_sizes} default boxes{drawn if len(objects) < len(all_objects) else ''}")
    ious = {
        candidate: best_iou(objects.resized(candidate.image_size / chosen.image_size), candidate.default_boxes)
        for candidate in candidates or [chosen]
    }
    lost = lost_objects(objects, chosen.default_boxes)
    rows = by_size(objects.sides, ious[chosen], lost)
    print(report.describe_fit(rows))
    if candidates:
        print(f"\n{report.describe_candidates(ious, chosen)}")
        for line in report.advice(objects, ious, lost, chosen):
            print(f"  advice: {line}")
    return rows


def _write_sheet(path: Path, dataset: Dataset, objects: InputObjects, settings: Settings) -> list[Finding]:
    """Write the sheet of samples; returns what is wrong with their files."""
    indices = choose_samples(objects, len(dataset.samples), settings.images, settings.seed)
    samples = [dataset.samples[index] for index in indices]
    images, findings = zip(*map(read_checked, samples), strict=True)
    content = io.BytesIO()
    draw_sheet(samples, images, {category.label: category.name for category in dataset.categories}).save(content, "png")
    write_atomically(path, content.getvalue())
    return list(findings)


def _print_faults(faults: Sequence[str], read: int) -> None:
    print(f"images read: {read:,}; broken, or of another size than annotated: {len(faults):,}")
    for fault in faults[:FAULTS_SHOWN]:
        print(f"  {fault}")
    if len(faults) > FAULTS_SHOWN:
        print(f"  and {len(faults) - FAULTS_SHOWN:,} more")
