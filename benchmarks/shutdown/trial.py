"""One trial: start a server, let it hold requests, stop it, and read its responses."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from app.devservers import free_port
from benchmarks.process import Process
from benchmarks.shutdown import signs as watched_signs

if TYPE_CHECKING:
    from benchmarks.shutdown.servers import Server

_START = 120.0  # seconds
_HOST = "127.0.0.1"
_WAIT = b'If-None-Match: "1-0"\r\nPrefer: wait=600'


class TrialFailed(Exception):  # noqa: N818 - as in the other benchmarks
    """The server did not start, or did not hold the requests."""


@dataclass(frozen=True)
class Trial:
    """What came of a trial.

    Attributes:
        seconds: from the signal, or from the last request, to the end of the server's process;
            None if it did not end by itself.
        complete: how many of the held requests got a complete response.
        closing: how many of these responses say that the connection ends. Streams began before.
        held: their number.
        log: the last lines of the server's log.
    """

    seconds: float | None
    complete: int
    closing: int
    held: int
    log: str


async def take(
    server: Server,
    *,
    polls: int,
    streams: int,
    signs: str = "both",
    patience: float,
    patient: bool = False,
) -> Trial:
    """Run a trial.

    Args:
        server: the server.
        polls: the number of polls it holds.
        streams: the number of event streams it holds.
        signs: what the application watches: "both", "signal", "socket" or "none".
        patience: seconds after which a server that has not ended is killed.
        patient: whether the server's own limit on the time of its end is raised.

    Raises:
        TrialFailed: the server did not start, or did not hold the requests.
    """
    port = free_port()
    environment = {**os.environ, watched_signs.VARIABLE: signs, "PYTHONUNBUFFERED": "1"}
    with Process(server.at(port, patient=patient), environment) as process:
        try:
            connections = await _hold(process, port, polls, streams)
            answers = [asyncio.create_task(_rest(reader)) for reader, _ in connections]
            if server.requests:
                await _use_up(port, server.requests)
            else:
                os.kill(process.pid, signal.SIGTERM)
            began = time.perf_counter()
            deadline = began + patience
            while process.alive and time.perf_counter() < deadline:  # noqa: ASYNC110 - no event
                await asyncio.sleep(0.005)
            seconds = None if process.alive else time.perf_counter() - began
        finally:
            with suppress(ProcessLookupError):  # its workers, if it has left any behind
                os.killpg(process.pid, signal.SIGKILL)
        received = await asyncio.gather(*answers)
        for _, writer in connections:
            writer.close()
        complete = list(filter(_complete, received))
        closing = sum(b"\r\nconnection: close\r\n" in each.lower() for each in complete)
        return Trial(seconds, len(complete), closing, len(received), process.log_tail())


_Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def _hold(process: Process, port: int, polls: int, streams: int) -> list[_Connection]:
    """Send the requests, and wait until the processes of the server hold all of them."""
    connections = []
    try:
        async with asyncio.timeout(_START):
            await _ready(process, port)
            for path in [b"/poll/events"] * streams + [b"/poll"] * polls:
                reader, writer = await asyncio.open_connection(_HOST, port)
                writer.write(b"GET %b HTTP/1.1\r\nHost: localhost\r\n%b\r\n\r\n" % (path, _WAIT))
                connections.append((reader, writer))
            found: dict[int, int] = {}
            while sum(found.values()) < polls + streams:
                state = await _state(port)  # of whichever process accepts the connection
                found[state["process"]] = state["held"]
    except (TimeoutError, OSError) as error:
        raise TrialFailed(f"{error!r}: {process.log_tail()}") from error
    return connections


async def _ready(process: Process, port: int) -> None:
    while process.alive:
        try:
            await _state(port)
        except OSError:
            await asyncio.sleep(0.02)
        else:
            return
    raise TrialFailed(process.log_tail())


async def _use_up(port: int, requests: int) -> None:
    while (await _state(port))["requests"] < requests:
        pass


async def _state(port: int) -> dict[str, int]:
    """Ask on a connection of its own, so that no connection is open afterwards.

    Raises:
        OSError: there is no connection, or no complete response.
    """
    reader, writer = await asyncio.open_connection(_HOST, port)
    try:
        writer.write(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        head, _, body = (await reader.read()).partition(b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 200 "):
            raise ConnectionError(head)
        found: dict[str, int] = json.loads(body)
        return found
    finally:
        writer.close()


async def _rest(reader: asyncio.StreamReader) -> bytes:
    try:
        return await reader.read()
    except ConnectionError:
        return b""


def _complete(received: bytes) -> bool:
    """Return True for a whole response."""
    head, end, body = received.partition(b"\r\n\r\n")
    if head.startswith(b"HTTP/1.1 304 "):
        return bool(end)
    length = re.search(rb"\r\ncontent-length: (\d+)", head, re.IGNORECASE)
    if length is None:  # a stream
        return body.endswith(b"\r\n0\r\n\r\n")
    return head.startswith(b"HTTP/1.1 200 ") and len(body) == int(length[1])
