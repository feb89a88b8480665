"""Published weights, downloaded once by pooch: from the first source that has the right file, checked, and kept."""

import fcntl
import json
import shutil
from contextlib import suppress
from pathlib import Path

import pooch
import requests
from tqdm import tqdm
from urllib3.exceptions import HTTPError

from ssd300_vgg16.errors import UserError
from ssd300_vgg16.files import sha256_of
from ssd300_vgg16.weights.published import Published, Source

TRIES = 5
MAX_BYTES = 2 << 30  # four times the largest file of published weights: a server that never stops is left
TIMEOUT = (10, 30)  # seconds to connect, and of silence: a server that is slow, but sends, is waited for


class Broken(ValueError):
    """This try failed, and another may not: pooch tries again after a ValueError."""


class Refused(Exception):
    """This source does not give the file, however often it is asked."""


def fetch(weights: Published) -> Path:
    """The file of published weights in SSD_CACHE, else in ~/.cache/ssd300_vgg16, downloaded if need be.

    A file that is there already, downloaded or put there by hand, is checked and used without a network. Of several
    processes one downloads, and the others wait. Raises UserError if the file cannot be had, or was changed since.
    """
    urls = {source.file_name: source.url for source in weights.sources}
    # Without hashes for pooch: of most files none is known, and of the others the first digits.
    cache = pooch.create(pooch.os_cache("ssd300_vgg16"), "", registry=dict.fromkeys(urls), urls=urls, env="SSD_CACHE")
    cache.retry_if_failed = TRIES - 1
    try:
        if path := _cached(weights, cache.abspath):
            return path
        cache.abspath.mkdir(parents=True, exist_ok=True)
        # An flock, because the kernel releases it when its holder dies, however it dies.
        with (cache.abspath / f".{weights.name}.lock").open("a") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                pooch.get_logger().info("another process is downloading %s: waiting for it", weights.name)
                fcntl.flock(lock, fcntl.LOCK_EX)
            # The process that held the lock may have put the file there meanwhile.
            return _cached(weights, cache.abspath) or _from_any(weights, cache)
    except OSError as error:
        raise UserError(
            f"{error.filename or cache.abspath} could not be read or written ({error.strerror or error}): make room "
            "or give access, or set SSD_CACHE to another folder for downloaded weights"
        ) from error


def _cached(weights: Published, folder: Path) -> Path | None:
    """The file that is there; raises UserError if it is not the published one, or not the one that was downloaded."""
    for source in weights.sources:
        path = folder / source.file_name
        if path.is_file():
            _check(path, source)
            return path
    return None


def _check(path: Path, source: Source) -> None:
    """Raises UserError as `_cached`. A file of the size and time of change that are remembered is not read again."""
    status, known = path.stat(), _remembered(path)
    untouched = known.get("size") == status.st_size and known.get("mtime_ns") == status.st_mtime_ns
    sha256 = known["sha256"] if untouched else sha256_of(path)
    if mismatch := source.mismatch(status.st_size, sha256):
        raise UserError(f"{path} is not the published file: {mismatch}. Delete it, to have it downloaded again")
    if known and known["sha256"] != sha256:
        raise UserError(
            f"{path} has changed since it was last checked. Delete it, to have it downloaded again; or delete "
            f"{_record(path)}, to take it as it is"
        )
    if not untouched:
        with suppress(OSError):  # a cache that is read-only serves all the same
            _remember(path, path, sha256)


def _record(path: Path) -> Path:
    return Path(f"{path}.json")


def _remember(path: Path, content: Path, sha256: str) -> None:
    """Note what the file of this path is, whose content may still lie elsewhere."""
    status = content.stat()
    about = {"size": status.st_size, "mtime_ns": status.st_mtime_ns, "sha256": sha256}
    _record(path).write_text(json.dumps(about))


def _remembered(path: Path) -> dict:
    """What `_remember` noted; empty if there is nothing that can be read."""
    try:
        known = json.loads(_record(path).read_bytes())
        return known if isinstance(known["sha256"], str) else {}
    except (OSError, ValueError, LookupError, TypeError):
        return {}


def _from_any(weights: Published, cache: pooch.Pooch) -> Path:
    reasons = []
    for source in weights.sources:
        try:
            path = Path(cache.fetch(source.file_name, downloader=_Resuming(source, cache.abspath)))
        except (Broken, Refused) as reason:
            reasons.append(f"  {source.url}: {reason}" + (f" ({TRIES} tries)" if isinstance(reason, Broken) else ""))
            continue
        for other in weights.sources:  # one that failed before may have left a part
            _Resuming(other, cache.abspath).discard()
        return path
    by_hand = next((source for source in weights.sources if source.sha256), weights.sources[0])
    advice = f"Without a network, download {by_hand.url} elsewhere and put it at {cache.abspath / by_hand.file_name}"
    raise UserError("\n".join((f"{weights.name} could not be downloaded:", *reasons, advice)))


class _Resuming:
    """A downloader for pooch, whose own begins anew: what has come is kept in NAME.part, and the next try goes on.

    NAME.validator holds what the server tells the file by: without it, two halves could be of different files.
    """

    def __init__(self, source: Source, folder: Path):
        self.source, self.path = source, folder / source.file_name
        self.part, self.validator = Path(f"{self.path}.part"), Path(f"{self.path}.validator")

    def __call__(self, url: str, output_file: str, _: object) -> None:
        Path(output_file).unlink()  # pooch's, empty as yet: a process that is killed would leave it behind
        try:
            self._transfer(url)
        except requests.exceptions.ProxyError:  # whose text may hold the proxy's password
            raise Broken("is behind a proxy (HTTP_PROXY, HTTPS_PROXY) that does not let this through") from None
        except (requests.exceptions.InvalidSchema, requests.TooManyRedirects) as error:
            raise Refused(f"redirects to nowhere: {error}") from error
        except requests.RequestException as error:
            wrapped = getattr(error.args[0] if error.args else None, "reason", error)
            if "CERTIFICATE_VERIFY_FAILED" in str(error):  # a certificate does not mend itself
                advice = "if a proxy here opens https, set REQUESTS_CA_BUNDLE"
                raise Refused(f"has a certificate that is not trusted; {advice} ({wrapped})") from error
            raise Broken(f"could not be reached; is there a network, or a proxy to set? ({wrapped})") from error
        except HTTPError as error:
            raise Broken(f"broke off the connection ({error.args[0]})") from error
        sha256 = sha256_of(self.part)
        if mismatch := self.source.mismatch(self.part.stat().st_size, sha256):
            self.part.unlink()
            raise Refused(f"sends another file: {mismatch}")
        _remember(self.path, self.part, sha256)
        self.part.replace(output_file)

    def discard(self) -> None:
        """Remove what has come."""
        self.part.unlink(missing_ok=True)
        self.validator.unlink(missing_ok=True)

    def _transfer(self, url: str) -> None:
        known = self.validator.read_text("latin1") if self.validator.is_file() else ""
        offset = self.part.stat().st_size if known and self.part.is_file() else 0
        headers = {"Accept-Encoding": "identity"}  # the bytes of the file: a .tar.gz is not to be unpacked on the way
        if offset:
            headers |= {"Range": f"bytes={offset}-", "If-Range": known}
        with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT) as response:
            _refuse_answer(response)
            # A strong ETag, or else the time of change, may stand in If-Range.
            etag = response.headers.get("ETag", "W/")
            validator = response.headers.get("Last-Modified", "") if etag.startswith("W/") else etag
            goes_on = response.headers.get("Content-Range", "").startswith(f"bytes {offset}-")
            joins = offset and goes_on and validator == known  # not every server minds If-Range
            if response.status_code == 416 or (response.status_code == 206 and not joins):
                self.part.unlink(missing_ok=True)
                raise Broken("has another file than before: it is fetched anew")
            if response.status_code == 200:
                self.part.unlink(missing_ok=True)  # first, or a part of another file could get this validator
                self.validator.write_text(validator, "latin1")
            total = response.raw.length_remaining  # of what is still to come; None if the server does not say it
            free = shutil.disk_usage(self.path.parent).free
            if total and total > free:
                raise UserError(
                    f"{self.path.parent} has {free / 1e6:,.0f} MB free and the download needs {total / 1e6:,.0f} MB: "
                    "make room, or set SSD_CACHE to a folder on another disk"
                )
            bar = tqdm(desc=self.path.name, total=total, unit="B", unit_scale=True, leave=False, disable=None)
            with bar, self.part.open("ab") as file:
                # As it is sent, and not held back: whatever ends this, the bytes that have come are in the file.
                while block := response.raw.read1(1 << 16, decode_content=False):
                    if file.tell() + len(block) > MAX_BYTES:
                        self.part.unlink()
                        raise Refused(f"sends more than {MAX_BYTES:,} bytes, and weights of this network have less")
                    file.write(block)
                    file.flush()
                    bar.update(len(block))


def _refuse_answer(response: requests.Response) -> None:
    """Raises Broken or Refused if this is no answer with a file in it, or came by a way that anyone could change."""
    hops = [hop.url for hop in (*response.history, response)]
    if hops[0].startswith("https:") and not all(hop.startswith("https:") for hop in hops):
        raise Refused(f"redirects from https to {hops[-1]}, which is not protected")
    if response.status_code not in (200, 206, 416):
        passing = response.status_code >= 500 or response.status_code in (408, 429)
        raise (Broken if passing else Refused)(f"answers HTTP {response.status_code} ({response.reason})")
    if response.headers.get("Content-Type", "").startswith("text/html"):
        raise Refused("sends a web page in place of the file (does this network ask for a login first?)")
