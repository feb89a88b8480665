"""One request to a server of files: its redirects, what its answer says, and what its failures mean."""

from urllib.parse import urljoin, urlsplit

import requests
import urllib3

TIMEOUT = (10, 30)  # seconds to connect, and of silence: a server that is slow, but sends, is waited for
MAX_REDIRECTS = 5


class Broken(ValueError):
    """This try failed, and another may not: pooch tries again after a ValueError."""


class Refused(Exception):
    """This source does not give the file, however often it is asked."""


def ask(session: requests.Session, url: str, headers: dict[str, str]) -> requests.Response:
    """The response to GET, its body unread, after redirects: to http or https only, and never from https to http."""
    for _ in range(MAX_REDIRECTS + 1):
        if urlsplit(url).scheme not in ("http", "https"):
            raise Refused(f"cannot be asked: {url} is no http or https address")
        response = session.get(url, headers=headers, stream=True, timeout=TIMEOUT, allow_redirects=False)
        if not response.is_redirect:
            return response
        response.close()
        target = urljoin(url, response.headers["Location"])
        if urlsplit(url).scheme == "https" and urlsplit(target).scheme != "https":
            raise Refused(f"redirects from https to {target}, which is not protected")
        url = target
    raise Refused(f"redirects more than {MAX_REDIRECTS} times")


def explain(error: Exception) -> Broken | Refused:
    """What an error of requests or urllib3 means: a Broken or a Refused, to be raised."""
    if isinstance(error, requests.exceptions.ProxyError):  # whose text may hold the proxy's password
        return Broken("is behind a proxy (HTTP_PROXY, HTTPS_PROXY) that does not let this through")
    if isinstance(error, requests.exceptions.SSLError) and "CERTIFICATE_VERIFY_FAILED" in str(error):
        return Refused("has a certificate that is not trusted; if a proxy here opens https, set REQUESTS_CA_BUNDLE")
    if isinstance(error, ValueError):
        return Refused(f"cannot be asked: {error}")
    if isinstance(error, requests.Timeout | urllib3.exceptions.TimeoutError):
        return Broken("fell silent")
    if isinstance(error, urllib3.exceptions.ProtocolError):
        return Broken("broke off the connection")
    wrapped = getattr(error.args[0] if error.args else None, "reason", None)
    return Broken(f"could not be reached, is there a network? ({wrapped or error})")


def whole_size(response: requests.Response) -> int | None:
    """Bytes of the whole file, if the response says it: behind the slash of a Content-Range, or the Content-Length."""
    name = "Content-Range" if response.status_code == 206 else "Content-Length"
    size = response.headers.get(name, "").rpartition("/")[2]
    return int(size) if size.isascii() and size.isdigit() else None


def strong_validator(response: requests.Response) -> str | None:
    """What If-Range may hold, to go on with this very file: a strong ETag, or else the time of change."""
    etag = response.headers.get("ETag", "W/")
    return response.headers.get("Last-Modified") if etag.startswith("W/") else etag
