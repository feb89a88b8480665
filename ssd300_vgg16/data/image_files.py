"""Image files in folders and patterns: finding them."""

import glob
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from ssd300_vgg16.errors import UserError
from ssd300_vgg16.files import is_inside

_PLAIN_SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm", ".pgm")
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
            expanded = _expand(text, results, passed)
        except OSError as error:
            raise UserError(f"{text}: cannot be read: {error.strerror}") from None
        if not Path(text).is_dir():
            singly += [os.path.abspath(path) for path in expanded]  # noqa: PTH100 - resolve() would merge links
        for path in expanded:
            images.setdefault(os.path.abspath(path), path)  # noqa: PTH100 - resolve() would merge links
    # A pattern, the shell's too, that reaches into the folder of results from above.
    if results and singly:
        above = os.path.realpath(os.path.commonpath([os.path.dirname(place) for place in singly]))  # noqa: PTH120
        if Path(above) in Path(results).parents:
            for place in singly:
                if is_inside(Path(place), Path(results)):
                    images.pop(place, None)
    return [images[path] for path in sorted(images)]


def _expand(text: str, results: str | None, passed: Counter[str]) -> list[Path]:
    path = Path(text)
    if text and path.is_dir():
        return _some(_images_in_folder(path, results, passed), f"{text}: no image in this folder or its sub-folders")
    if text and path.exists():  # what is no file, such as a pipe, is named when it is read
        return [path]
    if glob.has_magic(text):
        return _some(_images_of_pattern(text, results, passed), f"{text}: no image matches this pattern")
    raise UserError(f"{text!r}: no such file or folder")


def _some(images: Iterator[Path], complaint: str) -> list[Path]:
    """The images as a list. Raises UserError with this complaint if there is none."""
    paths = list(images)
    if not paths:
        raise UserError(f"{complaint}; looked for {', '.join(sorted(IMAGE_SUFFIXES))}")
    return paths


def _images_of_pattern(pattern: str, results: str | None, passed: Counter[str]) -> Iterator[Path]:
    for match in map(Path, glob.iglob(pattern, recursive=True)):  # noqa: PTH207 - Path.glob refuses absolute ones
        if match.is_dir():
            yield from _images_in_folder(match, results, passed)
        elif match.suffix.lower() in IMAGE_SUFFIXES:
            yield match


def _images_in_folder(folder: Path, results: str | None, passed: Counter[str]) -> Iterator[Path]:
    for parent, folders, files in os.walk(folder, onerror=_refuse_unreadable):
        folders[:] = [
            name for name in folders if not name.startswith(".") and os.path.realpath(Path(parent, name)) != results
        ]
        for name in files:
            suffix = Path(name).suffix.lower()
            if name.startswith("."):
                continue
            if suffix in IMAGE_SUFFIXES:
                yield Path(parent, name)
            else:
                passed[suffix or "without a suffix"] += 1


def _refuse_unreadable(error: OSError) -> None:
    raise UserError(f"{error.filename}: the folder cannot be read: {error.strerror}")
