"""A keep-alive connection with one request at a time: just enough HTTP, at little cost."""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING, NamedTuple, cast

if TYPE_CHECKING:
    from collections.abc import Callable

HOST = "127.0.0.1"

_FIELDS = re.compile(
    rb'\r\n(?:content-length: (\d+)|etag: "(\d+)-|cache-status: ([^\r]*)|(retry-after): )',
    re.IGNORECASE,
)
_WITHOUT_BODY = {204, 304}


class Response(NamedTuple):
    """A response.

    Attributes:
        status: the status code; 0 if the connection was lost instead.
        version: the version in its ETag; 0 without one.
        cache_status: the field of that name; empty without one.
        retry_after: whether there is a field of that name.
        body: its bytes; of a lost connection, the reason.
    """

    status: int
    version: int
    cache_status: bytes
    retry_after: bool
    body: bytes

    @property
    def lost(self) -> bool:
        """Whether the connection was lost instead."""
        return self.status == 0

    @property
    def hit(self) -> bool:
        """Whether it came from the cache."""
        return self.cache_status.startswith(b"jobcache; hit")

    @property
    def stale(self) -> bool:
        """Whether it came from the cache past its freshness, because the database is away."""
        return b"fwd-status=503" in self.cache_status


class Connection(asyncio.Protocol):
    """One connection.

    Args:
        received: called with each response, and once with a lost one when the connection is lost.
    """

    def __init__(self, received: Callable[[Response], None]) -> None:
        self._received = received
        self._buffer = b""
        self.open = True

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self._transport = cast("asyncio.Transport", transport)

    def send(self, request: bytes) -> None:
        """Send a request; the response to the one before must have come."""
        self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        """Hand over the response once it is complete; it may come in any pieces."""
        if self._buffer:
            data = self._buffer + data
        head, complete, body = data.partition(b"\r\n\r\n")
        if not complete:
            self._buffer = data
            return
        length = version = 0
        cache_status = b""
        retry_after = sized = False
        for digits, tag, how, later in _FIELDS.findall(head):
            if digits:
                sized, length = True, int(digits)
            elif tag:
                version = int(tag)
            elif later:
                retry_after = True
            else:
                cache_status = how
        status = int(head[9:12]) if head[9:12].isdigit() else 0
        if status not in _WITHOUT_BODY:  # which may state a length all the same
            if not sized or not status:
                self.abort(f"the response cannot be read: {head[:80]!r}")
                return
            if len(body) < length:
                self._buffer = data
                return
        self._buffer = b""
        self._received(Response(status, version, cache_status, retry_after, body))

    def connection_lost(self, error: Exception | None) -> None:
        """Report the loss, unless this side has closed the connection."""
        self._end(f"the connection was lost: {error}")

    def abort(self, reason: str) -> None:
        """Close the connection at once and report it as lost."""
        self._transport.abort()
        self._end(reason)

    def close(self) -> None:
        """Close the connection; nothing more is received."""
        self.open = False
        self._transport.close()

    def _end(self, reason: str) -> None:
        if self.open:
            self.open = False
            self._received(Response(0, 0, b"", retry_after=False, body=reason.encode()))


async def connect(port: int, received: Callable[[Response], None]) -> Connection:
    """Return a new connection to a port of this machine."""
    loop = asyncio.get_running_loop()
    _, connection = await loop.create_connection(lambda: Connection(received), HOST, port)
    return connection


def get(path: str, version: int = 0) -> bytes:
    """Return the bytes of a GET request; conditional if the client has seen a version."""
    condition = f'If-None-Match: "{version}-0"\r\n' if version else ""
    return f"GET {path} HTTP/1.1\r\nHost: {HOST}\r\n{condition}\r\n".encode()


def post(path: str, body: bytes = b"", **headers: str) -> bytes:
    """Return the bytes of a POST request with a body of JSON.

    Underscores in the names of headers become hyphens.
    """
    lines = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
    return (
        f"POST {path} HTTP/1.1\r\nHost: {HOST}\r\n"
        f"Content-Type: application/json\r\n{lines}Content-Length: {len(body)}\r\n\r\n"
    ).encode() + body
