"""A load generator that costs less than what it measures.

Every connection sends its request, reads the whole answer, and sends its request again. Prepared
bytes go out and nothing of an answer is parsed but what is needed to know that it is whole and
right; a client library would need more time for a poll than the service does.
"""

from __future__ import annotations

import asyncio
import re
import time
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, cast

import uvloop

from benchmarks.service import HOST

if TYPE_CHECKING:
    from collections.abc import Sequence

_OK = b"HTTP/1.1 200 "
_LENGTH = re.compile(rb"\r\ncontent-length: (\d+)", re.IGNORECASE)
_PATIENCE = 20.0  # seconds beyond the time asked for, after which an answer will not come


class WrongAnswer(Exception):  # noqa: N818 - says what is the matter
    """An answer that is not 200 with a length, or a connection closed instead of one."""


@dataclass(frozen=True, slots=True)
class Load:
    """What one run came to.

    Attributes:
        answers: how many, all of them 200.
        seconds: from the first request to the last answer.
        busy: the part of that time, from 0 to 1, that this process was computing. Close to 1, it
            was the generator that set the pace.
    """

    answers: int
    seconds: float
    busy: float

    @property
    def per_second(self) -> float:
        """Answers per second."""
        return self.answers / self.seconds


def get(path: str) -> bytes:
    """The bytes of a request for `path`."""
    return f"GET {path} HTTP/1.1\r\nHost: {HOST}\r\nAccept: */*\r\n\r\n".encode()


def load(port: int, requests: Sequence[bytes], seconds: float) -> Load:
    """Send requests to `port` on loopback for so many seconds, over one connection for each.

    Raises:
        WrongAnswer: an answer was not 200.
        TimeoutError: answers did not come.
    """
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_load(port, requests, seconds))


async def _load(port: int, requests: Sequence[bytes], seconds: float) -> Load:
    loop = asyncio.get_running_loop()
    meter = _Meter(len(requests), loop.create_future())
    connections = []
    try:
        async with asyncio.timeout(seconds + _PATIENCE):
            for request in requests:
                make = partial(_Connection, request, meter)
                _, connection = await loop.create_connection(make, HOST, port)
                connections.append(connection)
            began, computed = time.perf_counter(), time.process_time()
            loop.call_later(seconds, meter.stop)
            for connection in connections:
                connection.ask()
            await meter.finished
            took = time.perf_counter() - began
            return Load(meter.answers, took, (time.process_time() - computed) / took)
    finally:
        meter.stop()
        for connection in connections:
            connection.close()


class _Meter:
    """What the connections of one run share."""

    def __init__(self, connections: int, finished: asyncio.Future[None]) -> None:
        self.answers = 0
        self.running = True
        self.finished = finished
        self._asking = connections

    def stop(self) -> None:
        self.running = False

    def leave(self) -> None:
        """A connection has its last answer."""
        self._asking -= 1
        if self._asking == 0 and not self.finished.done():
            self.finished.set_result(None)

    def fail(self, reason: str) -> None:
        self.running = False
        if not self.finished.done():
            self.finished.set_exception(WrongAnswer(reason))


class _Connection(asyncio.Protocol):
    def __init__(self, request: bytes, meter: _Meter) -> None:
        self._request = request
        self._meter = meter
        self._received = b""
        self._waiting = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def ask(self) -> None:
        self._waiting = True
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        # Head and body may come apart, or in any pieces.
        received = self._received + data if self._received else data
        head, whole_head, body = received.partition(b"\r\n\r\n")
        if not whole_head:
            self._received = received
            return
        length = _LENGTH.search(head)
        if not head.startswith(_OK) or length is None:
            self._meter.fail(received[:200].decode(errors="replace"))
            return
        if len(body) < int(length[1]):
            self._received = received
            return
        self._received = b""
        self._waiting = False
        self._meter.answers += 1
        if self._meter.running:
            self.ask()
        else:
            self._meter.leave()

    def connection_lost(self, _: Exception | None) -> None:
        if self._waiting:
            self._meter.fail("the connection was closed instead of an answer")

    def close(self) -> None:
        self._waiting = False
        self._transport.close()
