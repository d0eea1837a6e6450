"""Shadow reads: their counters, and that they change nothing."""

from __future__ import annotations

import asyncio

import pytest

from jobcache import CacheOutcome, Document, JobCache
from jobcache.backends.memory import MemoryBackend
from jobcache.testing.simulation import entry_of
from tests.jobcache.bench import Source, Transaction, document


class SupportsHealth:
    """A cache every hit of which is compared, and whose sleeps wait for the test."""

    def __init__(self, rate: float = 1.0) -> None:
        self.source = Source()
        self.source.versions["k"] = 1
        self.backend = MemoryBackend()
        self.naps = 0
        self.nap_over = asyncio.Event()
        self.cache = JobCache(self.backend, shadow_rate=rate, sleep=self.nap)

    async def nap(self, seconds: float) -> None:
        self.naps += 1
        await self.nap_over.wait()
        await asyncio.sleep(0)

    async def read(self) -> CacheOutcome:
        return (await self.cache.read("k", lambda: self.source.load("k"))).outcome

    async def settled(self) -> None:
        async with asyncio.timeout(60):
            while self.cache._shadow._tasks:
                await asyncio.sleep(0)

    @property
    def counts(self) -> tuple[int, int, int]:
        statistics = self.cache.statistics
        return statistics.shadow_reads, statistics.shadow_overtaken, statistics.shadow_stale


async def test_hits_that_are_right_are_counted_and_nothing_else() -> None:
    watched = SupportsHealth()
    assert await watched.read() is CacheOutcome.MISS
    for _ in range(3):
        assert await watched.read() is CacheOutcome.HIT
        await watched.settled()
    assert watched.counts == (3, 0, 0)
    assert watched.source.loads == 1 + 3
    await watched.cache.aclose()


async def test_a_stale_entry_is_counted_and_timed_until_it_is_served_no_more(
    caplog: pytest.LogCaptureFixture,
) -> None:
    watched = SupportsHealth()
    await watched.read()
    watched.source.versions["k"] = 2  # behind the cache's back
    assert await watched.read() is CacheOutcome.HIT
    async with asyncio.timeout(60):
        while not watched.naps:
            await asyncio.sleep(0)
    assert watched.counts == (1, 0, 1)
    assert watched.cache.statistics.staleness.count == 0, "it goes on"
    await watched.backend.purge(["k"])
    watched.nap_over.set()
    await watched.settled()
    info = watched.cache.info()
    assert info.counters.shadow_stale == 1
    assert info.latency_us["staleness"]["count"] == 1
    assert caplog.messages == ["the memory cache serves version 1 of k, and hides version 2"]
    await watched.cache.aclose()


@pytest.mark.parametrize("published", [True, False])
async def test_a_hit_that_a_writer_overtook_is_not_stale(*, published: bool) -> None:
    """When the comparison sees the newer version, that is fenced, or published by then."""
    watched = SupportsHealth()
    await watched.read()
    compare = asyncio.Event()

    async def load() -> Document | None:
        await compare.wait()
        return await watched.source.load("k")

    assert (await watched.cache.read("k", load)).outcome is CacheOutcome.HIT
    async with watched.cache.write(Transaction(watched.source, "k"), "k") as write:
        write.publish("k", document(write.transaction.version))
        if not published:
            watched.source.versions["k"] = 2  # visible, and on its way
            compare.set()
            await watched.settled()
    compare.set()
    await watched.settled()
    assert watched.counts == (1, 1, 0)
    await watched.cache.aclose()


async def test_it_is_off_unless_asked_for_and_never_a_crowd() -> None:
    off = SupportsHealth(rate=0.0)
    await off.read()
    await off.read()
    assert off.source.loads == 1
    await off.cache.aclose()
    crowd = SupportsHealth()
    await crowd.read()
    crowd.source.gate.clear()
    for _ in range(50):
        assert await crowd.read() is CacheOutcome.HIT
    assert len(crowd.cache._shadow._tasks) == 4
    await crowd.cache.aclose()
    assert not crowd.cache._shadow._tasks


async def test_a_comparison_that_fails_is_left_out() -> None:
    watched = SupportsHealth()
    await watched.read()
    watched.source.away = True
    assert await watched.read() is CacheOutcome.HIT
    await watched.settled()
    assert watched.counts == (0, 0, 0)
    await watched.cache.aclose()


@pytest.mark.parametrize("rate", [-0.1, 1.1, float("nan")])
def test_a_rate_is_a_part(rate: float) -> None:
    with pytest.raises(ValueError, match="from 0 to 1"):
        JobCache(MemoryBackend(), shadow_rate=rate)


async def test_an_entry_past_its_freshness_hides_nothing() -> None:
    """It is not served, unless the source is away."""
    watched = SupportsHealth()
    await watched.backend.lease("k", "r")
    await watched.backend.publish("k", "r", entry_of(1))
    assert not await watched.cache._shadow._hides("k", 2)
    await watched.cache.aclose()
