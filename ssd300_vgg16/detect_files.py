"""Many images through a detector: read ahead of it by threads, drawn and written behind it by others.

Decoding, encoding and the network all run without Python's lock, so that the network hardly ever waits. How many
images are in memory at a time depends on the threads and the batch, not on how many there are.
"""

import json
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import cv2
import numpy as np

from ssd300_vgg16.data.images import ImageError, network_input, read_image
from ssd300_vgg16.detector import Detector

MOST_THREADS = 8


@dataclass(frozen=True)
class ImageFile:
    """A file to detect on, its number among all, counted from 1, and where its picture goes."""

    number: int
    path: Path
    picture: Path


def detect_each(
    detector: Detector, files: Iterable[ImageFile], most: int, batch_size: int = 1
) -> Iterator[tuple[ImageFile, dict | ImageError]]:
    """Each file, in order, with its detections, the `most` best, or why it could not be read.

    Its picture is being made then, and is there at the end, or when the iterator is closed. Raises OSError if one
    could not be written.
    """
    threads = min(MOST_THREADS, len(os.sched_getaffinity(0)))
    read = ahead(lambda file: _read(file, detector.image_size), files, threads, batch_size)
    with closing(read) as reading, Behind(threads) as drawing:
        while batch := list(islice(reading, batch_size)):
            for file, image, found in _detected(detector, batch, most):
                if image is not None:
                    drawing.do(_draw, image, found, file.picture)
                yield file, found


def ahead(work: Callable, items: Iterable, threads: int, asked_for: int) -> Iterator:
    """What work returns for each item, in order; done by threads, which begin a few more than the caller asks for."""
    waiting: deque[Future] = deque()
    with ThreadPoolExecutor(threads) as pool:
        try:
            for item in items:
                waiting.append(pool.submit(work, item))
                if len(waiting) >= asked_for + threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


class Behind:
    """Work done by threads behind the caller, who waits if he gets too far ahead, and is told of what went wrong.

    At the end of the block all of it is done.
    """

    def __init__(self, threads: int):
        self._most = threads
        self._pool = ThreadPoolExecutor(threads)
        self._waiting: deque[Future] = deque()

    def __enter__(self) -> "Behind":
        return self

    def __exit__(self, *exception) -> None:
        self._pool.shutdown()
        for future in self._waiting:
            future.result()

    def do(self, work: Callable, *arguments) -> None:
        """Have work(*arguments) done; raises what earlier work raised."""
        self._waiting.append(self._pool.submit(work, *arguments))
        while len(self._waiting) > self._most or (self._waiting and self._waiting[0].done()):
            self._waiting.popleft().result()


def _read(file: ImageFile, image_size: int) -> tuple[ImageFile, np.ndarray | ImageError, np.ndarray | None]:
    """With its pixels, and these as the network takes them; or with why they cannot be read."""
    try:
        image = read_image(file.path, upright=True)
    except ImageError as error:
        return file, error, None
    return file, image, network_input(image, image_size)


def _detected(detector: Detector, batch: list[tuple], most: int) -> list[tuple[ImageFile, np.ndarray | None, dict]]:
    """Files, pixels and detections of a batch from `_read`; of what could not be read, None and the error."""
    readable = [(image, prepared) for _, image, prepared in batch if prepared is not None]
    results = iter(())
    if readable:
        images = np.stack([prepared for _, prepared in readable])
        results = iter(detector.detect(images, np.array([image.shape[:2] for image, _ in readable])))
    rows = []
    for file, image, prepared in batch:
        if prepared is None:
            rows.append((file, None, image))
            continue
        found = {name: values[:most] for name, values in next(results).items()}
        rows.append((file, image, {**found, "names": detector.names(found["labels"])}))
    return rows


def _draw(image: np.ndarray, found: dict, picture: Path) -> None:
    from ssd300_vgg16.draw import draw_detections  # here, as matplotlib takes its time while the network is computed

    drawn = draw_detections(image, found["boxes"], found["scores"], found["names"], found["labels"])
    picture.parent.mkdir(parents=True, exist_ok=True)
    picture.write_bytes(cv2.imencode(".jpg", drawn[..., ::-1])[1].tobytes())


class JsonList:
    """A JSON file of a list that is written as it grows; it is `PATH.part` until the block ends, however it ends."""

    def __init__(self, path: Path):
        self.count = 0
        self._path = path
        self._part = path.with_name(f"{path.name}.part")

    def __enter__(self) -> "JsonList":
        self._file = self._part.open("w")
        self._file.write("[")
        return self

    def __exit__(self, *exception) -> None:
        with self._file:
            self._file.write("\n]\n")
        self._part.replace(self._path)

    def add(self, rows: list) -> None:
        """Add the rows, a line each."""
        for row in rows:
            self._file.write(f"{',' if self.count else ''}\n{json.dumps(row)}")
            self.count += 1
        self._file.flush()
