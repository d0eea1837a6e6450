"""The connection that the load tests share, and the one that is opened again."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from loadtests.connection import Response, connect, get, post
from loadtests.freshness.connection import LastingConnection, NoAnswer

HIT = (
    b'HTTP/1.1 200 OK\r\nContent-Length: 4\r\nETag: "7-0"\r\nCache-Status: jobcache; hit\r\n'
    b"Retry-After: 2\r\n\r\nbody"
)
NOT_MODIFIED = b'HTTP/1.1 304 Not Modified\r\nContent-Length: 4\r\nETag: "7-0"\r\n\r\n'


@asynccontextmanager
async def answering(*pieces: bytes) -> AsyncIterator[int]:
    """A server that answers each request with the same pieces; it closes after an empty one."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                await reader.readuntil(b"\r\n\r\n")
                for piece in pieces:
                    if not piece:
                        return
                    writer.write(piece)
                    await writer.drain()
                    await asyncio.sleep(0.001)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]


@pytest.mark.parametrize("pieces", [(HIT,), (HIT[:9], HIT[9:30], HIT[30:-2], HIT[-2:])])
async def test_a_response_is_handed_over_when_it_is_complete(pieces: tuple[bytes, ...]) -> None:
    async with answering(*pieces) as port:
        connection = LastingConnection(port)
        for _ in range(2):
            response = await asyncio.wait_for(connection.send(get("/jobs/1")), 30)
            assert response == Response(200, 7, b"jobcache; hit", retry_after=True, body=b"body")
            assert response.hit
            assert not response.stale
        connection.close()


async def test_a_304_has_no_body_whatever_length_it_states() -> None:
    async with answering(NOT_MODIFIED) as port:
        connection = LastingConnection(port)
        response = await asyncio.wait_for(connection.send(get("/jobs/1", 7)), 30)
        assert (response.status, response.version, response.body) == (304, 7, b"")
        connection.close()


async def test_a_204_has_no_body_and_states_no_length() -> None:
    async with answering(b"HTTP/1.1 204 No Content\r\n\r\n") as port:
        connection = LastingConnection(port)
        response = await asyncio.wait_for(connection.send(get("/jobs/1")), 30)
        assert (response.status, response.body) == (204, b"")
        connection.close()


@pytest.mark.parametrize(
    "unreadable",
    [b"nonsense\r\n\r\n", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"],
)
async def test_a_response_that_cannot_be_read_is_no_response(unreadable: bytes) -> None:
    async with answering(unreadable) as port:
        connection = LastingConnection(port)
        with pytest.raises(NoAnswer, match="cannot be read"):
            await asyncio.wait_for(connection.send(get("/jobs/1")), 30)


async def test_a_lost_connection_is_reported_once_and_opened_again() -> None:
    async with answering(HIT[:20], b"") as port:
        connection = LastingConnection(port)
        for _ in range(2):
            with pytest.raises(NoAnswer, match="was lost"):
                await asyncio.wait_for(connection.send(get("/jobs/1")), 30)
    with pytest.raises(NoAnswer, match="not connected"):
        await asyncio.wait_for(connection.send(get("/jobs/1")), 30)


async def test_the_response_of_a_cancelled_request_is_not_the_next_ones() -> None:
    async with answering(HIT) as port:
        connection = LastingConnection(port)
        await connection.send(get("/jobs/1"))
        cancelled = asyncio.create_task(connection.send(get("/jobs/2")))
        await asyncio.sleep(0)
        cancelled.cancel()
        with pytest.raises(asyncio.CancelledError):
            await cancelled
        response = await asyncio.wait_for(connection.send(get("/jobs/3")), 30)
        assert response.status == 200
        connection.close()


async def test_an_overdue_response_is_given_up() -> None:
    async with answering() as port:
        connection = LastingConnection(port)
        waiting = asyncio.create_task(connection.send(get("/jobs/1")))
        while not waiting.done():
            await asyncio.sleep(0.001)
            connection.give_up(float("inf"))
        with pytest.raises(NoAnswer, match="no response within"):
            await waiting


async def test_a_closed_connection_receives_nothing_more() -> None:
    received: list[Response] = []
    async with answering(HIT) as port:
        connection = await connect(port, received.append)
        connection.close()
        await asyncio.sleep(0.01)
    assert received == []


def test_the_names_of_headers_have_hyphens() -> None:
    assert b"\r\nIdempotency-Key: 7\r\nContent-Length: 2\r\n\r\n{}" in post(
        "/", b"{}", Idempotency_Key="7"
    )
