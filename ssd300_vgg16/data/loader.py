"""Batches of fixed shape, made from files in worker processes; each a function of (seed, epoch, sample index) alone.

Images are decoded anew in each epoch: workers outrun a GPU, and the system's page cache keeps the files.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from ssd300_vgg16.data.augment import POLICIES, augment
from ssd300_vgg16.data.dataset import Note, Sample
from ssd300_vgg16.data.images import DecodedImage, ImageError, network_input
from ssd300_vgg16.data.matching import DefaultBoxIndex, write_targets
from ssd300_vgg16.data.sizes import MAX_BYTES_KEPT, read_as_annotated, scaled
from ssd300_vgg16.data.workers import WorkerPool
from ssd300_vgg16.errors import UserError
from ssd300_vgg16.machine import refuse_shortage


@dataclass(frozen=True)
class TrainingBatch:
    """What one training step takes, and which files it came from.

    images uint8 [B, 3, S, S] RGB; offsets float32 [B, D, 4]; labels int64 [B, D]; files: paths, a text per image, of
    a tile with its place; unreadable: messages about images that could not be read. Such an image is blank, with no
    object: it counts as a background where these are trained on, and else its loss is zero.
    notes: what is odd about the others; whoever takes the batch has been told.
    """

    images: np.ndarray
    offsets: np.ndarray
    labels: np.ndarray
    files: list[str]
    unreadable: list[str]
    notes: list[Note] = field(default_factory=list)


@dataclass(frozen=True)
class BatchConfig:
    """How samples become batches: the same config, epoch and order give the same batches on any machine.

    labelled: how many samples, from the first on, are in every epoch (None: all); backgrounds: how many of the others.
    """

    batch_size: int
    augmentation: str
    seed: int
    default_boxes: np.ndarray
    image_size: int
    strict: bool = False
    labelled: int | None = None
    backgrounds: int = 0

    @property
    def min_side(self) -> int:
        """Pixels of an image's sides that are enough: what has far more is decoded smaller (`decode_image`).

        The same crops are drawn, and have at least as many pixels as the network's input but for one of rounding. What
        the network sees differs by the noise of single pixels: 2 to 3 levels of 255 in the mean where that is of 4 to
        12 (tests/data/test_augment.py, docs/benchmarks.md).
        """
        return POLICIES[self.augmentation].min_side(self.image_size)

    def images_per_epoch(self, samples: int) -> int:
        """How many of so many samples an epoch takes."""
        return samples if self.labelled is None else self.labelled + self.backgrounds


def steps_per_epoch(images: int, batch_size: int) -> int:
    """Whole batches in one epoch; a set smaller than a batch is repeated to fill one."""
    return max(1, images // batch_size)


def epoch_order(
    samples: int, batch_size: int, seed: int, epoch: int, labelled: int | None = None, backgrounds: int = 0
) -> np.ndarray:
    """Sample indices of an epoch, int64 [steps, batch_size]: shuffled; each once, unless the set is too small.

    labelled, backgrounds: as of BatchConfig. Which backgrounds is drawn anew for each epoch.
    """
    rng = np.random.default_rng([seed, epoch])
    labelled = samples if labelled is None else labelled
    order = rng.permutation(labelled + backgrounds)
    drawn = labelled + rng.permutation(samples - labelled)[:backgrounds]
    order = np.concatenate((np.arange(labelled), drawn))[order]
    steps = steps_per_epoch(len(order), batch_size)
    return np.resize(order, (steps, batch_size))


def tiles_together(order: np.ndarray, samples: Sequence[Sample]) -> np.ndarray:
    """Sample indices [N] in another order: tiles of some images, then those of others, so that each is decoded once.

    Some: as many as `read_as_annotated` keeps; their tiles are mixed as before. What is no tile stays near its place.
    """
    block_of: dict[Path, int] = {}
    block = used = 0
    for sample in (samples[index] for index in order):
        if sample.tile and sample.path not in block_of:
            needed = 3 * sample.tile.image.height * sample.tile.image.width
            if used and used + needed > MAX_BYTES_KEPT:
                block, used = block + 1, 0
            block_of[sample.path], used = block, used + needed
    if not block_of:
        return order
    near = np.arange(len(order)) * (block + 1) // len(order)
    blocks = [block_of[samples[index].path] if samples[index].tile else near[at] for at, index in enumerate(order)]
    return order[np.argsort(blocks, kind="stable")]


def training_batches(
    samples: Sequence[Sample],
    config: BatchConfig,
    epoch: int,
    pool: WorkerPool,
    start: int = 0,
    share: slice = slice(None),
) -> Iterator[TrainingBatch]:
    """The batches of one epoch, in order, from batch number `start` on; of each, the images of this share."""
    counts = config.labelled, config.backgrounds
    rows = epoch_order(len(samples), config.batch_size, config.seed, epoch, *counts)
    rows = tiles_together(rows.ravel(), samples).reshape(rows.shape)[start:, share]
    for batch in pool.map(partial(_training_batch, config, epoch), _tasks(samples, rows)):
        pool.notes.add(batch.notes)
        yield batch


@dataclass(frozen=True)
class _Task:
    """The samples of one batch, and their indices int64 [B] in the data set; named by its files if a worker dies."""

    indices: np.ndarray
    samples: list[Sample]

    def __str__(self) -> str:
        return ", ".join(map(str, self.samples))


def _tasks(samples: Sequence[Sample], rows: Iterable[np.ndarray]) -> Iterator[_Task]:
    # A task holds its own samples alone: what travels to a worker must not grow with the data set.
    return (_Task(indices, [samples[index] for index in indices]) for indices in rows)


def _training_batch(config: BatchConfig, epoch: int, task: _Task) -> TrainingBatch:
    default_boxes = DefaultBoxIndex(config.default_boxes)
    count, size = len(task.samples), config.image_size
    # The row of an unreadable image stays blank rather than being left out: compiled steps take batches of one shape.
    batch = TrainingBatch(
        images=np.zeros((count, 3, size, size), dtype=np.uint8),
        offsets=np.zeros((count, len(config.default_boxes), 4), dtype=np.float32),
        labels=np.zeros((count, len(config.default_boxes)), dtype=np.int64),
        files=[str(sample) for sample in task.samples],
        unreadable=[],
        notes=[],
    )
    for row, decoded, annotated in _readable(task, config.strict, batch.unreadable, batch.notes, config.min_side):
        # Of the sample rather than of the batch: the example is the same in any batch, process and worker.
        rng = np.random.default_rng([config.seed, epoch, int(task.indices[row])])
        boxes, labels = task.samples[row].objects(*annotated)
        boxes = scaled(boxes, annotated, decoded.size)
        boxes, labels = augment(decoded, boxes, labels, rng, config.augmentation, batch.images[row])
        write_targets(boxes, labels, default_boxes, batch.offsets[row], batch.labels[row])
    return batch


def _readable(
    task: _Task, strict: bool, unreadable: list[str], notes: list[Note], min_side: int | None = None
) -> Iterator[tuple[int, DecodedImage, tuple[int, int]]]:
    """Row, and what `read_as_annotated` gives, of each image that can be read; fills the lists.

    strict: raises ImageError for one that cannot, or that is damaged.
    """
    for row, sample in enumerate(task.samples):
        try:
            decoded, annotated = read_as_annotated(sample, min_side)
        except ImageError as error:
            refuse_shortage(error)
            if strict:
                raise
            unreadable.append(str(error))
            continue
        for note in decoded.notes:
            if strict and note.harmful:
                raise ImageError(note.path, note.what)
            notes.append(note)
        yield row, decoded, annotated


@dataclass(frozen=True)
class EvaluationBatch:
    """Images as the network wants them, and what is needed to put its boxes back into their pixels.

    positions: which of the samples these are, int64 [B]; images uint8 [B, 3, S, S], or a single one [1, H, W, 3] that
    is not resized; sizes_hw int64 [B, 2].
    unreadable: messages about samples that could not be read, which are not in the batch (it may even be empty).
    notes: what is odd about those that are; whoever takes the batch has been told.
    """

    positions: np.ndarray
    images: np.ndarray
    sizes_hw: np.ndarray
    unreadable: list[str]
    notes: list[Note]


def evaluation_batches(
    samples: Sequence[Sample],
    batch_size: int,
    image_size: int | None,
    pool: WorkerPool,
    strict: bool = False,
    share: slice = slice(None),
) -> Iterator[EvaluationBatch]:
    """All samples once, in order, resized and not augmented; the last batch may be smaller.

    image_size: None for images as they are, one at a time whatever the batch_size. share: which of the batches to give.
    """
    batch_size = batch_size if image_size else 1  # large ones, of any sizes
    starts = range(0, len(samples), batch_size)[share]
    positions = (np.arange(start, min(start + batch_size, len(samples))) for start in starts)
    for batch in pool.map(partial(_evaluation_batch, image_size, strict), _tasks(samples, positions)):
        pool.notes.add(batch.notes)
        yield batch


def _evaluation_batch(image_size: int | None, strict: bool, task: _Task) -> EvaluationBatch:
    rows: list[int] = []
    sizes: list[tuple[int, int]] = []
    unreadable: list[str] = []
    notes: list[Note] = []
    side = image_size or 0
    images = np.empty((len(task.samples), 3, side, side), dtype=np.uint8)
    for row, decoded, annotated in _readable(task, strict, unreadable, notes):
        if image_size:
            images[len(rows)] = network_input(decoded.pixels, image_size)
        else:
            images = decoded.pixels[None]
        rows.append(row)
        sizes.append(annotated)  # detections are held against boxes as they are annotated
    sizes_hw = np.array(sizes, dtype=np.int64).reshape(-1, 2)
    return EvaluationBatch(task.indices[rows], images[: len(rows)], sizes_hw, unreadable, notes)


def samples_with_objects(samples: Sequence[Sample]) -> list[Sample]:
    """Samples that hold an object to train on.

    Of the others the loss is zero in the published recipe, which leaves them out too: hard negatives are three for each
    positive of their image. Raises UserError if there is none.
    """
    kept = [sample for sample in samples if len(sample.objects(sample.height, sample.width)[0])]
    if not kept:
        raise UserError("none of the training images has an object to train on: check the annotation file")
    return kept


def backgrounds_of(samples: Sequence[Sample]) -> list[Sample]:
    """Samples that nothing is annotated on. Where a crowd is, or a box of no area, there is something to see."""
    return [sample for sample in samples if not (len(sample.labels) or sample.incomplete)]
