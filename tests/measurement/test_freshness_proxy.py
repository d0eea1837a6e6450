"""The proxy of the freshness run: it cuts, refuses, holds, delivers late, and switches targets."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from loadtests.freshness.proxy import HOST, Proxy

SOON = 60.0  # seconds in which what should happen has long happened
NEVER = 0.1  # seconds in which what should not happen would have


class Echo:
    """A server that answers every line with its name and the line, and remembers the lines."""

    def __init__(self, name: str) -> None:
        self.name = name.encode()
        self.heard: list[bytes] = []
        self.port = 0
        self.answering = asyncio.Event()
        self.answering.set()
        self._writers: list[asyncio.StreamWriter] = []

    async def start(self) -> None:
        self.server = await asyncio.start_server(self.serve, HOST, 0)
        self.port = self.server.sockets[0].getsockname()[1]

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.append(writer)
        with suppress(ConnectionError):
            while line := await reader.readline():
                self.heard.append(line)
                await self.answering.wait()
                writer.write(self.name + b" " + line)
        writer.close()

    async def close(self) -> None:
        self.server.close()
        for writer in self._writers:
            writer.transport.abort()
        await self.server.wait_closed()


class Client:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    def say(self, line: bytes) -> None:
        self.writer.write(line + b"\n")

    async def hear(self) -> bytes:
        async with asyncio.timeout(SOON):
            return (await self.reader.readline()).strip()

    async def hears_nothing(self) -> bool:
        try:
            async with asyncio.timeout(NEVER):
                await self.reader.readline()
        except TimeoutError:
            return True
        return False

    async def is_reset(self) -> bool:
        with pytest.raises(ConnectionResetError):
            await self.hear()
        return True


Connect = Callable[[], asyncio.Future[Client]]


@pytest.fixture
async def echo() -> AsyncIterator[Echo]:
    server = Echo("one")
    await server.start()
    yield server
    await server.close()


@pytest.fixture
async def proxy(echo: Echo) -> AsyncIterator[Proxy]:
    forwarding = Proxy(echo.port)
    await forwarding.start()
    yield forwarding
    await forwarding.aclose()


@pytest.fixture
async def connect(proxy: Proxy) -> AsyncIterator[Connect]:
    clients: list[Client] = []

    async def make() -> Client:
        clients.append(Client(*await asyncio.open_connection(HOST, proxy.port)))
        return clients[-1]

    yield lambda: asyncio.ensure_future(make())
    for client in clients:
        client.writer.transport.abort()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(SOON):
        while not condition():
            await asyncio.sleep(0.001)


async def test_it_forwards_both_ways(connect: Connect) -> None:
    client = await connect()
    client.say(b"hello")
    assert await client.hear() == b"one hello"


async def test_it_forwards_to_a_unix_socket(echo: Echo, connect: Connect, proxy: Proxy) -> None:
    with TemporaryDirectory(prefix="socket-") as directory:
        path = Path(directory) / "echo"
        server = await asyncio.start_unix_server(echo.serve, path)
        echo.name = b"socket"
        proxy.target = path
        client = await connect()
        client.say(b"hello")
        assert await client.hear() == b"socket hello"
        server.close()


async def test_an_end_is_passed_on(connect: Connect, proxy: Proxy, echo: Echo) -> None:
    client = await connect()
    client.say(b"last words")
    client.writer.close()
    await until(lambda: echo.heard == [b"last words\n"])
    await until(lambda: proxy.connections == 0)


async def test_it_cuts_one_connection_and_leaves_the_others(connect: Connect, proxy: Proxy) -> None:
    clients = [await connect() for _ in range(3)]
    for client in clients:
        client.say(b"hello")
        assert await client.hear() == b"one hello"
    assert proxy.cut_one(random.Random(1))
    reset = 0
    for client in clients:
        client.say(b"again")
        try:
            assert await client.hear() == b"one again"
        except ConnectionResetError:
            reset += 1
    assert reset == 1
    assert proxy.connections == 2
    again = await connect()
    again.say(b"hello")
    assert await again.hear() == b"one hello"


def test_there_may_be_nothing_to_cut() -> None:
    assert not Proxy(1).cut_one(random.Random(1))


async def test_it_refuses_what_there_is_and_what_comes(connect: Connect, proxy: Proxy) -> None:
    client = await connect()
    client.say(b"hello")
    await client.hear()
    proxy.refuse()
    assert await client.is_reset()
    assert await (await connect()).is_reset()
    proxy.heal()
    again = await connect()
    again.say(b"hello")
    assert await again.hear() == b"one hello"


async def test_a_black_hole_delivers_late(connect: Connect, proxy: Proxy, echo: Echo) -> None:
    before = await connect()
    before.say(b"hello")
    await before.hear()
    proxy.hold()
    before.say(b"held")
    during = await connect()
    during.say(b"new")
    assert await before.hears_nothing()
    assert await during.hears_nothing()
    assert echo.heard == [b"hello\n"]
    proxy.heal()
    assert await before.hear() == b"one held"
    assert await during.hear() == b"one new"


async def test_replies_are_held_as_well(connect: Connect, proxy: Proxy, echo: Echo) -> None:
    client = await connect()
    client.say(b"hello")
    await client.hear()
    echo.answering.clear()
    client.say(b"on its way")
    await until(lambda: len(echo.heard) == 2)
    proxy.hold()
    echo.answering.set()
    assert await client.hears_nothing()
    proxy.heal()
    assert await client.hear() == b"one on its way"


async def test_what_a_client_sent_before_it_left_arrives(
    connect: Connect, proxy: Proxy, echo: Echo
) -> None:
    """A writer that gives up has not withdrawn what it sent."""
    for connected in (True, False):
        echo.heard.clear()
        client = await connect()
        if connected:
            client.say(b"hello")
            await client.hear()
        proxy.hold()
        if not connected:
            client = await connect()
        client.say(b"late")
        await asyncio.sleep(0)
        client.writer.close()
        await client.writer.wait_closed()
        await asyncio.sleep(NEVER)
        assert b"late\n" not in echo.heard
        proxy.heal()
        await until(lambda: b"late\n" in echo.heard)


async def test_it_switches_to_another_target(connect: Connect, proxy: Proxy) -> None:
    other = Echo("two")
    await other.start()
    client = await connect()
    client.say(b"hello")
    assert await client.hear() == b"one hello"
    proxy.target = other.port
    proxy.cut()
    assert await client.is_reset()
    again = await connect()
    again.say(b"hello")
    assert await again.hear() == b"two hello"
    await other.close()


async def test_a_target_that_is_not_there_resets(
    connect: Connect, proxy: Proxy, echo: Echo
) -> None:
    await echo.close()
    assert await (await connect()).is_reset()
    await until(lambda: proxy.connections == 0)
