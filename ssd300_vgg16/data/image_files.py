"""Image files in folders and patterns: finding them."""

import glob
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from ssd300_vgg16.errors import UserError
from ssd300_vgg16.folders import is_inside

_PLAIN_SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm", ".pgm")
_AT_ANY_DEPTH = re.compile(r"(|.*?/)\*\*/(.*)", re.DOTALL)
IMAGE_SUFFIXES = frozenset((*_PLAIN_SUFFIXES, ".avif", ".heic", ".heif"))


def find_images(paths: Sequence[str], leave_out: Path | None = None, others: Counter[str] | None = None) -> list[Path]:
    """The image files that files, folders (searched with their sub-folders) and glob patterns stand for.

    Sorted by absolute path, each once. Files named outright are taken whatever their suffix; of folders and patterns
    only files with one of IMAGE_SUFFIXES, in any case. Hidden files and folders inside folders, and links to folders,
    are skipped; so is leave_out, the folder of results, inside them and inside of what a pattern reaches. others: takes
    how many files of which other suffixes were passed over in folders.
    Raises UserError when a path does not exist, or a folder or pattern gives no image.
    """
    images: dict[str, Path] = {}
    passed = Counter[str]() if others is None else others
    results = os.path.realpath(leave_out) if leave_out else None
    singly: list[str] = []
    for text in map(str, paths):
        try:
            expanded = list(_expand(text, results, passed))
        except OSError as error:
            raise UserError(f"{error.filename or text}: cannot be read: {error.strerror}") from None
        if not expanded:
            place = "this folder or its sub-folders" if Path(text).is_dir() else "what this pattern matches"
            raise UserError(f"{text}: no image in {place}; looked for {', '.join(sorted(IMAGE_SUFFIXES))}")
        absolute = [os.path.abspath(path) for path in expanded]  # noqa: PTH100 - resolve() would merge links
        for place, path in zip(absolute, expanded, strict=True):
            images.setdefault(place, path)
        if not Path(text).is_dir():
            singly += absolute
    # A pattern, the shell's too, that reaches into the folder of results from above.
    if results and singly:
        above = os.path.realpath(os.path.commonpath([os.path.dirname(place) for place in singly]))  # noqa: PTH120
        if Path(above) in Path(results).parents:
            for place in singly:
                if is_inside(Path(place), Path(results)):
                    images.pop(place, None)
    return [images[path] for path in sorted(images)]


def _expand(text: str, results: str | None, passed: Counter[str]) -> Iterator[Path]:
    path = Path(text)
    if text and path.is_dir():
        yield from _images_in_folder(path, results, passed)
    elif text and path.exists():  # what is no file, such as a pipe, is named when it is read
        yield path
    elif glob.has_magic(text):
        for match in map(Path, _matches(text)):
            if match.is_dir():
                yield from _images_in_folder(match, results, passed)
            elif match.suffix.lower() in IMAGE_SUFFIXES:
                yield match
    else:
        raise UserError(f"{text!r}: no such file or folder")


def _matches(pattern: str) -> Iterator[str]:
    """What a glob pattern stands for; for `**` each folder once. By glob's own, two links may have no end."""
    parts = _AT_ANY_DEPTH.match(pattern)
    if parts is None:
        yield from glob.iglob(pattern)  # noqa: PTH207 - Path.glob refuses absolute ones
        return
    for top in glob.iglob(parts[1] or "."):  # noqa: PTH207
        seen: set[str] = set()
        for folder, below, _ in os.walk(top, followlinks=True):
            if (real := os.path.realpath(folder)) in seen:
                below.clear()
                continue
            seen.add(real)
            below[:] = (name for name in below if not name.startswith("."))
            yield from _matches(os.path.join(glob.escape(folder), parts[2]))  # noqa: PTH118


def _images_in_folder(folder: Path, results: str | None, passed: Counter[str]) -> Iterator[Path]:
    for parent, folders, files in os.walk(folder, onerror=_raise):
        folders[:] = [
            name for name in folders if not name.startswith(".") and os.path.realpath(Path(parent, name)) != results
        ]
        for path in (Path(parent, name) for name in files if not name.startswith(".")):
            if path.suffix.lower() in IMAGE_SUFFIXES:
                yield path
            else:
                passed[path.suffix.lower() or "without a suffix"] += 1


def _raise(error: OSError) -> None:
    raise error  # which os.walk would pass over
