"""Videos from the command line: an annotated MP4 and a line of JSON for each frame, up to wherever it ends."""

import json
import os
import shutil
import signal
import struct
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from full_disk import full_disk
from small_data import start, untrained_run

from ssd300_vgg16 import Detector, infer
from ssd300_vgg16.data.videos import Frame, Video
from ssd300_vgg16.detection import video
from ssd300_vgg16.detector import Detections
from ssd300_vgg16.errors import UserError
from ssd300_vgg16.folders import held

RATE = 12.5
COUNT = 25
WIDTH, HEIGHT = 96, 64
NOTHING = Detections(boxes=np.zeros((0, 4)), scores=np.zeros(0), labels=np.zeros(0, dtype=np.int64), names=[])


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return untrained_run(tmp_path_factory.mktemp("weights"))


@pytest.fixture
def camera(monkeypatch):
    """Number 0, which is a file here, as no machine is sure to have one."""
    make_video()
    capture = cv2.VideoCapture
    monkeypatch.setattr(cv2, "VideoCapture", lambda source, *_: capture("clip.mp4" if source == 0 else source))


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("NPROC", raising=False)


def make_video(path="clip.mp4", codec="mp4v", count=COUNT):
    """Blue, with a white bar on top, getting lighter from frame to frame."""
    writer = cv2.VideoWriter(path, cv2.VideoWriter.fourcc(*codec), RATE, (WIDTH, HEIGHT))
    for number in range(count):
        image = np.full((HEIGHT, WIDTH, 3), (200, number * 200 // count, 0), dtype=np.uint8)
        image[:10] = 255
        writer.write(image)
    writer.release()
    return path


def frames_of(path):
    capture = cv2.VideoCapture(str(path))
    frames = []
    while (answer := capture.read())[0]:
        frames.append(answer[1])
    return frames, capture.get(cv2.CAP_PROP_FPS)


def lines_of(path):
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def options(weights, *more):
    return ["--weights", str(weights), "--device", "cpu", "--score-threshold", "0.01", "--max-detections", "3", *more]


def results():
    """Frames of the video and lines, which are equally many, once no part is left."""
    frames, lines = frames_of("detections/clip.mp4")[0], lines_of("detections/clip.jsonl")
    assert len(frames) == len(lines)
    assert sorted(path.name for path in Path("detections").iterdir()) == ["clip.jsonl", "clip.mp4"]
    return frames, lines


@pytest.mark.parametrize("engine", ["onnxruntime", "oneflow"])
def test_frames_and_their_detections(weights, capsys, engine):
    make_video()
    assert infer.main(options(weights, "clip.mp4", "-b", "4", "--engine", engine)) == 0
    frames, lines = results()
    assert frames_of("detections/clip.mp4")[1] == RATE
    assert [line["frame"] for line in lines] == list(range(COUNT))
    assert [line["time"] for line in lines] == pytest.approx([number / RATE for number in range(COUNT)])
    detector = Detector.load(weights, "cpu", engine="onnxruntime")
    ids = {category.label: category.id for category in detector.description.categories}
    for image, drawn, line in list(zip(frames_of("clip.mp4")[0], frames, lines, strict=True))[::6]:
        expected = detector(np.ascontiguousarray(image[..., ::-1]))
        np.testing.assert_allclose(line["boxes"], expected["boxes"][:3], atol=0.05)
        np.testing.assert_allclose(line["scores"], expected["scores"][:3], atol=1e-4)
        assert line["names"] == expected["names"][:3]
        assert line["category_ids"] == [ids[label] for label in expected["labels"][:3].tolist()]
        assert np.abs(drawn.astype(int) - image).mean() > 2, "nothing is drawn"
        assert np.median(np.abs(drawn[20:].astype(int) - image[20:])) < 10, "the colours are others"
    assert f"clip.mp4: {COUNT} frames, {3 * COUNT} detections, " in capsys.readouterr().out


def test_frames_are_seen_in_tiles(weights):
    make_video(count=3)
    assert infer.main(options(weights, "clip.mp4", "-b", "4", "--tiles", "64")) == 0
    detector = Detector.load(weights, "cpu", tiles=64)
    for image, line in zip(frames_of("clip.mp4")[0], results()[1], strict=True):
        expected = detector(np.ascontiguousarray(image[..., ::-1]))
        np.testing.assert_allclose(line["boxes"], expected["boxes"][:3], atol=0.05)
        np.testing.assert_allclose(line["scores"], expected["scores"][:3], atol=1e-4)


def test_a_rotated_video_is_taken_upright():
    content = bytearray(Path(make_video()).read_bytes())
    matrix = content.index(b"tkhd") + 44  # after the version, flags, times, track, duration, layer and volume
    assert struct.unpack_from(">9i", content, matrix)[:5] == (1 << 16, 0, 0, 0, 1 << 16)
    struct.pack_into(">9i", content, matrix, 0, 1 << 16, 0, -1 << 16, 0, 0, 0, 0, 1 << 30)
    Path("clip.mp4").write_bytes(content)
    pixels = next(Video("clip.mp4").frames(300)).pixels
    assert pixels.shape == (WIDTH, HEIGHT, 3)
    assert pixels[:, -9:].mean() > 230 > 100 > pixels[:, :-12].mean(), "what was on top is on the right"


def test_a_broken_video_ends_with_what_was_done(weights, capsys):
    content = Path(make_video("clip.avi", "MJPG", 40)).read_bytes()
    Path("clip.avi").write_bytes(content[: len(content) // 2])
    assert infer.main(options(weights, "clip.avi")) == 1
    frames, _ = results()
    assert 12 < len(frames) < 20
    seconds = f"{len(frames) / RATE:.1f} s of the 3.2 s that its header tells of"
    assert capsys.readouterr().err == (
        f"clip.avi: no more pictures after {seconds}: the rest is missing, damaged or cut away\n"
    )


def test_another_call_is_at_work_on_the_same_video(weights):
    make_video()
    Path("detections").mkdir()
    with (
        held(Path("detections"), ""),
        held(Path("detections/clip.part.jsonl"), ""),
        pytest.raises(UserError, match=r"another infer\.sh is at work .*: wait for its end"),
    ):
        infer.main(options(weights, "clip.mp4"))
    assert os.listdir("detections") == ["clip.part.jsonl"]  # noqa: PTH208 - nothing else was begun


def test_what_was_done_before_a_stop_is_kept(weights, tmp_path, no_hang):
    make_video(count=4000)
    process = start("infer", *options(weights, "clip.mp4"), folder=tmp_path)
    part = Path("detections/clip.part.jsonl")
    while not (part.exists() and part.stat().st_size):
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    output, errors = process.communicate()
    assert (process.returncode, errors) == (128 + signal.SIGTERM, "infer.sh: stopped by SIGTERM\n")
    frames, _ = results()
    assert 0 < len(frames) < 4000 and f"clip.mp4: {len(frames)} frames, " in output


def test_a_frame_is_seen_for_its_time():
    grey = np.full((HEIGHT, WIDTH, 3), 128, dtype=np.uint8)
    with video._Results(Path("clip"), 10.0) as made:
        for number, seconds in enumerate((0.0, 0.1, 0.1, 0.5, 0.6, 9999.0, 9999.1)):
            made.draw(Frame(number, seconds, grey * (number != 3), grey), NOTHING)
    made.keep()
    frames, _ = frames_of("clip.mp4")
    dark = [number for number, frame in enumerate(frames) if frame.mean() < 50]
    assert dark == [3, 4, 5] and len(frames) == made.written == 9, "a leap of the clock is none of the video"


def of_camera():
    """Lines of its only video, in which there are as many frames."""
    (path,) = Path("detections").glob("camera0-*.jsonl")
    lines = lines_of(path)
    assert len(frames_of(path.with_suffix(".mp4"))[0]) == len(lines)
    return lines


def test_a_camera_that_fails(weights, camera, capsys):
    assert infer.main(options(weights, "0")) == 1
    assert len(of_camera()) == COUNT
    assert "0: no more pictures after 2.0 s" in capsys.readouterr().err


def test_a_stop_is_a_cameras_ordinary_end(weights, camera, monkeypatch):
    add_line = video._Results.add_line

    def and_stop(results, frame, detections):
        add_line(results, frame, detections)
        if frame.number == 9:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(video._Results, "add_line", and_stop)
    assert infer.main(options(weights, "0")) == 0
    assert len(of_camera()) == 10


def test_a_disk_that_fills_up_leaves_a_whole_video(weights, monkeypatch):
    make_video()
    usage = [(0, 0, free) for free in [1 << 30] * 5 + [1 << 20]]
    monkeypatch.setattr(shutil, "disk_usage", lambda place: shutil._ntuple_diskusage(*usage.pop(0)))
    with pytest.raises(UserError, match="detections: its disk is full, the rest is left out: make room"):
        infer.main(options(weights, "clip.mp4"))
    assert len(results()[0]) == 6


def test_a_video_that_is_not_whole_is_not_given_its_name():
    make_video(count=200)
    with full_disk(at=4000), pytest.raises(UserError, match=r"made\.part\.mp4 could not be written whole: make room"):
        results = video._Results(Path("made"), RATE)
        with results:
            for frame in Video("clip.mp4").frames(300):
                results.draw(frame, NOTHING)
        results.keep()
    assert not Path("made.mp4").exists()


def make_inputs():
    make_video()
    make_video("other.mp4")
    Path("cut.mp4").write_bytes(Path("clip.mp4").read_bytes()[:-100])
    Path("text.mp4").write_text("a text")
    os.mkfifo("pipe.mp4")
    # FFmpeg would open the pipe, for ever.
    Path("list.mp4").write_text("ffconcat version 1.0\nfile pipe.mp4\n")
    Path("playlist.ts").write_text("#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\npipe.mp4\n#EXT-X-ENDLIST\n")
    make_video("none.avi", "MJPG", 0)
    Path("sub").mkdir()
    shutil.copy("clip.mp4", "sub/clip.mov")
    Path("detections").mkdir()
    shutil.copy("clip.mp4", "detections/other.mp4")


def test_a_video_of_pictures_that_are_too_large_is_refused(monkeypatch):
    make_video()
    monkeypatch.setenv("SSD_MAX_FRAME_PIXELS", str(WIDTH * HEIGHT - 1))
    with pytest.raises(UserError, match="a picture of this video has 6,144 pixels, where 6,143 is the limit"):
        infer.main(["--weights", "nowhere", "clip.mp4"])


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["text.mp4"], "text.mp4: not a video, or its end is missing"),
        (["cut.mp4"], "cut.mp4: not a video, or its end is missing"),
        (["none.avi"], "none.avi: no(t a| picture of this) video"),
        (["missing.mp4"], "missing.mp4: No such file or directory"),
        (["pipe.mp4"], "pipe.mp4: a named pipe, not a file"),
        (["list.mp4"], "list.mp4: not a video but a text, such as a list of other files"),
        (["playlist.ts"], "playlist.ts: not a video but a text, such as a list of other files"),
        (["clip.mp4", "photo.jpg"], "photo.jpg and clip.mp4: images and videos are for calls of their own"),
        (["63"], "63: no such file, and there is no camera of this number"),
        (["63", "clip.mp4"], "a camera has no end: it is for a call of its own"),
        (["clip.mp4", "sub/clip.mov"], r"clip.mp4 and sub/clip.mov would both become detections/clip\.mp4"),
        (["clip.mp4", "--output-dir", "."], r"--output-dir \.: clip.mp4 would be overwritten"),
        (["other.mp4"], "detections/other.mp4 was not made here, as there is no other.jsonl"),
        (["clip.mp4", "--resume"], "--resume: it is for images"),
        (["clip.mp4", "NPROC"], "NPROC: one process does all frames of a video"),
    ],
)
def test_what_makes_no_sense_is_refused_before_weights_are_read(arguments, problem, capfd, monkeypatch):
    make_inputs()
    if arguments[-1] == "NPROC":
        monkeypatch.setenv("NPROC", "2")
        arguments = arguments[:-1]
    with pytest.raises(UserError, match=problem):
        infer.main(["--weights", "nowhere", *arguments])
    assert capfd.readouterr() == ("", ""), "OpenCV and FFmpeg are quiet"
