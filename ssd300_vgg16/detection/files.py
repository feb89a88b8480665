"""Many images through a detector: read ahead of it by threads, drawn and written behind it by others.

`read_ahead` and `Behind` know nothing of one another. To be rid of the first, write `map(work, items)` in its place; of
the second, draw where `do` is called.
"""

import json
import os
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import chain, count, islice, repeat
from pathlib import Path
from typing import TypeVar

import cv2
import numpy as np
from tqdm import tqdm

from ssd300_vgg16.data.dataset import Category, Note, Notes
from ssd300_vgg16.data.images import ImageError, decode_image, network_input
from ssd300_vgg16.detection.formats import write_crops, write_labels
from ssd300_vgg16.detector import Detections, Detector
from ssd300_vgg16.errors import UserError
from ssd300_vgg16.files import is_inside, open_atomically, told
from ssd300_vgg16.text import listed

Item = TypeVar("Item")
Result = TypeVar("Result")
LABELS, CROPS = "labels", "crops"  # folders, called so by YOLOv5 too
_CLOSED = b"\n]\n"
MAX_THREADS = 8  # more would read no faster than the network computes


@dataclass(frozen=True)
class ImageFile:
    """A file to detect on, its number among all, counted from 1, and where its picture goes.

    labels: where YOLO's text goes too. crops: the folder beside the pictures that cut out objects go to too.
    """

    number: int
    path: Path
    picture: Path
    labels: Path | None = None
    crops: Path | None = None


def image_files(images: list[Path], output: Path, save_txt: bool, save_crop: bool) -> list[ImageFile]:
    """The images, and where what belongs to each goes: below output, as they lie below the folder that they share.

    Raises UserError if something would overwrite an image or another's.
    """
    places = [Path(os.path.abspath(image)) for image in images]  # noqa: PTH100 - resolve() would follow links
    base = os.path.commonpath([place.parent for place in places])
    # Other formats keep their suffix, as a.jpg and a.png may lie side by side; and so may a.png and a.png.jpg.
    taken = {place for place in places if place.suffix == ".jpg"}
    names = {}
    for place in places:
        name = place
        while place.suffix != ".jpg" and (name == place or name in taken):
            name = name.with_name(f"{name.name}.jpg")
        taken.add(name)
        names[place] = name
    pictures = [output / names[place].relative_to(base) for place in places]
    lost = set(map(os.path.realpath, pictures)) & set(map(os.path.realpath, places))
    if lost:
        raise UserError(f"--output-dir {output}: a picture would overwrite the image {min(lost)}; name another folder")
    files = list(map(ImageFile, count(1), images, pictures))
    if save_txt:
        labels = [output / LABELS / place.relative_to(base).with_suffix(".txt") for place in places]
        if len(set(labels)) < len(labels):
            twice = Counter(labels).most_common(1)[0][0]
            some = [str(image) for image, label in zip(images, labels, strict=True) if label == twice]
            raise UserError(f"--save-txt: {listed(some)} would share {twice}: give each a name of its own")
        files = [replace(file, labels=label) for file, label in zip(files, labels, strict=True)]
    if save_crop:
        crops = output / CROPS
        if inside := [path for path in (*places, *pictures) if is_inside(path, crops)]:
            raise UserError(f"--save-crop: {inside[0]} is in {crops}, where crops go; name another --output-dir")
        files = [replace(file, crops=crops) for file in files]
    return files


@dataclass(frozen=True)
class _Image:
    """Pixels of a file, and these as the network takes them."""

    pixels: np.ndarray
    prepared: np.ndarray
    notes: tuple[Note, ...]


Batch = list[tuple[ImageFile, _Image | ImageError]]


def detect_each(
    detector: Detector, files: Iterable[ImageFile], max_detections: int, batch_size: int = 1
) -> Generator[tuple[ImageFile, Detections | ImageError], None, None]:
    """Each file, in order, with its best detections, or why it could not be read.

    Pictures are drawn meanwhile: all are there at the end, or when the generator is closed. Raises OSError if one
    could not be written. How many images are in memory depends on the threads and the batch, not on how many there are.
    """
    # Decoding, the network, and encoding all run without Python's lock: threads are enough to do them side by side.
    threads = min(MAX_THREADS, len(os.sched_getaffinity(0)))
    images = read_ahead(lambda file: (file, _read(file.path, detector.image_size)), files, threads, batch_size)
    notes = Notes(tqdm.write)
    with closing(images), Behind(threads) as drawing:
        for batch, finish in _begun_ahead(detector, iter(lambda: list(islice(images, batch_size)), [])):
            results = iter(finish())
            for file, image in batch:
                if isinstance(image, ImageError):
                    yield file, image
                    continue
                notes.add(image.notes)
                detections = detector.named(next(results), max_detections)
                drawing.do(_write, image.pixels, detections, file, detector.description.categories)
                yield file, detections


def read_ahead(
    work: Callable[[Item], Result], items: Iterable[Item], threads: int, batch_size: int
) -> Generator[Result, None, None]:
    """What work returns for each item, in order; threads work on a batch and a few more than the caller has taken."""
    waiting: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        try:
            for item in items:
                waiting.append(pool.submit(work, item))
                if len(waiting) >= batch_size + threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:  # if the caller stops early, what was not begun is not done
            pool.shutdown(cancel_futures=True)


class Behind:
    """Work done by threads while the caller goes on; at the end of the block all of it is done."""

    def __init__(self, threads: int) -> None:
        self._max_waiting = threads
        self._pool = ThreadPoolExecutor(threads)
        self._waiting: deque[Future] = deque()

    def __enter__(self) -> "Behind":
        return self

    def __exit__(self, *exception: object) -> None:
        self._pool.shutdown()
        for future in self._waiting:
            future.result()

    def do(self, work: Callable, *arguments: object) -> None:
        """Have work(*arguments) done; waits if much is left to do, and raises what earlier work raised."""
        self._waiting.append(self._pool.submit(work, *arguments))
        # A slow disk holds the caller up: else images would pile up in memory.
        while len(self._waiting) > self._max_waiting or (self._waiting and self._waiting[0].done()):
            self._waiting.popleft().result()


def _read(path: Path, image_size: int) -> _Image | ImageError:
    try:
        pixels, _, _, notes = decode_image(path, upright=True)
    except ImageError as error:
        return error
    return _Image(pixels, network_input(pixels, image_size), notes)


def _begun_ahead(detector: Detector, batches: Iterable[Batch]) -> Iterator[tuple[Batch, Callable[[], list]]]:
    """Each batch, and what waits for its detections; a GPU has begun on the next one by then."""
    waiting: deque[tuple[Batch, Callable[[], list]]] = deque()
    for batch in batches:
        waiting.append((batch, _begun(detector, [image for _, image in batch if isinstance(image, _Image)])))
        if len(waiting) > 1:
            yield waiting.popleft()
    yield from waiting


def _begun(detector: Detector, images: list[_Image]) -> Callable[[], list]:
    if not images:
        return list
    sizes_hw = np.array([image.pixels.shape[:2] for image in images])
    return detector.begin(np.stack([image.prepared for image in images]), sizes_hw)


def _write(image: np.ndarray, detections: Detections, file: ImageFile, categories: Sequence[Category]) -> None:
    """What belongs to an image, the picture last: where it is, all is."""
    if file.labels:
        write_labels(file.labels, detections, image.shape, categories)
    if file.crops:
        write_crops(file.crops, file.picture.relative_to(file.crops.parent).with_suffix(""), image, detections)
    _draw(image, detections, file.picture)


def _draw(image: np.ndarray, detections: Detections, picture: Path) -> None:
    drawn = detections.drawn_on(image)
    picture.parent.mkdir(parents=True, exist_ok=True)
    with open_atomically(picture, sync=False) as file:  # a picture that is there is whole
        file.write(cv2.imencode(".jpg", drawn[..., ::-1])[1].tobytes())


class JsonList:
    """A JSON file of a list that is written as it grows: `PATH.part` until the block ends, whole at any time.

    After an error it stays `PATH.part`: it must not look complete. end: of the rows that are there and stay, their
    number is `count`.
    """

    def __init__(self, path: Path, end: int = 0, count: int = 0) -> None:
        self.count = count
        self._path = path
        self._part = self.part_of(path)
        self._end = end  # of the rows, behind which the list is closed

    @staticmethod
    def part_of(path: Path) -> Path:
        """What the list is called while it grows."""
        return path.with_name(f"{path.name}.part")

    def __enter__(self) -> "JsonList":
        self._file = self._part.open("r+b" if self._end else "wb")
        self._file.truncate(self._end)
        self._write("" if self._end else "[")
        return self

    def __exit__(self, kind: type[BaseException] | None, *exception: object) -> None:
        self._file.close()
        if kind is None:
            self._part.replace(self._path)

    def add(self, rows: list) -> None:
        """Add the rows, a line each. Raises UserError if they cannot be written; those before are then whole."""
        commas = chain(["," if self.count else ""], repeat(","))
        self._write("".join(f"{comma}\n{json.dumps(row)}" for comma, row in zip(commas, rows, strict=False)))
        self.count += len(rows)

    def _write(self, text: str) -> None:
        content = text.encode()
        try:
            self._put(content)
        except OSError as error:
            # The former end is there already, on a full disk too: it is written over itself.
            self._file.truncate(self._end + len(_CLOSED))
            if self._end:
                self._put(b"")
            raise UserError(f"{self._part}: {told(error)}; it holds the {self.count} detections so far") from error
        self._end += len(content)

    @staticmethod
    def rows(path: Path) -> Iterator[tuple[dict, int]]:
        """The rows in the file, one at a time, and where in it each ends; those before a line that is cut off."""
        place = 0
        with path.open("rb") as file:
            for line in file:
                row = line.rstrip(b",\n")
                if row.startswith(b"{"):
                    try:
                        yield json.loads(row), place + len(row)
                    except ValueError:
                        return
                place += len(line)

    def _put(self, content: bytes) -> None:
        view = memoryview(content + _CLOSED)
        place = self._end
        while view:
            written = os.pwrite(self._file.fileno(), view, place)
            place, view = place + written, view[written:]
