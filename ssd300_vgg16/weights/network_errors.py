"""Why a download did not come, in words for people, and whether another try may help."""

import http.client
import socket
import ssl
from collections.abc import Iterator

import requests
import urllib3


class Broken(Exception):
    """This try failed, and another may not; with start_again, from the file's first byte."""

    def __init__(self, reason: str, start_again: bool = False):
        super().__init__(reason)
        self.start_again = start_again


class Refused(Exception):
    """This source does not give the file, however often it is asked."""


_WORDS = {
    socket.gaierror: "has a name that could not be resolved (is there a network, and DNS?)",
    ConnectionRefusedError: "refuses connections",
    urllib3.exceptions.ConnectTimeoutError: "could not be reached (is there a network, or a firewall?)",
    urllib3.exceptions.ReadTimeoutError: "fell silent",
    http.client.IncompleteRead: "broke off the connection",
    http.client.RemoteDisconnected: "broke off the connection",
    ConnectionResetError: "broke off the connection",
}

_STATUS = {
    401: "asks for a login",
    403: "denies access",
    404: "does not have the file any more",
    407: "is behind a proxy that asks for a login: HTTP_PROXY=http://NAME:PASSWORD@HOST:PORT",
    408: "took too long",
    410: "does not have the file any more",
    429: "has had too many requests for now",
}
_PASSING = (408, 429)


def explain(error: Exception) -> Broken | Refused:
    """What an error of requests or urllib3 means: a Broken or a Refused, to be raised."""
    causes = list(_causes(error))
    reason = next((words for kind, words in _WORDS.items() if any(isinstance(one, kind) for one in causes)), None)
    if any(isinstance(cause, urllib3.exceptions.ProxyError) for cause in causes):
        return Broken(f"is behind a proxy (HTTP_PROXY, HTTPS_PROXY) that {reason or f'fails ({causes[-1]})'}")
    if any(isinstance(cause, ssl.SSLCertVerificationError) for cause in causes):
        return Refused(
            f"has a certificate that is not trusted ({causes[-1]}); if a proxy here opens https, set "
            "REQUESTS_CA_BUNDLE to the file with its certificate"
        )
    if any(isinstance(cause, requests.exceptions.InvalidURL | requests.exceptions.InvalidSchema) for cause in causes):
        return Refused(f"cannot be asked: {causes[-1]}")
    return Broken(reason or f"cannot be talked to ({causes[-1]})")


def explain_status(status: int) -> Broken | Refused:
    """What an HTTP status that brings no file means."""
    reason = f"{_STATUS.get(status, 'has a fault' if status >= 500 else 'does not give the file')} (HTTP {status})"
    return Broken(reason) if status >= 500 or status in _PASSING else Refused(reason)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """The error and what it wraps, outermost first: requests and urllib3 keep that in various places."""
    seen = []
    while isinstance(error, BaseException) and error not in seen:
        seen.append(error)
        yield error
        wrapped = (getattr(error, "reason", None), getattr(error, "original_error", None), *error.args, error.__cause__)
        error = next((cause for cause in wrapped if isinstance(cause, BaseException)), None)
