"""Many images through a detector: read ahead of it by threads, drawn behind it by others; in several processes too."""

import multiprocessing
import os
import signal
import traceback
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, suppress
from itertools import chain, pairwise
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
from tqdm import tqdm

from ssd300_vgg16.data.dataset import Category, Note, Notes
from ssd300_vgg16.data.images import ImageError, decode_image, network_input
from ssd300_vgg16.detection.files import ImageFile
from ssd300_vgg16.detection.results import write_crops, write_labels, write_picture
from ssd300_vgg16.detector import Detections, Detector
from ssd300_vgg16.errors import UserError
from ssd300_vgg16.machine import refuse_shortage
from ssd300_vgg16.signals import STOP_SIGNALS
from ssd300_vgg16.tiles import DEFAULT_OVERLAP, Tell, Tiling, tell_nobody

Item = TypeVar("Item")
Result = TypeVar("Result")
Results = Generator[tuple[ImageFile, Detections | ImageError], None, None]
MAX_THREADS = 8  # more would read no faster than the network computes


class _Image(NamedTuple):
    """Pixels of a file, and these as the network takes them."""

    pixels: np.ndarray
    prepared: np.ndarray
    notes: tuple[Note, ...]


def detect_each(
    detector: Detector,
    files: Iterable[ImageFile],
    max_detections: int | None,
    batch_size: int = 1,
    tell: Tell = tell_nobody,
) -> Results:
    """Each file, in order, with its best detections, or why it could not be read. tell: of the tiles that are done.

    Pictures are drawn meanwhile: all are there at the end, or when the generator is closed. Raises OSError if one
    could not be written. How many images are in memory depends on the threads and the batch, not on how many there are.
    """
    # Decoding, the network, and encoding all run without Python's lock: threads are enough to do them side by side.
    threads, ahead = min(MAX_THREADS, len(os.sched_getaffinity(0))), batch_size
    if detector.tiling:  # a large image's tiles take longer than to read and draw it, and its pixels much memory
        threads = ahead = 1
    images = read_ahead(lambda file: (file, _read(file.path, detector.image_size)), files, threads, ahead)
    batches = _batches(images, batch_size, detector.tiling)
    begun = ((batch, _begin(detector, [image for _, image in batch], batch_size, tell)) for batch in batches)
    notes = Notes(tqdm.write)
    with closing(images), Behind(threads) as drawing:
        # A pair is there when its second is: a GPU has begun on the next batch before this one's detections are chosen.
        for (batch, finish), _ in pairwise(chain(begun, [([], list)])):
            results = iter(finish())
            for file, image in batch:
                if isinstance(image, ImageError):
                    yield file, image
                    continue
                notes.add(image.notes)
                detections = detector.named(next(results), max_detections)
                drawing.do(_write, image.pixels, detections, file, detector.description.categories)
                yield file, detections


def _batches(
    images: Iterable[tuple[ImageFile, _Image | ImageError]], batch_size: int, tiling: Tiling | None
) -> Iterator[list[tuple[ImageFile, _Image | ImageError]]]:
    """As many images as a batch has; as few as have its tiles."""
    batch, tiles = [], 0
    for number, (file, image) in enumerate(images, start=1):
        batch.append((file, image))
        tiles += len(tiling.windows(*image.pixels.shape[:2])) if tiling and isinstance(image, _Image) else 1
        # Not beyond what is a batch without tiles: several processes share those out.
        if tiles >= batch_size or number % batch_size == 0:
            yield batch
            batch, tiles = [], 0
    if batch:
        yield batch


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
        refuse_shortage(error)
        return error
    return _Image(pixels, network_input(pixels, image_size), notes)


def _begin(detector: Detector, images: list[_Image | ImageError], batch_size: int, tell: Tell) -> Callable[[], list]:
    """Set the detector to work on those that could be read; what this returns waits for their detections."""
    readable = [image for image in images if isinstance(image, _Image)]
    if not readable:
        return list
    if detector.tiling:
        return detector.begin_on([image.pixels for image in readable], batch_size, tell)
    sizes_hw = np.array([image.pixels.shape[:2] for image in readable])
    return detector.begin(np.stack([image.prepared for image in readable]), sizes_hw)


def _write(image: np.ndarray, detections: Detections, file: ImageFile, categories: Sequence[Category]) -> None:
    """What belongs to an image, the picture last: where it is, all is."""
    if file.labels:
        write_labels(file, detections, image.shape, categories)
    if file.crops:
        write_crops(file.crops, file.picture.relative_to(file.output).with_suffix(""), image, detections)
    write_picture(file.picture, detections.drawn_on(image), file.output)


class DetectorProcesses:
    """Like a Detector that `detect_each` is called with, once: none of its processes is left then."""

    def __init__(
        self,
        count: int,
        weights: Path,
        device: str,
        score_threshold: float,
        engine: str,
        amp: bool = False,
        tiles: int | str | None = None,
        tile_overlap: float = DEFAULT_OVERLAP,
        mirror: bool = False,
    ):
        """device: "cpu", or "cuda" for GPUs 0 to count - 1. Raises what loading the detector raises in one of them."""
        self.device, self.score_threshold = device, score_threshold
        self._workers: list[_Worker] = []
        # For the processes, whose libraries read it when they are loaded.
        threads = os.environ.get("OMP_NUM_THREADS")
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)) // count)))
        try:
            for number in range(count):
                own = device if device == "cpu" else f"cuda:{number}"
                load = (weights, own, score_threshold, engine, amp, tiles, tile_overlap, mirror)
                self._workers.append(_Worker(f"process {number + 1} of {count}", load))
                # Before the next is started: the first makes the model that the others find kept.
                self.description = self._workers[-1].receive()
        except BaseException:
            self._close()
            raise
        finally:
            if threads is None:
                del os.environ["OMP_NUM_THREADS"]

    def detect_each(
        self, files: Iterable[ImageFile], max_detections: int | None, batch_size: int, tell: Tell = tell_nobody
    ) -> Results:
        """As `detect_each`. Raises UserError if a process dies."""
        files = list(files)
        # The same batches as in one process: on a GPU a result could depend on its neighbours in the last bit.
        batches = [files[start : start + batch_size] for start in range(0, len(files), batch_size)]
        count = len(self._workers)
        try:
            for number, worker in enumerate(self._workers):
                worker.send((list(chain(*batches[number::count])), max_detections, batch_size))
            for number, batch in enumerate(batches):
                for _ in batch:
                    yield self._workers[number % count].receive(tell)
            for worker in self._workers:  # pictures are drawn behind the results
                worker.receive()
        finally:
            self._close()

    def _close(self) -> None:
        """Let each finish the pictures of its images, and end."""
        for worker in self._workers:
            worker.connection.close()
        for worker in self._workers:
            worker.process.join()


class _Failure(NamedTuple):
    error: Exception
    trace: str


class _TilesDone(NamedTuple):
    done: int
    of: int


class _Worker:
    def __init__(self, name: str, load: tuple):
        self._name = name
        context = multiprocessing.get_context("spawn")  # a fork would take over the threads' locks
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_work, args=(theirs, load), daemon=True)
        # Ctrl-C is for the parent alone: a process begins with the signals that its parent has blocked.
        former = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
        try:
            self.process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, former)
            theirs.close()  # so that the pipe ends with the process

    def send(self, message: object) -> None:
        with suppress(BrokenPipeError):  # told by `receive`
            self.connection.send(message)

    def receive(self, tell: Tell = tell_nobody):
        """The next message but those for tell; raises the error that it is, if it is one that ended the process."""
        while isinstance(message := self._received(), _TilesDone):
            tell(*message)
        if isinstance(message, _Failure):
            raise message.error from RuntimeError(message.trace)  # where it came from there
        return message

    def _received(self):
        try:
            return self.connection.recv()
        except (EOFError, ConnectionError) as error:
            self.process.join()
            status = self.process.exitcode or 0
            how = f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"
            raise UserError(f"{self._name} {how}: if memory is short, run again with a smaller NPROC") from error


def _work(connection: Connection, load: tuple) -> None:
    """The life of a process; the parent's end of the pipe being closed is its end too."""
    try:
        detector = Detector.load(*load)
        connection.send(detector.description)
        files, max_detections, batch_size = connection.recv()

        def tell(done: int, of: int) -> None:
            connection.send(_TilesDone(done, of))

        with closing(detect_each(detector, files, max_detections, batch_size, tell)) as results:
            for result in results:
                connection.send(result)
        connection.send(None)  # all pictures are there
    except (EOFError, ConnectionError):
        pass
    except Exception as error:
        with suppress(ConnectionError):
            connection.send(_Failure(error, traceback.format_exc()))
