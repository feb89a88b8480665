"""Videos and cameras: telling which are meant, and reading their frames as RGB."""

import os
import re
from collections.abc import Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from ssd300_vgg16 import reading
from ssd300_vgg16.data.images import network_input
from ssd300_vgg16.errors import UserError
from ssd300_vgg16.reading import FRAME_PIXELS

VIDEO_SUFFIXES = frozenset(
    (".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".ts", ".mts", ".m2ts", ".wmv", ".flv", ".3gp")
)
USUAL_RATE = 30.0  # where a camera or file does not tell
MAX_RATE = 1000.0  # WebM's clock, which stands for the rate where there is none

# FFmpeg's lines name no file; what is wrong is told by the frames. Read when OpenCV opens its first video.
os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
_TEXT = re.compile(rb"(?!RIFF)[\t\r\n -~]{7}")  # how no container begins, and FFmpeg's lists of other files do


class Frame(NamedTuple):
    """A picture of a video, upright."""

    number: int  # from 0 up
    seconds: float  # after the first
    pixels: np.ndarray  # uint8 [H, W, 3], RGB
    prepared: np.ndarray  # as the network takes it


class Video:
    """A file, or the number of a camera, opened."""

    def __init__(self, source: str):
        self.source = source
        self.is_camera = _is_camera(source)
        self._capture = cv2.VideoCapture(*((int(source), cv2.CAP_V4L2) if self.is_camera else (source, cv2.CAP_FFMPEG)))
        self._capture.set(cv2.CAP_PROP_ORIENTATION_AUTO, 1)
        rate = self._capture.get(cv2.CAP_PROP_FPS)
        self.rate = rate if 0 < rate < MAX_RATE else USUAL_RATE  # frames per second
        self.frame_count = max(0, int(self._capture.get(cv2.CAP_PROP_FRAME_COUNT)))  # by the header; 0: unknown

    def frames(self, image_size: int) -> Iterator[Frame]:
        """Each frame, up to the end or to where the video is damaged."""
        start = None
        for number in count():
            bgr = self._read()
            if bgr is None:
                return
            clock = self._capture.get(cv2.CAP_PROP_POS_MSEC) / 1000
            start = clock if start is None else start
            pixels = cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB)
            # A bare stream of pictures has no clock.
            yield Frame(number, clock - start or number / self.rate, pixels, network_input(pixels, image_size))

    def _read(self) -> np.ndarray | None:
        read, bgr = self._capture.read()
        # Dozens of them are in memory at a time.
        if read and (pixels := bgr.shape[0] * bgr.shape[1]) > FRAME_PIXELS.value:
            raise UserError(f"{self.source}: a picture of this video has {FRAME_PIXELS.told(pixels)}")
        return bgr if read else None

    def refuse_without_frames(self) -> None:
        """Take a frame; raises UserError if there is none."""
        if self._read() is not None:
            return
        codec = int(self._capture.get(cv2.CAP_PROP_FOURCC)).to_bytes(4, "little").decode("ascii", "replace")
        if self.is_camera:
            reason = "no such file, and there is no camera of this number that gives pictures"
        elif self._capture.isOpened():
            reason = f"no picture of this video can be decoded: it is damaged, or of an unknown codec ({codec!r})"
        else:
            reason = "not a video, or its end is missing: no pictures can be found in it"
        raise UserError(f"{self.source}: {reason}")


def find_videos(paths: Sequence[str]) -> list[str]:
    """The videos that are named, or the camera; none if images are. Raises UserError for what cannot be read."""
    videos = [path for path in dict.fromkeys(paths) if _is_camera(path) or _is_video(path)]
    others = [path for path in paths if path not in videos]
    if videos and others:
        raise UserError(f"{others[0]} and {videos[0]}: images and videos are for calls of their own")
    if len(videos) > 1 and any(map(_is_camera, videos)):
        raise UserError("a camera has no end: it is for a call of its own")
    for path in videos:
        if not _is_camera(path):
            _refuse_text(path)
        Video(path).refuse_without_frames()
    return videos


def _refuse_text(path: str) -> None:
    """Raises UserError for what is no file, and for a list: FFmpeg would follow it, to a pipe or to any video."""
    try:
        with reading.opened(path) as file:
            head = file.read(7)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None
    if _TEXT.match(head):
        raise UserError(f"{path}: not a video but a text, such as a list of other files: name the videos themselves")


def _is_camera(path: str) -> bool:
    return path.isdecimal() and len(path) <= 2 and not Path(path).exists()


def _is_video(path: str) -> bool:
    return Path(path).suffix.lower() in VIDEO_SUFFIXES and not Path(path).is_dir()
