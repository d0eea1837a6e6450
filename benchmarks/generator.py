"""A load generator that costs less than the service that it measures.

Every connection sends its request, reads the whole response, and sends its request again. The bytes
of a request are prepared, and a response is parsed only enough to know that it is complete and
correct. A client library would need more time for a poll than the service.
"""

from __future__ import annotations

import asyncio
import re
import time
from dataclasses import dataclass
from functools import partial
from itertools import count, cycle
from typing import TYPE_CHECKING, cast

import uvloop

from benchmarks.service import HOST

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_OK = b"HTTP/1.1 200 "
_NOT_MODIFIED = b"HTTP/1.1 304 "
_LENGTH = re.compile(rb"\r\ncontent-length: (\d+)", re.IGNORECASE)
_PATIENCE = 20.0  # seconds beyond the requested time, after which a response counts as lost


class WrongAnswer(Exception):  # noqa: N818 - says what is the matter
    """A response that is neither 200 with a length nor 304, or a closed connection."""


@dataclass(frozen=True, slots=True)
class Load:
    """The result of one run.

    Attributes:
        answers: the number of responses, all of them 200 or 304.
        received: the bytes of all responses, heads included.
        latencies_ms: the duration of each request, in order of arrival.
        seconds: from the first request to the last response.
        busy: the part of that time, from 0 to 1, that this process was computing. Close to 1, the
            generator was the bottleneck.
    """

    answers: int
    received: int
    latencies_ms: list[float]
    seconds: float
    busy: float

    @property
    def per_second(self) -> float:
        """Return the responses per second."""
        return self.answers / self.seconds


def get(path: str, header: str = "") -> bytes:
    """Return the bytes of a GET request for `path`, with an optional header."""
    line = f"{header}\r\n" if header else ""
    return f"GET {path} HTTP/1.1\r\nHost: {HOST}\r\n{line}\r\n".encode()


def load(
    port: int, requests: Sequence[bytes], seconds: float, connections: int | None = None
) -> Load:
    """Send requests to `port` on loopback for the given seconds.

    Args:
        port: the port.
        requests: each connection begins with another request, and sends them in turn. `%d` in a
            request is replaced by a new number each time.
        seconds: the duration.
        connections: the number of connections; None: one for each request, which it repeats.

    Raises:
        WrongAnswer: an answer was neither 200 nor 304.
        TimeoutError: answers did not come.
    """
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        if connections is None:
            loops: list[Iterator[bytes]] = [cycle([request]) for request in requests]
        else:
            starts = (number % len(requests) for number in range(connections))
            loops = [cycle([*requests[start:], *requests[:start]]) for start in starts]
        if any(b"%d" in request for request in requests):
            numbers = count(time.time_ns())  # that no other process has
            loops = [(request % next(numbers) for request in requests) for requests in loops]
        return runner.run(_load(port, loops, seconds))


async def _load(port: int, loops: Sequence[Iterator[bytes]], seconds: float) -> Load:
    loop = asyncio.get_running_loop()
    meter = _Meter(len(loops), loop.create_future())
    connections = []
    try:
        async with asyncio.timeout(seconds + _PATIENCE):
            for requests in loops:
                make = partial(_Connection, requests, meter)
                _, connection = await loop.create_connection(make, HOST, port)
                connections.append(connection)
            began, computed = time.perf_counter(), time.process_time()
            loop.call_later(seconds, meter.stop)
            for connection in connections:
                connection.ask()
            await meter.finished
            took = time.perf_counter() - began
            busy = (time.process_time() - computed) / took
            return Load(len(meter.latencies_ms), meter.received, meter.latencies_ms, took, busy)
    finally:
        meter.stop()
        for connection in connections:
            connection.close()


class _Meter:
    """The state that the connections of one run share."""

    def __init__(self, connections: int, finished: asyncio.Future[None]) -> None:
        self.latencies_ms: list[float] = []
        self.received = 0
        self.running = True
        self.finished = finished
        self._asking = connections

    def stop(self) -> None:
        self.running = False

    def leave(self) -> None:
        """Count a connection that has received its last response."""
        self._asking -= 1
        if self._asking == 0 and not self.finished.done():
            self.finished.set_result(None)

    def fail(self, reason: str) -> None:
        self.running = False
        if not self.finished.done():
            self.finished.set_exception(WrongAnswer(reason))


class _Connection(asyncio.Protocol):
    def __init__(self, requests: Iterator[bytes], meter: _Meter) -> None:
        self._requests = requests
        self._meter = meter
        self._received = b""
        self._waiting = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def ask(self) -> None:
        self._waiting = True
        self._asked = time.perf_counter()
        self._transport.write(next(self._requests))

    def data_received(self, data: bytes) -> None:
        # Head and body may arrive separately, or in any pieces.
        received = self._received + data if self._received else data
        head, whole_head, body = received.partition(b"\r\n\r\n")
        if not whole_head:
            self._received = received
            return
        if not head.startswith(_NOT_MODIFIED):  # which has no body, whatever length it may state
            length = _LENGTH.search(head)
            if not head.startswith(_OK) or length is None:
                self._meter.fail(received[:200].decode(errors="replace"))
                return
            if len(body) < int(length[1]):
                self._received = received
                return
        self._received = b""
        self._waiting = False
        self._meter.latencies_ms.append(1000 * (time.perf_counter() - self._asked))
        self._meter.received += len(received)
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
