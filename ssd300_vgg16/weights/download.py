"""Published weights, downloaded once by pooch: from the first source that has the right file, checked, and kept."""

import errno
import fcntl
import shutil
from contextlib import suppress
from functools import partial
from pathlib import Path

import pooch
import requests
from tqdm import tqdm
from urllib3.exceptions import HTTPError

from ssd300_vgg16.errors import UserError
from ssd300_vgg16.files import write_json
from ssd300_vgg16.folders import own_cache_folder
from ssd300_vgg16.reading import sha256_of
from ssd300_vgg16.weights.published import Published, Source

TRIES = 5
Broken = ValueError  # this try failed, and another may not: pooch tries again after it, and not after a UserError
MAX_BYTES = 2 << 30  # four times the largest file of published weights: a server that never stops is left
TIMEOUT = (10, 30)  # seconds to connect, and of silence: a server that is slow, but sends, is waited for


def fetch(weights: Published) -> Path:
    """The file of published weights in the user's own cache folder, read and checked; downloaded if it is not there.

    Of several processes one downloads, and the others wait. Raises UserError if it cannot be had, or was changed.
    """
    folder = own_cache_folder()
    try:
        if path := _kept(weights, folder):
            return path
        # An flock, because the kernel releases it when its holder dies, however it dies.
        with (folder / f".{weights.name}.lock").open("a") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                pooch.get_logger().info("another process is downloading %s: waiting for it", weights.name)
                fcntl.flock(lock, fcntl.LOCK_EX)
            # The process that held the lock may have put the file there meanwhile.
            return _kept(weights, folder) or _from_any(weights, folder)
    except OSError as error:
        told = f"{error.filename or folder} could not be read or written ({error.strerror or error})"
        raise UserError(f"{told}: make room or give access, or set SSD_CACHE to another folder") from error


def _kept(weights: Published, folder: Path) -> Path | None:
    """The file that is there; raises UserError if it is not the published one, or not the one that was first there."""
    for source in weights.sources:
        path = folder / source.file_name
        if path.is_file():
            sha256, record = sha256_of(path), Path(f"{path}.json")
            if mismatch := source.mismatch(path.stat().st_size, sha256):
                raise UserError(f"{path} is not the published file: {mismatch}. Delete it, to have it downloaded again")
            if not record.exists():  # which is for the files that no whole hash is published of
                with suppress(UserError):  # a cache that is read-only serves all the same
                    write_json(record, {"sha256": sha256})
            elif sha256 not in record.read_text("latin1"):
                advice = f"Delete it, to have it downloaded again; or delete {record}, to take it as it is"
                raise UserError(f"{path} has changed since it was first there. {advice}")
            return path
    return None


def _from_any(weights: Published, folder: Path) -> Path:
    urls = {source.file_name: source.url for source in weights.sources}
    # Without hashes for pooch, which takes whole ones: of most files none is known, of the others the first digits.
    cache = pooch.create(folder, "", registry=dict.fromkeys(urls), urls=urls, retry_if_failed=TRIES - 1)
    reasons = []
    for source in weights.sources:
        try:
            path = Path(cache.fetch(source.file_name, downloader=partial(_go_on, source)))
        except (Broken, UserError) as reason:
            reasons.append(f"  {source.url}: {reason}" + (f" ({TRIES} tries)" if isinstance(reason, Broken) else ""))
            continue
        for name in urls:  # a source that failed before may have left a part
            (folder / f"{name}.part").unlink(missing_ok=True)
            (folder / f"{name}.validator").unlink(missing_ok=True)
        return path
    by_hand = next((source for source in weights.sources if source.sha256), weights.sources[0])
    advice = f"Without a network, download {by_hand.url} elsewhere and put it at {folder / by_hand.file_name}"
    raise UserError("\n".join((f"{weights.name} could not be downloaded:", *reasons, advice)))


def _go_on(source: Source, url: str, output_file: str, cache: pooch.Pooch) -> None:
    """A downloader for pooch, whose own begins anew: what has come is kept in NAME.part, and the next try goes on."""
    Path(output_file).unlink()  # pooch's, empty as yet: a process that is killed would leave it behind
    try:
        part = _transfer(url, cache.abspath / source.file_name)
    except requests.exceptions.ProxyError:  # whose text may hold the proxy's password
        raise Broken("is behind a proxy (HTTP_PROXY, HTTPS_PROXY) that does not let this through") from None
    except requests.RequestException as error:
        wrapped = getattr(error.args[0] if error.args else None, "reason", error)
        if "CERTIFICATE_VERIFY_FAILED" in str(error):  # a certificate does not mend itself
            raise UserError(f"has an untrusted certificate: for a proxy set REQUESTS_CA_BUNDLE ({wrapped})") from error
        raise Broken(f"could not be reached; is there a network, or a proxy to set? ({wrapped})") from error
    except HTTPError as error:
        raise Broken(f"broke off the connection ({error.args[0]})") from error
    sha256 = sha256_of(part)
    if mismatch := source.mismatch(part.stat().st_size, sha256):
        part.unlink()
        raise UserError(f"sends another file: {mismatch}")
    write_json(cache.abspath / f"{source.file_name}.json", {"sha256": sha256})
    part.replace(output_file)


def _transfer(url: str, path: Path) -> Path:
    """The part, now whole; beside it stands what the server tells it by, or two halves could be of different files."""
    part, validator = Path(f"{path}.part"), Path(f"{path}.validator")
    known = validator.read_text("latin1") if part.is_file() and validator.is_file() else ""
    offset = part.stat().st_size if known else 0
    headers = {"Range": f"bytes={offset}-", "If-Range": known} if offset else {}
    headers["Accept-Encoding"] = "identity"  # the bytes of the file: a .tar.gz is not to be unpacked on the way
    with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT) as response:
        _refuse_answer(response)
        # A strong ETag may stand in If-Range, a weak one not; and not every server minds If-Range.
        current = etag if (etag := response.headers.get("ETag", "")).startswith('"') else ""
        goes_on = response.headers.get("Content-Range", "").startswith(f"bytes {offset}-")
        if not (offset and goes_on and current == known):
            part.unlink(missing_ok=True)
            if response.status_code != 200:
                raise Broken("has another file than before: it is fetched anew")
            validator.write_text(current, "latin1")
        total = response.raw.length_remaining  # of what is still to come; None if the server does not say it
        if total and total > (free := shutil.disk_usage(path.parent).free):
            raise OSError(errno.ENOSPC, f"{free / 1e6:,.0f} MB free, {total / 1e6:,.0f} MB to come", str(path.parent))
        bar = tqdm(desc=path.name, total=total, unit="B", unit_scale=True, leave=False, disable=None)
        with bar, part.open("ab") as file:
            # As it is sent, and not held back: whatever ends this, the bytes that have come are in the file.
            while block := response.raw.read1(1 << 16, decode_content=False):
                if file.tell() + len(block) > MAX_BYTES:
                    part.unlink()
                    raise UserError(f"sends more than {MAX_BYTES:,} bytes, and weights of this network have less")
                file.write(block)
                file.flush()
                bar.update(len(block))
    return part


def _refuse_answer(response: requests.Response) -> None:
    """Raises Broken or UserError if this is no answer with a file, or came by a way that anyone could change."""
    hops = [hop.url for hop in (*response.history, response)]
    if hops[0].startswith("https:") and not all(hop.startswith("https:") for hop in hops):
        raise UserError(f"redirects from https to {hops[-1]}, which is not protected")
    if response.status_code not in (200, 206, 416):
        passing = response.status_code >= 500 or response.status_code in (408, 429)
        raise (Broken if passing else UserError)(f"answers HTTP {response.status_code} ({response.reason})")
    if response.headers.get("Content-Type", "").startswith("text/html"):
        raise UserError("sends a web page in place of the file (does this network ask for a login first?)")
