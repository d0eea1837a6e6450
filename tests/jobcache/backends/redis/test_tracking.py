"""The change feed of Redis: its reports, and that it notices when reports are missing."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import pytest
import redis

from app.devservers import RedisServer
from jobcache import CacheSettings, Document, JobCache
from jobcache.backends.redis.backend import RedisBackend
from jobcache.backends.redis.tracking.feed import TrackingFeed
from jobcache.backends.registry import make_backend
from tests.jobcache.backends.feed_events import Events, until
from tests.subjects import REDIS_SERVERS, FakeClock

FORMS = {"resp3": "", "resp2": "?protocol=2"}
NO_HELLO = ("--rename-command", "HELLO", "")
NO_CLIENT = ("--rename-command", "CLIENT", "")


def feed_state(cache: JobCache) -> str:
    condition = cache.info().feed
    assert condition is not None
    return condition.state


@asynccontextmanager
async def following(
    url: str, *, heartbeat: float = 0.02, silence: float = 30, clock: FakeClock | None = None
) -> AsyncIterator[tuple[TrackingFeed, Events]]:
    """A feed of the namespace `test:`, live. A busy machine can be silent for a second."""
    backend = RedisBackend(url, prefix="test:")
    feed = TrackingFeed(
        backend.primaries,
        generation=lambda: backend.generation,
        prefix="test:",
        heartbeat=heartbeat,
        silence=silence,
        clock=time.monotonic if clock is None else clock,
    )
    events = Events()
    feed.listen(events)
    feed.start()
    try:
        await until(lambda: feed.live)
        yield feed, events
    finally:
        await feed.aclose()
        await backend.aclose()


@pytest.fixture(params=REDIS_SERVERS)
def program(request: pytest.FixtureRequest) -> Path:
    return REDIS_SERVERS[request.param]


@pytest.fixture(params=FORMS)
def form(request: pytest.FixtureRequest) -> str:
    return FORMS[request.param]


@contextmanager
def serving(program: Path, *arguments: str) -> Iterator[tuple[RedisServer, redis.Redis]]:
    with (
        RedisServer(program, arguments=arguments) as server,
        redis.Redis.from_url(server.url, protocol=2) as raw,
    ):
        yield server, raw


async def test_every_kind_of_change_is_reported(program: Path, form: str) -> None:
    """Written, deleted, expired, by a script; those of other namespaces are not."""
    with serving(program) as (server, raw):
        async with following(server.url + form) as (feed, events):
            raw.set("test:a", 1)
            raw.set("other:x", 1)
            raw.delete("test:a")
            raw.set("test:b", 1, px=100)  # a busy machine may take longer than 1 ms to write it
            raw.eval("return redis.call('SET', KEYS[1], 1, 'KEEPTTL')", 1, "test:c")
            await until(lambda: events.keys.count("b") >= 2)  # written, and expired
            assert events.keys.count("a") >= 1
            assert set(events.keys) == {"a", "b", "c"}
            assert (events.gaps, events.resumptions) == (0, 1)
            assert feed.condition().lag_us["count"] >= 1


async def test_a_flush_is_a_gap(program: Path, form: str) -> None:
    """Which keys there were, nobody knows any more; but nothing else has been missed."""
    with serving(program) as (server, raw):
        async with following(server.url + form) as (feed, events):
            raw.flushall()
            await until(lambda: events.gaps == 1)
            assert events.resumptions == 2
            assert feed.live
            raw.set("test:a", 1)
            await until(lambda: "a" in events.keys)


async def test_a_cut_is_noticed_at_once_and_mended(
    program: Path, form: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Cut each of its connections in turn; each change of its state is one line in the log."""
    with serving(program) as (server, raw):
        async with following(server.url + form, silence=30) as (feed, events):
            wanted = 1 if form == "" else 2  # one that is tracked; and one that is subscribed
            for number in range(wanted):
                gaps = events.gaps
                mine = sorted(
                    int(c["id"]) for c in raw.client_list() if set("tP") & set(c["flags"])
                )
                assert len(mine) == wanted
                caplog.clear()
                with caplog.at_level(logging.WARNING, "jobcache"):
                    raw.client_kill_filter(_id=str(mine[number]))
                    await until(
                        lambda before=gaps: events.resumptions == events.gaps + 1 > before + 1
                    )
                assert [record.levelname for record in caplog.records] == ["WARNING"] * 2
                assert feed.condition().interruptions == number + 1
            raw.set("test:a", 1)
            await until(lambda: "a" in events.keys)


async def test_silence_is_noticed_by_the_clock_alone(program: Path, form: str) -> None:
    """However busy the loop is: what asks `live` is not misled for longer than the limit."""
    clock = FakeClock()
    with serving(program) as (server, _):
        async with following(server.url + form, heartbeat=1, silence=2, clock=clock) as (feed, _):
            clock.now += 1.9
            assert feed.live
            clock.now += 0.2
            assert not feed.live


@pytest.mark.usual_limits
async def test_a_server_that_hangs_is_not_followed(program: Path, form: str) -> None:
    """And once it goes on, it is: what has changed meanwhile may have been missed."""
    with serving(program) as (server, raw):
        async with following(server.url + form, silence=1) as (feed, events):
            server.pause()
            await until(lambda: not feed.live)
            await until(lambda: events.gaps == events.resumptions)
            server.resume()
            await until(lambda: feed.live)
            assert events.resumptions == events.gaps + 1 >= 2
            raw.set("test:a", 1)
            await until(lambda: "a" in events.keys)


async def test_a_server_that_takes_no_writes_is_not_followed(program: Path, form: str) -> None:
    """Writers of other keys go on, and the feed does not report their changes."""
    with serving(program) as (server, raw):
        async with following(server.url + form) as (feed, events):
            raw.replicaof("127.0.0.1", "1")
            await until(lambda: events.gaps == 1)
            assert not feed.live
            raw.replicaof("NO", "ONE")
            await until(lambda: feed.live)


async def test_without_hello_the_older_form_is_taken(program: Path) -> None:
    with serving(program, *NO_HELLO) as (server, raw):
        async with following(server.url) as (feed, events):
            raw.set("test:a", 1)
            await until(lambda: "a" in events.keys)
            raw.flushall()
            await until(lambda: events.gaps == 1)
            assert feed.live


async def test_without_tracking_tiered_is_plain_redis_and_says_so_once(
    program: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with serving(program, *NO_CLIENT) as (server, _):
        with caplog.at_level(logging.WARNING, "jobcache"):
            cache = JobCache(
                make_backend(CacheSettings(backend="tiered", redis_url=f"{server.url}?protocol=2"))
            )
            await cache.start()
            await until(lambda: feed_state(cache) == "unsupported")

        async def load() -> Document:
            return Document(1, "acme", b"{}")

        tiers = [(await cache.read("k", load)).tier for _ in range(3)]
        assert tiers == ["redis"] * 3
        assert cache.info().tier_hits == {"memory": 0, "redis": 2}
        assert len(caplog.records) == 1
        assert "reports no changes" in caplog.text
        await cache.aclose()


async def test_a_server_that_is_away_is_waited_for(program: Path) -> None:
    with serving(program) as (server, raw):
        server.kill()
        backend = RedisBackend(server.url, prefix="test:")
        feed, events = backend.feed(), Events()
        feed.listen(events)
        feed.start()
        feed.start()
        await until(lambda: "connecting to" in feed.condition().reason)
        assert (feed.live, feed.condition().state, events.gaps) == (False, "connecting", 0)
        server.start()
        await until(lambda: feed.live)
        raw.set("test:a", 1)
        await until(lambda: "a" in events.keys)
        await backend.aclose()
        assert not feed.live
        await backend.aclose()


async def test_a_feed_that_nobody_needs_makes_no_connection(program: Path) -> None:
    with serving(program) as (server, raw):
        backend = RedisBackend(server.url)
        await backend.ping()
        assert backend.feed().condition().state == "idle"
        await until(lambda: len(raw.client_list()) == 1)  # the ping's own is being closed
        await backend.aclose()


async def test_a_feed_that_is_closed_ends_whatever_it_is_at(redis_url: str, form: str) -> None:
    """redis-py may swallow the cancellation that comes while it sends."""
    for turns in range(60):
        async with (
            asyncio.timeout(60),
            following(redis_url + form, heartbeat=0.0, silence=5.0),
        ):
            for _ in range(turns % 12):
                await asyncio.sleep(0)
