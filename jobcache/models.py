"""Results of reads, and the description of a cache that `JobCache.info` returns."""

from __future__ import annotations

import json
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any, NamedTuple

from jobcache.errors import DocumentMissing
from jobcache.protocol.codec import identity_body

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from jobcache.errors import InvalidDocument
    from jobcache.observability.statistics import Counters
    from jobcache.protocol.capabilities import Health
    from jobcache.protocol.change_feed import FeedStatus
    from jobcache.protocol.document import Document
    from jobcache.protocol.entry import Entry

    Load = Callable[[], Awaitable[Document | None]]
    LoadMany = Callable[[Sequence[str]], Awaitable[Mapping[str, Document]]]


class CacheOutcome(StrEnum):
    """How a read was answered."""

    HIT = "hit"
    """From the cache."""
    MISS = "miss"
    """Loaded: the cache held nothing."""
    EXPIRED = "expired"
    """Loaded: the entry in the cache was past its freshness."""
    BYPASS = "bypass"
    """Loaded: the cache failed, or a writer was about to commit a newer version."""
    STALE = "stale"
    """From the cache, past its freshness, because the source is away."""


class ReadResult(NamedTuple):
    """The result of a read.

    A tuple, because one is made for every poll.

    Attributes:
        entry: the entry as it is stored: the version, the owner, the body in its encoding.
        outcome: how the read was answered.
        coalesced: True if the read shared a load that another caller had started.
        tier: the name of the backend, or of its tier, that answered or was asked.
        age_ms: milliseconds since the entry was loaded or committed.
    """

    entry: Entry
    outcome: CacheOutcome
    coalesced: bool
    tier: str
    age_ms: int

    @property
    def missing(self) -> bool:
        """True if the source has no such document: the loader returned None."""
        return self.entry.version == 0

    @property
    def version(self) -> int:
        """The version of the document; 0 if it is missing."""
        return self.entry.version

    @property
    def body(self) -> bytes:
        """The body of the document, as it was loaded or published.

        A body that is stored as gzip is decompressed at each access.

        Raises:
            DocumentMissing: the source has no such document.
            UnreadableCell: the stored body is damaged.
        """
        if self.entry.version == 0:
            raise DocumentMissing(
                "the source has no such document: look at `missing` before the body"
            )
        return identity_body(self.entry)

    def json(self) -> Any:  # noqa: ANN401 - whatever the JSON says
        """Return the value of a body that is JSON.

        Raises:
            DocumentMissing: the source has no such document.
            UnreadableCell: the stored body is damaged.
            ValueError: the body is not JSON.
        """
        return json.loads(self.body)


class ReadResults(dict[str, ReadResult]):
    """Results by key.

    A key that is invalid, or whose document is, has no result; looking it up raises its error.

    Attributes:
        errors: the errors, by key.
    """

    def __init__(self) -> None:
        super().__init__()
        self.errors: dict[str, InvalidDocument] = {}

    def __missing__(self, key: str) -> ReadResult:
        raise self.errors.get(key, KeyError(key))


class CacheSize(NamedTuple):
    """How much a cache holds in this process.

    Attributes:
        entries: the number of cells.
        bytes: about how many bytes they take.
    """

    entries: int
    bytes: int


class WaiterCount(NamedTuple):
    """How many callers of `JobCache.wait_for_newer` wait.

    Attributes:
        waiters: the number of callers.
        keys: the number of keys that they wait for.
    """

    waiters: int
    keys: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheInfo:
    """The state of a `JobCache` at one moment, and its counters since this process started.

    Attributes:
        backend: the name of the backend.
        health: whether the store is in use; always available where nothing watches the backend.
        size: what this process holds; None if the backend keeps nothing in this process.
        feed: the state of the change feed; None if the backend has none.
        waiting: callers that wait for a newer version.
        counters: what the cache has done.
        tier_hits: hits by the tier that answered; one tier if the backend has no others.
        latency_us: count and percentiles (p50, p95, p99, p99.9), in microseconds, of `hit`, `miss`,
            `publish`, `database_load` and `staleness`.
    """

    backend: str
    health: Health
    size: CacheSize | None
    feed: FeedStatus | None
    waiting: WaiterCount
    counters: Counters
    tier_hits: Mapping[str, int]
    latency_us: Mapping[str, Mapping[str, float]]
