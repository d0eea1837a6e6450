"""A used synchronous cache can be copied and pickled: the result has its settings."""

from __future__ import annotations

import copy
import multiprocessing
import pickle
from collections.abc import Callable

import pytest
import redis as redis_client

from jobcache import CacheOutcome, CacheSettings, Lifetimes
from jobcache.backends.memory import MemoryBackend
from jobcache.observability.statistics import Statistics
from jobcache.sync import JobCache
from tests.jobcache.sync.sync_bench import MEMORY, Source, read, write


def by_pickle(cache: JobCache) -> JobCache:
    made = pickle.loads(pickle.dumps(cache))  # noqa: S301 - our own
    assert isinstance(made, JobCache)
    return made


COPIES: list[Callable[[JobCache], JobCache]] = [by_pickle, copy.copy, copy.deepcopy]


@pytest.mark.parametrize("by_status", [{}, {"done": 60}])
@pytest.mark.parametrize("made_by", COPIES)
@pytest.mark.parametrize("backend", [MEMORY, MemoryBackend])
def test_a_used_cache_yields_a_fresh_one_with_the_same_settings(
    made_by: Callable[[JobCache], JobCache],
    backend: CacheSettings | type[MemoryBackend],
    by_status: dict[str, float],
) -> None:
    lifetimes = Lifetimes(default=7, jitter=0, by_status=by_status) if by_status else Lifetimes()
    source, counted = Source(k=1), Statistics()
    with JobCache(backend, lifetimes=lifetimes, statistics=counted) as used:
        assert read(used, source) == (1, CacheOutcome.MISS)
        with made_by(used) as fresh:
            answer = fresh.read("k", source.load)
            assert answer.outcome is CacheOutcome.MISS
            assert (answer.entry.fresh_ms == 7000) is bool(by_status)
            assert fresh.lifetimes == lifetimes
            assert fresh.statistics.misses == 1
            assert fresh.statistics is not counted
        assert read(used, source) == (1, CacheOutcome.HIT), "the original goes on"
        assert used.statistics is counted
        assert counted.misses == 1


def test_a_closed_cache_yields_an_open_one() -> None:
    used = JobCache(MEMORY)
    read(used, Source(k=1))
    used.close()
    with by_pickle(used) as fresh:
        assert read(fresh, Source(k=1)) == (1, CacheOutcome.MISS)


class Named(JobCache):
    """A subclass with a setting of its own."""

    def __init__(self, name: str) -> None:
        super().__init__(MEMORY)
        self.name = name


def test_a_subclass_keeps_what_it_adds() -> None:
    with Named("exports") as used:
        read(used, Source(k=1))
        fresh = by_pickle(used)
        assert isinstance(fresh, Named)
        with fresh:
            assert fresh.name == "exports"
            assert read(fresh, Source(k=1)) == (1, CacheOutcome.MISS)


def test_a_backend_that_cannot_be_pickled_says_so() -> None:
    with JobCache(lambda: MemoryBackend()) as cache:  # noqa: PLW0108 - that is the point
        read(cache, Source(k=1))
        with pytest.raises((pickle.PicklingError, AttributeError), match="lambda"):
            pickle.dumps(cache)


def report(cache: JobCache, version: int) -> str:
    source = Source(k=version)
    write(cache, source)
    return read(cache, source)[1].value


@pytest.mark.parametrize("backend", ["redis", "tiered"])
def test_a_task_in_a_spawned_process_may_be_given_the_cache(redis_url: str, backend: str) -> None:
    with redis_client.Redis.from_url(redis_url) as raw:
        raw.flushall()
    settings = CacheSettings(backend=backend, redis_url=redis_url)
    with JobCache(settings) as cache, multiprocessing.get_context("spawn").Pool(1) as pool:
        assert read(cache, Source(k=1)) == (1, CacheOutcome.MISS)
        assert pool.apply(report, (cache, 4)) == "hit"
        answer = cache.wait_for_newer("k", Source(k=1).load, 4, timeout=60)
        assert answer is not None
        assert (answer.entry.version, answer.outcome) == (5, CacheOutcome.HIT)
