"""One file from one URL: what has come is kept where it breaks off, and the next transfer goes on from there."""

import re
import shutil
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from urllib.parse import urljoin, urlsplit

import requests
import urllib3
from tqdm import tqdm

from ssd300_vgg16.errors import UserError
from ssd300_vgg16.weights.cache import disk_errors, read_json, write_json
from ssd300_vgg16.weights.network_errors import Broken, Refused, explain, explain_status
from ssd300_vgg16.weights.published import Source

CONNECT_TIMEOUT = 10  # seconds
READ_TIMEOUT = 30  # seconds of silence: a server that is slow, but sends, is waited for
LARGEST = 2 << 30  # bytes; four times the largest file of published weights
MOST_REDIRECTS = 5
_BLOCK = 1 << 16


class Part:
    """What has come of a file so far, and a note of which file it is: its URL, its validator, its whole size."""

    def __init__(self, target: Path):
        self.path = target.with_name(target.name + ".part")
        self._note = target.with_name(target.name + ".part.json")

    def size(self) -> int:
        """Bytes that have come; 0 if there are none."""
        return self.path.stat().st_size if self.path.is_file() else 0

    def note(self, source: Source) -> dict:
        """The note, if it is of this source; empty otherwise."""
        note = read_json(self._note)
        return note if note.get("url") == source.url else {}

    def begin(self, source: Source, validator: str | None, total: int | None) -> None:
        """Drop what has come, and note what comes now."""
        self.discard()
        write_json(self._note, {"url": source.url, "validator": validator, "total": total})

    def discard(self) -> None:
        """Remove what has come, and the note."""
        with disk_errors(self.path):
            self.path.unlink(missing_ok=True)
            self._note.unlink(missing_ok=True)


def transfer(source: Source, part: Part, progress: bool) -> bool:
    """Complete the part, from where it is. Whether earlier transfers had a share in it.

    Raises Broken if another try may help, Refused if it will not, UserError if the disk does not take the file.
    """
    offset = _offset(source, part)
    note = part.note(source)
    if offset and offset == note["total"]:  # killed between the last byte and its check
        return True
    with requests.Session() as session, closing(_ask(session, source.url, _headers(offset, note))) as response:
        if response.status_code == 416:
            return _already_whole(response, part, note)
        total, resumed = _check(response, source, offset, note)
        if not resumed:
            offset = 0
            part.begin(source, _validator(response), total)
        _check_room(part, (total or source.size or 0) - offset)
        _receive(response, part, total, progress, source.file_name)
    _check_whole(part, total or source.size)
    return resumed


def _offset(source: Source, part: Part) -> int:
    """From where to go on: 0 if the part cannot be told to be the start of what the source has now."""
    note = part.note(source)
    recognisable = note and (note["validator"] or source.sha256)
    if not part.size() or not recognisable or part.size() > (note["total"] or LARGEST):
        part.discard()
    return part.size()


def _headers(offset: int, note: dict) -> dict[str, str]:
    headers = {"Accept-Encoding": "identity"}  # the bytes of the file: a .tar.gz is not to be unpacked on the way
    if offset:
        headers["Range"] = f"bytes={offset}-"
        if note["validator"]:
            headers["If-Range"] = note["validator"]
    return headers


def _ask(session: requests.Session, url: str, headers: dict[str, str]) -> requests.Response:
    """The response to GET, its body unread, after redirects: to http or https only, and never from https to http."""
    for _ in range(MOST_REDIRECTS + 1):
        if urlsplit(url).scheme not in ("http", "https"):
            raise Refused(f"cannot be asked: {url} is no http or https address")
        timeout = (CONNECT_TIMEOUT, READ_TIMEOUT)
        try:
            response = session.get(url, headers=headers, stream=True, timeout=timeout, allow_redirects=False)
        except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
            raise explain(error) from error
        if not response.is_redirect:
            return response
        response.close()
        target = urljoin(url, response.headers["Location"])
        if urlsplit(url).scheme == "https" and urlsplit(target).scheme != "https":
            raise Refused(f"redirects from https to {target}, which is not protected")
        url = target
    raise Refused(f"redirects more than {MOST_REDIRECTS} times")


def _check(response: requests.Response, source: Source, offset: int, note: dict) -> tuple[int | None, bool]:
    """The size of the whole file, if the response says it, and whether its body goes on from offset.

    Raises Broken or Refused if the body is not to be taken.
    """
    if response.status_code not in (200, 206):
        raise explain_status(response.status_code)
    if response.headers.get("Content-Type", "").startswith("text/html"):
        raise Refused("sends a web page in place of the file (does this network ask for a login first?)")
    total, resumed = _length(response.headers.get("Content-Length")), False
    if response.status_code == 206:
        start, total = _content_range(response)
        if start != offset or _changed(response, total, note):
            raise Broken("has another file than before: it is fetched anew", start_again=True)
        resumed = offset > 0
    if source.size and total and total != source.size:
        raise Refused(f"offers a file of {total:,} bytes; the published one has {source.size:,}")
    if total and total > LARGEST:
        raise Refused(f"offers a file of {total:,} bytes, more than weights of this network can have")
    return total, resumed


def _changed(response: requests.Response, total: int | None, note: dict) -> bool:
    """Whether what the response says of the file contradicts the note: not every server minds If-Range."""
    said = (_validator(response), note.get("validator")), (total, note.get("total"))
    return any(None not in (now, before) and now != before for now, before in said)


def _content_range(response: requests.Response) -> tuple[int | None, int | None]:
    """First byte and whole size, of `bytes 100-999/1000`; None where it does not say."""
    found = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
    return (int(found[1]), _length(found[2])) if found else (None, None)


def _length(text: str | None) -> int | None:
    return int(text) if text and text.isascii() and text.isdigit() else None


def _validator(response: requests.Response) -> str | None:
    """What If-Range may hold, to go on with this very file: a strong ETag, or else the time of change."""
    etag = response.headers.get("ETag", "W/")
    return response.headers.get("Last-Modified") if etag.startswith("W/") else etag


def _already_whole(response: requests.Response, part: Part, note: dict) -> bool:
    """What 416, nothing from there on, means: the part is the whole file, or it has to be begun again."""
    found = re.fullmatch(r"bytes \*/(\d+)", response.headers.get("Content-Range", ""))
    if found and int(found[1]) == part.size() and note.get("total") is None:
        return True
    raise Broken("has a file of another size than it said", start_again=True)


def _check_room(part: Part, needed: int) -> None:
    with disk_errors(part.path):
        free = shutil.disk_usage(part.path.parent).free
    if needed > free:
        raise UserError(
            f"{part.path.parent} has {free / 1e6:,.0f} MB free and the download needs {needed / 1e6:,.0f} MB: make "
            "room, or set SSD_CACHE to a folder on another disk"
        )


def _receive(response: requests.Response, part: Part, total: int | None, progress: bool, name: str) -> None:
    """Append the body to the part, unbuffered: whatever ends this, the bytes that have come are in the file."""
    hidden = None if progress else True  # None: where standard error is no terminal
    bar = tqdm(total=total, initial=part.size(), desc=name, unit="B", unit_scale=True, disable=hidden, leave=False)
    with bar, disk_errors(part.path), part.path.open("ab", buffering=0) as file:
        for block in _blocks(response):
            if file.tell() + len(block) > LARGEST:
                part.discard()
                raise Refused(f"sends more than {LARGEST:,} bytes, more than weights of this network can have")
            bar.update(len(block))
            while block:  # a disk that fills up takes some of the bytes before it says so
                block = block[file.write(block) :]


def _blocks(response: requests.Response) -> Iterator[bytes]:
    """The body as it is sent, in the pieces it comes in; a piece is not held back until it is full."""
    try:
        while block := response.raw.read1(_BLOCK, decode_content=False):
            yield block
    except urllib3.exceptions.HTTPError as error:
        raise explain(error) from error


def _check_whole(part: Part, expected: int | None) -> None:
    if expected is not None and part.size() < expected:
        raise Broken(f"broke off after {part.size():,} of {expected:,} bytes")
