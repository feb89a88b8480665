"""Published weights, downloaded once: from the first source that has the right file, checked, and kept."""

import os
import sys
import time
from pathlib import Path

from tqdm import tqdm

from ssd300_vgg16.errors import UserError
from ssd300_vgg16.weights.cache import cache_folder, disk_errors, forget, is_good, locked, remember, sha256_of
from ssd300_vgg16.weights.network_errors import Broken, Refused
from ssd300_vgg16.weights.published import Published, Source
from ssd300_vgg16.weights.resumable import Part, transfer

PAUSES = (1, 3, 10)  # seconds before the second and further tries
WORTHWHILE = 1 << 20  # bytes; a try that brought as many before it broke off is not counted


def fetch(weights: Published, folder: Path | None = None, progress: bool = True) -> Path:
    """The file of published weights in the folder (cache_folder() by default), downloaded if need be.

    A file that is there already, downloaded or put there by hand, is checked and used without a network. Any number of
    processes may call this at once: one downloads, and the others wait for it. With progress, a bar and a line for
    each trouble go to standard error. Raises UserError if the file cannot be had, with the reason for each source, and
    if it was changed since.
    """
    folder = folder or cache_folder()
    if (found := _cached(weights, folder)) is not None:
        return found
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)

    def waiting() -> None:
        _say(f"another process is downloading {weights.name}: waiting for it", progress)

    with locked(folder / f".{weights.name}.lock", waiting):
        return _cached(weights, folder) or _from_any(weights, folder, progress)


def _cached(weights: Published, folder: Path) -> Path | None:
    for source in weights.sources:
        if is_good(folder / source.file_name, source):
            return folder / source.file_name
    return None


def _from_any(weights: Published, folder: Path, progress: bool) -> Path:
    reasons = []
    for source in weights.sources:
        try:
            path = _from_one(source, folder, progress)
        except Refused as reason:
            reasons.append(f"  {source.url}: {reason}")
            _say(f"{source.url}: {reason}", progress)
        else:
            for other in weights.sources:
                Part(folder / other.file_name).discard()
            return path
    by_hand = next((source for source in weights.sources if source.sha256), weights.sources[0])
    raise UserError(
        "\n".join((f"{weights.name} could not be downloaded:", *reasons))
        + f"\nWithout a network, download {by_hand.url} on another machine and put it at {folder / by_hand.file_name}"
    )


def _from_one(source: Source, folder: Path, progress: bool) -> Path:
    """Try a source until it gives the file, or refuses, or has failed too often: then raises Refused."""
    part = Part(folder / source.file_name)
    failures, farthest = 0, part.size()
    _say(f"downloading {source.url} to {folder}", progress)
    while True:
        try:
            resumed = transfer(source, part, progress)
            return _put_in_place(source, part, resumed, folder / source.file_name)
        except Broken as reason:
            failures = 1 if part.size() - farthest >= WORTHWHILE else failures + 1
            farthest = max(farthest, part.size())
            if reason.start_again:
                part.discard()
            if failures > len(PAUSES):
                raise Refused(f"{reason} ({failures} tries)") from reason
            pause = PAUSES[failures - 1]
            _say(f"{source.url}: {reason}; trying again in {pause} s", progress)
            time.sleep(pause)


def _put_in_place(source: Source, part: Part, resumed: bool, path: Path) -> Path:
    """The checked file under its own name. Raises Refused if it is the wrong one, Broken if that may be the joining."""
    with disk_errors(part.path), part.path.open("rb") as file:
        sha256 = sha256_of(part.path)
        os.fsync(file.fileno())
    if mismatch := source.mismatch(part.size(), sha256):
        part.discard()
        raise Broken(mismatch) if resumed else Refused(f"sends another file: {mismatch}")
    forget(path)
    with disk_errors(path):
        part.path.replace(path)
    part.discard()
    remember(path, source, sha256)
    return path


def _say(message: str, progress: bool) -> None:
    if progress:
        tqdm.write(message, file=sys.stderr)
