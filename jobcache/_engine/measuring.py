"""Measurements of a cache: its statistics, and the state of its backend, as metrics."""

from __future__ import annotations

from typing import TYPE_CHECKING

from jobcache.protocol.capabilities import (
    SupportsChangeFeed,
    SupportsEvictions,
    SupportsHealth,
    SupportsReadAhead,
    SupportsSize,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from jobcache.models import WaiterCount
    from jobcache.observability.metrics import Measurements
    from jobcache.observability.statistics import Statistics
    from jobcache.protocol.backend import CacheBackend

_FEED_STATES = ("idle", "connecting", "live", "unsupported")


def measure(
    backend: CacheBackend,
    statistics: Statistics,
    tier_hits: Mapping[str, int],
    waiting: WaiterCount,
) -> Measurements:
    """Return measurements of `CACHE_METRICS`; those that do not apply to the backend are left out.

    Args:
        backend: the backend.
        statistics: the counters of the cache.
        tier_hits: hits by tier; the last one is asked by reads that are not hits.
        waiting: how many callers wait.
    """
    reads = {tier: {"hit": hits} for tier, hits in tier_hits.items()}
    *_, remote = reads
    reads[remote] |= {
        "miss": statistics.misses,
        "stale": statistics.stale_served,
        "bypass": statistics.bypasses,
    }
    polls = statistics.polls
    return {
        "jobcache_reads_total": reads,
        "jobcache_coalesced_reads_total": statistics.coalesced,
        "jobcache_read_errors_total": statistics.read_errors,
        "jobcache_hit_duration_seconds": statistics.hit.counts(),
        "jobcache_fetch_duration_seconds": statistics.miss.counts(),
        "jobcache_loads_total": statistics.database_loads,
        "jobcache_load_duration_seconds": statistics.database_load.counts(),
        "jobcache_publish_duration_seconds": statistics.publish.counts(),
        "jobcache_publishes_not_stored_total": statistics.not_stored,
        "jobcache_fences_total": statistics.fences,
        "jobcache_store_errors_total": statistics.errors,
        "jobcache_shadow_reads_total": statistics.shadow_reads,
        "jobcache_shadow_reads_overtaken_total": statistics.shadow_overtaken,
        "jobcache_shadow_reads_stale_total": statistics.shadow_stale,
        "jobcache_staleness_seconds": statistics.staleness.counts(),
        "jobcache_waiters": waiting.waiters,
        "jobcache_watched_keys": waiting.keys,
        "jobcache_polls_total": {
            "200": polls.whole,
            "304": polls.unchanged,
            "long_poll_answered": polls.long_polls_answered,
            "long_poll_timed_out": polls.long_polls_timed_out,
            "long_poll_abandoned": polls.long_polls_abandoned,
            "long_poll_ended": polls.long_polls_ended,
        },
        "jobcache_long_poll_duration_seconds": polls.long_poll.counts(),
        **_of_backend(backend),
    }


def _of_backend(backend: CacheBackend) -> Measurements:
    measured: Measurements = {}
    if isinstance(backend, SupportsEvictions):
        measured["jobcache_evictions_total"] = dict(backend.evictions())
    if isinstance(backend, SupportsReadAhead):
        measured["jobcache_reads_ahead_total"] = backend.reads_ahead()
    if isinstance(backend, SupportsSize):
        measured["jobcache_entries"], measured["jobcache_entry_bytes"] = backend.size()
    if isinstance(backend, SupportsHealth):
        health = backend.condition()
        measured["jobcache_breaker_open"] = int(health.state == "open")
        measured["jobcache_breaker_openings_total"] = health.openings
        if health.pending is not None:
            measured["jobcache_pending_replays"] = health.pending
    changes = backend.feed() if isinstance(backend, SupportsChangeFeed) else None
    if changes is not None:
        feed = changes.condition()
        measured["jobcache_feed_state"] = {each: int(each == feed.state) for each in _FEED_STATES}
        measured["jobcache_feed_interruptions_total"] = feed.interruptions
        measured["jobcache_feed_lag_seconds"] = dict(feed.lag_counts)
        if feed.queue_usage is not None:
            measured["jobcache_feed_queue_usage"] = feed.queue_usage
    return measured
