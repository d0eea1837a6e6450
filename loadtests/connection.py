"""A keep-alive connection with one request at a time: just enough HTTP, at little cost."""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING, NamedTuple, cast

if TYPE_CHECKING:
    from collections.abc import Callable

HOST = "127.0.0.1"

_FIELDS = re.compile(
    rb'\r\n(?:content-length: (\d+)|etag: "(\d+)-|cache-status: ([^\r]*))', re.IGNORECASE
)
_NOT_MODIFIED = 304


class Response(NamedTuple):
    """A response.

    Attributes:
        status: the status code; 0 if the connection was lost instead.
        version: the version in its ETag; 0 without one.
        cache_status: the field of that name; empty without one.
        body: its bytes.
    """

    status: int
    version: int
    cache_status: bytes
    body: bytes


LOST = Response(0, 0, b"", b"")


class Connection(asyncio.Protocol):
    """One connection.

    Args:
        received: called with each response, and with `LOST` when the connection is lost.
    """

    def __init__(self, received: Callable[[Response], None]) -> None:
        self._received = received
        self._buffer = b""
        self._open = True

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
        for digits, tag, how in _FIELDS.findall(head):
            if digits:
                length = int(digits)
            elif tag:
                version = int(tag)
            else:
                cache_status = how
        status = int(head[9:12])
        if status != _NOT_MODIFIED and len(body) < length:  # which has no body, but may state one
            self._buffer = data
            return
        self._buffer = b""
        self._received(Response(status, version, cache_status, body))

    def connection_lost(self, _: Exception | None) -> None:
        """Report the loss, unless this side has closed the connection."""
        if self._open:
            self._open = False
            self._received(LOST)

    def close(self) -> None:
        """Close the connection; nothing more is received."""
        self._open = False
        self._transport.close()


async def connect(port: int, received: Callable[[Response], None]) -> Connection:
    """Return a new connection to a port of this machine."""
    loop = asyncio.get_running_loop()
    _, connection = await loop.create_connection(lambda: Connection(received), HOST, port)
    return connection


def get(path: str, etag: str | None = None) -> bytes:
    """Return the bytes of a GET request."""
    condition = "" if etag is None else f"If-None-Match: {etag}\r\n"
    return f"GET {path} HTTP/1.1\r\nHost: {HOST}\r\n{condition}\r\n".encode()


def post(path: str, body: bytes = b"") -> bytes:
    """Return the bytes of a POST request with a body of JSON."""
    return (
        f"POST {path} HTTP/1.1\r\nHost: {HOST}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    ).encode() + body
