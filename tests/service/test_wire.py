"""What our protocol writes by itself is, to the byte, what uvicorn would have written."""

from __future__ import annotations

import asyncio
import gc
import re
from collections.abc import AsyncIterator, Callable
from contextvars import ContextVar, copy_context
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from random import Random
from typing import Any

import pytest
import redis
import uvicorn
from uvicorn.server import ServerState

from app.jobs.hot import HotPolls, Poll, _Job
from app.jobs.known import Known
from app.jobs.poll import Reply
from app.jobs.service import JobNotFound
from app.limits import HEAD_BYTES
from app.serving import POLLS
from app.wire import HotWire
from tests.service.running import Service, Start

END = b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"


class Counted:
    """A poll, and whether the short way has answered it."""

    def __init__(self, poll: Poll, wire: Wire) -> None:
        self.scope = poll.scope
        self.poll = poll
        self._wire = wire

    def at_once(self) -> Reply | None:
        return self._count(self.poll.at_once())

    def ask(self, then: Callable[[Reply | None], object]) -> bool:
        def answered(reply: Reply | None) -> None:
            self._count(reply)
            if self._wire.held is None:
                then(reply)
            else:
                self._wire.held.append(partial(then, reply))

        return self.poll.ask(answered)

    def _count(self, reply: Reply | None) -> Reply | None:
        self._wire.short += reply is not None
        return reply


class CountedPolls:
    """An application's plain polls, each of them counted."""

    def __init__(self, polls: HotPolls, wire: Wire) -> None:
        self._polls = polls
        self._wire = wire
        self.known = self

    def plain(self, scope: Any) -> Counted | None:
        poll = self._polls.plain(scope)
        return None if poll is None else Counted(poll, self._wire)

    def meet(self, request: bytes, counted: Counted) -> None:
        self._wire.met.append(request)
        self._polls.meet(request, counted.poll)

    def get(self, request: bytes) -> CountedPolls | None:
        self._asked = self._polls.known.get(request)
        return None if self._asked is None else self

    def at_once(self) -> Reply | None:
        assert self._asked is not None
        reply = self._asked.at_once()
        self._wire.short += reply is not None
        self._wire.known += reply is not None
        return reply

    def forget(self, request: bytes) -> None:
        self._polls.known.forget(request)


@dataclass
class Wire:
    """One application on two ports: with our short way, and without.

    Attributes:
        service: the application.
        elsewhere: whether its cache is not in the process.
        short: how many polls the short way has answered.
        known: how many of those were not parsed.
        met: the requests that, if they come again, need not be parsed.
        held: what the store has answered, if it is to come later.
    """

    service: Service
    elsewhere: bool
    short: int = 0
    known: int = 0
    met: list[bytes] = field(default_factory=list)
    held: list[Callable[[], object]] | None = None
    servers: dict[bool, asyncio.Server] = field(default_factory=dict)
    protocols: list[HotWire] = field(default_factory=list)

    def polls(self) -> HotPolls:
        """The application's."""
        transport: Any = self.service.http._transport
        hot: HotPolls = transport.app.hot
        return hot

    async def serve(self, *, short: bool, logged: bool = False, **options: Any) -> None:
        transport: Any = self.service.http._transport
        app = transport.app
        options = {"timeout_keep_alive": 1, **options}
        config = uvicorn.Config(app, lifespan="off", log_config=None, **options)
        config.load()
        state = ServerState()
        state.default_headers = [(b"server", b"under test")]

        polls = CountedPolls(app.hot, self)

        def made() -> HotWire:
            protocol = HotWire(config, state, {POLLS: polls} if short else {})
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
        async with asyncio.timeout(10):
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
        async with asyncio.timeout(10):
            said = await reader.read()
        writer.close()
        return said


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
        now_ms = service.parts.cache._clock_ms()
        monkeypatch.setattr(service.parts.cache, "_clock_ms", lambda: now_ms)
        yield wire
        for server in wire.servers.values():
            server.close()


def get(path: str, *headers: str, method: str = "GET", version: str = "1.1") -> bytes:
    lines = "".join(f"{header}\r\n" for header in headers)
    return f"{method} {path} HTTP/{version}\r\nHost: x\r\n{lines}\r\n".encode()


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

# What is sent, and how much of it is answered by the short way. Where the cache is elsewhere, only
# the first of what is sent together: the others come while it is under way, and wait their turn.
STREAMS: dict[str, tuple[Stream, int]] = {
    "one": (lambda p, _: get(p) + END, 1),
    "unchanged": (lambda p, t: get(p, f"If-None-Match: {t}") + END, 1),
    "three in one": (lambda p, t: get(p) + get(p, f"If-None-Match: {t}") + get(p) + END, 3),
    "behind one that takes time": (lambda p, _: get(p + "/storyboard") + get(p) * 2 + END, 0),
    "before one that takes time": (lambda p, _: get(p) * 2 + get("/nowhere") + END, 2),
    "an unknown job": (lambda p, _: get(p) + get("/api/v2/jobs/999") + END, 1),
    "HEAD": (lambda p, _: get(p, method="HEAD") + END, 0),
    "POST": (lambda p, _: get(p, "Content-Length: 0", method="POST") + END, 0),
    "to be closed": (lambda p, _: get(p, "Connection: close"), 0),
    "HTTP/1.0": (lambda p, _: get(p, version="1.0"), 0),
    "HTTP/1.0 kept": (lambda p, _: get(p, "Connection: keep-alive", version="1.0") + END, 0),
    "a body": (lambda p, _: get(p, "Content-Length: 3") + b"abc" + get(p) + END, 0),
    "an empty body": (lambda p, _: get(p, "Content-Length: 0") + END, 0),
    "chunks": (lambda p, _: get(p, "Transfer-Encoding: chunked") + b"1\r\nx\r\n0\r\n\r\n" + END, 0),
    "expecting": (lambda p, _: get(p, "Expect: 100-continue") + END, 0),
    "an upgrade": (lambda p, _: get(p, "Connection: upgrade", "Upgrade: h2c") + END, 0),
    "a query": (lambda p, _: get(p + "?a=1") + get(p + "?") + END, 0),
    "a fragment": (lambda p, _: get(p + "#a") + END, 0),
    "escapes": (lambda p, _: get(p.replace("jobs", "%6aobs")) + END, 0),
    "absolute": (lambda p, _: get("http://x" + p) + END, 0),
    "two tags": (lambda p, t: get(p, "If-None-Match: x", f"If-None-Match: {t}") + END, 0),
    "no method": (lambda p, _: get(p, method="get"), 0),
    "held": (lambda p, t: get(p, f"If-None-Match: {t}", "Prefer: wait=0") + END, 0),
}


async def test_every_stream_of_requests_is_answered_alike(wire: Wire) -> None:
    path, tag = await job_of(wire)
    for name, (made, expected) in STREAMS.items():
        wire.short = 0
        said = await wire.say(made(path, tag), short=True)
        assert said == await wire.say(made(path, tag), short=False), name
        assert said.startswith(b"HTTP/1.1 "), name
        assert wire.short == (min(expected, 1) if wire.elsewhere else expected), name


async def test_it_does_not_matter_how_a_request_is_cut(wire: Wire) -> None:
    path, tag = await job_of(wire)
    sent = get(path, f"If-None-Match: {tag}") + get(path) + END
    whole = await wire.say(sent, short=False)
    for size in (1, 7, 50):
        pieces = [sent[start : start + size] for start in range(0, len(sent), size)]
        assert await wire.say(*pieces, short=True) == whole
    assert wire.short == 3 * 2 if not wire.elsewhere else wire.short >= 3


# Requests of one read each, that are said again and again; whether they are known from the third
# time on, where the cache is in the process.
AGAIN: dict[str, tuple[Stream, bool]] = {
    "one": (lambda p, _: get(p), True),
    "unchanged": (lambda p, t: get(p, f"If-None-Match: {t}"), True),
    "another tag": (lambda p, _: get(p, 'If-None-Match: "1-1"'), True),
    "gzip": (lambda p, t: get(p, "Accept-Encoding: gzip", f"If-None-Match: {t}"), True),
    "an empty line before it": (lambda p, _: b"\r\n" + get(p), True),
    "an empty line behind it": (lambda p, _: get(p) + b"\r\n", True),
    "many headers": (lambda p, _: get(p, *(f"X-{n}: {n}" for n in range(90))), True),
    "a long head": (lambda p, _: get(p, "X: " + "x" * 1900), True),
    "one too long to keep": (lambda p, _: get(p, "X: " + "x" * 2100), False),
    "two": (lambda p, _: get(p) * 2, False),
    "an unknown job": (lambda *_: get("/api/v2/jobs/999"), False),
    "HEAD": (lambda p, _: get(p, method="HEAD"), False),
    "a body": (lambda p, _: get(p, "Content-Length: 3") + b"abc", False),
    "a query": (lambda p, _: get(p + "?a=1"), False),
}


@pytest.mark.parametrize("name", AGAIN)
async def test_a_request_that_comes_again_is_answered_alike_without_being_parsed(
    wire: Wire, name: str
) -> None:
    path, tag = await job_of(wire)
    made, known = AGAIN[name]
    sent = made(path, tag)
    said = {}
    for short in (False, True):
        reader, writer = await wire.connect(short=short)
        answers = []
        for _ in range(4):
            writer.write(sent)
            answers.append(b"")
            async with asyncio.timeout(10):
                for _ in range(sent.count(b"HTTP/1.1")):
                    answers[-1] += await answer(reader, bodiless=name == "HEAD")
        said[short] = answers
        writer.close()
    assert said[True] == said[False]
    assert len(set(said[True])) == 1
    assert wire.known == (2 if known and not wire.elsewhere else 0)


# Reads that are not one poll from the first byte to the last, though one of them ends with it.
NOT_ALONE: dict[str, Callable[[str], list[bytes]]] = {
    "half of the next": lambda p: [get(p) + END[:9], END[9:-2]],
    "its other half before": lambda p: [get(p)[:9], get(p)[9:]],
    "the end of a body": lambda p: [
        get(p, "Content-Length: 3", method="POST") + b"a",
        b"bc" + get(p),
    ],
    "another behind": lambda p: [get(p) + get("/healthz")],
    "another before": lambda p: [get("/healthz") + get(p)],
    "the same": lambda p: [get(p) * 2],
}


@pytest.mark.parametrize("name", NOT_ALONE)
async def test_a_request_that_does_not_come_alone_is_not_remembered(wire: Wire, name: str) -> None:
    path, _ = await job_of(wire)
    said = []
    for short in (True, False):
        reader, writer = await wire.connect(short=short)
        reads = NOT_ALONE[name](path)
        for read in reads:
            wire.protocols[-1].data_received(read)
        assert wire.met == []
        open_head = not b"".join(reads).endswith(b"\r\n\r\n")
        wire.protocols[-1].data_received(END[-2:] if open_head else END)
        async with asyncio.timeout(10):
            said.append(await reader.read())
        writer.close()
    assert said[0] == said[1]
    assert b" 200 " in said[0]


async def test_a_request_is_known_again_after_others(wire: Wire) -> None:
    path, _ = await job_of(wire)
    reader, writer = await wire.connect(short=True)
    one, two = get(path), get(path, 'If-None-Match: "1-1"')
    for request in (one, one, get("/healthz"), one, one, two, one, two, two):
        writer.write(request)
        async with asyncio.timeout(10):
            assert b" 200 " in await answer(reader)
    assert wire.known == (0 if wire.elsewhere else 4)
    writer.close()


async def test_however_requests_come_they_are_answered_alike(wire: Wire) -> None:
    path, tag = await job_of(wire)
    requests = [
        get(path),
        get(path),
        get(path, f"If-None-Match: {tag}"),
        get(path, method="HEAD"),
        get("/nowhere"),
        get(path, "Content-Length: 3") + b"abc",
        b"\r\n",
    ]
    random = Random(4711)

    def cut(sent: bytes) -> list[bytes]:
        """Most often between two requests, where it matters most."""
        ends = [found.start() for found in re.finditer(rb"GET|HEAD", sent)]
        often = [end for end in ends if random.random() < 0.8]
        cuts = sorted([*often, *random.choices(range(1, len(sent)), k=random.randrange(3))])
        return [sent[start:end] for start, end in pairwise([0, *cuts, len(sent)]) if start < end]

    for _ in range(100):
        reads = cut(b"".join(random.choices(requests, k=random.randint(2, 8))))
        pauses = [random.random() < 0.7 for _ in reads]
        said = []
        for short in (True, False):
            reader, writer = await wire.connect(short=short)
            protocol = wire.protocols[-1]
            for read, pause in zip(reads, pauses, strict=True):
                protocol.data_received(read)
                cycle = protocol.cycle
                while pause and cycle and not (cycle.response_complete or cycle.more_body):
                    await asyncio.sleep(0)
            protocol.data_received(END)
            async with asyncio.timeout(10):
                said.append(await reader.read())
            writer.close()
        assert said[0] == said[1], reads
    assert (wire.known > 50) is not wire.elsewhere


async def test_what_comes_with_no_request_is_not_remembered(wire: Wire) -> None:
    """uvicorn, on its own, would answer the poll after it has refused the rest, or not at all."""
    path, _ = await job_of(wire)
    said = await wire.say(get(path) + b"\0", short=True)
    expected = [b"400"] if wire.elsewhere else [b"200", b"400"]
    assert re.findall(rb"HTTP/1.1 (\d+)", said) == expected
    assert wire.met == []


async def test_known_bytes_in_the_middle_of_a_request_are_a_part_of_it(wire: Wire) -> None:
    path, _ = await job_of(wire)
    known = get(path)
    said = []
    for short in (True, False):
        reader, writer = await wire.connect(short=short)
        protocol = wire.protocols[-1]
        for _ in range(2):
            protocol.data_received(known)
            await answer(reader)
        protocol.data_received(get("/nowhere")[:-2] + b"X-Known: ")
        protocol.data_received(known)
        protocol.data_received(END)
        async with asyncio.timeout(10):
            said.append(await reader.read())
        writer.close()
    assert said[0] == said[1]
    assert re.findall(rb"HTTP/1.1 (\d+)", said[0]) == [b"404", b"200"]
    assert wire.known == 0


async def know(
    wire: Wire, *, apart: bool = False
) -> tuple[bytes, asyncio.StreamReader, asyncio.StreamWriter]:
    """A poll that is known, where the cache is in the process, and a connection.

    Args:
        wire: where.
        apart: over other connections than the one that is returned.
    """
    path, _ = await job_of(wire)
    reader, writer = await wire.connect(short=True)
    for _ in range(3):
        writer.write(get(path))
        async with asyncio.timeout(10):
            assert b" 200 " in await answer(reader)
        if apart:
            writer.close()
            reader, writer = await wire.connect(short=True)
    assert wire.known == (0 if wire.elsewhere else 1)
    wire.known = 0
    return get(path), reader, writer


async def test_known_requests_count_as_heard(wire: Wire) -> None:
    """What is skipped between requests is bounded; that is counted anew from each of them."""
    known, reader, writer = await know(wire)
    protocol = wire.protocols[-1]
    for _ in range(4):
        protocol.data_received(b"\r\n" * (HEAD_BYTES // 3))
        protocol.data_received(known)
        async with asyncio.timeout(10):
            assert b" 200 " in await answer(reader)
    assert wire.known == (0 if wire.elsewhere else 4)
    writer.close()


async def test_a_known_request_waits_for_the_answer_before_it(wire: Wire) -> None:
    known, reader, writer = await know(wire)
    for read in (get("/nowhere"), known, END):
        wire.protocols[-1].data_received(read)
    async with asyncio.timeout(10):
        assert re.findall(rb"HTTP/1.1 (\d+)", await reader.read()) == [b"404", b"200", b"200"]
    writer.close()


async def test_a_known_request_ends_the_idleness_before_it(wire: Wire) -> None:
    known, reader, writer = await know(wire)
    writer.write(get("/healthz"))
    async with asyncio.timeout(10):
        await answer(reader)
    protocol = wire.protocols[-1]
    idle = protocol.timeout_keep_alive_task
    assert isinstance(idle, asyncio.TimerHandle)
    protocol.data_received(known)
    assert idle.cancelled()
    writer.close()


async def test_a_known_request_that_fails_is_known_no_more(
    wire: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    known, reader, writer = await know(wire)

    def strangers(*_: object) -> None:
        raise JobNotFound(1)

    monkeypatch.setattr(wire.service.parts.jobs, "seen_by", strangers)
    statistics = wire.service.parts.cache.statistics
    for number in range(3):
        before = statistics.hits
        writer.write(known)
        async with asyncio.timeout(10):
            assert b" 404 " in await answer(reader)
        if number > 0:
            assert statistics.hits == before + 1
    writer.close()


@pytest.mark.parametrize("wire", ["memory"], indirect=True)
async def test_what_goes_wrong_with_a_known_request_is_answered_by_the_application(
    wire: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    known, reader, writer = await know(wire)

    def stopped() -> int:
        raise RuntimeError("no clock")

    monkeypatch.setattr(wire.service.parts.cache, "_clock_ms", stopped)
    writer.write(known)
    async with asyncio.timeout(10):
        assert b" 500 " in await answer(reader)
    writer.close()


async def test_what_is_known_is_bounded(wire: Wire) -> None:
    path, _ = await job_of(wire)
    hot = wire.polls()
    hot.known = Known(3)
    reader, writer = await wire.connect(short=True)
    requests = [get(path, f"X-Number: {number}") for number in range(8)]
    for request in [*requests, *requests, *requests]:
        writer.write(request)
        async with asyncio.timeout(10):
            assert b" 200 " in await answer(reader)
    assert len(hot.known) == (0 if wire.elsewhere else 3)
    assert wire.known == (0 if wire.elsewhere else 3)
    writer.close()


async def test_known_requests_keep_no_jobs_at_hand(
    wire: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.jobs.hot._KNOWN", 3)
    paths = [(await job_of(wire))[0] for _ in range(8)]
    reader, writer = await wire.connect(short=True)
    for path in [path for path in paths for _ in range(3)]:
        writer.write(get(path))
        async with asyncio.timeout(10):
            assert b" 200 " in await answer(reader)
    assert wire.known == (0 if wire.elsewhere else 8)
    gc.collect()
    assert sum(isinstance(one, _Job) for one in gc.get_objects()) <= 3 + 1  # the last scope's poll
    writer.close()


async def test_known_requests_are_counted_and_then_idle(wire: Wire) -> None:
    await wire.serve(short=True, timeout_keep_alive=0)
    known, reader, writer = await know(wire, apart=True)
    before = wire.protocols[-1].server_state.total_requests
    writer.write(known)
    async with asyncio.timeout(10):
        assert (await reader.read()).startswith(b"HTTP/1.1 200")
    assert wire.known == (0 if wire.elsewhere else 1)
    assert wire.protocols[-1].server_state.total_requests == before + 1
    writer.close()


async def test_what_is_known_may_come_in_a_bytearray(wire: Wire) -> None:
    """As it does on Windows."""
    known, reader, writer = await know(wire)
    wire.protocols[-1].data_received(bytearray(known))
    async with asyncio.timeout(10):
        assert b" 200 " in await answer(reader)
    assert wire.known == (0 if wire.elsewhere else 1)
    writer.close()


async def test_a_large_body_does_not_count_to_the_head_after_it(wire: Wire) -> None:
    body = b'{"client_id": "acme", "prompt": "' + b"x" * 20_000 + b'"}'
    heading = [f"Content-Length: {len(body)}", "Content-Type: application/json"]
    reader, writer = await wire.connect(short=True)
    writer.write(get("/healthz"))
    await reader.readuntil(b"}")
    protocol = wire.protocols[-1]
    for read in (get("/api/v2/jobs", *heading, method="POST") + body, END[:9], END[9:]):
        protocol.data_received(read)
    async with asyncio.timeout(10):
        said = await reader.read()
    assert re.findall(rb"HTTP/1.1 (\d+)", said) == [b"422", b"200"]
    writer.close()


async def test_what_is_refused_is_counted_once(wire: Wire) -> None:
    """Here a hit, that nothing is made of, is not asked for a second time on the longer way."""
    statistics = wire.service.parts.cache.statistics
    missing = get("/api/v2/jobs/999") + END
    await wire.say(missing, short=True)
    before = statistics.hits
    assert b" 404 " in await wire.say(missing, short=True)
    assert statistics.hits == before + 1


async def test_a_connection_that_is_idle_after_a_hit_is_closed(wire: Wire) -> None:
    path, _ = await job_of(wire)
    await wire.serve(short=True, timeout_keep_alive=0)
    reader, writer = await wire.connect(short=True)
    writer.write(get(path))
    async with asyncio.timeout(10):
        assert (await reader.read()).startswith(b"HTTP/1.1 200")
    assert wire.short == 1
    writer.close()


async def test_a_request_that_comes_with_a_hit_does_not_count_as_idle(wire: Wire) -> None:
    path, tag = await job_of(wire)
    await wire.serve(short=True, timeout_keep_alive=0)
    held = get(path, f"If-None-Match: {tag}", "Prefer: wait=1", "Connection: close")
    said = await wire.say(get(path) + held, short=True)
    assert re.findall(rb"HTTP/1.1 (\d+)", said) == [b"200", b"304"]
    assert wire.short == 1


class Elsewhere:
    """A poll whose answer is in a store, and not heard of yet; and every poll is this one."""

    def __init__(self) -> None:
        self.then: Callable[[None], object] | None = None
        self.known: dict[bytes, object] = {}

    def plain(self, _scope: object) -> Elsewhere:
        return self

    def at_once(self) -> None:
        return None

    def ask(self, then: Callable[[None], object]) -> bool:
        self.then = then
        return True


class Nowhere(asyncio.Transport):
    """A connection whose other end takes everything."""

    def write(self, data: object) -> None:
        """See asyncio."""

    def is_closing(self) -> bool:
        return False

    def close(self) -> None:
        """See asyncio."""


async def test_the_application_runs_in_the_context_of_its_request_and_not_of_the_store() -> None:
    where: ContextVar[str] = ContextVar("where", default="")
    seen: list[str] = []

    async def application(_scope: object, _receive: object, send: Any) -> None:
        seen.append(where.get())
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    def within(name: str, work: Callable[[], object]) -> None:
        where.set(name)
        work()

    config = uvicorn.Config(application, lifespan="off", log_config=None, access_log=False)
    config.load()
    poll = Elsewhere()
    protocol = HotWire(config, ServerState(), {POLLS: poll})
    protocol.connection_made(Nowhere())
    copy_context().run(within, "request", lambda: protocol.data_received(get("/api/v2/jobs/1")))
    assert poll.then is not None
    copy_context().run(within, "store", partial(poll.then, None))
    while not seen:
        await asyncio.sleep(0)
    assert seen == ["request"]
    protocol.connection_lost(None)


async def test_a_shutdown_after_a_hit_hangs_up(wire: Wire) -> None:
    path, _ = await job_of(wire)
    reader, writer = await wire.connect(short=True)
    writer.write(get(path))
    await reader.readuntil(b"\r\n\r\n")
    wire.protocols[-1].shutdown()
    async with asyncio.timeout(10):
        await reader.read()
    assert wire.short == 1
    writer.close()


@pytest.mark.parametrize("sent", [get, lambda path: get(path, "X: other")], ids=["known", "other"])
async def test_a_client_that_does_not_read_is_not_written_to(
    wire: Wire, sent: Callable[[str], bytes]
) -> None:
    known, reader, writer = await know(wire)
    path = known.split()[1].decode()
    protocol = wire.protocols[-1]
    protocol.pause_writing()  # as the transport says when much is unread
    writer.write(sent(path))
    async with asyncio.timeout(10):
        while protocol.cycle is None:  # so the request has been left to uvicorn, which waits
            await asyncio.sleep(0)
        protocol.resume_writing()
        assert b"HTTP/1.1 200" in await reader.readuntil(b"\r\n\r\n")
    writer.close()


# --- while a store elsewhere is asked ---

elsewhere = pytest.mark.parametrize("wire", ["redis"], indirect=True)


def pause(url: str, milliseconds: int) -> None:
    """Redis says nothing for so long."""
    with redis.Redis.from_url(url) as client:
        client.client_pause(milliseconds)


async def asking(wire: Wire) -> tuple[asyncio.StreamReader, asyncio.StreamWriter, HotWire]:
    """A connection whose poll is under way: the store's answer is held."""
    path, _ = await job_of(wire)
    reader, writer = await wire.connect(short=True)
    writer.write(get(path))
    assert b"jobcache; hit" in await answer(reader)
    wire.held = []
    writer.write(get(path))
    async with asyncio.timeout(10):
        while not wire.held:
            await asyncio.sleep(0.001)
    return reader, writer, wire.protocols[-1]


def release(wire: Wire) -> None:
    """The store's answers come."""
    assert wire.held is not None
    held, wire.held = wire.held, None
    for come in held:
        come()


@elsewhere
async def test_who_leaves_meanwhile_is_not_answered(wire: Wire) -> None:
    _, writer, protocol = await asking(wire)
    writer.close()
    async with asyncio.timeout(10):
        while not protocol.cycle.disconnected:
            await asyncio.sleep(0.001)
    release(wire)
    assert not protocol.cycle.response_complete
    assert not protocol.tasks


@elsewhere
async def test_a_shutdown_meanwhile_hangs_up_when_it_is_answered(wire: Wire) -> None:
    reader, writer, protocol = await asking(wire)
    protocol.shutdown()
    release(wire)
    async with asyncio.timeout(10):
        said = await reader.read()
    assert said.startswith(b"HTTP/1.1 200")
    assert b"connection: close" in said
    writer.close()


@elsewhere
async def test_a_client_that_stops_reading_meanwhile_is_not_written_to(wire: Wire) -> None:
    reader, writer, protocol = await asking(wire)
    protocol.pause_writing()
    release(wire)
    assert not protocol.cycle.response_complete
    protocol.resume_writing()
    async with asyncio.timeout(10):
        assert (await answer(reader)).startswith(b"HTTP/1.1 200")
    writer.close()


@elsewhere
async def test_what_the_store_does_not_hold_is_a_miss_once(wire: Wire, redis_url: str) -> None:
    path, _ = await job_of(wire)
    with redis.Redis.from_url(redis_url) as client:
        client.flushall()
    statistics = wire.service.parts.cache.statistics
    before = statistics.hits, statistics.misses
    said = await wire.say(get(path) + END, short=True)
    assert said.startswith(b"HTTP/1.1 200")
    assert b"jobcache; fwd=miss" in said
    assert (statistics.hits, statistics.misses) == (before[0], before[1] + 1)
    assert wire.short == 0


@elsewhere
async def test_a_store_that_is_silent_is_passed_by(wire: Wire, redis_url: str) -> None:
    path, _ = await job_of(wire)
    statistics = wire.service.parts.cache.statistics
    before = statistics.bypasses
    pause(redis_url, 1000)
    for number in (1, 2):
        said = await wire.say(get(path) + END, short=True)
        assert said.startswith(b"HTTP/1.1 200")
        assert b"jobcache; fwd=bypass" in said
        assert statistics.bypasses == before + number
    assert wire.short == 0
    with redis.Redis.from_url(redis_url) as client:
        client.ping()  # answered when it is over


@pytest.mark.parametrize("options", [{"logged": True}, {"limit_concurrency": 100}])
async def test_what_uvicorn_logs_or_limits_is_left_to_it(
    wire: Wire, options: dict[str, Any]
) -> None:
    path, _ = await job_of(wire)
    await wire.serve(short=True, **options)
    assert (await wire.say(get(path) + END, short=True)).startswith(b"HTTP/1.1 200")
    assert wire.short == 0
