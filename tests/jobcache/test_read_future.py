"""`Reads.read_future`: a hit elsewhere without a task, and never anything but a hit."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any

import pytest

from app.devservers import RedisServer
from jobcache import (
    CacheOutcome,
    CacheSettings,
    CacheUnavailable,
    Document,
    JobCache,
    Lifetimes,
    ReadResult,
)
from jobcache.backends.registry import make_backend

FRESH = 30


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    with RedisServer() as server:
        yield server


class Asked:
    """A cache in Redis, with version 3 at `k`, and a record of its operations."""

    def __init__(self, url: str) -> None:
        self.now_ms = 1_700_000_000_000
        backend = make_backend(CacheSettings(backend="redis", redis_url=url))
        lifetimes = Lifetimes(default=FRESH, jitter=0)
        self.cache = JobCache(backend, lifetimes=lifetimes, clock_ms=lambda: self.now_ms)

    async def load(self) -> Document:
        return Document(3, "acme", b"{}", "moving", 2)

    async def ask(self, key: str, min_version: int = 0) -> ReadResult | None:
        reading = self.cache.reads.read_future(key, self.load, min_version)
        assert reading is not None
        assert not reading.done()
        async with asyncio.timeout(60):
            return await reading

    def counts(self) -> tuple[int, int, int]:
        statistics = self.cache.statistics
        return statistics.hits, statistics.misses, statistics.database_loads


@pytest.fixture
async def asked(server: RedisServer) -> AsyncIterator[Asked]:
    asked = Asked(server.url)
    await asked.cache.invalidate_all()
    await asked.cache.read("k", asked.load)
    yield asked
    await asked.cache.aclose()


async def test_a_hit_is_reported_and_counted(asked: Asked) -> None:
    hits, misses, loads = asked.counts()
    asked.now_ms += 2000
    answer = await asked.ask("k", min_version=3)
    assert answer is not None
    assert (answer.entry.version, answer.outcome, answer.age_ms) == (3, CacheOutcome.HIT, 2000)
    assert asked.counts() == (hits + 1, misses, loads)


async def test_an_entry_that_must_not_be_served_is_not_reported(asked: Asked) -> None:
    counts = asked.counts()
    assert await asked.ask("k", min_version=4) is None, "the caller has seen more"
    assert await asked.ask("nothing") is None
    asked.now_ms += FRESH * 1000
    assert await asked.ask("k") is None, "past its freshness"
    assert asked.counts() == counts


async def test_while_the_store_is_away_the_future_says_so_at_once() -> None:
    with RedisServer() as server:
        asked = Asked(server.url)
        await asked.cache.read("k", asked.load)
        server.kill()
        async with asyncio.timeout(60):
            while asked.cache.info().health.available:
                with pytest.raises(CacheUnavailable):
                    await asked.ask("k")
        with pytest.raises(CacheUnavailable):
            await asked.ask("k")
        await asked.cache.aclose()


async def test_a_read_under_way_ends_when_the_cache_closes(asked: Asked) -> None:
    sent = asked.cache.reads.read_future("k", asked.load)
    await asyncio.sleep(0)
    buffered = asked.cache.reads.read_future("k", asked.load)
    await asked.cache.reads.aclose()  # `JobCache.aclose` would let the buffered one be sent before
    await asked.cache.aclose()
    assert sent is not None
    assert buffered is not None
    async with asyncio.timeout(60):
        await asyncio.wait({sent, buffered})
    assert isinstance(buffered.exception(), CacheUnavailable)
    assert isinstance(sent.exception(), CacheUnavailable | None)


async def test_gets_of_one_turn_are_one_operation(asked: Asked) -> None:
    batches: list[list[str]] = []
    backend: Any = asked.cache.backend._backend  # type: ignore[attr-defined]
    read = backend.get_many_future

    def counted(keys: Sequence[str]) -> Any:
        batches.append(list(keys))
        return read(keys)

    backend.get_many_future = counted
    reading = [asked.cache.reads.read_future("k", asked.load) for _ in range(3)]
    awaited = [asyncio.create_task(asked.cache.read(key, asked.load)) for key in ("k", "l")]
    assert all([await each for each in reading if each is not None])
    await asyncio.gather(*awaited)
    assert sorted(batches) == [["k"], ["k", "l"]], "the tasks begin in the next turn"
    await asked.cache.invalidate("l")


async def test_a_caller_that_has_gone_changes_nothing_for_the_others(asked: Asked) -> None:
    gone, stays = (asked.cache.reads.read_future("k", asked.load) for _ in range(2))
    assert gone is not None
    assert stays is not None
    gone.cancel()
    assert await stays is not None


async def test_a_cache_in_the_process_has_no_store_to_read() -> None:
    async def load() -> None:
        return None

    cache = JobCache(make_backend(CacheSettings(backend="memory")))
    await cache.read("k", load)
    assert cache.reads.read_future("k", load) is None
    await cache.aclose()
