"""What both clients pass to httpx."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import httpx

from jobcache.client.core.messages import Response

if TYPE_CHECKING:
    from jobcache.client.core.messages import Request

LIMITS = httpx.Limits(max_connections=None, max_keepalive_connections=None)
"""A held request has a connection to itself; httpx's own limit of 100 would queue the others."""

MISTAKES = (httpx.UnsupportedProtocol, httpx.LocalProtocolError)
"""Errors that no repetition mends: an address or a key that cannot be sent."""

_CONNECT_WITHIN = 5.0


def arguments(request: Request, address: str, credentials: dict[str, str]) -> dict[str, Any]:
    """Return the arguments of httpx's `request`."""
    return {
        "method": request.method,
        "url": f"{address}{request.path}",
        "headers": {**request.headers, **credentials},
        "json": request.body,
        "timeout": httpx.Timeout(request.timeout, connect=min(_CONNECT_WITHIN, request.timeout)),
        "follow_redirects": False,
    }


def response_of(received: httpx.Response) -> Response:
    """Return a response of httpx as the rules take it."""
    headers = {name.lower(): value for name, value in received.headers.items()}
    return Response(received.status_code, headers, received.content)


def credentials(key: str | None) -> dict[str, str]:
    """Return the headers that carry the API key; none without a key."""
    return {} if key is None else {"Authorization": f"Bearer {key}"}
