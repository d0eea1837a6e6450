"""A collector shows what a cache counts, of the asynchronous and of the synchronous cache."""

from __future__ import annotations

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from jobcache import Document, JobCache
from jobcache import sync as jobcache_sync
from jobcache.backends.memory import MemoryBackend
from jobcache.backends.null import NullBackend
from jobcache.observability.metrics import CACHE_METRICS, Metric, add, only_counts, samples
from jobcache.observability.prometheus import CacheCollector

DOCUMENT = Document(version=1, owner="acme", body=b"{}")


def value(registry: CollectorRegistry, name: str, **labels: str) -> float | None:
    return registry.get_sample_value(name, labels)


async def load() -> Document:
    return DOCUMENT


async def test_it_shows_what_the_cache_has_counted() -> None:
    registry = CollectorRegistry()
    async with JobCache(MemoryBackend(max_entries=2)) as cache:
        registry.register(CacheCollector(cache))
        for key in ("a", "a", "a", "b", "c"):
            await cache.read(key, load)
        reads = "jobcache_reads_total"
        assert value(registry, reads, tier="memory", result="hit") == 2
        assert value(registry, reads, tier="memory", result="miss") == 3
        assert value(registry, "jobcache_loads_total") == 3
        assert value(registry, "jobcache_hit_duration_seconds_count") == 2
        assert value(registry, "jobcache_hit_duration_seconds_bucket", le="+Inf") == 2
        assert value(registry, "jobcache_entries") == 2
        assert value(registry, "jobcache_evictions_total", reason="capacity") == 1
        assert value(registry, "jobcache_feed_state", state="live") is None, "it has no feed"


async def test_a_read_that_is_no_hit_counts_once_whatever_its_result() -> None:
    async with JobCache(NullBackend()) as cache:
        await cache.read("a", load)
        measured = cache.measure()
    assert measured["jobcache_reads_total"] == {
        "null": {"hit": 0, "miss": 1, "stale": 0, "bypass": 0}
    }
    assert "jobcache_entries" not in measured


async def test_every_measurement_is_of_a_metric_with_its_labels() -> None:
    metrics = {metric.name: metric for metric in CACHE_METRICS}
    async with JobCache.from_url("memory://") as cache:
        await cache.read("a", load)
        for name, measured in cache.measure().items():
            for labels, _ in samples(metrics[name], measured):
                assert len(labels) == len(metrics[name].labels), name


async def test_caches_of_one_process_are_told_apart_by_a_label() -> None:
    registry = CollectorRegistry()
    async with JobCache.from_url("memory://") as one, JobCache.from_url("memory://") as two:
        registry.register(CacheCollector(one, {"cache": "one"}))
        await two.read("a", load)
        registry.register(CacheCollector(two, {"cache": "two"}))
        assert value(registry, "jobcache_loads_total", cache="one") == 0
        assert value(registry, "jobcache_loads_total", cache="two") == 1
        assert b'jobcache_loads_total{cache="two"} 1.0' in generate_latest(registry)


def test_it_collects_from_a_cache_for_threads() -> None:
    registry = CollectorRegistry()
    with jobcache_sync.JobCache.from_url("memory://") as cache:
        registry.register(CacheCollector(cache))
        cache.read("a", lambda: DOCUMENT)
        cache.read("a", lambda: DOCUMENT)
        assert value(registry, "jobcache_reads_total", tier="memory", result="hit") == 1


COUNTS = Metric("a_total", "counter", "A.", ("x", "y"))
GAUGE = Metric("b", "gauge", "B.")


@pytest.mark.parametrize(
    ("first", "second", "total"),
    [
        (1, 2, 3),
        ({}, {"a": 1}, {"a": 1}),
        ({"a": {"b": 1}, "c": 5}, {"a": {"b": 2, "d": 3}}, {"a": {"b": 3, "d": 3}, "c": 5}),
    ],
)
def test_measurements_add_up(first: object, second: object, total: object) -> None:
    assert add(first, second) == total
    assert add(second, first) == total


def test_a_process_leaves_its_counts_and_no_gauges() -> None:
    measured = {"a_total": {"1": {"2": 3}}, "b": 4}
    assert only_counts(measured, (COUNTS, GAUGE)) == {"a_total": {"1": {"2": 3}}}
    assert list(samples(COUNTS, measured["a_total"])) == [(("1", "2"), 3)]
