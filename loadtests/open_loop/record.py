"""The record of all polls: how long each kind took, and what was wrong."""

from __future__ import annotations

from array import array
from collections import Counter
from enum import StrEnum
from typing import TYPE_CHECKING

from loadtests.percentiles import percentile

if TYPE_CHECKING:
    from collections.abc import Iterable

PERCENTILES = {"p50": 50.0, "p99": 99.0, "p99.9": 99.9, "max": 100.0}


class Kind(StrEnum):
    """The kinds of polls. Each poll is of one kind, the first of these that applies.

    Attributes:
        CHANGING: a poll during a change. Either the service says that it has bypassed the cache,
            because of a fence; or the response has a version that had not been acknowledged to its
            writer when the poll was sent.
        FIRST: the first poll after a change: it brought its poller a newer version.
        UNCHANGED: a 304.
        HIT: a response from the cache.
        OTHER: a miss, or a response past its freshness.
    """

    CHANGING = "during a change"
    FIRST = "first after a change"
    UNCHANGED = "304"
    HIT = "hit"
    OTHER = "miss"


class Source(StrEnum):
    """The ways in which the service gets a response, as its statistics count them."""

    HIT = "hits"
    MISS = "misses"
    BYPASS = "bypasses"
    STALE = "stale_served"
    UNKNOWN = "unknown"


class _Sources(dict[bytes, tuple[Source, bool]]):
    """Values of `Cache-Status`, and what they say: the source, and whether it was shared."""

    def __missing__(self, value: bytes) -> tuple[Source, bool]:
        source = Source.UNKNOWN
        if value.startswith(b"jobcache; hit"):
            source = Source.HIT
        elif value.startswith(b"jobcache; fwd=bypass"):
            source = Source.BYPASS
        elif b"; fwd-status=503" in value:
            source = Source.STALE
        elif value.startswith((b"jobcache; fwd=miss", b"jobcache; fwd=stale")):
            source = Source.MISS
        self[value] = found = source, b"; collapsed" in value
        return found


class Record:
    """What the pollers of one run have seen.

    Attributes:
        seconds: how long each poll took from its planned time, by kind.
        sent: the polls that were sent.
        sources: the responses, by source.
        coalesced: the responses that another poll's load has brought.
        errors: wrong responses and lost connections, by description.
        backwards: responses that were older than one that the same poller had received before.
        outdated: responses that were older than acknowledged when the poll was sent.
    """

    def __init__(self) -> None:
        self.seconds = {kind: array("d") for kind in Kind}
        self.sent = 0
        self.sources: Counter[Source] = Counter()
        self.coalesced = 0
        self.errors: Counter[str] = Counter()
        self.backwards = 0
        self.outdated = 0
        self._known = _Sources()

    @property
    def answered(self) -> int:
        """The polls that were answered as they should be."""
        return sum(map(len, self.seconds.values()))

    def source(self, cache_status: bytes) -> Source:
        """Count a response by its `Cache-Status`, and return its source."""
        source, coalesced = self._known[cache_status]
        self.sources[source] += 1
        self.coalesced += coalesced
        return source

    def rows(self) -> dict[str, dict[str, float | None]]:
        """Return count and percentiles in milliseconds of all polls, and of each kind."""
        everything = array("d")
        for seconds in self.seconds.values():
            everything.extend(seconds)
        kinds = {kind.value: summary(seconds) for kind, seconds in self.seconds.items()}
        return {"all": summary(everything), **kinds}


def summary(seconds: Iterable[float]) -> dict[str, float | None]:
    """Return the count, and percentiles in milliseconds; None if there are none."""
    ordered = sorted(seconds)
    found: dict[str, float | None] = {"count": len(ordered)}
    for name, percent in PERCENTILES.items():
        value = percentile(ordered, percent)
        found[name] = None if value is None else 1000 * value
    return found
