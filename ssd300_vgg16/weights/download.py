"""Published weights, downloaded once by pooch: from the first source that has the right file, checked, and kept."""

import fcntl
import json
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from datetime import date
from pathlib import Path

import pooch
import requests
import urllib3
from tqdm import tqdm

from ssd300_vgg16.errors import UserError
from ssd300_vgg16.files import sha256_of, write_json
from ssd300_vgg16.weights.published import Published, Source
from ssd300_vgg16.weights.request import Broken, Refused, ask, explain, strong_validator, whole_size

TRIES = 5
MAX_BYTES = 2 << 30  # bytes; four times the largest file of published weights
_BLOCK = 1 << 16


def cache_folder() -> Path:
    """SSD_CACHE, or ssd300_vgg16 in the user's cache folder (XDG_CACHE_HOME, or ~/.cache). It need not exist."""
    try:
        if named := os.environ.get("SSD_CACHE"):
            return Path(named).expanduser().absolute()
        base = Path(os.environ.get("XDG_CACHE_HOME", ""))
        return (base if base.is_absolute() else Path.home() / ".cache") / "ssd300_vgg16"
    except RuntimeError as error:  # no home
        raise UserError(f"no folder for downloaded weights was found ({error}): name one with SSD_CACHE") from error


def fetch(weights: Published, folder: Path | None = None, progress: bool = True) -> Path:
    """The file of published weights in the folder (cache_folder() by default), downloaded if need be.

    A file that is there already, downloaded or put there by hand, is checked and used without a network. Any number of
    processes may call this at once: one downloads, and the others wait for it. With progress, a bar and a line for
    each trouble go to standard error. Raises UserError if the file cannot be had, with the reason for each source, and
    if it was changed since.
    """
    folder = folder or cache_folder()
    with _disk_errors(folder):
        if cached := _cached(weights, folder):
            return cached
        folder.mkdir(parents=True, exist_ok=True)
        # An flock, because the kernel releases it when its holder dies, however it dies.
        with (folder / f".{weights.name}.lock").open("a") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                _say(f"another process is downloading {weights.name}: waiting for it", progress)
                fcntl.flock(lock, fcntl.LOCK_EX)
            # The process that held the lock may have put the file there meanwhile.
            return _cached(weights, folder) or _from_any(weights, folder, progress)


def _cached(weights: Published, folder: Path) -> Path | None:
    paths = ((folder / source.file_name, source) for source in weights.sources)
    return next((path for path, source in paths if _is_good(path, source)), None)


def _is_good(path: Path, source: Source) -> bool:
    """Whether the file is there and is the source's. Raises UserError if it is not, or no longer, the published one.

    A file whose size and time of change are those remembered is not read again.
    """
    if not path.is_file():
        return False
    status = path.stat()
    known = _read_json(_record(path))
    known = known if isinstance(known.get("sha256"), str) else {}
    untouched = (known.get("size"), known.get("mtime_ns")) == (status.st_size, status.st_mtime_ns)
    sha256 = known["sha256"] if untouched else sha256_of(path)
    if mismatch := source.mismatch(status.st_size, sha256):
        raise UserError(f"{path} is not the published file: {mismatch}. Delete it, to have it downloaded again")
    if sha256 != known.get("sha256", sha256):
        raise UserError(
            f"{path} has changed since it was checked on {known.get('date')}. Delete it, to have it downloaded "
            f"again; or delete {_record(path)}, to take it as it is"
        )
    if not untouched:
        with suppress(UserError):  # a cache that is read-only serves all the same
            _remember(path, source, sha256)
    return True


def _remember(path: Path, source: Source, sha256: str) -> None:
    status = path.stat()
    about = {"url": source.url, "size": status.st_size, "sha256": sha256, "mtime_ns": status.st_mtime_ns}
    _write_note(path, {**about, "date": date.today().isoformat()})


def _write_note(path: Path, about: dict) -> None:
    """Write what is known of a file beside it."""
    try:
        write_json(_record(path), about)
    except UserError as error:
        raise UserError(f"{error}; make room or give access, or set SSD_CACHE to another folder") from error


def _record(path: Path) -> Path:
    return path.with_name(path.name + ".json")


def _read_json(path: Path) -> dict:
    """The JSON object in a file; empty if there is none that can be read."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _from_any(weights: Published, folder: Path, progress: bool) -> Path:
    pooch.get_logger().setLevel("INFO" if progress else "ERROR")
    reasons = []
    for source in weights.sources:
        download = _Download(source, folder, progress)
        name = source.file_name
        cache = pooch.create(folder, "", registry={name: None}, urls={name: source.url}, retry_if_failed=TRIES - 1)
        try:
            path = Path(cache.fetch(name, downloader=download))
        except (Broken, Refused) as reason:
            reasons.append(f"  {source.url}: {reason}" + (f" ({TRIES} tries)" if isinstance(reason, Broken) else ""))
            continue
        _remember(path, source, download.sha256)
        for other in weights.sources:  # a source that failed before may have left a part
            _Download(other, folder, progress).discard()
        return path
    by_hand = next((source for source in weights.sources if source.sha256), weights.sources[0])
    raise UserError(
        "\n".join((f"{weights.name} could not be downloaded:", *reasons))
        + f"\nWithout a network, download {by_hand.url} on another machine and put it at {folder / by_hand.file_name}"
    )


class _Download:
    """A downloader for pooch: what has come is kept in NAME.part, and the next try goes on from there.

    NAME.part.json says which file that is: its URL, its validator, its whole size. sha256: the finished file's.
    """

    def __init__(self, source: Source, folder: Path, progress: bool):
        self.source, self.progress, self.sha256 = source, progress, ""
        self.path = folder / source.file_name
        self.part = folder / f"{source.file_name}.part"

    def __call__(self, url: str, output_file: str, _: object) -> None:
        with _disk_errors(self.part):
            Path(output_file).unlink()  # pooch's, empty as yet: a process that is killed would leave it behind
            try:
                self._check(self._transfer())
            except (Broken, Refused, requests.RequestException, urllib3.exceptions.HTTPError) as error:
                reason = error if isinstance(error, Broken | Refused) else explain(error)
                _say(f"{url}: {reason}", self.progress)
                raise reason from None
            _record(self.path).unlink(missing_ok=True)  # it is of a file that is not there any more
            self.part.replace(output_file)
            self.discard()

    def discard(self) -> None:
        """Remove what has come, and the note."""
        self.part.unlink(missing_ok=True)
        _record(self.part).unlink(missing_ok=True)

    def _size(self) -> int:
        return self.part.stat().st_size if self.part.is_file() else 0

    def _transfer(self) -> bool:
        """Complete the part. Whether earlier tries had a share in it: only if it is surely the same file."""
        note = _read_json(_record(self.part))
        validator, total = note.get("validator"), note.get("total")
        known = note.get("url") == self.source.url and (validator or self.source.sha256)
        # Without a validator or a hash nobody could tell that two halves are of different files.
        if not known or self._size() > (total or MAX_BYTES):
            self.discard()
        offset = self._size()
        if offset and offset == total:  # killed between the last byte and its check
            return True
        # "identity" asks for the bytes of the file: a .tar.gz is not to be unpacked on the way.
        headers = {"Accept-Encoding": "identity"}
        if offset:
            headers |= {"Range": f"bytes={offset}-"} | ({"If-Range": validator} if validator else {})
        with requests.Session() as session, closing(ask(session, self.source.url, headers)) as response:
            whole, now = whole_size(response), strong_validator(response)
            if response.status_code in (206, 416):  # not every server minds If-Range
                said = ((now, validator), (whole, total))
                changed = any(None not in pair and pair[0] != pair[1] for pair in said)
                joins = response.headers.get("Content-Range", "").startswith(f"bytes {offset}-")
                if changed or not joins or response.status_code == 416:
                    self.discard()
                    raise Broken("has another file than before: it is fetched anew")
            elif response.status_code != 200:
                passing = response.status_code >= 500 or response.status_code in (408, 429)
                raise (Broken if passing else Refused)(f"answers HTTP {response.status_code} ({response.reason})")
            self._check_offer(response, whole, offset if response.status_code == 206 else 0)
            if response.status_code == 200:
                offset = 0
                self.discard()
                _write_note(self.part, {"url": self.source.url, "validator": now, "total": whole})
            self._receive(response, whole)
        expected = whole or self.source.size
        if expected and self._size() < expected:
            raise Broken(f"broke off after {self._size():,} of {expected:,} bytes")
        return offset > 0

    def _check_offer(self, response: requests.Response, whole: int | None, offset: int) -> None:
        """Refuse, before its body is read, what cannot be the file or has no room; `offset` bytes are here already."""
        if response.headers.get("Content-Type", "").startswith("text/html"):
            raise Refused("sends a web page in place of the file (does this network ask for a login first?)")
        if whole and self.source.size and whole != self.source.size:
            raise Refused(f"offers a file of {whole:,} bytes; the published one has {self.source.size:,}")
        if whole and whole > MAX_BYTES:
            raise Refused(f"offers a file of {whole:,} bytes, more than weights of this network can have")
        needed = (whole or self.source.size or 0) - offset
        free = shutil.disk_usage(self.part.parent).free
        if needed > free:
            raise UserError(
                f"{self.part.parent} has {free / 1e6:,.0f} MB free and the download needs {needed / 1e6:,.0f} MB: make "
                "room, or set SSD_CACHE to a folder on another disk"
            )

    def _receive(self, response: requests.Response, whole: int | None) -> None:
        """Append the body to the part, unbuffered: whatever ends this, the bytes that have come are in the file."""
        bar = tqdm(
            desc=self.path.name,
            total=whole,
            initial=self._size(),
            unit="B",
            unit_scale=True,
            leave=False,
            disable=None if self.progress else True,  # None: no bar where standard error is no terminal
        )
        with bar, self.part.open("ab", buffering=0) as file:
            while block := response.raw.read1(_BLOCK, decode_content=False):  # as it is sent, and not held back
                if file.tell() + len(block) > MAX_BYTES:
                    self.discard()
                    raise Refused(f"sends more than {MAX_BYTES:,} bytes, more than weights of this network can have")
                bar.update(len(block))
                while block:  # a disk that fills up takes some of the bytes before it says so
                    block = block[file.write(block) :]
            os.fsync(file.fileno())

    def _check(self, resumed: bool) -> None:
        """Raises Refused if the part is the wrong file, Broken if that may be the joining."""
        self.sha256 = sha256_of(self.part)
        if mismatch := self.source.mismatch(self._size(), self.sha256):
            self.discard()
            raise Broken(mismatch) if resumed else Refused(f"sends another file: {mismatch}")


@contextmanager
def _disk_errors(path: Path) -> Iterator[None]:
    """An error of the disk becomes a UserError that names SSD_CACHE, and the error's own file or else this one."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{error.filename or path} could not be read or written ({error.strerror or error}): make room or give "
            "access, or set SSD_CACHE to another folder for downloaded weights"
        ) from error


def _say(message: str, progress: bool) -> None:
    if progress:
        tqdm.write(message, file=sys.stderr)
