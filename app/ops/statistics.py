"""The document of `/api/v2/cache/stats`, made of the reports of all processes."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from jobcache.observability.statistics import Counters, Histogram

if TYPE_CHECKING:
    from app.ops.process_reports import Reports
    from jobcache import JobCache
    from jobcache.observability.metrics import Measurements
    from jobcache.protocol.change_feed import FeedStatus

_WITH_REDIS = {"redis", "tiered"}
_LATENCIES = {
    "hit": "jobcache_hit_duration_seconds",
    "miss": "jobcache_fetch_duration_seconds",
    "publish": "jobcache_publish_duration_seconds",
    "database_load": "jobcache_load_duration_seconds",
    "staleness": "jobcache_staleness_seconds",
    "long_poll": "jobcache_long_poll_duration_seconds",
}


def state_of(cache: JobCache) -> dict[str, Any]:
    """Return the state of this process, as far as it is no measurement."""
    info = cache.info()
    remote = info.backend in _WITH_REDIS
    return {
        "cache_enabled": info.backend != "null",
        "statistics": {
            "redis_enabled": remote,
            "redis_available": remote and info.health.available,
            "ttl_seconds": _shortest(cache.lifetimes.default),
            "backend": info.backend,
            "feed": _feed(info.feed),
            "breaker": {
                "state": info.health.state,
                "age_seconds": round(info.health.age, 3),
                "pending": info.health.pending,
            },
        },
        "message": _message(
            enabled=info.backend != "null",
            away=not info.health.available,
            why=info.health.reason,
        ),
    }


def document(reports: Reports) -> dict[str, Any]:
    """Return the sums of all processes, the state of the one that answers, and each process."""
    return {
        **_document(reports.total, reports.own.state),
        "process": reports.own.process,
        "processes": [
            {**_document(each.measured, each.state), "process": each.process}
            for each in reports.answered
        ],
        "unresponsive_processes": [each.process for each in reports.unresponsive],
    }


def _document(measured: Measurements, state: dict[str, Any]) -> dict[str, Any]:
    reads = measured["jobcache_reads_total"]
    counters = _counters(measured)
    return {
        **state,
        "statistics": {
            **asdict(counters),
            "hit_rate": counters.hit_rate,
            "total_requests": counters.total_requests,
            "latency_us": {
                name: _latency(Histogram.of(measured[metric]))
                for name, metric in _LATENCIES.items()
            },
            "tier_hits": {tier: results["hit"] for tier, results in reads.items()},
            "polls": measured["jobcache_polls_total"],
            "evictions": measured.get("jobcache_evictions_total"),
            "reads_ahead": measured.get("jobcache_reads_ahead_total"),
            "entries": measured.get("jobcache_entries"),
            "bytes": measured.get("jobcache_entry_bytes"),
            **state["statistics"],
        },
        "database": {
            "statements": measured["jobcache_database_statements_total"],
            "purposes": measured["jobcache_database_purposes_total"],
        },
        "held": {
            **measured["jobcache_held_requests"],
            "most": measured["jobcache_held_requests_limit"],
            "waiters": measured["jobcache_waiters"],
            "keys": measured["jobcache_watched_keys"],
        },
    }


def _latency(durations: Histogram) -> dict[str, float]:
    # The total is for the mean between two documents: percentiles since the start hardly move.
    return {**durations.summary(), "total": durations.total() / 1000}


def _counters(measured: Measurements) -> Counters:
    reads = measured["jobcache_reads_total"].values()

    def answered(result: str) -> int:
        return sum(tier.get(result, 0) for tier in reads)

    return Counters(
        hits=answered("hit"),
        misses=answered("miss"),
        bypasses=answered("bypass"),
        stale_served=answered("stale"),
        errors=measured["jobcache_store_errors_total"],
        coalesced=measured["jobcache_coalesced_reads_total"],
        fences=measured["jobcache_fences_total"],
        database_loads=measured["jobcache_loads_total"],
        read_errors=measured["jobcache_read_errors_total"],
        not_stored=measured["jobcache_publishes_not_stored_total"],
        shadow_reads=measured["jobcache_shadow_reads_total"],
        shadow_overtaken=measured["jobcache_shadow_reads_overtaken_total"],
        shadow_stale=measured["jobcache_shadow_reads_stale_total"],
    )


def _feed(condition: FeedStatus | None) -> dict[str, Any] | None:
    if condition is None:
        return None
    return {
        "state": condition.state,
        "age_seconds": round(condition.age, 3),
        "reason": condition.reason,
        "interruptions": condition.interruptions,
        "lag_us": condition.lag_us,
        "queue_usage": condition.queue_usage,
    }


def _shortest(number: float) -> float:
    # The first version of the service showed whole numbers without a fraction.
    return int(number) if number == int(number) else number


def _message(*, enabled: bool, away: bool, why: str) -> str:
    if not enabled:
        return "Cache is off: every poll is a database query"
    if away:
        return f"Cache is away ({why}): every poll is a database query until it is back"
    return "Cache is working normally"
