"""Text in scripts that DejaVu Sans lacks: with a font of the system, and without any."""

import numpy as np
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib.ft2font import FT2Font
from PIL import Image, ImageDraw
from small_data import shapes_folder

from ssd300_vgg16 import fonts
from ssd300_vgg16.cli import inspect
from ssd300_vgg16.detection.run import _tell_of_missing_font
from ssd300_vgg16.draw import draw_detections

FAMILY = "Made for a test"
CAT, DOG = "猫", "狗"


def make_font(path, letters):
    """A font in which each of the letters is a full block of 0.8 em."""
    pen = TTGlyphPen(None)
    for place, move in (((0, 0), pen.moveTo), ((0, 800), pen.lineTo), ((800, 800), pen.lineTo), ((800, 0), pen.lineTo)):
        move(place)
    pen.closePath()
    block, names = pen.glyph(), [".notdef", *(f"u{ord(letter):x}" for letter in letters)]
    builder = FontBuilder(1000)
    builder.setupGlyphOrder(names)
    builder.setupCharacterMap({ord(letter): name for letter, name in zip(letters, names[1:], strict=True)})
    builder.setupGlyf(dict.fromkeys(names, block) | {".notdef": TTGlyphPen(None).glyph()})
    builder.setupHorizontalMetrics(dict.fromkeys(names, (1000, 0)))
    builder.setupHorizontalHeader(ascent=1100, descent=-300)
    builder.setupNameTable({"familyName": FAMILY, "styleName": "Regular"})
    builder.setupOS2()
    builder.setupPost()
    builder.save(path)
    return path


@pytest.fixture
def installed(monkeypatch):
    """Lets the system have these fonts and no others."""

    def install(*files):
        monkeypatch.setattr(fonts, "_system_fonts", lambda: list(files))
        for cached in (fonts._file_with, fonts._runs):
            cached.cache_clear()

    yield install
    for cached in (fonts._file_with, fonts._runs):
        cached.cache_clear()


def ink(text, font_size=20):
    picture = Image.new("L", (300, 40))
    fonts.write(ImageDraw.Draw(picture), (0, 5), text, fonts.font_of(font_size), fill=(255,))
    return np.array(picture)


def test_a_font_of_the_system_has_the_letters(installed, tmp_path):
    broken = tmp_path / "broken.ttf"
    broken.write_bytes(b"no font")
    installed(broken, make_font(tmp_path / "dog.ttf", DOG), make_font(tmp_path / "cat.ttf", CAT))
    assert fonts.missing_font([f"{CAT} 87%", DOG, f"{CAT}{DOG}"]) is None
    # The block of 0.8 of 20 pixels stands on the baseline of DejaVu Sans, 19 below the corner.
    rows, columns = np.nonzero(ink(CAT))
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (5 + 19 - 16, 5 + 18, 0, 15)
    latin = fonts.font_of(20)
    assert fonts.length(f"{CAT}{DOG} 87%", latin) == 40 + latin.getlength(" 87%")
    np.testing.assert_array_equal(ink(f"{CAT} 87%")[:, 20:], ink(" 87%")[:, :-20])


def test_letters_that_no_font_has_are_escaped_and_told(installed):
    installed()
    np.testing.assert_array_equal(ink(f"a {CAT}, köp"), ink(r"a \u732b, köp"))
    told = fonts.missing_font(["dog", CAT, "köp"])
    assert told.startswith(f"no font here has all letters of {CAT}: ") and "apt-get install fonts-noto" in told
    assert fonts.missing_font(["dog", "жук", "σκύ"]) is None


def test_a_letter_is_told_from_the_sign_for_those_that_a_font_lacks():
    """As FreeType tells it, accents and letters without ink included."""
    charmap = FT2Font(str(fonts.FONT_FILE)).get_charmap()
    letters = [*range(0x20, 0x7000, 7), *range(0x300, 0x370), 0xA0, 0x200B, 0x3000]
    assert [fonts._has(fonts.FONT_FILE, chr(letter)) for letter in letters] == [letter in charmap for letter in letters]


def test_tags_differ_by_name_without_a_font_too(installed):
    installed()
    image, box = np.full((200, 300, 3), 70, dtype=np.uint8), np.array([[100, 60, 220, 160]])
    pictures = [draw_detections(image, box, [0.5], [name], np.array([1])) for name in (CAT, DOG)]
    assert (pictures[0] != pictures[1]).any()


def test_inspect_and_infer_tell_it_once(installed, tmp_path, capsys):
    installed()
    data = shapes_folder(tmp_path, 2, 1)
    for annotations in data.glob("annotations/*.json"):
        annotations.write_text(annotations.read_text().replace('"circle"', f'"{CAT}"'))
    assert inspect.main(["inspect", str(data), "--output-dir", str(tmp_path / "out")]) == 0
    assert capsys.readouterr().out.count(f"no font here has all letters of {CAT}: ") == 1
    _tell_of_missing_font(["dog", "жук"])
    assert capsys.readouterr().out == ""
    _tell_of_missing_font(["dog", CAT])
    assert capsys.readouterr().out.startswith(f"no font here has all letters of {CAT}: ")
