"""Counters and latency histograms, and one snapshot of them.

A histogram has 16 buckets to every power of two, so a percentile is at most 6.25 % above the true
one, whatever the range, in a list of fixed size. Recording is an index and an addition: it stands
on the path of every poll. (HdrHistogram's idea, without its configurable precision.)

Counts are of this process only, since it started.
"""

from __future__ import annotations

from dataclasses import dataclass, field

_BITS = 4
_BUCKETS = 1 << _BITS
_POWERS = 44  # up to 2**48 ns, three days


class Histogram:
    """How long something took, in nanoseconds."""

    __slots__ = ("_counts", "count")

    def __init__(self) -> None:
        self.count = 0
        self._counts = [0] * (_BUCKETS * (_POWERS + 1))

    def record(self, nanoseconds: int) -> None:
        """Count one more."""
        power = nanoseconds.bit_length() - _BITS - 1
        index = nanoseconds if power < 0 else (power << _BITS) + (nanoseconds >> power)
        self.count += 1
        try:
            self._counts[index] += 1
        except IndexError:
            self._counts[-1] += 1

    def percentile(self, percent: float) -> float:
        """The value, in nanoseconds, that `percent` of the recorded ones do not exceed; 0 if none.

        The upper edge of its bucket, so never below the true one.
        """
        rank = self.count * percent / 100
        seen = 0
        for index, count in enumerate(self._counts):
            seen += count
            if count and seen >= rank:
                return _upper_edge(index)
        return 0.0

    def summary(self) -> dict[str, float]:
        """The percentiles people ask for, in microseconds, and the count."""
        return {
            "count": self.count,
            "p50": self.percentile(50) / 1000,
            "p95": self.percentile(95) / 1000,
            "p99": self.percentile(99) / 1000,
            "p99.9": self.percentile(99.9) / 1000,
        }


def _upper_edge(index: int) -> float:
    power = (index >> _BITS) - 1
    if power < 0:
        return float(index)
    return float((((index & (_BUCKETS - 1)) + _BUCKETS + 1) << power) - 1)


@dataclass(slots=True)
class Statistics:
    """What a `JobCache` has done.

    Every read is counted once: as a hit, a miss, a bypass, or stale. `coalesced` counts those of
    them that were answered by a load somebody else had asked for.

    Attributes:
        hits: answered from the cache.
        local_hits: of these, those that needed not wait: answered from this process.
        misses: loaded, because the cache held nothing fresh.
        bypasses: loaded, because the cache could not answer or must not (a fence stands).
        stale_served: answered past its freshness, because the source is away.
        coalesced: answered by a load shared with another caller.
        errors: operations of the backend that failed.
        fences: keys fenced by writers.
        database_loads: times the source was asked, by one reader for all who shared it.
        read_errors: reads that raised, such as those whose load failed; not among the above.
        not_stored: documents that were published and not kept: the lease or the fence was lost,
            another reader's lease stood in the way, or the document is too large for the cache.
        shadow_reads: hits that were compared with the source afterwards.
        shadow_overtaken: of these, how many a writer had overtaken by then; nothing is wrong.
        shadow_stale: of these, how many hid a newer version, which is.
        staleness: for how long they went on to hide it, from when that was found.
        hit: how long hits took, and so on.
    """

    hits: int = 0
    local_hits: int = 0
    misses: int = 0
    bypasses: int = 0
    stale_served: int = 0
    coalesced: int = 0
    errors: int = 0
    fences: int = 0
    database_loads: int = 0
    read_errors: int = 0
    not_stored: int = 0
    shadow_reads: int = 0
    shadow_overtaken: int = 0
    shadow_stale: int = 0
    hit: Histogram = field(default_factory=Histogram)
    miss: Histogram = field(default_factory=Histogram)
    publish: Histogram = field(default_factory=Histogram)
    database_load: Histogram = field(default_factory=Histogram)
    staleness: Histogram = field(default_factory=Histogram)

    def snapshot(self) -> dict[str, object]:
        """All of it, as JSON has it; `hit_rate` in percent of `total_requests`."""
        total = self.hits + self.misses + self.bypasses + self.stale_served
        return {
            "hits": self.hits,
            "misses": self.misses,
            "errors": self.errors,
            "hit_rate": round(100 * self.hits / total, 2) if total else 0.0,
            "total_requests": total,
            "coalesced": self.coalesced,
            "bypasses": self.bypasses,
            "stale_served": self.stale_served,
            "fences": self.fences,
            "database_loads": self.database_loads,
            "read_errors": self.read_errors,
            "not_stored": self.not_stored,
            "shadow_reads": self.shadow_reads,
            "shadow_overtaken": self.shadow_overtaken,
            "shadow_stale": self.shadow_stale,
            "latency_us": {
                "hit": self.hit.summary(),
                "miss": self.miss.summary(),
                "publish": self.publish.summary(),
                "database_load": self.database_load.summary(),
                "staleness": self.staleness.summary(),
            },
        }
