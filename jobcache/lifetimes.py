"""For how long an entry is served and kept, by the status of its document.

Writes keep entries up to date. A lifetime bounds staleness where writes cannot: a writer may be cut
off from the store while readers are not. So lifetimes are short while a document changes, and long
once it cannot change. Each lifetime is shortened by a random part, so that entries that were stored
together do not expire together.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING

from jobcache.protocol.codec import compress, fits
from jobcache.protocol.document import UnstoredDocument
from jobcache.protocol.entry import UNVERSIONED, Entry

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from jobcache.protocol.document import Document, UnversionedDocument
    from jobcache.protocol.entry import Encoding


LONGEST = 10 * 365 * 86400.0
"""The longest lifetime, in seconds."""


def _random() -> float:
    """Return a random number in [0, 1). Unlike `random.random`, it is pickled by its name."""
    return random.random()  # noqa: S311 - no secret


@dataclass(frozen=True, kw_only=True)
class Lifetimes:
    """Lifetimes of entries, in seconds.

    Attributes:
        default: for a status that `by_status` does not contain.
        by_status: the lifetime of each status; 0: such documents are not stored.
        gone: for the entry which says that a document does not exist.
        grace: the time after its lifetime for which an entry is kept, to be served if the source is
            away.
        jitter: the largest part, from 0 to below 1, by which a lifetime is shortened at random.
        random: returns random numbers in [0, 1).

    Raises:
        ValueError: a time is negative or above ten years, or the jitter is out of its range.
    """

    default: float = 30.0
    by_status: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))
    gone: float = 5.0
    grace: float = 300.0
    jitter: float = 0.1
    random: Callable[[], float] = _random

    def __post_init__(self) -> None:
        times = [self.default, self.gone, self.grace, *self.by_status.values()]
        if not all(0 <= seconds <= LONGEST for seconds in times):
            raise ValueError("a lifetime cannot be negative, or longer than ten years")
        if not 0 <= self.jitter < 1:
            raise ValueError("jitter is a part of a lifetime, from 0 to below 1")

    def __getstate__(self) -> dict[str, object]:
        """Return what `pickle` and `copy` need: a read-only mapping cannot be pickled."""
        return vars(self) | {"by_status": dict(self.by_status)}

    def entry(self, document: Document, now_ms: int) -> Entry:
        """Return the entry of a document that was loaded or committed at `now_ms`."""
        gone = document.version == 0
        fresh = self.gone if gone else self.by_status.get(document.status, self.default)
        if isinstance(document, UnstoredDocument):
            fresh = 0.0
        fresh *= 1 - self.jitter * self.random()
        # No grace for a document that does not exist: it may have been created meanwhile.
        keep = fresh if gone or fresh == 0 else fresh + self.grace
        body, encoding, keep = _packed(document.body, keep)
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

    def unversioned_entry(self, document: UnversionedDocument, token: str, now_ms: int) -> Entry:
        """Return the entry of a document without a version.

        Args:
            document: the document, with its own lifetime. Grace and jitter are those of the others.
            token: of the load.
            now_ms: when the load began, in milliseconds since the epoch.
        """
        fresh = document.ttl * (1 - self.jitter * self.random())
        body, encoding, keep = _packed(document.body, fresh + self.grace if fresh else 0.0)
        return Entry(
            version=UNVERSIONED,
            owner="",
            status="",
            poll_after=None,
            encoded_body=body,
            encoding=encoding,
            stored_at_ms=now_ms,
            fresh_ms=round(fresh * 1000),
            keep_ms=round(keep * 1000),
            token=token,
            tags=document.tags,
        )


def _packed(body: bytes, keep: float) -> tuple[bytes, Encoding, float]:
    """Return a body as it is stored, its encoding, and the seconds for which it is kept."""
    if fits(body):
        return *compress(body), keep
    return body, "identity", 0.0  # served, and not stored
