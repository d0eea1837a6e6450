"""The promises that need more than one process, or a death: `docs/promises.md`, cell by cell."""

from __future__ import annotations

import pytest
import redis

from app.devservers import RedisServer
from jobcache import CacheOutcome, JobCache, Lifetimes
from jobcache.backends.redis.backend import RedisBackend
from jobcache.resilience.guarded_backend import GuardedBackend
from jobcache.testing.conformance import Subject
from tests.jobcache.bench import Bench, Source, Transaction, document
from tests.subjects import BACKENDS, RedisSubject


@pytest.mark.parametrize("subject", BACKENDS, indirect=True)
async def test_a_writer_that_dies_after_its_commit_hides_nothing(subject: Subject) -> None:
    bench = Bench(subject)
    await bench.write("k")
    assert (await bench.read("k"))[0] == 1
    await subject.backend.fence("k", "dead")
    bench.source.versions["k"] = 2  # committed; its process dies here
    for _ in range(3):
        assert (await bench.read("k"))[0] == 2
    await bench.elapse(31)
    for _ in range(3):
        assert (await bench.read("k"))[0] == 2


@pytest.mark.parametrize("subject", BACKENDS, indirect=True)
async def test_a_cache_that_forgets_everything_stays_fresh(subject: Subject) -> None:
    """Between any two steps of a writer, and of a reader beside it."""
    bench = Bench(subject)
    await bench.write("k")
    async with bench.cache.write(Transaction(bench.source, "k"), "k") as write:
        await subject.evict("k")
        assert (await bench.read("k"))[0] == 1  # which takes the lease and stores version 1
        write.publish("k", document(2))
    for _ in range(3):
        assert (await bench.read("k"))[0] == 2
        await subject.evict("k")


async def test_a_flushed_redis_stays_fresh(redis_url: str) -> None:
    subject = RedisSubject(redis_url)
    bench = Bench(subject)
    for version in range(1, 5):
        async with bench.cache.write(Transaction(bench.source, "k"), "k") as write:
            subject.raw.flushall()
            write.publish("k", document(version))
        assert (await bench.read("k"))[0] == version
    await subject.aclose()


async def test_a_writer_cut_off_from_redis_is_hidden_for_one_lifetime_at_most() -> None:
    """Readers elsewhere still reach Redis, and are given the old version until it expires."""
    source, now_ms = Source(), 1_700_000_000_000
    lifetimes = Lifetimes(default=30, jitter=0)
    with RedisServer() as server, RedisServer() as nowhere, redis.Redis.from_url(server.url):
        reader = JobCache(RedisBackend(server.url), lifetimes=lifetimes, clock_ms=lambda: now_ms)
        writer = JobCache(GuardedBackend(RedisBackend(nowhere.url)), lifetimes=lifetimes)
        nowhere.kill()
        source.versions["k"] = 1
        assert (await reader.read("k", lambda: source.load("k"))).entry.version == 1
        async with writer.write(Transaction(source, "k"), "k") as write:
            write.publish("k", document(2))
        own = await writer.read("k", lambda: source.load("k"))
        assert (own.entry.version, own.outcome) == (2, CacheOutcome.BYPASS)
        hidden = await reader.read("k", lambda: source.load("k"))
        assert (hidden.entry.version, hidden.outcome) == (1, CacheOutcome.HIT)
        seen = await reader.read("k", lambda: source.load("k"), min_version=2)
        assert seen.entry.version == 2, "but never to a client that has seen the new one"
        await reader.backend.purge(["k"])
        source.versions["k"] = 1
        await reader.read("k", lambda: source.load("k"))
        source.versions["k"] = 2
        now_ms += 30_000
        late = await reader.read("k", lambda: source.load("k"))
        assert (late.entry.version, late.outcome) == (2, CacheOutcome.EXPIRED)
        await reader.aclose()
        await writer.aclose()
