"""The requests and responses of httpx, as both clients use them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import httpx

from jobcache.client.core.errors import BadLocation, BodyTooLarge
from jobcache.client.core.locations import shown
from jobcache.client.core.messages import Response, TransportError
from jobcache.client.core.operations import WaitSource

if TYPE_CHECKING:
    from collections.abc import Mapping

    from jobcache.client.core.messages import Request

LIMITS = httpx.Limits(max_connections=None, max_keepalive_connections=None)
"""A held request has a connection to itself; httpx's own limit of 100 would queue the others."""

MISTAKES = (httpx.UnsupportedProtocol, httpx.LocalProtocolError)
"""Errors that no repetition mends: an address or a key that cannot be sent."""

_CONNECT_WITHIN = 5.0
_PIECE_WITHIN = 10.0
# What a request to another origin has of the headers of the caller's httpx client.
_HARMLESS = ("user-agent", "accept-encoding", "connection")


def build(
    http: httpx.Client | httpx.AsyncClient,
    request: Request,
    address: str,
    headers: Mapping[str, str],
) -> tuple[httpx.Request, dict[str, Any]]:
    """Return a request of httpx, and the options to send it with.

    Args:
        http: the client that sends it.
        request: by the rules.
        address: of the service, before the URL of the request.
        headers: the caller's own.
    """
    each = request.timeout if request.receiver is None else min(request.timeout, _PIECE_WITHIN)
    timeout = httpx.Timeout(each, connect=min(_CONNECT_WITHIN, each))
    options: dict[str, Any] = {"stream": True, "follow_redirects": False}
    if request.credentials:
        built = http.build_request(
            request.method,
            f"{address}{request.url}",
            headers={**headers, **request.headers},
            json=request.body,
            timeout=timeout,
        )
        return built, options
    # The caller's httpx client may have headers, cookies, parameters and authentication of its own,
    # and would add them to a request that it builds.
    kept = {name: http.headers[name] for name in _HARMLESS if name in http.headers}
    extensions = {"timeout": timeout.as_dict()}
    built = httpx.Request(
        request.method, request.url, headers={**kept, **request.headers}, extensions=extensions
    )
    return built, {**options, "auth": None}


def failure(error: Exception) -> TransportError:
    """Return what the rules get in place of a response.

    Raises:
        BadLocation: the error is about `Location`; another attempt would fail, too.
    """
    # httpx parses the header of a redirect that it does not follow.
    if isinstance(error, httpx.RemoteProtocolError) and "location header" in str(error):
        raise BadLocation(str(error)) from error
    return TransportError(error)


class Body:
    """The body of a response, up to a limit.

    Args:
        request: whose response it is.
    """

    def __init__(self, request: Request) -> None:
        self._request = request
        self._parts: list[bytes] = []
        self._left = request.largest_body

    def add(self, part: bytes) -> None:
        """Add the next part.

        Raises:
            BodyTooLarge: the body exceeds the limit.
        """
        self._left -= len(part)
        if self._left < 0:
            raise BodyTooLarge(shown(self._request.url), self._request.largest_body)
        self._parts.append(part)

    def response(self, received: httpx.Response) -> Response:
        """Return the whole response as the rules take it."""
        return Response(received.status_code, lowered(received.headers), b"".join(self._parts))


def lowered(headers: httpx.Headers) -> dict[str, str]:
    """Return headers as the rules take them: with names in lower case."""
    return {name.lower(): value for name, value in headers.items()}


def bearer(key: str | None) -> dict[str, str]:
    """Return the headers that carry the API key; none without a key."""
    return {} if key is None else {"Authorization": f"Bearer {key}"}


def start(source: str | httpx.URL | httpx.Response) -> WaitSource:
    """Return where to begin for a URL, or for the response that began an operation."""
    if not isinstance(source, httpx.Response):
        url = str(httpx.URL(source))
        return WaitSource(url, "GET", url, None)
    received = source
    first = received.history[0] if received.history else received
    return WaitSource(
        str(received.url),
        received.request.method,
        str(first.request.url),
        Response(received.status_code, lowered(received.headers), received.content),
    )
