"""How long an entry may be served and kept, by the status of its document.

Writes keep entries right; a lifetime only bounds what no protocol can, such as a writer that is
cut off from the store while readers are not. So it is short while a document moves and long once
it cannot change. Each lifetime is shortened by a random part, so that entries stored together do
not all expire together.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING

from jobcache.protocol.backend import Document, Entry
from jobcache.protocol.codec import compress, fits

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


_LONGEST = 10 * 365 * 86400.0


def _random() -> float:
    """Return a random number in [0, 1). Unlike `random.random`, it is pickled by its name."""
    return random.random()  # noqa: S311 - no secret


@dataclass(frozen=True, kw_only=True)
class Lifetimes:
    """How long entries live. All times in seconds.

    Attributes:
        default: for a status that `by_status` does not name.
        by_status: by status; 0 means such documents are not kept at all.
        gone: for the note that a document does not exist.
        grace: how much longer an entry is kept, to be served if the source is away.
        jitter: the largest part, from 0 to below 1, by which a lifetime is shortened at random.
        random: where that part comes from; numbers in [0, 1).

    Raises:
        ValueError: a time is negative or absurd, or the jitter outside its range.
    """

    default: float = 30.0
    by_status: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))
    gone: float = 5.0
    grace: float = 300.0
    jitter: float = 0.1
    random: Callable[[], float] = _random

    def __post_init__(self) -> None:
        times = [self.default, self.gone, self.grace, *self.by_status.values()]
        if not all(0 <= seconds <= _LONGEST for seconds in times):
            raise ValueError("a lifetime cannot be negative, or longer than ten years")
        if not 0 <= self.jitter < 1:
            raise ValueError("jitter is a part of a lifetime, from 0 to below 1")

    def __getstate__(self) -> dict[str, object]:
        """Return what `pickle` and `copy` need: a read-only mapping cannot be pickled."""
        return vars(self) | {"by_status": dict(self.by_status)}

    def entry(self, document: Document, now_ms: int) -> Entry:
        """`document`, loaded or committed at `now_ms`, ready to be stored and served."""
        gone = document.version == 0
        fresh = self.gone if gone else self.by_status.get(document.status, self.default)
        fresh *= 1 - self.jitter * self.random()
        # A "gone" has no grace: while the source is away nobody can say that it is still true.
        keep = fresh if gone or fresh == 0 else fresh + self.grace
        if fits(document.body):
            body, encoding = compress(document.body)
        else:
            body, encoding, keep = document.body, "identity", 0.0  # served, and not stored
        return Entry(
            version=document.version,
            owner=document.owner,
            status=document.status,
            poll_after=document.poll_after,
            encoded_body=body,
            encoding=encoding,
            stored_at_ms=now_ms,
            fresh_ms=round(fresh * 1000),
            keep_ms=round(keep * 1000),
        )
