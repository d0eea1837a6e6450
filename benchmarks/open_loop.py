"""An open-loop load: polls and writes at a fixed rate, sent when they are due.

A closed-loop client waits for its response before it sends the next request. So it sends less while
the service is slow, and its percentiles omit the slow part (coordinated omission). Here nothing
slows the load down. Choose a rate that the machine handles easily, to measure the service and not
a queue.

Every response is checked: its version must not be lower than any version that was acknowledged to a
writer, or received by another client, before the poll was sent. Polls have no `If-None-Match`,
because it would name the version that the client has seen.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
import time
from contextlib import asynccontextmanager
from itertools import cycle
from typing import TYPE_CHECKING, NamedTuple

from benchmarks.generator import get
from benchmarks.service import HOST

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence

_STATUS = re.compile(rb"HTTP/1\.1 (\d{3}) ")
_LENGTH = re.compile(rb"\r\ncontent-length: (\d+)", re.IGNORECASE)
_VERSION = re.compile(rb'\r\netag: "(\d+)-', re.IGNORECASE)
_HIT = re.compile(rb"\r\ncache-status: jobcache; hit", re.IGNORECASE)
_PATIENCE = 20.0  # seconds for one response
_KEPT = 2.0  # seconds that an idle connection is kept: fewer than in the service
_LOST = (OSError, EOFError, TimeoutError)

UNANSWERED = 599
"""The status of a poll that got no answer at all."""


class Poll(NamedTuple):
    """One poll and its answer.

    Attributes:
        due: when it was due, in seconds of `time.monotonic`.
        took: seconds from then until the whole answer was there.
        status: of the answer.
        hit: whether it came from the cache.
        stale: whether it was older than what was known when the poll was sent.
    """

    due: float
    took: float
    status: int
    hit: bool
    stale: bool


class Side:
    """One of the services under the load, and what its clients know.

    Args:
        name: for people.
        polled: the port that is polled.
        written: the ports that are written to in turn: processes on the same database.
        jobs: ids of jobs that an external worker renders.
        seed: of the order in which they are polled and changed.

    Attributes:
        polls: in the order in which their answers came.
        writes: seconds from when each write that was acknowledged was due until it was.
        unacknowledged: how many were not.
    """

    def __init__(
        self, name: str, *, polled: int, written: Sequence[int], jobs: Sequence[int], seed: int
    ) -> None:
        self.name = name
        self.polls: list[Poll] = []
        self.writes: list[float] = []
        self.unacknowledged = 0
        self._polled = polled
        self._next_port = cycle(written)
        self._next_poll = _shuffled(jobs, seed)
        self._next_write = _shuffled(jobs, seed + 1)
        self._percent = cycle(range(100))
        self._known = dict.fromkeys(jobs, 0)
        self._idle: dict[int, list[_Connection]] = {}

    async def poll(self, due: float) -> None:
        """Poll the next job, which was due at this time, and note the answer."""
        job = next(self._next_poll)
        known = self._known[job]
        try:
            status, head, _ = await self._ask(self._polled, get(f"/api/v2/jobs/{job}"))
        except _LOST:
            status, head = UNANSWERED, b""
        took, found = time.monotonic() - due, _VERSION.search(head)
        version = known if found is None else int(found[1])
        self._learn(job, version)
        self.polls.append(Poll(due, took, status, _HIT.search(head) is not None, version < known))

    async def write(self, due: float) -> None:
        """Report progress of the next job, which was due at this time."""
        job, port = next(self._next_write), next(self._next_port)
        try:
            status, _, body = await self._ask(port, _report(job, next(self._percent)))
        except _LOST:
            status, body = UNANSWERED, b""
        if status == 200:
            self._learn(job, json.loads(body)["version"])
            self.writes.append(time.monotonic() - due)
        else:
            self.unacknowledged += 1

    def close(self) -> None:
        """Close the connections."""
        for connections in self._idle.values():
            for connection in connections:
                connection.writer.close()
        self._idle.clear()

    def _learn(self, job: int, version: int) -> None:
        self._known[job] = max(version, self._known[job])

    async def _ask(self, port: int, request: bytes) -> tuple[int, bytes, bytes]:
        connection = self._take(port) or await _connect(port)
        try:
            async with asyncio.timeout(_PATIENCE):
                answer = await connection.ask(request)
        except BaseException:
            connection.writer.close()
            raise
        self._idle[port].append(connection)
        return answer

    def _take(self, port: int) -> _Connection | None:
        """The connection that was used last, if the service will not have closed it meanwhile."""
        idle = self._idle.setdefault(port, [])
        while idle and idle[0].used < time.monotonic() - _KEPT:
            idle.pop(0).writer.close()
        return idle.pop() if idle else None


class _Connection:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.writer = writer
        self.used = time.monotonic()
        self._reader = reader

    async def ask(self, request: bytes) -> tuple[int, bytes, bytes]:
        """Status, head and body of the answer to `request`."""
        self.writer.write(request)
        head = await self._reader.readuntil(b"\r\n\r\n")
        status, length = _STATUS.match(head), _LENGTH.search(head)
        if status is None or length is None:
            raise EOFError("not an answer with a length")
        body = await self._reader.readexactly(int(length[1]))
        self.used = time.monotonic()
        return int(status[1]), head, body


async def _connect(port: int) -> _Connection:
    return _Connection(*await asyncio.open_connection(HOST, port))


@asynccontextmanager
async def steady_load(sides: Sequence[Side], polls: float, writes: float) -> AsyncIterator[None]:
    """Load all sides alike while the block runs; then wait for the last answers.

    The sides take turns, evenly spaced, so that whatever else the machine does meets them all.

    Args:
        sides: what to load.
        polls: a second, for each side.
        writes: a second, for each side.
    """
    async with asyncio.TaskGroup() as group:

        async def keep_sending(
            send: Callable[[float], Coroutine[None, None, None]], offset: float, period: float
        ) -> None:
            due = time.monotonic() + offset
            while True:
                await asyncio.sleep(due - time.monotonic())
                group.create_task(send(due))
                due += period

        senders = []
        for number, side in enumerate(sides):
            for send, rate in ((side.poll, polls), (side.write, writes)):
                offset = number / len(sides) / rate
                senders.append(group.create_task(keep_sending(send, offset, 1 / rate)))
        try:
            yield
        finally:
            for sender in senders:
                sender.cancel()
    for side in sides:
        side.close()


def _shuffled(jobs: Sequence[int], seed: int) -> Iterator[int]:
    """All jobs in some order, and again in another, for ever."""
    chance = random.Random(seed)  # noqa: S311 - the same in every run
    while True:
        yield from chance.sample(jobs, len(jobs))


def _report(job: int, percent: int) -> bytes:
    body = json.dumps({"percent": percent}).encode()
    return (
        f"POST /api/v2/jobs/{job}/progress HTTP/1.1\r\nHost: {HOST}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    ).encode() + body
