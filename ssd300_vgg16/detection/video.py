"""Videos, or what a camera sees, through a detector: an annotated MP4, and a line of JSON for each frame.

The next frames are decoded and the last ones drawn and encoded, each by a thread, while the network is computed.
"""

import json
import os
import shutil
import sys
import time
from collections.abc import Sequence
from contextlib import closing
from functools import partial
from itertools import count, islice, takewhile
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from ssd300_vgg16.data.videos import Frame, Video
from ssd300_vgg16.detection.pipeline import Behind, read_ahead
from ssd300_vgg16.detector import Detections, Detector
from ssd300_vgg16.errors import Stopped, UserError, told
from ssd300_vgg16.files import GrowingFile, new_file
from ssd300_vgg16.folders import held, make_folder
from ssd300_vgg16.signals import StopRequest
from ssd300_vgg16.tiles import show_on

CODEC = "mp4v"  # the one for MP4 that OpenCV's wheel encodes fast; it has no H.264
MAX_PAUSE = 10.0  # seconds for which a frame may stand still; more is a fault of the clock
MISSING = 1.0  # seconds between a video's end and what its header says, from which on it counts as broken
ROOM = 16 << 20  # bytes that are left free on the disk: an MP4 whose end cannot be written cannot be played


def result_places(videos: Sequence[str], output: Path) -> list[Path]:
    """Where the results of each go, without a suffix. Raises UserError if something else would be overwritten."""
    places: dict[Path, str] = {}
    for video in videos:
        # A camera's are never overwritten: they could not be made again.
        place = output / (f"camera{video}-{time.strftime('%Y%m%d-%H%M%S')}" if video.isdecimal() else Path(video).stem)
        made, lines = Path(f"{place}.mp4"), Path(f"{place}.jsonl")
        if place in places:
            raise UserError(f"{places[place]} and {video} would both become {made}: name them in two calls")
        if os.path.realpath(made) == os.path.realpath(video):
            raise UserError(f"--output-dir {output}: {video} would be overwritten; name another folder")
        if made.exists() and not lines.exists():
            raise UserError(f"{made} was not made here, as there is no {lines.name}: name another --output-dir")
        places[place] = video
    return list(places)


def detect_on_videos(
    detector: Detector, videos: Sequence[str], places: Sequence[Path], max_detections: int | None, batch_size: int
) -> int:
    """Write PLACE.mp4 and PLACE.jsonl for each; returns the exit status: 0, or 1 if one ends early.

    Raises Stopped after a signal, which is a camera's ordinary end.
    """
    problems = []
    with StopRequest() as stop:
        for video, place in zip(map(Video, videos), places, strict=True):
            make_folder(place.parent, place.parent)
            busy = f"{place.parent}: another infer.sh is at work there: wait for its end, or name another --output-dir"
            with held(place.parent, busy):
                problem = _detect_on(detector, video, place, max_detections, batch_size, stop)
            if problem:
                problems.append(f"{video.source}: {problem}")
            if stop.made:
                break
    for problem in problems:
        print(problem, file=sys.stderr)
    if stop.signal_number is not None and not video.is_camera:
        raise Stopped(stop.signal_number)
    return 1 if problems else 0


def _detect_on(
    detector: Detector, video: Video, place: Path, max_detections: int | None, batch_size: int, stop: StopRequest
) -> str | None:
    """Write the results of one video; returns why they end early, if not by the stop."""
    decoded = video.frames(detector.image_size)
    # One thread each: a video is decoded and encoded in order.
    frames = 1 if detector.tiling else batch_size  # the tiles of one fill a batch
    batches = read_ahead(lambda _: list(islice(decoded, frames)), count(), 1, 1)
    bar = tqdm(total=video.frame_count or None, unit="frame", desc=video.source, miniters=0, disable=None)
    done, seconds, full, start = 0, 0.0, False, time.perf_counter()
    with _Results(place, video.rate) as results, bar, closing(batches), Behind(1) as drawing:
        for batch in takewhile(len, batches):
            if detector.tiling:
                detected = detector.begin_on([frame.pixels for frame in batch], batch_size, partial(show_on, bar))()
            else:
                sizes_hw = np.array([frame.pixels.shape[:2] for frame in batch])
                detected = detector.detect(np.stack([frame.prepared for frame in batch]), sizes_hw)
            for frame, each in zip(batch, detected, strict=True):
                detections = detector.named(each, max_detections)
                drawing.do(results.draw, frame, detections)
                results.add_line(frame, detections)
            done, seconds = batch[-1].number + 1, batch[-1].seconds + 1 / video.rate
            bar.update(len(batch))
            full = shutil.disk_usage(place.parent).free < ROOM
            if stop.made or full:
                break
    if not done:
        return "it gives no pictures any more"
    speed = done / (time.perf_counter() - start)
    repeated = f" ({results.written - done} repeated to keep the time)" if results.written > done else ""
    places = results.keep()
    print(f"{video.source}: {done} frames{repeated}, {results.detections} detections, {speed:.1f} frames/s: {places}")
    length = video.frame_count / video.rate
    if full:
        raise UserError(f"{place.parent}: its disk is full, the rest is left out: make room, or name another")
    if stop.made or (seconds + MISSING >= length and not video.is_camera):
        return None
    of_all = f" of the {length:.1f} s that its header tells of" if length else ""
    return f"no more pictures after {seconds:.1f} s{of_all}: the rest is missing, damaged or cut away"


def part_of(place: Path, kind: str) -> Path:
    """What a result is called until it is kept."""
    return place.with_name(f"{place.name}.part.{kind}")


class _Results:
    """PLACE.mp4 and PLACE.jsonl, which are called PLACE.part.mp4 and PLACE.part.jsonl until they are kept."""

    def __init__(self, place: Path, rate: float):
        self.written = self.detections = 0  # frames in the video; objects in them
        self._place, self._rate = place, rate
        self._video, self._lines = (part_of(place, kind) for kind in ("mp4", "jsonl"))

    def __enter__(self) -> "_Results":
        self._file = GrowingFile(self._lines)
        self._writer = cv2.VideoWriter()
        return self

    def __exit__(self, *exception: object) -> None:
        self._writer.release()
        self._file.close()

    def draw(self, frame: Frame, detections: Detections) -> None:
        """The frame with its boxes, as often as it takes to be seen in its time; once at least."""
        drawn = detections.drawn_on(frame.pixels)
        if not self.written:
            self._size = drawn.shape[1::-1]
            self._writer.open(str(new_file(self._video)), cv2.VideoWriter.fourcc(*CODEC), self._rate, self._size)
        times = round(frame.seconds * self._rate) + 1 - self.written
        for _ in range(times if 1 <= times <= MAX_PAUSE * self._rate else 1):
            self._writer.write(cv2.resize(drawn[..., ::-1], self._size))  # a stream may change its size
            self.written += 1

    def add_line(self, frame: Frame, detections: Detections) -> None:
        """Boxes are xyxy in pixels of the upright frame."""
        assert detections.category_ids is not None  # a detector knows them
        row = {
            "frame": frame.number,
            "time": round(frame.seconds, 4),
            "boxes": [[round(value, 2) for value in box] for box in detections.boxes.tolist()],
            "scores": [round(score, 5) for score in detections.scores.tolist()],
            "category_ids": detections.category_ids.tolist(),
            "names": detections.names,
        }
        try:
            self._file.add(f"{json.dumps(row)}\n".encode())
        except OSError as error:
            raise UserError(f"{told(error)}; it holds the frames so far") from error
        self.detections += len(detections.names)

    def keep(self) -> str:
        """Give them their names, which are returned. Raises UserError if the video is not whole."""
        # OpenCV's writer says nothing of what it could not write.
        if cv2.VideoCapture(str(self._video), cv2.CAP_FFMPEG).get(cv2.CAP_PROP_FRAME_COUNT) != self.written:
            raise UserError(f"{self._video} could not be written whole: make room on its disk; {self._lines} is whole")
        for part in (self._lines, self._video):  # a video that is there is complete
            part.replace(f"{self._place}{part.suffix}")
        return f"{self._place}.mp4 and {self._place.name}.jsonl"
