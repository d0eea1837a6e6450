"""The tests' own HTTP client repeats a request only where an HTTP client may."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from tests.app.connections import HOST, Client

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
CUT_SHORT = b"HTTP/1.1 200 OK\r\nCont"
NONE = b""


class Server:
    """A server whose connections each send the next list of answers, and then are closed."""

    def __init__(self) -> None:
        self.answers: list[list[bytes]] = []
        self.requests = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for answer in self.answers.pop(0):
            await reader.readuntil(b"\r\n\r\n")
            self.requests += 1
            writer.write(answer)
        writer.close()


@pytest.fixture
def server() -> Server:
    return Server()


@pytest.fixture
async def client(server: Server) -> AsyncIterator[Client]:
    async with await asyncio.start_server(server.serve, HOST, 0) as listening:
        client = Client(listening.sockets[0].getsockname()[1])
        yield client
        client.abandon()


async def test_a_get_is_sent_again_if_the_server_has_closed_the_kept_connection(
    server: Server, client: Client
) -> None:
    server.answers = [[ANSWER, ANSWER], [ANSWER]]
    for _ in range(3):
        assert (await client.request("GET", "/")).status == 200
    assert server.requests == 3
    assert server.answers == []


@pytest.mark.parametrize(
    ("method", "answers"),
    [
        ("POST", [[ANSWER], [ANSWER]]),  # it may have been carried out
        ("GET", [[ANSWER, CUT_SHORT], [ANSWER]]),  # not for idleness
    ],
)
async def test_any_other_request_fails(
    server: Server, client: Client, method: str, answers: list[list[bytes]]
) -> None:
    server.answers = answers
    await client.request("GET", "/")
    with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
        await client.request(method, "/")


async def test_a_get_on_a_new_connection_is_sent_once(server: Server, client: Client) -> None:
    server.answers = [[NONE], [ANSWER]]
    with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
        await client.request("GET", "/")
