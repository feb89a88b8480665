"""Headers of images: sizes that no photograph has are refused undecoded, and what is claimed is not believed."""

import io
import struct
import time
import zlib

import pytest
from foreign_weights import less_memory_than
from PIL import Image

from ssd300_vgg16.data.image_headers import plain_png
from ssd300_vgg16.data.images import ImageError, decode_image, exif_orientation, image_size, read_image

WIDTH, HEIGHT = 60, 40


def encoded(kind, **options):
    file = io.BytesIO()
    Image.effect_mandelbrot((WIDTH, HEIGHT), (-2, -1, 1, 1), 50).convert("RGB").save(file, kind, **options)
    return file.getvalue()


def replaced(data, place, content):
    return data[:place] + content + data[place + len(content) :]


def jpeg(width, height):
    data = encoded("JPEG")
    return replaced(data, data.index(b"\xff\xc0") + 5, struct.pack(">HH", height, width))


def tiff(width, height):
    data, sizes = encoded("TIFF"), {0x0100: (WIDTH, width), 0x0101: (HEIGHT, height)}
    for tag, (was, is_now) in sizes.items():
        for kind in (3, 4):
            entry = struct.pack("<HHI", tag, kind, 1)
            data = data.replace(entry + struct.pack("<I", was), struct.pack("<HHII", tag, 4, 1, is_now))
    return data


def webp(width, height):
    data = encoded("WEBP", lossless=True)
    sides = struct.unpack_from("<I", data, 21)[0] >> 28 << 28 | (height - 1) << 14 | (width - 1)
    return replaced(data, 21, struct.pack("<I", sides))


def large(kind, width, height):
    made = {
        "JPEG": jpeg,
        "TIFF": tiff,
        "WebP": webp,
        "PNG": lambda *size: replaced(encoded("PNG"), 16, struct.pack(">II", *size)),
        "BMP": lambda *size: replaced(encoded("BMP"), 18, struct.pack("<ii", *size)),
        "PPM or PGM": lambda *size: b"P6\n# one\n %d %d\n255\n" % size + bytes(100),
    }
    return made[kind](width, height)


KINDS = ["JPEG", "TIFF", "WebP", "PNG", "BMP", "PPM or PGM"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("read", [read_image, image_size])
def test_an_image_that_no_camera_takes_is_refused_undecoded(tmp_path, monkeypatch, kind, read):
    path = tmp_path / "a"
    path.write_bytes(large(kind, WIDTH, HEIGHT))
    assert image_size(path) == (HEIGHT, WIDTH)
    path.write_bytes(large(kind, 16_383, 16_383))
    monkeypatch.setattr("ssd300_vgg16.data.decoder.decode", lambda *_: pytest.fail("decoded"))
    with less_memory_than(1 << 20), pytest.raises(ImageError) as caught:
        read(path)
    reason = "16,383 x 16,383, 268,402,689 pixels, where 200,000,000 is the limit; SSD_MAX_IMAGE_PIXELS moves it"
    assert str(caught.value) == f"{path}: the {kind} image is too large: {reason}"


@pytest.mark.parametrize(("kind", "size"), [("GIF", (16_383, 16_383)), ("GIF", (6000, 6000)), ("AVIF", (6000, 6000))])
def test_so_is_one_that_pillow_would_decode(tmp_path, monkeypatch, kind, size):
    path, data = tmp_path / "a", encoded(kind)
    if kind == "GIF":
        path.write_bytes(replaced(data, 6, struct.pack("<HH", *size)))
    else:  # its size stands behind the name of that property
        place = data.index(b"ispe") + 8
        path.write_bytes(replaced(data, place, struct.pack(">II", *size)))
    monkeypatch.setenv("SSD_MAX_IMAGE_PIXELS", str(30_000_000))
    for read in (read_image, image_size):
        with less_memory_than(5 << 20), pytest.raises(ImageError, match=r"the .*image is too large: "):
            read(path)


def test_the_limit_of_pixels_is_moved(tmp_path, monkeypatch):
    path = tmp_path / "a.jpg"
    path.write_bytes(encoded("JPEG"))
    monkeypatch.setenv("SSD_MAX_IMAGE_PIXELS", str(WIDTH * HEIGHT))
    assert read_image(path).shape == (HEIGHT, WIDTH, 3)
    monkeypatch.setenv("SSD_MAX_IMAGE_PIXELS", str(WIDTH * HEIGHT - 1))
    with pytest.raises(ImageError, match="60 x 40, 2,400 pixels, where 2,399 is the limit"):
        read_image(path)


@pytest.mark.parametrize("before", [b"\0", b"\xff\xd0", b"\xff\x01", b"garbage\xff\0", b"\xff\xff\xff"])
def test_the_size_is_found_where_the_decoder_finds_it(tmp_path, before):
    """What does not belong between two parts is passed over by libjpeg: else it would hide the size from us."""
    path, data = tmp_path / "a.jpg", jpeg(60_000, 60_000)
    path.write_bytes(data[:20] + before + data[20:])  # behind the first part
    with pytest.raises(ImageError, match="too large"):
        read_image(path)


def many_tags(order, tags, size):
    """EXIF data of one megabyte that is the value of each of many tags, the last of which is the orientation."""
    numbers = [number for number in range(tags) if number != 0x0112]
    entries = b"".join(struct.pack(f"{order}HHII", number, 7, size, 8) for number in numbers)
    entries += struct.pack(f"{order}HHIHH", 0x0112, 3, 1, 6, 0)
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}IH", 8, len(numbers) + 1)
    return head + entries + bytes(4 + size)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("order", ["<", ">"])
def test_exif_data_that_claim_gigabytes_take_none(tmp_path, kind, order):
    path, exif = tmp_path / "a", many_tags(order, 10_000, 200_000)
    if kind == "JPEG":
        parts = [b"Exif\0\0" + exif[start : start + 60_000] for start in range(0, len(exif), 60_000)]
        data = encoded("JPEG")
        segments = b"".join(b"\xff\xe1" + struct.pack(">H", len(part) + 2) + part for part in parts)
        path.write_bytes(data[:2] + segments + data[2:])
    else:
        path.write_bytes(encoded(kind, exif=exif))
    with less_memory_than(20 << 20):
        assert read_image(path, upright=True).shape == (WIDTH, HEIGHT, 3)
        assert image_size(path, upright=True) == (WIDTH, HEIGHT) and exif_orientation(path) == 6


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_a_chunk_that_claims_gigabytes_takes_none(tmp_path, monkeypatch, kind):
    exif = many_tags("<", 1, 0)
    path, data = tmp_path / "a", encoded(kind, exif=exif, **({"lossless": True} if kind == "WEBP" else {}))
    place, form = (data.index(b"eXIf") - 4, ">I") if kind == "PNG" else (data.index(b"EXIF") + 4, "<I")
    path.write_bytes(replaced(data, place, struct.pack(form, 2**31 - 1)))
    with less_memory_than(5 << 20):
        assert exif_orientation(path) in (1, 6)
    monkeypatch.setattr("ssd300_vgg16.data.decoder.decode", lambda *_: pytest.fail("decoded"))
    if kind == "PNG":  # for which OpenCV makes room
        with pytest.raises(ImageError, match="the PNG image is truncated"):
            read_image(path)


def chunk(name, content):
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


@pytest.mark.parametrize("side", [5, 0])
def test_a_frame_of_an_animated_png_says_nothing_of_its_size(tmp_path, side):
    """One larger than the image, or beside it, ended the process: OpenCV wrote beyond its memory."""
    png, animation = encoded("PNG"), chunk(b"acTL", struct.pack(">II", 2, 0))
    frame = chunk(b"fcTL", struct.pack(">IIIIIHHBB", 0, side, side, 0, 0, 1, 1, 0, 0))
    (tmp_path / "a.png").write_bytes(png[:33] + animation + frame + animation + png[33:])
    (tmp_path / "b.png").write_bytes(png)
    assert (read_image(tmp_path / "a.png") == read_image(tmp_path / "b.png")).all()
    assert b"acTL" not in plain_png((tmp_path / "a.png").read_bytes())


def test_comments_of_a_gif_are_passed_over(tmp_path, no_hang):
    """Its decoder adds each part to those before: 25 MB took many minutes."""
    gif, comment = encoded("GIF"), b"\x21\xfe" + (b"\xff" + bytes(255)) * 100_000 + b"\0"
    start = gif.index(b"\x2c\0\0\0\0")  # of the frame
    (tmp_path / "a.gif").write_bytes(gif[:start] + comment + gif[start:])
    assert image_size(tmp_path / "a.gif") == (HEIGHT, WIDTH)
    (tmp_path / "b.gif").write_bytes(gif)
    assert (read_image(tmp_path / "a.gif") == read_image(tmp_path / "b.gif")).all()
    with pytest.raises(ImageError, match="damaged"):
        (tmp_path / "a.gif").write_bytes(gif[:start] + comment)
        read_image(tmp_path / "a.gif")


def test_exif_data_in_thousands_of_parts_are_read_as_far_as_needed(tmp_path):
    part = b"\xff\xe1" + struct.pack(">H", 65_535) + b"Exif\0\0" + bytes(65_527)
    path, data = tmp_path / "a.jpg", encoded("JPEG")
    path.write_bytes(data[:2] + part * 500 + data[2:])
    with less_memory_than(5 << 20):
        assert image_size(path) == (HEIGHT, WIDTH)


def test_a_tiff_of_many_tags_takes_no_memory(tmp_path):
    path = tmp_path / "a.tif"
    entries = [struct.pack("<HHII", 0x0100, 4, 1, WIDTH), struct.pack("<HHII", 0x0101, 4, 1, HEIGHT)]
    entries += [struct.pack("<HHII", number, 7, 200_000, 8) for number in range(0x8000, 0x8000 + 10_000)]
    path.write_bytes(b"II*\0" + struct.pack("<IH", 8, len(entries)) + b"".join(entries) + bytes(200_000))
    with less_memory_than(5 << 20):
        assert image_size(path) == (HEIGHT, WIDTH)


def test_a_tiff_of_tiles_larger_than_itself_is_refused_undecoded(tmp_path, monkeypatch):
    path = tmp_path / "a.tif"
    sizes = {0x0100: WIDTH, 0x0101: HEIGHT, 0x0142: 14_000, 0x0143: 14_000}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, number) for tag, number in sizes.items())
    path.write_bytes(b"II*\0" + struct.pack("<IH", 8, len(sizes)) + entries + bytes(1000))
    monkeypatch.setattr("ssd300_vgg16.data.decoder.decode", lambda *_: pytest.fail("decoded"))
    with pytest.raises(ImageError, match="the TIFF image is damaged or truncated: its header makes no sense"):
        read_image(path)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WebP"])
def test_headers_without_end_are_left(tmp_path, kind):
    part = {"JPEG": b"\xff\xe2\0\2", "PNG": b"\0\0\0\0tEXt\0\0\0\0", "WebP": b"ABCD\0\0\0\0"}[kind]
    start = {"JPEG": b"\xff\xd8", "PNG": b"\x89PNG\r\n\x1a\n", "WebP": b"RIFF\0\0\0\0WEBP"}[kind]
    path, since = tmp_path / "a", time.monotonic()
    path.write_bytes(start + part * 5_000_000)
    with pytest.raises(ImageError):
        image_size(path)
    path.write_bytes(b"\xff\xd8" + bytes(20 << 20))
    with pytest.raises(ImageError):
        image_size(path)
    assert time.monotonic() - since < 10  # parsed to their ends, they take a minute


def test_a_jpeg_is_not_computed_thousands_of_times(tmp_path):
    """Neither if an end is hidden between two scans; what lies behind the end, as a film does, counts for nothing."""
    data, path = encoded("JPEG", progressive=True), tmp_path / "a.jpg"
    start = data.rindex(b"\xff\xda")
    scan = data[start:-2]
    path.write_bytes(data[:start] + scan * 50 + data[-2:] + b"\xff\xda" * 1000)
    assert decode_image(path).pixels.shape == (HEIGHT, WIDTH, 3)
    for between in (b"", b"\xff\xfe\0\6\xff\xd9\0\0"):
        path.write_bytes(data[:start] + (scan + between) * 2000 + data[-2:])
        with pytest.raises(ImageError, match="has 65 or more scans, where 64 is the limit; SSD_MAX_JPEG_SCANS moves"):
            decode_image(path)
