"""A client's keep-alive connection: just enough HTTP, for thousands of answers a second."""

from __future__ import annotations

import asyncio
import re
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from loadtests.freshness.proxy import HOST

if TYPE_CHECKING:
    from collections.abc import Iterator

PATIENCE = 10.0
"""Seconds after which an answer is not waited for any more."""

_FIELD = re.compile(rb"\r\n(content-length|etag|cache-status|retry-after): ([^\r]*)", re.IGNORECASE)
_NOT_MODIFIED = 304
_VERSION = re.compile(rb'"(\d+)-\d+"')


class NoAnswer(Exception):  # noqa: N818 - says what is the matter
    """The connection could not be made, was lost, or brought nothing in time, or no HTTP."""


@dataclass(frozen=True, slots=True)
class Response:
    """What came back.

    Attributes:
        status: the status code.
        version: by the ETag; 0 without one.
        cache_status: `Cache-Status`; empty without one, as with lists.
        retry_after: whether there is such a field.
        body: its bytes.
    """

    status: int
    version: int
    cache_status: bytes
    retry_after: bool
    body: bytes

    @property
    def hit(self) -> bool:
        """Whether the cache answered."""
        return self.cache_status.startswith(b"jobcache; hit")

    @property
    def stale(self) -> bool:
        """Whether the cache answered past the entry's freshness, for the source is away."""
        return b"fwd-status=503" in self.cache_status


class Connection:
    """A connection that is made when it is first needed, and again after it was lost.

    One request at a time.

    Args:
        port: of the loopback interface.
    """

    def __init__(self, port: int) -> None:
        self._port = port
        self._wire: _Wire | None = None

    async def send(self, request: bytes) -> Response:
        """Send a request and wait for the whole answer.

        Raises:
            NoAnswer: there was none. Whether the request was acted on, nobody knows.
        """
        wire = self._wire
        if wire is None or wire.lost:
            loop = asyncio.get_running_loop()
            try:
                async with asyncio.timeout(PATIENCE):
                    _, wire = await loop.create_connection(_Wire, HOST, self._port)
            except (OSError, TimeoutError) as error:
                raise NoAnswer(f"not connected: {error}") from error
            self._wire = wire
        return await wire.send(request)

    def give_up(self, now: float) -> None:
        """Close the connection if an answer is overdue at `now`, monotonic seconds."""
        if self._wire is not None:
            self._wire.give_up(now)

    def close(self) -> None:
        """Close it; whoever waits for an answer gets none."""
        if self._wire is not None:
            self._wire.fail("closed")


class _Wire(asyncio.Protocol):
    def __init__(self) -> None:
        self.lost = False
        self._received = b""
        self._answer: asyncio.Future[Response] | None = None
        self._sent_at = 0.0

    async def send(self, request: bytes) -> Response:
        if self.lost:
            raise NoAnswer("the connection was lost at once")
        self._answer = asyncio.get_running_loop().create_future()
        self._sent_at = time.monotonic()
        self._transport.write(request)
        try:
            return await self._answer
        except asyncio.CancelledError:
            self.fail("cancelled")  # its answer may still come, and is not the next one's
            raise
        finally:
            self._answer = None

    def give_up(self, now: float) -> None:
        if self._answer is not None and now - self._sent_at > PATIENCE:
            self.fail(f"nothing within {PATIENCE:g} s")

    def fail(self, reason: str) -> None:
        self.lost = True
        self._transport.abort()
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(NoAnswer(reason))

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def connection_lost(self, error: Exception | None) -> None:
        self.lost = True
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(NoAnswer(f"the connection was lost: {error}"))

    def data_received(self, data: bytes) -> None:
        # Head and body may come apart, or in any pieces.
        received = self._received + data if self._received else data
        head, whole, body = received.partition(b"\r\n\r\n")
        if not whole:
            self._received = received
            return
        fields = {name.lower(): value for name, value in _FIELD.findall(head)}
        status = int(head[9:12]) if head[9:12].isdigit() else 0
        length = int(fields.get(b"content-length", 0 if status == _NOT_MODIFIED else -1))
        if status == 0 or length < 0:
            self.fail(f"not HTTP as we know it: {head[:80]!r}")
            return
        if len(body) < length:
            self._received = received
            return
        self._received = b""
        if self._answer is None or self._answer.done():
            self.fail("an answer that nobody asked for")
            return
        tag = _VERSION.match(fields.get(b"etag", b""))
        self._answer.set_result(
            Response(
                status=status,
                version=0 if tag is None else int(tag[1]),
                cache_status=fields.get(b"cache-status", b""),
                retry_after=b"retry-after" in fields,
                body=body,
            )
        )


def get(path: str, tag: int = 0) -> bytes:
    """The bytes of a request for `path`; with `If-None-Match` for a version other than 0."""
    condition = f'If-None-Match: "{tag}-0"\r\n' if tag else ""
    return f"GET {path} HTTP/1.1\r\nHost: {HOST}\r\n{condition}\r\n".encode()


def post(path: str, body: bytes = b"", **fields: str) -> bytes:
    """The bytes of a request that sends JSON; underscores in names of fields become hyphens."""
    head = "".join(_lines(fields))
    return (
        f"POST {path} HTTP/1.1\r\nHost: {HOST}\r\nContent-Type: application/json\r\n"
        f"{head}Content-Length: {len(body)}\r\n\r\n"
    ).encode() + body


def _lines(fields: dict[str, str]) -> Iterator[str]:
    for name, value in fields.items():
        yield f"{name.replace('_', '-')}: {value}\r\n"
