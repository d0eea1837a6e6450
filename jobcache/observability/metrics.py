"""What is measured: the metrics of a cache, and measurements of them that processes can add up.

Nothing here takes time on a hit. A cache counts for its statistics anyway; `JobCache.measure` reads
these counts when somebody asks. A service measures more of its own in the same form.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    Measurements = dict[str, Any]
    """For each metric, by its name: the number, or a dictionary of the numbers by the value of the
    first label; in that, perhaps, by the value of the second. In place of a number, a histogram has
    `Histogram.counts()`. It can be written as JSON."""

Kind = Literal["counter", "gauge", "histogram"]


@dataclass(frozen=True, slots=True)
class Metric:
    """A metric, named by the conventions of Prometheus.

    Attributes:
        name: with its unit, and `_total` for a counter.
        kind: a counter never goes down while its process lives; a gauge is how it is now.
        help: one sentence.
        labels: their names. Each has few values, known in advance.
        shared: whether all processes measure the same thing, so that their sum means nothing.
    """

    name: str
    kind: Kind
    help: str
    labels: tuple[str, ...] = ()
    shared: bool = False


def _histogram(name: str, text: str) -> Metric:
    return Metric(name, "histogram", text)


CACHE_METRICS = (
    Metric(
        "jobcache_reads_total",
        "counter",
        "Reads that were answered. A read that was not a hit counts for the tier that was asked"
        " last.",
        ("tier", "result"),
    ),
    Metric(
        "jobcache_coalesced_reads_total",
        "counter",
        "Of the reads that were not hits, those answered by a load of another caller.",
    ),
    Metric("jobcache_read_errors_total", "counter", "Reads that raised an error."),
    _histogram("jobcache_hit_duration_seconds", "Duration of hits within the cache."),
    _histogram(
        "jobcache_fetch_duration_seconds", "Duration of the other reads that were answered."
    ),
    Metric("jobcache_loads_total", "counter", "Calls of loaders."),
    _histogram("jobcache_load_duration_seconds", "Duration of loads that returned."),
    _histogram("jobcache_publish_duration_seconds", "Duration of publishing a key."),
    Metric(
        "jobcache_publishes_not_stored_total",
        "counter",
        "Documents that were published and not stored: the lease or fence was lost, or they are too"
        " large.",
    ),
    Metric(
        "jobcache_fences_total",
        "counter",
        "Keys that writers fenced, or announced to the change feed in their transaction.",
    ),
    Metric("jobcache_store_errors_total", "counter", "Operations of the backend that failed."),
    Metric("jobcache_shadow_reads_total", "counter", "Hits compared with the source afterwards."),
    Metric(
        "jobcache_shadow_reads_overtaken_total",
        "counter",
        "Of these, hits that a writer had overtaken meanwhile, which is right.",
    ),
    Metric(
        "jobcache_shadow_reads_stale_total",
        "counter",
        "Of these, hits that hid a newer version, which is wrong.",
    ),
    _histogram(
        "jobcache_staleness_seconds",
        "For how long entries went on to hide a newer version that a shadow read had found.",
    ),
    Metric(
        "jobcache_evictions_total",
        "counter",
        "Cells that this process dropped from its memory.",
        ("reason",),
    ),
    Metric(
        "jobcache_reads_ahead_total",
        "counter",
        "Keys that were read again from the remote tier when they had changed, before a poll.",
    ),
    Metric("jobcache_entries", "gauge", "Cells in the memory of the process."),
    Metric("jobcache_entry_bytes", "gauge", "About how many bytes these cells take."),
    Metric(
        "jobcache_breaker_open",
        "gauge",
        "1 while the store is not used, because it failed; or the memory, because another process"
        " uses the database.",
    ),
    Metric("jobcache_breaker_openings_total", "counter", "How often the store was given up."),
    Metric(
        "jobcache_pending_replays",
        "gauge",
        "Keys with operations to repeat once the store is reachable; absent while it is every key.",
    ),
    Metric("jobcache_feed_state", "gauge", "1 for the state of the change feed.", ("state",)),
    Metric(
        "jobcache_feed_interruptions_total",
        "counter",
        "How often the change feed was interrupted, and had to connect again.",
    ),
    _histogram(
        "jobcache_feed_lag_seconds", "Time from each heartbeat of the change feed to its report."
    ),
    Metric(
        "jobcache_feed_queue_usage",
        "gauge",
        "The part of the database server's queue of notifications that is in use, from 0 to 1.",
        shared=True,
    ),
    Metric("jobcache_waiters", "gauge", "Callers that wait for a newer version."),
    Metric("jobcache_watched_keys", "gauge", "Keys that these callers wait for."),
    Metric(
        "jobcache_polls_total",
        "counter",
        "Polls over HTTP, by how they were answered.",
        ("outcome",),
    ),
    _histogram("jobcache_long_poll_duration_seconds", "For how long polls were held."),
)
"""The metrics of a `JobCache`."""


class Measurable(Protocol):
    """Something that can be measured, such as a `JobCache`."""

    def measure(self) -> Measurements:
        """Return measurements of `CACHE_METRICS`. Metrics that do not apply are left out."""


def add(first: Any, second: Any) -> Any:  # noqa: ANN401 - numbers, or dictionaries of them
    """Return the sum of two measurements, or of two parts of them with the same labels."""
    if isinstance(first, dict):
        return first | {
            key: add(first[key], value) if key in first else value for key, value in second.items()
        }
    return first + second


def only_counts(measured: Measurements, metrics: Iterable[Metric]) -> Measurements:
    """Return the measurements that a process leaves behind when it ends: all but gauges."""
    kept = {metric.name for metric in metrics if metric.kind != "gauge"}
    return {name: value for name, value in measured.items() if name in kept}


def samples(metric: Metric, measured: Any) -> Iterator[tuple[tuple[str, ...], Any]]:  # noqa: ANN401 - as for `add`
    """Yield the values of the labels, and the number or the counts, of each part of a metric."""
    yield from _parts(len(metric.labels), (), measured)


def _parts(depth: int, values: tuple[str, ...], measured: Any) -> Iterator[Any]:  # noqa: ANN401 - as above
    if depth == 0:
        yield values, measured
        return
    part: Mapping[str, Any] = measured
    for value, below in part.items():
        yield from _parts(depth - 1, (*values, value), below)
