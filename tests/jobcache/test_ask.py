"""`Reads.ask`: a hit elsewhere without a task, and never anything but a hit."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator

import pytest

from app.devservers import RedisServer
from jobcache import CacheOutcome, CacheSettings, Document, JobCache, Lifetimes, ReadResult
from jobcache.backends.registry import make_backend

FRESH = 30


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    with RedisServer() as server:
        yield server


class Asked:
    """A cache in Redis, with version 3 at `k`; and what it is asked."""

    def __init__(self, url: str) -> None:
        self.now_ms = 1_700_000_000_000
        backend = make_backend(CacheSettings(backend="redis", redis_url=url))
        lifetimes = Lifetimes(default=FRESH, jitter=0)
        self.cache = JobCache(backend, lifetimes=lifetimes, clock_ms=lambda: self.now_ms)

    async def load(self) -> Document:
        return Document(3, "acme", b"{}", "moving", 2)

    async def ask(self, key: str, min_version: int = 0) -> ReadResult | None:
        said: list[ReadResult | None] = []
        assert self.cache.reads.ask(key, self.load, min_version, said.append)
        assert said == [], "never in the same turn"
        async with asyncio.timeout(60):
            while not said:
                await asyncio.sleep(0)
        assert len(said) == 1
        return said[0]

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


async def test_a_hit_is_told_and_counted(asked: Asked) -> None:
    hits, misses, loads = asked.counts()
    asked.now_ms += 2000
    answer = await asked.ask("k", min_version=3)
    assert answer is not None
    assert (answer.entry.version, answer.outcome, answer.age_ms) == (3, CacheOutcome.HIT, 2000)
    assert asked.counts() == (hits + 1, misses, loads)


async def test_what_must_not_be_served_is_not_told(asked: Asked) -> None:
    counts = asked.counts()
    assert await asked.ask("k", min_version=4) is None, "the caller has seen more"
    assert await asked.ask("nothing") is None
    asked.now_ms += FRESH * 1000
    assert await asked.ask("k") is None, "past its freshness"
    assert asked.counts() == counts


async def test_while_the_store_is_away_nothing_is_told_and_then_it_is_not_asked() -> None:
    with RedisServer() as server:
        asked = Asked(server.url)
        await asked.cache.read("k", asked.load)
        server.kill()
        told: list[ReadResult | None] = []
        async with asyncio.timeout(60):
            while asked.cache.reads.ask("k", asked.load, 0, told.append):
                while not told:
                    await asyncio.sleep(0.001)
                assert told.pop() is None
        await asked.cache.aclose()


async def test_who_asks_while_it_closes_is_told_that_there_is_nothing(asked: Asked) -> None:
    told: list[ReadResult | None] = []
    assert asked.cache.reads.ask("k", asked.load, 0, told.append)
    await asked.cache.aclose()
    await asyncio.sleep(0)
    assert told == [None]


async def test_a_cache_in_the_process_is_peeked_at_and_not_asked() -> None:
    async def load() -> None:
        return None

    cache = JobCache(make_backend(CacheSettings(backend="memory")))
    await cache.read("k", load)
    told: list[ReadResult | None] = []
    assert not cache.reads.ask("k", load, 0, told.append)
    await asyncio.sleep(0)
    assert told == []
    await cache.aclose()
