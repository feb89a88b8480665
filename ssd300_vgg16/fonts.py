"""Text in any script drawn into pictures: a font of the system has the letters that DejaVu Sans lacks.

Where none has them, they are written as JSON does, like \\u732b, instead of the empty boxes that a font draws.
"""

from collections.abc import Iterable
from functools import cache, lru_cache
from importlib.util import find_spec
from itertools import groupby
from pathlib import Path

from PIL import ImageDraw, ImageFont

from ssd300_vgg16.text import listed

# Comes with matplotlib, whose import would take longer than drawing does. Latin, Greek and Cyrillic among others, where
# OpenCV's own font has ASCII only.
_MATPLOTLIB = find_spec("matplotlib").origin  # type: ignore[union-attr]  # it is among the requirements
FONT_FILE = Path(str(_MATPLOTLIB)).parent / "mpl-data" / "fonts" / "ttf" / "DejaVuSans.ttf"
STYLES = ("bold", "black", "heavy", "light", "thin", "medium", "italic", "oblique", "condensed", "mono")
NO_LETTER = "\uffff"  # by Unicode's word never one


@lru_cache(maxsize=256)
def font_of(size: int, file: Path = FONT_FILE) -> ImageFont.FreeTypeFont:
    """The font of a file, in pixels."""
    return ImageFont.truetype(file, size)


def length(text: str, font: ImageFont.FreeTypeFont) -> float:
    """How wide the text is when `write` draws it, in pixels."""
    return sum(font_of(round(font.size), file).getlength(part) for part, file in _runs(text))


def write(
    canvas: ImageDraw.ImageDraw, corner: tuple[int, int], text: str, font: ImageFont.FreeTypeFont, fill: tuple
) -> None:
    """Draw the text with its upper left corner there, in a `font_of` FONT_FILE as far as that has the letters."""
    x: float = corner[0]
    baseline = corner[1] + font.getmetrics()[0]
    for part, file in _runs(text):
        own = font_of(round(font.size), file)
        canvas.text((x, baseline), part, fill=fill, font=own, anchor="ls")
        x += own.getlength(part)


def missing_font(names: Iterable[str]) -> str | None:
    """What to tell about names that no font here has the letters of; None if all have."""
    escaped = [name for name in names if "".join(part for part, _ in _runs(name)) != name]
    if not escaped:
        return None
    return (
        f"no font here has all letters of {listed(escaped, max_names=3)}: pictures show escapes in their place; "
        "for the letters: apt-get install fonts-noto-core fonts-noto-cjk"
    )


@lru_cache(maxsize=4096)
def _runs(text: str) -> list[tuple[str, Path]]:
    """The text in pieces, each with the file of a font that has its letters; where none has, with escapes for them."""
    runs = []
    for known, group in groupby(text, lambda letter: _has(FONT_FILE, letter)):
        part = "".join(group)
        # One font for the piece if there is one: letters of some scripts change their shape with their neighbours.
        for piece in [part] if known or _file_with(part) else part:
            file = FONT_FILE if known else _file_with(piece)
            runs.append((piece, file) if file else (piece.encode("ascii", "backslashreplace").decode(), FONT_FILE))
    return runs


@cache
def _file_with(letters: str) -> Path | None:
    """The first of the system's fonts that has all these letters."""
    return next((file for file in _system_fonts() if all(_has(file, letter) for letter in letters)), None)


@cache
def _system_fonts() -> list[Path]:
    """Files of fonts, those of regular style first."""
    from matplotlib import font_manager  # only where a name asks for it: its first import on a machine reads all fonts

    # The files that are there now: matplotlib's own list does not know what was installed since it was made.
    files = map(Path, font_manager.findSystemFonts())
    return sorted(files, key=lambda file: (any(style in file.stem.lower() for style in STYLES), file))


@cache
def _has(file: Path, letter: str) -> bool:
    """Whether a font draws this letter, and not the sign that it has for those that it lacks."""
    font = _unshaped(file)
    return font is not None and bytes(font.getmask(letter)) != bytes(font.getmask(NO_LETTER))


@cache
def _unshaped(file: Path) -> ImageFont.FreeTypeFont | None:
    try:
        # Letter by letter: the other engine would add a circle to lone accents, which makes them differ from NO_LETTER.
        return ImageFont.truetype(file, 20, layout_engine=ImageFont.Layout.BASIC)
    except OSError:  # damaged, or of pictures of one size in place of outlines
        return None
