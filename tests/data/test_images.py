"""Reading and finding image files: every common kind comes out as RGB, every broken one says why."""

import ctypes
import io
import os
import pickle
import struct
import sys
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event, Thread

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps
from small_data import colours

from ssd300_vgg16.data import decoder, images
from ssd300_vgg16.data.dataset import Note, Notes
from ssd300_vgg16.data.image_files import find_images
from ssd300_vgg16.data.images import (
    ImageError,
    decode_image,
    exif_orientation,
    image_size,
    network_inputs,
    read_image,
    reduction,
)
from ssd300_vgg16.errors import UserError

HEIGHT, WIDTH = 40, 60


def gradient() -> Image.Image:
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    return Image.fromarray(np.stack([x * 4, y * 6, 255 - x * 4], axis=-1).astype(np.uint8))


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def noise_jpeg(**options) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (120, 160, 3), dtype=np.uint8)
    return encoded(Image.fromarray(pixels), "JPEG", **options)


def with_thumbnail(jpeg: bytes) -> bytes:
    payload = b"Exif\0\0\xff\xd8\xff\xd9"
    return jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(payload) + 2) + payload + jpeg[2:]


def png_of_size(width: int, height: int) -> bytes:
    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")


@pytest.fixture
def write(tmp_path):
    def write_file(data: bytes, name: str = "image.bin") -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        return path

    return write_file


@pytest.mark.parametrize(
    ("kind", "mode", "options"),
    [
        ("JPEG", "RGB", {"quality": 95}),
        ("JPEG", "RGB", {"quality": 95, "progressive": True}),
        ("JPEG", "L", {}),
        ("JPEG", "CMYK", {"quality": 95}),
        ("PNG", "RGB", {}),
        ("PNG", "L", {}),
        ("PNG", "LA", {}),
        ("PNG", "P", {}),
        ("PNG", "P", {"transparency": 3}),
        ("PNG", "1", {}),
        ("WEBP", "RGB", {"lossless": True}),
        ("BMP", "RGB", {}),
        ("BMP", "P", {}),
        ("BMP", "1", {}),
        ("TIFF", "RGB", {"compression": "tiff_lzw"}),
        ("TIFF", "CMYK", {}),
        ("TIFF", "1", {"compression": "group4"}),
        ("GIF", "P", {}),
        ("PPM", "RGB", {}),
        ("PPM", "L", {}),
    ],
)
def test_every_kind_has_the_colours_pillow_sees(write, kind, mode, options):
    data = encoded(gradient().convert(mode), kind, **options)
    image = read_image(write(data))
    assert (image.shape, image.dtype, image.flags.c_contiguous) == ((HEIGHT, WIDTH, 3), np.uint8, True)
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    assert np.abs(image.astype(int) - expected).max() <= 1


@pytest.mark.parametrize(("kind", "options"), [("PNG", {}), ("WEBP", {"lossless": True, "exact": True})])
def test_colour_under_transparency_is_kept(write, kind, options):
    image = gradient()
    alpha = Image.fromarray(np.tile(np.arange(WIDTH, dtype=np.uint8) * 4, (HEIGHT, 1)))
    transparent = Image.merge("RGBA", (*image.split(), alpha))
    np.testing.assert_array_equal(read_image(write(encoded(transparent, kind, **options))), np.asarray(image))


def test_first_frame_of_an_animation(write):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert read_image(write(data))[0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "MPO", "WEBP", "AVIF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_ignored_unless_upright(write, kind, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = write(encoded(gradient(), kind, exif=exif, quality=95))
    stored, upright = read_image(path), read_image(path, upright=True)
    assert np.abs(stored.astype(int) - np.asarray(gradient())).mean() < 3
    stored_as_image = Image.fromarray(stored)
    stored_as_image.getexif()[0x0112] = orientation
    np.testing.assert_array_equal(upright, np.asarray(ImageOps.exif_transpose(stored_as_image)))
    if kind in ("JPEG", "PNG", "MPO"):
        np.testing.assert_array_equal(upright, cv2.imread(str(path))[..., ::-1])  # as YOLO reads it
    assert upright.flags.c_contiguous
    assert (image_size(path), image_size(path, upright=True)) == ((HEIGHT, WIDTH), upright.shape[:2])
    assert exif_orientation(path) == orientation


@pytest.mark.parametrize("orientation", range(1, 9))
def test_tiff_is_turned_once_in_any_case(write, orientation):
    path = write(encoded(gradient(), "TIFF", tiffinfo={0x0112: orientation}))
    expected = np.asarray(ImageOps.exif_transpose(Image.open(path)))
    for upright in (False, True):
        np.testing.assert_array_equal(read_image(path, upright), expected)
        assert image_size(path, upright) == expected.shape[:2]
    assert exif_orientation(path) == 1


def test_a_file_is_turned_however_many_pixels_it_has(write, monkeypatch):
    """Pillow refuses large images, OpenCV far larger ones."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    exif = Image.Exif()
    exif[0x0112] = 6
    for kind in ("JPEG", "PNG", "WEBP"):
        assert read_image(write(encoded(gradient(), kind, exif=exif)), upright=True).shape == (WIDTH, HEIGHT, 3)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_no_damage_to_exif_data_harms_the_image(write, kind, recwarn):
    exif = Image.Exif()
    exif[0x0112], exif[0x010F], exif[0x011A] = 6, "maker" * 9, 72.0
    plain = encoded(gradient(), kind, exif=exif)
    start, end = plain.index(b"MM\0*") if b"MM\0*" in plain else plain.index(b"II*\0"), len(exif.tobytes()) - 6
    rng = np.random.default_rng(0)
    for _ in range(150):
        data = np.frombuffer(plain, dtype=np.uint8).copy()
        places = start + rng.integers(0, end, rng.integers(1, 9))
        data[places] = rng.choice([0, 1, 3, 6, 127, 255, *rng.integers(0, 256, 6)], len(places))
        path = write(data.tobytes())
        found = exif_orientation(path)
        try:
            upright, size = read_image(path, upright=True), image_size(path, upright=True)
        except ImageError:
            continue
        assert upright.shape[:2] == size == ((WIDTH, HEIGHT) if found > 4 else (HEIGHT, WIDTH))
    assert not recwarn.list


def test_pixels_are_not_decoded_for_an_orientation(write, monkeypatch):
    paths = [write(encoded(gradient(), kind), kind) for kind in ("JPEG", "PNG", "WEBP")]
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda _: pytest.fail("decoded by Pillow"))
    for path in paths:
        assert read_image(path, upright=True).shape[:2] == image_size(path, upright=True) == (HEIGHT, WIDTH)


def test_threads_silence_warnings_one_after_another():
    """The filters are those of the whole process: who came first would put back what the other has still changed."""
    before, came, go = list(warnings.filters), Event(), Event()

    def silence() -> None:
        with images._without_warnings():
            came.set()
            go.wait(30)

    other = Thread(target=silence)
    with images._without_warnings():
        other.start()
        assert not came.wait(0.2)
    go.set()
    other.join()
    assert came.is_set() and warnings.filters == before


@pytest.mark.parametrize("kind", ["GIF", "BMP", "PPM"])
def test_files_of_other_kinds_are_as_they_are(write, kind):
    exif = Image.Exif()
    exif[0x0112] = 6
    path = write(encoded(gradient(), kind, exif=exif))
    image = read_image(path, upright=True)
    np.testing.assert_array_equal(image, read_image(path))
    assert image_size(path, upright=True) == image_size(path) == image.shape[:2]
    assert exif_orientation(path) == 1


def exif_data(order="<", tag=0x0112, kind=3, value=6, entries=1):
    mark = b"II" if order == "<" else b"MM"
    entry = struct.pack(f"{order}HHIHH", tag, kind, 1, value, 0)
    return mark + struct.pack(f"{order}HIH", 42, 8, entries) + entry + bytes(4)


def app1(content):
    return b"\xff\xe1" + struct.pack(">H", len(content) + 2) + content


EXIF = b"Exif\0\0"
XMP = app1(b"http://ns.adobe.com/xap/1.0/\0<x tiff:Orientation='8'/>")


@pytest.mark.parametrize(
    ("segments", "orientation"),
    [
        pytest.param(app1(EXIF + exif_data("<")), 6, id="little end first"),
        pytest.param(app1(EXIF + exif_data(">")), 6, id="big end first"),
        pytest.param(XMP + app1(EXIF + exif_data()), 6, id="after other metadata"),
        pytest.param(XMP, 1, id="other metadata alone"),
        pytest.param(b"\xff\xff\xff" + app1(EXIF + exif_data()), 6, id="after fill bytes"),
        pytest.param(app1(EXIF + exif_data(tag=0x0110)), 1, id="another tag"),
        pytest.param(app1(EXIF + exif_data(kind=12)), 1, id="of another type"),
        pytest.param(app1(EXIF + exif_data(value=0)), 1, id="0"),
        pytest.param(app1(EXIF + exif_data(value=9)), 1, id="9"),
        pytest.param(app1(EXIF + exif_data(tag=1, entries=60000)), 1, id="more entries than there are"),
        pytest.param(app1(EXIF + exif_data()[:14]), 1, id="cut off"),
        pytest.param(app1(EXIF + b"II*\0\xff\xff\xff\xff"), 1, id="directory beyond the end"),
        pytest.param(app1(EXIF + b"??" + bytes(40)), 1, id="nonsense"),
        pytest.param(app1(EXIF), 1, id="empty"),
        pytest.param(b"", 1, id="none"),
    ],
)
def test_size_and_pixels_agree_whatever_the_exif_data(write, segments, orientation):
    jpeg = noise_jpeg()
    path = write(jpeg[:2] + segments + jpeg[2:])
    assert exif_orientation(path) == orientation
    shape = (160, 120) if orientation == 6 else (120, 160)
    assert image_size(path, upright=True) == read_image(path, upright=True).shape[:2] == shape


@pytest.mark.parametrize("name", ["ü 图像.png", "a[1]*.png", "-v.png", "new\nline.png", os.fsdecode(b"\xff\xfe.png")])
def test_odd_file_names(write, name):
    path = write(encoded(gradient(), "PNG"), name)
    assert read_image(path).shape == (HEIGHT, WIDTH, 3)
    assert read_image(str(path)).shape == (HEIGHT, WIDTH, 3)
    assert find_images([str(path)]) == [path]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        pytest.param(b"", "the file is empty", id="empty"),
        pytest.param(b"<!DOCTYPE html><title>404", "not an image", id="web page"),
        pytest.param(b"\0\0\0\x20ftypavif" + bytes(50), "damaged", id="AVIF"),
        pytest.param(b"\0\0\0\x20ftypmif1\0\0\0\0heic" + bytes(50), "pip install pillow-heif", id="HEIC"),
        pytest.param(b"RIFF\x24\0\0\0WAVEfmt ", "not an image", id="sound"),
        pytest.param(encoded(gradient(), "JPEG2000"), "unsupported format", id="JPEG 2000"),
        pytest.param(noise_jpeg()[:-2000], "its end is missing", id="JPEG"),
        pytest.param(noise_jpeg(progressive=True)[:-2000], "its end is missing", id="progressive JPEG"),
        pytest.param(noise_jpeg()[:-2000] + bytes(2000), "its end is missing", id="JPEG filled up with zeros"),
        pytest.param(noise_jpeg()[:100], "its end is missing", id="JPEG header"),
        pytest.param(with_thumbnail(noise_jpeg()[:-2000]), "its end is missing", id="thumbnail"),
        pytest.param(encoded(gradient(), "PNG")[:-20], "its end is missing", id="PNG"),
        pytest.param(encoded(gradient(), "PNG")[:-20] + bytes(20), "its end is missing", id="PNG filled up with zeros"),
        pytest.param(encoded(gradient(), "WEBP")[:-20], "its end is missing", id="WebP"),
        pytest.param(encoded(gradient(), "BMP")[:-2000], "truncated", id="BMP"),
        pytest.param(encoded(gradient(), "TIFF")[:-2000], "truncated", id="TIFF"),
        pytest.param(encoded(gradient(), "GIF")[:-500], "truncated", id="GIF"),
        pytest.param(b"GIF89a" + bytes(3), "image", id="GIF header"),
        pytest.param(b"BM" + bytes(60), "damaged", id="BMP of zeros"),
        pytest.param(png_of_size(60_000, 60_000), "too large", id="bomb"),
        pytest.param(png_of_size(2_000_000, 10), "damaged", id="wider than libpng's limit"),
    ],
)
def test_broken_files_say_why_and_nothing_is_printed(write, data, reason, capfd):
    path = write(data, "broken picture.jpg")
    with pytest.raises(ImageError) as error:
        read_image(path)
    assert str(path) in str(error.value)
    assert reason in str(error.value)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("end", [b"\0" * 5000, b"camera trailer", noise_jpeg()[:3000]])
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_bytes_after_the_end_are_fine(write, kind, end):
    data = encoded(gradient(), kind)
    expected = read_image(write(data, "clean"))
    np.testing.assert_array_equal(read_image(write(data + end, "trailed")), expected)


@pytest.mark.parametrize("data", [b"", b"text", noise_jpeg()[:10]])
def test_size_of_a_broken_file(write, data):
    for upright in (False, True):
        with pytest.raises(ImageError, match=r"image\.bin"):
            image_size(write(data), upright)
    assert exif_orientation(write(data)) == 1


@pytest.fixture
def album(tmp_path, monkeypatch):
    names = ("b.JPG", "a.png", "note.txt", ".hidden.png", "sub/c.webp", "sub/deep/d.tif", ".cache/e.png", "odd.data")
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("paths", "expected"),
    [
        (["."], ["a.png", "b.JPG", "sub/c.webp", "sub/deep/d.tif"]),
        (["sub"], ["sub/c.webp", "sub/deep/d.tif"]),
        (["b.JPG", "a.png", "./a.png", "sub/../a.png"], ["a.png", "b.JPG"]),
        (["odd.data"], ["odd.data"]),
        ([".hidden.png"], [".hidden.png"]),
        (["*.png"], ["a.png"]),
        (["*"], ["a.png", "b.JPG", "sub/c.webp", "sub/deep/d.tif"]),
        (["**/*.tif", "sub"], ["sub/c.webp", "sub/deep/d.tif"]),
        ([], []),
    ],
)
def test_find_images(album, paths, expected):
    assert [os.path.normpath(path) for path in find_images(paths)] == expected
    absolute = find_images([str(album / path) for path in paths])
    assert [os.path.normpath(path.relative_to(album)) for path in absolute] == expected


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("empty", "empty: no image in this folder or its sub-folders; looked for .avif, .bmp"),
        ("*.bmp", "*.bmp: no image in what this pattern matches; looked for .avif, .bmp"),
        ("x" * 5000, f"{'x' * 5000}: cannot be read: File name too long"),
        *((path, f"{path!r}: no such file or folder") for path in ("absent.jpg", "", "x\0y")),
    ],
)
def test_paths_without_images_are_named(album, path, said):
    with pytest.raises(UserError) as error:
        find_images(["a.png", path])
    assert str(error.value).startswith(said)


def test_a_link_is_an_image_of_its_own(album):
    (album / "link.png").symlink_to("a.png")
    assert [path.name for path in find_images(["*.png"])] == ["a.png", "link.png"]


@pytest.mark.parametrize(
    ("height", "width", "factor"),
    [(100, 9999, 1), (199, 200, 1), (200, 200, 2), (999, 399, 2), (400, 400, 4), (800, 801, 8), (9999, 9999, 8)],
)
def test_both_sides_keep_enough_pixels(height, width, factor):
    assert reduction(height, width, 100) == factor
    assert min(height, width) // factor >= 100


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}, {"exif": b"Exif\0\0II*\0"}])
@pytest.mark.parametrize(("min_side", "factor"), [(5, 8), (10, 4), (20, 2), (21, 1)])
def test_a_large_jpeg_is_decoded_smaller(write, options, min_side, factor):
    """Each pixel is the mean of a block of the file's, but for those at the lower and right edge."""
    pixels = np.asarray(gradient().resize((67, 41), Image.Resampling.BILINEAR))
    path = write(with_thumbnail(encoded(Image.fromarray(pixels), "JPEG", quality=95, **options)))
    found, plain = decode_image(path, min_side=min_side), read_image(path)
    assert found[1:3] == ((41, 67), factor)
    assert found.pixels.shape == (-(-41 // factor), -(-67 // factor), 3)
    rows, columns = 41 // factor, 67 // factor
    blocks = plain[: rows * factor, : columns * factor].reshape(rows, factor, columns, factor, 3)
    assert np.abs(found.pixels[:rows, :columns] - blocks.mean(axis=(1, 3))).mean() < 3
    np.testing.assert_array_equal(decode_image(path).pixels, plain)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_image_decoded_smaller_is_turned_all_the_same(write, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = write(encoded(gradient(), "JPEG", quality=95, exif=exif))
    found, plain = decode_image(path, upright=True, min_side=20), read_image(path, upright=True)
    assert found.size == plain.shape[:2] and found.factor == 2
    expected = cv2.resize(plain, found.pixels.shape[1::-1], interpolation=cv2.INTER_AREA)
    assert np.abs(found.pixels.astype(int) - expected).mean() < 3


@pytest.mark.parametrize("kind", ["PNG", "BMP", "WEBP", "GIF"])
def test_only_jpegs_are_decoded_smaller(write, kind):
    path = write(encoded(gradient(), kind))
    found = decode_image(path, min_side=1)
    np.testing.assert_array_equal(found.pixels, read_image(path))
    assert found[1:3] == ((HEIGHT, WIDTH), 1)


@pytest.mark.parametrize("cut", [3, 5, 25, 170, 200])
def test_a_jpeg_cut_in_its_header_is_no_crash(write, cut):
    data = noise_jpeg()[:cut] + b"\xff\xd9"
    with pytest.raises(ImageError):
        decode_image(write(data), min_side=1)


def test_heic_is_read_where_its_reader_is_installed(write, tmp_path, monkeypatch):
    """By a stand-in for the reader, which takes a PNG image behind HEIC's header."""
    (tmp_path / "pillow_heif.py").write_text(
        "from io import BytesIO\n"
        "from PIL import Image\n"
        "def register_heif_opener():\n"
        "    Image.init()\n"
        "    def accept(prefix): return prefix[8:12] == b'heic'\n"
        "    Image.register_open('HEIF', lambda file, name: Image.open(BytesIO(file.read()[16:])), accept)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(Image, "OPEN", dict(Image.OPEN))
    monkeypatch.setattr(Image, "ID", list(Image.ID))
    path = write(b"\0\0\0\x10ftypheic\0\0\0\0" + encoded(gradient(), "PNG"), "IMG_1.HEIC")
    try:
        np.testing.assert_array_equal(read_image(path, upright=True), np.asarray(gradient()))
        assert image_size(path) == (HEIGHT, WIDTH)
    finally:
        sys.modules.pop("pillow_heif", None)


@pytest.mark.parametrize(("suffix", "channels"), [(".png", 1), (".png", 3), (".tif", 1), (".tif", 3), (".pgm", 1)])
@pytest.mark.parametrize(("high", "bits"), [(200, 8), (1000, 10), (4095, 12), (4096, 14), (40_000, 16)])
def test_as_many_bits_are_kept_as_there_are(write, suffix, channels, high, bits):
    pixels = np.random.default_rng(0).integers(0, high + 1, (HEIGHT, WIDTH, channels), dtype=np.uint16)
    pixels[0, 0] = high
    decoded = decode_image(write(cv2.imencode(suffix, pixels)[1].tobytes()))
    expected = np.broadcast_to(pixels[..., ::-1] >> (bits - 8), (HEIGHT, WIDTH, 3))
    np.testing.assert_array_equal(decoded.pixels, expected)
    assert [note.detail for note in decoded.notes] == ([f"{bits} bits"] if bits < 16 else [])


def test_a_tiff_of_floats_is_what_opencv_makes_of_it(write):
    pixels = np.random.default_rng(0).random((HEIGHT, WIDTH, 3), dtype=np.float32)
    path = write(cv2.imencode(".tif", pixels)[1].tobytes())
    np.testing.assert_array_equal(read_image(path), cv2.imread(str(path))[..., ::-1])


def damaged_jpeg() -> bytes:
    jpeg = bytearray(noise_jpeg())
    jpeg[len(jpeg) // 2 : len(jpeg) // 2 + 40] = bytes(range(60, 100))
    return bytes(jpeg)


def with_chunk(png: bytes, name: bytes, content: bytes) -> bytes:
    """A PNG with a chunk of a wrong checksum before its pixels."""
    return png[:33] + len(content).to_bytes(4, "big") + name + content + b"\0\0\0\5" + png[33:]


def test_damage_within_is_noted_and_nothing_is_printed(write, capfd):
    path = write(damaged_jpeg(), "in the middle.jpg")
    (note,) = decode_image(path).notes
    assert str(note).startswith(f"{path}: the JPEG image is damaged") and note.harmful
    path = write(with_chunk(encoded(gradient(), "PNG"), b"gAMA", b"\0\0\0\1"), "chunk.png")
    decoded = decode_image(path)
    assert str(decoded.notes[0]) == f"{path}: a chunk of the PNG image is damaged, its pixels are not (gAMA: CRC error)"
    np.testing.assert_array_equal(decoded.pixels, np.asarray(gradient()))
    assert decode_image(write(noise_jpeg())).notes == ()
    png = bytearray(encoded(gradient(), "PNG"))
    png[-20] ^= 0x55
    with pytest.raises(ImageError, match=r"damaged, truncated .* \(IDAT: "):
        read_image(write(bytes(png)))
    assert capfd.readouterr() == ("", "")


def test_damage_is_noted_of_its_own_image_whatever_other_threads_read(write):
    paths = [write(damaged_jpeg() if number % 5 == 0 else noise_jpeg(), f"{number}.jpg") for number in range(40)]
    with ThreadPoolExecutor(4) as threads:
        noted = [bool(decoded.notes) for decoded in threads.map(decode_image, paths)]
    assert noted == [number % 5 == 0 for number in range(40)]


def test_what_others_print_meanwhile_is_not_lost(capfd):
    libc = ctypes.CDLL(None)
    with decoder._stderr.caught() as lines:
        libc.perror(b"somebody else")
    assert not lines
    libc.perror(b"afterwards")
    assert [line.partition(":")[0] for line in capfd.readouterr().err.splitlines()] == ["somebody else", "afterwards"]


def test_notes_are_told_once_and_not_without_end():
    told = []
    notes = Notes(told.append)
    for _ in range(2):
        notes.add([Note(f"{number}.jpg", "odd", "12 bits") for number in range(20)])
        notes.add([Note("0.jpg", "other")])
    assert told == [*(f"{number}.jpg: odd (12 bits)" for number in range(10)), "and more images: odd", "0.jpg: other"]


@pytest.mark.parametrize("read", [read_image, image_size, exif_orientation])
def test_what_is_no_file_is_named(tmp_path, read):
    os.mkfifo(tmp_path / "p.jpg")
    for path, reason in (
        (tmp_path / "absent.jpg", "no such file"),
        (tmp_path, "is a directory"),
        ("a\0b", "embedded null byte"),
        (tmp_path / "p.jpg", "a named pipe, not a file"),
        ("/dev/zero", "a device, not a file"),
    ):
        with pytest.raises(ImageError) as error:
            read(path)
        assert str(error.value).startswith(f"{path}: {reason}".replace("\0", "?"))


def test_an_error_is_the_same_in_the_parent_of_a_worker():
    again = pickle.loads(pickle.dumps(ImageError(Path("a.jpg"), "the file is empty")))
    assert (type(again), str(again)) == (ImageError, "a.jpg: the file is empty")


def test_images_of_any_sizes_become_one_batch():
    several = [colours(60, 90), colours(200, 130)[20:, :100], colours(31, 31)]
    batch = network_inputs(several, 48)
    assert batch.dtype == np.uint8 and batch.flags.c_contiguous
    for planes, image in zip(batch, several, strict=True):
        np.testing.assert_array_equal(planes, cv2.resize(image, (48, 48)).transpose(2, 0, 1))
