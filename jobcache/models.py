"""What a read returns, and how it came by it."""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from jobcache.errors import InvalidDocument
    from jobcache.protocol.backend import Document, Entry

    Load = Callable[[], Awaitable[Document | None]]
    LoadMany = Callable[[Sequence[str]], Awaitable[Mapping[str, Document]]]


class CacheOutcome(Enum):
    """How a read was answered."""

    HIT = "hit"
    """From the cache."""
    MISS = "miss"
    """Loaded: the cache held nothing."""
    EXPIRED = "expired"
    """Loaded: what the cache held was past its freshness."""
    BYPASS = "bypass"
    """Loaded: the cache could not answer, or must not while a writer is at work."""
    STALE = "stale"
    """From the cache, past its freshness, because the source is away."""


class ReadResult(NamedTuple):
    """What a read returns. A tuple, for one is made for every poll.

    Attributes:
        entry: the entry; `entry.gone` where the source knows no such document.
        outcome: where it came from.
        coalesced: True if a load that served it was asked for by another caller.
        tier: the backend, or the tier of it, that answered, or would have.
        age_ms: how long ago the entry was loaded or committed, in milliseconds.
    """

    entry: Entry
    outcome: CacheOutcome
    coalesced: bool
    tier: str
    age_ms: int


class ReadResults(dict[str, ReadResult]):
    """Answers by key. One key that is invalid, or whose document is, spares the other keys.

    To look up such a key raises its error.

    Attributes:
        errors: the errors, by key.
    """

    def __init__(self) -> None:
        super().__init__()
        self.errors: dict[str, InvalidDocument] = {}

    def __missing__(self, key: str) -> ReadResult:
        raise self.errors.get(key, KeyError(key))
