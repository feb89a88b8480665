"""One split of a data set inspected: its figures, and pictures of samples and problems."""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from tqdm import tqdm

from ssd300_vgg16.data.dataset import Dataset, Sample
from ssd300_vgg16.data.images import AS_STORED, ImageError, decode_image, exif_orientation, image_size
from ssd300_vgg16.data.sizes import read_as_annotated
from ssd300_vgg16.inspection import report
from ssd300_vgg16.inspection.figures import (
    Candidate,
    ClassCount,
    Contents,
    InputObjects,
    Marked,
    best_iou,
    class_counts,
    contents,
    lost_objects,
    marked_faults,
    marked_lost,
    objects_at_input,
    some_images,
)
from ssd300_vgg16.inspection.pictures import as_jpeg, choose_samples, draw_marked, draw_sample
from ssd300_vgg16.tile_samples import tile_samples
from ssd300_vgg16.tiles import Tiling

SAMPLES_PER_TURN = 8
OBJECTS_MATCHED = 10_000  # all of COCO's would take minutes, and change no figure by more than a percent
FAULTS_SHOWN = 20
PICTURES = 6  # of a kind of problem


# What is wrong with an image file, in a line that names it, or None; and the file with its EXIF orientation, if it has
# one that is not applied since the boxes refer to the pixels as stored, or None.
Finding = tuple[str | None, str | None]


@dataclass(frozen=True)
class Settings:
    """What to inspect with: the chosen network's default boxes, how many sample images, the seed they are drawn with,
    whether to read all images, and on which tiles objects are seen. train: the command to train on the data, or how it
    begins."""

    chosen: Candidate
    images: int
    seed: int
    read_all: bool
    tiling: Tiling | None = None
    train: str = "bash train.sh"


class Picture(NamedTuple):
    """An image with boxes: its file, what to say of it, and the picture; None if the file could not be read."""

    file: Path
    text: str
    jpeg: bytes | None


class Problem(NamedTuple):
    """A kind of problem, how many images have it, and pictures of some."""

    kind: str
    images: int
    pictures: list[Picture]


@dataclass(frozen=True)
class Fit:
    """How objects, some of the data set's, fit the default boxes: their highest IoU with those of each candidate [N],
    which are lost with the chosen ones, bool [N], and what this advises."""

    objects: InputObjects
    ious: dict[Candidate, np.ndarray]
    lost: np.ndarray
    advice: list[str]


@dataclass(frozen=True)
class Inspected:
    """All that was found of a split. objects: at the network's input, on tiles if there are any; tiles: a line on what
    these do; fit: None without objects; faults: of the image files, of which `read` were read; rotated: files whose
    EXIF rotation is not applied."""

    split: str
    dataset: Dataset
    contents: Contents
    classes: list[ClassCount]
    objects: InputObjects
    tiles: str | None
    fit: Fit | None
    read: int
    faults: list[str]
    rotated: list[str]
    problems: list[Problem]
    samples: list[Picture]

    def remarks(self, first: int = 0) -> list[str]:
        """Sentences on what is wrong, or odd, about the image files, from this fault on."""
        more = [f"and {len(self.faults) - FAULTS_SHOWN:,} more"] if len(self.faults) > FAULTS_SHOWN else []
        rotated = [report.describe_rotated(self.rotated)] if self.rotated else []
        return self.faults[first:FAULTS_SHOWN] + more + rotated


def on_tiles(dataset: Dataset, tiling: Tiling | None) -> Dataset:
    """The data set as a training on these tiles, if any, sees it."""
    return replace(dataset, samples=tuple(tile_samples(dataset.samples, tiling)))


def inspect_split(split: str, dataset: Dataset, settings: Settings, candidates: Sequence[Candidate]) -> Inspected:
    """Inspect a split, "train" or "val".

    candidates: networks that the chosen one is compared with, itself among them; none: no comparison, no advice.
    """
    size = settings.chosen.image_size
    objects, tiling = objects_at_input(dataset, size), settings.tiling
    tiled = on_tiles(dataset, tiling)
    seen = objects_at_input(tiled, size) if tiling else objects
    fit = _fit(seen, settings, candidates) if len(seen) else None
    if fit and candidates and not tiling:
        advised = report.tile_advice(objects, dataset.samples, settings.chosen, settings.train)
        fit = replace(fit, advice=[*fit.advice, *advised])
    names = {category.label: category.name for category in dataset.categories}
    chosen = choose_samples(objects, len(dataset.samples), settings.images, settings.seed)
    samples, findings = [], []
    for sample in (dataset.samples[index] for index in chosen):
        image, finding = read_checked(sample)
        samples.append(_sample_picture(sample, image, None, names))
        findings.append(finding)
    if settings.read_all:
        chosen = list(range(len(dataset.samples)))
        findings = list(tqdm(check_images(dataset.samples), total=len(chosen), unit="image", disable=None))
    faults = {index: fault for index, (fault, _) in zip(chosen, findings, strict=True) if fault}
    shown = [_faulty_picture(dataset.samples[index], faults[index], names) for index in list(faults)[:PICTURES]]
    problems = [Problem("image file that is broken, or of another size than annotated", len(faults), shown)]
    marked = {kind: (dataset, images) for kind, images in marked_faults(dataset).items()}
    if fit:
        marked["object that no default box learns"] = tiled, marked_lost(tiled, fit.objects, fit.lost, size)
    for kind, (of, images) in marked.items():
        shown = [_marked_picture(of.samples[one.image], one, names) for one in images[:PICTURES]]
        problems.append(Problem(kind, len(images), shown))
    return Inspected(
        split=split,
        dataset=dataset,
        contents=contents(dataset, objects),
        classes=class_counts(dataset, objects),
        objects=seen,
        tiles=_tiles(objects, seen, fit, settings, tiling) if tiling and fit else None,
        fit=fit,
        read=len(findings),
        faults=list(faults.values()),
        rotated=[rotation for _, rotation in findings if rotation],
        problems=[problem for problem in problems if problem.images],
        samples=samples,
    )


def _fit(all_objects: InputObjects, settings: Settings, candidates: Sequence[Candidate]) -> Fit:
    chosen = settings.chosen
    objects = some_images(all_objects, OBJECTS_MATCHED, settings.seed)
    ious = {}
    for candidate in candidates or [chosen]:
        scale = np.float32(candidate.image_size / chosen.image_size)
        ious[candidate] = best_iou(objects.boxes * scale, candidate.default_boxes)
    lost = lost_objects(objects, chosen.default_boxes)
    return Fit(objects, ious, lost, report.advice(objects, ious, lost, chosen) if candidates else [])


def _tiles(whole: InputObjects, tiled: InputObjects, fit: Fit, settings: Settings, tiling: Tiling) -> str:
    some, chosen = some_images(whole, OBJECTS_MATCHED, settings.seed), settings.chosen
    shares = report.share_fitting(fit.ious[chosen]), report.share_fitting(best_iou(some.boxes, chosen.default_boxes))
    return report.describe_tiles(tiling.side, chosen.image_size, (tiled, whole), shares)


def _sample_picture(sample: Sample, image: np.ndarray | None, fault: str | None, names: Mapping[int, str]) -> Picture:
    """An image with all its boxes; the text is the fault, or its size and how many objects it has."""
    if image is None:
        return Picture(sample.path, fault or "cannot be read", None)
    count = len(sample.labels)
    text = fault or f"{image.shape[1]} x {image.shape[0]}, {count} object{'s' * (count != 1)}"
    return Picture(sample.path, text, as_jpeg(draw_sample(sample, image, names)))


def _faulty_picture(sample: Sample, fault: str, names: Mapping[int, str]) -> Picture:
    """The file as it is, as far as it can be decoded, with the boxes as if it had the declared size."""
    try:
        image = decode_image(sample.path, sample.upright).pixels
    except ImageError:
        image = None
    return _sample_picture(sample, image, fault, names)


def _marked_picture(sample: Sample, marked: Marked, names: Mapping[int, str]) -> Picture:
    image, _ = read_checked(sample)
    place = ", ".join(f"{side:.6g}" for side in marked.boxes[0].tolist())
    more = f", and {len(marked.labels) - 1} more" if len(marked.labels) > 1 else ""
    tile = f", in the tile at {', '.join(map(str, sample.tile.window[:2]))}" if sample.tile else ""
    text = f"{names[int(marked.labels[0])]}: xyxy {place}{more}{tile}"
    return Picture(sample.path, text, None if image is None else as_jpeg(draw_marked(image, marked)))


def read_checked(sample: Sample) -> tuple[np.ndarray | None, Finding]:
    """The pixels that the boxes refer to, uint8 [H, W, 3] RGB or None, and what is wrong with the file."""
    try:
        decoded, annotated = read_as_annotated(sample)
        stored = image_size(sample.path, sample.upright)
        orientation = AS_STORED if sample.upright or decoded.size != stored else exif_orientation(sample.path)
    except ImageError as error:
        return None, (str(error), None)
    rotation = None if orientation == AS_STORED else f"{sample.path} (orientation {orientation})"
    damage = next((str(note) for note in decoded.notes if note.harmful), None)
    image = decoded.pixels
    if annotated != decoded.size:
        image = cv2.resize(image, annotated[::-1], interpolation=cv2.INTER_AREA)
    return image, (damage or _wrong_size(sample, *decoded.size), rotation)


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
