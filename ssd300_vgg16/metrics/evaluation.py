"""A detector on a data set: all its detections, and their AP."""

import io
import json
import math
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from ssd300_vgg16.data.dataset import UNKNOWN_CATEGORY, Dataset, Sample
from ssd300_vgg16.data.loader import EvaluationBatch, evaluation_batches
from ssd300_vgg16.data.sizes import scaled
from ssd300_vgg16.data.workers import WorkerPool
from ssd300_vgg16.distributed.world import ALONE, World
from ssd300_vgg16.errors import UserError
from ssd300_vgg16.metrics.coco_ap import UNKNOWN, CocoMetrics, coco_ap
from ssd300_vgg16.metrics.coco_results import CocoResults, coco_results, object_columns
from ssd300_vgg16.metrics.errors import Judgement, error_figures, judge
from ssd300_vgg16.metrics.operating_point import operating_points
from ssd300_vgg16.metrics.voc_ap import VocMetrics, voc_ap
from ssd300_vgg16.tiles import Begin, Tell, Tiling, begin_on_tiles, show_on, tell_nobody

DETECTION_COLUMNS = ("boxes", "scores", "labels")
# Images that a training's evaluation takes at a time: more take memory that the training needs, and are no faster.
MAX_BATCH = 32
# What those who see it for the first time want to know of an evaluation.
SUMMARY = {
    "AP50": "how well objects are found where a box that overlaps by half is good enough (1 is perfect)",
    "AP": "the same for tighter and tighter boxes, 50 % to 95 %: COCO's own figure",
    "AR_100": "the share of the objects that has a box at all, over the same overlaps",
    "VOC_mAP": "the VOC challenge's figure",
}


@dataclass(frozen=True)
class Evaluation:
    """metrics of the readable images; results: the detections; unreadable: messages about the others.

    voc: VOC's own AP, for data sets of its kind. nothing_to_find: why AP is UNKNOWN, if it is. tiling: the tiles that
    were detected on.
    """

    metrics: CocoMetrics
    results: CocoResults
    unreadable: list[str]
    voc: VocMetrics | None = None
    nothing_to_find: str | None = None
    tiling: Tiling | None = None

    def table(self) -> str:
        """COCO's tables; for VOC's data sets with its AP of each class, and its mAP; why there is no AP, if so."""
        parts = [self.metrics.table(self.voc.columns()), self.voc.table()] if self.voc else [self.metrics.table()]
        return "\n\n".join([*parts, f"AP is -1: {self.nothing_to_find}"] if self.nothing_to_find else parts)

    def summary(self) -> str:
        """The numbers to look at first, and what they say; why there are none, if so."""
        if self.nothing_to_find:
            return f"  AP not measured: {self.nothing_to_find}"
        figures = self.figures()
        rows = [f"  {name:<7} {figures[name]:.3f}  {meaning}" for name, meaning in SUMMARY.items() if name in figures]
        return "\n".join(rows)

    def figures(self) -> dict[str, float]:
        """COCO's twelve numbers by name, and for VOC's data sets its two mAPs."""
        voc = {"VOC_mAP": self.voc.mean_ap, "VOC07_mAP": self.voc.mean_ap_07} if self.voc else {}
        return {**self.metrics.statistics, **voc}

    @cached_property
    def judgement(self) -> Judgement:
        """What each detection is, and which objects are found."""
        return judge(self.results)

    def as_json(self) -> dict:
        """COCO's numbers, VOC's under "voc", the threshold of best F1 under "best_f1", "errors", and "tiles" if any."""
        return {
            **self.metrics.as_json(),
            **({"voc": self.voc.as_json()} if self.voc else {}),
            "best_f1": operating_points(self.results),
            "errors": error_figures(self.results, self.judgement),
            **({"tiles": asdict(self.tiling)} if self.tiling else {}),
        }


def evaluation_batch_size(batch_size: int, world: World) -> int:
    """Images that each process detects on at a time in a training with this batch over all of them."""
    return min(math.ceil(batch_size / world.world_size), MAX_BATCH)


class Interrupted(Exception):
    """Evaluation was told to stop before its end."""


def evaluate(
    begin: Begin,
    dataset: Dataset,
    image_size: int,
    batch_size: int,
    pool: WorkerPool,
    strict: bool = False,
    world: World = ALONE,
    stopping: Callable[[], bool] = lambda: False,
    tiling: Tiling | None = None,
) -> Evaluation | None:
    """Detect on every image of the data set and compute COCO's numbers, and VOC's for data sets of its kind.

    The batches are shared out among the processes of the world; the first of them returns what one process would
    have, the others None. Images that cannot be read are left out of the numbers and named; with strict they raise
    UserError. Interrupted is raised, by all of them, once stopping() is true in one.

    tiling: detect on tiles of the images too, batch_size at a time.
    """
    own_batches = slice(world.rank, None, world.world_size)
    share, trouble = _Share([], [], []), None
    hidden = None if world.is_first else True
    bar = tqdm(total=len(dataset.samples), desc="evaluate", unit="image", miniters=0, disable=hidden, leave=False)
    try:
        with bar:
            share = _detect_share(
                _on_tiles(begin, image_size, batch_size, tiling, partial(show_on, bar)) if tiling else begin,
                # Held by nobody else: when the evaluation stops, it takes its tasks out of the pool.
                evaluation_batches(
                    dataset.samples, batch_size, None if tiling else image_size, pool, strict, own_batches
                ),
                bar,
                world,
                stopping,
            )
    except UserError as error:
        trouble = error
    stopped, troubled = world.all_reduce(stopping(), trouble is not None)
    if trouble:
        raise trouble
    if troubled:
        raise UserError("stopped with the process that had trouble with the data")
    if stopped:
        raise Interrupted
    positions, detections, messages = _gather(world, share)
    # A stable sort: of one batch the messages stay in its order.
    unreadable = [message for _, message in sorted(messages, key=lambda pair: pair[0])]
    if not positions:
        raise UserError(f"{dataset.name}: not one of its {len(dataset.samples)} images could be read: {unreadable[:3]}")
    if not world.is_first:
        return None
    results = coco_results(dataset, positions, detections)
    about = f"average precision: {len(positions)} images, {len(results)} detections"
    with tqdm(desc=about, bar_format="{desc}", disable=None, leave=False):  # takes seconds for a million
        voc = voc_ap(dataset, positions, detections) if dataset.kind == "voc" else None
        metrics = coco_ap(results)
    nothing_to_find = _nothing_to_find(dataset, results.samples) if metrics.statistics["AP"] == UNKNOWN else None
    return Evaluation(metrics, results, unreadable, voc, nothing_to_find, tiling)


def _on_tiles(begin: Begin, image_size: int, batch_size: int, tiling: Tiling, tell: Tell = tell_nobody) -> Begin:
    """As begin, for images uint8 [B, H, W, 3] and the sizes that their boxes refer to."""

    def begin_on(images: np.ndarray, sizes_hw: np.ndarray) -> Callable[[], list[dict[str, np.ndarray]]]:
        finish = begin_on_tiles(begin, list(images), image_size, tiling, batch_size, tell)
        height, width = images.shape[1:3]
        return lambda: [
            {**each, "boxes": scaled(each["boxes"], (height, width), tuple(annotated))}
            for each, annotated in zip(finish(), sizes_hw.tolist(), strict=True)
        ]

    return begin_on


def _nothing_to_find(dataset: Dataset, samples: list[Sample]) -> str:
    """Why AP says nothing about these samples of the data set, in a sentence."""
    _, crowd, difficult = object_columns(samples, "crowd", "difficult")
    kinds = {
        "crowds": int(crowd.sum()),
        "difficult": int((difficult & ~crowd).sum()),
        "of an area that COCO does not count": int((~difficult & ~crowd).sum()),
    }
    if objects := len(crowd):
        reasons = [f"{'all' if count == objects else count} are {kind}" for kind, count in kinds.items() if count]
        said = f"none of the {objects} objects of {dataset.name} counts: {', '.join(reasons)}"
    else:
        said = f"{dataset.name} has no objects in the images that were read"
    unknown = dataset.problems.examples.get(UNKNOWN_CATEGORY, [])
    more = ", ..." if len(unknown) < dataset.problems.counts.get(UNKNOWN_CATEGORY, 0) else ""
    lacked = f"; left out, as the model lacks their classes: {', '.join(unknown)}{more}" if unknown else ""
    return f"{said}{lacked}"


class _Share(NamedTuple):
    """One process's detections; of the images that cannot be read, pairs of batch number and message."""

    positions: list[int]
    detections: list[dict[str, np.ndarray]]
    unreadable: list[tuple[int, str]]


def _detect_share(
    begin: Begin, batches: Iterable[EvaluationBatch], bar: tqdm, world: World, stopping: Callable[[], bool]
) -> _Share:
    """Detect on this process's batches, to their end or until stopping() is true; bar: of all processes' images."""
    share = _Share([], [], [])
    former: Callable[[], list] = list
    for number, batch in enumerate(batches):
        share.unreadable.extend((number * world.world_size + world.rank, message) for message in batch.unreadable)
        if len(batch.positions):
            begun = begin(batch.images, batch.sizes_hw)
            share.detections.extend(former())  # while a GPU computes this batch
            share.positions.extend(batch.positions.tolist())
            former = begun
        bar.update((len(batch.positions) + len(batch.unreadable)) * world.world_size)
        if stopping():
            break
    else:
        share.detections.extend(former())
    return share


def _gather(world: World, share: _Share) -> _Share:
    """The shares of all processes as one, positions and detections in the order of the data set."""
    if world.world_size == 1:
        return share
    # Detections as columns, and numpy's own format: a pickle from another host could run code here.
    columns = {
        name: np.concatenate([of_image[name] for of_image in share.detections]) if share.detections else np.empty(0)
        for name in DETECTION_COLUMNS
    }
    message = io.BytesIO()
    counts = np.array([len(of_image["scores"]) for of_image in share.detections], dtype=np.int64)
    told = np.frombuffer(json.dumps(share.unreadable).encode(), dtype=np.uint8)
    np.savez(message, positions=np.array(share.positions, dtype=np.int64), counts=counts, unreadable=told, **columns)
    by_position: dict[int, dict[str, np.ndarray]] = {}
    messages: list[tuple[int, str]] = []
    for content in world.all_gather(message.getvalue()):
        with np.load(io.BytesIO(content)) as part:
            ends = part["counts"].cumsum()[:-1]
            split = {name: np.split(part[name], ends) for name in DETECTION_COLUMNS}
            for number, position in enumerate(part["positions"].tolist()):
                by_position[position] = {name: split[name][number] for name in DETECTION_COLUMNS}
            messages += map(tuple, json.loads(part["unreadable"].tobytes()))
    positions = sorted(by_position)
    return _Share(positions, [by_position[position] for position in positions], messages)
