"""Wall clocks that are set back or forward: additional loads, and entries that are served."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from jobcache import CacheOutcome, JobCache
from jobcache.resilience.guarded_backend import GuardedBackend
from jobcache.testing import conformance
from tests.jobcache.bench import Bench, document
from tests.subjects import KEEPING, RedisSubject

HOUR = 3600.0

where_kept = pytest.mark.parametrize("subject", KEEPING, indirect=True)


class Guarded:
    """A subject whose backend is behind a guard, as in production."""

    def __init__(self, subject: conformance.Subject) -> None:
        self.evict, self.elapse = subject.evict, subject.elapse
        self.backend = subject.backend
        if isinstance(subject, RedisSubject):
            self.backend = GuardedBackend(subject.backend, deadline=5, fence_deadline=5)


@pytest.fixture
async def bench(subject: conformance.Subject) -> AsyncIterator[Bench]:
    bench = Bench(Guarded(subject))
    guard = getattr(bench.subject.backend, "_remote", bench.subject.backend)
    if isinstance(guard, GuardedBackend):
        guard._confirmation._clock_ms = lambda: bench.now_ms
    bench.source.versions |= {"k": 1, "l": 1}
    yield bench
    await bench.cache.aclose()


def outage(bench: Bench) -> None:
    """The store was away, and is back."""
    guard = getattr(bench.subject.backend, "_remote", bench.subject.backend)
    if isinstance(guard, GuardedBackend):
        guard._breaker.trip("a test")
        guard._recovery._close_circuit()


async def outcomes(bench: Bench, count: int = 4) -> list[str]:
    return [(await bench.read("k"))[1].value for _ in range(count)]


@where_kept
@pytest.mark.parametrize("seconds", [2.0, 20.0, 60.0, HOUR, 24 * HOUR])
async def test_set_back_after_an_outage_each_key_is_loaded_once(
    bench: Bench, seconds: float
) -> None:
    await outcomes(bench, 2)
    outage(bench)
    await outcomes(bench, 2)
    bench.now_ms -= round(seconds * 1000)
    assert (await outcomes(bench))[1:] == ["hit"] * 3
    many = await bench.cache.read_many(["k", "l"], bench.source.load_many)
    assert many["k"].outcome is CacheOutcome.HIT
    assert await bench.read("l") == (1, CacheOutcome.HIT)
    await bench.write("k")
    assert await bench.read("k") == (2, CacheOutcome.HIT)


@where_kept
@pytest.mark.parametrize("seconds", [1.5, 20.0, 29.0, HOUR])
@pytest.mark.parametrize("looks", [0, 1])
async def test_set_back_it_serves_nothing_for_longer_than_it_is_fresh(
    bench: Bench, seconds: float, looks: int
) -> None:
    await bench.read("k")  # fresh for 30 s
    await bench.elapse(25)
    assert await outcomes(bench, 1) == ["hit"]
    bench.now_ms -= round(seconds * 1000)
    await outcomes(bench, looks)
    await bench.elapse(7)
    if not looks:
        assert await bench.read("k") == (1, CacheOutcome.EXPIRED)
    bench.now_ms -= round(seconds * 1000)
    assert (await outcomes(bench))[1:] == ["hit"] * 3


@where_kept
async def test_set_forward_and_back_each_key_is_loaded_once(bench: Bench) -> None:
    await bench.read("k")
    outage(bench)
    for step in (HOUR, -HOUR, -HOUR, HOUR):
        bench.now_ms += round(step * 1000)
        assert await outcomes(bench) == ["expired", "hit", "hit", "hit"]
    for step in (-0.9, 0.9, -0.9):  # clocks are slewed by as much all the time
        bench.now_ms += round(step * 1000)
        assert await outcomes(bench) == ["hit"] * 4


@where_kept
async def test_set_back_while_nobody_asked_it_is_noticed_by_the_monotonic_clock(
    subject: conformance.Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = {"wall": 1_700_000_000_000, "monotonic": 5_000}
    monkeypatch.setattr("jobcache._engine.clock._wall_clock_ms", lambda: now["wall"])
    monkeypatch.setattr("jobcache._engine.clock._monotonic_ms", lambda: now["monotonic"])
    guarded = Guarded(subject)
    cache = JobCache(guarded.backend)

    async def load() -> object:
        return document(1)

    async def read() -> CacheOutcome:
        return (await cache.read("k", load)).outcome  # type: ignore[arg-type]

    assert [await read() for _ in range(2)] == [CacheOutcome.MISS, CacheOutcome.HIT]
    await guarded.elapse(40)
    now["monotonic"] += 40_000
    now["wall"] += 10_000  # set back by 30 s meanwhile
    if hasattr(guarded.backend, "tiers"):
        guarded.backend._local.drop_all()  # type: ignore[attr-defined] # or it would have expired
    assert [await read() for _ in range(2)] == [CacheOutcome.EXPIRED, CacheOutcome.HIT]
    await asyncio.sleep(0)
    await cache.aclose()
