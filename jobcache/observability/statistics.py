"""Counters and latency histograms of one process, since it started.

A histogram has 16 buckets for every power of two, in a list of fixed size. So a percentile is at
most 6.25 % above the true value. Recording is an index and an addition, because it is on the path
of every poll. (This is the idea of HdrHistogram, without its configurable precision.)
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_BITS = 4
_BUCKETS = 1 << _BITS
_POWERS = 44  # up to 2**48 ns, three days
_NOT_MODIFIED = 304


class Histogram:
    """Durations in nanoseconds."""

    __slots__ = ("_counts", "count")

    def __init__(self) -> None:
        self.count = 0
        self._counts = [0] * (_BUCKETS * (_POWERS + 1))

    def record(self, nanoseconds: int) -> None:
        """Record one duration."""
        power = nanoseconds.bit_length() - _BITS - 1
        index = nanoseconds if power < 0 else (power << _BITS) + (nanoseconds >> power)
        self.count += 1
        try:
            self._counts[index] += 1
        except IndexError:
            self._counts[-1] += 1

    @classmethod
    def of(cls, counts: Mapping[str, int]) -> Histogram:
        """Return a histogram with the counts that `counts` has returned, perhaps added up."""
        made = cls()
        for index, count in counts.items():
            made._counts[int(index)] += count
        made.count = sum(made._counts)
        return made

    def counts(self) -> dict[str, int]:
        """Return the number of durations in each bucket that has any, by the bucket's number.

        The numbers are strings, as JSON writes them: processes add up their histograms.
        """
        return {str(index): count for index, count in enumerate(self._counts) if count}

    def below_powers(self, powers: range) -> Iterator[tuple[int, int]]:
        """Yield, for each power of two, how many durations were shorter than so many nanoseconds.

        Args:
            powers: the powers, in ascending order; each ends a bucket, so the numbers are exact.
        """
        for power in powers:
            yield 1 << power, sum(self._counts[: (power - _BITS + 1) << _BITS])

    def total(self) -> float:
        """Return about the sum of all durations; at most 3.1 % off.

        It is computed from the buckets, because recording it would take time on each hit.
        """
        return sum(
            count * (_upper_edge(index - 1) + 1 + _upper_edge(index)) / 2
            for index, count in enumerate(self._counts)
            if count
        )

    def percentile(self, percent: float) -> float:
        """Return the duration that `percent` of all recorded ones do not exceed; 0 without any.

        It is the upper edge of a bucket, so never below the true value.
        """
        rank = self.count * percent / 100
        seen = 0
        for index, count in enumerate(self._counts):
            seen += count
            if count and seen >= rank:
                return _upper_edge(index)
        return 0.0

    def summary(self) -> dict[str, float]:
        """Return the count, and four percentiles in microseconds."""
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Counters:
    """What a `JobCache` has done in this process.

    Every read that was answered is counted once: as a hit, a miss, a bypass, or stale.

    Attributes:
        hits: reads answered from the cache.
        misses: reads that needed a load, because the cache held nothing fresh.
        bypasses: reads that needed a load, because the cache failed or a writer was at work.
        stale_served: reads answered by an entry past its freshness, because the source was away.
        coalesced: of these reads, those answered by a load that another caller had asked for.
        errors: operations of the backend that failed.
        fences: keys fenced by writers.
        database_loads: calls of loaders; one for all readers who share it.
        read_errors: reads that raised an error, such as the loader's; they are not counted above.
        not_stored: documents that were published but not stored: the lease or the fence was lost,
            another reader held the lease, or the document is too large for the cache.
        shadow_reads: hits that were compared with the source afterwards.
        shadow_overtaken: of these, hits that a writer had overtaken meanwhile, which is right.
        shadow_stale: of these, hits that hid a newer version, which is wrong.
    """

    hits: int
    misses: int
    errors: int
    coalesced: int
    bypasses: int
    stale_served: int
    fences: int
    database_loads: int
    read_errors: int
    not_stored: int
    shadow_reads: int
    shadow_overtaken: int
    shadow_stale: int

    @property
    def total_requests(self) -> int:
        """The number of reads that were answered."""
        return self.hits + self.misses + self.bypasses + self.stale_served

    @property
    def hit_rate(self) -> float:
        """The hits, in percent of all reads that were answered; 0 if there were none."""
        total = self.total_requests
        return round(100 * self.hits / total, 2) if total else 0.0


@dataclass(slots=True)
class PollCounts:
    """Counts the polls over HTTP that were answered with a document, or that it has not changed.

    Attributes:
        whole: answered at once with the document: 200.
        unchanged: answered at once that the client has the newest version: 304.
        long_polls_answered: held, and answered with a newer version.
        long_polls_timed_out: held until their time was up.
        long_polls_abandoned: held until their client closed the connection.
        long_polls_ended: held until the process shut down, the caller's key was revoked, or the
            source was away.
        long_poll: for how long polls were held, however they ended.
    """

    whole: int = 0
    unchanged: int = 0
    long_polls_answered: int = 0
    long_polls_timed_out: int = 0
    long_polls_abandoned: int = 0
    long_polls_ended: int = 0
    long_poll: Histogram = field(default_factory=Histogram)

    def count(self, status: int) -> None:
        """Count a poll that was answered at once, with this HTTP status: 200 or 304."""
        if status == _NOT_MODIFIED:
            self.unchanged += 1
        else:
            self.whole += 1


@dataclass(slots=True)
class Statistics:
    """Counts what a `JobCache` does; `Counters` explains the fields.

    Attributes:
        local_hits: of the hits, those answered from this process without waiting.
        hit: durations of hits.
        miss: durations of all other reads that were answered.
        publish: durations of publishing.
        database_load: durations of loads.
        staleness: for how long entries went on to hide a newer version that a shadow read found.
        polls: the polls over HTTP of documents in the cache.
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
    polls: PollCounts = field(default_factory=PollCounts)

    def counters(self) -> Counters:
        """Return the counters as they are now."""
        return Counters(
            hits=self.hits,
            misses=self.misses,
            errors=self.errors,
            coalesced=self.coalesced,
            bypasses=self.bypasses,
            stale_served=self.stale_served,
            fences=self.fences,
            database_loads=self.database_loads,
            read_errors=self.read_errors,
            not_stored=self.not_stored,
            shadow_reads=self.shadow_reads,
            shadow_overtaken=self.shadow_overtaken,
            shadow_stale=self.shadow_stale,
        )

    def latency_us(self) -> dict[str, dict[str, float]]:
        """Return, for each kind of operation, its count and percentiles in microseconds."""
        return {
            "hit": self.hit.summary(),
            "miss": self.miss.summary(),
            "publish": self.publish.summary(),
            "database_load": self.database_load.summary(),
            "staleness": self.staleness.summary(),
        }
