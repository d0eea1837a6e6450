"""What our protocol writes by itself is, to the byte, what uvicorn would have written."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from contextvars import ContextVar, copy_context
from functools import partial
from itertools import pairwise
from random import Random
from typing import Any

import pytest
import redis
import uvicorn
from uvicorn.server import ServerState

from app.http.fast_path_protocol import FastPathProtocol
from app.http.lifespan_state import FAST_PATH
from app.http.limits import HEAD_BYTES
from tests.app.wires import END, MADE_ID, Stream, Wire, answer, get, job_of

# What is sent, and how much of it is answered by the fast path. Where the cache is elsewhere, only
# the first of what is sent together: the others come while it is under way, and wait their turn.
STREAMS: dict[str, tuple[Stream, int]] = {
    "one": (lambda p, _: get(p) + END, 1),
    "unchanged": (lambda p, t: get(p, f"If-None-Match: {t}") + END, 1),
    "another tag": (lambda p, _: get(p, 'If-None-Match: "1-1"') + END, 1),
    "gzip": (lambda p, t: get(p, "Accept-Encoding: gzip", f"If-None-Match: {t}") + END, 1),
    "an empty line before it": (lambda p, _: b"\r\n" + get(p) + END, 1),
    "an empty line behind it": (lambda p, _: get(p) + b"\r\n" + END, 1),
    "many headers": (lambda p, _: get(p, *(f"X-{n}: {n}" for n in range(90))) + END, 1),
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


async def test_however_requests_are_cut_and_joined_they_are_answered_alike(wire: Wire) -> None:
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
        """Cut most often between two requests, where it matters most."""
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
            async with asyncio.timeout(60):
                said.append(MADE_ID.sub(b"", await reader.read()))
            writer.close()
        assert said[0] == said[1], reads
    assert wire.short > 50


async def test_a_poll_in_the_middle_of_a_request_is_a_part_of_it(wire: Wire) -> None:
    path, _ = await job_of(wire)
    said = []
    for short in (True, False):
        reader, writer = await wire.connect(short=short)
        for read in (get("/nowhere")[:-2] + b"X: ", get(path), END):
            wire.protocols[-1].data_received(read)
        async with asyncio.timeout(60):
            said.append(MADE_ID.sub(b"", await reader.read()))
        writer.close()
    assert said[0] == said[1]
    assert re.findall(rb"HTTP/1.1 (\d+)", said[0]) == [b"400", b"200"], "it has two hosts"
    assert wire.short == 0


async def test_what_is_skipped_between_requests_is_counted_anew_from_each_hit(wire: Wire) -> None:
    path, _ = await job_of(wire)
    reader, writer = await wire.connect(short=True)
    for _ in range(4):
        wire.protocols[-1].data_received(b"\r\n" * (HEAD_BYTES // 3))
        wire.protocols[-1].data_received(get(path))
        async with asyncio.timeout(60):
            assert b" 200 " in await answer(reader)
    writer.close()


async def test_a_hit_begins_the_idle_time_anew(wire: Wire) -> None:
    path, _ = await job_of(wire)
    reader, writer = await wire.connect(short=True)
    writer.write(get("/healthz"))
    async with asyncio.timeout(60):
        await answer(reader)
    protocol = wire.protocols[-1]
    due = protocol._timer._due
    protocol.data_received(get(path))
    async with asyncio.timeout(60):
        await answer(reader)
    assert protocol._timer._due > due
    writer.close()


async def test_a_hit_is_counted_as_a_request(wire: Wire) -> None:
    path, _ = await job_of(wire)
    reader, writer = await wire.connect(short=True)
    before = wire.protocols[-1].server_state.total_requests
    writer.write(get(path))
    async with asyncio.timeout(60):
        assert b" 200 " in await answer(reader)
    assert wire.protocols[-1].server_state.total_requests == before + 1
    writer.close()


async def test_the_number_of_jobs_at_hand_is_bounded(
    wire: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jobcache.http.fast_path._PATHS", 3)
    paths = [(await job_of(wire))[0] for _ in range(8)]
    for path in [path for path in paths for _ in range(2)]:
        assert b" 200 " in await wire.say(get(path) + END, short=True)
        assert len(wire.polls()._paths) <= 3
    assert wire.short == 16


@pytest.mark.parametrize("wire", ["memory"], indirect=True)
async def test_what_goes_wrong_with_a_hit_is_answered_by_the_application(
    wire: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, _ = await job_of(wire)

    def stopped() -> int:
        raise RuntimeError("no clock")

    monkeypatch.setattr(wire.service.services.cache._clock, "now_ms", stopped)
    assert b" 500 " in await wire.say(get(path) + END, short=True)


async def test_a_large_body_does_not_count_to_the_head_after_it(wire: Wire) -> None:
    body = b'{"client_id": "acme", "prompt": "' + b"x" * 20_000 + b'"}'
    heading = [f"Content-Length: {len(body)}", "Content-Type: application/json"]
    reader, writer = await wire.connect(short=True)
    writer.write(get("/healthz"))
    await reader.readuntil(b"}")
    protocol = wire.protocols[-1]
    for read in (get("/api/v2/jobs", *heading, method="POST") + body, END[:9], END[9:]):
        protocol.data_received(read)
    async with asyncio.timeout(60):
        said = await reader.read()
    assert re.findall(rb"HTTP/1.1 (\d+)", said) == [b"422", b"200"]
    writer.close()


async def test_what_is_refused_is_counted_once(wire: Wire) -> None:
    """Here a hit, that nothing is made of, is not asked for a second time by the application."""
    statistics = wire.service.services.cache.statistics
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
    async with asyncio.timeout(60):
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

    def __init__(self, application: Any) -> None:
        self.reading: asyncio.Future[None] | None = None
        self._application = application

    def admit(self, _server: object) -> bool:
        return True

    def match(self, _scope: object) -> Elsewhere:
        return self

    def begin(self) -> asyncio.Future[None]:
        self.reading = asyncio.get_running_loop().create_future()
        return self.reading

    def reply_to(self, _: object) -> None:
        return None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await self._application(scope, receive, send)


class Nowhere(asyncio.Transport):
    """A connection whose other end takes everything."""

    def write(self, data: object) -> None:
        """Discard the data."""

    def is_closing(self) -> bool:
        return False

    def close(self) -> None:
        """Stay open."""


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
    poll = Elsewhere(application)
    protocol = FastPathProtocol(config, ServerState(), {FAST_PATH: poll})
    protocol.connection_made(Nowhere())
    copy_context().run(within, "request", lambda: protocol.data_received(get("/api/v2/jobs/1")))
    assert poll.reading is not None
    copy_context().run(within, "store", partial(poll.reading.set_result, None))
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
    async with asyncio.timeout(60):
        await reader.read()
    assert wire.short == 1
    writer.close()


async def test_a_client_that_does_not_read_is_not_written_to(wire: Wire) -> None:
    path, _ = await job_of(wire)
    reader, writer = await wire.connect(short=True)
    protocol = wire.protocols[-1]
    protocol.pause_writing()  # as the transport says when much is unread
    writer.write(get(path))
    async with asyncio.timeout(60):
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


async def asking(wire: Wire) -> tuple[asyncio.StreamReader, asyncio.StreamWriter, FastPathProtocol]:
    """A connection whose poll is under way: the store's answer is held."""
    path, _ = await job_of(wire)
    reader, writer = await wire.connect(short=True)
    writer.write(get(path))
    assert b"jobcache; hit" in await answer(reader)
    wire.held = []
    writer.write(get(path))
    async with asyncio.timeout(60):
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
    async with asyncio.timeout(60):
        while protocol._reading is not None:
            await asyncio.sleep(0.001)
    release(wire)
    await asyncio.sleep(0.01)
    assert protocol.cycle is None
    assert not protocol.tasks


@elsewhere
async def test_a_shutdown_meanwhile_hangs_up_when_it_is_answered(wire: Wire) -> None:
    reader, writer, protocol = await asking(wire)
    protocol.shutdown()
    release(wire)
    async with asyncio.timeout(60):
        said = await reader.read()
    assert said.startswith(b"HTTP/1.1 200")
    assert b"connection: close" in said
    writer.close()


@elsewhere
async def test_a_client_that_stops_reading_meanwhile_is_not_written_to(wire: Wire) -> None:
    reader, writer, protocol = await asking(wire)
    polls = wire.service.services.cache.statistics.polls
    before = polls.whole
    protocol.pause_writing()
    release(wire)
    async with asyncio.timeout(60):
        while protocol.cycle is None:  # uvicorn has it
            await asyncio.sleep(0.001)
    assert not protocol.cycle.response_complete
    protocol.resume_writing()
    async with asyncio.timeout(60):
        assert (await answer(reader)).startswith(b"HTTP/1.1 200")
    assert polls.whole == before + 1, "it is counted once"
    writer.close()


@elsewhere
async def test_a_poll_of_a_closing_connection_is_neither_answered_nor_counted(
    wire: Wire,
) -> None:
    _, writer, protocol = await asking(wire)
    polls = wire.service.services.cache.statistics.polls
    before = polls.whole
    protocol._guarded.close(within=60)
    release(wire)
    async with asyncio.timeout(60):
        while protocol._reading is not None:
            await asyncio.sleep(0.001)
    assert protocol.cycle is None
    assert not protocol.tasks
    assert polls.whole == before
    writer.close()


@elsewhere
async def test_what_the_store_does_not_hold_is_a_miss_once(wire: Wire, redis_url: str) -> None:
    path, _ = await job_of(wire)
    with redis.Redis.from_url(redis_url) as client:
        client.flushall()
    statistics = wire.service.services.cache.statistics
    before = statistics.hits, statistics.misses
    said = await wire.say(get(path) + END, short=True)
    assert said.startswith(b"HTTP/1.1 200")
    assert b"jobcache; fwd=miss" in said
    assert (statistics.hits, statistics.misses) == (before[0], before[1] + 1)
    assert wire.short == 0


@elsewhere
async def test_a_store_that_is_silent_is_passed_by(
    wire: Wire, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, _ = await job_of(wire)
    monkeypatch.setattr(wire.service.services.cache.backend, "_deadline", 0.1)
    statistics = wire.service.services.cache.statistics
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
