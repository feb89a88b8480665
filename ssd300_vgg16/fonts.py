"""Text in any script drawn into pictures: a font of the system has the letters that DejaVu Sans lacks.

Where none has them, they are written as JSON does, like \\u732b, instead of the empty boxes that a font draws.
"""

import unicodedata
from collections.abc import Iterable
from functools import cache, lru_cache
from itertools import groupby
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.ft2font import FT2Font
from PIL import ImageDraw, ImageFont

from ssd300_vgg16.text import listed

# Comes with matplotlib. Latin, Greek and Cyrillic among others, where OpenCV's own font has ASCII only.
FONT_FILE = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
EAST_ASIAN = ("CJK", "HIRAGANA", "KATAKANA", "HANGUL", "BOPOMOFO", "FULLWIDTH", "IDEOGRAPHIC")
STYLES = ("bold", "black", "heavy", "light", "thin", "medium", "italic", "oblique", "condensed", "mono")


@lru_cache(maxsize=256)
def font_of(size: int, file: Path = FONT_FILE) -> ImageFont.FreeTypeFont:
    """The font of a file, in pixels."""
    return ImageFont.truetype(file, size)


def length(text: str, font: ImageFont.FreeTypeFont) -> float:
    """How wide the text is when `write` draws it, in pixels."""
    return sum(own.getlength(part) for part, own in _parts(text, font))


def write(
    canvas: ImageDraw.ImageDraw, corner: tuple[int, int], text: str, font: ImageFont.FreeTypeFont, fill: tuple
) -> None:
    """Draw the text with its upper left corner there, in this font as far as it has the letters."""
    x: float = corner[0]
    baseline = corner[1] + font.getmetrics()[0]
    for part, own in _parts(text, font):
        canvas.text((x, baseline), part, fill=fill, font=own, anchor="ls")
        x += own.getlength(part)


def drawable(text: str) -> str:
    """The text with an escape for each letter that no font has."""
    return text if text.isascii() else "".join(part for part, _ in _runs(text))


def family_names(text: str) -> list[str]:
    """The families of fonts that matplotlib takes for `drawable(text)`; none if its own will do."""
    files = [] if text.isascii() else [file for _, file in _runs(text) if file != FONT_FILE]
    return [matplotlib.rcParams["font.sans-serif"][0], *map(_family_name, files)] if files else []


def missing_font(names: Iterable[str]) -> str | None:
    """What to tell about names that no font here has the letters of, and what to install; None if all have."""
    escaped = [name for name in names if drawable(name) != name]
    if not escaped:
        return None
    missing = "".join(escaped)
    letters = {letter for letter in missing if _is_missing(letter) and _file_with(letter) is None}
    east_asian = [unicodedata.name(letter, "").startswith(EAST_ASIAN) for letter in letters]
    packages = [name for name, asked in (("cjk", any(east_asian)), ("core", not all(east_asian))) if asked]
    return (
        f"no font here has all letters of {listed(escaped, max_names=3)}: pictures show escapes in their place; "
        f"for the letters: apt-get install {' '.join(f'fonts-noto-{package}' for package in packages)}"
    )


def _parts(text: str, font: ImageFont.FreeTypeFont) -> list[tuple[str, ImageFont.FreeTypeFont]]:
    if text.isascii():
        return [(text, font)]
    return [(part, font if file == FONT_FILE else font_of(round(font.size), file)) for part, file in _runs(text)]


@lru_cache(maxsize=4096)
def _runs(text: str) -> list[tuple[str, Path]]:
    """The text in pieces, each with the file of a font that has its letters."""
    runs = []
    for missing, group in groupby(text, _is_missing):
        part = "".join(group)
        # One font for the piece if there is one: letters of some scripts change their shape with their neighbours.
        for piece in [part] if not missing or _file_with(part) else part:
            file = _file_with(piece) if missing else FONT_FILE
            runs.append((piece, file) if file else (_escape(piece), FONT_FILE))
    return runs


def _escape(letter: str) -> str:
    return letter.encode("ascii", "backslashreplace").decode()


@cache
def _is_missing(letter: str) -> bool:
    return not letter.isascii() and not _has(FONT_FILE, letter)


@cache
def _file_with(letters: str) -> Path | None:
    """The first of the system's fonts that has all these letters."""
    return next((file for file in _system_fonts() if all(_has(file, letter) for letter in letters)), None)


@cache
def _system_fonts() -> list[Path]:
    """Files of fonts, those of regular style first."""
    # The files that are there now: matplotlib's own list does not know what was installed since it was made.
    files = map(Path, _font_manager().findSystemFonts())
    return sorted(files, key=lambda file: (any(style in file.stem.lower() for style in STYLES), file))


def _font_manager() -> Any:
    # Only where a name asks for it: its first import on a machine reads all fonts.
    from matplotlib import font_manager

    return font_manager


def _has(file: Path, letter: str) -> bool:
    font = _opened(file)
    return font is not None and font.get_char_index(ord(letter)) != 0


@cache
def _opened(file: Path) -> FT2Font | None:
    """The font, or None if it is damaged or has pictures of one size in place of outlines."""
    try:
        font = FT2Font(str(file))
    except (OSError, RuntimeError):
        return None
    return font if font.scalable else None


@cache
def _family_name(file: Path) -> str:
    """The name by which matplotlib finds this file."""
    _font_manager().fontManager.addfont(file)
    return FT2Font(str(file)).family_name
