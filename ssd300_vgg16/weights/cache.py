"""The folder of downloaded weights: where it is, who may write in it now, and whether its files are what they were."""

import fcntl
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import date
from pathlib import Path

from ssd300_vgg16.errors import UserError
from ssd300_vgg16.weights.published import Source

_BLOCK = 1 << 20


def cache_folder() -> Path:
    """SSD_CACHE, or ssd300_vgg16 in the user's cache folder (XDG_CACHE_HOME, or ~/.cache). It need not exist."""
    try:
        if named := os.environ.get("SSD_CACHE"):
            return Path(named).expanduser().absolute()
        base = Path(os.environ.get("XDG_CACHE_HOME", ""))
        return (base if base.is_absolute() else Path.home() / ".cache") / "ssd300_vgg16"
    except RuntimeError as error:  # no home
        raise UserError(f"no folder for downloaded weights was found ({error}): name one with SSD_CACHE") from error


def is_good(path: Path, source: Source) -> bool:
    """Whether the file is there and is the source's; False if there is none.

    A file whose size and time of change are those remembered is not read again; of any other the whole SHA-256 is
    compared, with what is known beforehand and with what is remembered, and it is remembered from then on.
    Raises UserError if a file is there but is not, or no longer, the published one.
    """
    if not path.is_file():
        return False
    with disk_errors(path, "read"):
        status = path.stat()
        remembered = _recall(path)
        untouched = (remembered.get("size"), remembered.get("mtime_ns")) == (status.st_size, status.st_mtime_ns)
        sha256 = remembered["sha256"] if untouched else sha256_of(path)
    if mismatch := source.mismatch(status.st_size, sha256):
        raise UserError(f"{path} is not the published file: {mismatch}. Delete it, to have it downloaded again")
    if remembered and sha256 != remembered["sha256"]:
        raise UserError(
            f"{path} has changed since it was checked on {remembered.get('date')}. Delete it, to have it downloaded "
            f"again; or delete {_record(path)}, to take it as it is"
        )
    if not untouched:
        with suppress(UserError):  # a cache that is read-only serves all the same
            remember(path, source, sha256)
    return True


def remember(path: Path, source: Source, sha256: str) -> None:
    """Write down, in a JSON beside the file, what it was when it was checked. Raises UserError."""
    status = path.stat()
    about = {"url": source.url, "size": status.st_size, "sha256": sha256, "mtime_ns": status.st_mtime_ns}
    write_json(_record(path), {**about, "date": date.today().isoformat()})


def forget(path: Path) -> None:
    """Remove what is remembered of a file that is not there any more. Raises UserError."""
    with disk_errors(path):
        _record(path).unlink(missing_ok=True)


def sha256_of(path: Path) -> str:
    """The file's SHA-256, hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


@contextmanager
def locked(path: Path, when_waiting: Callable[[], None]) -> Iterator[None]:
    """Holds the lock of that file, made if need be, once no other process does; first says if it has to wait.

    An flock, because the kernel releases it when its holder dies, however it dies: nothing stale is left behind.
    """
    with disk_errors(path):
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        with disk_errors(path, "locked"):
            _acquire(handle, when_waiting)
        yield
    finally:
        os.close(handle)


@contextmanager
def disk_errors(path: Path, verb: str = "written") -> Iterator[None]:
    """Errors of the disk become UserErrors that name the file and SSD_CACHE."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{path} could not be {verb} ({error.strerror or error}): make room or give access, or set SSD_CACHE to "
            "another folder for downloaded weights"
        ) from error


def write_json(path: Path, content: dict) -> None:
    """Write JSON aside and rename it into place. Raises UserError."""
    aside = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    with disk_errors(path):
        try:
            aside.write_text(json.dumps(content, indent=1) + "\n")
            aside.replace(path)
        finally:
            with suppress(OSError):
                aside.unlink(missing_ok=True)


def read_json(path: Path) -> dict:
    """The JSON object in a file; empty if there is none that can be read."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _record(path: Path) -> Path:
    return path.with_name(path.name + ".json")


def _recall(path: Path) -> dict:
    remembered = read_json(_record(path))
    return remembered if isinstance(remembered.get("sha256"), str) else {}


def _acquire(handle: int, when_waiting: Callable[[], None]) -> None:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        when_waiting()
        fcntl.flock(handle, fcntl.LOCK_EX)
