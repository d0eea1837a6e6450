"""The connection of the benchmarks of polls, and that no two of their requests are alike."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from benchmarks.generator import WrongAnswer
from benchmarks.poll_connection import PollConnection, status_of
from benchmarks.suites.polls import Server

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nbody"
NOT_MODIFIED = b"HTTP/1.1 304 Not Modified\r\nContent-Length: 4\r\n\r\n"


@asynccontextmanager
async def answering(*pieces: bytes) -> AsyncIterator[tuple[int, list[bytes]]]:
    """A server that answers each request with the same pieces, or closes the connection."""
    requests: list[bytes] = []
    handlers: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        handlers.add(task)
        while pieces:
            try:
                requests.append(await reader.readuntil(b"\r\n\r\n"))
            except asyncio.IncompleteReadError:
                break
            for piece in pieces:
                writer.write(piece)
                await writer.drain()
                await asyncio.sleep(0.001)
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1], requests
        if handlers:
            await asyncio.wait(handlers, timeout=30)


@pytest.mark.parametrize(
    ("pieces", "status"),
    [((OK,), 200), ((OK[:20], OK[20:41], OK[41:]), 200), ((NOT_MODIFIED,), 304)],
)
async def test_a_poll_is_over_when_its_response_is_complete(
    pieces: tuple[bytes, ...], status: int
) -> None:
    async with answering(*pieces) as (port, _):
        connection = await PollConnection.connect(port, "/jobs/1")
        for _ in range(3):
            response = await asyncio.wait_for(connection.poll(), 30)
            assert response == b"".join(pieces)
            assert status_of(response) == status
        connection.close()


async def test_no_two_requests_are_alike_and_each_has_its_header() -> None:
    async with answering(OK) as (port, requests):
        connection = await PollConnection.connect(port, "/jobs/1", 'If-None-Match: "7-0"')
        for _ in range(3):
            await asyncio.wait_for(connection.poll(), 30)
        connection.close()
    assert len(set(requests)) == 3
    assert all(b'\r\nIf-None-Match: "7-0"\r\n' in request for request in requests)


async def test_a_closed_connection_is_no_answer() -> None:
    async with answering() as (port, _):
        connection = await PollConnection.connect(port, "/jobs/1")
        for _ in range(2):  # while it waits, and later
            with pytest.raises(WrongAnswer, match="closed"):
                await asyncio.wait_for(connection.poll(), 30)


def test_what_has_no_status_is_named() -> None:
    with pytest.raises(WrongAnswer, match="nonsense"):
        status_of(b"nonsense")


def test_the_requests_of_the_comparisons_are_not_alike() -> None:
    for kind in ("ours", "peer", "limit"):
        server = Server(kind, "", 1, None, "/jobs/{}", [3, 5, 8])  # type: ignore[arg-type]
        requests = server.requests(2)
        assert [path for path, _ in requests] == ["/jobs/3", "/jobs/5"]
        assert all(re.fullmatch(r"[\w-]+: %d", header) for _, header in requests)
