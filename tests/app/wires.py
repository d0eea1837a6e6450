"""One application on two ports, with the fast path and without, and a client that asks both."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import redis
import uvicorn
from uvicorn.server import ServerState

from app.http.fast_path_protocol import FastPathProtocol
from app.http.lifespan_state import FAST_PATH
from app.jobs.poll_fast_path import PollFastPath
from jobcache.http.fast_path import AdmittedPoll
from jobcache.http.reply import Reply
from tests.app.running import Service, Start

MADE_ID = re.compile(rb"x-request-id: [0-9a-f]{32}\r\n")
"""The id of a request that brought none: each has another, and hits of the fast path have none."""
END = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"


class Counted:
    """A poll, and whether the fast path has answered it."""

    def __init__(self, poll: AdmittedPoll, wire: Wire) -> None:
        self.poll = poll
        self._wire = wire

    def begin(self) -> Reply | asyncio.Future[Any] | None:
        begun = self.poll.begin()
        if not isinstance(begun, asyncio.Future):
            return self._count(begun)
        if self._wire.held is None:
            return begun
        late: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        begun.add_done_callback(
            lambda done: self._held().append(lambda: late.set_result(done.result()))
        )
        return late

    def _held(self) -> list[Callable[[], object]]:
        assert self._wire.held is not None
        return self._wire.held

    def reply_to(self, reading: asyncio.Future[Any]) -> Reply | None:
        return self._count(self.poll.reply_to(reading))

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await self.poll(scope, receive, send)

    def _count(self, reply: Reply | None) -> Reply | None:
        self._wire.short += reply is not None
        return reply


class CountedPolls:
    """An application's fast path, whose polls are counted."""

    def __init__(self, polls: PollFastPath, wire: Wire) -> None:
        self._wire = wire
        self._polls = polls
        self.admit = polls.admit
        self.common_headers = polls.common_headers

    def match(self, scope: Any) -> Counted | Reply | None:
        self._wire.matched += 1
        poll = self._polls.match(scope)
        if isinstance(poll, Reply):
            self._wire.short += 1
        return Counted(poll, self._wire) if isinstance(poll, AdmittedPoll) else poll


@dataclass
class Wire:
    """One application on two ports: with the fast path, and without.

    Attributes:
        service: the application.
        elsewhere: whether its cache is not in the process.
        short: how many polls the fast path has answered.
        matched: how many requests it has examined.
        held: what the store has answered, if it is to come later.
    """

    service: Service
    elsewhere: bool
    short: int = 0
    matched: int = 0
    held: list[Callable[[], object]] | None = None
    servers: dict[bool, asyncio.Server] = field(default_factory=dict)
    protocols: list[FastPathProtocol] = field(default_factory=list)

    def polls(self) -> PollFastPath:
        """The application's."""
        transport: Any = self.service.http._transport
        hot: PollFastPath = transport.app.fast_path
        return hot

    async def serve(self, *, short: bool, logged: bool = False, **options: Any) -> None:
        transport: Any = self.service.http._transport
        app = transport.app
        options = {"timeout_keep_alive": 1, **options}
        config = uvicorn.Config(app, lifespan="off", log_config=None, **options)
        config.load()
        state = ServerState()
        state.default_headers = [(b"server", b"under test")]

        polls = CountedPolls(app.fast_path, self)

        def made() -> FastPathProtocol:
            protocol = FastPathProtocol(config, state, {FAST_PATH: polls} if short else {})
            protocol.access_log = logged  # or else whether anybody listens decides: pytest does
            self.protocols.append(protocol)
            return protocol

        if short in self.servers:
            self.servers[short].close()
        loop = asyncio.get_running_loop()
        self.servers[short] = await loop.create_server(made, "127.0.0.1", 0)

    async def connect(self, *, short: bool) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        port = self.servers[short].sockets[0].getsockname()[1]
        before = len(self.protocols)
        streams = await asyncio.open_connection("127.0.0.1", port)
        async with asyncio.timeout(60):
            while len(self.protocols) == before:  # it is not accepted yet
                await asyncio.sleep(0)
        return streams

    async def say(self, *pieces: bytes, short: bool) -> bytes:
        """All that is answered, until the service hangs up."""
        reader, writer = await self.connect(short=short)
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0)
        async with asyncio.timeout(60):
            said = await reader.read()
        writer.close()
        return MADE_ID.sub(b"", said)


@pytest.fixture(params=["memory", "redis"])
async def wire(
    request: pytest.FixtureRequest,
    start: Start,
    monkeypatch: pytest.MonkeyPatch,
    redis_url: str,
) -> AsyncIterator[Wire]:
    with redis.Redis.from_url(redis_url) as client:
        client.flushall()
    async with start(JOBCACHE_BACKEND=request.param, REDIS_URL=redis_url) as service:
        wire = Wire(service, elsewhere=request.param == "redis")
        for short in (True, False):
            await wire.serve(short=short)
        if wire.elsewhere:  # on a busy machine Redis may take longer than a poll would wait for it
            monkeypatch.setattr(service.services.cache.backend, "_deadline", 60.0)
        now_ms = service.services.cache._clock.now_ms()
        monkeypatch.setattr(service.services.cache._clock, "now_ms", lambda: now_ms)
        yield wire
        for server in wire.servers.values():
            server.close()


def get(path: str, *headers: str, method: str = "GET", version: str = "1.1") -> bytes:
    lines = "".join(f"{header}\r\n" for header in headers)
    return f"{method} {path} HTTP/{version}\r\nHost: localhost\r\n{lines}\r\n".encode()


async def job_of(wire: Wire) -> tuple[str, str]:
    """The path and the tag of a job that is kept."""
    job = await wire.service.rendering()
    await wire.service.job(job["id"])
    return f"/api/v2/jobs/{job['id']}", f'"{job["version"]}-0"'


async def answer(reader: asyncio.StreamReader, *, bodiless: bool = False) -> bytes:
    """One answer, head and body."""
    head = await reader.readuntil(b"\r\n\r\n")
    if bodiless or head.startswith(b"HTTP/1.1 304"):
        return head
    length = re.search(rb"content-length: (\d+)", head)
    assert length is not None
    return head + await reader.readexactly(int(length[1]))


Stream = Callable[[str, str], bytes]
